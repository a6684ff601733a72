"""A batch cut into smaller ones by cells, for where a whole one does not fit into memory.

Each part is a `CellBatch` of its own: positions and cells are counted from its own first token and
cell. The answers of all parts together are those of the batch, in its order.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from core.encoding.cell_batch import CellBatch, PendingBins

__all__ = ["split_batch"]


def split_batch(batch: CellBatch, n_parts: int, *, together: int = 1) -> list[CellBatch]:
    """Cut a batch between cells, at the boundaries nearest to equal numbers of tokens.

    Parameters
    ----------
    batch
        At least one cell.
    n_parts
        Parts wanted; a batch of fewer cells gives one part per cell.
    together
        Neighbours that stay in one part, always so many.
    """
    n_groups = batch.n_cells // together
    n_parts = min(n_parts, n_groups)
    if n_parts == 1:
        return [batch]
    bounds = batch.cu_seqlens[::together]
    wanted = np.arange(1, n_parts) * (int(bounds[-1]) / n_parts)
    cuts = np.abs(bounds[1:-1, None] - wanted).argmin(axis=0) + 1
    # Every part has a cell: long cells may draw two cuts to one place.
    cuts = np.maximum.accumulate(cuts - np.arange(n_parts - 1)) + np.arange(n_parts - 1)
    cuts = np.minimum(cuts, n_groups - n_parts + 1 + np.arange(n_parts - 1))
    edges = [0, *(together * cuts).tolist(), batch.n_cells]
    return [_cells(batch, first, last) for first, last in pairwise(edges)]


def _cells(batch: CellBatch, first: int, last: int) -> CellBatch:
    """Cells ``first`` up to ``last`` of a batch."""
    start, end = int(batch.cu_seqlens[first]), int(batch.cu_seqlens[last])
    genes = slice(*np.searchsorted(batch.gene_cell, (first, last)).tolist())
    phenotypes = slice(*np.searchsorted(batch.phenotype_cell, (first, last)).tolist())
    pending = batch.pending
    # Bins that the device is yet to make have no answers here.
    has_targets = len(batch.gene_target) == len(batch.gene)
    return replace(
        batch,
        token_id=batch.token_id[start:end],
        value=batch.value[start:end],
        continuous=batch.continuous[start:end],
        cu_seqlens=batch.cu_seqlens[first : last + 1] - batch.cu_seqlens[first],
        gene_position=batch.gene_position[genes] - batch.gene_position.dtype.type(start),
        gene_cell=batch.gene_cell[genes] - batch.gene_cell.dtype.type(first),
        gene=batch.gene[genes],
        gene_target=batch.gene_target[genes] if has_targets else batch.gene_target,
        phenotype_position=batch.phenotype_position[phenotypes]
        - batch.phenotype_position.dtype.type(start),
        phenotype_cell=batch.phenotype_cell[phenotypes] - batch.phenotype_cell.dtype.type(first),
        phenotype_slot=batch.phenotype_slot[phenotypes],
        phenotype_target=batch.phenotype_target[phenotypes],
        mask_rate=batch.mask_rate[first:last],
        pending=None
        if pending is None
        else PendingBins(pending.thresholds[first:last], pending.first_gene, pending.first_bin),
    )
