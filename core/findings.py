"""What a check finds: rows of ok, warn or fail in families, and the facts behind them.

`core.cells.checks` checks cells, `core.doctor` the machine.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

Level = Literal["ok", "warn", "fail"]
_SEVERITY: dict[Level, int] = {"ok": 0, "warn": 1, "fail": 2}


@dataclass(frozen=True)
class Finding:
    """One row of a report."""

    #: "warn": results may suffer; "fail": tfx cannot work.
    level: Level
    #: What was checked: the group of checks, and the check.
    family: str
    check: str
    #: What is true, as one sentence without its full stop.
    finding: str
    #: What to do about it; "" if there is nothing to do.
    fix: str = ""


_Row = TypeVar("_Row", bound=Finding)


@dataclass(frozen=True)
class FindingsReport(Generic[_Row]):
    """All rows of one kind of check, in the order of `FAMILIES`, and their facts as plain values."""

    #: Set by subclasses.
    FAMILIES: ClassVar[tuple[str, ...]] = ()

    rows: tuple[_Row, ...]
    facts: dict[str, Any]

    @classmethod
    def of(cls, rows: Iterable[_Row], facts: dict[str, Any]) -> Self:
        """Make a report of rows in any order."""
        ordered = sorted(rows, key=lambda row: cls.FAMILIES.index(row.family))
        return cls(tuple(ordered), facts)

    @property
    def level(self) -> Level:
        """The worst level of all rows."""
        return max((row.level for row in self.rows), key=_SEVERITY.__getitem__, default="ok")

    def of_level(self, level: Level) -> list[_Row]:
        """Return the rows of one level."""
        return [row for row in self.rows if row.level == level]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "level": self.level,
            "rows": [asdict(row) for row in self.rows],
            "facts": self.facts,
        }
