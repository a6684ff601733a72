"""The baselines: simple methods that predict the same phenotypes of the same cells from the same genes.

Each learns from labelled training cells and gives every test cell a probability of every value.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.evaluation.metrics import score_phenotype
from core.evaluation.report.records import TwoGeneScores
from core.random_streams import sample_rows

_log = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]
Codes = NDArray[np.integer[Any]]
#: (training cells, their codes, test cells, seed) -> (test cells, codes that occur), ascending.
Fit = Callable[[sparse.csr_matrix, NDArray[np.int64], sparse.csr_matrix, int], FloatArray]

#: Inverse strength of the L2 penalty. On the simulated atlas and on onek1k_blood (256 genes, split
#: by donor) accuracies differ by under 0.01 between 0.02 and 1, the smaller doing a little better.
PENALTY = 0.05
_MAX_ITERATIONS = 3000
#: Entries above which a matrix stays sparse: 25 million float64 are 200 MB.
DENSE_ENTRIES = 25_000_000
#: Genes that vary most over the training cells; more cost time and hardly change a score.
BOOSTED_GENES = 256
#: Trees of all values together: 100 rounds for two values, 30 for 20 and more.
_MOST_TREES = 600
_ROUNDS = (30, 100)
#: scanpy's defaults.
_N_COMPONENTS, _N_NEIGHBOURS = 50, 15


def logistic_regression(
    train_x: sparse.csr_matrix, train_codes: NDArray[np.int64], test_x: sparse.csr_matrix, seed: int
) -> FloatArray:
    """Fit multinomial logistic regression to convergence: genes at unit variance, balanced classes."""
    from sklearn.exceptions import ConvergenceWarning  # 500 ms
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x: Any = train_x.astype(np.float64)
    scored_x: Any = test_x.astype(np.float64)
    # To centre genes changes the intercepts alone, which carry no penalty, but is several times faster.
    is_dense = max(np.prod(x.shape), np.prod(scored_x.shape)) <= DENSE_ENTRIES
    if is_dense:
        x, scored_x = x.toarray(), scored_x.toarray()
    scaler = StandardScaler(with_mean=is_dense).fit(x)
    model = LogisticRegression(
        C=PENALTY, class_weight="balanced", solver="lbfgs", max_iter=_MAX_ITERATIONS
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(scaler.transform(x), train_codes)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        message = (
            "logistic regression did not converge in %d iterations on %d cells of %d genes; its score is "
            "a lower bound"
        )
        _log.warning(message, _MAX_ITERATIONS, *x.shape)
    probabilities: FloatArray = model.predict_proba(scaler.transform(scored_x))
    return probabilities


def gradient_boosting(
    train_x: sparse.csr_matrix, train_codes: NDArray[np.int64], test_x: sparse.csr_matrix, seed: int
) -> FloatArray:
    """Fit histogram gradient boosting: the strongest general method for tables without tuning."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # 700 ms
    from sklearn.utils.sparsefuncs import mean_variance_axis

    variance = mean_variance_axis(train_x.astype(np.float64), axis=0)[1]
    genes = np.sort(np.argsort(-variance, kind="stable")[:BOOSTED_GENES])
    n_values = len(np.unique(train_codes))
    model = HistGradientBoostingClassifier(
        max_iter=int(np.clip(_MOST_TREES // n_values, *_ROUNDS)),
        max_leaf_nodes=15,
        max_bins=63,
        early_stopping=False,
        random_state=seed,
    )
    model.fit(train_x[:, genes].toarray(), train_codes)
    probabilities: FloatArray = model.predict_proba(test_x[:, genes].toarray())
    return probabilities


def nearest_neighbours(
    train_x: sparse.csr_matrix, train_codes: NDArray[np.int64], test_x: sparse.csr_matrix, seed: int
) -> FloatArray:
    """Give each value its fraction of the nearest training cells, as label transfer does.

    Distances are those in principal components of the training cells (log values, centred, not scaled).
    """
    from sklearn.decomposition import PCA  # 500 ms
    from sklearn.neighbors import KNeighborsClassifier

    n_components = min(_N_COMPONENTS, train_x.shape[1], train_x.shape[0])
    # arpack subtracts the mean without making the matrix dense, but cannot give all components.
    is_whole = n_components >= min(train_x.shape)
    x: Any = train_x.astype(np.float64)
    scored_x: Any = test_x.astype(np.float64)
    if is_whole:
        x, scored_x = x.toarray(), scored_x.toarray()
    solver = "full" if is_whole else "arpack"
    components = PCA(n_components, svd_solver=solver, random_state=seed).fit(x)
    neighbours = KNeighborsClassifier(min(_N_NEIGHBOURS, train_x.shape[0]), algorithm="brute")
    neighbours.fit(components.transform(x), train_codes)
    fractions: FloatArray = neighbours.predict_proba(components.transform(scored_x))
    return fractions


def gene_marginals(
    train_x: sparse.csr_matrix, train_codes: NDArray[np.int64], test_x: sparse.csr_matrix, seed: int
) -> FloatArray:
    """Fit Bernoulli naive Bayes on which genes a cell expresses, one cell added to each side."""
    from sklearn.naive_bayes import BernoulliNB  # 500 ms

    model = BernoulliNB(alpha=1.0, binarize=0.0).fit(train_x, train_codes)
    probabilities: FloatArray = model.predict_proba(test_x)
    return probabilities


#: Method -> how it is fitted, and training cells it takes at most (a seeded sample beyond).
_FITS: dict[str, tuple[Fit, int]] = {
    "logistic_regression": (logistic_regression, 50_000),
    "gradient_boosting": (gradient_boosting, 10_000),
    "nearest_neighbours": (nearest_neighbours, 50_000),
    "marginal": (gene_marginals, 50_000),
}

#: The strong ones first.
ALL_BASELINES = (*_FITS, "majority")
#: Those that take seconds.
QUICK_BASELINES = ("logistic_regression", "marginal", "majority")
#: What `tfx eval --baselines` offers.
BASELINE_SETS: dict[str, tuple[str, ...]] = {
    "quick": QUICK_BASELINES,
    "all": ALL_BASELINES,
    "none": (),
}


def predict_by_baseline(
    method: str,
    train_x: sparse.csr_matrix,
    train_codes: Codes,
    test_x: sparse.csr_matrix,
    n_values: int,
    *,
    seed: int,
) -> FloatArray:
    """(test cells, values) probabilities of a baseline, fitted on the training cells that have a code.

    ``train_x`` and ``test_x`` are (cells, genes), log1p counts per 10,000. Values without training cells
    have 0. If all training cells have one value, every method predicts it.
    """
    rows = np.flatnonzero(train_codes >= 0)
    fractions = np.bincount(train_codes[rows], minlength=n_values) / len(rows)
    constant = np.tile(fractions, (test_x.shape[0], 1))
    if method == "majority":
        return constant
    fit, most_cells = _FITS[method]
    rows = sample_rows(rows, most_cells, np.random.default_rng(seed))
    codes = train_codes[rows].astype(np.int64)
    present = np.unique(codes)
    if len(present) == 1:  # there is one value only, or the sample missed every rare one
        return constant
    probabilities = np.zeros((test_x.shape[0], n_values))
    probabilities[:, present] = fit(train_x[rows], codes, test_x, seed)
    return probabilities


def score_two_genes(
    train_x: sparse.csr_matrix,
    train_codes: Codes,
    test_x: sparse.csr_matrix,
    test_codes: Codes,
    symbols: Sequence[str],
) -> TwoGeneScores | None:
    """Predict a phenotype of two values from the two genes that predict it best in training cells.

    A high score that two genes also reach (sex: XIST and a Y gene) means that the model has found these
    genes, and nothing about the rest of the cell. None unless the training cells have exactly two values,
    the test cells more than one, and two genes vary.
    """
    from sklearn.linear_model import LogisticRegression  # 500 ms

    rows, scored = np.flatnonzero(train_codes >= 0), np.flatnonzero(test_codes >= 0)
    present = np.unique(train_codes[rows])
    if len(present) != 2 or len(np.unique(test_codes[scored])) < 2:
        return None
    x = train_x[rows].astype(np.float64)
    y = (train_codes[rows] == present[1]).astype(np.float64)
    columns = _two_genes(x, y - y.mean())
    if columns is None:
        return None
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(x[:, columns].toarray(), train_codes[rows])
    predicted = model.predict(test_x[scored][:, columns].toarray())
    n_values = int(max(train_codes.max(), test_codes.max())) + 1
    scores = score_phenotype(test_codes[scored], predicted, [""] * n_values)
    first, second = (symbols[gene] for gene in columns)
    return TwoGeneScores((first, second), scores.accuracy, scores.balanced_accuracy)


def _two_genes(x: sparse.csr_matrix, y: FloatArray) -> list[int] | None:
    """Choose two genes by forward selection: correlation with ``y``, which is centred."""
    n_cells = x.shape[0]
    mean = np.asarray(x.mean(axis=0)).ravel()
    power = np.asarray(x.multiply(x).sum(axis=0)).ravel() - n_cells * mean**2
    varies = power > 1e-8 * n_cells
    if varies.sum() < 2:
        return None

    def strength(target: FloatArray, left: FloatArray) -> FloatArray:
        explained = np.asarray(x.T @ target) ** 2
        return np.divide(explained, left, out=np.zeros_like(left), where=left > 1e-8 * n_cells)

    first = int(strength(y, np.where(varies, power, 0.0)).argmax())
    one = x[:, [first]].toarray().ravel() - mean[first]
    rest = y - one * (one @ y) / power[first]
    overlap = np.asarray(x.T @ one)  # the mean of the other gene cancels: this one is centred
    left = np.where(varies, power - overlap**2 / power[first], 0.0)
    left[first] = 0.0
    if not (left > 1e-8 * n_cells).any():
        return None
    return [first, int(strength(rest, left).argmax())]
