"""Processes that the dashboard starts: `tfx train`, `tfx eval`, `tfx interactions`, one `tfx generate --serve` with a model.

The dashboard never trains or generates in its own process: loading torch takes seconds, and a
model may take all memory. A training runs in a session of its own, so that a closed window does
not end it.
"""

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zlib import crc32

from core.errors import ConfigurationError, ExitCode, MachineError
from core.interactions.kept import FOLDER
from core.runlog.ownership import is_free
from core.runlog.schema import OUTPUT_FILE
from tfx_cli.arguments import RUNS
from tfx_cli.dashboard.workspace import last_lines

_TFX = (sys.executable, "-m", "tfx_cli")
#: Characters that progress bars and terminals leave in a log.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
#: Exit codes of a process that did not fail; None: it runs.
NO_FAILURE = (None, ExitCode.DONE, ExitCode.STOPPED_EARLY, ExitCode.INTERRUPTED)
#: Begins the line of the command in a log, before its output.
_PROMPT = "$ "
#: A profile of 2,000 genes has some hundred kilobytes.
_LONGEST_LINE = 64 * 2**20
_GRACE = 3.0  # seconds


# -- trainings and evaluations
@dataclass(frozen=True)
class Launch:
    """A `tfx train`, `tfx eval` or `tfx interactions` that was started here: the run, the process, the log of its output."""

    path: str
    command: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def last_lines(self, n_lines: int) -> list[str]:
        """Return the last lines of its output."""
        return output_lines(self.log)[-n_lines:]

    def error(self) -> str:
        """Return the error it ended with, or its last line."""
        return _error_in(self.last_lines(40))


def _error_in(lines: Sequence[str]) -> str:
    starts = [place for place, line in enumerate(lines) if line.startswith("Error:")]
    return "\n".join(lines[starts[-1] :] if starts else lines[-1:])


def output_lines(log: Path) -> list[str]:
    """Return what the process that was started last wrote to a log, without empty lines and controls."""
    lines = [_CONTROL.sub("", line).rstrip() for line in last_lines(log)]
    starts = [place for place, line in enumerate(lines) if line.startswith(_PROMPT)]
    return [line for line in lines[starts[-1] + 1 if starts else 0 :] if line]


def train_arguments(preset: str, name: str, assignments: Sequence[str]) -> list[str]:
    """Return the arguments of `tfx` that train a preset as a new run."""
    changes = [part for one in assignments for part in ("--set", one)]
    return ["train", preset, "--run", name, *changes]


async def forecast(
    preset: str, name: str, assignments: Sequence[str], root: Path
) -> dict[str, Any]:
    """Return what `tfx train --dry-run --json` forecasts of a new run; cancelled, it ends its process.

    Raises MachineError, with the message of the process, where there is no forecast.
    """
    arguments = [*_TFX, *train_arguments(_whole_path(preset), name, assignments)]
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            "--dry-run",
            "--json",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            cwd=root.parent,
        )
    except OSError as error:
        raise MachineError(f"tfx train --dry-run cannot be started ({error.strerror})") from error
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found: object = None
    with contextlib.suppress(ValueError):
        found = json.loads(output)
    if process.returncode or not isinstance(found, dict):
        lines = [_CONTROL.sub("", line) for line in errors.decode("utf-8", "replace").splitlines()]
        raise MachineError(_error_in(lines).removeprefix("Error: ") or "without a message")
    return found


def _whole_path(preset: str) -> str:
    """Return the path of a preset file from any folder; a bundled preset has its name."""
    return str(Path(preset).absolute()) if Path(preset).is_file() else preset


class RunProcesses:
    """The trainings, evaluations and searches of edges that this dashboard started; their output goes to the run folder."""

    def __init__(self) -> None:
        #: Trainings of runs that have not written their folder yet, by run; later it has more to show.
        self.launches: dict[str, Launch] = {}
        self._started: list[Launch] = []

    def start(self, preset: str, name: str, assignments: Sequence[str], root: Path) -> Launch:
        """Train a preset as the run ``root / name``; it must not exist."""
        if root.name != RUNS.name:
            raise ConfigurationError(
                f"tfx train writes to a folder '{RUNS}', not to '{root}'; start 'tfx dashboard' in the folder of your presets"
            )
        path = root / name
        if not is_free(path):
            raise ConfigurationError(f"{path} exists; choose another name")
        arguments = train_arguments(_whole_path(preset), name, assignments)
        return self._launch(str(path), arguments, root.parent)

    def free_name(self, name: str, root: Path) -> str:
        """Return a name for a run that no run has yet."""
        free, number = name, 2
        while not is_free(root / free) or str(root / free) in self.launches:
            free, number = f"{name}-{number}", number + 1
        return free

    def resume(self, path: str, root: Path) -> Launch:
        return self._launch(path, ["train", str(Path(path).absolute())], root.parent)

    def evaluate(self, path: str, root: Path) -> Launch:
        """Score the test cells of a run (`tfx eval RUN`)."""
        return self._launch(path, ["eval", str(Path(path).absolute())], root.parent)

    def find_edges(self, path: str, root: Path, where: str, contrast: str) -> Launch:
        """Find the edges of a context (`tfx interactions RUN`); the files are in the run folder."""
        run = Path(path).absolute()
        conditions = [("--where", where), ("--contrast", contrast)]
        words = [word for pair in conditions if pair[1] for word in pair]
        text = "-".join(filter(None, (where, contrast))) or "all-cells"
        stem = re.sub(r"[^\w.-]+", "-", text)[:80] + f"-{crc32(text.encode()):08x}"
        for ending in (".csv", ".graphml"):
            words += ["-o", str(run / FOLDER / f"{stem}{ending}")]
        return self._launch(path, ["interactions", str(run), *words, "--overwrite"], root.parent)

    def _launch(self, path: str, arguments: Sequence[str], folder: Path) -> Launch:
        log = Path(path) / OUTPUT_FILE
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                output.write(f"{_PROMPT}{shlex.join(['tfx', *arguments])}\n".encode())
                output.flush()
                process = subprocess.Popen(
                    [*_TFX, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    start_new_session=True,
                )
        except OSError as error:
            raise MachineError(
                f"tfx {arguments[0]} cannot be started in {path} ({error.strerror})"
            ) from error
        launch = Launch(path, arguments[0], process, log)
        self._started.append(launch)
        if arguments[0] == "train":
            self.launches[path] = launch
        return launch

    def started_here(self, path: str, command: str = "train") -> bool:
        """Return whether this dashboard started a process of a run, and it still runs."""
        own = [one for one in self._started if (one.path, one.command) == (path, command)]
        return any(launch.is_running for launch in own)

    def running(self) -> list[Launch]:
        return [launch for launch in self._started if launch.is_running]

    def ended(self) -> list[Launch]:
        """Return the launches that ended since the last call."""
        ended = [one for one in self._started if not one.is_running]
        self._started = [one for one in self._started if one not in ended]
        return ended


def process_to_stop(status: Mapping[str, Any]) -> int:
    """Return the process of a run, to send a signal to; ConfigurationError if that cannot be done."""
    host, problem = status.get("host"), ""
    pid: Any = status.get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 1:
        problem = "the run has not recorded its process"
    elif host != socket.gethostname():
        problem = f"the run is on {host}: stop it there by 'kill -TERM {pid}', or end its job"
    else:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            problem = f"process {pid} of the run is gone; resume the run with u"
        except PermissionError:
            problem = f"process {pid} of the run belongs to another user"
    if problem:
        raise ConfigurationError(problem)
    return pid


def send_stop(pid: int) -> None:
    """Make a training save a checkpoint and end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


# -- generating
class GeneratorProcess:
    """A process with one loaded model, which reads and writes JSON lines (docs/generate-serve.md).

    ``on_event`` receives every event, a dictionary with "event"; {"event": "exit", "message": ...}
    is the last. ``command`` replaces the command in tests.
    """

    def __init__(
        self,
        model: str,
        on_event: Callable[[dict[str, Any]], None],
        *,
        command: tuple[str, ...] | None = None,
    ) -> None:
        self.model = model
        self._on_event = on_event
        self._command = command or (*_TFX, "generate", "--serve", "--run", model)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def send(self, record: Mapping[str, Any]) -> None:
        """Send one record; the process is started where it does not run."""
        if self._process is None or not self.is_running:
            narration = tempfile.TemporaryFile()  # noqa: SIM115 - closed after reading
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=narration,
                limit=_LONGEST_LINE,
                start_new_session=True,  # Ctrl-C in the terminal does not reach it
            )
            self._reading = asyncio.create_task(self._read(self._process, narration))
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(json.dumps(record).encode() + b"\n")
            await self._process.stdin.drain()

    def terminate(self) -> None:
        if self._process is not None and self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def stop(self) -> None:
        """End the process: SIGTERM, and SIGKILL after some seconds."""
        process = self._process
        if process is None:
            return
        if self.is_running:
            self.terminate()
            try:
                await asyncio.wait_for(process.wait(), _GRACE)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._reading is not None:
            await self._reading
        self._process = self._reading = None

    async def _read(self, process: asyncio.subprocess.Process, narration: IO[bytes]) -> None:
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict) and isinstance(event.get("event"), str):
                        self._on_event(event)
        except ValueError:  # a line beyond the limit
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        code, message = await process.wait(), ""
        with narration:
            if code not in (0, -signal.SIGTERM):
                narration.seek(0)
                text = narration.read().decode("utf-8", "replace")
                lines = [line.rstrip() for line in text.splitlines() if line.strip()]
                errors = [line for line in lines if line.startswith("Error:")]
                how = (
                    f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                )
                last = [f": {line.removeprefix('Error: ')}" for line in (errors or lines)[-1:]]
                message = "".join([f"the generating process {how}", *last])
        self._on_event({"event": "exit", "code": code, "message": message})
