"""Copies of metrics to TensorBoard, W&B, MLflow and trackio, while the run folder is the record.

A run never waits for a tracker and never fails because of one. Each has a thread and a queue, so
that a server that does not respond delays nothing; one that fails, or falls far behind, is dropped
with a warning. Only the main process has trackers.

A resumed run does some steps again. TensorBoard hides the older points of these steps if it is given
the step to cut at; MLflow and trackio keep both; W&B would refuse the newer ones, so that its lines
carry ``step`` as a metric, which its charts use as their axis. ``trackers.json`` in the run folder
holds the id under which a tracker knows the run.
"""

import contextlib
import importlib.util
import json
import logging
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from core.errors import ConfigurationError, MachineError
from core.files import plain_json, write_json
from core.wording import did_you_mean

logger = logging.getLogger(__name__)
#: Called with the name of a tracker that is dropped, and the reason.
DropListener = Callable[[str, str], None]
Setting = str | int | float | bool | None
#: Lines that may wait: at one a second, two hours without a response.
_MAX_WAITING = 8192
#: How long a run waits at its end for trackers to send what is left.
_CLOSE_SECONDS = 60.0
_LONGEST_REASON = 200  # characters
#: Name of TensorBoard's folder inside a run folder.
TENSORBOARD_FOLDER = "tensorboard"
#: File inside a run folder: the ids under which trackers know the run.
IDS_FILE = "trackers.json"
#: What runs are filed under unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME is set.
_PROJECT = "transformerics"
_LONGEST_SETTING = 500  # characters: MLflow takes no long ones
_ids_lock = threading.Lock()  # every tracker has a thread of its own


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigurationError for unknown trackers, MachineError for those that are not installed."""
    for name in names:
        if name not in TRACKER_KINDS:
            hint = did_you_mean(name, TRACKER_KINDS) or f"there are {', '.join(TRACKER_KINDS)}"
            message = f"train.trackers: there is no tracker '{name}'; {hint}"
            raise ConfigurationError(message)
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        message = (
            f"train.trackers: {', '.join(missing)} is not installed; run pip install "
            f"'transformerics[trackers]' or leave it out of train.trackers"
        )
        raise MachineError(message)


class Trackers:
    """The trackers of one run, made by `start`; a context manager that closes them."""

    def __init__(self, copies: Mapping[str, "TrackerCopy"], on_drop: DropListener) -> None:
        self._stdout: contextlib.ExitStack = contextlib.ExitStack()
        if copies:
            from accelerate import PartialState

            PartialState()  # accelerate's trackers and their logger read from it which process this is
            # Some trackers print to stdout, which is for results.
            self._stdout.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._threads = [_TrackerThread(name, copy, on_drop) for name, copy in copies.items()]

    @classmethod
    def start(
        cls,
        names: Sequence[str],
        *,
        run_name: str,
        folder: Path,
        config: Mapping[str, Any],
        on_drop: DropListener,
    ) -> Self:
        """Start trackers; returns at once, whether or not they respond.

        ``names`` have passed `check_trackers`; ``config`` is what identifies the run; ``on_drop`` is
        called from the thread of the tracker that is dropped.
        """
        settings = flat_settings(config)
        copies = {name: TRACKER_KINDS[name](run_name, folder, settings) for name in names}
        return cls(copies, on_drop)

    def log(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Copy the metrics of a split at a step, named ``split/metric``; never raises or waits."""
        named = {f"{split}/{name}": value for name, value in values.items() if value is not None}
        for thread in self._threads:
            thread.put(step, named)

    def close(self, *, seconds: float = _CLOSE_SECONDS) -> None:
        """Let the trackers send what is left, for some seconds at most."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.finish()
        for thread in self._threads:
            thread.wait(max(0.0, end - time.monotonic()))
        self._threads = []
        self._stdout.close()

    def __enter__(self) -> Self:
        """Return the trackers themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the trackers, whatever happened."""
        self.close()


class _TrackerThread:
    """Feeds one tracker, until it fails or the run ends."""

    def __init__(self, tracker: str, copy: "TrackerCopy", on_drop: DropListener) -> None:
        self.tracker, self.is_dropped = tracker, False
        self._copy, self._on_drop = copy, on_drop
        self._lock = threading.Lock()
        self._is_abandoned = False
        # Holds (step, values); None at the end.
        self._lines: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_MAX_WAITING)
        # A daemon: a server that does not respond must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"tfx-{tracker}", daemon=True)
        self._thread.start()

    def put(self, step: int, values: dict[str, float]) -> None:
        if self.is_dropped:
            return
        try:
            self._lines.put_nowait((step, values))
        except queue.Full:
            self._drop(f"it is {_MAX_WAITING} lines behind")

    def finish(self) -> None:
        with contextlib.suppress(queue.Full):  # the thread is stuck, and will be abandoned
            self._lines.put_nowait(None)

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._drop("it does not take what is left of the run")
        with self._lock:
            self._is_abandoned = True  # the run is over

    def _run(self) -> None:
        try:
            self._copy.open()
            while (line := self._lines.get()) is not None and not self.is_dropped:
                self._copy.log(*line)
            self._copy.close()
        except BaseException as error:  # noqa: BLE001 - trackers raise anything, SystemExit too
            kind, first = type(error).__name__, next(iter(str(error).strip().splitlines()), "")
            self._drop(f"{kind}: {first[:_LONGEST_REASON]}" if first else kind)

    def _drop(self, reason: str) -> None:
        """Warn once, and note in the run, that this tracker gets no more lines."""
        with self._lock:
            if self.is_dropped or self._is_abandoned:
                return
            self.is_dropped = True
        logger.warning(
            "%s is dropped (%s); the run goes on and its folder has everything",
            self.tracker,
            reason,
        )
        try:
            self._on_drop(self.tracker, reason)
        except Exception as error:  # noqa: BLE001 - a thread cannot raise to the run
            logger.warning("that %s was dropped could not be noted (%s)", self.tracker, error)


# ------------------------------------------------------------------------------ the four trackers


class TrackerCopy:
    """The copy of a run in one tracker, through accelerate's class for it; every call may raise anything."""

    def __init__(self, run_name: str, folder: Path, settings: Mapping[str, Setting]) -> None:
        self._run_name, self._folder, self._settings = run_name, folder, settings
        self._tracker: Any = None

    def open(self) -> None:
        """Begin, or continue after a resume."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take metrics, named ``split/metric``."""
        self._tracker.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left; may take as long as the network needs."""
        if self._tracker is not None:
            self._tracker.finish()


class TensorBoardCopy(TrackerCopy):
    """Event files in the run folder: ``tensorboard --logdir runs`` shows all runs."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars; the first of them says where to cut older points."""
        if self._tracker is None:
            self._begin(step)
        super().log(step, values)

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


class WandbCopy(TrackerCopy):
    """A run of W&B, in the project of WANDB_PROJECT; its files are in the run folder."""

    def open(self) -> None:
        """Begin or continue; without a prompt for a login, which would stop the run."""
        import wandb
        from accelerate.tracking import WandBTracker

        if os.environ.get("WANDB_MODE") in (None, "online") and not _has_login(wandb):
            message = "you are not logged in; run 'wandb login', or set WANDB_MODE=offline"
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


def _has_login(wandb: Any) -> bool:  # noqa: ANN401 - a module
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # an older release, which prompts or fails by itself
        return True


class MlflowCopy(TrackerCopy):
    """A run of MLflow, at MLFLOW_TRACKING_URI."""

    def open(self) -> None:
        """Begin, or continue if the run is still known."""
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


def _is_known(mlflow: Any, identity: str) -> bool:  # noqa: ANN401 - a module
    try:
        return bool(mlflow.get_run(identity).info.lifecycle_stage == "active")
    except mlflow.exceptions.MlflowException:
        return False


class TrackioCopy(TrackerCopy):
    """A run of trackio."""

    def open(self) -> None:
        """Begin or continue."""
        from accelerate.tracking import TrackioTracker

        known = _known_id(self._folder, "trackio")
        # Another run may have had this name; trackio identifies runs by it.
        name = known or f"{self._run_name}-{uuid.uuid4().hex[:6]}"
        tracker = TrackioTracker(
            _PROJECT, name=name, resume="allow" if known else "never", config=dict(self._settings)
        )
        tracker.start()
        self._tracker = tracker
        _keep_id(self._folder, "trackio", name)


#: By the name in ``train.trackers``; also the name of the package to install.
TRACKER_KINDS: dict[str, type[TrackerCopy]] = {
    "tensorboard": TensorBoardCopy,
    "wandb": WandbCopy,
    "mlflow": MlflowCopy,
    "trackio": TrackioCopy,
}


def flat_settings(config: Mapping[str, object]) -> dict[str, Setting]:
    """Return settings as every tracker takes them: plain values by dotted key; lists as JSON, cut."""
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
