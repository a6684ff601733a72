"""Simple measures of association between genes, from the cells of a context alone.

Each is a (G, G) matrix, row = source; all but the trees are symmetric. "Within class" means that the mean of
each class of cells (combination of phenotypes) is subtracted, so that differences between classes are no
association.
"""

from collections.abc import Callable, Sequence

import numpy as np

from core.interactions.cells import LEAST_EXPRESSING, ContextCells, FloatArray, Integers
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

#: Cells that the trees learn from at most, and their number and depth per target (GRNBoost2: Moerman et
#: al. 2019, doi:10.1093/bioinformatics/bty916, with fewer trees and a larger learning rate).
_TREE_CELLS, _TREES, _DEPTH, _LEARNING_RATE, _CELLS_PER_TREE = 2_000, 60, 3, 0.05, 0.9
#: Cells that the correlations over all cells count as.
PRIOR_CELLS = 100
#: Groups of values whose mutual information is counted: not expressed, and halves of the expressed values.
_GROUPS = 3


def within(values: FloatArray, groups: Integers) -> FloatArray:
    """Subtract from (cells, genes) values the mean of each group of cells."""
    counts = np.bincount(groups)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, groups, values)
    centred: FloatArray = values - (sums / np.maximum(counts, 1)[:, None])[groups]
    return centred


def ranks(values: FloatArray) -> FloatArray:
    """(cells, genes), mean ranks of the cells, gene by gene."""
    from scipy.stats import rankdata  # 200 ms

    found: FloatArray = rankdata(values, axis=0)
    return found


def correlations(values: FloatArray) -> FloatArray:
    """(G, G) correlations of centred values, 0 where a gene does not vary."""
    length = np.sqrt((values**2).sum(axis=0))
    scaled = np.divide(values, length, out=np.zeros_like(values), where=length > 1e-9)
    found: FloatArray = scaled.T @ scaled
    return found


def library_size_removed(values: FloatArray, cells: ContextCells, groups: Integers) -> FloatArray:
    """Subtract group means, and what the logarithm of the library size explains within groups.

    Where library sizes are not known, the number of expressed genes takes their place.
    """
    size = np.where(
        cells.library_size > 0, cells.library_size, np.diff(cells.expression.indptr).astype(float)
    )
    size = within(np.log1p(size)[:, None], groups)
    centred = within(values, groups)
    total = float((size**2).sum())
    return centred if total < 1e-9 else centred - size * ((size * centred).sum(axis=0) / total)


def _pearson(values: FloatArray, cells: ContextCells) -> FloatArray:
    return correlations(within(values, cells.classes))


def _spearman(values: FloatArray, cells: ContextCells) -> FloatArray:
    return correlations(within(ranks(values), cells.classes))


def _adjusted(values: FloatArray, cells: ContextCells) -> FloatArray:
    return correlations(library_size_removed(values, cells, cells.strata))


def _partial(values: FloatArray, cells: ContextCells) -> FloatArray:
    """Partial correlations of ranks, from the shrunken covariance (Ledoit and Wolf 2004).

    Genes of few cells take no part: one cell that expresses two of them would decide the shrinkage.
    """
    from sklearn.covariance import ledoit_wolf  # 1 s

    centred = within(ranks(values), cells.classes)
    deviation = centred.std(axis=0)
    enough = (values > 0).sum(axis=0) >= LEAST_EXPRESSING
    varies = np.flatnonzero(enough & (deviation > 1e-9))
    covariance, _ = ledoit_wolf(centred[:, varies] / deviation[varies], assume_centered=True)
    precision = np.linalg.inv(covariance)
    scale = 1 / np.sqrt(np.diag(precision))
    found = np.zeros((values.shape[1], values.shape[1]))
    found[np.ix_(varies, varies)] = -precision * scale[:, None] * scale
    return found


def _mutual_information(values: FloatArray, cells: ContextCells) -> FloatArray:
    """Nats, of values in three groups: not expressed, and the halves of the expressed values."""
    n = len(values)
    middle = np.array(
        [np.median(column[column > 0]) if (column > 0).any() else 0.0 for column in values.T]
    )
    group = (values > 0).astype(np.int64) + ((values > middle) & (values > 0))
    one_hot = np.stack([group == one for one in range(_GROUPS)], axis=2).astype(np.float64)
    fraction = one_hot.mean(axis=0)
    joint = (one_hot.reshape(n, -1).T @ one_hot.reshape(n, -1)) / n
    joint = joint.reshape(values.shape[1], _GROUPS, values.shape[1], _GROUPS)
    expected = fraction[:, :, None, None] * fraction
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(joint > 0, joint * np.log(joint / expected), 0.0)
    found: FloatArray = np.maximum(parts.sum(axis=(1, 3)), 0.0)
    return found


def _detection(values: FloatArray, cells: ContextCells) -> FloatArray:
    """Products of the detection rates: what a measure finds that sees single genes only."""
    rate = (values > 0).mean(axis=0)
    return np.outer(rate, rate)


def shrunken_correlations(pearson: FloatArray, everything: FloatArray, n_cells: int) -> FloatArray:
    """Shrink the correlations of a context of ``n_cells`` to those of all cells, both within class."""
    found: FloatArray = (n_cells * pearson + PRIOR_CELLS * everything) / (n_cells + PRIOR_CELLS)
    return found


def _trees(
    values: FloatArray, cells: ContextCells, on_progress: Listener = ignore_progress
) -> FloatArray:
    """Take the importances of the sources in gradient-boosted trees that predict each target."""
    from sklearn.ensemble import GradientBoostingRegressor  # 1 s

    centred = within(values, cells.classes)
    rng = generator(0, Stream.INTERACTION_CELLS)
    if len(centred) > _TREE_CELLS:
        centred = centred[np.sort(rng.choice(len(centred), _TREE_CELLS, replace=False))]
    n_genes = centred.shape[1]
    found = np.zeros((n_genes, n_genes))
    for target in range(n_genes):
        others = np.flatnonzero(np.arange(n_genes) != target)
        trees = GradientBoostingRegressor(
            n_estimators=_TREES, max_depth=_DEPTH, learning_rate=_LEARNING_RATE,
            subsample=_CELLS_PER_TREE, max_features="sqrt", random_state=0,
        )  # fmt: skip
        trees.fit(centred[:, others], centred[:, target])
        # Importances add up to one: the variance of the target brings them to one scale.
        found[others, target] = trees.feature_importances_ * trees.train_score_.std()
        on_progress(ProgressEvent("growing trees", target + 1, n_genes))
    return found


_MEASURES: dict[str, Callable[[FloatArray, ContextCells], FloatArray]] = {
    "pearson": _pearson,
    "pearson_adjusted": _adjusted,
    "spearman": _spearman,
    "partial_correlation": _partial,
    "mutual_information": _mutual_information,
    "detection": _detection,
    "trees": _trees,
}
#: What each measure is, for tables of documents and summaries.
MEASURE_NAMES = {
    "model": "the model's effects",
    "model_directed": "the same, each direction by itself",
    "log_linear": "of its log-linear part alone",
    "encoder": "what the encoder adds",
    "pearson": "Pearson within class",
    "pearson_shrunken": "Pearson within class, shrunken to that of all cells",
    "pearson_adjusted": "Pearson within donor and class, library size removed",
    "spearman": "Spearman within class",
    "partial_correlation": "partial correlation, shrunken",
    "mutual_information": "mutual information",
    "detection": "detection rates alone",
    "trees": "gradient-boosted trees",
}
#: Measures that take no more than seconds, and all of them; measures with a sign, those of the model included.
QUICK_MEASURES = ("pearson", "pearson_shrunken", *list(_MEASURES)[1:-1])
ALL_MEASURES = (*QUICK_MEASURES, "trees")
SIGNED_MEASURES = frozenset(
    {
        "model",
        "model_directed",
        "pearson",
        "pearson_shrunken",
        "pearson_adjusted",
        "spearman",
        "partial_correlation",
    }
)


def measure_association(
    cells: ContextCells,
    measures: Sequence[str],
    *,
    everything: FloatArray | None = None,
    on_progress: Listener = ignore_progress,
) -> dict[str, FloatArray]:
    """Return measure -> (G, G) for some of `ALL_MEASURES`, from the cells of a context.

    ``everything`` are the Pearson correlations within class of the cells of all contexts; without them nothing is
    shrunken to them.
    """
    values = cells.expression.toarray().astype(np.float64)
    found = {}
    for name in measures:
        if name == "trees":
            found[name] = _trees(values, cells, on_progress)
        elif name == "pearson_shrunken":
            own = _pearson(values, cells)
            found[name] = (
                own if everything is None else shrunken_correlations(own, everything, len(cells))
            )
        else:
            found[name] = _MEASURES[name](values, cells)
    return found
