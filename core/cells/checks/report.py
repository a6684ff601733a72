"""What a check found: rows of ok, warn or fail, and the facts behind them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from core.errors import DataError, TfxError
from core.findings import Finding, FindingsReport, Level

__all__ = ["FAMILIES", "CheckReport", "CheckRow", "Family", "Level", "fault_row", "refuse_failures"]

Family = Literal["files", "matrix", "genes", "cells", "phenotypes", "donors", "cost"]
#: In the order of a report.
FAMILIES: tuple[Family, ...] = (
    "files", "matrix", "genes", "cells", "phenotypes", "donors", "cost",
)  # fmt: skip
#: Failures that one error message spells out.
_MOST_TOLD = 20


@dataclass(frozen=True)
class CheckRow(Finding):
    """One finding about cells, as listed in docs/check.md; "fail": prepare or train refuse."""

    #: The file or phenotype; "" for all.
    subject: str = ""

    @property
    def sentence(self) -> str:
        """Finding and fix in one sentence."""
        return f"{self.finding}; {self.fix}" if self.fix else self.finding


class CheckReport(FindingsReport[CheckRow]):
    """All findings about the cells of a preset; facts are files, cells, genes, splits, estimates."""

    FAMILIES: ClassVar[tuple[str, ...]] = FAMILIES

    def without(self, family: Family) -> "CheckReport":
        """Leave a family of checks out."""
        return CheckReport(tuple(row for row in self.rows if row.family != family), self.facts)


def fault_row(family: Family, check: str, error: TfxError | str, *, subject: str = "") -> CheckRow:
    """Make a row of what `tfx prepare` refuses, in its words.

    Its messages end with what to do, behind the last semicolon.
    """
    finding, _, fix = str(error).rpartition("; ")
    return CheckRow("fail", family, check, finding or fix, fix if finding else "", subject)


def refuse_failures(report: CheckReport) -> None:
    """Refuse cells that failed a check.

    Raises
    ------
    DataError
        A row is "fail"; the message lists all of them, one per line.
    """
    failures = report.of_level("fail")
    if not failures:
        return
    lines = [row.sentence for row in failures[:_MOST_TOLD]]
    if len(failures) > _MOST_TOLD:
        lines.append(f"and {len(failures) - _MOST_TOLD} more; 'tfx check' lists all")
    raise DataError("\n".join(lines))
