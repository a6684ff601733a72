"""Rows of a matrix as CSR: of one in memory, and of one in an h5ad file, by rows or by columns."""

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    import h5py

__all__ = ["StoredRows", "rows_of_columns", "to_csr"]

#: Values of a matrix stored by columns that are looked at together.
_BLOCK_VALUES = 2**22


def to_csr(
    rows: Any,  # noqa: ANN401 (any of AnnData's matrix types)
    *,
    own: bool = False,
) -> sparse.csr_matrix:
    """Turn rows of any kind into float32 CSR: columns ascending, no duplicates, no zeros.

    Rows that nobody else holds (`own`) may be changed in place.
    """
    dense_or_sparse: Any = rows if sparse.issparse(rows) else np.atleast_2d(np.asarray(rows))
    matrix = sparse.csr_matrix(dense_or_sparse, dtype=np.float32, copy=not own)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


class StoredRows:
    """Rows of a CSR matrix in a file; those that are sliced are read, and nothing else but `indptr`."""

    def __init__(self, stored: "h5py.Group") -> None:
        self._data, self._genes = stored["data"], stored["indices"]
        # Unsigned numbers would hide a row that ends before it begins.
        self._indptr = stored["indptr"][:].astype(np.int64, copy=False)
        self._n_genes = int(stored.attrs["shape"][1])

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        """(rows, genes), as stored."""
        borders = self._indptr[rows.start : rows.stop + 1]
        if (np.diff(borders) < 0).any():
            message = "rows that end before they begin"
            raise ValueError(message)
        values = slice(int(borders[0]), int(borders[-1]))
        genes = self._genes[values]
        if len(genes) and (genes.min() < 0 or genes.max() >= self._n_genes):
            message = f"a gene outside the {self._n_genes:,} of var"
            raise ValueError(message)
        shape = (len(borders) - 1, self._n_genes)
        return sparse.csr_matrix((self._data[values], genes, borders - borders[0]), shape=shape)


def rows_of_columns(stored: "h5py.Group", start: int, stop: int) -> sparse.csr_matrix:
    """Rows [start, stop) of a matrix stored by columns, a block of values in memory at a time."""
    n_genes = int(stored.attrs["shape"][1])
    indptr = stored["indptr"][:]
    rows, genes, data = [], [], []
    n_values = int(indptr[-1])
    for first in range(0, n_values, _BLOCK_VALUES):
        last = min(first + _BLOCK_VALUES, n_values)
        row = stored["indices"][first:last]
        kept = np.flatnonzero((row >= start) & (row < stop))
        rows.append((row[kept] - start).astype(np.int32))
        column = np.searchsorted(indptr, first + kept, side="right") - 1
        genes.append(column.astype(np.int32))
        data.append(stored["data"][first:last][kept])
    if not rows:
        return sparse.csr_matrix(np.zeros((stop - start, n_genes), dtype=np.float32))
    places = (np.concatenate(rows), np.concatenate(genes))
    return sparse.csr_matrix((np.concatenate(data), places), shape=(stop - start, n_genes))
