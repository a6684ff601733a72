import json
import logging
import sys
import threading
import types

import pytest

from core.errors import ConfigurationError, MachineError
from core.presets.schema import TrainSettings
from core.runlog import RunReader, RunWriter
from core.training import trackers
from core.training.engine import train
from core.training.trackers import (
    TENSORBOARD_FOLDER,
    TRACKER_KINDS,
    Trackers,
    check_trackers,
    flat_settings,
)
from tests.training.test_engine import short


class Copy:
    """Takes what it is given; fails, hangs or talks where a test wants it to."""

    def __init__(self, *, fails_at=None, gate=None, error=RuntimeError):
        self.calls = []
        self.fails_at, self.gate, self.error = fails_at, gate, error

    def _call(self, name, *arguments):
        self.calls.append((name, *arguments))
        if self.gate is not None:
            self.gate.wait(60)
        if name == self.fails_at:
            message = "no route to host\nand a second line"
            raise self.error(message)

    def open(self):
        self._call("open")

    def log(self, step, values):
        self._call("log", step, values)

    def close(self):
        self._call("close")


class Drops(list):
    def __call__(self, name, reason):
        self.append((name, reason))


def test_every_tracker_gets_every_line_under_the_name_of_its_split():
    one, other = Copy(), Copy()
    with Trackers({"one": one, "other": other}, Drops()) as copies:
        copies.log("train", 1, {"loss": 2.0, "acc/sex": 0.5})
        copies.log("validation", 1, {"loss": 3.0, "f1/sex": None})
    expected = [
        ("open",),
        ("log", 1, {"train/loss": 2.0, "train/acc/sex": 0.5}),
        ("log", 1, {"validation/loss": 3.0}),
        ("close",),
    ]
    assert one.calls == other.calls == expected


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("fails_at", ["open", "log", "close"])
def test_one_that_fails_is_dropped_with_one_warning_and_the_others_continue(
    fails_at, error, caplog
):
    bad, good, drops = Copy(fails_at=fails_at, error=error), Copy(), Drops()
    with caplog.at_level(logging.WARNING), Trackers({"bad": bad, "good": good}, drops) as copies:
        for step in range(1, 4):
            copies.log("train", step, {"loss": 1.0})
    reason = f"{error.__name__}: no route to host"
    assert drops == [("bad", reason)]
    assert [record.getMessage() for record in caplog.records] == [
        f"bad is dropped ({reason}); the run continues, and its folder has everything"
    ]
    assert len([call for call in good.calls if call[0] == "log"]) == 3
    assert len([call for call in bad.calls if call[0] == fails_at]) == 1


def test_what_was_dropped_can_be_noted_in_the_run_folder(tmp_path):
    with RunWriter(tmp_path / "run", run={}) as writer:
        copies = Trackers(
            {"bad": Copy(fails_at="log")},
            lambda name, reason: writer.event("warning", tracker=name, reason=reason),
        )
        copies.log("train", 1, {"loss": 1.0})
        copies.close()
    (event,) = RunReader(tmp_path / "run").events()
    assert (event["event"], event["tracker"]) == ("warning", "bad")
    assert event["reason"] == "RuntimeError: no route to host"


def test_a_listener_that_fails_does_no_harm(caplog):
    def listener(name, reason):
        raise OSError(28, "full")

    with caplog.at_level(logging.WARNING), Trackers({"bad": Copy(fails_at="open")}, listener):
        pass
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_a_run_waits_for_no_tracker_and_drops_one_that_falls_far_behind(monkeypatch, caplog):
    monkeypatch.setattr(trackers, "_MAX_WAITING", 3)
    gate, drops = threading.Event(), Drops()
    stuck = Copy(gate=gate)
    try:
        with caplog.at_level(logging.WARNING):
            copies = Trackers({"stuck": stuck}, drops)
            for step in range(10):  # returns at once, though `open` does not
                copies.log("train", step, {"loss": 1.0})
            assert drops == [("stuck", "it is 3 lines behind")]
            copies.close(seconds=0.01)
        assert len(caplog.records) == 1
    finally:
        gate.set()


def test_the_end_of_a_run_is_held_up_for_some_seconds_at_most(caplog):
    gate, drops = threading.Event(), Drops()
    stuck, good = Copy(gate=gate), Copy()
    try:
        with caplog.at_level(logging.WARNING):
            copies = Trackers({"stuck": stuck, "good": good}, drops)
            copies.log("train", 1, {"loss": 1.0})
            copies.close(seconds=0.2)
        assert drops == [("stuck", "it does not take what is left of the run")]
        assert good.calls[-1] == ("close",)
    finally:
        gate.set()


def test_what_trackers_print_stays_out_of_stdout(capsys):
    class Talking(Copy):
        def open(self):
            print("* Created new run")

        def close(self):
            print("* Run finished")

    before = sys.stdout
    with Trackers({"talking": Talking()}, Drops()):
        pass
    assert sys.stdout is before
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "* Created new run\n* Run finished\n")


def test_no_trackers_change_nothing():
    before = sys.stdout
    with Trackers.start([], folder=None, config={}, on_drop=Drops()) as copies:
        assert sys.stdout is before
        copies.log("train", 1, {"loss": 1.0})


def test_a_tracker_that_does_not_exist_names_the_nearest():
    with pytest.raises(ConfigurationError, match=r"no tracker 'wandv'; did you mean 'wandb'\?"):
        check_trackers(["wandv"])
    with pytest.raises(ConfigurationError, match=r"there are tensorboard, wandb, mlflow, trackio"):
        check_trackers(["excel"])


def test_a_tracker_that_is_not_installed_is_refused_with_the_extra_to_install(monkeypatch):
    monkeypatch.setattr(
        trackers.importlib.util, "find_spec", lambda name: None if name == "mlflow" else object()
    )
    check_trackers(["tensorboard", "wandb"])
    with pytest.raises(
        MachineError, match=r"mlflow is not installed; .*transformerics\[trackers\]"
    ):
        check_trackers(["tensorboard", "mlflow"])


def test_settings_are_plain_values_by_dotted_key():
    settings = flat_settings(
        {
            "name": "base",
            "train": {"lr": 0.1, "trackers": ["wandb"]},
            "long": ["x" * 900],
            "no": None,
        }
    )
    assert settings == {
        "name": "base",
        "train.lr": 0.1,
        "train.trackers": '["wandb"]',
        "long": '["' + "x" * 498,
        "no": None,
    }


# -- the real ones, where they are installed; none may reach for the network
def scalars(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / TENSORBOARD_FOLDER))
    events.Reload()
    return {
        tag: [(event.step, round(event.value, 4)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def start(name, folder, drops):
    config = {"parameters": 12, "phenotypes": {"sex": ["female", "male"]}}
    return Trackers.start([name, name], folder=folder, config=config, on_drop=drops)


def run_twice(name, folder, drops):
    """Train five steps, die, resume after the second and train to the sixth."""
    folder.mkdir()
    with start(name, folder, drops) as copies:
        for step in range(1, 6):
            copies.log("train", step, {"loss": 1.0 / step})
        copies.log("validation", 5, {"loss": 9.0})
    with start(name, folder, drops) as copies:
        for step in range(3, 7):
            copies.log("train", step, {"loss": 10.0 + step})
        copies.log("validation", 6, {"loss": 8.0, "acc/sex": float("nan")})


def test_tensorboard_in_the_run_folder_shows_a_resumed_run_as_one_curve(tmp_path):
    pytest.importorskip("tensorboard")
    drops = Drops()
    run_twice("tensorboard", tmp_path / "base", drops)
    assert drops == []
    found = scalars(tmp_path / "base")
    assert found["train/loss"] == [(1, 1.0), (2, 0.5), (3, 13.0), (4, 14.0), (5, 15.0), (6, 16.0)]
    assert found["validation/loss"] == [(6, 8.0)]
    files = [path for path in (tmp_path / "base" / TENSORBOARD_FOLDER).rglob("*") if path.is_file()]
    assert len(files) == 2  # two processes; no second run for settings


def test_wandb_is_given_the_step_as_a_metric_so_that_it_refuses_no_line(tmp_path, monkeypatch):
    calls = []

    class Run:
        def __getattr__(self, name):
            return lambda *given, **named: calls.append((name, *given, named))

    class Config:
        update = Run().config

    fake = types.SimpleNamespace(
        init=lambda **named: calls.append(("init", named)) or Run(),
        login=lambda **named: calls.append(("login", named)) or True,
        Settings=lambda **named: named,
        config=Config,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_PROJECT", "atlas")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    drops = Drops()
    run_twice("wandb", tmp_path / "base", drops)
    assert drops == []
    first, second = (call[1] for call in calls if call[0] == "init")
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("atlas", "base", "allow")
    assert ("define_metric", "*", {"step_metric": "step"}) in calls
    logged = [call[1:] for call in calls if call[0] == "log"]
    assert len(logged) == 11
    assert logged[0] == ({"train/loss": 1.0, "step": 1}, {"step": None})
    assert [line["step"] for line, _ in logged] == [1, 2, 3, 4, 5, 5, 3, 4, 5, 6, 6]
    assert all(named == {"step": None} for _, named in logged)


def test_a_real_wandb_continues_the_run_it_knows(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    drops = Drops()
    run_twice("wandb", tmp_path / "base", drops)
    assert drops == []
    identity = json.loads((tmp_path / "base" / "trackers.json").read_text())["wandb"]
    parts = list((tmp_path / "base" / "wandb").glob(f"offline-run-*-{identity}*/*.wandb"))
    assert len(parts) == 2
    assert all(b"train/loss" in path.read_bytes() for path in parts)


def test_wandb_without_a_login_is_dropped_without_a_prompt(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    drops = Drops()
    with start("wandb", tmp_path, drops):
        pass
    assert drops == [
        (
            "wandb",
            "RuntimeError: you are not logged in; run 'wandb login', or set WANDB_MODE=offline",
        )
    ]


def test_mlflow_continues_the_run_it_knows(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    drops = Drops()
    run_twice("mlflow", tmp_path / "base", drops)
    assert drops == []
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'transformerics'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["parameters"] == "12"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == [1, 2, 3, 4, 5, 3, 4, 5, 6]


def test_trackio_continues_the_run_it_knows(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    drops = Drops()
    run_twice("trackio", tmp_path / "base", drops)
    assert drops == []
    (run,) = trackio.Api().runs("transformerics")
    assert run.name.startswith("base-")


def test_every_tracker_of_the_presets_is_known():
    assert str(list(TRACKER_KINDS))[1:-1] in str(TrainSettings.model_fields["trackers"].annotation)


# -- within a run
def test_one_that_is_not_installed_is_refused_before_anything_is_written(
    tiny_store, tmp_path, monkeypatch
):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="trackio is not installed"):
        train(short(train__trackers=["trackio"]), tiny_store, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_continues_where_a_tracker_fails(tiny_store, tmp_path, monkeypatch):
    made = {"wandb": Copy(fails_at="log"), "mlflow": Copy()}
    for name, copy in made.items():
        monkeypatch.setitem(trackers.TRACKER_KINDS, name, lambda *_, copy=copy: copy)
    monkeypatch.setattr("core.training.run_setup.check_trackers", lambda _: None)
    train(short(train__trackers=["wandb", "mlflow"]), tiny_store, tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    assert reader.status["state"] == "finished"
    assert [e["tracker"] for e in reader.events() if e["event"] == "warning"] == ["wandb"]
    lines = [call for call in made["mlflow"].calls if call[0] == "log"]
    assert [step for _, step, _ in lines] == [record["step"] for record in reader.metrics()]
    assert {"train/loss", "train/lr"} <= {name for _, _, metrics in lines for name in metrics}


def test_a_run_copied_to_tensorboard_is_there_in_full(tiny_store, tmp_path):
    pytest.importorskip("tensorboard")
    train(short(train__trackers=["tensorboard"]), tiny_store, tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    assert [e for e in reader.events() if e["event"] == "warning"] == []
    for split in ("train", "validation"):
        logged = [(r["step"], r["loss"]) for r in reader.metrics(split)]
        found = scalars(tmp_path / "run")[f"{split}/loss"]
        assert found == [(step, pytest.approx(loss, abs=1e-4)) for step, loss in logged]
