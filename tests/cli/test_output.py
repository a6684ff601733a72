import errno
import io
import json
import logging
import sys
import warnings

import pytest

from core.errors import (
    ConfigurationError,
    DataError,
    ExitCode,
    MachineError,
    TfxError,
    TrainingInterrupted,
)
from tfx_cli import output


def code_of(error):
    def call():
        raise error

    return output.exit_code_of(call)


@pytest.fixture(autouse=True)
def no_traceback(monkeypatch):
    monkeypatch.delenv("TFX_TRACEBACK", raising=False)


# -- exit codes


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
    assert output.exit_code_of(lambda: None) == ExitCode.DONE


def test_an_error_for_the_user_is_one_sentence_on_stderr(capsys):
    code_of(DataError("cells.h5ad: X holds NaN; remove those cells"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "Error: cells.h5ad: X holds NaN; remove those cells\n"


def test_several_errors_and_notes_stand_on_lines_of_their_own(capsys):
    error = ConfigurationError("a.toml:1: x: wrong\na.toml:2: y: wrong")
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
        code_of(DataError("bad"))
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
