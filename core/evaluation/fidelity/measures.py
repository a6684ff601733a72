"""The measures of generated cells: classifiers as judges, distances between cells, agreement of genes.

- Classifiers: can generated cells be separated from real ones, are they of the requested class, can one learn
  from them.
- Distances: whether generated cells fill the same space, and copies. Points are cells in principal components,
  (cells, components). MMD: Gretton et al. 2012, JMLR 13:723, the unbiased estimate, which may fall below 0.
  Recall and coverage: Kynkäänniemi et al. 2019 (arXiv 1904.06991), Naeem et al. 2020 (arXiv 2002.09797).
- Genes: means, dropout, correlations, differences of classes. Pooled means cannot find a bad generator,
  because independent genes have them right; correlations within a class can.

Cells are dense, (cells, genes) log1p counts per 10,000 (0 and 1 of binary models). Weights are (weightings,
cells), times each cell is taken: ones, or the counts of a bootstrap resample.
"""

import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.genes import GenePanel
from core.errors import DataError
from core.evaluation.metrics import scores_of_counts
from core.files import plain_json

_TREES, _LEAF, _FOLDS = 300, 2, 5
#: Inverse strength of the L2 penalty of the class classifier.
_PENALTY = 0.02
_MAX_ITERATIONS = 2000

_COMPONENTS = 30
#: Bandwidths of the kernel, in median squared distances of real cells; their mean is taken.
_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
_NEIGHBOURS = 5
#: Distances held at a time: 4 million float64 are 32 MB.
_MOST_DISTANCES = 4_000_000
#: Cells with fewer expressed genes are equal by chance, and no copies.
_LEAST_EXPRESSED = 10

_CORRELATION_GENES = 100
_MAX_DETECTION = 0.97
#: With fewer cells of a class, or of the rest, their difference is chance.
_LEAST_OF_CLASS = 10
_TOP_GENES = 50

#: For correlations of the summary, and the length of its gene tables.
_MIN_CELLS, _MIN_GENES, _TOP = 3, 3, 15

Values = NDArray[np.floating[Any]]
FloatArray = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class LabelledCells:
    """Cells, (cells, genes) float32, and the code of the class of each."""

    values: NDArray[np.float32]
    classes: Codes

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.classes)

    def take(self, rows: NDArray[Any]) -> "LabelledCells":
        """Return some of the cells."""
        return LabelledCells(self.values[rows], self.classes[rows])


# ------------------------------------------------------------------------------------- classifiers
def probability_generated(
    real: Values, generated: Values, *, seed: int, n_trees: int = _TREES
) -> tuple[FloatArray, FloatArray]:
    """(real cells,) and (generated cells,): probability of being generated, by a random forest.

    Each cell is judged by trees that have not seen it: stratified, out of five folds. The seed is that of
    the folds and the forest.
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
    """(weightings,), area under the ROC curve of (cells,) probabilities; ties count a half."""
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

    ``balanced``: whether all classes weigh the same, whatever their number of cells.
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
    """(weightings,), mean F1 of the classes that occur among the true ones, of (cells,) codes."""
    is_true = true[:, None] == np.arange(n_classes)
    is_predicted = predicted[:, None] == np.arange(n_classes)
    n_right = weights @ (is_true & is_predicted)
    return scores_of_counts(weights @ is_true, n_right, weights @ is_predicted)[:, 2]


# --------------------------------------------------------------------------------------- distances
def fit_components(cells: Values) -> Any:  # noqa: ANN401 (of scikit-learn, untyped)
    """Return the PCA of (cells, genes): 30 components, or as many as cells and genes allow."""
    from sklearn.decomposition import PCA  # 500 ms

    return PCA(min(_COMPONENTS, *cells.shape), svd_solver="full").fit(cells.astype(np.float64))


def squared_distances(left: FloatArray, right: FloatArray) -> FloatArray:
    """(left cells, right cells)."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T
    return np.maximum(squares, 0.0)


def median_squared_distance(points: FloatArray) -> float:
    """Of all pairs of different cells."""
    upper = squared_distances(points, points)[np.triu_indices(len(points), k=1)]
    return float(np.median(upper))


def gaussian_kernel(squares: FloatArray, median: float) -> FloatArray:
    """Mean of exp(-d^2 / (f m)) over five bandwidths f; m is the median squared distance."""
    scale = max(median, 1e-12)
    kernel: FloatArray = np.mean([np.exp(-squares / (f * scale)) for f in _BANDWIDTHS], axis=0)
    return kernel


def mmd2(
    real: FloatArray,
    generated: FloatArray,
    between: FloatArray,
    real_weights: FloatArray,
    generated_weights: FloatArray,
) -> FloatArray:
    """(weightings,), squared maximum mean discrepancy, unbiased: without pairs of a cell with itself.

    ``real``, ``generated`` and ``between`` are kernels: (real, real), (generated, generated), (real, generated).
    """

    def within(kernel: FloatArray, weights: FloatArray) -> FloatArray:
        total = ((weights @ kernel) * weights).sum(axis=1)
        itself = (weights**2) @ np.diag(kernel)
        return (total - itself) / (weights.sum(axis=1) ** 2 - (weights**2).sum(axis=1))

    across = ((real_weights @ between) * generated_weights).sum(axis=1)
    across = across / (real_weights.sum(axis=1) * generated_weights.sum(axis=1))
    return within(real, real_weights) + within(generated, generated_weights) - 2 * across


def mmd2_of_splits(
    points: FloatArray, median: float, rng: np.random.Generator, n: int = 200
) -> FloatArray:
    """(n,), MMD^2 of real cells split at random into halves, which differ by chance alone."""
    kernel = gaussian_kernel(squared_distances(points, points), median)
    half = len(points) // 2
    drawn = np.empty(n)
    for number in range(n):
        order = rng.permutation(len(points))
        left, right = order[:half], order[half : 2 * half]
        ones = np.ones((1, half))
        real, other, between = (
            kernel[np.ix_(*pair)] for pair in ((left, left), (right, right), (left, right))
        )
        drawn[number] = mmd2(real, other, between, ones, ones)[0]
    return drawn


def recalled(generated_squares: FloatArray, between: FloatArray) -> NDArray[np.bool_]:
    """(real cells,), whether a cell is within the neighbourhood of a generated one.

    ``generated_squares`` and ``between`` are squared distances, (generated, generated) and (real, generated);
    a neighbourhood reaches to the fifth neighbour.
    """
    found: NDArray[np.bool_] = np.any(between <= _reach(generated_squares), axis=1)
    return found


def covered(real_squares: FloatArray, between: FloatArray) -> NDArray[np.bool_]:
    """(real cells,), whether a generated cell is within the neighbourhood of a real one."""
    found: NDArray[np.bool_] = np.any(between <= _reach(real_squares)[:, None], axis=1)
    return found


def _reach(squares: FloatArray) -> FloatArray:
    """(cells,), squared distance to the fifth neighbour, the cell itself not counted."""
    at = min(_NEIGHBOURS, len(squares) - 1)
    reach: FloatArray = np.partition(squares, at, axis=1)[:, at]
    return reach


def nearest_distances(points: FloatArray, others: FloatArray) -> FloatArray:
    """(cells,), distance of each point to the nearest of the others."""
    step = max(1, _MOST_DISTANCES // max(len(others), 1))
    parts = [
        np.sqrt(squared_distances(points[at : at + step], others).min(axis=1))
        for at in range(0, len(points), step)
    ]
    return np.concatenate(parts)


def find_copies(bins: NDArray[np.uint8], training_bins: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(cells,), which equal a training cell in the bin of every gene.

    Both are (cells, genes). Cells with fewer than ten expressed genes are never called copies.
    """
    known = {row.tobytes() for row in np.ascontiguousarray(training_bins)}
    same = np.array([row.tobytes() in known for row in np.ascontiguousarray(bins)], dtype=bool)
    return same & ((bins > 0).sum(axis=1) >= _LEAST_EXPRESSED)


# ------------------------------------------------------------------------------------------- genes
def marginal_agreement(real: Values, generated: Values) -> tuple[float, float]:
    """Pearson correlation of the genes' means, and mean absolute difference of detection rates."""
    means = [cells.mean(axis=0, dtype=np.float64) for cells in (real, generated)]
    detection = [(cells > 0).mean(axis=0) for cells in (real, generated)]
    return pearson(*means), float(np.abs(detection[0] - detection[1]).mean())


def detected_genes(cells: Values) -> NDArray[np.int64]:
    """(cells,), genes above zero."""
    return (cells > 0).sum(axis=1)


def correlation_genes(real: Values) -> NDArray[np.int64]:
    """Return the 100 genes of highest variance among those detected in under 97 % of the cells."""
    return choose_variable_genes(real.var(axis=0, dtype=np.float64), (real > 0).mean(axis=0))


def choose_variable_genes(variance: FloatArray, detection: FloatArray) -> NDArray[np.int64]:
    """Choose as `correlation_genes` does, by (genes,) variances and detection rates."""
    eligible = np.flatnonzero((detection < _MAX_DETECTION) & (variance > 1e-10))
    return eligible[np.argsort(-variance[eligible], kind="stable")[:_CORRELATION_GENES]]


def within_class_correlations(cells: Values, classes: Codes) -> FloatArray:
    """(pairs of genes,), Pearson correlations after subtracting each class's means.

    The upper triangle, row by row; a gene that does not vary within classes correlates with nothing.
    """
    centred = cells.astype(np.float64)
    for code in np.unique(classes):
        rows = classes == code
        centred[rows] -= centred[rows].mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    scaled = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-9)
    return (scaled.T @ scaled)[np.triu_indices(cells.shape[1], k=1)]


def correlation_agreement(real: FloatArray, generated: FloatArray) -> tuple[float, float]:
    """Compare correlations pair by pair: Pearson r, and slope through the origin on the real ones.

    Independent genes have a slope of 0; a slope above 1 exaggerates.
    """
    power = float((real**2).sum())
    if len(real) < 3 or power <= 0:
        return math.nan, math.nan
    return pearson(real, generated), float((real * generated).sum()) / power


def fold_changes(cells: Values, classes: Codes, n_classes: int) -> FloatArray:
    """(classes, genes), mean log1p value of a class minus that of all other cells.

    Natural-log fold changes. Of classes with fewer than ten cells, or with all cells, NaN.
    """
    member = (classes[:, None] == np.arange(n_classes)).astype(np.float64)
    n = member.sum(axis=0)
    sums = member.T @ cells
    total = cells.sum(axis=0, dtype=np.float64)
    enough = (n >= _LEAST_OF_CLASS) & (len(cells) - n >= _LEAST_OF_CLASS)
    n_in, n_out = np.where(enough, n, 1.0), np.where(enough, len(cells) - n, 1.0)
    changes: FloatArray = sums / n_in[:, None] - (total - sums) / n_out[:, None]
    changes[~enough] = np.nan
    return changes


def fold_change_agreement(
    chosen_by: FloatArray, real: FloatArray, generated: FloatArray
) -> tuple[float, float]:
    """Compare the differences between each class and the rest; all are (classes, genes) fold changes.

    Returns the slope through the origin of generated on real changes of the 50 genes (at most a quarter of
    all) that change most, and the fraction of the genes that rise most on the real side which also do on
    the generated one, mean over classes. Classes that are NaN on either side are left out; NaN without a
    class. ``chosen_by``, changes in cells of neither side (training cells), chooses the genes of the slope:
    chosen on the real side, chance would make every slope too small.
    """
    n_top = max(1, min(_TOP_GENES, real.shape[1] // 4))
    products = squares = 0.0
    overlaps = []
    for changes, x, y in zip(chosen_by, real, generated, strict=True):
        if np.isnan(x).any() or np.isnan(y).any():
            continue
        by = x if np.isnan(changes).any() else changes
        changed = np.argsort(-np.abs(by), kind="stable")[:n_top]
        products += float((x[changed] * y[changed]).sum())
        squares += float((x[changed] ** 2).sum())
        top = [set(np.argsort(-side, kind="stable")[:n_top].tolist()) for side in (x, y)]
        overlaps.append(len(top[0] & top[1]) / n_top)
    if not overlaps or squares <= 0:
        return math.nan, math.nan
    return products / squares, float(np.mean(overlaps))


def gene_means(cells: sparse.csr_matrix) -> FloatArray:
    """(genes,) means over cells, summed in float64; 0 without cells."""
    sums: FloatArray = np.asarray(cells.sum(axis=0, dtype=np.float64)).ravel()
    return sums / max(cells.shape[0], 1)


def pearson(left: FloatArray, right: FloatArray) -> float:
    """Pearson correlation, NaN where a side is constant."""
    left, right = left - left.mean(), right - right.mean()
    norm = math.sqrt(float((left**2).sum()) * float((right**2).sum()))
    return float((left * right).sum()) / norm if norm > 1e-12 else math.nan


# ------------------------------------------------------------------ the summary of `tfx generate`
@dataclass(frozen=True)
class GeneComparison:
    """One gene on both sides: mean log1p value and fraction of cells that express it."""

    gene: str
    real_mean: float
    generated_mean: float
    difference: float
    real_detection: float
    generated_detection: float


@dataclass(frozen=True)
class FidelitySummary:
    """How generated cells compare with real ones; NaN where a measure is undefined."""

    n_real: int
    n_generated: int
    n_genes: int
    #: Pearson correlation of the genes' means.
    gene_mean_r: float
    #: Mean over genes of the absolute difference of detection rates.
    detection_mae: float
    genes_per_cell_real_mean: float
    genes_per_cell_real_sd: float
    genes_per_cell_generated_mean: float
    genes_per_cell_generated_sd: float
    #: Agreement of the gene-gene correlations of `n_correlation_genes` genes: their Pearson correlation, and
    #: the slope of generated on real through the origin (1 is ideal, 0 independent genes).
    correlation_r: float
    correlation_slope: float
    n_correlation_genes: int
    #: Genes of highest real mean, and of largest absolute difference.
    top_genes: tuple[GeneComparison, ...]
    furthest_genes: tuple[GeneComparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what is not a number becomes None."""
        record: dict[str, Any] = plain_json(asdict(self))
        return record


def compare_cells(
    real: sparse.csr_matrix, generated: sparse.csr_matrix, panel: GenePanel
) -> FidelitySummary:
    """Compare generated with real cells of one condition: over mixed types, correlations are those of types.

    Both are (cells, genes), log1p counts per 10,000, columns in panel order. A side without cells, or with
    another number of genes than the panel, is a DataError.
    """
    for side, matrix in (("real", real), ("generated", generated)):
        if matrix.shape[1] != len(panel):
            raise DataError(
                f"the {side} cells have {matrix.shape[1]} genes, the panel {len(panel)}; "
                "read them with the model's panel"
            )
        if matrix.shape[0] == 0:
            raise DataError(f"there are no {side} cells to compare; widen the request")
    means = [gene_means(side) for side in (real, generated)]
    expressed = [sparse.csr_matrix((side > 0).astype(np.float64)) for side in (real, generated)]
    detection = [gene_means(side) for side in expressed]
    real_genes, generated_genes = (np.asarray(one.sum(axis=1)).ravel() for one in expressed)
    wide = real.astype(np.float64)
    variance = gene_means(sparse.csr_matrix(wide.multiply(wide))) - means[0] ** 2
    columns = choose_variable_genes(variance, detection[0])
    r = slope = math.nan
    if len(columns) >= _MIN_GENES and min(real.shape[0], generated.shape[0]) >= _MIN_CELLS:
        r, slope = correlation_agreement(
            *(
                within_class_correlations(side[:, columns].toarray(), np.zeros(side.shape[0], int))
                for side in (real, generated)
            )
        )
    difference = means[1] - means[0]
    of_genes = np.stack([*means, difference, *detection], axis=1)

    def largest(values: FloatArray) -> tuple[GeneComparison, ...]:
        genes = np.argsort(-values, kind="stable")[:_TOP].tolist()
        return tuple(
            GeneComparison(panel.symbols[gene], *of_genes[gene].tolist()) for gene in genes
        )

    return FidelitySummary(
        n_real=real.shape[0],
        n_generated=generated.shape[0],
        n_genes=len(panel),
        gene_mean_r=pearson(*means),
        detection_mae=float(np.abs(detection[0] - detection[1]).mean()),
        genes_per_cell_real_mean=float(real_genes.mean()),
        genes_per_cell_real_sd=float(real_genes.std()),
        genes_per_cell_generated_mean=float(generated_genes.mean()),
        genes_per_cell_generated_sd=float(generated_genes.std()),
        correlation_r=r,
        correlation_slope=slope,
        n_correlation_genes=len(columns),
        top_genes=largest(means[0]),
        furthest_genes=largest(np.abs(difference)),
    )
