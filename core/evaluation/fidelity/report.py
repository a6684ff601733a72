"""The report on generated cells: thresholds, the verdict in sentences, tables for page and terminal, files.

Thresholds are relative to the reference, what other real cells score, wherever possible.
docs/fidelity.md gives the reason for each.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.evaluation.report.records import Difference, FidelityReport, Mark, Measured
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
#: With fewer matched cells, the verdict warns that there are few.
_ENOUGH = 1_000
#: Measure -> digits shown, if three are not right.
_DIGITS = {"mmd2": 4, "genes_mean": 1, "genes_sd": 1, "copies": 1}
_MARKS = {True: "met", False: "NOT MET", None: "-"}
_COMPARE = {">": operator.gt, "<=": operator.le}

Scores = Mapping[str, Mapping[str, Measured]]
#: Value, reference and limit of a measure -> whether it meets the threshold, and the threshold in words.
Test = Callable[[float, float, float], tuple[bool, str]]

# -------------------------------------------------------------------------------------- thresholds


@dataclass(frozen=True)
class Rule:
    """One measure: its name in the report and in words, where good values are, its threshold."""

    key: str
    title: str
    #: Near: near the value of the real cells.
    better: Literal["low", "high", "near"]
    test: Test
    #: How generated cells have to compare with the copula, too.
    copula: Literal[">", "<="] | None = None


def _fraction(least: float) -> Test:
    return lambda value, reference, _: (
        value >= least * reference,
        f">= {least * reference:.3f} ({least:g} of reference)",
    )


def _offset(text: str) -> Test:
    """At most ("+ 0.1"), or at least ("- 0.1"), this offset from the reference."""
    offset = float(text.replace(" ", ""))
    sign, compare = ("<=", operator.le) if offset > 0 else (">=", operator.ge)
    return lambda value, reference, _: (
        compare(value, reference + offset),
        f"{sign} {reference + offset:.3f} (reference {text})",
    )


def _within_percent(percent: float) -> Test:
    return lambda value, _, limit: (
        abs(value - limit) / max(limit, 1e-12) <= percent / 100,
        f"within {percent:g} % of {limit:.1f}",
    )


def _between(low: float, high: float) -> Test:
    return lambda value, *_: (low <= value <= high, f"{low:.2f} to {high:.2f}")


def _mmd2(value: float, _: float, limit: float) -> tuple[bool, str]:
    return value <= limit, f"<= {limit:.4f} (95 % of real splits)"


def _condition(value: float, reference: float, _: float) -> tuple[bool, str]:
    return abs(value - reference) <= 0.05, f"within 0.05 of {reference:.3f}"


def _copies(value: float, reference: float, _: float) -> tuple[bool, str]:
    return value <= reference, f"<= {reference:.1f}" if reference else "0"


#: In the order of the report.
RULES = (
    Rule("rf_auc", "random-forest AUC", "low", _offset("+ 0.10"), "<="),
    Rule("mmd2", "MMD²", "low", _mmd2),
    Rule("within_r", "within-class correlation r", "high", _fraction(0.8), ">"),
    Rule("within_slope", "within-class correlation slope", "high", _fraction(0.8)),
    Rule("gene_mean_r", "gene means r", "high", _offset("- 0.005")),
    Rule("dropout_mae", "dropout difference", "low", _offset("+ 0.005")),
    Rule("genes_mean", "genes per cell (mean)", "near", _within_percent(5)),
    Rule("genes_sd", "genes per cell (sd)", "near", _within_percent(15)),
    Rule("recall", "recall", "high", _fraction(0.9)),
    Rule("coverage", "coverage", "high", _fraction(0.9)),
    Rule("condition_accuracy", "classified as requested", "near", _condition),
    Rule("nn_ratio", "distance to training cells", "near", _between(0.95, 1.10)),
    Rule("copies", "copies of training cells", "low", _copies),
    Rule("fold_change_slope", "log-fold change slope", "near", _between(0.9, 1.1)),
    Rule("fold_change_overlap", "top markers in common", "high", _fraction(0.9)),
    Rule("tstr_f1", "train on these (macro-F1 on real)", "high", _fraction(0.95)),
)


def mark_methods(scores: Scores, limits: Mapping[str, float]) -> dict[str, dict[str, Mark]]:
    """Compare every method with every threshold; method -> measure -> mark.

    ``limits``: "mmd2", "genes_mean" and "genes_sd", from the real cells.
    """
    return {
        method: {rule.key: _mark(rule, method, scores, limits) for rule in RULES}
        for method in scores
    }


def _mark(rule: Rule, method: str, scores: Scores, limits: Mapping[str, float]) -> Mark:
    value, reference = scores[method][rule.key].value, scores["real"][rule.key].value
    if math.isnan(value) or math.isnan(reference):
        return Mark(None, "-")
    met, text = rule.test(value, reference, limits.get(rule.key, math.nan))
    if rule.copula and method == "generated" and "copula" in scores:
        copula = scores["copula"][rule.key].value
        if math.isfinite(copula):
            met = met and _COMPARE[rule.copula](value, copula)
            text += f" and {rule.copula} copula"
    return Mark(bool(met), text)


# ----------------------------------------------------------------------------------------- verdict


def verdict(scores: Scores, marks: Mapping[str, Mapping[str, Mark]], n_cells: int) -> list[str]:
    """Summarise the measures in sentences; ``n_cells``: matched cells on a side, of the smallest seed."""
    generated, reference = scores["generated"], scores["real"]
    met = [marks["generated"][rule.key].met for rule in RULES]
    missed = [rule.title for rule, one in zip(RULES, met, strict=True) if one is False]
    auc, real_auc = generated["rf_auc"].value, reference["rf_auc"].value
    sentences = [
        f"{met.count(True)} of {len(met) - met.count(None)} thresholds are met"
        + (f"; not met: {', '.join(missed)}." if missed else "."),
        f"A random forest {_separates(auc, real_auc)}: AUC {auc:.3f}, where other real cells have "
        f"{real_auc:.3f}.",
    ]
    if "copula" in scores:
        better: dict[str, list[str]] = {"copula": [], "generated": []}
        for rule in RULES:
            values = (scores[method][rule.key].value for method in ("generated", "copula"))
            text = "{} ({:.3f} against {:.3f})".format(rule.title, *values)
            better.setdefault(_better(rule, generated[rule.key].minus_copula), []).append(text)
        if better["copula"]:
            names = ", ".join(better["copula"])
            sentences.append(f"The Gaussian copula of each class is clearly better in: {names}.")
        if better["generated"]:
            names = ", ".join(better["generated"])
            sentences.append(f"They are clearly better than the copula in: {names}.")
        if not (better["copula"] or better["generated"]):
            sentences.append("Nothing separates them from the Gaussian copula of each class.")
    copies = generated["copies"].value
    if copies > 0:
        sentences.append(
            f"On average {copies:.1f} cells of a side equal a training cell in every bin; of held-out "
            f"real cells {reference['copies'].value:.1f} do."
        )
    if n_cells < _ENOUGH:
        sentences.append(
            f"Only {n_cells:,} cells of a side could be matched ({_ENOUGH:,} are better): look at the "
            "intervals rather than at the thresholds."
        )
    return sentences


def _separates(auc: float, real_auc: float) -> str:
    if auc <= real_auc + 0.03:
        return "separates them from real cells hardly better than it separates real cells"
    if auc <= real_auc + 0.10:
        return "finds a difference between them and real cells"
    if auc <= 0.9:
        return "often separates them from real cells"
    return "separates nearly all of them from real cells"


def _better(rule: Rule, minus_copula: Difference | None) -> str:
    """Return the better of generated cells and copula, if an interval without 0 separates them."""
    if minus_copula is None or rule.better == "near":
        return "-"
    low, high = minus_copula.interval
    if low > 0 or high < 0:
        return "generated" if (low > 0) == (rule.better == "high") else "copula"
    return "not separated" if low <= high else "-"  # "-": NaN


# --------------------------------------------------------------------------------- tables and files


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
    """Give every measure of every method, with thresholds and ``intervals`` of the generated cells."""
    methods = _methods(report)
    rows = []
    for rule in RULES:
        digits = _DIGITS.get(rule.key, 3)
        texts = [show(report.scores[name][rule.key].value, digits=digits) for name in methods]
        if intervals:
            interval = report.scores["generated"][rule.key].interval
            texts[0] += f" {bounds(interval, digits=digits)}"
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
        differences = [report.scores["generated"][rule.key].minus_copula for rule in RULES]
        yield ReportTable(
            "Generated minus copula",
            "On the same resamples of real cells. An interval without 0 separates the two.",
            ["measure", "difference", "low", "high", "better"],
            [
                [rule.title, *_difference(one, _DIGITS.get(rule.key, 3)), _better(rule, one)]
                for rule, one in zip(RULES, differences, strict=True)
            ],
        )
    if (likelihood := report.likelihood) is not None:
        nats = [show(likelihood.model), show(likelihood.class_marginals)]
        yield ReportTable(
            "From the class alone",
            f"Nats per gene of {likelihood.n_cells:,} held-out cells, with all genes masked and the "
            "phenotypes of the class visible: lower is better. Class marginals: fractions of the class's "
            "training cells per bin.",
            ["model", "class marginals", "difference", "low", "high"],
            [[*nats, *_difference(likelihood.model_minus_class_marginals)]],
        )
    if report.rebalancing:
        header = ("learnt from", "cells added", "balanced accuracy", "macro-F1")
        yield ReportTable(
            "Rare classes filled up",
            "A classifier of the class learns from real training cells: as they are, with equal weights of "
            "the classes, with cells of rare classes repeated, filled up by the copula, and filled up by "
            "generated cells. All are scored on the same held-out real cells; an interval without 0 "
            "separates a way from class weights.",
            [*header, "minus class weights", "low", "high"],
            [
                [
                    name,
                    *map(show, (one.n_cells_added, one.balanced_accuracy, one.macro_f1)),
                    *_difference(one.minus_class_weights),
                ]
                for name, one in report.rebalancing.items()
            ],
        )
    yield ReportTable(
        "Matched cells",
        "Cells of each class on a side, in the first seed.",
        ["class", "cells"],
        [[name, str(n)] for name, n in report.class_cells.items()],
    )


def _methods(report: FidelityReport) -> list[str]:
    return [name for name in METHOD_NAMES if name in report.scores]


def _difference(difference: Difference | None, digits: int = 3) -> list[str]:
    if difference is None:
        return ["-"] * 3
    return [show(one, digits=digits) for one in (difference.value, *difference.interval)]
