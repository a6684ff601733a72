"""Bins straight from counts: what normalising, log1p and edges would give, without any of them.

Within a cell the bin of a count depends on the count alone, and rises with it. So a cell has for
each edge a smallest count that reaches it, and a count's bin is the number of these thresholds at
or below it: comparisons of small integers instead of a logarithm per value.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cells.normalisation import count_scales, log_normalise

#: Threshold of an edge that no 16-bit count reaches.
NEVER = 65_536


def count_thresholds(edges: NDArray[np.float32], totals: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (cells, edges), in [1, `NEVER`]: the smallest count of each cell that reaches each edge.

    Inverting the edge in float64 comes within less than one count of the result for all 16-bit
    counts; which of three neighbours it is, the float32 formula of `Store.read` itself decides.
    """
    scale = count_scales(totals)[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        guess = np.ceil(np.expm1(edges.astype(np.float64)) / scale)
    guess = np.clip(np.nan_to_num(guess, nan=NEVER, posinf=NEVER), 1, NEVER).astype(np.int64)
    thresholds = guess + 1
    for candidate in (guess, guess - 1):
        np.copyto(thresholds, candidate, where=log_normalise(candidate, scale) >= edges)
    return thresholds.clip(1, NEVER)


class CountBins:
    """The bins of the counts of some cells, of library sizes ``totals`` (cells,).

    All genes share the ``edges`` (edges,): ascending, log1p counts per 10,000, above zero.
    """

    def __init__(self, edges: NDArray[np.float32], totals: NDArray[np.float32]) -> None:
        self.edges = edges
        self.totals = totals
        self.thresholds = count_thresholds(edges, totals)

    def expressed(
        self, counts: NDArray[np.unsignedinteger[Any]], indptr: NDArray[np.int64]
    ) -> NDArray[np.bool_] | None:
        """Return which counts above zero are above bin 0, (values,), or None where all are."""
        least = self.thresholds[:, 0]
        if (least <= 1).all():
            return None
        return counts >= np.repeat(least.astype(np.uint32), np.diff(indptr))

    def bins(
        self,
        counts: NDArray[np.unsignedinteger[Any]],
        indptr: NDArray[np.int64],
        *,
        first: int = 0,
        dtype: type[np.uint8 | np.uint16 | np.int32] = np.uint8,
    ) -> NDArray[Any]:
        """Assign bins, counted from ``first``, to counts above zero, (values,), cell after cell."""
        small, large = counts, np.zeros(0, dtype=np.int64)
        if counts.dtype != np.uint16:
            large = np.flatnonzero(counts >= NEVER - 1)
            small = np.minimum(counts, NEVER - 2).astype(np.uint16)
        most = int(small.max(initial=0))
        lowest = self.thresholds.min(axis=0, initial=NEVER)
        in_all = int(np.count_nonzero(self.thresholds.max(axis=0, initial=0) <= 1))
        last = int(np.searchsorted(lowest, most, side="right"))  # no count reaches those behind
        thresholds = np.minimum(self.thresholds, NEVER - 1).astype(np.uint16)
        bins = np.full(len(small), first + in_all, dtype=dtype)
        reached, per_cell = np.empty(len(small), dtype=bool), np.diff(indptr)
        for edge in range(in_all, last):
            np.greater_equal(small, np.repeat(thresholds[:, edge], per_cell), out=reached)
            bins += reached.view(np.uint8)
        if len(large):
            cell = np.searchsorted(indptr, large, side="right") - 1
            values = log_normalise(counts[large], count_scales(self.totals)[cell])
            bins[large] = first + np.searchsorted(self.edges, values, side="right")
        return bins


def log_values(
    counts: NDArray[np.unsignedinteger[Any]],
    indptr: NDArray[np.int64],
    totals: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return (values,) log1p counts per 10,000, bit for bit those of `Store.read`."""
    return log_normalise(counts, np.repeat(count_scales(totals), np.diff(indptr)))
