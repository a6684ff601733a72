"""Genes drawn one by one from what training cells of a class had: where Gibbs sweeps begin."""

import numpy as np
from numpy.typing import NDArray

from core.model.folder import CellModel

__all__ = ["draw_from_class_marginals"]

#: Cells of the whole training set that each class is taken to have had besides its own.
_PSEUDO_CELLS = 5.0


def draw_from_class_marginals(
    model: CellModel, codes: NDArray[np.int32], uniform: NDArray[np.float32]
) -> NDArray[np.int64] | NDArray[np.float32]:
    """Draw every gene on its own.

    Of a cell's phenotypes the value that fewest training cells had speaks for it: it says most, and the
    sweeps that follow hear of the others. Genes that are on take a bin as all training cells did.

    Parameters
    ----------
    model
        Its reference profiles say how often each gene was on.
    codes
        (cells, phenotypes), -1 where nothing is specified.
    uniform
        (cells, genes) in [0, 1), the chance to use.

    Returns
    -------
    (cells, genes): bins; of a continuous model the mean value of the gene where it is on.
    """
    reference, sizes = model.reference, model.config.phenotype_sizes
    starts = np.cumsum([0, *sizes])[:-1]
    counts = reference.bin_counts.astype(float) + 1.0
    overall = counts[:, 1:].sum(axis=1) / counts.sum(axis=1)  # (genes,) share of cells that are on
    n_cells = {
        (slot, code): reference.n_cells({slot: code})
        for slot, size in enumerate(sizes)
        for code in range(size)
    }
    drawn = np.empty(uniform.shape, np.float32 if model.config.kind == "continuous" else np.int64)
    levels = np.cumsum(counts[:, 1:], axis=1) / counts[:, 1:].sum(axis=1, keepdims=True)
    for row in np.unique(codes, axis=0):
        rows = np.flatnonzero((codes == row).all(axis=1))
        known = [(slot, int(code)) for slot, code in enumerate(row) if code >= 0]
        on = overall
        mean = (model.table.means[:, 1:] * counts[:, 1:]).sum(axis=1) / counts[:, 1:].sum(axis=1)
        if known:
            slot, code = min(known, key=lambda value: n_cells[value])
            n, value = n_cells[slot, code], starts[slot] + code
            on = (n * reference.detection[value] + _PSEUDO_CELLS * overall) / (n + _PSEUDO_CELLS)
            seen = reference.detection[value] > 0
            mean = np.where(
                seen, reference.means[value] / np.where(seen, reference.detection[value], 1), mean
            )
        is_on = uniform[rows] < on
        if model.config.kind == "continuous":
            drawn[rows] = np.where(is_on, mean, 0)
            continue
        # What is left of the uniform number where the gene is on is uniform again.
        left = np.where(is_on, uniform[rows] / np.maximum(on, 1e-12), 0.0)
        level = (left[..., None] >= levels).sum(axis=-1)
        drawn[rows] = np.where(is_on, 1 + level.clip(max=levels.shape[1] - 1), 0)
    return drawn
