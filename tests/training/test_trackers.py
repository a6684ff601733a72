"""Trackers get the metrics; one that is missing is refused, one that fails is dropped."""

import pytest

from core.errors import MachineError
from core.runlog import RunReader
from core.training import trackers as module
from core.training.engine import train
from core.training.trackers import Trackers, check_trackers
from tests.training.test_engine import short


class Recorder:
    """A tracker that remembers, and fails where it is told to."""

    def __init__(self, fail_at=""):
        self.calls, self.fail_at = [], fail_at

    def _call(self, name, *arguments):
        self.calls.append((name, *arguments))
        if name == self.fail_at:
            message = "the server is gone"
            raise ConnectionError(message)

    def start(self):
        self._call("start")

    def store_init_configuration(self, values):
        self._call("config", values)

    def log(self, values, step):
        self._call("log", values, step)

    def finish(self):
        self._call("finish")


@pytest.fixture
def recorders(monkeypatch):
    """Make trackers by name recorders; each may be told where to fail."""
    made = {"wandb": Recorder(), "mlflow": Recorder()}
    monkeypatch.setattr(module, "_make", lambda name, *_: made[name])
    return made


def start(tmp_path, dropped=None, names=("wandb", "mlflow")):
    return Trackers.start(
        names, run_name="run", folder=tmp_path, config={"genes": 7, "phenotypes": {"sex": []}},
        on_drop=lambda name, reason: (dropped if dropped is not None else []).append((name, reason)),
    )  # fmt: skip


def test_each_gets_the_plain_configuration_the_metrics_and_the_end(tmp_path, recorders):
    trackers = start(tmp_path)
    trackers.log("validation", 5, {"loss": 0.5, "acc/sex": 0.9})
    trackers.close()
    trackers.close()
    for recorder in recorders.values():
        assert recorder.calls == [
            ("start",),
            ("config", {"genes": 7}),
            ("log", {"validation/loss": 0.5, "validation/acc/sex": 0.9, "step": 5}, 5),
            ("finish",),
        ]


@pytest.mark.parametrize("place", ["start", "config", "log", "finish"])
def test_one_that_fails_is_dropped_and_the_other_goes_on(tmp_path, recorders, caplog, place):
    recorders["wandb"].fail_at = place
    dropped = []
    trackers = start(tmp_path, dropped)
    for step in (1, 2):
        trackers.log("train", step, {"loss": 1.0})
    trackers.close()
    assert dropped == [("wandb", "ConnectionError: the server is gone")]
    assert caplog.text.count("tracker wandb failed") == 1
    assert [call[0] for call in recorders["mlflow"].calls] == [
        "start", "config", "log", "log", "finish",
    ]  # fmt: skip
    assert [call[0] for call in recorders["wandb"].calls].count(place) == 1


def test_ctrl_c_is_not_taken_for_a_failure(tmp_path, recorders, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    trackers = start(tmp_path)
    monkeypatch.setattr(recorders["wandb"], "log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trackers.log("train", 1, {"loss": 1.0})


def test_one_that_is_not_installed_is_refused_before_the_run(tiny_store, tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    check_trackers([])
    with pytest.raises(MachineError, match="names wandb, mlflow, which are not installed; pip"):
        check_trackers(["wandb", "mlflow"])
    with pytest.raises(MachineError, match="names trackio, which is not installed"):
        train(short(train__trackers=["trackio"]), tiny_store, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_where_a_tracker_fails(tiny_store, tmp_path, recorders, monkeypatch):
    monkeypatch.setattr("core.training.engine.check_trackers", lambda _: None)
    recorders["wandb"].fail_at = "log"
    train(short(train__trackers=["wandb", "mlflow"]), tiny_store, tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    assert reader.status["state"] == "finished"
    assert [e["tracker"] for e in reader.events() if e["event"] == "warning"] == ["wandb"]
    logged = [call for call in recorders["mlflow"].calls if call[0] == "log"]
    assert len(logged) == len(reader.metrics()) == 15
    assert {"train/loss", "train/lr", "step"} <= set(logged[0][1])


def test_tensorboard_gets_real_files_that_it_can_read(tiny_store, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(short(train__trackers=["tensorboard"]), tiny_store, tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    assert [e for e in reader.events() if e["event"] == "warning"] == []
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    written = {point.step: point.value for point in events.Scalars("train/loss")}
    assert written == pytest.approx({r["step"]: r["loss"] for r in reader.metrics("train")})
