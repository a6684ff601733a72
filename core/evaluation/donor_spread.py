"""Accuracy donor by donor: a mean over cells hides the donors on whom a model fails."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["DonorAccuracy", "DonorSpread", "spread_over_donors"]

#: Cells below which a donor's accuracy is chance.
LEAST_CELLS = 10


@dataclass(frozen=True)
class DonorAccuracy:
    """Share of one donor's labelled cells that are told rightly."""

    donor: str
    n_cells: int
    accuracy: float


@dataclass(frozen=True)
class DonorSpread:
    """Accuracy over donors.

    Attributes
    ----------
    n_donors
        Donors with a scored cell.
    donors
        Those of `LEAST_CELLS` cells or more, the worst first; minimum, median and maximum are
        over these, NaN where there are none.
    """

    n_donors: int
    donors: tuple[DonorAccuracy, ...]

    @property
    def minimum(self) -> float:
        """Accuracy of the worst donor."""
        return self.donors[0].accuracy if self.donors else math.nan

    @property
    def median(self) -> float:
        """Accuracy of the middle donor."""
        return float(np.median([one.accuracy for one in self.donors])) if self.donors else math.nan

    @property
    def maximum(self) -> float:
        """Accuracy of the best donor."""
        return self.donors[-1].accuracy if self.donors else math.nan

    def to_dict(self, *, each: bool) -> dict[str, Any]:
        """Return plain values; ``each`` lists the donors."""
        record: dict[str, Any] = {
            "donors": self.n_donors,
            f"donors of {LEAST_CELLS} cells or more": len(self.donors),
            "min": self.minimum,
            "median": self.median,
            "max": self.maximum,
        }
        if each:
            record["each"] = [
                {"donor": one.donor, "cells": one.n_cells, "accuracy": one.accuracy}
                for one in self.donors
            ]
        return record


def spread_over_donors(
    true_codes: ArrayLike,
    predicted_codes: ArrayLike,
    donors: ArrayLike,
    donor_names: Sequence[str],
    *,
    least_cells: int = LEAST_CELLS,
) -> DonorSpread:
    """Score each donor.

    Parameters
    ----------
    true_codes, predicted_codes
        (cells,), -1 where missing.
    donors
        (cells,), codes of `donor_names`, -1 where not known: left out.
    least_cells
        Donors with fewer labelled cells are counted, not scored.
    """
    true, predicted, of_donor = (np.asarray(one) for one in (true_codes, predicted_codes, donors))
    counted = (true >= 0) & (of_donor >= 0)
    of_donor = of_donor[counted]
    n_cells = np.bincount(of_donor, minlength=len(donor_names))
    n_right = np.bincount(
        of_donor, weights=(true == predicted)[counted], minlength=len(donor_names)
    )
    scored = [
        DonorAccuracy(donor_names[one], int(n_cells[one]), float(n_right[one] / n_cells[one]))
        for one in np.flatnonzero(n_cells >= least_cells).tolist()
    ]
    scored.sort(key=lambda one: (one.accuracy, one.donor))
    return DonorSpread(int((n_cells > 0).sum()), tuple(scored))
