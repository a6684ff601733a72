"""Distances between generated and real cells: whether they fill the same space, and copies.

Points are cells in the principal components of real cells, (cells, components).

- MMD: Gretton et al. 2012, JMLR 13:723, the unbiased estimate, which may fall below 0.
- Recall and coverage: Kynkäänniemi et al. 2019 (arXiv 1904.06991), Naeem et al. 2020 (arXiv 2002.09797).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_COMPONENTS = 30
#: Bandwidths of the kernel, in median squared distances of real cells; their mean is taken.
_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
_NEIGHBOURS = 5
#: Distances held at a time: 4 million float64 are 32 MB.
_MOST_DISTANCES = 4_000_000
#: Cells with fewer expressed genes are equal by chance, and no copies.
_LEAST_EXPRESSED = 10

FloatArray = NDArray[np.float64]
Values = NDArray[np.floating[Any]]


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
    """Squared maximum mean discrepancy, unbiased, of any number of weightings of the cells.

    Parameters
    ----------
    real, generated, between
        Kernels: (real, real), (generated, generated), (real, generated).
    real_weights, generated_weights
        (weightings, cells), times each cell is taken: ones, or the counts of a bootstrap resample.
        Pairs of a cell with itself are left out.
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
