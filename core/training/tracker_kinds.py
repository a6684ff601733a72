"""TensorBoard, W&B, MLflow and trackio: what is particular to the copy that each gets.

Each is opened, fed and closed by one thread (`core.training.trackers`), through accelerate's
tracker classes. A resumed run runs some steps again. TensorBoard hides the older points of these
steps if it is told where to cut; MLflow and trackio keep both; W&B would refuse the newer ones as
going back, so that its lines carry ``step`` as a metric of their own, which its charts are drawn
over.

A run keeps the name that a tracker knows it by in ``trackers.json``, and goes on under it.
"""

import json
import os
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from core.files import plain_json, write_json

__all__ = ["IDS_FILE", "TENSORBOARD_FOLDER", "TRACKER_KINDS", "TrackerCopy", "flat_settings"]

#: Name of TensorBoard's folder inside a run folder.
TENSORBOARD_FOLDER = "tensorboard"
#: File inside a run folder: the ids under which trackers know the run.
IDS_FILE = "trackers.json"
#: What runs are filed under where nothing else is said (WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME).
_PROJECT = "transformerics"
_LONGEST_SETTING = 500  # characters: MLflow takes no long ones
_ids_lock = threading.Lock()  # every tracker has a thread of its own

Setting = str | int | float | bool | None


class TrackerCopy(Protocol):
    """The copy of one run in one tracker; every call may raise anything."""

    def open(self) -> None:
        """Begin, or go on after a resume."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take metrics, named ``split/metric``."""

    def close(self) -> None:
        """Send what is left."""


class TensorBoardCopy:
    """Event files in the run folder: ``tensorboard --logdir runs`` shows all runs."""

    def __init__(self, run_name: str, folder: Path, settings: Mapping[str, Setting]) -> None:
        self._folder, self._settings = folder, settings
        self._tracker: Any = None

    def open(self) -> None:
        """Do nothing: where to cut older points is known from the first new one."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars."""
        if self._tracker is None:
            self._begin(step)
        self._tracker.log(dict(values), step=step)

    def _begin(self, step: int) -> None:
        from accelerate.tracking import TensorBoardTracker

        is_resumed = any((self._folder / TENSORBOARD_FOLDER).glob("events.*"))
        cut = {"purge_step": step} if is_resumed else {}
        tracker = TensorBoardTracker(TENSORBOARD_FOLDER, str(self._folder), **cut)
        tracker.start()
        self._tracker = tracker
        if not is_resumed:
            # Not as hyperparameters: those would show as a second run.
            rows = [f"| {name} | {value} |" for name, value in self._settings.items()]
            tracker.log({"run": "\n".join(["| setting | value |", "|---|---|", *rows])}, step=0)

    def close(self) -> None:
        """Close the event file."""
        if self._tracker is not None:
            self._tracker.finish()


class WandbCopy:
    """A run of W&B, in the project of WANDB_PROJECT; its files lie in the run folder."""

    def __init__(self, run_name: str, folder: Path, settings: Mapping[str, Setting]) -> None:
        self._run_name, self._folder, self._settings = run_name, folder, settings
        self._tracker: Any = None

    def open(self) -> None:
        """Begin or go on; refuses to ask for a login, which would hold up the run."""
        import wandb
        from accelerate.tracking import WandBTracker

        if os.environ.get("WANDB_MODE") in (None, "online") and not _has_login(wandb):
            message = "nobody is logged in; run 'wandb login', or set WANDB_MODE=offline"
            raise RuntimeError(message)
        identity = _known_id(self._folder, "wandb") or uuid.uuid4().hex[:12]
        tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", _PROJECT),
            name=self._run_name,
            id=identity,
            resume="allow",
            dir=str(self._folder),
            mode=os.environ.get("WANDB_MODE"),  # W&B itself looks once per process
            settings=wandb.Settings(console="off"),  # log.txt has what was said
        )
        tracker.start()
        self._tracker = tracker
        _keep_id(self._folder, "wandb", identity)
        tracker.tracker.define_metric("step", hidden=True)
        tracker.tracker.define_metric("*", step_metric="step")
        tracker.store_init_configuration(dict(self._settings))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send metrics, the step among them."""
        self._tracker.log({**values, "step": step})

    def close(self) -> None:
        """Send what is left; may take as long as the network wants."""
        if self._tracker is not None:
            self._tracker.finish()


def _has_login(wandb: Any) -> bool:  # noqa: ANN401 - a module
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # an older release, which asks or fails by itself
        return True


class MlflowCopy:
    """A run of MLflow, where MLFLOW_TRACKING_URI says."""

    def __init__(self, run_name: str, folder: Path, settings: Mapping[str, Setting]) -> None:
        self._run_name, self._folder, self._settings = run_name, folder, settings
        self._tracker: Any = None

    def open(self) -> None:
        """Begin, or go on where the run is still known."""
        import mlflow
        from accelerate.tracking import MLflowTracker

        identity = _known_id(self._folder, "mlflow")
        if identity is not None and not _is_known(mlflow, identity):
            identity = None
        tracker = MLflowTracker(_PROJECT, run_id=identity, run_name=self._run_name)
        tracker.start()
        self._tracker = tracker
        _keep_id(self._folder, "mlflow", tracker.tracker.info.run_id)
        if identity is None:  # a setting that changed on resume would be refused
            tracker.store_init_configuration(dict(self._settings))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send metrics."""
        self._tracker.log(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        if self._tracker is not None:
            self._tracker.finish()


def _is_known(mlflow: Any, identity: str) -> bool:  # noqa: ANN401 - a module
    try:
        return bool(mlflow.get_run(identity).info.lifecycle_stage == "active")
    except mlflow.exceptions.MlflowException:
        return False


class TrackioCopy:
    """A run of trackio."""

    def __init__(self, run_name: str, folder: Path, settings: Mapping[str, Setting]) -> None:
        self._run_name, self._folder, self._settings = run_name, folder, settings
        self._tracker: Any = None

    def open(self) -> None:
        """Begin or go on."""
        from accelerate.tracking import TrackioTracker

        known = _known_id(self._folder, "trackio")
        # Another run may have had this name; trackio tells runs apart by it.
        name = known or f"{self._run_name}-{uuid.uuid4().hex[:6]}"
        tracker = TrackioTracker(
            _PROJECT, name=name, resume="allow" if known else "never", config=dict(self._settings)
        )
        tracker.start()
        self._tracker = tracker
        _keep_id(self._folder, "trackio", name)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send metrics."""
        self._tracker.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left."""
        if self._tracker is not None:
            self._tracker.finish()


#: By the name in ``train.trackers``; also the name of the package to install.
TRACKER_KINDS: dict[str, type[TensorBoardCopy | WandbCopy | MlflowCopy | TrackioCopy]] = {
    "tensorboard": TensorBoardCopy,
    "wandb": WandbCopy,
    "mlflow": MlflowCopy,
    "trackio": TrackioCopy,
}


def flat_settings(config: Mapping[str, object]) -> dict[str, Setting]:
    """Bring what identifies a run to what every tracker takes: plain values by dotted key.

    Lists become JSON, cut after some hundred characters.
    """
    flat: dict[str, Setting] = {}
    for name, value in plain_json(config).items():
        if isinstance(value, dict):
            inner = flat_settings(value)
            flat |= {f"{name}.{key}": setting for key, setting in inner.items()}
            continue
        setting: Setting = json.dumps(value) if isinstance(value, list) else value
        flat[name] = setting[:_LONGEST_SETTING] if isinstance(setting, str) else setting
    return flat


def _read_ids(folder: Path) -> dict[str, Any]:
    try:
        ids = json.loads((folder / IDS_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return ids if isinstance(ids, dict) else {}


def _known_id(folder: Path, tracker: str) -> str | None:
    identity = _read_ids(folder).get(tracker)
    return identity if isinstance(identity, str) else None


def _keep_id(folder: Path, tracker: str, identity: str) -> None:
    with _ids_lock:
        ids = _read_ids(folder)
        if ids.get(tracker) != identity:
            write_json(folder / IDS_FILE, ids | {tracker: identity})
