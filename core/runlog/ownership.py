"""Who may write a run folder: one process, which claims the folder before it does anything else."""

import itertools
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError, MachineError
from core.folders import LOCK_FILE, FolderInUseError, locked_folder
from core.runlog.reader import RunReader
from core.runlog.schema import (
    CONFIG_FILE,
    LIVE_STATES,
    OUTPUT_FILE,
    RUN_FILE,
    STALE_AFTER_SECONDS,
    WORK_FILE,
)
from core.wording import naming_write_errors

#: What is made before run.json, beside temporary files; either of the last shows that it is tfx's.
_BEFORE_RUN = {f"{LOCK_FILE}.soft", CONFIG_FILE, WORK_FILE, LOCK_FILE, OUTPUT_FILE}
_SIGNS = {LOCK_FILE, OUTPUT_FILE}


class RunInUseError(MachineError):
    """Another process trains the run."""


@contextmanager
def owned_run(folder: Path) -> Iterator[None]:
    """Own a run folder, made if absent, while the block runs; one that is still empty is removed then.

    The lock goes with the process, however it ends. Where a file system does not share locks between
    machines, a fresh heartbeat of another machine counts as one. RunInUseError if another process
    trains this run, MachineError if the folder cannot be made.
    """
    made = [parent for parent in folder.parents if not parent.exists()]  # innermost first
    with ExitStack() as stack:
        try:
            with naming_write_errors(f"the run folder '{folder}'"):
                held = stack.enter_context(locked_folder(folder))
        except FolderInUseError:
            raise RunInUseError(_in_use(folder)) from None
        if _lives_elsewhere(folder):
            raise RunInUseError(_in_use(folder))
        try:
            yield
        finally:
            if is_free(folder) and not (folder / OUTPUT_FILE).exists():  # which says why
                held.remove()
                for parent in made:
                    with suppress(OSError):
                        parent.rmdir()


def claim_new_run(stack: ExitStack, folder: Path, *, may_be_numbered: bool) -> Path:
    """Own the folder of a new run until ``stack`` is closed, and return it; errors as in `free_folders`.

    Where another process has just claimed the folder, the next one is taken, or RunInUseError raised.
    """
    for wanted in free_folders(folder, may_be_numbered=may_be_numbered):
        with ExitStack() as claim:
            try:
                claim.enter_context(owned_run(wanted))
            except RunInUseError:
                if not may_be_numbered:
                    raise
                continue
            if is_free(wanted):  # else another process has begun and ended a run meanwhile
                stack.push(claim.pop_all())
                return wanted
    raise AssertionError("there is always another number")


def free_folders(folder: Path, *, may_be_numbered: bool) -> Iterator[Path]:
    """Give folders that a new run can have: NAME, and if it ``may_be_numbered`` NAME-2, NAME-3, ...

    ConfigurationError if the name is taken and may not be numbered.
    """
    for number in itertools.count(1):
        wanted = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if is_free(wanted):
            yield wanted
        if not may_be_numbered:
            break
    is_run = (folder / RUN_FILE).exists()
    remedy = f"continue it by 'tfx train {folder}', or " if is_run else "and is no run; "
    raise ConfigurationError(f"{folder} exists{'; ' if is_run else ' '}{remedy}choose another name")


def is_run_name(name: str) -> bool:
    """Return whether a run, and so a folder, can have this name."""
    return re.fullmatch(r"\w[\w.-]*", name) is not None


def is_free(folder: Path) -> bool:
    """Return whether a new run can have a folder: it is absent or empty, or its process died before it was a run."""
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return True
    except OSError:
        return False
    begun = {name for name in names if name.startswith(".") and name.endswith(".tmp")}
    return not names or (bool(_SIGNS & names) and names <= begun | _BEFORE_RUN)


def _status(folder: Path) -> dict[str, Any]:
    return RunReader(folder).status if (folder / RUN_FILE).exists() else {}


def _lives_elsewhere(folder: Path) -> bool:
    status = _status(folder)
    is_fresh = time.time() - float(status.get("heartbeat", 0.0)) < STALE_AFTER_SECONDS
    here = socket.gethostname()
    return status.get("state") in LIVE_STATES and status.get("host", here) != here and is_fresh


def _in_use(folder: Path) -> str:
    status = _status(folder)
    host, pid = status.get("host", "this machine"), status.get("pid")
    owner = f"process {pid} on {host}" if pid else "another process"
    own = " (this one)" if (host, pid) == (socket.gethostname(), os.getpid()) else ""
    return (
        f"{folder} is being trained by {owner}{own}; watch it by 'tfx runs show {folder}', or stop "
        f"that process first"
    )
