"""The processes of one `tfx train` on this machine, and the signals that stop them.

The launcher (`--processes`) starts the same command once per process, with the variables that
accelerate and torch expect. It passes signals on, and ends the others when one process fails. On
several machines, or with an accelerate configuration, use `accelerate launch -m tfx_cli train`.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import IO

from core.errors import ExitCode
from tfx_cli.output import narrate

#: Variable that holds the process number of the launcher.
LAUNCHER = "TFX_LAUNCHER"
#: Ctrl-C; a scheduler ending the job; SLURM's usual early warning (``--signal=USR1@120``).
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
#: Seconds for the others to end by themselves after one has failed.
_GRACE = 20.0
#: Exit codes by which the first process has reported its own reason.
_REPORTED = {code.value for code in ExitCode} - {ExitCode.DONE, ExitCode.FAILED}


def is_main_process() -> bool:
    """Return whether this process, of those of a launcher, prints for the user."""
    return os.environ.get("RANK", "0") == "0"


def launcher_is_gone() -> bool:
    """Return whether the launcher of this process has died."""
    launcher = os.environ.get(LAUNCHER)
    return launcher is not None and os.getppid() != int(launcher)


def launch(arguments: Sequence[str], n_processes: int) -> int:
    """Run `tfx ARGUMENTS` in several processes of this machine; return their common exit code.

    The first process has this one's stdout and stderr. Output of another process is shown only
    where it is the first to fail.
    """
    port = _free_port()
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(n_processes - 1)]
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(_kill, processes)

        def pass_on(number: int, _: FrameType | None) -> None:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(number)

        with _handling_signals(pass_on):
            processes.extend(
                _start(arguments, rank, n_processes, port, output)
                for rank, output in enumerate([None, *outputs])
            )
            failed = _wait(processes)
        if failed is None:
            return ExitCode.DONE
        if processes[0].returncode in _REPORTED:
            return processes[0].returncode
        if failed:
            sys.stderr.write(_tail(outputs[failed - 1], failed))
        return max(processes[failed].returncode, ExitCode.FAILED)


def _start(
    arguments: Sequence[str], rank: int, n_processes: int, port: int, output: IO[bytes] | None
) -> "subprocess.Popen[bytes]":
    threads = max((os.cpu_count() or 1) // n_processes, 1)
    environment = {
        "OMP_NUM_THREADS": str(threads),  # one may be set already
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n_processes),
        "LOCAL_WORLD_SIZE": str(n_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHER: str(os.getpid()),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tfx_cli", *arguments],
        env=environment,
        stdout=output,
        stderr=output,
        # Ctrl-C reaches the launcher alone, which passes it on: once, to each.
        start_new_session=True,
    )


def _wait(processes: "list[subprocess.Popen[bytes]]") -> int | None:
    """Wait for all; return the first that failed, or None."""
    failed: int | None = None
    deadline = float("inf")
    while any(process.poll() is None for process in processes):
        if failed is None:
            failed = _first_failed(processes)
            if failed is not None:
                deadline = time.monotonic() + _GRACE
        if time.monotonic() > deadline:
            _kill(processes)
        time.sleep(0.05)
    return _first_failed(processes) if failed is None else failed


def _first_failed(processes: "list[subprocess.Popen[bytes]]") -> int | None:
    return next((rank for rank, process in enumerate(processes) if process.poll()), None)


def _kill(processes: "list[subprocess.Popen[bytes]]") -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()


def _tail(output: IO[bytes], rank: int) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("Error:")] or lines[-5:]
    return "".join(f"process {rank}: {line}\n" for line in errors)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# -- signals


class _StopSignal:
    """Call it to learn why training should stop; an empty text: it should not."""

    def __init__(self) -> None:
        self._received = ""

    def __call__(self) -> str:
        if not self._received and launcher_is_gone():
            self._received = "the launcher died"
        return self._received

    def handle(self, number: int, _: FrameType | None) -> None:
        """Take a signal: the first saves a checkpoint, a second Ctrl-C interrupts at once."""
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signal.Signals(number).name
        narrate(
            f"{self._received}: saving a checkpoint after this step; Ctrl-C again leaves at once"
        )


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], str]]:
    """Yield the function that tells training why to stop, while signals are caught."""
    stop = _StopSignal()
    with _handling_signals(stop.handle):
        yield stop


@contextlib.contextmanager
def _handling_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)
