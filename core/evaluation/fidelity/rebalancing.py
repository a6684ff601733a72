"""Whether generated cells of rare classes help a classifier more than simple remedies do.

A classifier of the class learns from real training cells in five ways: as they are; with equal weights of
the classes; with cells of rare classes repeated; and with rare classes filled up by the copula or by
generated cells. All are scored on the same held-out real cells.
"""

import numpy as np
from numpy.typing import NDArray

from core.encoding.values import ValueEncoder, ValueTable
from core.evaluation.fidelity.class_baselines import ClassBaselines
from core.evaluation.fidelity.judge import LabelledCells
from core.evaluation.fidelity.measures import ClassClassifier, macro_f1
from core.evaluation.report.records import Difference, Rebalanced
from core.random_streams import Stream, generator

#: Ways to learn, in the order of the report.
REBALANCED_BY = ("real", "class weights", "repeated", "copula", "generated")

#: Real cells learnt from at most.
_MOST_CELLS = 5_000
_RESAMPLES = 500


def compare_rebalancing(
    training: LabelledCells,
    real: LabelledCells,
    generated: LabelledCells,
    encoder: ValueEncoder,
    table: ValueTable,
    n_classes: int,
) -> dict[str, Rebalanced]:
    """Learn from (a sample of 5,000) training cells in five ways and score held-out real cells.

    ``encoder`` and ``table`` are the bins of the copula. Each class is filled up to the largest, from
    ``generated`` as far as they suffice.

    Returns
    -------
    Way -> scores; empty if training cells or held-out cells have one class only.
    """
    rng = generator(0, Stream.REBALANCING)
    some = training.take(np.sort(rng.permutation(len(training))[:_MOST_CELLS]))
    counts = np.bincount(some.classes, minlength=n_classes)
    real = real.take(np.isin(real.classes, np.flatnonzero(counts)))
    if (counts > 0).sum() < 2 or len(np.unique(real.classes)) < 2:
        return {}
    missing = np.where(counts > 0, counts.max() - counts, 0)
    baselines = ClassBaselines(encoder.encode(some.values), some.classes, encoder.n_bins, rng)
    wanted = np.repeat(np.arange(n_classes), missing)
    drawn = table.decode(baselines.copula(wanted, rng), how="sample", rng=rng)
    added = {
        "repeated": some.take(_fill(some.classes, missing, rng, repeat=True)),
        "copula": LabelledCells(drawn, wanted),
        "generated": generated.take(_fill(generated.classes, missing, rng, repeat=False)),
    }
    predicted = {
        "real": ClassClassifier(some.values, some.classes, balanced=False).predict(real.values),
        "class weights": ClassClassifier(some.values, some.classes).predict(real.values),
    }
    for name, cells in added.items():
        values = np.concatenate([some.values, cells.values])
        classes = np.concatenate([some.classes, cells.classes])
        classifier = ClassClassifier(values, classes, balanced=False)
        predicted[name] = classifier.predict(real.values)
    n = len(real)
    weights = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES)])
    scores = {
        name: macro_f1(real.classes, codes, n_classes, weights) for name, codes in predicted.items()
    }
    found = {}
    for name in REBALANCED_BY:
        ahead = scores[name] - scores["class weights"]
        low, high = np.percentile(ahead[1:], (2.5, 97.5))
        found[name] = Rebalanced(
            _balanced_accuracy(real.classes, predicted[name]),
            float(scores[name][0]),
            Difference(float(ahead[0]), (float(low), float(high))),
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
    """Rows of the cells that each class is missing; without repeats, of those that exist."""
    rows = [np.zeros(0, dtype=np.int64)]
    for code, n in enumerate(missing.tolist()):
        of_class = np.flatnonzero(classes == code)
        if n and len(of_class):
            n = n if repeat else min(n, len(of_class))
            rows.append(rng.choice(of_class, n, replace=repeat))
    return np.concatenate(rows)


def _balanced_accuracy(true: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    return float(np.mean([(predicted[true == code] == code).mean() for code in np.unique(true)]))
