"""Do generated cells of rare classes help a classifier, more than what costs nothing.

A classifier of the class learns from real training cells in five ways: as they are; with classes weighing
the same; with cells of rare classes repeated; and with rare classes filled up by the copula or by
generated cells. All are asked about the same unseen real cells.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.encoding.values import ValueEncoder, ValueTable
from core.evaluation.class_baselines import ClassBaselines
from core.evaluation.fidelity_classifiers import ClassTeller, macro_f1
from core.evaluation.fidelity_judge import LabelledCells
from core.random_streams import Stream, generator

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["REBALANCED_BY", "Rebalanced", "compare_rebalancing"]

#: Ways to learn, in the order of the report.
REBALANCED_BY = ("real", "class weights", "repeated", "copula", "generated")

#: Real cells learnt from at most.
_MOST_CELLS = 5_000
_RESAMPLES = 500


@dataclass(frozen=True)
class Rebalanced:
    """How one way did on unseen real cells.

    Attributes
    ----------
    balanced_accuracy, macro_f1
        Over the classes that occur among them.
    lead
        (difference of macro-F1 from class weights, low, high): 95 % bootstrap over real cells.
    n_added
        Cells added to the real ones.
    """

    balanced_accuracy: float
    macro_f1: float
    lead: tuple[float, float, float]
    n_added: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "minus_class_weights": {"value": self.lead[0], "interval": list(self.lead[1:])},
            "cells_added": self.n_added,
        }


def compare_rebalancing(
    training: LabelledCells,
    real: LabelledCells,
    generated: LabelledCells,
    encoder: ValueEncoder,
    table: ValueTable,
    n_classes: int,
    *,
    seed: int = 0,
) -> dict[str, Rebalanced]:
    """Learn in five ways and ask about unseen cells.

    Parameters
    ----------
    training
        Real cells to learn from; a sample of at most 5,000 is.
    real
        Unseen real cells.
    generated
        Each class is filled up to the largest from these, as far as they go.
    encoder, table
        Bins of the copula.
    n_classes
        Number of class codes.
    seed
        Of samples and draws.

    Returns
    -------
    Way -> figures; empty where training cells or unseen cells have one class alone.
    """
    rng = generator(seed, Stream.REBALANCING)
    some = training.take(np.sort(rng.permutation(len(training))[:_MOST_CELLS]))
    counts = np.bincount(some.classes, minlength=n_classes)
    real = real.take(np.isin(real.classes, np.flatnonzero(counts)))
    if (counts > 0).sum() < 2 or len(np.unique(real.classes)) < 2:
        return {}
    missing = np.where(counts > 0, counts.max() - counts, 0)
    baselines = ClassBaselines(encoder.encode(some.values), some.classes, encoder.n_bins, rng)
    wanted = np.repeat(np.arange(n_classes), missing)
    drawn = table.decode(baselines.copula(wanted, rng), how="sample", rng=rng)
    added: Mapping[str, LabelledCells] = {
        "repeated": some.take(_fill(some.classes, missing, rng, repeat=True)),
        "copula": LabelledCells(drawn, wanted),
        "generated": generated.take(_fill(generated.classes, missing, rng, repeat=False)),
    }
    told = {
        "real": ClassTeller(some.values, some.classes, balanced=False).tell(real.values),
        "class weights": ClassTeller(some.values, some.classes).tell(real.values),
    }
    for name, cells in added.items():
        values = np.concatenate([some.values, cells.values])
        classes = np.concatenate([some.classes, cells.classes])
        told[name] = ClassTeller(values, classes, balanced=False).tell(real.values)
    n = len(real)
    weights = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES)])
    scores = {name: macro_f1(real.classes, told[name], n_classes, weights) for name in told}
    found = {}
    for name in REBALANCED_BY:
        ahead = scores[name] - scores["class weights"]
        low, high = np.percentile(ahead[1:], (2.5, 97.5))
        found[name] = Rebalanced(
            _balanced_accuracy(real.classes, told[name]),
            float(scores[name][0]),
            (float(ahead[0]), float(low), float(high)),
            len(added[name]) if name in added else 0,
        )
    return found


def _fill(
    classes: NDArray[np.int64],
    missing: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    repeat: bool,
) -> NDArray[np.int64]:
    """Rows that make up what each class is short of; without repeats as many as there are."""
    rows = [np.zeros(0, dtype=np.int64)]
    for code, n in enumerate(missing.tolist()):
        of_class = np.flatnonzero(classes == code)
        if n and len(of_class):
            n = n if repeat else min(n, len(of_class))
            rows.append(rng.choice(of_class, n, replace=repeat))
    return np.concatenate(rows)


def _balanced_accuracy(true: NDArray[np.int64], told: NDArray[np.int64]) -> float:
    return float(np.mean([(told[true == code] == code).mean() for code in np.unique(true)]))
