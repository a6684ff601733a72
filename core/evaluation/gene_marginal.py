"""What is known of a gene without looking at the cell: its shares of training cells per bin."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["GeneMarginal"]


@dataclass(frozen=True)
class GeneMarginal:
    """The marginal distribution of every gene over its bins.

    Attributes
    ----------
    nll
        (genes, bins), negative log share, nats; one cell is spread over the bins, so that none
        is impossible.
    common
        (genes,), the most common bin.
    """

    nll: NDArray[np.float64]
    common: NDArray[np.int64]

    @classmethod
    def of(cls, bin_counts: NDArray[np.int64]) -> "GeneMarginal":
        """Take (genes, bins) training cells."""
        counts = bin_counts + 1 / bin_counts.shape[1]
        shares = counts / counts.sum(axis=1, keepdims=True)
        return cls(-np.log(shares), bin_counts.argmax(axis=1))
