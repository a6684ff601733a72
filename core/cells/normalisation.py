"""log1p of counts per 10,000: the values that models see, written once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Counts per cell after normalisation: the convention of scanpy and of the published models.
TARGET_SUM = 1e4


def count_scales(totals: NDArray[Any]) -> NDArray[Any]:
    """(cells,) factors from counts to counts per 10,000, in the type of `totals`; infinite at 0."""
    with np.errstate(divide="ignore"):
        scales: NDArray[Any] = np.asarray(TARGET_SUM / totals)
    return scales


def log_normalise(counts: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
    """log1p of counts times their cell's scale (of the same shape), in the type of `scales`."""
    with np.errstate(invalid="ignore"):  # 0 counts of a cell without any
        values: NDArray[Any] = np.log1p(counts.astype(scales.dtype, copy=False) * scales)
    return values


def log_values(
    counts: NDArray[Any], indptr: NDArray[Any], totals: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(values,) log1p counts per 10,000 of the counts of cells in CSR form, of library sizes (cells,)."""
    return log_normalise(counts, np.repeat(count_scales(totals), np.diff(indptr)))
