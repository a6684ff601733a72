"""Generated cells beside real ones, as numbers that any screen can draw: no matrices, no torch.

Everything is plain JSON and of bounded size, whatever the number of cells and genes: gene means,
detected genes per cell, a plane of principal components, the genes that differ most.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import eigh

from core.cells.genes import GenePanel

__all__ = ["MAX_GENES", "MAX_POINTS", "principal_plane", "profile_cells"]

#: Genes whose means are told, those of highest mean first.
MAX_GENES = 2_000
#: Cells of each side whose detected genes and place in the plane are told.
MAX_POINTS = 500
#: Real cells that the plane is fitted to.
_FITTED_CELLS = 1_000
#: Genes of largest difference, and values of each that are told.
_TOP_GENES, _TOP_VALUES = 12, 200

FloatArray = NDArray[np.floating[Any]]


def profile_cells(
    generated: sparse.csr_matrix, real: sparse.csr_matrix | None, panel: GenePanel
) -> dict[str, Any]:
    """Describe generated cells beside real ones.

    Parameters
    ----------
    generated
        (cells, genes), log1p counts per 10,000 (0 and 1 for binary models), in panel order.
    real
        The same for real cells, or None where there are none: the real side is then null.
    panel
        Names the genes.

    Returns
    -------
    JSON values by the names of docs/generate-serve.md. Cells beyond the bounds are left out evenly,
    not drawn by chance, so that the same cells give the same profile.
    """
    mean_generated = _means(generated)
    mean_real = None if real is None else _means(real)
    level = mean_generated if mean_real is None else np.maximum(mean_real, mean_generated)
    shown = np.sort(np.argsort(-level, kind="stable")[:MAX_GENES])
    profile: dict[str, Any] = {
        "genes": {
            "names": [panel.symbols[gene] for gene in shown],
            "real_mean": None if mean_real is None else _rounded(mean_real[shown]),
            "generated_mean": _rounded(mean_generated[shown]),
        },
        "detected_genes": {
            "real": None if real is None else _detected(real),
            "generated": _detected(generated),
        },
        "embedding": None,
        "fidelity": None,
        "top_genes": [],
    }
    if real is None or mean_real is None:
        return profile
    fitted, at_real, at_generated, explained = principal_plane(real, generated)
    profile["embedding"] = {
        "method": f"PCA of {fitted:,} real cells",
        "explained": _rounded(explained),
        "real": [_rounded(point) for point in at_real],
        "generated": [_rounded(point) for point in at_generated],
    }
    furthest = np.argsort(-np.abs(mean_generated - mean_real), kind="stable")[:_TOP_GENES]
    profile["top_genes"] = [
        {
            "gene": panel.symbols[gene],
            "real_mean": round(float(mean_real[gene]), 4),
            "generated_mean": round(float(mean_generated[gene]), 4),
            "difference": round(float(mean_generated[gene] - mean_real[gene]), 4),
            "real_values": _gene_values(real, int(gene)),
            "generated_values": _gene_values(generated, int(gene)),
        }
        for gene in furthest
    ]
    return profile


def principal_plane(
    real: sparse.csr_matrix, generated: sparse.csr_matrix, *, max_points: int = MAX_POINTS
) -> tuple[int, FloatArray, FloatArray, FloatArray]:
    """Place cells in the plane of the first two principal components of the real cells.

    Returns
    -------
    Number of real cells fitted; (points, 2) of real and of generated cells; the share of the real
    cells' variance along each axis. Where the real cells span less than a plane, the rest is 0.
    """
    fitted = real[_evenly(real.shape[0], _FITTED_CELLS)].toarray()
    centre = fitted.mean(axis=0)
    centred = fitted.astype(np.float64) - centre
    # By the cells' inner products: there are fewer cells than genes, and only two axes are wanted.
    products = centred @ centred.T
    total = max(float(np.trace(products)), 1e-12)
    first = max(len(products) - 2, 0)
    power, vectors = eigh(products, subset_by_index=(first, len(products) - 1))
    power, vectors = power[::-1].clip(min=0), vectors[:, ::-1]
    axes = np.divide(
        vectors.T @ centred, np.sqrt(power)[:, None], out=np.zeros((len(power), centred.shape[1])),
        where=power[:, None] > 1e-9 * total,
    )  # fmt: skip
    missing = 2 - len(axes)
    axes = np.pad(axes, ((0, missing), (0, 0)))
    at_real, at_generated = (
        (cells[_evenly(cells.shape[0], max_points)].toarray() - centre) @ axes.T
        for cells in (real, generated)
    )
    return len(fitted), at_real, at_generated, np.pad(power, (0, missing)) / total


def _evenly(n: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` of n row numbers, evenly spaced."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)


def _means(cells: sparse.csr_matrix) -> FloatArray:
    return np.asarray(cells.sum(axis=0, dtype=np.float64)).ravel() / cells.shape[0]


def _detected(cells: sparse.csr_matrix) -> list[int]:
    some = cells[_evenly(cells.shape[0], MAX_POINTS)]
    return np.asarray((some > 0).sum(axis=1)).ravel().tolist()


def _gene_values(cells: sparse.csr_matrix, gene: int) -> list[float]:
    some = cells[_evenly(cells.shape[0], _TOP_VALUES)]
    return _rounded(some[:, [gene]].toarray().ravel())


def _rounded(values: FloatArray) -> list[float]:
    """Four digits: more than a screen shows, and a third of the bytes."""
    return np.round(values.astype(np.float64), 4).tolist()
