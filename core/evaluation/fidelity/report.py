"""The report on generated cells: its tables, for the page and the terminal, and its files."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from core.evaluation.fidelity.verdict import RULES, Rule
from core.evaluation.report.records import (
    ConditionLikelihood,
    Difference,
    FidelityReport,
    Measured,
    Rebalanced,
)
from core.evaluation.report.tables import ReportTable, bounds, show
from core.evaluation.report.writing import Picture, Section, render_page, write_report

#: Method -> its name in a table.
METHOD_NAMES = {
    "generated": "generated",
    "real": "real (reference)",
    "copula": "copula",
    "independent": "independent",
    "scvi": "scVI",
    "training": "training cells",
}
#: Measure -> digits shown, if three are not right.
_DIGITS = {"mmd2": 4, "genes_mean": 1, "genes_sd": 1, "copies": 1}
_MARKS = {True: "met", False: "NOT MET", None: "-"}


def write_fidelity_report(
    folder: Path, report: FidelityReport, pictures: Mapping[str, bytes]
) -> list[Path]:
    """Write report.html and report.json into a folder; ``pictures``: heading -> PNG."""
    sections = [
        Section("Measures", [measure_table(report, intervals=True)]),
        *(Section(heading, [Picture(png, heading)]) for heading, png in pictures.items()),
        Section("More measures", list(more_tables(report))),
    ]
    return write_report(folder, report, render_page(report, sections, verdict=report.verdict))


def measure_table(report: FidelityReport, *, intervals: bool) -> ReportTable:
    """Give every measure of every method, with the thresholds for generated cells.

    ``intervals``: with the intervals of the generated cells.
    """
    methods = _methods(report)
    generated = report.scores["generated"]
    rows = []
    for rule in RULES:
        digits = _DIGITS.get(rule.key, 3)
        texts = [show(report.scores[name][rule.key].value, digits=digits) for name in methods]
        if intervals:
            texts[0] += f" {bounds(generated[rule.key].interval, digits=digits)}"
        mark = report.marks["generated"][rule.key]
        rows.append([rule.title, *texts, mark.threshold, _MARKS[mark.met]])
    return ReportTable(
        "",
        "Each column is compared with the same held-out real cells, on equal numbers of cells of each "
        "class. Real (reference): other held-out real cells. Training cells: what copying them would score."
        + (" In brackets: 95 % bootstrap intervals over cells and seeds." if intervals else ""),
        ["measure", *(METHOD_NAMES[name] for name in methods), "threshold", ""],
        rows,
    )


def more_tables(report: FidelityReport) -> Iterator[ReportTable]:
    """Give the tables of the page alone."""
    methods = _methods(report)
    yield ReportTable(
        "The same thresholds for the other methods",
        "For the copula and the independent genes, without the thresholds that name the copula.",
        ["measure", *(METHOD_NAMES[name] for name in methods)],
        [
            [rule.title, *(_MARKS[report.marks[name][rule.key].met] for name in methods)]
            for rule in RULES
        ],
    )
    if "copula" in report.scores:
        yield ReportTable(
            "Generated minus copula",
            "On the same resamples of real cells. An interval without 0 separates the two.",
            ["measure", "difference", "low", "high", "better"],
            [_difference_row(rule, report.scores["generated"][rule.key]) for rule in RULES],
        )
    if report.likelihood is not None:
        yield _likelihood_table(report.likelihood)
    if report.rebalancing:
        yield _rebalancing_table(report.rebalancing)
    yield ReportTable(
        "Matched cells",
        "Cells of each class on a side, in the first seed.",
        ["class", "cells"],
        [[name, str(n)] for name, n in report.class_cells.items()],
    )


def _methods(report: FidelityReport) -> list[str]:
    return [name for name in METHOD_NAMES if name in report.scores]


def _difference_row(rule: Rule, measured: Measured) -> list[str]:
    better = "-"
    difference = measured.minus_copula
    if difference is not None and rule.better != "near":
        low, high = difference.interval
        if low > 0 or high < 0:
            better = "generated" if (low > 0) == (rule.better == "high") else "copula"
        elif low <= high:  # neither is NaN
            better = "not separated"
    return [rule.title, *_difference(difference, digits=_DIGITS.get(rule.key, 3)), better]


def _difference(difference: Difference | None, *, digits: int = 3) -> list[str]:
    if difference is None:
        return ["-"] * 3
    return [show(one, digits=digits) for one in (difference.value, *difference.interval)]


def _likelihood_table(likelihood: ConditionLikelihood) -> ReportTable:
    return ReportTable(
        "From the class alone",
        f"Nats per gene of {likelihood.n_cells:,} held-out cells, with all genes masked and the phenotypes "
        "of the class visible: lower is better. Class marginals: fractions of the class's training cells "
        "per bin.",
        ["model", "class marginals", "difference", "low", "high"],
        [
            [
                show(likelihood.model),
                show(likelihood.class_marginals),
                *_difference(likelihood.model_minus_class_marginals),
            ]
        ],
    )


def _rebalancing_table(ways: Mapping[str, Rebalanced]) -> ReportTable:
    return ReportTable(
        "Rare classes filled up",
        "A classifier of the class learns from real training cells: as they are, with equal weights of the "
        "classes, with cells of rare classes repeated, filled up by the copula, and filled up by generated "
        "cells. All are scored on the same held-out real cells; an interval without 0 separates a way from "
        "class weights.",
        [
            *("learnt from", "cells added", "balanced accuracy", "macro-F1"),
            *("minus class weights", "low", "high"),
        ],
        [
            [
                name,
                *map(show, (one.n_cells_added, one.balanced_accuracy, one.macro_f1)),
                *_difference(one.minus_class_weights),
            ]
            for name, one in ways.items()
        ],
    )
