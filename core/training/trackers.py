"""Copies of metrics to TensorBoard, W&B, MLflow and trackio, while the run folder stays the record.

A run never waits for a tracker and never fails by one. Each has a thread and a queue, so that a
server that does not answer holds up nobody; one that fails, or falls far behind, is dropped with a
warning. Only the main process has trackers.
"""

import contextlib
import importlib.util
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from core.errors import ConfigurationError, MachineError
from core.training.tracker_kinds import TRACKER_KINDS, TrackerCopy, flat_settings
from core.wording import did_you_mean

__all__ = ["DropListener", "Trackers", "check_trackers"]

_LOG = logging.getLogger(__name__)
#: Called with the name of a tracker that is dropped, and the reason.
DropListener = Callable[[str, str], None]
#: Lines that may wait: at one a second, two hours without an answer.
_MAX_WAITING = 8192
#: How long a run waits at its end for trackers to send what is left.
_CLOSE_SECONDS = 60.0
_LONGEST_REASON = 200  # characters


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not known or not installed, without importing any.

    Raises
    ------
    ConfigurationError
        There is no such tracker.
    MachineError
        Its package is not installed.
    """
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
    """The trackers of one run; also a context manager that closes them.

    Make it by `start`.
    """

    def __init__(self, copies: Mapping[str, TrackerCopy], on_drop: DropListener) -> None:
        self._stdout: contextlib.ExitStack = contextlib.ExitStack()
        if copies:
            from accelerate import PartialState

            PartialState()  # accelerate's trackers and their logger ask it which process this is
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
        on_drop: DropListener = lambda name, reason: None,
    ) -> Self:
        """Start trackers; returns at once, whether or not they answer.

        Parameters
        ----------
        names
            Keys of `TRACKER_KINDS` that `check_trackers` let pass; one named twice is started once.
        run_name
            What trackers call the run.
        folder
            The run folder, which must be there: TensorBoard and W&B keep files in it.
        config
            What identifies the run; nested tables become dotted keys.
        on_drop
            Called with name and reason when a tracker is dropped, from that tracker's thread.
        """
        settings = flat_settings(config)
        unique = dict.fromkeys(names)
        return cls(
            {name: TRACKER_KINDS[name](run_name, folder, settings) for name in unique}, on_drop
        )

    @property
    def active(self) -> list[str]:
        """The trackers that have not been dropped."""
        return [thread.tracker for thread in self._threads if not thread.is_dropped]

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the trackers, whatever happened."""
        self.close()


class _TrackerThread:
    """Feeds one tracker, until it fails or the run ends."""

    def __init__(self, tracker: str, copy: TrackerCopy, on_drop: DropListener) -> None:
        self.tracker, self.is_dropped = tracker, False
        self._copy, self._on_drop = copy, on_drop
        self._lock = threading.Lock()
        self._is_abandoned = False
        # Holds (step, values); None at the end.
        self._lines: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_MAX_WAITING)
        # A daemon: a server that does not answer must not keep the process from ending.
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
            self._is_abandoned = True  # the run is over: nobody to tell any more

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
        """Say once, and tell the run, that this tracker gets no more."""
        with self._lock:
            if self.is_dropped or self._is_abandoned:
                return
            self.is_dropped = True
        _LOG.warning(
            "%s is dropped (%s); the run goes on and its folder has everything",
            self.tracker,
            reason,
        )
        try:
            self._on_drop(self.tracker, reason)
        except Exception as error:  # noqa: BLE001 - a thread has nobody to raise to
            _LOG.warning("that %s was dropped could not be noted (%s)", self.tracker, error)
