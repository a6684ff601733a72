"""Writing a run folder. One writer per run: the main process (rank 0)."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from core import __version__
from core.errors import MachineError
from core.files import check_own_file, replace_file, write_json
from core.folders import DirectoryHandle
from core.runlog.json_lines import LineAppender
from core.runlog.schema import (
    CONFIG_FILE,
    EVENTS_FILE,
    FORMAT_VERSION,
    LIVE_STATES,
    LOG_FILE,
    METRICS_FILE,
    RESERVED_METRIC_KEYS,
    RUN_FILE,
    RUN_STATES,
    STATUS_FILE,
    STATUS_SECONDS,
    system_file,
)
from core.wording import naming_write_errors, visible

_LOG = logging.getLogger(__name__)
#: Variables in which the schedulers of clusters put the job's number.
_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")


class _LogFile(logging.FileHandler):
    """log.txt; a line that cannot be written is lost, and the run continues."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)


class _VisibleFormatter(logging.Formatter):
    """Writes lines whose control characters no terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), lines=True)


class RunWriter:
    """The writer of one run folder; also a context manager that closes its files.

    Safe to call from several threads: training logs steps while another thread writes that the run
    is alive (`heartbeat`) and the load of its machine (`system`).

    Opening a folder that already holds a run continues it: run.json stays as it was, the lines
    are appended. A resumed run must write ``event("resume", from_step=N)``. ``run`` has facts for
    run.json beside those that the writer adds (hashes of preset, store and vocabulary, parameters),
    ``config`` is the resolved preset. MachineError if the folder cannot be made or written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run: Mapping[str, object],
        config: str | None = None,
        clock: Callable[[], float] = time.time,  # seconds since 1970
    ) -> None:
        self._clock = clock
        self._host = socket.gethostname()
        self._status: dict[str, Any] = {"state": "", "started": clock()}
        self._status_written = float("-inf")
        self._has_pending_status = False
        self._has_warned = False
        self._is_closed = False
        # Re-entrant: a signal handler may log while the interrupted thread writes a line.
        self._lock = threading.RLock()
        #: Writes log.txt; add it to a logger. Closed with the writer.
        self.log_handler = _LogFile(folder / LOG_FILE, encoding="utf-8", delay=True)
        layout = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        self.log_handler.setFormatter(_VisibleFormatter(layout))
        self._metrics = LineAppender(folder / METRICS_FILE)
        self._events = LineAppender(folder / EVENTS_FILE)
        self._system = SystemLog(folder, host=self._host, clock=clock)
        with naming_write_errors(f"the run folder '{folder}'"):
            folder.mkdir(parents=True, exist_ok=True)
            check_own_file(folder / LOG_FILE)
            # Before run.json makes it a run: one without its preset could not be resumed.
            if config is not None:
                replace_file(folder / CONFIG_FILE, config)
            if not (folder / RUN_FILE).exists():
                write_json(folder / RUN_FILE, self._describe() | dict(run))
            self._place = DirectoryHandle(folder)

    @property
    def folder(self) -> Path:
        """The run folder, also after it was moved; files that are not open yet are opened there."""
        before = self._place.path
        now = self._place.find() or before
        if now != before:
            for file in (self._metrics, self._events, self._system):
                file.move(now)
            self.log_handler.baseFilename = str(now.absolute() / LOG_FILE)
            _LOG.warning("%s was moved to %s, where the run continues", before, now)
        return now

    def check_folder(self) -> None:
        """Raise a MachineError if the folder was removed, or moved to another disk."""
        _ = self.folder  # may have been moved
        if self._place.find() is None:
            raise MachineError(
                f"the run folder {self._place.path} was removed, or moved to another disk, while the run "
                f"was trained; if there is a copy, 'tfx train COPY' continues from its newest checkpoint"
            )

    def _describe(self) -> dict[str, object]:
        return {
            "format": FORMAT_VERSION,
            "tfx": __version__,
            "python": sys.version.split()[0],
            "argv": sys.argv,
            "cwd": str(Path.cwd()),
            "host": self._host,
            "pid": os.getpid(),
            "job": next((os.environ[name] for name in _JOB_VARIABLES if name in os.environ), None),
            "commit": _git_commit(),
            "started": self._clock(),
        }

    def status(self, state: str, **fields: object) -> None:
        """Set the state of the run (one of `RUN_STATES`) and fields of status.json.

        Fields are step, total, eta (seconds left), checkpoint (its folder name), ...; each keeps its
        last value until it is given again. status.json is replaced when the state changes, else at
        most every `STATUS_SECONDS`, so that you can call this as often as convenient.
        """
        assert state in RUN_STATES, state
        with self._lock:
            is_new_state = state != self._status["state"]
            self._status |= {"state": state, **fields}
            self._has_pending_status = True
            if is_new_state or self._clock() - self._status_written >= STATUS_SECONDS:
                self._write_status()

    def heartbeat(self) -> None:
        """Write status.json again, so that a long step does not look like a dead run; never raises.

        Does nothing before the first `status`, once the run has ended, or after `close`.
        """
        with self._lock:
            if self._status["state"] in LIVE_STATES and not self._is_closed:
                self._write_status()

    def _write_status(self) -> None:
        now = self._clock()
        self._status_written = now
        self._has_pending_status = False
        try:
            write_json(self.folder / STATUS_FILE, {**self._status, "heartbeat": now})
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                _LOG.warning("%s cannot be written (%s)", self.folder / STATUS_FILE, error)

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append one line of metrics: ``loss``, ``acc/cell_type``, ... of one split at a step."""
        reserved = RESERVED_METRIC_KEYS.intersection(values)
        assert not reserved, f"reserved names: {reserved}"
        with self._lock:
            _ = self.folder  # may have been moved
            self._metrics.append({"step": step, "t": self._clock(), "split": split, **values})

    def event(self, name: str, **fields: object) -> None:
        """Append one event; `EVENTS` lists those of tfx.

        ``resume`` needs ``from_step``, the first step that is run again; it is written among the
        metrics as well, where it voids the older lines of that step and later ones. ``start`` voids
        all lines of a run that died before its first checkpoint.
        """
        assert name != "resume" or isinstance(fields.get("from_step"), int)
        with self._lock:
            record = {"event": name, "t": self._clock(), **fields}
            folder = self.folder  # may have been moved
            self._events.append(record)
            if name == "resume":
                self._metrics.append(record)
            elif name == "start" and (folder / METRICS_FILE).is_file():
                self._metrics.append({"event": "resume", "t": record["t"], "from_step": 0})

    def system(self, **fields: object) -> None:
        """Append one line about this machine: GPU, CPU, memory, disk; every field optional."""
        with self._lock:
            if not self._is_closed:
                _ = self.folder  # may have been moved
                self._system.append(**fields)

    def close(self) -> None:
        """Write a pending status and close the files."""
        with self._lock:
            if self._has_pending_status:
                self._write_status()
            self._is_closed = True
            for file in (self._metrics, self._events, self._system):
                file.close()
            self._place.close()
        self.log_handler.close()

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the files, whatever happened."""
        self.close()


class SystemLog:
    """The file in which one machine logs its load: that of `RunWriter`, or another node of the run."""

    def __init__(
        self, folder: Path, *, host: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._file = LineAppender(folder / system_file(host or socket.gethostname()))

    def append(self, **fields: object) -> None:
        """Append one line about the machine; every field optional."""
        self._file.append({"t": self._clock(), **fields})

    def move(self, folder: Path) -> None:
        """Go on in the folder to which the run was moved."""
        self._file.move(folder)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _git_commit() -> str | None:
    """Return the commit of the working folder, if it is a git one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return found.stdout.strip() or None
    return None
