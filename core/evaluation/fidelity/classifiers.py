"""Classifiers that judge generated cells.

Can they be separated from real cells, are they of the requested class, can one learn from them.
"""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TREES, _LEAF, _FOLDS = 300, 2, 5
#: Inverse strength of the L2 penalty of the class classifier.
_PENALTY = 0.02
_MAX_ITERATIONS = 2000

Values = NDArray[np.floating[Any]]
FloatArray = NDArray[np.float64]
Codes = NDArray[np.integer[Any]]


def probability_generated(
    real: Values, generated: Values, *, seed: int, n_trees: int = _TREES
) -> tuple[FloatArray, FloatArray]:
    """Separate generated from real cells by a random forest.

    Each cell is judged by trees that have not seen it: stratified, out of five folds. Leaves have two cells
    or more.

    Parameters
    ----------
    real, generated
        (cells, genes).
    seed
        Of the folds and the forest.

    Returns
    -------
    (real cells,) and (generated cells,), probability of being generated.
    """
    from sklearn.ensemble import RandomForestClassifier  # 700 ms
    from sklearn.model_selection import StratifiedKFold

    cells = np.concatenate([real, generated]).astype(np.float32)
    truth = np.repeat([0, 1], [len(real), len(generated)])
    probabilities = np.empty(len(cells))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(cells, truth):
        forest = RandomForestClassifier(
            n_trees, min_samples_leaf=_LEAF, n_jobs=-1, random_state=seed
        ).fit(cells[train], truth[train])
        # Threads would add the predictions of the trees in any order, and round differently.
        forest.n_jobs = 1
        probabilities[test] = forest.predict_proba(cells[test])[:, 1]
    return probabilities[: len(real)], probabilities[len(real) :]


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


class ClassClassifier:
    """Logistic regression of the class of a cell, on genes of unit variance.

    ``cells`` are (cells, genes), ``classes`` (cells,) codes; ``balanced``: whether all classes weigh the
    same, whatever their number of cells.
    """

    def __init__(self, cells: Values, classes: Codes, *, balanced: bool = True) -> None:
        from sklearn.exceptions import ConvergenceWarning  # 500 ms
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._only = int(classes[0])
        self._model = None
        if len(np.unique(classes)) > 1:
            weights = "balanced" if balanced else None
            self._model = make_pipeline(
                StandardScaler(),
                LogisticRegression(C=_PENALTY, class_weight=weights, max_iter=_MAX_ITERATIONS),
            )
            with warnings.catch_warnings():
                # So strong a penalty converges in tens of steps; if not, it is close.
                warnings.simplefilter("ignore", ConvergenceWarning)
                self._model.fit(cells.astype(np.float64), classes)

    def predict(self, cells: Values) -> NDArray[np.int64]:
        """(cells,), codes of the most probable class."""
        if self._model is None:
            return np.full(len(cells), self._only, dtype=np.int64)
        predicted: NDArray[np.int64] = self._model.predict(cells.astype(np.float64))
        return predicted


def macro_f1(true: Codes, predicted: Codes, n_classes: int, weights: FloatArray) -> FloatArray:
    """(weightings,), mean over the classes that occur among the true ones of their F1.

    ``true`` and ``predicted`` are (cells,) codes, ``weights`` (weightings, cells): times a cell is taken.
    """
    is_true = true[:, None] == np.arange(n_classes)
    is_predicted = predicted[:, None] == np.arange(n_classes)
    n_right = weights @ (is_true & is_predicted)
    n_true, n_predicted = weights @ is_true, weights @ is_predicted
    n_both = n_true + n_predicted
    f1 = np.divide(2 * n_right, n_both, out=np.zeros_like(n_right), where=n_both > 0)
    present = n_true > 0
    scores: FloatArray = (f1 * present).sum(axis=1) / present.sum(axis=1)
    return scores
