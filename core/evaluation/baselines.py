"""The classical answers a model is held against, on the same cells, genes and split.

Each baseline learns from labelled training cells and gives a probability of every value for every
test cell. What they share is here: which cells they learn from, and what happens to labels that
leave nothing to learn. The methods themselves have a module each.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from core.errors import DataError
from core.evaluation.boosting_baseline import gradient_boosting
from core.evaluation.linear_baseline import logistic_regression
from core.evaluation.marginal_baseline import gene_marginals
from core.evaluation.neighbour_baseline import nearest_neighbours

__all__ = ["ALL_BASELINES", "BASELINE_SETS", "QUICK_BASELINES", "answer_baseline"]

FloatArray = NDArray[np.float64]
#: (training cells, their codes, test cells, seed) -> (test cells, codes that occur), ascending.
Fit = Callable[[sparse.csr_matrix, NDArray[np.int64], sparse.csr_matrix, int], FloatArray]

#: Method -> how it is fitted, and training cells it takes at most (a seeded sample beyond).
_FITS: dict[str, tuple[Fit, int]] = {
    "logistic_regression": (logistic_regression, 50_000),
    "gradient_boosting": (gradient_boosting, 10_000),
    "nearest_neighbours": (nearest_neighbours, 50_000),
    "marginal": (gene_marginals, 50_000),
}

#: The strong ones first.
ALL_BASELINES = (*_FITS, "majority")
#: What takes seconds.
QUICK_BASELINES = ("logistic_regression", "marginal", "majority")
#: What `tfx eval --baselines` offers.
BASELINE_SETS: dict[str, tuple[str, ...]] = {
    "quick": QUICK_BASELINES,
    "all": ALL_BASELINES,
    "none": (),
}


def answer_baseline(
    method: str,
    train_x: sparse.csr_matrix,
    train_codes: ArrayLike,
    test_x: sparse.csr_matrix,
    n_values: int,
    *,
    seed: int,
    max_train_cells: int | None = None,
) -> FloatArray:
    """Fit a baseline on training cells and ask it about test cells.

    Parameters
    ----------
    method
        One of `ALL_BASELINES`.
    train_x, test_x
        (cells, genes), log1p counts per 10k.
    train_codes
        (cells,), codes in [0, n_values), -1 where missing: not learnt from.
    n_values
        Values of the phenotype.
    seed
        Decides which cells are kept where there are more than the method takes.
    max_train_cells
        Largest training sample; default the method's own.

    Returns
    -------
    (test cells, values) probabilities. Values without training cells have 0. Where all training
    cells have one value every method answers that one.

    Raises
    ------
    DataError
        No training cell has a value, or the two matrices differ in genes.
    """
    if train_x.shape[1] != test_x.shape[1]:
        message = (
            f"training cells have {train_x.shape[1]} genes and test cells {test_x.shape[1]}; "
            "read both with one panel"
        )
        raise DataError(message)
    train = np.asarray(train_codes).astype(np.int64)
    rows = np.flatnonzero(train >= 0)
    if not len(rows):
        message = "no training cell has a value of this phenotype; leave the phenotype out"
        raise DataError(message)
    shares = np.bincount(train[rows], minlength=n_values) / len(rows)
    constant = np.tile(shares, (test_x.shape[0], 1))
    if method == "majority" or test_x.shape[0] == 0:
        return constant
    fit, most_cells = _FITS[method]
    most_cells = most_cells if max_train_cells is None else max_train_cells
    if len(rows) > most_cells:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most_cells, replace=False))
    present = np.unique(train[rows])
    if len(present) == 1:  # nothing to tell apart, or the sample missed every rare value
        return constant
    probabilities = np.zeros((test_x.shape[0], n_values))
    probabilities[:, present] = fit(train_x[rows], train[rows], test_x, seed)
    return probabilities
