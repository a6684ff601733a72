"""The checks together: what `tfx doctor` reports."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from core.machine_check.attention_rows import check_attention
from core.machine_check.compute import (
    check_compute,
    read_driver,
    read_torch,
    usable_devices,
)
from core.machine_check.memory import (
    check_gpu_memory,
    check_memory,
    check_open_files,
    read_memory,
)
from core.machine_check.packages import (
    check_extras,
    check_packages,
    check_python,
)
from core.machine_check.report import MachineReport, MachineRow
from core.machine_check.storage import check_storage
from core.machine_check.terminal import TerminalFacts, check_terminal

__all__ = ["check_machine"]


def check_machine(runs: Path, terminal: TerminalFacts) -> MachineReport:
    """Look at everything that tfx needs of a machine: a few seconds.

    Parameters
    ----------
    runs
        Folder of runs; need not be there. It is left as it was.
    terminal
        What is known of the terminal.
    """
    rows = check_python()
    package_rows, packages = check_packages()
    extra_rows, extras = check_extras()
    storage_rows, storage = check_storage(runs)
    memory = read_memory()
    rows += [*package_rows, *extra_rows, *storage_rows]
    rows += [*check_memory(memory), *check_open_files(), *check_terminal(terminal)]
    torch_rows, torch_facts = _try_torch()
    facts: dict[str, Any] = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": packages,
        "extras": extras,
        "memory": memory,
        "disk": storage,
        "terminal": dataclasses.asdict(terminal),
        **torch_facts,
    }
    return MachineReport.of([*rows, *torch_rows], facts)


def _try_torch() -> tuple[list[MachineRow], dict[str, Any]]:
    driver = read_driver()
    facts: dict[str, Any] = {"driver": dataclasses.asdict(driver), "torch": None, "gpus": []}
    try:
        torch_facts = read_torch()
    except Exception as error:  # noqa: BLE001 - a broken installation is a finding
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        fix = "install torch again, as pytorch.org says"
        return [MachineRow("fail", "compute", "torch", f"cannot be imported ({why})", fix)], facts
    rows = check_compute(torch_facts, driver)
    devices, device_rows = usable_devices()
    gpu_rows, gpus = check_gpu_memory()
    rows += [*device_rows, *check_attention(devices), *gpu_rows]
    return rows, facts | {"torch": dataclasses.asdict(torch_facts), "gpus": gpus}
