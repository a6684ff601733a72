"""What every refusal of a command line is like."""


def refused(result, code, *words):
    """Check that a command line was refused in one sentence that holds some words."""
    assert (result.code, result.stdout) == (code, ""), result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, "one sentence, one line"
    assert result.stderr[:-1].isprintable(), "no command to the terminal"
    assert len(result.stderr) < 5_000
    assert "unexpected" not in result.stderr
    for word in words:
        assert word in result.stderr
