"""What was found out about the machine: rows of ok, warn or fail, and the facts behind them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from core.findings import FindingsReport, Level

__all__ = ["FAMILIES", "Family", "Level", "MachineReport", "MachineRow"]

Family = Literal["python", "compute", "attention", "memory", "disk", "terminal", "limits", "extras"]
#: In the order of a report.
FAMILIES: tuple[Family, ...] = (
    "python", "compute", "attention", "memory", "disk", "terminal", "limits", "extras",
)  # fmt: skip


@dataclass(frozen=True)
class MachineRow:
    """One finding.

    Attributes
    ----------
    level
        "ok"; "warn": slower, uglier or riskier than it need be; "fail": tfx cannot work so.
    family, check
        What was looked at.
    finding
        What is so, in one sentence without its full stop.
    fix
        What to do about it; "" where there is nothing to do.
    """

    level: Level
    family: Family
    check: str
    finding: str
    fix: str = ""


class MachineReport(FindingsReport[MachineRow]):
    """All findings about a machine; facts are versions, devices, sizes in bytes."""

    FAMILIES: ClassVar[tuple[str, ...]] = FAMILIES
