"""What the dashboard reads of run folders, clocks that disagree included."""

import json

import numpy as np

from core.runlog import RunWriter
from tests.dashboard.run_states import NOW, train_line, write_lines, write_state
from tfx_cli.dashboard.workspace import Workspace


class Clocks:
    def __init__(self):
        self.wall = NOW
        self.own = 5000.0

    def workspace(self, root):
        return Workspace(root, clock=lambda: self.wall, monotonic=lambda: self.own)

    def pass_time(self, seconds):
        self.wall += seconds
        self.own += seconds


def beat(folder, heartbeat):
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "heartbeat": heartbeat}))


def state_of(workspace):
    (row,) = workspace.poll().rows
    return row.state


def test_a_run_that_falls_silent_is_stale_and_then_crashed(runs):
    write_state(runs)
    clocks = Clocks()
    workspace = clocks.workspace(runs)
    assert state_of(workspace) == "running"
    clocks.pass_time(20)
    assert state_of(workspace) == "stale"
    clocks.pass_time(700)
    assert state_of(workspace) == "crashed"


def test_a_heartbeat_that_moves_is_alive_whatever_the_clock_of_its_machine(runs):
    folder = write_state(runs, age=3000.0)
    clocks = Clocks()
    workspace = clocks.workspace(runs)
    assert state_of(workspace) == "crashed"
    clocks.pass_time(5)
    beat(folder, NOW - 2995)
    assert state_of(workspace) == "running"
    clocks.pass_time(30)
    assert state_of(workspace) == "crashed"


def test_a_heartbeat_from_the_future_that_stands_still_is_not_alive(runs):
    write_state(runs, age=-4000.0)
    clocks = Clocks()
    workspace = clocks.workspace(runs)
    assert state_of(workspace) == "running"
    clocks.pass_time(20)
    assert state_of(workspace) == "stale"
    clocks.pass_time(700)
    assert state_of(workspace) == "crashed"


def test_a_run_that_ended_keeps_its_state(runs):
    write_state(runs, state="finished", age=10_000.0)
    assert state_of(Clocks().workspace(runs)) == "finished"


def test_what_a_foreign_folder_holds_is_listed_as_unreadable(runs):
    write_state(runs)
    (runs / "foreign").mkdir()
    (runs / "foreign" / "run.json").write_text('"text"')
    (runs / "no-run").mkdir()
    view = Clocks().workspace(runs).poll()
    assert [row.name for row in view.rows] == ["mine"]
    (one,) = view.unreadable
    assert one.name == "foreign"
    assert "not a run folder" in one.reason


def test_an_open_run_has_its_curves_and_only_what_was_added_is_read(runs):
    folder = write_state(runs)
    workspace = Clocks().workspace(runs)
    path = str(runs / "mine")
    view = workspace.poll([path]).open_runs[path]
    assert view.train.steps[-1] == 300
    assert view.phenotypes == ["sex", "cell_type", "age"]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_line(305)) + "\n")
    later = workspace.poll([path]).open_runs[path]
    assert later.train.steps[-1] == 305
    assert view.train.steps[-1] == 300  # what was handed over does not change


def test_a_resumed_run_takes_back_what_is_run_again(runs):
    folder = write_state(runs)
    workspace = Clocks().workspace(runs)
    path = str(runs / "mine")
    workspace.poll([path])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "resume", "t": NOW, "from_step": 201}) + "\n")
        file.write(json.dumps(train_line(205)) + "\n")
    view = workspace.poll([path]).open_runs[path]
    assert view.train.steps[-1] == 205
    assert view.validation.steps[-1] == 200


def test_steps_of_a_foreign_file_are_sorted(runs):
    write_state(runs, lines=[train_line(10), train_line(5), train_line(20)])
    path = str(runs / "mine")
    table = Clocks().workspace(runs).poll([path]).open_runs[path].train
    assert table.steps.tolist() == [5, 10, 20]
    assert table.columns["loss"].tolist() == [train_line(s)["loss"] for s in (5, 10, 20)]


def test_a_run_that_disappears_is_gone(runs):
    folder = write_state(runs)
    workspace = Clocks().workspace(runs)
    path = str(runs / "mine")
    assert workspace.poll([path]).open_runs
    (folder / "run.json").unlink()
    view = workspace.poll([path])
    assert (view.rows, view.open_runs) == ((), {})


def test_last_and_best_pass_over_what_is_not_finite(runs):
    lines = [train_line(1), {**train_line(2), "loss": None, "nonfinite": ["loss"]}]
    write_state(runs, lines=lines)
    path = str(runs / "mine")
    table = Clocks().workspace(runs).poll([path]).open_runs[path].train
    assert table.last("loss") == train_line(1)["loss"] == table.best("loss", lowest=True)
    assert table.last("nothing") is None
    assert table.best("nothing", lowest=False) is None


def test_machine_lines_and_log_are_the_last_ones(runs):
    folder = write_state(runs)
    write_lines(folder / "system-node-8.jsonl", [{"t": NOW, "cpu_percent": n} for n in range(5000)])
    (folder / "log.txt").write_text("".join(f"line {n}\n" for n in range(20_000)))
    path = str(runs / "mine")
    view = Clocks().workspace(runs).poll([path]).open_runs[path]
    assert view.machines["node-8"]["cpu_percent"] == 4999
    assert view.load["node-8"]["cpu_percent"][[0, -1]].tolist() == [0, 4999]
    assert view.log[-1] == "line 19999"
    assert view.log[0].startswith("line ")


def test_what_training_writes_is_read(runs):
    config = "[train]\nseed = 0  # default\n"
    with RunWriter(runs / "real", run={"name": "real"}, config=config, clock=lambda: NOW) as writer:
        writer.event("start", total=10)
        writer.metrics(5, "train", {"loss": float("nan"), "lr": 0.1})
        writer.metrics(10, "validation", {"loss": 2.0, "acc/sex": 0.5})
        writer.status("running", step=10, total=10)
        path = str(runs / "real")
        view = Clocks().workspace(runs).poll([path]).open_runs[path]
    assert np.isnan(view.train.columns["loss"]).all()
    assert view.validation.last("acc/sex") == 0.5
    assert (view.settings[0].key, view.settings[0].provenance) == ("train.seed", "default")


def test_the_end_of_a_long_history_is_read_first_and_then_all_of_it(runs, monkeypatch):
    monkeypatch.setattr("tfx_cli.dashboard.workspace._LONG_HISTORY", 4_000)
    monkeypatch.setattr("tfx_cli.dashboard.workspace._TAIL_BYTES", 1_000)
    monkeypatch.setattr("core.runlog.history._CHUNK_BYTES", 500)
    lines = [train_line(step) for step in range(1, 101)]
    write_state(runs, step=100, lines=lines)
    workspace = Clocks().workspace(runs)
    view = workspace.poll(["runs/mine"] if str(runs) == "runs" else [str(runs / "mine")])
    (path,) = view.open_runs
    first = view.open_runs[path]
    assert first.fraction_read < 1
    assert first.train.steps[-1] == 100
    assert len(first.train.steps) < 10
    seen = [first]
    while seen[-1].fraction_read < 1:
        seen.append(workspace.poll([path]).open_runs[path])
    assert len(seen) > 3
    for one in seen:
        assert (np.diff(one.train.steps) > 0).all()
        assert one.train.steps[-1] == 100
    assert seen[-1].train.steps.tolist() == list(range(1, 101))
    assert seen[-1].train.columns["loss"].tolist() == [line["loss"] for line in lines]
    assert seen[-1].train.times.tolist() == [line["t"] for line in lines]
