"""What was found out about the machine: rows of ok, warn or fail, and the facts behind them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["FAMILIES", "Family", "Level", "MachineReport", "MachineRow"]

Level = Literal["ok", "warn", "fail"]
Family = Literal["python", "compute", "attention", "memory", "disk", "terminal", "limits", "extras"]
#: In the order of a report.
FAMILIES: tuple[Family, ...] = (
    "python", "compute", "attention", "memory", "disk", "terminal", "limits", "extras",
)  # fmt: skip
_SEVERITY: dict[Level, int] = {"ok": 0, "warn": 1, "fail": 2}


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


@dataclass(frozen=True)
class MachineReport:
    """All findings about a machine.

    Attributes
    ----------
    rows
        In the order of `FAMILIES`.
    facts
        Versions, devices, sizes in bytes, as nested plain values.
    """

    rows: tuple[MachineRow, ...]
    facts: dict[str, Any]

    @classmethod
    def of(cls, rows: Iterable[MachineRow], facts: dict[str, Any]) -> "MachineReport":
        """Make a report of rows in any order."""
        ordered = sorted(rows, key=lambda row: FAMILIES.index(row.family))
        return cls(tuple(ordered), facts)

    @property
    def level(self) -> Level:
        """The worst level of all rows."""
        return max((row.level for row in self.rows), key=_SEVERITY.__getitem__, default="ok")

    def of_level(self, level: Level) -> list[MachineRow]:
        """Rows of one level."""
        return [row for row in self.rows if row.level == level]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "level": self.level,
            "rows": [asdict(row) for row in self.rows],
            "facts": self.facts,
        }
