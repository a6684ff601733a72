"""Bootstrap intervals of phenotype scores: how far other donors, or cells, might have moved them.

Cells of a donor resemble each other, so where donors are known whole donors are drawn with
replacement: drawing cells would make intervals several times too narrow. All methods are scored on
the same draws, so that the lead of one over another has an interval too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from core.random_streams import Stream, generator

__all__ = ["Interval", "ScoreIntervals", "bootstrap_scores"]

N_RESAMPLES = 1000
#: Bounds of a 95 % interval, in percent.
_BOUNDS = (2.5, 97.5)
#: Weights held at a time: 8 million int64 are 64 MB.
_MOST_WEIGHTS = 8_000_000
_MEASURES = ("accuracy", "balanced_accuracy", "macro_f1")

Interval = tuple[float, float]


@dataclass(frozen=True)
class ScoreIntervals:
    """95 % percentile intervals of one method.

    Attributes
    ----------
    scores
        Of accuracy, balanced accuracy and macro-F1.
    lead
        Of what the first method has more of each; None for the first method itself.
    resampled
        What was drawn.
    n_units
        How many of these there are.
    """

    scores: dict[str, Interval]
    lead: dict[str, Interval] | None
    resampled: Literal["donors", "cells"]
    n_units: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        record: dict[str, Any] = {name: list(bounds) for name, bounds in self.scores.items()}
        if self.lead is not None:
            record["lead of the model"] = {k: list(bounds) for k, bounds in self.lead.items()}
        return record | {"resampled": self.resampled, "units": self.n_units}


def bootstrap_scores(
    true_codes: ArrayLike,
    predicted: Mapping[str, ArrayLike],
    n_values: int,
    *,
    donors: ArrayLike | None = None,
    seed: int,
    n_resamples: int = N_RESAMPLES,
) -> dict[str, ScoreIntervals]:
    """Resample the scored cells and score every method on each draw.

    Parameters
    ----------
    true_codes
        (cells,), -1 where missing: left out.
    predicted
        Method -> (cells,) codes.
    n_values
        Values of the phenotype.
    donors
        (cells,) codes, -1 where not known (these cells count as one donor more); cells are drawn
        where it is None or there is one donor alone.
    seed
        The same seed gives the same draws.

    Returns
    -------
    Method -> intervals; empty without labelled cells.
    """
    true = np.asarray(true_codes)
    labelled = np.flatnonzero(true >= 0)
    if not len(labelled):
        return {}
    true = true[labelled]
    answers = np.stack([np.asarray(codes)[labelled] for codes in predicted.values()])
    units, counts, resampled = _units(
        true, answers, None if donors is None else np.asarray(donors)[labelled]
    )
    n_units = int(counts.sum()) if resampled == "cells" else len(counts)
    shares = counts / counts.sum() if resampled == "cells" else np.full(n_units, 1 / n_units)
    # A unit of outcomes stands for one cell of its kind; a donor for all its cells.
    rows, at = np.unique(units, return_index=True) if resampled == "cells" else (units, None)
    chosen = slice(None) if at is None else at
    tables = _tables(rows, true[chosen], answers[:, chosen], len(counts), n_values)

    rng = generator(seed, Stream.BOOTSTRAP)
    step = max(1, _MOST_WEIGHTS // len(counts))
    parts = []
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        weights = rng.multinomial(n_units, shares, size=size).astype(np.float64)
        parts.append(_scores(weights, *tables))
    drawn = np.concatenate(parts, axis=1)  # (methods, resamples, measures)
    intervals = {}
    for number, name in enumerate(predicted):
        lead = None if number == 0 else _bounds(drawn[0] - drawn[number])
        intervals[name] = ScoreIntervals(_bounds(drawn[number]), lead, resampled, n_units)
    return intervals


def _units(
    true: NDArray[np.int64], answers: NDArray[np.int64], donors: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], Literal["donors", "cells"]]:
    """(cells,) unit of each cell, and cells of each unit.

    Where cells are drawn, those with the same truth and the same answers make one unit: drawing
    counts of units is the same as drawing cells, and much less work.
    """
    if donors is not None:
        names, units, counts = np.unique(donors, return_inverse=True, return_counts=True)
        if len(names) > 1:
            return units.ravel(), counts, "donors"
    outcomes = np.vstack([true, answers])
    _, units, counts = np.unique(outcomes, axis=1, return_inverse=True, return_counts=True)
    return units.ravel(), counts, "cells"


def _tables(
    units: NDArray[np.int64],
    true: NDArray[np.int64],
    answers: NDArray[np.int64],
    n_units: int,
    n_values: int,
) -> tuple[sparse.csr_matrix, list[sparse.csr_matrix], list[sparse.csr_matrix]]:
    """(units, values) cells of each true value; and per method, those hit and those answered."""

    def count(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> sparse.csr_matrix:
        ones = np.ones(len(rows))
        return sparse.csr_matrix((ones, (rows, columns)), shape=(n_units, n_values))

    hits, answered = [], []
    for codes in answers:
        is_hit, is_told = codes == true, codes >= 0
        hits.append(count(units[is_hit], true[is_hit]))
        answered.append(count(units[is_told], codes[is_told]))
    return count(units, true), hits, answered


def _scores(
    weights: NDArray[np.float64],
    true: sparse.csr_matrix,
    hits: list[sparse.csr_matrix],
    answered: list[sparse.csr_matrix],
) -> NDArray[np.float64]:
    """(methods, resamples, measures)."""
    n_true = np.asarray(weights @ true)
    present = n_true > 0
    n_present = present.sum(axis=1)
    scores = []
    for of_method, predicted in zip(hits, answered, strict=True):
        n_hit, n_predicted = np.asarray(weights @ of_method), np.asarray(weights @ predicted)
        recall = np.divide(n_hit, n_true, out=np.zeros_like(n_hit), where=present)
        f1 = np.divide(2 * n_hit, n_true + n_predicted, out=np.zeros_like(n_hit), where=present)
        scores.append(
            [
                n_hit.sum(axis=1) / n_true.sum(axis=1),
                recall.sum(axis=1) / n_present,
                f1.sum(axis=1) / n_present,
            ]
        )
    return np.array(scores).transpose(0, 2, 1)


def _bounds(drawn: NDArray[np.float64]) -> dict[str, Interval]:
    low, high = np.percentile(drawn, _BOUNDS, axis=0)
    return {
        name: (float(low[number]), float(high[number])) for number, name in enumerate(_MEASURES)
    }
