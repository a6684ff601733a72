"""Generated counts, for tools that take nothing else: what a cell of its library size would show.

A model draws values, log1p of counts per 10,000; the depth it draws for a cell says how many counts that
cell has. Their product is an expected count, seldom whole. It is rounded up or down by chance, so that
means are kept, and a gene that is expressed has at least one count.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.normalisation import TARGET_SUM, count_scales, log_normalise

__all__ = ["COUNTS", "log_values", "sample_counts"]

#: What provenance says of the values of such cells.
COUNTS = "counts sampled at the cell's library_size"


def sample_counts(
    values: NDArray[np.float32], library_size: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Turn (genes,) values of a cell of ``library_size`` counts into whole counts of its genes."""
    expected = np.expm1(values.astype(np.float64)) * (library_size / TARGET_SUM)
    counts = np.floor(expected + rng.random(len(values)))
    return np.where(values > 0, np.maximum(counts, 1.0), 0.0).astype(np.float32)


def log_values(counts: sparse.csr_matrix, library_size: NDArray[np.floating]) -> sparse.csr_matrix:
    """Return log1p of counts per 10,000 of (cells, genes) counts, given (cells,) library sizes."""
    sizes = library_size.astype(np.float32)
    data = log_normalise(counts.data, np.repeat(count_scales(sizes), np.diff(counts.indptr)))
    return sparse.csr_matrix((data, counts.indices, counts.indptr), counts.shape)
