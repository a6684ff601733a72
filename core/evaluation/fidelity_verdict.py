"""What the figures of generated cells are worth: thresholds, won or lost, and plain sentences.

The thresholds are relative to what other real cells score wherever they can be. docs/fidelity.md gives
the reason for each.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from core.evaluation.fidelity_protocol import Measured, ProtocolResult

__all__ = ["RULES", "Mark", "Rule", "mark_methods", "verdict"]

#: Matched cells below which the verdict says that there are few.
_ENOUGH = 1_000

#: Method -> measure -> value.
Values = Mapping[str, Mapping[str, float]]
Limits = Mapping[str, float]
#: (own value, values of all methods, limits, method) -> whether it is met, and the threshold in words.
Test = Callable[[float, Values, Limits, str], tuple[bool, str]]


@dataclass(frozen=True)
class Rule:
    """One measure and what it must be.

    Attributes
    ----------
    key
        The measure's name in the report.
    title
        In a few words.
    better
        "low", "high" or "near": where good values lie. Near means near the real cells' value.
    test
        The threshold.
    """

    key: str
    title: str
    better: str
    test: Test


@dataclass(frozen=True)
class Mark:
    """Whether a method meets a threshold (None: cannot be told), and the threshold in words."""

    won: bool | None
    threshold: str

    def to_dict(self) -> dict[str, bool | str | None]:
        """Return plain values."""
        return {"won": self.won, "threshold": self.threshold}


def _floor_share(share: float, key: str) -> Test:
    def test(value: float, values: Values, limits: Limits, method: str) -> tuple[bool, str]:
        limit = share * values["real"][key]
        return value >= limit, f">= {limit:.3f} ({share:g} of floor)"

    return test


def _within_r(value: float, values: Values, limits: Limits, method: str) -> tuple[bool, str]:
    won, text = _floor_share(0.8, "within_r")(value, values, limits, method)
    rival = values.get("copula", {}).get("within_r", math.nan)
    if method == "generated" and math.isfinite(rival):
        return won and value > rival, f"{text} and > copula"
    return won, text


def _rf_auc(value: float, values: Values, limits: Limits, method: str) -> tuple[bool, str]:
    limit = values["real"]["rf_auc"] + 0.10
    rival = values.get("copula", {}).get("rf_auc", math.nan)
    if method == "generated" and math.isfinite(rival):
        return value <= limit and value <= rival, f"<= {limit:.3f} (floor + 0.10) and <= copula"
    return value <= limit, f"<= {limit:.3f} (floor + 0.10)"


def _mmd2(value: float, values: Values, limits: Limits, method: str) -> tuple[bool, str]:
    return value <= limits["mmd2"], f"<= {limits['mmd2']:.4f} (95 % of real splits)"


def _mean_r(value: float, values: Values, limits: Limits, method: str) -> tuple[bool, str]:
    limit = values["real"]["gene_mean_r"] - 0.005
    return value >= limit, f">= {limit:.3f} (floor - 0.005)"


def _dropout(value: float, values: Values, limits: Limits, method: str) -> tuple[bool, str]:
    limit = values["real"]["dropout_mae"] + 0.005
    return value <= limit, f"<= {limit:.3f} (floor + 0.005)"


def _within_percent(percent: float, key: str) -> Test:
    def test(value: float, values: Values, limits: Limits, method: str) -> tuple[bool, str]:
        real = limits[key]
        off = abs(value - real) / max(real, 1e-12)
        return off <= percent / 100, f"within {percent:g} % of {real:.1f}"

    return test


def _condition(value: float, values: Values, limits: Limits, method: str) -> tuple[bool, str]:
    real = values["real"]["condition_accuracy"]
    return abs(value - real) <= 0.05, f"within 0.05 of {real:.3f}"


def _between(low: float, high: float) -> Test:
    def test(value: float, values: Values, limits: Limits, method: str) -> tuple[bool, str]:
        return low <= value <= high, f"{low:.2f} to {high:.2f}"

    return test


def _copies(value: float, values: Values, limits: Limits, method: str) -> tuple[bool, str]:
    limit = values["real"]["copies"]
    return value <= limit, f"<= {limit:.1f}" if limit else "0"


#: In the order of the report.
RULES: tuple[Rule, ...] = (
    Rule("rf_auc", "random-forest AUC", "low", _rf_auc),
    Rule("mmd2", "MMD²", "low", _mmd2),
    Rule("within_r", "within-class correlation r", "high", _within_r),
    Rule("within_slope", "within-class correlation slope", "high", _floor_share(0.8, "within_slope")),
    Rule("gene_mean_r", "gene means r", "high", _mean_r),
    Rule("dropout_mae", "dropout difference", "low", _dropout),
    Rule("genes_mean", "genes per cell (mean)", "near", _within_percent(5, "genes_mean")),
    Rule("genes_sd", "genes per cell (sd)", "near", _within_percent(15, "genes_sd")),
    Rule("recall", "recall", "high", _floor_share(0.9, "recall")),
    Rule("coverage", "coverage", "high", _floor_share(0.9, "coverage")),
    Rule("condition_accuracy", "classified as asked", "near", _condition),
    Rule("nn_ratio", "distance to training cells", "near", _between(0.95, 1.10)),
    Rule("copies", "copies of training cells", "low", _copies),
    Rule("fold_change_slope", "log-fold change slope", "near", _between(0.9, 1.1)),
    Rule("fold_change_overlap", "top markers shared", "high", _floor_share(0.9, "fold_change_overlap")),
    Rule("tstr_f1", "train on these (macro-F1 on real)", "high", _floor_share(0.95, "tstr_f1")),
)  # fmt: skip


def mark_methods(result: ProtocolResult) -> dict[str, dict[str, Mark]]:
    """Hold every method against every threshold; method -> measure -> mark."""
    values = {
        method: {key: measured.value for key, measured in scores.items()}
        for method, scores in result.scores.items()
    }
    marks: dict[str, dict[str, Mark]] = {}
    for method, of_method in values.items():
        marks[method] = {}
        for rule in RULES:
            value, floor = of_method[rule.key], values["real"][rule.key]
            if math.isnan(value) or math.isnan(floor):
                marks[method][rule.key] = Mark(None, "-")
                continue
            won, text = rule.test(value, values, result.limits, method)
            marks[method][rule.key] = Mark(bool(won), text)
    return marks


def verdict(result: ProtocolResult, marks: Mapping[str, Mapping[str, Mark]]) -> list[str]:
    """Say in sentences what the figures amount to, without flattery."""
    ours, floor = result.scores["generated"], result.scores["real"]
    told = {rule: marks["generated"][rule.key].won for rule in RULES}
    n_won, n_told = (
        sum(won is True for won in told.values()),
        sum(w is not None for w in told.values()),
    )
    lost = [rule.title for rule, won in told.items() if won is False]
    sentences = [
        f"{n_won} of {n_told} thresholds are met" + (f"; lost: {', '.join(lost)}." if lost else ".")
    ]
    auc, real_auc = ours["rf_auc"].value, floor["rf_auc"].value
    beside = f"AUC {auc:.3f}, where real cells against real ones have {real_auc:.3f}"
    if auc <= real_auc + 0.03:
        sentences.append(
            f"A random forest tells them from real cells hardly better than it tells real cells apart: {beside}."
        )
    elif auc <= real_auc + 0.10:
        sentences.append(f"A random forest finds something that gives them away: {beside}.")
    elif auc <= 0.9:
        sentences.append(f"A random forest often tells them from real cells: {beside}.")
    else:
        sentences.append(f"A random forest tells nearly all of them from real cells: {beside}.")
    if "copula" in result.scores:
        sentences += _against_copula(ours, result.scores["copula"])
    copies = ours["copies"].value
    if copies > 0:
        sentences.append(
            f"On average {copies:.1f} cells of a side are in every bin the same as a training cell; of "
            f"unseen real cells {floor['copies'].value:.1f} are."
        )
    fewest = min(result.n_cells)
    if fewest < _ENOUGH:
        sentences.append(
            f"Only {fewest:,} cells of a side could be matched ({_ENOUGH:,} are wanted), so the "
            "intervals count for more than the marks."
        )
    return sentences


def _against_copula(ours: Mapping[str, Measured], copula: Mapping[str, Measured]) -> list[str]:
    """Where the copula, which needs no training of a network, is surely better, and where not."""
    better, worse = [], []
    for rule in RULES:
        lead = ours[rule.key].lead
        if rule.better == "near" or lead is None or math.isnan(lead[0]):
            continue
        sign = 1 if rule.better == "high" else -1
        low, high = sorted((sign * lead[1], sign * lead[2]))
        pair = f"{rule.title} ({ours[rule.key].value:.3f} against {copula[rule.key].value:.3f})"
        if low > 0:
            better.append(pair)
        elif high < 0:
            worse.append(pair)
    sentences = []
    if worse:
        sentences.append(
            f"The Gaussian copula of each class is surely better in: {', '.join(worse)}."
        )
    if better:
        sentences.append(f"They are surely better than the copula in: {', '.join(better)}.")
    if not better and not worse:
        sentences.append("Nothing separates them from the Gaussian copula of each class.")
    return sentences
