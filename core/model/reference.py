"""What the training cells were, in brief: joint phenotype counts and mean profiles.

It travels in the model folder, so that generation can draw the phenotypes a request leaves open
from real combinations, and say how many real cells a request had, without the store.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reference"]


@dataclass(frozen=True)
class Reference:
    """Joint phenotype counts and per-value mean profiles of the training cells.

    Attributes
    ----------
    combinations
        (combinations, phenotypes), int32 codes that occur, -1 where missing.
    counts
        (combinations,), int64 training cells of each.
    means, detection
        (all phenotype values, genes), float32: mean log1p counts per 10,000, and share of cells
        above the encoding's threshold, over the training cells with that value.
    bin_counts
        (genes, bins), int64 training cells in each bin of each gene.
    """

    combinations: NDArray[np.int32]
    counts: NDArray[np.int64]
    means: NDArray[np.float32]
    detection: NDArray[np.float32]
    bin_counts: NDArray[np.int64]

    @classmethod
    def count(cls, codes: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the distinct rows of (cells, phenotypes) codes and how many cells have each."""
        if codes.shape[1] == 0:
            return np.zeros((1, 0), np.int32), np.array([len(codes)])
        combinations, counts = np.unique(codes, axis=0, return_counts=True)
        return combinations.astype(np.int32), counts.astype(np.int64)

    def matching(self, wanted: dict[int, int]) -> NDArray[np.bool_]:
        """Mark, as (combinations,), those with code ``wanted[slot]`` in every slot named."""
        match = np.ones(len(self.counts), dtype=bool)
        for slot, code in wanted.items():
            match &= self.combinations[:, slot] == code
        return match

    def n_cells(self, wanted: dict[int, int]) -> int:
        """Training cells with the wanted codes."""
        return int(self.counts[self.matching(wanted)].sum())
