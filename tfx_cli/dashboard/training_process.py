"""Training in processes of their own: started, asked to stop, gone on with.

The dashboard never trains: it starts `tfx train` as a user would, in a session of its own, so that
a closed window does not end it. What it did not start it asks only after the user has confirmed.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError, MachineError
from tfx_cli.arguments import RUNS

__all__ = ["Launch", "TrainingProcesses", "process_to_stop", "send_stop"]

_TAIL_BYTES = 8192
#: What progress bars and terminals leave in a log.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Launch:
    """A `tfx train` that was started here.

    Attributes
    ----------
    path
        The run folder it makes or goes on with.
    process
        The process.
    log
        What it says.
    """

    path: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def last_lines(self, n_lines: int) -> list[str]:
        """Return the last lines it said."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(file.seek(0, 2) - _TAIL_BYTES, 0))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        lines = [_CONTROL.sub("", line).rstrip() for line in text.splitlines()]
        return [line for line in lines if line][-n_lines:]

    def error(self) -> str:
        """Return the error it ended with, or its last line."""
        lines = self.last_lines(40)
        starts = [place for place, line in enumerate(lines) if line.startswith("Error:")]
        return "\n".join(lines[starts[-1] :] if starts else lines[-1:])


class TrainingProcesses:
    """The trainings that this dashboard started."""

    def __init__(self) -> None:
        self._launches: dict[str, Launch] = {}
        self._started: dict[str, Launch] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="tfx-dashboard-"))

    def start(self, preset: str, name: str, assignments: Sequence[str], root: Path) -> Launch:
        """Train a preset as the run ``root / name``.

        Raises
        ------
        ConfigurationError
            The run exists, or its folder is none that `tfx train` writes to.
        MachineError
            The process cannot be started.
        """
        if root.name != RUNS.name:
            message = f"tfx train writes to a folder '{RUNS}', not to '{root}'; begin with 'tfx dashboard' where your presets are"
            raise ConfigurationError(message)
        path = root / name
        if path.exists():
            message = f"{path} exists; choose another name"
            raise ConfigurationError(message)
        options = [part for one in assignments for part in ("--set", one)]
        return self._launch(str(path), ["train", preset, "--run", name, *options], root.parent)

    def resume(self, path: str, root: Path) -> Launch:
        """Go on with a run that stopped."""
        return self._launch(path, ["train", str(Path(path).absolute())], root.parent)

    def _launch(self, path: str, arguments: Sequence[str], folder: Path) -> Launch:
        log = self._folder / f"{Path(path).name}.log"
        try:
            with log.open("wb") as said:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tfx_cli", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    start_new_session=True,
                )
        except OSError as error:
            message = f"tfx train cannot be started ({error.strerror})"
            raise MachineError(message) from error
        launch = Launch(path, process, log)
        self._launches[path] = self._started[path] = launch
        return launch

    def launch_of(self, path: str) -> Launch | None:
        """Return the launch of a run that has not been seen to live yet."""
        return self._launches.get(path)

    def forget_launch(self, path: str) -> None:
        """Take note that a run lives: its folder now tells more than the process."""
        self._launches.pop(path, None)

    def started_here(self, path: str) -> bool:
        """Tell whether a run's process was started by this dashboard and still goes."""
        launch = self._started.get(path)
        return launch is not None and launch.process.poll() is None

    def running(self) -> list[str]:
        """Return the runs that were started here and still go."""
        return [path for path in self._started if self.started_here(path)]

    def failed(self) -> list[Launch]:
        """Return the launches that ended with an error since the last question."""
        ended = [
            one for one in self._started.values() if one.process.poll() not in (None, 0, 75, 130)
        ]
        for one in ended:
            del self._started[one.path]
        return ended

    def close(self) -> None:
        """Remove the logs of what has ended; trainings go on."""
        if not any(one.process.poll() is None for one in self._started.values()):
            for log in self._folder.glob("*.log"):
                log.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._folder.rmdir()


def process_to_stop(status: Mapping[str, Any]) -> int:
    """Return the process of a run, to send a signal to.

    Raises
    ------
    ConfigurationError
        The run is on another machine, or its process is gone.
    """
    host, pid = status.get("host"), status.get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 1:
        message = "the run does not say which process trains it"
        raise ConfigurationError(message)
    if host != socket.gethostname():
        message = f"the run is on {host}: stop it there by 'kill -TERM {pid}', or end its job"
        raise ConfigurationError(message)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        message = f"process {pid} of the run is gone; resume the run with u"
        raise ConfigurationError(message) from None
    except PermissionError:
        message = f"process {pid} of the run belongs to somebody else"
        raise ConfigurationError(message) from None
    return pid


def send_stop(pid: int) -> None:
    """Ask a training to save a checkpoint and end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
