import errno
import io
import json
import logging
import re
import sys
import warnings

import pytest
from rich.console import Console

from core.errors import (
    ConfigurationError,
    DataError,
    ExitCode,
    MachineError,
    TfxError,
    TrainingInterrupted,
)
from core.progress import ProgressEvent, ignore_progress
from tfx_cli import output
from tfx_cli.output import ProgressLines, show_progress


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


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def lines():
    return []


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def listener(lines, clock):
    return ProgressLines(line_seconds=30, write=lines.append, clock=clock)


def test_a_line_appears_at_the_start_and_at_every_tenth(listener, lines):
    for done in range(101):
        listener(ProgressEvent("reading cells", done * 20, 2000))
    assert lines[0] == "reading cells ..."
    assert lines[1] == "reading cells: 10 % (200 of 2,000)"
    assert lines[-1] == "reading cells: 100 % (2,000 of 2,000)"
    assert len(lines) == 11


def test_a_slow_stage_gives_a_line_every_so_many_seconds(listener, lines, clock):
    for done in range(100):
        clock.now = done * 10.0
        listener(ProgressEvent("training", done, 100_000))
    assert len(lines) == 1 + 33
    assert lines[1] == "training: 0 % (3 of 100,000), 278 h left"


def test_the_time_left_is_told_at_the_pace_since_the_stage_began(listener, lines, clock):
    listener(ProgressEvent("reading cells", 500, 1_000))  # a resumed stage
    clock.now = 60.0
    listener(ProgressEvent("reading cells", 600, 1_000))
    clock.now = 270.0
    listener(ProgressEvent("reading cells", 950, 1_000))
    assert lines == [
        "reading cells: 50 % (500 of 1,000)",
        "reading cells: 60 % (600 of 1,000), 4 min left",
        "reading cells: 95 % (950 of 1,000)",
    ]


def test_work_of_unknown_length_counts(listener, lines, clock):
    listener(ProgressEvent("reading", 0))
    clock.now = 31.0
    listener(ProgressEvent("reading", 1234))
    assert lines == ["reading ...", "reading: 1,234"]


def test_a_stage_that_comes_again_begins_anew(listener, lines):
    for _ in range(2):
        listener(ProgressEvent("evaluating", 0, 10))
        listener(ProgressEvent("evaluating", 10, 10))
    assert lines == ["evaluating ...", "evaluating: 100 % (10 of 10)"] * 2


def test_messages_are_kept(listener, lines):
    listener(ProgressEvent("training", 0, 10, "attention: varlen"))
    assert lines == ["attention: varlen", "training ..."]


def test_lines_go_to_stderr_without_a_terminal(capsys):
    with output.narration(), show_progress() as listener:
        listener(ProgressEvent("reading", 5, 10))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "reading: 50 % (5 of 10)\n")


def test_quiet_shows_no_progress():
    with output.narration():
        output.set_verbosity(quiet=True)
        with show_progress() as listener:
            assert listener is ignore_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_are_drawn_on_a_terminal_with_messages_above_them(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with output.narration():
        with show_progress() as listener:
            listener(ProgressEvent("reading [cells]", 0, 10))
            listener(ProgressEvent("reading [cells]", 10, 10, "half of [sex] is missing"))
            listener(ProgressEvent("reading [cells]", 4, 10))
            listener(ProgressEvent("training", 3))
            output.narrate("a word [b]")
        output.narrate("afterwards")
    drawn = terminal.getvalue()
    for text in ("reading [cells]", "half of [sex] is missing", "4/10", "training", "a word [b]"):
        assert text in drawn
    assert drawn.endswith("afterwards\n")
    assert capsys.readouterr().out == ""


def test_finished_bars_become_one_line_and_training_says_how_it_goes(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with output.narration(), show_progress() as listener:
        for stage in ("reading cells", "fitting"):
            listener(ProgressEvent(stage, 0, 10))
            listener(ProgressEvent(stage, 10, 10))
        note = "loss 1.234, best accuracy 0.812, 312 cells/s"
        listener(ProgressEvent("training", 1350, 3000, note=note, seconds_left=1140.0))
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    *_, over, bar = drawn.rstrip().splitlines()
    assert over.strip() == "done: reading cells 0 s, fitting 0 s"
    assert re.fullmatch(rf"training \S+ 1,350/3,000 {note} 19 min left", bar.strip())


def test_a_line_without_a_terminal_says_how_training_goes(listener, lines, clock):
    listener(ProgressEvent("training", 0, 100))
    clock.now = 30.0
    listener(ProgressEvent("training", 5, 100, note="loss 1.2", seconds_left=None))
    listener(ProgressEvent("training", 10, 100, note="loss 1.1", seconds_left=600.0))
    assert lines[1:] == [
        "training: 5 % (5 of 100), loss 1.2",
        "training: 10 % (10 of 100), loss 1.1, 10 min left",
    ]


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
