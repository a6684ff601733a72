"""How commands end: one sentence, an exit code."""

import errno

import pytest

from core.errors import (
    ConfigurationError,
    DataError,
    ExitCode,
    MachineError,
    TfxError,
    TrainingInterrupted,
)
from tfx_cli.exit_codes import exit_code_of


def code_of(error):
    def call():
        raise error

    return exit_code_of(call)


@pytest.fixture(autouse=True)
def no_traceback(monkeypatch):
    monkeypatch.delenv("TFX_TRACEBACK", raising=False)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TfxError("a"), 1),
        (ConfigurationError("a"), 2),
        (MachineError("a"), 3),
        (DataError("a"), 4),
        (TrainingInterrupted("a"), 75),
        (KeyboardInterrupt(), 130),
        (SystemExit(None), 0),
        (SystemExit(2), 2),
        (SystemExit("a"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 3),
        (MemoryError(), 3),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 1),
        (ValueError("a"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_every_kind_of_end_has_its_exit_code(error, code, capsys):
    assert code_of(error) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_command_that_returns_is_done():
    assert exit_code_of(lambda: None) == ExitCode.DONE


def test_an_error_for_the_user_is_one_sentence_on_stderr(capsys):
    code_of(DataError("cells.h5ad: X holds NaN; remove those cells"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "Error: cells.h5ad: X holds NaN; remove those cells\n"


def test_several_errors_and_notes_stand_on_lines_of_their_own(capsys):
    error = ConfigurationError("a.toml:1: x: wrong", "a.toml:2: y: wrong")
    error.add_note("see 'tfx presets schema'")
    code_of(error)
    assert capsys.readouterr().err.splitlines() == [
        "Error:",
        "a.toml:1: x: wrong",
        "a.toml:2: y: wrong",
        "see 'tfx presets schema'",
    ]


def test_an_unexpected_error_is_one_sentence_and_shows_its_traceback_when_asked(
    capsys, monkeypatch
):
    code_of(KeyError("gene\nX"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: unexpected KeyError: 'gene\\nX'; this is a fault of tfx")
    monkeypatch.setenv("TFX_TRACEBACK", "1")
    code_of(KeyError("gene"))
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_fault_of_the_system_names_the_file(capsys):
    code_of(PermissionError(errno.EACCES, "Permission denied", "runs/base"))
    assert capsys.readouterr().err == "Error: Permission denied: 'runs/base'\n"
