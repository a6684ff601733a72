"""How well the values of a phenotype are predicted: accuracies, calibration, ages, single donors.

Values are codes, positions in the phenotype's list of values; -1 means missing. Cells whose true value is
missing are left out. A missing prediction is an error that belongs to no column of the confusion matrix.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.cells.phenotypes import parse_years
from core.errors import DataError
from core.evaluation.bootstrap import bootstrap_scores
from core.evaluation.report.records import (
    Calibration,
    DonorAccuracies,
    DonorAccuracy,
    PhenotypeScores,
    ReliabilityBin,
)

Integers = NDArray[np.integer[Any]]
Probabilities = NDArray[np.floating[Any]]

#: Phenotypes whose values are ages.
_IS_AGE = re.compile(r"(^|_)age(_|$)|(^|_)development_stage$")
#: "70-79" means ages from 70.0 to just under 80.0.
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")
_LONGEST_RANGE = 30
_TOP = 3
_RELIABILITY_BINS = 10
#: With fewer labelled cells, a donor's accuracy is chance.
LEAST_DONOR_CELLS = 10


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

    Parameters
    ----------
    truth
        (cells,), codes of ``values``.
    probabilities
        Method -> (cells, values).
    donors
        (cells,), codes of ``donor_names``, -1 where not known; None without donors.
    """
    predicted = {method: of_method.argmax(axis=1) for method, of_method in probabilities.items()}
    intervals = bootstrap_scores(truth, predicted, len(values), donors=donors, seed=seed)
    scores = {}
    for number, (method, codes) in enumerate(predicted.items()):
        of_donors = None
        if donors is not None:
            of_donors = donor_accuracies(truth, codes, donors, donor_names)
            of_donors = of_donors if number == 0 else replace(of_donors, each=None)
        scores[method] = replace(
            score_phenotype(truth, codes, values),
            top3_accuracy=top_accuracy(probabilities[method], truth, _TOP),
            mae_years=mae_years(truth, codes, values) if _IS_AGE.search(name) else None,
            calibration=calibrate(probabilities[method], truth),
            donors=of_donors,
            intervals=intervals.get(method),
        )
    return scores


def score_phenotype(
    true_codes: ArrayLike, predicted_codes: ArrayLike, values: Sequence[str]
) -> PhenotypeScores:
    """Compare predicted with true codes; the scores are NaN if there are no cells.

    Raises
    ------
    DataError
        The lengths differ, or a code has no value.
    """
    n_values = len(values)
    true = _check_codes("true", true_codes, n_values)
    predicted = _check_codes("predicted", predicted_codes, n_values)
    if true.shape != predicted.shape:
        message = (
            f"there are {len(true)} true and {len(predicted)} predicted phenotype codes; "
            "pass one of each per cell"
        )
        raise DataError(message)
    labelled = true >= 0
    true, predicted = true[labelled], predicted[labelled]
    has_prediction = predicted >= 0
    pairs = true[has_prediction] * n_values + predicted[has_prediction]
    confusion = np.bincount(pairs, minlength=n_values**2).reshape(n_values, n_values)
    n_true = np.bincount(true, minlength=n_values)
    present = n_true > 0
    accuracy = balanced = macro = math.nan
    if len(true):
        hits = np.diag(confusion)[present]
        accuracy = float(hits.sum() / len(true))
        balanced = float((hits / n_true[present]).mean())
        macro = float((2 * hits / (n_true[present] + confusion.sum(axis=0)[present])).mean())
    return PhenotypeScores(
        accuracy=accuracy,
        balanced_accuracy=balanced,
        macro_f1=macro,
        n_cells=len(true),
        n_unpredicted=int((~has_prediction).sum()),
        values=tuple(values),
        confusion=confusion.tolist(),
    )


def _check_codes(kind: str, codes: ArrayLike, n_values: int) -> NDArray[np.int64]:
    checked = np.asarray(codes)
    if checked.size == 0:
        checked = checked.astype(np.int64)
    if checked.ndim != 1 or not np.issubdtype(checked.dtype, np.integer):
        message = f"{kind} phenotype codes must be one row of integers, not {checked.dtype} of shape {checked.shape}"
        raise DataError(message)
    if checked.size and (checked.min() < -1 or checked.max() >= n_values):
        wrong = int(checked.min() if checked.min() < -1 else checked.max())
        message = (
            f"the {kind} phenotype code {wrong} has no value; codes are -1 (missing) to "
            f"{n_values - 1}"
        )
        raise DataError(message)
    return checked.astype(np.int64)


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

    The confidence is the probability of the predicted value.

    Notes
    -----
    Naeini et al. 2015; Guo et al. 2017 (top-label, equal-width bins).
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


def years_of(label: str) -> float | None:
    """Age in years of a value, the middle of a range; None if it is not an age."""
    if match := _RANGE.fullmatch(label.strip()):
        first, last = int(match[1]), int(match[2])
        if first <= last <= first + _LONGEST_RANGE:
            return (first + last + 1) / 2
        return None
    years = parse_years(label)
    return years + 5 if years is not None and "decade" in label else years


def mae_years(
    true_codes: ArrayLike, predicted_codes: ArrayLike, values: Sequence[str]
) -> float | None:
    """Mean absolute error of predicted ages, in years.

    Returns
    -------
    None if fewer than two values are ages, or no cell has one. Cells whose true value is not an age are
    left out; a predicted value that is not an age counts as the value furthest off.
    """
    ages = [years_of(value) for value in values]
    years = np.array([math.nan if age is None else age for age in [*ages, None]])
    if np.isfinite(years).sum() < 2:
        return None
    truth = years[np.asarray(true_codes, dtype=np.int64)]
    predicted = years[np.asarray(predicted_codes, dtype=np.int64)]  # -1 is the last: no age
    known = np.isfinite(truth)
    if not known.any():
        return None
    truth, predicted = truth[known], predicted[known]
    furthest = np.maximum(truth - np.nanmin(years), np.nanmax(years) - truth)
    return float(np.where(np.isfinite(predicted), np.abs(truth - predicted), furthest).mean())


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
        for one in np.flatnonzero(n_cells >= LEAST_DONOR_CELLS).tolist()
    ]
    n_donors = int((n_cells > 0).sum())
    if not scored:
        return DonorAccuracies(n_donors, each=())
    scored.sort(key=lambda one: (one.accuracy, one.donor))
    median = float(np.median([one.accuracy for one in scored]))
    worst, best = scored[0].accuracy, scored[-1].accuracy
    return DonorAccuracies(n_donors, len(scored), worst, median, best, tuple(scored))
