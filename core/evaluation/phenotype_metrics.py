"""How well the values of a phenotype are told: accuracy, balanced accuracy, macro-F1, confusion.

Values travel as codes, positions in the phenotype's list of values; -1 means missing. Cells whose
true value is missing are left out. A missing prediction is an error that falls in no column of the
confusion matrix.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import DataError

__all__ = ["ClassScore", "PhenotypeScores", "score_phenotype"]


@dataclass(frozen=True)
class ClassScore:
    """One value's share of the scores."""

    value: str
    n_cells: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class PhenotypeScores:
    """Scores of one phenotype.

    Attributes
    ----------
    accuracy
        Share of cells told rightly; NaN without cells, as are the next two.
    balanced_accuracy
        Mean recall of the values that occur among the true ones.
    macro_f1
        Mean F1 of the values that occur among the true ones.
    n_cells
        Cells with a true value.
    confusion
        (values, values) counts, row = true, column = predicted.
    values
        Names of the rows and columns.
    cells_per_value
        Cells of each true value.
    n_unpredicted
        Cells with a true value but no prediction; they count as errors.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    n_cells: int
    confusion: NDArray[np.int64]
    values: tuple[str, ...]
    cells_per_value: tuple[int, ...]
    n_unpredicted: int

    def per_class(self) -> list[ClassScore]:
        """Score every value that occurs among the true ones, in the order of the values."""
        hits = np.diag(self.confusion)
        predicted = self.confusion.sum(axis=0)
        scores = []
        for code, value in enumerate(self.values):
            n_true = self.cells_per_value[code]
            if not n_true:
                continue
            precision = float(hits[code] / predicted[code]) if predicted[code] else 0.0
            f1 = float(2 * hits[code] / (n_true + predicted[code]))
            scores.append(ClassScore(value, n_true, precision, float(hits[code] / n_true), f1))
        return scores

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what is not a number becomes None."""
        return {
            "accuracy": _finite(self.accuracy),
            "balanced_accuracy": _finite(self.balanced_accuracy),
            "macro_f1": _finite(self.macro_f1),
            "n_cells": self.n_cells,
            "n_unpredicted": self.n_unpredicted,
            "values": list(self.values),
            "confusion": self.confusion.tolist(),
        }


def score_phenotype(
    true_codes: ArrayLike, predicted_codes: ArrayLike, values: Sequence[str]
) -> PhenotypeScores:
    """Compare predicted with true values.

    Parameters
    ----------
    true_codes, predicted_codes
        (cells,), integers in [-1, len(values)); -1 is missing.
    values
        Names of the codes.

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
    told = predicted >= 0
    pairs = true[told] * n_values + predicted[told]
    confusion = np.bincount(pairs, minlength=n_values * n_values).reshape(n_values, n_values)
    true_counts = np.bincount(true, minlength=n_values)
    present = true_counts > 0
    n_cells = len(true)
    if n_cells:
        hits = np.diag(confusion)[present]
        recall = hits / true_counts[present]
        f1 = 2 * hits / (true_counts[present] + confusion.sum(axis=0)[present])
        accuracy, balanced, macro = hits.sum() / n_cells, recall.mean(), f1.mean()
    else:
        accuracy = balanced = macro = math.nan
    return PhenotypeScores(
        accuracy=float(accuracy),
        balanced_accuracy=float(balanced),
        macro_f1=float(macro),
        n_cells=n_cells,
        confusion=confusion.astype(np.int64),
        values=tuple(values),
        n_unpredicted=int(n_cells - told.sum()),
        cells_per_value=tuple(int(count) for count in true_counts),
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


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
