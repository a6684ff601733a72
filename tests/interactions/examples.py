"""Cells of a context, made by hand."""

import numpy as np
from scipy import sparse

from core.interactions.cells import ContextCells


def make_cells(
    values, *, codes=None, donors=None, library_size=None, held_out=None, name="all cells"
):
    """Make cells of (cells, genes) log values; by default of 4 donors, one class, unknown library sizes."""
    values = np.asarray(values, dtype=np.float32)
    n_cells, n_genes = values.shape
    return ContextCells(
        name=name,
        expression=sparse.csr_matrix(values),
        codes=np.zeros((n_cells, 2), np.int32) if codes is None else np.asarray(codes, np.int32),
        donors=np.arange(n_cells) % 4 if donors is None else np.asarray(donors),
        library_size=np.ones(n_cells, np.float32) if library_size is None else library_size,
        held_out=np.zeros(n_cells, bool) if held_out is None else held_out,
        missing=np.zeros(n_genes, bool),
        is_age=np.zeros(2, bool),
        rows=np.arange(n_cells),
    )  # fmt: skip
