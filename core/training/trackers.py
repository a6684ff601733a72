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
from core.files import file_json, plain_json, write_json
from core.runlog.reader import dotted_values
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
            raise ConfigurationError(f"train.trackers: there is no tracker '{name}'; {hint}")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MachineError(
            f"train.trackers: {', '.join(missing)} is not installed; run pip install "
            f"'transformerics[trackers]' or leave it out of train.trackers"
        )


class Trackers(contextlib.AbstractContextManager["Trackers"]):
    """The trackers of one run, made by `start`; a context manager that closes them."""

    def __init__(self, copies: Mapping[str, "_TrackerCopy"], on_drop: DropListener) -> None:
        self._stdout = contextlib.ExitStack()
        if copies:
            from accelerate import PartialState

            PartialState()  # accelerate's trackers and their logger read from it which process this is
            # Some trackers print to stdout, which is for results.
            self._stdout.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._threads = [_TrackerThread(name, copy, on_drop) for name, copy in copies.items()]

    @classmethod
    def start(
        cls, names: Sequence[str], *, folder: Path, config: Mapping[str, Any], on_drop: DropListener
    ) -> Self:
        """Start the trackers of the run in ``folder``; returns at once, whether or not they respond.

        ``config`` is what identifies the run; ``on_drop`` is called from the thread of the tracker
        that is dropped.
        """
        settings = flat_settings(config)
        return cls({name: TRACKER_KINDS[name](folder, settings) for name in names}, on_drop)

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

    def __exit__(self, *_: object) -> None:
        """Close the trackers, whatever happened."""
        self.close()


class _TrackerThread:
    """Feeds one tracker, until it fails or the run ends."""

    def __init__(self, tracker: str, copy: "_TrackerCopy", on_drop: DropListener) -> None:
        self.tracker, self.is_over = tracker, False
        self._copy, self._on_drop = copy, on_drop
        self._lock = threading.Lock()
        # Holds (step, values); None at the end.
        self._lines: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_MAX_WAITING)
        # A daemon: a server that does not respond must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"tfx-{tracker}", daemon=True)
        self._thread.start()

    def put(self, step: int, values: dict[str, float]) -> None:
        if self.is_over:
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
            self.is_over = True

    def _run(self) -> None:
        try:
            self._copy.open()
            while (line := self._lines.get()) is not None and not self.is_over:
                self._copy.log(*line)
            self._copy.close()
        except BaseException as error:  # noqa: BLE001 - trackers raise anything, SystemExit too
            kind, first = type(error).__name__, next(iter(str(error).strip().splitlines()), "")
            self._drop(f"{kind}: {first[:_LONGEST_REASON]}" if first else kind)

    def _drop(self, reason: str) -> None:
        """Warn once, and note in the run, that this tracker gets no more lines."""
        with self._lock:
            if self.is_over:
                return
            self.is_over = True
        message = "%s is dropped (%s); the run continues, and its folder has everything"
        logger.warning(message, self.tracker, reason)
        try:
            self._on_drop(self.tracker, reason)
        except Exception as error:  # noqa: BLE001 - a thread cannot raise to the run
            logger.warning("that %s was dropped could not be noted (%s)", self.tracker, error)


class _TrackerCopy:
    """The copy of a run in one tracker, through accelerate's class for it; every call may raise anything."""

    #: The tracker's name in ``trackers.json``.
    kind = ""

    def __init__(self, folder: Path, settings: Mapping[str, Setting]) -> None:
        self._folder, self._settings = folder, settings
        self._tracker: Any = None

    def open(self) -> None:
        """Begin, or continue after a resume."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left; may take as long as the network needs."""
        if self._tracker is not None:
            self._tracker.finish()

    def _known_id(self) -> str | None:
        identity = self._ids().get(self.kind)
        return identity if isinstance(identity, str) else None

    def _keep_id(self, identity: str) -> None:
        with _ids_lock:
            write_json(self._folder / IDS_FILE, self._ids() | {self.kind: identity})

    def _ids(self) -> dict[str, Any]:
        try:
            ids = file_json(self._folder / IDS_FILE)
        except (OSError, ValueError):
            return {}
        return ids if isinstance(ids, dict) else {}


class _TensorBoardCopy(_TrackerCopy):
    """Event files in the run folder: ``tensorboard --logdir runs`` shows all runs."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._tracker is None:
            from accelerate.tracking import TensorBoardTracker

            is_resumed = any((self._folder / TENSORBOARD_FOLDER).glob("events.*"))
            cut = {"purge_step": step} if is_resumed else {}
            self._tracker = TensorBoardTracker(TENSORBOARD_FOLDER, str(self._folder), **cut)
            self._tracker.start()
            if not is_resumed:
                # Not as hyperparameters: those would show as a second run.
                rows = [f"| {name} | {value} |" for name, value in self._settings.items()]
                table = "\n".join(["| setting | value |", "|---|---|", *rows])
                self._tracker.log({"run": table}, step=0)
        super().log(step, values)


class _WandbCopy(_TrackerCopy):
    """A run of W&B, in the project of WANDB_PROJECT; its files are in the run folder."""

    kind = "wandb"

    def open(self) -> None:
        import wandb
        from accelerate.tracking import WandBTracker

        if os.environ.get("WANDB_MODE") in (None, "online"):  # no prompt, which would stop the run
            with contextlib.suppress(TypeError):  # an older release prompts or fails by itself
                if not wandb.login(prompt=False, verify=False):
                    raise RuntimeError(
                        "you are not logged in; run 'wandb login', or set WANDB_MODE=offline"
                    )
        identity = self._known_id() or uuid.uuid4().hex[:12]
        tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", _PROJECT),
            name=self._folder.name,
            id=identity,
            resume="allow",
            dir=str(self._folder),
            mode=os.environ.get("WANDB_MODE"),  # W&B itself looks once per process
            settings=wandb.Settings(console="off"),  # log.txt has what was said
        )
        tracker.start()
        self._tracker = tracker
        self._keep_id(identity)
        tracker.tracker.define_metric("step", hidden=True)
        tracker.tracker.define_metric("*", step_metric="step")
        tracker.store_init_configuration(dict(self._settings))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log({**values, "step": step})


class _MlflowCopy(_TrackerCopy):
    """A run of MLflow, at MLFLOW_TRACKING_URI."""

    kind = "mlflow"

    def open(self) -> None:
        import mlflow
        from accelerate.tracking import MLflowTracker

        identity = self._known_id()
        if identity is not None and not _is_known(mlflow, identity):
            identity = None
        tracker = MLflowTracker(_PROJECT, run_id=identity, run_name=self._folder.name)
        tracker.start()
        self._tracker = tracker
        self._keep_id(tracker.tracker.info.run_id)
        if identity is None:  # a setting that changed on resume would be refused
            tracker.store_init_configuration(dict(self._settings))


def _is_known(mlflow: Any, identity: str) -> bool:  # noqa: ANN401 - a module
    try:
        return bool(mlflow.get_run(identity).info.lifecycle_stage == "active")
    except mlflow.exceptions.MlflowException:
        return False


class _TrackioCopy(_TrackerCopy):
    """A run of trackio."""

    kind = "trackio"

    def open(self) -> None:
        from accelerate.tracking import TrackioTracker

        known = self._known_id()
        # Trackio identifies runs by their names: another run may have had this one.
        name = known or f"{self._folder.name}-{uuid.uuid4().hex[:6]}"
        tracker = TrackioTracker(
            _PROJECT, name=name, resume="allow" if known else "never", config=dict(self._settings)
        )
        tracker.start()
        self._tracker = tracker
        self._keep_id(name)


#: By the name in ``train.trackers``; also the name of the package to install.
TRACKER_KINDS: dict[str, type[_TrackerCopy]] = {
    "tensorboard": _TensorBoardCopy,
    **{copy.kind: copy for copy in (_WandbCopy, _MlflowCopy, _TrackioCopy)},
}


def flat_settings(config: Mapping[str, object]) -> dict[str, Setting]:
    """Return settings as every tracker takes them: plain values by dotted key; lists as JSON, cut."""

    def setting(value: Any) -> Setting:  # noqa: ANN401 - a JSON value
        plain: Setting = json.dumps(value) if isinstance(value, list) else value
        return plain[:_LONGEST_SETTING] if isinstance(plain, str) else plain

    settings = dotted_values(plain_json(config))
    return {name: setting(value) for name, value in settings.items() if value != {}}
