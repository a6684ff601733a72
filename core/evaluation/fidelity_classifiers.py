"""Classifiers that judge generated cells.

Can they be told from real cells, are they what was asked for, can one learn from them.
"""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassTeller", "macro_f1", "tell_generated", "weighted_auc"]

_TREES, _LEAF, _FOLDS = 300, 2, 5
#: Inverse strength of the L2 penalty of the condition classifier.
_PENALTY = 0.02
_MAX_ITERATIONS = 2000

Values = NDArray[np.floating[Any]]
FloatArray = NDArray[np.float64]
Codes = NDArray[np.integer[Any]]


def tell_generated(
    real: Values, generated: Values, *, seed: int, n_trees: int = _TREES
) -> tuple[FloatArray, FloatArray]:
    """Ask a random forest which cells are generated, each cell by trees that have not seen it.

    Parameters
    ----------
    real, generated
        (cells, genes).
    seed
        Of the folds and the forest.
    n_trees
        Trees; leaves have two cells or more. Stratified, out of five folds.

    Returns
    -------
    (real cells,) and (generated cells,), probability of being generated.
    """
    from sklearn.ensemble import RandomForestClassifier  # 700 ms
    from sklearn.model_selection import StratifiedKFold

    cells = np.concatenate([real, generated]).astype(np.float32)
    truth = np.repeat([0, 1], [len(real), len(generated)])
    told = np.empty(len(cells))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(cells, truth):
        forest = RandomForestClassifier(
            n_trees, min_samples_leaf=_LEAF, n_jobs=-1, random_state=seed
        ).fit(cells[train], truth[train])
        forest.n_jobs = (
            1  # threads would add the trees' answers in any order, and round differently
        )
        told[test] = forest.predict_proba(cells[test])[:, 1]
    return told[: len(real)], told[len(real) :]


def weighted_auc(
    real: FloatArray, generated: FloatArray, real_weights: FloatArray, generated_weights: FloatArray
) -> FloatArray:
    """(weightings,), area under the ROC curve; ties count a half.

    Parameters
    ----------
    real, generated
        (cells,), probability of being generated.
    real_weights, generated_weights
        (weightings, cells), times each cell is taken.
    """
    scores, place = np.unique(np.concatenate([real, generated]), return_inverse=True)
    of_real, of_generated = place[: len(real)], place[len(real) :]
    areas = np.empty(len(real_weights))
    for number, (w, v) in enumerate(zip(real_weights, generated_weights, strict=True)):
        n_real = np.bincount(of_real, weights=w, minlength=len(scores))
        n_generated = np.bincount(of_generated, weights=v, minlength=len(scores))
        below = np.cumsum(n_real) - 0.5 * n_real
        areas[number] = (n_generated * below).sum() / (w.sum() * v.sum())
    return areas


class ClassTeller:
    """Logistic regression that tells the class of a cell, on scaled genes.

    Parameters
    ----------
    cells
        (cells, genes) to learn from.
    classes
        (cells,), codes.
    balanced
        Whether all classes weigh the same, whatever their cells.
    """

    def __init__(self, cells: Values, classes: Codes, *, balanced: bool = True) -> None:
        from sklearn.exceptions import ConvergenceWarning  # 500 ms
        from sklearn.linear_model import LogisticRegression

        wide = cells.astype(np.float64)
        self._centre = wide.mean(axis=0)
        deviation = wide.std(axis=0)
        self._scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 1e-8)
        self._only = int(classes[0])
        self._model = None
        if len(np.unique(classes)) > 1:
            self._model = LogisticRegression(
                C=_PENALTY,
                class_weight="balanced" if balanced else None,
                max_iter=_MAX_ITERATIONS,
            )
            with warnings.catch_warnings():
                # So strong a penalty converges in tens of steps; if not, it is close.
                warnings.simplefilter("ignore", ConvergenceWarning)
                self._model.fit((wide - self._centre) * self._scale, classes)

    def tell(self, cells: Values) -> NDArray[np.int64]:
        """(cells,), codes of the likeliest class."""
        if self._model is None:
            return np.full(len(cells), self._only, dtype=np.int64)
        told: NDArray[np.int64] = self._model.predict((cells - self._centre) * self._scale)
        return told


def macro_f1(true: Codes, told: Codes, n_classes: int, weights: FloatArray) -> FloatArray:
    """(weightings,), F1 of each class that occurs among the true ones, mean over classes.

    Parameters
    ----------
    true, told
        (cells,), codes.
    weights
        (weightings, cells), times each cell is taken.
    """
    is_true = true[:, None] == np.arange(n_classes)
    is_told = told[:, None] == np.arange(n_classes)
    hits = weights @ (is_true & is_told)
    n_true, n_told = weights @ is_true, weights @ is_told
    f1 = np.divide(2 * hits, n_true + n_told, out=np.zeros_like(hits), where=n_true + n_told > 0)
    present = n_true > 0
    scores: FloatArray = (f1 * present).sum(axis=1) / present.sum(axis=1)
    return scores
