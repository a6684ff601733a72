"""Memory, open files and the disk of runs/ and stores/, limits of containers and shells included."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
import psutil

from core.doctor.compute import one_line
from core.files import free_space, replacing
from core.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Callable

_GB = 10**9
#: Below the first it fails, below the second it warns. `import torch, scanpy` alone takes 0.6 GB;
#: base.toml trains in 1.4.
_MEMORY = (1 * _GB, 3 * _GB)
#: Checkpoints of a large model and a store of some million cells.
_DISK = (1 * _GB, 10 * _GB)
#: Shards, sockets of worker processes and libraries; many systems start with 1,024 or 256.
_FILES = (128, 1024)
_GOOD_GPU_MEMORY = 4 * _GB
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")
#: Where locks, renames or appends of several machines may not be seen at once.
_NETWORK = ("nfs", "cifs", "smb", "9p", "afs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse")
_PARALLEL = ("lustre", "gpfs", "beegfs", "ceph", "panfs")
_IN_MEMORY = ("tmpfs", "ramfs")


def _graded(row: Finding, value: int, limits: tuple[int, int], fixes: tuple[str, str]) -> Finding:
    """Let the row of a value fail below the first limit, warn below the second."""
    if value < limits[0]:
        return replace(row, level="fail", fix=fixes[0])
    return replace(row, level="warn", fix=fixes[1]) if value < limits[1] else row


def read_memory() -> dict[str, int]:
    """Return ``total`` and ``available`` bytes, within the limit of a container."""
    found = psutil.virtual_memory()
    total, available = int(found.total), int(found.available)
    limit, used = _read_number(_CGROUP_LIMIT), _read_number(_CGROUP_USED)
    if limit is not None and limit < total:
        total = limit
        available = min(available, max(limit - (used or 0), 0))
    return {"total": total, "available": available}


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no limit ("max"), or another system
        return None


def check_memory(memory: dict[str, int]) -> list[Finding]:
    """Check main memory, as `read_memory` returns it."""
    available, total = memory["available"], memory["total"]
    finding = f"{available / _GB:.1f} of {total / _GB:.1f} GB available"
    fixes = (
        "end other programs, or request 4 GB from your scheduler",
        "end other programs, or use few genes (data.genes) and small batches",
    )
    return [_graded(Finding("ok", "memory", "RAM", finding), available, _MEMORY, fixes)]


def check_gpu_memory() -> tuple[list[Finding], list[dict[str, Any]]]:
    """Check the memory of each GPU that torch finds.

    Returns rows, and the name, total and free bytes of each GPU.
    """
    import torch

    rows: list[Finding] = []
    facts: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        facts.append({"name": torch.cuda.get_device_name(index), "total": total, "free": free})
        limits = (0, min(_GOOD_GPU_MEMORY, total // 2))
        finding = f"{free / _GB:.1f} of {total / _GB:.1f} GB free"
        fix = "nvidia-smi lists the programs that use it; or choose another GPU by CUDA_VISIBLE_DEVICES"
        row = Finding("ok", "memory", f"GPU {index}", finding)
        rows.append(_graded(row, free, limits, ("", fix)))
    return rows, facts


def check_open_files(limit: int | None = None) -> list[Finding]:
    """Check how many files this process may open; the default is the limit of the system."""
    if limit is None:
        try:
            import resource
        except ImportError:  # Windows, which has no such limit
            return [Finding("ok", "limits", "open files", "no limit is known here")]
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit == resource.RLIM_INFINITY:
            return [Finding("ok", "limits", "open files", "no limit")]
    fix = f"run 'ulimit -n {4 * _FILES[1]}' in the shell before tfx"
    row = Finding("ok", "limits", "open files", f"up to {limit:,} files")
    return [_graded(row, limit, _FILES, (fix, fix))]


def file_system_of(folder: Path) -> str:
    """Return the kind of file system that holds a folder, as ``ext4``; "" if it is not known."""
    folder = folder.resolve()
    try:
        mounted = psutil.disk_partitions(all=True)
    except OSError:
        return ""
    kinds = {
        len(Path(part.mountpoint).parts): part.fstype  # a later mount covers an earlier one
        for part in mounted
        # "autofs" marks where another file system will be mounted.
        if folder.is_relative_to(part.mountpoint) and part.fstype != "autofs"
    }
    return kinds[max(kinds)] if kinds else ""


def check_disk(
    folder: Path, *, kind: str | None = None, free: int | None = None
) -> tuple[list[Finding], dict[str, Any]]:
    """Check the disk that run folders are written to; the folder is left as it was.

    ``kind`` of file system and ``free`` bytes are read from the system by default. Returns rows,
    and folder, file system and free bytes.
    """
    nearest, free_now = free_space(folder)
    kind = file_system_of(nearest) if kind is None else kind
    free = free_now if free is None else free
    facts = {"folder": str(nearest), "file_system": kind, "free": free}
    fixes = (
        "make room, or work in a folder on another disk",
        "make room for large stores; train.keep_checkpoints = 1 saves some",
    )
    finding = f"{free / _GB:.1f} GB free in {nearest}"
    rows = [_graded(Finding("ok", "disk", "room", finding), free, _DISK, fixes), _check_kind(kind)]
    if os.access(nearest, os.W_OK):
        rows += _try_out(nearest)
    else:
        finding = f"you may not write to {nearest}"
        rows.append(Finding("fail", "disk", "writing", finding, "work in a folder of your own"))
    return rows, facts


def _check_kind(kind: str) -> Finding:
    if kind.startswith(_NETWORK):
        finding = f"{kind}, a network file system: reading cells is slow, locks may not hold"
        fix = "set data.store to a folder on a local disk; run folders may stay"
        return Finding("warn", "disk", "file system", finding, fix)
    if kind.startswith(_IN_MEMORY):
        finding = f"{kind}: files take up memory, and a restart deletes them"
        return Finding("warn", "disk", "file system", finding, "work in a folder on a disk")
    shared = ", shared by machines: suited to large files" * kind.startswith(_PARALLEL)
    return Finding("ok", "disk", "file system", f"{kind or 'of unknown kind'}{shared}")


def _try_out(folder: Path) -> list[Finding]:
    """Try once each operation that preparing and training rely on."""
    trials: dict[str, tuple[Callable[[Path], bool], str, str]] = {
        "whole files": (
            _renames_whole,
            "a renamed file keeps its old content",
            "a run could keep half a checkpoint",
        ),
        "appending": (_appends, "an appended line is missing", "run logs could lose lines"),
        "locks": (_locks_once, "a lock was given twice", "two processes could write one run"),
        "memory maps": (_maps, "a mapped file gives wrong values", "stores cannot be read"),
    }
    rows = []
    for name, (trial, symptom, consequence) in trials.items():
        problem = symptom
        try:
            with tempfile.TemporaryDirectory(prefix=".tfx-doctor-", dir=folder) as scratch:
                if trial(Path(scratch)):
                    continue
        except Exception as error:  # noqa: BLE001 - file systems fail in any way; it is a finding
            problem = one_line(error)
        finding = f"do not work here ({problem}): {consequence}"
        rows.append(Finding("fail", "disk", name, finding, "work on another file system"))
    if not rows:
        finding = "whole files, appending, locks and memory maps work"
        rows.append(Finding("ok", "disk", "writing", finding))
    return rows


def _renames_whole(folder: Path) -> bool:
    place = folder / "status.json"
    for content in ("old", "new"):
        with replacing(place) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    return place.read_text(encoding="utf-8") == "new"


def _appends(folder: Path) -> bool:
    path = folder / "metrics.jsonl"
    for line in (b"one\n", b"two\n"):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
    return path.read_bytes() == b"one\ntwo\n"


def _locks_once(folder: Path) -> bool:
    first, second = (filelock.FileLock(folder / "lock", timeout=0) for _ in range(2))
    with first:
        try:
            second.acquire()
        except filelock.Timeout:
            return True
        second.release()
    return False


def _maps(folder: Path) -> bool:
    path = folder / "values.npy"
    np.save(path, np.arange(1000))
    mapped = np.load(path, mmap_mode="r")
    last = int(mapped[999])
    del mapped  # some systems cannot delete a folder of open maps
    return last == 999
