"""Thresholds for the measures of generated cells, and the verdict in plain sentences.

Thresholds are relative to the reference, what other real cells score, wherever possible.
docs/fidelity.md gives the reason for each.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from core.evaluation.report.records import Mark, Measured

#: With fewer matched cells, the verdict warns that there are few.
_ENOUGH = 1_000

Scores = Mapping[str, Mapping[str, Measured]]


@dataclass(frozen=True)
class Values:
    """What a threshold depends on: one measure of one method, and of those it is compared with."""

    key: str
    value: float
    #: Of other real cells.
    reference: float
    #: Of the copula; NaN without it, and when thresholds of other methods than "generated" are tested.
    copula: float
    #: "mmd2", "genes_mean" and "genes_sd": limits from the real cells.
    limits: Mapping[str, float]


#: Whether the value meets the threshold, and the threshold in words.
Test = Callable[[Values], tuple[bool, str]]


@dataclass(frozen=True)
class Rule:
    """One measure: its name in the report and in words, where good values are, its threshold.

    Near: near the value of the real cells.
    """

    key: str
    title: str
    better: Literal["low", "high", "near"]
    test: Test


def _at_least(fraction: float) -> Test:
    def test(at: Values) -> tuple[bool, str]:
        limit = fraction * at.reference
        return at.value >= limit, f">= {limit:.3f} ({fraction:g} of reference)"

    return test


def _within_r(at: Values) -> tuple[bool, str]:
    met, text = _at_least(0.8)(at)
    if math.isfinite(at.copula):
        return met and at.value > at.copula, f"{text} and > copula"
    return met, text


def _rf_auc(at: Values) -> tuple[bool, str]:
    limit = at.reference + 0.10
    met, text = at.value <= limit, f"<= {limit:.3f} (reference + 0.10)"
    if math.isfinite(at.copula):
        return met and at.value <= at.copula, f"{text} and <= copula"
    return met, text


def _mmd2(at: Values) -> tuple[bool, str]:
    limit = at.limits["mmd2"]
    return at.value <= limit, f"<= {limit:.4f} (95 % of real splits)"


def _gene_mean_r(at: Values) -> tuple[bool, str]:
    limit = at.reference - 0.005
    return at.value >= limit, f">= {limit:.3f} (reference - 0.005)"


def _dropout(at: Values) -> tuple[bool, str]:
    limit = at.reference + 0.005
    return at.value <= limit, f"<= {limit:.3f} (reference + 0.005)"


def _within_percent(percent: float) -> Test:
    def test(at: Values) -> tuple[bool, str]:
        real = at.limits[at.key]
        off = abs(at.value - real) / max(real, 1e-12)
        return off <= percent / 100, f"within {percent:g} % of {real:.1f}"

    return test


def _condition(at: Values) -> tuple[bool, str]:
    return abs(at.value - at.reference) <= 0.05, f"within 0.05 of {at.reference:.3f}"


def _between(low: float, high: float) -> Test:
    return lambda at: (low <= at.value <= high, f"{low:.2f} to {high:.2f}")


def _copies(at: Values) -> tuple[bool, str]:
    return at.value <= at.reference, f"<= {at.reference:.1f}" if at.reference else "0"


#: In the order of the report.
RULES = (
    Rule("rf_auc", "random-forest AUC", "low", _rf_auc),
    Rule("mmd2", "MMD²", "low", _mmd2),
    Rule("within_r", "within-class correlation r", "high", _within_r),
    Rule("within_slope", "within-class correlation slope", "high", _at_least(0.8)),
    Rule("gene_mean_r", "gene means r", "high", _gene_mean_r),
    Rule("dropout_mae", "dropout difference", "low", _dropout),
    Rule("genes_mean", "genes per cell (mean)", "near", _within_percent(5)),
    Rule("genes_sd", "genes per cell (sd)", "near", _within_percent(15)),
    Rule("recall", "recall", "high", _at_least(0.9)),
    Rule("coverage", "coverage", "high", _at_least(0.9)),
    Rule("condition_accuracy", "classified as requested", "near", _condition),
    Rule("nn_ratio", "distance to training cells", "near", _between(0.95, 1.10)),
    Rule("copies", "copies of training cells", "low", _copies),
    Rule("fold_change_slope", "log-fold change slope", "near", _between(0.9, 1.1)),
    Rule("fold_change_overlap", "top markers in common", "high", _at_least(0.9)),
    Rule("tstr_f1", "train on these (macro-F1 on real)", "high", _at_least(0.95)),
)


def mark_methods(scores: Scores, limits: Mapping[str, float]) -> dict[str, dict[str, Mark]]:
    """Compare every method with every threshold; method -> measure -> mark."""
    return {
        method: {rule.key: _mark(rule, method, scores, limits) for rule in RULES}
        for method in scores
    }


def _mark(rule: Rule, method: str, scores: Scores, limits: Mapping[str, float]) -> Mark:
    value, reference = scores[method][rule.key].value, scores["real"][rule.key].value
    if math.isnan(value) or math.isnan(reference):
        return Mark(None, "-")
    copula = math.nan
    if method == "generated" and "copula" in scores:
        copula = scores["copula"][rule.key].value
    met, text = rule.test(Values(rule.key, value, reference, copula, limits))
    return Mark(bool(met), text)


def verdict(scores: Scores, marks: Mapping[str, Mapping[str, Mark]], n_cells: int) -> list[str]:
    """Summarise the measures in sentences; ``n_cells``: matched cells on a side, of the smallest seed."""
    generated, reference = scores["generated"], scores["real"]
    met = {rule: marks["generated"][rule.key].met for rule in RULES}
    missed = [rule.title for rule, one in met.items() if one is False]
    n_met, n_decided = list(met.values()).count(True), len(met) - list(met.values()).count(None)
    auc, real_auc = generated["rf_auc"].value, reference["rf_auc"].value
    sentences = [
        f"{n_met} of {n_decided} thresholds are met"
        + (f"; not met: {', '.join(missed)}." if missed else "."),
        f"A random forest {_separates(auc, real_auc)}: AUC {auc:.3f}, where other real cells have "
        f"{real_auc:.3f}.",
    ]
    if "copula" in scores:
        sentences += _against_copula(generated, scores["copula"])
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


def _against_copula(generated: Mapping[str, Measured], copula: Mapping[str, Measured]) -> list[str]:
    """Name the measures in which an interval without 0 separates the model from the copula."""
    better, worse = [], []
    for rule in RULES:
        difference = generated[rule.key].minus_copula
        if rule.better == "near" or difference is None or math.isnan(difference.value):
            continue
        sign = 1 if rule.better == "high" else -1
        low, high = sorted(sign * one for one in difference.interval)
        pair = (
            f"{rule.title} ({generated[rule.key].value:.3f} against {copula[rule.key].value:.3f})"
        )
        if low > 0:
            better.append(pair)
        elif high < 0:
            worse.append(pair)
    sentences = []
    if worse:
        sentences.append(
            f"The Gaussian copula of each class is clearly better in: {', '.join(worse)}."
        )
    if better:
        sentences.append(f"They are clearly better than the copula in: {', '.join(better)}.")
    return sentences or ["Nothing separates them from the Gaussian copula of each class."]
