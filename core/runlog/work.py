"""What a process does for a run beside its steps: preparing its cells, fitting, evaluating, generating.

The process keeps ``work.json`` in the run folder while it works (docs/run-format.md), so that a list of runs
shows it, also before the folder is a run. It is a courtesy: where it cannot be written, the work goes on.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.files import file_bytes, write_json
from core.progress import Listener, ProgressEvent
from core.runlog.json_lines import finite_number, parse_object
from core.runlog.schema import CRASHED_AFTER_SECONDS, WORK_FILE, WORK_STATES

#: Least time between two writes of a stage.
_WRITE_SECONDS = 0.5
#: A process of this machine that has reported nothing for so long has another's number.
_FORGOTTEN_AFTER = 3600.0


@dataclass(frozen=True)
class Work:
    """The work of a process at one moment; times are in seconds since 1970."""

    #: One of `WORK_STATES`.
    state: str
    #: As in `ProgressEvent`; "" before the first.
    stage: str
    #: Fraction of the stage; None while unknown.
    fraction: float | None
    #: Seconds that the stage still takes; None while unknown.
    eta: float | None
    started: float
    updated: float
    #: The content of the file: host, pid, and the above.
    record: dict[str, Any]


@contextlib.contextmanager
def work_on(
    folder: Path, state: str, *, clock: Callable[[], float] = time.time
) -> Iterator[Listener]:
    """Show in a run folder, while the block runs, that this process works for the run.

    Yields a listener of the progress to show. A folder that does not exist is left alone.
    """
    assert state in WORK_STATES, state
    path, began = folder / WORK_FILE, clock()
    own = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), "started": began}
    stage, stage_began, written = "", began, float("-inf")

    def write(event: ProgressEvent) -> None:
        nonlocal stage, stage_began, written
        now = clock()
        if event.stage != stage:
            stage, stage_began, written = event.stage, now, float("-inf")
        if now - written < _WRITE_SECONDS and event.done != event.total:
            return
        written = now
        record = {"stage": stage, "done": event.done, "total": event.total, "updated": now}
        if event.total and 0 < event.done <= event.total:
            record["eta"] = (now - stage_began) * (event.total / event.done - 1)
        with contextlib.suppress(OSError):
            if folder.is_dir():
                write_json(path, own | record)

    write(ProgressEvent(""))
    try:
        yield write
    finally:
        with contextlib.suppress(OSError):
            record = parse_object(file_bytes(path)) or {}
            if (record.get("host"), record.get("pid")) == (own["host"], own["pid"]):
                path.unlink()


def read_work(folder: Path, *, now: float) -> Work | None:
    """Return the work on a run, unless there is none or its process has ended."""
    record: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        record = parse_object(file_bytes(folder / WORK_FILE)) or {}
    state, updated = record.get("state"), finite_number(record.get("updated"))
    if state not in WORK_STATES or updated is None or not _is_alive(record, now - updated):
        return None
    done, total = finite_number(record.get("done")), finite_number(record.get("total"))
    return Work(
        state=str(state),
        stage=str(record.get("stage") or ""),
        fraction=min(done / total, 1.0) if done is not None and total else None,
        eta=finite_number(record.get("eta")),
        started=finite_number(record.get("started")) or updated,
        updated=updated,
        record=record,
    )


def _is_alive(record: dict[str, Any], silence: float) -> bool:
    pid = record.get("pid")
    if record.get("host") != socket.gethostname():
        return silence <= CRASHED_AFTER_SECONDS
    if not isinstance(pid, int) or not 1 < pid < 2**31 or silence > _FORGOTTEN_AFTER:
        return False
    import psutil  # 10 ms, and seldom needed

    return psutil.pid_exists(pid)
