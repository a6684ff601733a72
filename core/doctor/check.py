"""All checks of the machine together."""

import dataclasses
import sys
from pathlib import Path
from typing import Any, ClassVar

from core.doctor import compute, packages, resources
from core.doctor.terminal import TerminalFacts, check_terminal
from core.findings import Finding, FindingsReport


class MachineReport(FindingsReport[Finding]):
    """All findings about a machine; facts are versions, devices, and sizes in bytes."""

    FAMILIES: ClassVar[tuple[str, ...]] = (
        *("python", "compute", "attention", "memory", "disk", "terminal", "limits", "extras"),
    )


def check_machine(runs: Path) -> MachineReport:
    """Check everything that tfx needs of a machine, in a few seconds.

    ``runs`` is the folder of runs. It need not exist, and it is left as it was.
    """
    package_rows, package_versions = packages.check_packages()
    extra_rows, extra_versions = packages.check_extras()
    disk_rows, disk = resources.check_disk(runs)
    memory = resources.read_memory()
    terminal = TerminalFacts.read()
    torch_rows, torch_facts = _check_torch()
    rows = [
        *packages.check_python(),
        *package_rows,
        *extra_rows,
        *disk_rows,
        *resources.check_memory(memory),
        *resources.check_open_files(),
        *check_terminal(terminal),
        *torch_rows,
    ]
    facts = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": package_versions,
        "extras": extra_versions,
        "memory": memory,
        "disk": disk,
        "terminal": dataclasses.asdict(terminal),
        **torch_facts,
    }
    return MachineReport.of(rows, facts)


def _check_torch() -> tuple[list[Finding], dict[str, Any]]:
    driver = compute.read_driver()
    facts: dict[str, Any] = {"driver": dataclasses.asdict(driver), "torch": None, "gpus": []}
    try:
        torch_facts = compute.read_torch()
    except Exception as error:  # noqa: BLE001 - a broken installation is a finding
        finding = f"cannot be imported ({compute.one_line(error)})"
        fix = "install torch again, as pytorch.org says"
        return [Finding("fail", "compute", "torch", finding, fix)], facts
    devices, device_rows = compute.usable_devices()
    gpu_rows, gpus = resources.check_gpu_memory()
    rows = [
        *compute.check_torch_and_driver(torch_facts, driver),
        *device_rows,
        *compute.check_attention(devices),
        *gpu_rows,
    ]
    return rows, facts | {"torch": dataclasses.asdict(torch_facts), "gpus": gpus}
