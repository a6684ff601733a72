"""Rows about cells, and the report they make."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from core.errors import DataError, TfxError
from core.findings import Finding, FindingsReport, Level

if TYPE_CHECKING:
    from core.cells.cell_labels import CellLabels
    from core.cells.checks.survey import FileSummary
    from core.cells.gene_join import GeneJoin

Family = Literal["files", "matrix", "genes", "cells", "phenotypes", "donors", "cost"]
#: Failures that one error message lists.
_MOST_LISTED = 20


@dataclass(frozen=True)
class CheckRow(Finding):
    """One finding about cells, as listed in docs/check.md; "fail": prepare and train stop."""

    #: The file or phenotype; "" for all.
    subject: str = ""

    @property
    def sentence(self) -> str:
        """Finding and fix in one sentence."""
        return f"{self.finding}; {self.fix}" if self.fix else self.finding


class Rows(list[CheckRow]):
    """The rows of one family of checks; the finding begins with its subject, if it has one."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self._family = family

    def _add(self, level: Level, check: str, finding: str, fix: str, subject: str) -> None:
        finding = f"{subject}: {finding}" if subject else finding
        self.append(CheckRow(level, self._family, check, finding, fix, subject))

    def ok(self, check: str, finding: str, subject: str = "") -> None:
        """Add what is as it should be."""
        self._add("ok", check, finding, "", subject)

    def warn(self, check: str, finding: str, fix: str, subject: str = "") -> None:
        """Add what may make results worse."""
        self._add("warn", check, finding, fix, subject)

    def fail(self, check: str, finding: str, fix: str, subject: str = "") -> None:
        """Add what stops prepare and train."""
        self._add("fail", check, finding, fix, subject)

    def has_warned(self, check: str) -> bool:
        """Whether a check has warned."""
        return any((row.check, row.level) == (check, "warn") for row in self)


def fault_row(family: Family, check: str, error: TfxError, subject: str = "") -> CheckRow:
    """Make a failure of an error of `tfx prepare`, whose message ends with "; " and the fix."""
    finding, _, fix = str(error).rpartition("; ")
    return CheckRow("fail", family, check, finding or fix, fix if finding else "", subject)


@dataclass(frozen=True)
class CheckReport(FindingsReport[CheckRow]):
    """All findings about the cells of a preset; facts are files, cells, genes, splits, estimates."""

    #: What was read of each file.
    files: tuple["FileSummary", ...] = ()
    #: Genes and labels as `tfx prepare` makes them; None if it would stop.
    join: "GeneJoin | None" = None
    labels: "CellLabels | None" = None

    FAMILIES: ClassVar[tuple[str, ...]] = get_args(Family)

    def without(self, family: Family) -> "CheckReport":
        """Leave out a family of checks."""
        return replace(self, rows=tuple(row for row in self.rows if row.family != family))

    def raise_failures(self) -> None:
        """Raise a DataError that lists the rows that fail, one per line, if there are any."""
        failures = self.of_level("fail")
        lines = [row.sentence for row in failures[:_MOST_LISTED]]
        if len(failures) > _MOST_LISTED:
            lines.append(f"and {len(failures) - _MOST_LISTED} more; 'tfx check' lists all")
        if lines:
            raise DataError(*lines)
