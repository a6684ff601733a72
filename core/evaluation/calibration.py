"""Fit the calibration of a model on validation cells, and score it on others.

Donors of the validation split decide the temperatures and thresholds; test donors are only ever scored.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from core.evaluation.metrics import bootstrap_scores, calibrate
from core.evaluation.report.records import ConfidenceScores
from core.model.calibration import PhenotypeCalibration, UnsureRule, temper

Integers = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]

#: Bounds of a temperature.
_COLDEST, _HOTTEST = 0.05, 20.0
#: Points of the curve from which thresholds are read; each has at least this number of kept cells.
_POINTS, _LEAST_KEPT = 200, 20


def fit_calibration(
    truth: Mapping[str, Integers],
    probabilities: Mapping[str, Floats],
    donors: Integers | None,
    *,
    seed: int,
) -> dict[str, PhenotypeCalibration]:
    """Fit phenotype -> calibration.

    ``truth`` is phenotype -> (cells,) codes of its values, -1 where a label is missing; ``probabilities``
    phenotype -> (cells, values) of the model at temperature 1, all phenotypes masked; ``donors`` (cells,) codes,
    -1 where not known.
    """
    return {
        name: _fit(truth[name], of_name, donors, seed=seed)
        for name, of_name in probabilities.items()
    }


def _fit(
    truth: Integers, probabilities: Floats, donors: Integers | None, *, seed: int
) -> PhenotypeCalibration:
    labelled = truth >= 0
    true, probability = truth[labelled], np.asarray(probabilities, dtype=np.float64)[labelled]
    of_cells = None if donors is None else donors[labelled]
    n_donors = 0 if of_cells is None else len(np.unique(of_cells[of_cells >= 0]))
    known = PhenotypeCalibration(n_cells=len(true), n_donors=n_donors)
    if not known.is_fitted:
        return known
    temperature = fit_temperature(true, probability)
    tempered = temper(probability, temperature)
    predicted = tempered.argmax(axis=1)
    n_values = probability.shape[1]
    interval = bootstrap_scores(true, {"model": predicted}, n_values, donors=of_cells, seed=seed)
    confidence, is_right = tempered.max(axis=1), predicted == true
    points, accuracies = _kept(confidence, is_right)
    return known.model_copy(
        update={
            "temperature": temperature,
            "accuracy": float(is_right.mean()),
            "accuracy_low": interval["model"].accuracy[0],
            "majority": float(np.bincount(true).max() / len(true)),
            "probabilities": points,
            "kept_accuracies": accuracies,
        }
    )


def fit_temperature(truth: Integers, probabilities: Floats) -> float:
    """Fit the temperature by likelihood, given (cells,) true codes and (cells, values) probabilities.

    The target of a cell leaves 1 / (cells + 2) to the other values (as in Platt 1999), so that cells which are all
    predicted rightly do not make the model certain.
    """
    n_cells, n_values = probabilities.shape
    if n_values < 2:
        return 1.0
    left = 1 / (n_cells + 2)
    target = np.full(probabilities.shape, left / (n_values - 1))
    target[np.arange(n_cells), truth] = 1 - left
    logits = np.log(np.maximum(probabilities, 1e-30))

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        highest = scaled.max(axis=1)
        log_sums = highest + np.log(np.exp(scaled - highest[:, None]).sum(axis=1))
        return float((log_sums - (target * scaled).sum(axis=1)).mean())

    bounds = (math.log(_COLDEST), math.log(_HOTTEST))
    return round(math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x), 4)


def _kept(
    confidence: NDArray[np.float64], is_right: NDArray[np.bool_]
) -> tuple[list[float], list[float]]:
    """Return probabilities, ascending from 0, and the accuracy of the cells with that or more."""
    order = np.argsort(-confidence, kind="stable")
    falling, n_right = confidence[order], np.cumsum(is_right[order])
    # The last cell of each probability: cells of equal probability are kept together.
    ends = np.flatnonzero(np.append(np.diff(falling) < 0, True))
    ends = ends[ends + 1 >= min(_LEAST_KEPT, len(falling))]
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, _POINTS).astype(np.int64))][::-1]
    # Rounded down, so that the last cell itself is kept.
    points = np.floor(falling[ends] * 1e6) / 1e6
    points[0] = 0.0
    return points.tolist(), np.round(n_right[ends] / (ends + 1), 6).tolist()


def score_confidence(
    truth: Integers,
    probabilities: Floats,
    uncalibrated: Floats,
    is_sure: NDArray[np.bool_],
    *,
    temperature: float,
    rule: UnsureRule,
) -> ConfidenceScores:
    """Score (cells, values) probabilities of cells on which the calibration was not fitted, after and before it.

    ``is_sure`` are (cells,); ``temperature`` and ``rule`` are the model's.
    """
    labelled = truth >= 0
    kept = labelled & is_sure
    is_right = probabilities.argmax(axis=1) == truth
    return ConfidenceScores(
        temperature=temperature,
        uncalibrated=calibrate(uncalibrated, truth),
        unsure_below=None if rule.is_always else rule.below,
        n_unsure=int((labelled & ~is_sure).sum()),
        kept_accuracy=float(is_right[kept].mean()) if kept.any() else math.nan,
        reason=rule.reason or None,
    )
