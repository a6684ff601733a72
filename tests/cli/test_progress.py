"""Progress: bars on a terminal, lines elsewhere."""

import io
import re
import sys

import pytest

from core.progress import ProgressEvent, ignore_progress
from tfx_cli import output
from tfx_cli.progress import ProgressLines, show_progress


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
