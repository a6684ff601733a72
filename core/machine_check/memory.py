"""Memory and open files: what this process may take, limits of containers and shells included."""

from pathlib import Path
from typing import Any

import psutil

from core.machine_check.report import MachineRow

__all__ = ["check_gpu_memory", "check_memory", "check_open_files", "read_memory"]

_GB = 10**9
#: `import torch, scanpy` alone takes 0.6 GB; base.toml trains in 1.4.
_LEAST_MEMORY, _GOOD_MEMORY = 1 * _GB, 3 * _GB
_GOOD_GPU_MEMORY = 4 * _GB
#: Shards, sockets of worker processes and libraries; many systems start with 1,024 or 256.
_LEAST_FILES, _GOOD_FILES = 128, 1024
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


def read_memory() -> dict[str, int]:
    """Return ``total`` and ``available`` bytes, as far as a container lets this process go."""
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
    except (OSError, ValueError):  # no such limit ("max"), or another system
        return None


def check_memory(memory: dict[str, int]) -> list[MachineRow]:
    """Check main memory.

    Parameters
    ----------
    memory
        Of `read_memory`.
    """
    available, total = memory["available"], memory["total"]
    finding = f"{available / _GB:.1f} of {total / _GB:.1f} GB available"
    if available < _LEAST_MEMORY:
        fix = "end other programs, or ask your scheduler for 4 GB"
        return [MachineRow("fail", "memory", "RAM", finding, fix)]
    if available < _GOOD_MEMORY:
        fix = "end other programs, or keep to few genes (data.genes) and small batches"
        return [MachineRow("warn", "memory", "RAM", finding, fix)]
    return [MachineRow("ok", "memory", "RAM", finding)]


def check_gpu_memory() -> tuple[list[MachineRow], list[dict[str, Any]]]:
    """Check the memory of each GPU that torch sees.

    Returns
    -------
    Rows, and name, total and free bytes of each GPU; both empty without.
    """
    import torch

    rows: list[MachineRow] = []
    facts: list[dict[str, Any]] = []
    if not torch.cuda.is_available():
        return rows, facts
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        facts.append({"name": torch.cuda.get_device_name(index), "total": total, "free": free})
        finding = f"{free / _GB:.1f} of {total / _GB:.1f} GB free"
        if free < min(_GOOD_GPU_MEMORY, total / 2):
            fix = "see with nvidia-smi who holds it, or choose another by CUDA_VISIBLE_DEVICES"
            rows.append(MachineRow("warn", "memory", f"GPU {index}", finding, fix))
        else:
            rows.append(MachineRow("ok", "memory", f"GPU {index}", finding))
    return rows, facts


def check_open_files(soft: int | None = None) -> list[MachineRow]:
    """Check how many files this process may have open.

    Parameters
    ----------
    soft
        The limit in force; default: ask the system.
    """
    if soft is None:
        try:
            import resource
        except ImportError:  # Windows, which has no such limit
            return [MachineRow("ok", "limits", "open files", "no limit is known here")]
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft == resource.RLIM_INFINITY:
            return [MachineRow("ok", "limits", "open files", "no limit")]
    finding = f"up to {soft:,} files"
    fix = f"run 'ulimit -n {4 * _GOOD_FILES}' in the shell before tfx"
    if soft < _LEAST_FILES:
        return [MachineRow("fail", "limits", "open files", finding, fix)]
    if soft < _GOOD_FILES:
        return [MachineRow("warn", "limits", "open files", finding, fix)]
    return [MachineRow("ok", "limits", "open files", finding)]
