"""Bootstrap intervals of phenotype scores: how far other donors, or cells, might have moved them.

Cells of a donor resemble each other, so whole donors are drawn with replacement where donors are known:
drawing cells would make the intervals several times too narrow. All methods are scored on the same draws,
so that the difference of two methods has an interval too.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from core.evaluation.report.records import BootstrapIntervals, Intervals
from core.random_streams import Stream, generator

N_RESAMPLES = 1000
#: Bounds of a 95 % interval, in percent.
_BOUNDS = (2.5, 97.5)
#: Weights held at a time: 8 million int64 are 64 MB.
_MOST_WEIGHTS = 8_000_000

#: (units, values) cells of each true value; and per method, those predicted rightly and those predicted.
_Tables = tuple[sparse.csr_matrix, list[sparse.csr_matrix], list[sparse.csr_matrix]]


def bootstrap_scores(
    true_codes: ArrayLike,
    predicted: Mapping[str, ArrayLike],
    n_values: int,
    *,
    donors: ArrayLike | None = None,
    seed: int,
) -> dict[str, BootstrapIntervals]:
    """Resample the labelled cells and score every method on each draw.

    Parameters
    ----------
    true_codes
        (cells,), -1 where missing: left out.
    predicted
        Method -> (cells,) codes; the first is the model.
    donors
        (cells,) codes, -1 where not known (these cells count as one more donor); cells are drawn
        if it is None or there is one donor only.

    Returns
    -------
    Method -> intervals; empty without labelled cells.
    """
    true = np.asarray(true_codes)
    labelled = np.flatnonzero(true >= 0)
    if not len(labelled):
        return {}
    true = true[labelled]
    codes = np.stack([np.asarray(of_method)[labelled] for of_method in predicted.values()])
    resampled: Literal["donors", "cells"] = "cells"
    if donors is not None:
        names, units, counts = np.unique(
            np.asarray(donors)[labelled], return_inverse=True, return_counts=True
        )
        resampled = "donors" if len(names) > 1 else "cells"
    if resampled == "donors":
        n_units = len(counts)
        probabilities = np.full(n_units, 1 / n_units)
        tables = _tables(units.ravel(), true, codes, n_units, n_values)
    else:
        # Cells with the same truth and the same predictions make one unit, which stands for one of them:
        # to draw counts of units is the same as to draw cells, and much less work.
        outcomes, counts = np.unique(np.vstack([true, codes]), axis=1, return_counts=True)
        n_units = int(counts.sum())
        probabilities = counts / n_units
        places = np.arange(len(counts))
        tables = _tables(places, outcomes[0], outcomes[1:], len(counts), n_values)
    rng = generator(seed, Stream.BOOTSTRAP)
    step = max(1, _MOST_WEIGHTS // len(counts))
    parts = []
    for start in range(0, N_RESAMPLES, step):
        size = min(step, N_RESAMPLES - start)
        weights = rng.multinomial(n_units, probabilities, size=size).astype(np.float64)
        parts.append(_scores(weights, *tables))
    drawn = np.concatenate(parts, axis=1)  # (methods, resamples, measures)
    intervals = {}
    for number, name in enumerate(predicted):
        difference = _intervals(drawn[0] - drawn[number]) if number else None
        own = vars(_intervals(drawn[number]))
        intervals[name] = BootstrapIntervals(
            **own, resampled=resampled, n_units=n_units, model_minus_method=difference
        )
    return intervals


def _tables(
    units: NDArray[np.int64],
    true: NDArray[np.int64],
    codes: NDArray[np.int64],
    n_units: int,
    n_values: int,
) -> _Tables:
    def count(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> sparse.csr_matrix:
        return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(n_units, n_values))

    is_right, is_predicted = codes == true, codes >= 0
    return (
        count(units, true),
        [count(units[right], true[right]) for right in is_right],
        [count(units[known], one[known]) for one, known in zip(codes, is_predicted, strict=True)],
    )


def _scores(
    weights: NDArray[np.float64],
    true: sparse.csr_matrix,
    right: list[sparse.csr_matrix],
    predicted: list[sparse.csr_matrix],
) -> NDArray[np.float64]:
    """(methods, resamples, measures): accuracy, balanced accuracy, macro-F1."""
    n_true = np.asarray(weights @ true)
    present = n_true > 0
    n_present = present.sum(axis=1)
    scores = []
    for of_method, of_predicted in zip(right, predicted, strict=True):
        n_right, n_predicted = np.asarray(weights @ of_method), np.asarray(weights @ of_predicted)
        recall = np.divide(n_right, n_true, out=np.zeros_like(n_right), where=present)
        f1 = np.divide(2 * n_right, n_true + n_predicted, out=np.zeros_like(n_right), where=present)
        scores.append(
            [
                n_right.sum(axis=1) / n_true.sum(axis=1),
                recall.sum(axis=1) / n_present,
                f1.sum(axis=1) / n_present,
            ]
        )
    return np.array(scores).transpose(0, 2, 1)


def _intervals(drawn: NDArray[np.float64]) -> Intervals:
    low, high = np.percentile(drawn, _BOUNDS, axis=0).tolist()
    return Intervals(*zip(low, high, strict=True))
