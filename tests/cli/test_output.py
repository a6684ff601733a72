import io
import json
import logging
import sys
import warnings

from rich.console import Console

from tfx_cli import output


# -- results
def test_json_carries_its_schema_and_strict_numbers(capsys):
    output.print_result(
        "eval", {"score": float("nan"), "n": 3}, as_json=True, text=lambda: "not called"
    )
    assert json.loads(capsys.readouterr().out) == {"schema": "tfx.eval/1", "score": None, "n": 3}


def test_text_and_tables_are_printed_as_written(capsys):
    table = output.make_table(
        ["[name]", "cells", "share"], [["[sex] [/]", 12345, 0.5], ["b", None, 0.25]], title="[t]"
    )
    output.print_result("x", {}, as_json=False, text=lambda: ["[NO_SEX] [bold]", table])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[NO_SEX] [bold]"
    assert lines[1].strip() == "[t]"
    assert lines[2].split() == ["[name]", "cells", "share"]
    assert lines[4].split() == ["[sex]", "[/]", "12,345", "0.500"]
    assert lines[5].split() == ["b", "0.250"]
    assert all(line == line.rstrip() for line in lines)


def test_tables_are_not_cut_when_they_go_to_a_file(capsys):
    output.print_result(
        "x", {}, as_json=False, text=lambda: output.make_table(["a"], [["x" * 300]])
    )
    assert "x" * 300 in capsys.readouterr().out


def test_a_terminal_breaks_lines_between_words_and_documents_nowhere(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    words = [f"word-{n}" for n in range(20)]
    sentence = "- " + " ".join(words)
    output.print_text(sentence)
    output.print_text(output.Document(sentence))
    output.print_error(sentence)
    printed = capsys.readouterr()
    *lines, document = printed.out.splitlines()
    assert document == sentence
    assert lines == printed.err.splitlines()
    assert len(lines) > 3
    assert all(len(line) <= 40 for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])
    assert " ".join(lines).split() == sentence.split()


def test_letters_that_the_terminal_lacks_do_not_stop_the_result(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    output.print_text("γδ T cell")
    assert raw.getvalue() == b"\\u03b3\\u03b4 T cell\n"


# -- narration
def test_narration_goes_to_stderr_and_core_is_heard(capsys):
    with output.narration():
        output.narrate("reading [cells]")
        logging.getLogger("core.cells").info("12 cells left out")
        logging.getLogger("core.cells").debug("detail")
        logging.getLogger("somebody").info("chatter")
        output.warn("odd")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "reading [cells]\n12 cells left out\nwarning: odd\n"


def test_quiet_says_only_faults(capsys):
    with output.narration():
        output.set_verbosity(quiet=True)
        assert output.is_quiet()
        output.narrate("reading")
        output.warn("odd")
        output.print_error("Error: bad")
    assert capsys.readouterr().err == "Error: bad\n"


def test_verbose_says_details_and_library_warnings(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with output.narration():
            warnings.warn("hidden by default", stacklevel=1)
            output.set_verbosity(verbose=True)
            logging.getLogger("core.cells").debug("detail")
            warnings.warn("a library warning", stacklevel=1)
    error = capsys.readouterr().err
    assert "detail" in error
    assert "a library warning" in error
    assert "hidden by default" not in error


def test_logging_is_left_as_it_was():
    root = logging.getLogger()
    before = (list(root.handlers), root.level, logging.getLogger("core").level)
    with output.narration():
        output.set_verbosity(verbose=True)
    assert (list(root.handlers), root.level, logging.getLogger("core").level) == before


def test_a_log_call_with_wrong_arguments_is_still_a_line(capsys):
    logger = logging.getLogger("core")
    record = logger.makeRecord("core", logging.WARNING, "x.py", 1, "%d cells", ("many",), None)
    with output.narration():
        logging.getLogger().handlers[-1].emit(record)
    assert capsys.readouterr().err == "warning: %d cells\n"


def test_a_table_that_is_too_wide_becomes_several_and_splits_no_word(monkeypatch):
    methods = ["model", "majority", "logistic regression", "nearest centroid", "neighbours"]
    rows = [[f"phenotype-{n}", *["0.829 / 0.815"] * 5] for n in range(2)]
    table = output.make_table(["phenotype", *methods], rows, right=range(1, 6))
    drawn = io.StringIO()
    Console(width=80, file=drawn).print(output._as_fits(table, 80))
    text = drawn.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("0.829 / 0.815") == 10
    assert text.count("phenotype-1") == 2
    for method in methods:
        assert method in text
