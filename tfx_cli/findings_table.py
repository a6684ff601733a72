"""Findings as a table: families, rows of ok, warn or fail with their fix, and a verdict."""

from typing import TYPE_CHECKING, Any

from tfx_cli.output import make_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType
    from rich.text import Text

    from core.findings import FindingsReport

__all__ = ["findings_text"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def findings_text(
    report: "FindingsReport[Any]", rows: "Iterable[tuple[Any, int]]"
) -> "Iterator[RenderableType]":
    """Make the table of a report and its verdict.

    Parameters
    ----------
    report
        For the verdict.
    rows
        The rows to show, and how many more like it follow each that are not shown.
    """
    from rich.text import Text

    cells: list[list[object]] = []
    family = ""
    for row, n_more in rows:
        if row.family != family:
            family = row.family
            cells.append([Text(family, style="bold"), "", ""])
        cells.append([Text(f"  {row.level}", style=_COLOURS[row.level]), row.check, _told(row)])
        if n_more:
            cells.append(["", "", f"... and {n_more:,} more like it (--json lists all)"])
    yield make_table(["", "check", "finding"], cells)
    yield ""
    yield _verdict(report)


def _told(row: Any) -> "Text":  # noqa: ANN401 - a row of any report
    from rich.text import Text

    text = Text(row.finding, overflow="fold")  # a path is not cut
    if row.fix:
        text.append(f"\n-> {row.fix}", style="cyan")
    return text


def _verdict(report: "FindingsReport[Any]") -> str:
    n_failures, n_warnings = len(report.of_level("fail")), len(report.of_level("warn"))
    warnings = f"{n_warnings} warning{'s' * (n_warnings != 1)}"
    if n_failures:
        return f"not fit: {n_failures} failure{'s' * (n_failures != 1)}, {warnings}"
    return f"fit, with {warnings} to look at" if n_warnings else "fit"
