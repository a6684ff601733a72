"""What a batch is: cells as packed token arrays, with the masked positions and their answers.

Integers are as small as their range allows; `core.model.batch_tensors` widens them on the device.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CellBatch", "PendingBins"]

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class PendingBins:
    """What the device needs to turn counts into bins, as exactly as the host would.

    Attributes
    ----------
    thresholds
        (cells, edges), int32, smallest count of each cell that reaches each edge.
    first_gene, first_bin
        Identity of gene 0, and value of bin 0.
    """

    thresholds: NDArray[np.int32]
    first_gene: int
    first_bin: int


@dataclass(frozen=True)
class CellBatch:
    """A batch of B cells, T tokens, M masked genes and K masked phenotypes.

    Attributes
    ----------
    token_id, value
        (T,), what stands at a position and how much of it; see `core.encoding.tokens`.
    continuous
        (T,), float32, the log1p value at visible genes of continuous models; else 0, a single zero
        that is repeated without memory.
    cu_seqlens
        (B + 1,), int32, first token of each cell.
    gene_position, gene_cell, gene, gene_target
        (M,), flat position, cell, panel index, and answer: a bin, or the log1p value (float32).
    phenotype_position, phenotype_cell, phenotype_slot, phenotype_target
        (K,), flat position, cell, phenotype number, and code.
    mask_rate
        (B,), float32, masked share of each cell's genes.
    pending
        None, or what the device still has to do: then ``value`` holds counts at genes, masked ones
        too, and ``gene_target`` nothing.
    """

    token_id: Integers
    value: Integers
    continuous: NDArray[np.float32]
    cu_seqlens: NDArray[np.int32]
    gene_position: Integers
    gene_cell: Integers
    gene: Integers
    gene_target: NDArray[Any]
    phenotype_position: Integers
    phenotype_cell: Integers
    phenotype_slot: Integers
    phenotype_target: Integers
    mask_rate: NDArray[np.float32]
    pending: PendingBins | None = None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.cu_seqlens) - 1

    @cached_property
    def max_length(self) -> int:
        """Tokens of the longest cell."""
        return int(np.diff(self.cu_seqlens).max(initial=0))

    @cached_property
    def rectangular(self) -> bool:
        """Whether all cells have the same length."""
        return self.n_cells * self.max_length == len(self.token_id)
