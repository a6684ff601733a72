"""The classical answers a model is held against: the majority class and logistic regression.

Logistic regression is the baseline that single-cell models often fail to beat; it is fitted here to
convergence, on standardised log values with balanced class weights, so that losing to it means
something.
"""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from core.errors import DataError
from core.evaluation.phenotype_metrics import PhenotypeScores, score_phenotype

__all__ = ["logistic_regression_baseline", "majority_baseline"]

_log = logging.getLogger(__name__)

#: Inverse strength of the L2 penalty. On the simulated atlas and on onek1k_blood (256 genes, split
#: by donor) accuracies differ by under 0.01 between 0.02 and 1, the smaller doing a little better.
_PENALTY = 0.05
_MAX_ITERATIONS = 3000
#: Entries above which the matrix stays sparse: 25 million float64 are 200 MB.
_DENSE_ENTRIES = 25_000_000


def majority_baseline(
    train_codes: ArrayLike, test_codes: ArrayLike, values: Sequence[str]
) -> PhenotypeScores:
    """Predict the most frequent training value for every cell.

    Parameters
    ----------
    train_codes, test_codes
        (cells,), codes of `values`, -1 where missing.
    values
        Names of the codes.

    Raises
    ------
    DataError
        No training cell has a value.
    """
    train = _labelled(train_codes)
    majority = int(np.bincount(train).argmax())
    test = np.asarray(test_codes)
    return score_phenotype(test, np.full(test.shape, majority), values)


def logistic_regression_baseline(
    train_x: sparse.csr_matrix,
    train_codes: ArrayLike,
    test_x: sparse.csr_matrix,
    test_codes: ArrayLike,
    values: Sequence[str],
    *,
    seed: int,
    max_train_cells: int = 50_000,
) -> PhenotypeScores:
    """Fit multinomial logistic regression on training cells and score it on test cells.

    Parameters
    ----------
    train_x, test_x
        (cells, genes), log1p counts per 10k.
    train_codes, test_codes
        (cells,), codes of `values`, -1 where missing.
    values
        Names of the codes. Values without training cells are never predicted.
    seed
        Decides which cells are kept where there are more than `max_train_cells`.
    max_train_cells
        Largest training sample; more cells hardly change a linear fit.

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
    train, test = np.asarray(train_codes), np.asarray(test_codes)
    if len(np.unique(_labelled(train))) == 1:
        return majority_baseline(train, test, values)
    rows = np.flatnonzero(train >= 0)
    if len(rows) > max_train_cells:
        chosen = np.random.default_rng(seed).choice(rows, max_train_cells, replace=False)
        rows = np.sort(chosen)
        if len(np.unique(train[rows])) == 1:  # the sample missed every rare value
            return majority_baseline(train, test, values)
    scored = np.flatnonzero(test >= 0)
    predicted = np.full(len(test), -1, dtype=np.int64)
    if len(scored):
        fit, scored_x = _standardise(train_x[rows], test_x[scored])
        predicted[scored] = _fit(fit, train[rows]).predict(scored_x)
    return score_phenotype(test, predicted, values)


def _labelled(codes: ArrayLike) -> NDArray[np.int64]:
    given = np.asarray(codes)
    given = given[given >= 0]
    if not len(given):
        message = "no training cell has a value of this phenotype; leave the phenotype out"
        raise DataError(message)
    return given.astype(np.int64)


def _standardise(train_x: sparse.csr_matrix, test_x: sparse.csr_matrix) -> tuple[Any, Any]:
    """Scale genes to unit variance over the training cells; constant genes become zero.

    Small matrices are made dense and centred, which changes the intercepts alone (they carry no
    penalty) and speeds the fit up several times; large ones stay sparse.
    """
    train = train_x.astype(np.float64)
    mean = np.asarray(train.mean(axis=0)).ravel()
    squares = np.asarray(train.multiply(train).mean(axis=0)).ravel()
    deviation = np.sqrt(np.maximum(squares - mean**2, 0.0))
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-8)
    test = test_x.astype(np.float64)
    if max(np.prod(train.shape), np.prod(test.shape)) <= _DENSE_ENTRIES:
        return (train.toarray() - mean) * scale, (test.toarray() - mean) * scale
    diagonal = sparse.diags_array(scale)
    return sparse.csr_matrix(train @ diagonal), sparse.csr_matrix(test @ diagonal)


def _fit(x: Any, codes: NDArray[np.int64]) -> Any:  # noqa: ANN401 (scikit-learn is untyped)
    from sklearn.exceptions import ConvergenceWarning  # 500 ms
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=_PENALTY, class_weight="balanced", solver="lbfgs", max_iter=_MAX_ITERATIONS
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, codes)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        _log.warning(
            "logistic regression did not converge in %d iterations on %d cells of %d genes; "
            "its score is a lower bound",
            _MAX_ITERATIONS,
            *x.shape,
        )
    return model
