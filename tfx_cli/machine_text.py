"""What the machine of a run said of itself, in words."""

from collections.abc import Mapping
from typing import Any

from core.runlog.json_lines import number_in
from core.wording import size

__all__ = ["gpu_text", "machine_text"]


def machine_text(line: Mapping[str, Any]) -> str:
    """Write what a machine said of itself, a line of system-HOST.jsonl; what it lacks is left out."""
    parts = []
    cpu, own = number_in(line, "cpu_percent"), number_in(line, "process_cpu_percent")
    if cpu is not None:
        parts.append(f"CPU {cpu:.0f} %")
    if own is not None:
        parts.append(f"this process {own:.0f} % of one core")
    parts += _memory(line, "process_memory", "memory_total")
    disk = number_in(line, "disk_free")
    if disk is not None:
        parts.append(f"{size(disk)} of disk free")
    return ", ".join(parts)


def gpu_text(gpu: Mapping[str, Any]) -> str:
    """Write one of its GPUs."""
    parts = [str(gpu["name"])] if gpu.get("name") else []
    use, degrees = number_in(gpu, "utilisation_percent"), number_in(gpu, "temperature")
    if use is not None:
        parts.append(f"{use:.0f} % in use")
    parts += _memory(gpu, "memory_used", "memory_total")
    peak = number_in(gpu, "memory_peak")
    if peak is not None:
        parts.append(f"at most {size(peak)} by this run")
    if degrees is not None:
        parts.append(f"{degrees:.0f} °C")
    power = number_in(gpu, "power")
    if power is not None:
        parts.append(f"{power:.0f} W")
    return ", ".join(parts)


def _memory(line: Mapping[str, Any], used_key: str, total_key: str) -> list[str]:
    used, total = number_in(line, used_key), number_in(line, total_key)
    if used is None:
        return []
    return [f"{size(used)} of memory" + (f" ({size(total)})" if total else "")]
