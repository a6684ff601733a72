"""One living process per run folder."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.errors import MachineError
from core.runlog.reader import RunReader
from core.runlog.schema import LIVE_STATES, RUN_FILE, STALE_AFTER_SECONDS

__all__ = ["LOCK_FILE", "owned_run"]

LOCK_FILE = ".lock"


@contextmanager
def owned_run(folder: Path) -> Iterator[None]:
    """Own a run folder, made if absent, while the block runs.

    The lock goes with the process, however it ends. Where a file system does not share locks
    between machines, a fresh heartbeat of another machine counts as one.

    Raises
    ------
    MachineError
        Another process trains this run, or the folder cannot be made.
    """
    existed = folder.exists()
    lock = FileLock(folder / LOCK_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise MachineError(_refusal(folder)) from None
    except OSError as error:
        message = f"the run folder '{folder}' cannot be written ({error.strerror or error})"
        raise MachineError(message) from error
    try:
        if existed and _lives_elsewhere(folder):
            raise MachineError(_refusal(folder))
        yield
    finally:
        lock.release()


def _status(folder: Path) -> dict[str, Any]:
    return RunReader(folder).status if (folder / RUN_FILE).exists() else {}


def _lives_elsewhere(folder: Path) -> bool:
    status = _status(folder)
    age = time.time() - float(status.get("heartbeat", 0.0))
    return (
        status.get("state") in LIVE_STATES
        and status.get("host", socket.gethostname()) != socket.gethostname()
        and age < STALE_AFTER_SECONDS
    )


def _refusal(folder: Path) -> str:
    status = _status(folder)
    host, pid = status.get("host", "this machine"), status.get("pid")
    who = f"process {pid} on {host}" if pid else "another process"
    own = " (this one)" if (host, pid) == (socket.gethostname(), os.getpid()) else ""
    return (
        f"{folder} is being trained by {who}{own}; watch it by 'tfx runs show {folder}', or stop "
        f"that process first"
    )
