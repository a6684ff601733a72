"""Several processes of one `tfx train` on this machine (`--processes`), and one that watches them.

The watcher starts the same command once per process, with the variables that accelerate and torch
know a process by. It passes signals on, and where one process fails it ends the others. On several
machines, or with an accelerate configuration, `accelerate launch -m tfx_cli train` does this.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO

from core.errors import ExitCode

__all__ = ["LAUNCHER", "is_main_process", "launch", "launcher_is_gone"]

#: Variable that holds the process number of the watcher.
LAUNCHER = "TFX_LAUNCHER"
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
#: Seconds that the others get to end by themselves once one has failed.
_GRACE = 20.0
#: What the first process ends with of its own accord; else another's end was its end.
_UNDERSTOOD = {code.value for code in ExitCode} - {ExitCode.DONE, ExitCode.FAILED}


def is_main_process() -> bool:
    """Tell whether this process is the one, of those of a launcher, that speaks to the user."""
    return os.environ.get("RANK", "0") == "0"


def launcher_is_gone() -> bool:
    """Tell whether the watcher that started this process has died."""
    watcher = os.environ.get(LAUNCHER)
    return watcher is not None and os.getppid() != int(watcher)


def launch(arguments: Sequence[str], n_processes: int) -> int:
    """Run `tfx` in several processes of this machine; return the exit code of all together.

    Parameters
    ----------
    arguments
        Of `tfx`, without ``--processes``.
    n_processes
        How many.

    Notes
    -----
    The first process has this one's stdout and stderr. What the others say is shown where one of
    them is the first to fail.
    """
    port = _free_port()
    with contextlib.ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(n_processes - 1)]
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(_kill, processes)
        with _passing_signals(processes):
            processes.extend(
                _start(arguments, rank, n_processes, port, said=out)
                for rank, out in enumerate([None, *said])
            )
            failed = _wait(processes)
        if failed is None:
            return ExitCode.DONE
        if processes[0].returncode in _UNDERSTOOD:
            return processes[0].returncode  # it has said why
        if failed:
            sys.stderr.write(_tail(said[failed - 1], failed))
        return max(processes[failed].returncode, ExitCode.FAILED)


def _start(
    arguments: Sequence[str], rank: int, n_processes: int, port: int, said: IO[bytes] | None
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
        stdout=None if rank == 0 else said,
        stderr=None if rank == 0 else said,
        # Ctrl-C reaches the watcher alone, which passes it on: once, to each.
        start_new_session=True,
    )


def _wait(processes: "list[subprocess.Popen[bytes]]") -> int | None:
    """Wait for all; return the first that did not end well, or None."""
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


@contextlib.contextmanager
def _passing_signals(processes: "list[subprocess.Popen[bytes]]") -> Iterator[None]:
    def pass_on(number: int, _: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tail(said: IO[bytes], rank: int) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("Error:")] or lines[-5:]
    return "".join(f"process {rank}: {line}\n" for line in errors)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
