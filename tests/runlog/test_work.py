"""Work on a run beside its steps: who does what, how far, and when it is over."""

import json
import os
import socket
import subprocess
import sys

import pytest

from core.errors import ConfigurationError
from core.progress import ProgressEvent
from core.runlog import find_run, list_runs
from core.runlog.overview import run_row
from core.runlog.ownership import is_free
from core.runlog.work import read_work, work_on

from .run_folders import Clock, write_run


def test_work_is_shown_with_its_progress_and_gone_afterwards(tmp_path):
    clock = Clock(now=100.0)
    with work_on(tmp_path, "preparing", clock=clock) as report:
        assert read_work(tmp_path, now=120.0).state == "preparing"  # from the first moment
        report(ProgressEvent("reading cells", 0, 40))
        report(ProgressEvent("reading cells", 10, 40))
        work = read_work(tmp_path, now=clock.now)
        assert (work.stage, work.fraction, work.eta) == ("reading cells", 0.25, 30.0)
        assert (work.record["host"], work.record["pid"]) == (socket.gethostname(), os.getpid())
        report(ProgressEvent("writing", 1, None))
        assert (read_work(tmp_path, now=clock.now).fraction) is None
    assert read_work(tmp_path, now=clock.now) is None
    assert list(tmp_path.iterdir()) == []
    with work_on(tmp_path / "gone", "fitting"):
        assert not (tmp_path / "gone").exists()


def test_work_of_a_process_that_has_ended_is_over(tmp_path):
    with work_on(tmp_path, "evaluating", clock=lambda: 1000.0):
        path = tmp_path / "work.json"
        record = json.loads(path.read_text())
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        for change, now, is_shown in (
            ({}, 1000.0, True), ({}, 9000.0, False), ({"pid": child.pid}, 1000.0, False),
            ({"pid": True}, 1000.0, False), ({"pid": 10**30}, 1000.0, False),
            ({"host": "node-7"}, 1100.0, True), ({"host": "node-7"}, 1700.0, False),
            ({"state": "dancing"}, 1000.0, False), ({"updated": None}, 1000.0, False),
        ):  # fmt: skip
            path.write_text(json.dumps(record | change))
            assert (read_work(tmp_path, now=now) is not None) == is_shown, change
        path.write_text("[1")
        assert read_work(tmp_path, now=1000.0) is None
        path.write_text(json.dumps(record | {"host": "node-7"}))
    assert path.exists()  # another process has taken over


def test_a_run_is_listed_while_its_cells_are_prepared_and_what_is_done_for_it_later(tmp_path):
    write_run(tmp_path / "old")
    (tmp_path / "new").mkdir()
    with work_on(tmp_path / "new", "preparing") as report:
        report(ProgressEvent("reading cells", 1, 4))
        new, old = list_runs(tmp_path)
        assert (new.name, new.state, old.name) == ("new", "preparing", "old")
        row = run_row(new)
        assert (row.stage, row.fraction, row.step) == ("reading cells", 0.25, None)
        with pytest.raises(ConfigurationError, match="has not begun: it is preparing"):
            find_run(tmp_path, "new")
        assert find_run(tmp_path, None) == tmp_path / "old"
        assert not is_free(tmp_path / "new")  # its process also holds the lock
    assert [run.name for run in list_runs(tmp_path)] == ["old"]
    now = old.heartbeat + 20_000
    with work_on(tmp_path / "old", "evaluating", clock=lambda: now):
        (run,) = list_runs(tmp_path, now=now)
        assert (run.state, run_row(run).best_step) == ("evaluating", 10)
        status = json.loads((tmp_path / "old" / "status.json").read_text())
        (tmp_path / "old" / "status.json").write_text(json.dumps({**status, "state": "running"}))
        (run,) = list_runs(tmp_path, now=old.heartbeat + 1)  # alive: its steps are shown
        assert (run.state, run.work) == ("running", None)
