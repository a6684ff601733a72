"""Whether probabilities mean what they say: expected calibration error and a reliability curve.

The confidence of an answer is the probability of the value that is answered. Of all answers given
with 0.8, 80 % should be right.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Calibration", "ReliabilityBin", "calibrate"]

N_BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers whose confidence lies in (low, high]: how many, their mean confidence, accuracy."""

    low: float
    high: float
    n_cells: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How confidence and accuracy agree.

    Attributes
    ----------
    error
        Expected calibration error: sum over bins of (cells of the bin / all cells) times
        |accuracy - mean confidence|; NaN without cells. It grows with noise where bins are small.
    overconfidence
        Mean confidence minus accuracy; above zero the model promises too much.
    curve
        Bins with cells, of equal width.
    """

    error: float
    overconfidence: float
    curve: tuple[ReliabilityBin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "error": self.error,
            "overconfidence": self.overconfidence,
            "curve": [
                {
                    "low": one.low,
                    "high": one.high,
                    "cells": one.n_cells,
                    "confidence": one.confidence,
                    "accuracy": one.accuracy,
                }
                for one in self.curve
            ],
        }


def calibrate(
    probabilities: NDArray[np.floating[Any]], true_codes: ArrayLike, *, n_bins: int = N_BINS
) -> Calibration:
    """Compare confidence with accuracy.

    Parameters
    ----------
    probabilities
        (cells, values).
    true_codes
        (cells,), -1 where missing: left out.
    n_bins
        Bins of equal width over (0, 1].

    Notes
    -----
    Naeini et al. 2015; Guo et al. 2017 (top-label, equal-width bins).
    """
    true = np.asarray(true_codes)
    labelled = true >= 0
    true, probability = true[labelled], np.asarray(probabilities, dtype=np.float64)[labelled]
    if not len(true):
        return Calibration(math.nan, math.nan, ())
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
        error=float(np.abs(n_right - sum_confidence).sum() / len(true)),
        overconfidence=float(confidence.mean() - is_right.mean()),
        curve=curve,
    )
