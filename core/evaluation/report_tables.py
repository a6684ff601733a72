"""The tables of an evaluation report as text, for the page and the terminal alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ReportTable", "label_of", "phenotype_tables", "show"]

_MEASURES = ("accuracy", "balanced_accuracy", "macro_f1")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class ReportTable:
    """A table of text.

    Attributes
    ----------
    title, note
        What stands above it, and the explanation below the title; may be empty.
    header, rows
        One text per column.
    n_labels
        Columns at the left that hold no numbers.
    """

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    n_labels: int = 1


def phenotype_tables(report: Record) -> Iterator[ReportTable]:
    """Give the tables about phenotypes that a report has figures for."""
    phenotypes: Mapping[str, Mapping[str, Record]] = report.get("phenotypes") or {}
    if not phenotypes:
        return
    rows = [
        [
            phenotype,
            label_of(method),
            *(_with_interval(scores, measure) for measure in _MEASURES),
            show(scores.get("top3_accuracy")),
            show(scores.get("n_cells")),
        ]
        for phenotype, methods in phenotypes.items()
        for method, scores in methods.items()
    ]
    note = "All genes visible, all phenotypes hidden. In brackets 95 % bootstrap intervals."
    header = ["phenotype", "method", *map(label_of, _MEASURES), "top 3", "cells"]
    yield ReportTable("", note, header, rows, 2)
    yield from _trust(phenotypes)


def _trust(phenotypes: Mapping[str, Mapping[str, Record]]) -> Iterator[ReportTable]:
    """How far the model's own probabilities and its mean over cells can be trusted."""
    rows = []
    for phenotype, methods in phenotypes.items():
        ours = methods.get("model", {})
        if not ours.get("calibration"):
            continue
        calibration, donors = ours["calibration"], ours.get("over_donors") or {}
        rows.append(
            [
                phenotype,
                show(calibration["error"]),
                show(calibration["overconfidence"]),
                show(donors.get("donors")),
                *(show(donors.get(one)) for one in ("min", "median", "max")),
                show(ours.get("mean_years_off"), digits=1),
            ]
        )
    if rows:
        yield ReportTable(
            "Calibration and donors",
            "The model alone: calibration error (ECE), mean confidence minus accuracy, accuracy of "
            "the worst, middle and best donor, mean years off.",
            ["phenotype", "ECE", "overconfidence", "donors", "min", "median", "max", "years off"],
            rows,
        )


def _with_interval(scores: Record, measure: str) -> str:
    bounds = (scores.get("intervals") or {}).get(measure)
    text = show(scores.get(measure))
    return f"{text} [{show(bounds[0])}, {show(bounds[1])}]" if bounds else text


def show(value: Any, *, digits: int = 3) -> str:  # noqa: ANN401 (any JSON value)
    """Put a value of a report into a table; what is not known is a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{round(value, digits) + 0.0:.{digits}f}"  # no "-0.000"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(show, value))
    return str(value)


def label_of(key: str) -> str:
    """Return a key of the report as words."""
    return key.replace("_", " ")
