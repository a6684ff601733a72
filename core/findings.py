"""What a check found: rows of ok, warn or fail in families, and the facts behind them.

`core.cells.checks` looks at cells in this form, `core.machine_check` at the machine.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

__all__ = ["FindingsReport", "Level"]

Level = Literal["ok", "warn", "fail"]
_SEVERITY: dict[Level, int] = {"ok": 0, "warn": 1, "fail": 2}


class _Row(Protocol):
    """A finding: a frozen dataclass with at least these fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def level(self) -> Level: ...

    @property
    def family(self) -> str: ...


_AnyRow = TypeVar("_AnyRow", bound=_Row)


@dataclass(frozen=True)
class FindingsReport(Generic[_AnyRow]):
    """All findings of one kind of check.

    Attributes
    ----------
    rows
        In the order of `FAMILIES`.
    facts
        What the rows were made from, as nested plain values.
    """

    #: The families in the order of a report; given by subclasses.
    FAMILIES: ClassVar[tuple[str, ...]] = ()

    rows: tuple[_AnyRow, ...]
    facts: dict[str, Any]

    @classmethod
    def of(cls, rows: Iterable[_AnyRow], facts: dict[str, Any]) -> Self:
        """Make a report of rows in any order."""
        ordered = sorted(rows, key=lambda row: cls.FAMILIES.index(row.family))
        return cls(tuple(ordered), facts)

    @property
    def level(self) -> Level:
        """The worst level of all rows."""
        return max((row.level for row in self.rows), key=_SEVERITY.__getitem__, default="ok")

    def of_level(self, level: Level) -> list[_AnyRow]:
        """Rows of one level."""
        return [row for row in self.rows if row.level == level]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "level": self.level,
            "rows": [asdict(row) for row in self.rows],
            "facts": self.facts,
        }
