"""The disk below runs/ and stores/: room, kind of file system, and whether what we rely on works."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import psutil

from core.machine_check.report import MachineRow

__all__ = ["check_storage", "file_system_of"]

_GB = 10**9
#: Checkpoints of a large model and a store of some million cells.
_LEAST_FREE, _GOOD_FREE = 1 * _GB, 10 * _GB
#: Where locks, renames or appends of several machines may not be seen at once.
_NETWORK = ("nfs", "cifs", "smb", "9p", "afs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse")
_PARALLEL = ("lustre", "gpfs", "beegfs", "ceph", "panfs")
_IN_MEMORY = ("tmpfs", "ramfs")


def file_system_of(folder: Path) -> str:
    """Return the kind of file system a folder lies on, as ``ext4``; "" where it is not known."""
    folder = folder.resolve()
    best, kind = -1, ""
    with contextlib.suppress(OSError):
        for part in psutil.disk_partitions(all=True):
            # "autofs" is the place where another one appears.
            if folder.is_relative_to(part.mountpoint) and part.fstype != "autofs":
                depth = len(Path(part.mountpoint).parts)
                if depth >= best:
                    best, kind = depth, part.fstype
    return kind


def check_storage(
    folder: Path, *, kind: str | None = None, free: int | None = None
) -> tuple[list[MachineRow], dict[str, Any]]:
    """Check the disk that run folders are written to.

    Parameters
    ----------
    folder
        Where ``runs`` lies or will lie; it is left as it was.
    kind, free
        Kind of file system and free bytes; default: ask the system.

    Returns
    -------
    Rows, and folder, file system and free bytes.
    """
    nearest = next(one for one in (folder, *folder.resolve().parents) if one.is_dir())
    kind = file_system_of(nearest) if kind is None else kind
    free = shutil.disk_usage(nearest).free if free is None else free
    facts = {"folder": str(nearest), "file_system": kind, "free": free}
    rows = [_room(nearest, free), _kind(kind)]
    if os.access(nearest, os.W_OK):
        rows += _try_out(nearest)
    else:
        finding = f"{nearest} may not be written to"
        rows.append(MachineRow("fail", "disk", "writing", finding, "work in a folder of your own"))
    return rows, facts


def _room(folder: Path, free: int) -> MachineRow:
    finding = f"{free / _GB:.1f} GB free in {folder}"
    if free < _LEAST_FREE:
        fix = "make room, or work in a folder on another disk"
        return MachineRow("fail", "disk", "room", finding, fix)
    if free < _GOOD_FREE:
        fix = "make room for large stores; train.keep_checkpoints = 1 saves some"
        return MachineRow("warn", "disk", "room", finding, fix)
    return MachineRow("ok", "disk", "room", finding)


def _kind(kind: str) -> MachineRow:
    if kind.startswith(_NETWORK):
        finding = f"{kind}, a network file system: slow to read cells from, locks may not hold"
        fix = "set data.store to a folder on a local disk; run folders may stay"
        return MachineRow("warn", "disk", "file system", finding, fix)
    if kind.startswith(_PARALLEL):
        finding = f"{kind}, shared by machines: fit for large files"
        return MachineRow("ok", "disk", "file system", finding)
    if kind.startswith(_IN_MEMORY):
        finding = f"{kind}: what is written takes memory, and a restart loses it"
        fix = "work in a folder on a disk"
        return MachineRow("warn", "disk", "file system", finding, fix)
    return MachineRow("ok", "disk", "file system", kind or "of unknown kind")


def _try_out(folder: Path) -> list[MachineRow]:
    """Do once what preparing and training do all the time."""
    trials: dict[str, tuple[Callable[[Path], None], str]] = {
        "whole files": (_write_then_rename, "a run could be left with half a checkpoint"),
        "appending": (_append_lines, "the log of a run could lose lines"),
        "locks": (_lock_twice, "two processes could write one run at a time"),
        "memory maps": (_map_array, "stores cannot be read"),
    }
    rows = []
    for name, (trial, consequence) in trials.items():
        try:
            with _scratch_folder(folder) as scratch:
                trial(scratch)
        except Exception as error:  # noqa: BLE001 - file systems fail in any way; it is a finding
            why = " ".join(str(error).split())[:200]
            finding = f"do not work here ({why}): {consequence}"
            rows.append(MachineRow("fail", "disk", name, finding, "work on another file system"))
    if not rows:
        finding = "whole files, appending, locks and memory maps work"
        rows.append(MachineRow("ok", "disk", "writing", finding))
    return rows


@contextlib.contextmanager
def _scratch_folder(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".tfx-doctor-", dir=folder) as name:
        yield Path(name)


def _expect(condition: object, complaint: str) -> None:
    if not condition:
        raise OSError(complaint)


def _write_then_rename(folder: Path) -> None:
    place, temporary = folder / "status.json", folder / ".status.json.tmp"
    place.write_text("old", encoding="utf-8")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write("new")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(place)
    _expect(place.read_text(encoding="utf-8") == "new", "a renamed file keeps its old content")


def _append_lines(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    for line in (b"one\n", b"two\n"):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
    _expect(path.read_bytes() == b"one\ntwo\n", "an appended line is not there")


def _lock_twice(folder: Path) -> None:
    first, second = (filelock.FileLock(folder / "lock", timeout=0) for _ in range(2))
    with first:
        try:
            second.acquire()
        except filelock.Timeout:
            return
        second.release()
    _expect(condition=False, complaint="a lock was given twice")


def _map_array(folder: Path) -> None:
    path = folder / "values.npy"
    np.save(path, np.arange(1000))
    mapped = np.load(path, mmap_mode="r")
    _expect(int(mapped[999]) == 999, "a mapped file reads wrongly")
    del mapped  # a folder of open maps cannot be deleted everywhere
