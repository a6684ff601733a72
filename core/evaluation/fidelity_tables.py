"""The tables of a report on generated cells as text, for the page and the terminal alike."""

from collections.abc import Iterator, Mapping
from typing import Any

from core.evaluation.fidelity_verdict import RULES
from core.evaluation.report_tables import ReportTable, show

__all__ = ["METHOD_NAMES", "fidelity_tables"]

Record = Mapping[str, Any]

#: Method -> what it is called in a table.
METHOD_NAMES = {
    "generated": "generated",
    "real": "real (floor)",
    "copula": "copula",
    "independent": "independent",
    "scvi": "scVI",
    "training": "training cells",
}
#: Measure -> digits shown, where three are not right.
_DIGITS = {"mmd2": 4, "genes_mean": 1, "genes_sd": 1, "copies": 1}
_MARKS = {True: "won", False: "LOST", None: "-"}


def fidelity_tables(report: Record, *, intervals: bool) -> Iterator[ReportTable]:
    """Give the tables of a report.

    Parameters
    ----------
    report
        See `core.evaluation.fidelity_report`.
    intervals
        With the intervals of the generated cells, and the tables that fit a page alone.
    """
    scores: Mapping[str, Record] = report["scores"]
    methods = [name for name in METHOD_NAMES if name in scores]
    rows = []
    for rule in RULES:
        mark = report["marks"]["generated"][rule.key]
        texts = [_value(scores[name], rule.key) for name in methods]
        if intervals:
            low, high = scores["generated"][rule.key]["interval"]
            digits = _DIGITS.get(rule.key, 3)
            texts[0] += f" [{show(low, digits=digits)}, {show(high, digits=digits)}]"
        rows.append([rule.title, *texts, mark["threshold"], _MARKS[mark["won"]]])
    yield ReportTable(
        "",
        "Each column against the same unseen real cells, on equal numbers of cells of each class. "
        "Real (floor): other unseen real cells. Training cells: what copying them would score."
        + (" In brackets 95 % bootstrap intervals over cells and seeds." if intervals else ""),
        ["measure", *(METHOD_NAMES[name] for name in methods), "threshold", ""],
        rows,
    )
    if not intervals:
        return
    yield ReportTable(
        "The same thresholds for the others",
        "Won or lost; of the copula's and the independent genes' own thresholds those that name the "
        "copula are left out.",
        ["measure", *(METHOD_NAMES[name] for name in methods)],
        [
            [rule.title, *(_MARKS[report["marks"][name][rule.key]["won"]] for name in methods)]
            for rule in RULES
        ],
    )
    if "copula" in scores:
        yield ReportTable(
            "Generated minus copula",
            "On the same resamples of real cells. An interval without 0 separates the two.",
            ["measure", "difference", "low", "high", "better"],
            [_lead(rule.key, rule.title, rule.better, scores["generated"]) for rule in RULES],
        )
    if report.get("likelihood"):
        yield _likelihood(report["likelihood"])
    if report.get("rebalancing"):
        yield _rebalancing(report["rebalancing"])
    yield ReportTable(
        "Matched cells",
        "Of each class on a side, in the first seed.",
        ["class", "cells"],
        [[name, str(n)] for name, n in report["class_cells"].items()],
    )


def _likelihood(found: Record) -> ReportTable:
    lead = found["model_minus_class_marginals"]
    numbers = [found["model"], found["class_marginals"], lead["value"], *lead["interval"]]
    return ReportTable(
        "From the class alone",
        f"Nats per gene of {found['cells']:,} unseen cells, all genes hidden and the phenotypes of the class "
        "shown: lower is better. Class marginals are the shares of training cells of the class per bin.",
        ["model", "class marginals", "difference", "low", "high"],
        [[show(number) for number in numbers]],
    )


def _rebalancing(ways: Record) -> ReportTable:
    return ReportTable(
        "Rare classes filled up",
        "A classifier of the class learns from real training cells: as they are, with classes weighing the "
        "same, with cells of rare classes repeated, filled up by the copula, filled up by generated "
        "cells. All are asked about the same unseen real cells; an interval without 0 separates a way "
        "from class weights.",
        ["learnt from", "cells added", "balanced accuracy", "macro-F1", "minus class weights", "low",
         "high"],
        [
            [
                name,
                show(one["cells_added"]),
                show(one["balanced_accuracy"]),
                show(one["macro_f1"]),
                show(one["minus_class_weights"]["value"]),
                *map(show, one["minus_class_weights"]["interval"]),
            ]
            for name, one in ways.items()
        ],
    )  # fmt: skip


def _value(scores: Record, key: str) -> str:
    return show(scores[key]["value"], digits=_DIGITS.get(key, 3))


def _lead(key: str, title: str, better: str, scores: Record) -> list[str]:
    lead = scores[key].get("minus_copula") or {"value": None, "interval": (None, None)}
    low, high = lead["interval"]
    verdict = "-"
    if better != "near" and low is not None and high is not None:
        verdict = "not separated"
        if low > 0 or high < 0:
            verdict = "generated" if (low > 0) == (better == "high") else "copula"
    digits = _DIGITS.get(key, 3)
    return [title, *(show(one, digits=digits) for one in (lead["value"], low, high)), verdict]
