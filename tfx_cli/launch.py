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

from core.errors import ExitCode
from core.training.launched import LAUNCHER
from tfx_cli.output import narrate, print_error

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
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    common = {
        "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // n_processes, 1)),
        **os.environ,  # which may set the number of threads
        "WORLD_SIZE": str(n_processes),
        "LOCAL_WORLD_SIZE": str(n_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHER: str(os.getpid()),
    }
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
                subprocess.Popen(
                    [sys.executable, "-m", "tfx_cli", *arguments],
                    env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=output,
                    stderr=output,
                    # Ctrl-C reaches the launcher alone, which passes it on: once, to each.
                    start_new_session=True,
                )
                for rank, output in enumerate([None, *outputs])
            )
            failed = _wait(processes)
        if failed is None:
            return ExitCode.DONE
        if processes[0].returncode in _REPORTED:
            return processes[0].returncode
        if failed:
            output = outputs[failed - 1]
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()
            errors = [line for line in lines if line.startswith("Error:")] or lines[-5:]
            for line in errors:
                print_error(f"process {failed}: {line}")
        return max(processes[failed].returncode, ExitCode.FAILED)


def _wait(processes: "list[subprocess.Popen[bytes]]") -> int | None:
    """Wait for all; return the first that failed, or None."""
    failed: int | None = None
    deadline = float("inf")
    while True:
        is_over = all(process.poll() is not None for process in processes)
        if failed is None:
            codes = [process.poll() for process in processes]
            failed = next((rank for rank, code in enumerate(codes) if code), None)
            deadline = float("inf") if failed is None else time.monotonic() + _GRACE
        if is_over:
            return failed
        if time.monotonic() > deadline:
            _kill(processes)
        time.sleep(0.05)


def _kill(processes: "list[subprocess.Popen[bytes]]") -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()


# -- signals
@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], str]]:
    """Yield the function that returns why training should stop ("": it should not).

    The first signal saves a checkpoint; a second Ctrl-C interrupts at once.
    """
    received = ""

    def reason() -> str:
        nonlocal received
        received = received or ("the launcher died" if launcher_is_gone() else "")
        return received

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal received
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received = signal.Signals(number).name
        narrate(f"{received}: saving a checkpoint after this step; Ctrl-C again leaves at once")

    with _handling_signals(handle):
        yield reason


@contextlib.contextmanager
def _handling_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)
