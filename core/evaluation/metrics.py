"""How well the values of a phenotype are predicted: accuracies, calibration, ages, single donors.

Values are codes, positions in the phenotype's list of values; -1 means missing. Cells whose true value is
missing are left out. A missing prediction is an error that belongs to no column of the confusion matrix.

Bootstrap intervals show how far other donors, or cells, might have moved the scores. Cells of a donor
resemble each other, so whole donors are drawn with replacement where donors are known: drawing cells would
make the intervals several times too narrow. All methods are scored on the same draws, so that the
difference of two methods has an interval too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from core.cells.ages import is_age_name, parse_age
from core.cells.ontology import TermDistances, measure_terms
from core.evaluation.report.records import (
    BootstrapIntervals,
    Calibration,
    DonorAccuracies,
    DonorAccuracy,
    Interval,
    Intervals,
    OntologyScores,
    PhenotypeScores,
    ReliabilityBin,
)
from core.random_streams import Stream, generator

Integers = NDArray[np.integer[Any]]
Probabilities = NDArray[np.floating[Any]]
Counts = NDArray[np.number[Any]]
FloatArray = NDArray[np.float64]

_TOP = 3
_RELIABILITY_BINS = 10
#: With fewer labelled cells, a donor's accuracy is chance.
_LEAST_DONOR_CELLS = 10
N_RESAMPLES = 1000
#: Bounds of a 95 % interval, in percent.
_BOUNDS = (2.5, 97.5)
#: Weights held at a time: 8 million float64 are 64 MB.
_MOST_WEIGHTS = 8_000_000


def score_methods(
    name: str,
    values: Sequence[str],
    truth: Integers,
    probabilities: Mapping[str, Probabilities],
    *,
    donors: Integers | None = None,
    donor_names: Sequence[str] = (),
    seed: int,
) -> dict[str, PhenotypeScores]:
    """Score several methods for one phenotype on the same cells; the first method is the model.

    ``truth`` and ``donors`` are (cells,) codes of ``values`` and ``donor_names``; ``probabilities`` has
    (cells, values) of each method.
    """
    predicted = {method: of_method.argmax(axis=1) for method, of_method in probabilities.items()}
    intervals = bootstrap_scores(truth, predicted, len(values), donors=donors, seed=seed)
    terms = measure_terms(values, name)
    scores = {}
    for number, (method, codes) in enumerate(predicted.items()):
        of_donors = None
        if donors is not None:
            of_donors = donor_accuracies(truth, codes, donors, donor_names)
            of_donors = of_donors if number == 0 else replace(of_donors, each=None)
        scores[method] = replace(
            score_phenotype(truth, codes, values),
            top3_accuracy=top_accuracy(probabilities[method], truth, _TOP),
            mae_years=mae_years(name, values, truth, probabilities[method]),
            ontology=None if terms is None else score_terms(truth, codes, terms),
            calibration=calibrate(probabilities[method], truth),
            donors=of_donors,
            intervals=intervals.get(method),
        )
    return scores


def score_phenotype(
    true_codes: ArrayLike, predicted_codes: ArrayLike, values: Sequence[str]
) -> PhenotypeScores:
    """Compare predicted with true codes; the scores are NaN if there are no cells."""
    n_values = len(values)
    true, predicted = (np.asarray(one, dtype=np.int64) for one in (true_codes, predicted_codes))
    true, predicted = true[true >= 0], predicted[true >= 0]
    has_prediction = predicted >= 0
    pairs = true[has_prediction] * n_values + predicted[has_prediction]
    confusion = np.bincount(pairs, minlength=n_values**2).reshape(n_values, n_values)
    n_true = np.bincount(true, minlength=n_values)
    accuracy = balanced = macro = math.nan
    if len(true):
        present = n_true > 0
        n_right, n_predicted = np.diag(confusion)[present], confusion.sum(axis=0)[present]
        scores = scores_of_counts(n_true[present], n_right, n_predicted)
        accuracy, balanced, macro = scores.tolist()
    return PhenotypeScores(
        accuracy=accuracy,
        balanced_accuracy=balanced,
        macro_f1=macro,
        n_cells=len(true),
        n_unpredicted=int((~has_prediction).sum()),
        values=tuple(values),
        confusion=confusion.tolist(),
    )


def scores_of_counts(n_true: Counts, n_right: Counts, n_predicted: Counts) -> FloatArray:
    """(..., 3) accuracy, balanced accuracy and macro-F1 of (..., values) numbers of cells.

    The last two are means, of recall and F1, over the values that occur among the true ones.
    """
    present = n_true > 0
    recall, f1 = (
        np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=present).sum(
            axis=-1
        )
        / present.sum(axis=-1)
        for part, whole in ((n_right, n_true), (2 * n_right, n_true + n_predicted))
    )
    return np.stack([n_right.sum(axis=-1) / n_true.sum(axis=-1), recall, f1], axis=-1)


def top_accuracy(probabilities: Probabilities, true_codes: Integers, n_top: int) -> float | None:
    """Fraction of cells whose true value is among the ``n_top`` most probable.

    Of equally probable values the first in the list count as more probable. None if there are no labelled
    cells, or no more values than that: any prediction would be right.
    """
    labelled = true_codes >= 0
    if not labelled.any() or probabilities.shape[1] <= n_top:
        return None
    top = np.argsort(-probabilities[labelled], axis=1, kind="stable")[:, :n_top]
    return float((top == true_codes[labelled, None]).any(axis=1).mean())


def calibrate(probabilities: Probabilities, true_codes: ArrayLike) -> Calibration:
    """Compare confidence with accuracy in ten bins of equal width; NaN if there are no cells.

    The confidence is the probability of the predicted value (top-label, equal-width bins: Naeini et al.
    2015; Guo et al. 2017).
    """
    true = np.asarray(true_codes)
    labelled = true >= 0
    true, probability = true[labelled], np.asarray(probabilities, dtype=np.float64)[labelled]
    if not len(true):
        return Calibration(math.nan, math.nan)
    n_bins = _RELIABILITY_BINS
    confidence = probability.max(axis=1)
    is_right = probability.argmax(axis=1) == true
    place = np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    n_cells = np.bincount(place, minlength=n_bins)
    sum_confidence = np.bincount(place, weights=confidence, minlength=n_bins)
    n_right = np.bincount(place, weights=is_right, minlength=n_bins)
    curve = tuple(
        ReliabilityBin(
            low=one / n_bins,
            high=(one + 1) / n_bins,
            n_cells=int(n_cells[one]),
            confidence=float(sum_confidence[one] / n_cells[one]),
            accuracy=float(n_right[one] / n_cells[one]),
        )
        for one in np.flatnonzero(n_cells).tolist()
    )
    return Calibration(
        ece=float(np.abs(n_right - sum_confidence).sum() / len(true)),
        overconfidence=float(confidence.mean() - is_right.mean()),
        curve=curve,
    )


@lru_cache(maxsize=1_000)  # the same labels in every batch of predictions
def years_of(label: str) -> float | None:
    """Age in years of a value, the middle of a range; None if it is not an age."""
    age = parse_age(label)
    return None if age is None else age.middle


def expected_years(
    name: str, values: Sequence[str], probabilities: ArrayLike
) -> NDArray[np.float64] | None:
    """Return (cells,) expected ages in years from (cells, values); None where no two values are ages.

    The mean of the ages, each weighted by its probability; values that are not ages have no part in it, and
    a cell with no other has NaN.
    """
    if not is_age_name(name):
        return None
    years = years_of_values(values)
    is_age = np.isfinite(years)
    if is_age.sum() < 2:
        return None
    weights = np.asarray(probabilities, dtype=np.float64)[:, is_age]
    total = weights.sum(axis=1)
    expected: NDArray[np.float64] = weights @ years[is_age] / np.where(total > 0, total, math.nan)
    return expected


def mae_years(
    name: str, values: Sequence[str], truth: Integers, probabilities: ArrayLike
) -> float | None:
    """Mean absolute error of the expected ages, in years, over cells whose true value is an age; None if there are none."""
    expected = expected_years(name, values, probabilities)
    if expected is None:
        return None
    true = np.append(years_of_values(values), math.nan)[truth]  # -1 is the last: not known
    known = np.isfinite(true - expected)
    return float(np.abs(true - expected)[known].mean()) if known.any() else None


def years_of_values(values: Sequence[str]) -> NDArray[np.float64]:
    """Return (values,) ages in years, NaN for what is not an age."""
    ages = [years_of(value) for value in values]
    return np.array([math.nan if age is None else age for age in ages], dtype=np.float64)


def score_terms(
    true_codes: ArrayLike, predicted_codes: ArrayLike, terms: TermDistances
) -> OntologyScores | None:
    """Score how near predictions are to the true terms; None if no cell has a true term.

    Cells whose true value is missing or no term are left out; a predicted value that is no term is related
    to none.
    """
    true, predicted = np.asarray(true_codes), np.asarray(predicted_codes)
    scored = (true >= 0) & terms.is_term[true]
    if not scored.any():
        return None
    pairs = true[scored], predicted[scored]
    return OntologyScores(
        related=float(terms.is_related[pairs].mean()),
        mean_distance=float(terms.steps[pairs].mean()),
        n_cells=int(scored.sum()),
    )


def donor_accuracies(
    true_codes: ArrayLike, predicted_codes: ArrayLike, donors: ArrayLike, names: Sequence[str]
) -> DonorAccuracies:
    """Score each donor: a mean over cells hides the donors on whom a model fails.

    ``donors`` are (cells,) codes of ``names``; cells whose donor is not known (-1) are left out.
    """
    true, predicted, of_donor = (np.asarray(one) for one in (true_codes, predicted_codes, donors))
    counted = (true >= 0) & (of_donor >= 0)
    of_donor = of_donor[counted]
    n_cells = np.bincount(of_donor, minlength=len(names))
    n_right = np.bincount(of_donor, weights=(true == predicted)[counted], minlength=len(names))
    scored = [
        DonorAccuracy(names[one], int(n_cells[one]), float(n_right[one] / n_cells[one]))
        for one in np.flatnonzero(n_cells >= _LEAST_DONOR_CELLS).tolist()
    ]
    n_donors = int((n_cells > 0).sum())
    if not scored:
        return DonorAccuracies(n_donors, each=())
    scored.sort(key=lambda one: (one.accuracy, one.donor))
    median = float(np.median([one.accuracy for one in scored]))
    worst, best = scored[0].accuracy, scored[-1].accuracy
    return DonorAccuracies(n_donors, len(scored), worst, median, best, tuple(scored))


def bootstrap_scores(
    true_codes: ArrayLike,
    predicted: Mapping[str, ArrayLike],
    n_values: int,
    *,
    donors: ArrayLike | None = None,
    seed: int,
) -> dict[str, BootstrapIntervals]:
    """Resample the labelled cells and score every method on each draw; empty without labelled cells.

    The first method is the model. Donors are drawn if there are several (cells of no known donor count as
    one more), otherwise cells.
    """
    true = np.asarray(true_codes)
    labelled = np.flatnonzero(true >= 0)
    if not len(labelled):
        return {}
    true = true[labelled]
    codes = np.stack([np.asarray(of_method)[labelled] for of_method in predicted.values()])
    names: Integers = np.zeros(0, dtype=np.int64)
    if donors is not None:
        names, units = np.unique(np.asarray(donors)[labelled], return_inverse=True)
    if len(names) > 1:
        counts = np.ones(len(names), dtype=np.int64)
    else:
        # Cells with the same truth and the same predictions make one unit, which stands for one of them:
        # to draw counts of units is the same as to draw cells, and much less work.
        outcomes, counts = np.unique(np.vstack([true, codes]), axis=1, return_counts=True)
        true, codes = outcomes[0], outcomes[1:]
        units = np.arange(len(counts))

    def count(chosen: NDArray[np.bool_], values: Integers) -> sparse.csr_matrix:
        """(units, values) cells."""
        pairs = (units[chosen], values[chosen])
        return sparse.csr_matrix((np.ones(len(pairs[0])), pairs), shape=(len(counts), n_values))

    n_true = count(true >= 0, true)
    n_right = [count(of_method == true, true) for of_method in codes]
    n_predicted = [count(of_method >= 0, of_method) for of_method in codes]
    n_units = int(counts.sum())
    rng = generator(seed, Stream.BOOTSTRAP)
    step = max(1, _MOST_WEIGHTS // len(counts))
    parts = []
    for start in range(0, N_RESAMPLES, step):
        size = min(step, N_RESAMPLES - start)
        weights = rng.multinomial(n_units, counts / n_units, size=size).astype(np.float64)
        of_true = weights @ n_true
        parts.append(
            [
                scores_of_counts(of_true, weights @ right, weights @ of_method)
                for right, of_method in zip(n_right, n_predicted, strict=True)
            ]
        )
    drawn = np.concatenate(parts, axis=1)  # (methods, resamples, scores)
    return {
        name: BootstrapIntervals(
            **vars(_intervals(of_method)),
            resampled="donors" if len(names) > 1 else "cells",
            n_units=n_units,
            model_minus_method=_intervals(drawn[0] - of_method) if number else None,
        )
        for number, (name, of_method) in enumerate(zip(predicted, drawn, strict=True))
    }


def interval_of(drawn: FloatArray) -> Interval:
    """Return the 95 % interval of bootstrap draws."""
    low, high = np.percentile(drawn, _BOUNDS).tolist()
    return low, high


def _intervals(drawn: FloatArray) -> Intervals:
    low, high = np.percentile(drawn, _BOUNDS, axis=0).tolist()
    return Intervals(*zip(low, high, strict=True))
