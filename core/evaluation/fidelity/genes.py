"""Agreement of generated and real cells gene by gene: means, dropout, correlations, differences of classes.

Cells are dense here, (cells, genes) log1p counts per 10,000 (0 and 1 of binary models). Pooled means
cannot find a bad generator, because independent genes have them right; correlations within a class can.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CORRELATION_GENES = 100
_MAX_DETECTION = 0.97
#: With fewer cells of a class, or of the rest, their difference is chance.
_LEAST_OF_CLASS = 10
_TOP_GENES = 50

Values = NDArray[np.floating[Any]]
FloatArray = NDArray[np.float64]
Codes = NDArray[np.integer[Any]]


def marginal_agreement(real: Values, generated: Values) -> tuple[float, float]:
    """Pearson correlation of the genes' means, and mean absolute difference of detection rates."""
    means = [cells.mean(axis=0, dtype=np.float64) for cells in (real, generated)]
    detection = [(cells > 0).mean(axis=0) for cells in (real, generated)]
    return pearson(*means), float(np.abs(detection[0] - detection[1]).mean())


def detected_genes(cells: Values) -> NDArray[np.int64]:
    """(cells,), genes above zero."""
    return (cells > 0).sum(axis=1)


def correlation_genes(real: Values) -> NDArray[np.int64]:
    """Choose the genes whose correlations are compared, most variable first.

    The columns of the 100 genes of highest variance among those detected in under 97 % of the cells.
    """
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
    """Compare the differences between each class and the rest.

    Parameters
    ----------
    chosen_by
        (classes, genes), fold changes in cells of neither side (training cells), which choose the
        genes of each class: chosen on the real side, chance would make every slope too small.
    real, generated
        (classes, genes); classes that are NaN on either side are left out.

    Returns
    -------
    Slope through the origin of generated on real fold changes of the 50 genes (at most a quarter of
    all) that change most; fraction of the genes that rise most on the real side which also do on the
    generated one, mean over classes. NaN without a class.
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


def pearson(left: FloatArray, right: FloatArray) -> float:
    """Pearson correlation, NaN where a side is constant."""
    left, right = left - left.mean(), right - right.mean()
    norm = math.sqrt(float((left**2).sum()) * float((right**2).sum()))
    return float((left * right).sum()) / norm if norm > 1e-12 else math.nan
