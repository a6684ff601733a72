"""What the training cells were, in brief: joint phenotype counts and mean profiles.

It travels in the model folder, so that generation can draw the phenotypes a request leaves open
from real combinations, and say how many real cells a request had, without the store.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEPTH_QUANTILES", "Reference"]

#: Quantiles kept of the depth of each combination of phenotypes: each speaks for as many cells.
DEPTH_QUANTILES = 32


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
    depth
        (combinations, 2, `DEPTH_QUANTILES`), float32, ascending: how many panel genes above bin 0, and
        how many counts, the cells of each combination had (counts 0 where the cells came as log
        values); None in models saved before it was kept.
    """

    combinations: NDArray[np.int32]
    counts: NDArray[np.int64]
    means: NDArray[np.float32]
    detection: NDArray[np.float32]
    bin_counts: NDArray[np.int64]
    depth: NDArray[np.float32] | None = None

    @classmethod
    def count(cls, codes: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the distinct rows of (cells, phenotypes) codes and how many cells have each."""
        if codes.shape[1] == 0:
            return np.zeros((1, 0), np.int32), np.array([len(codes)])
        combinations, counts = np.unique(codes, axis=0, return_counts=True)
        return combinations.astype(np.int32), counts.astype(np.int64)

    @staticmethod
    def depth_quantiles(
        combinations: NDArray[np.int32],
        codes: NDArray[np.int32],
        n_genes: NDArray[np.integer[Any]],
        totals: NDArray[np.floating[Any]],
    ) -> NDArray[np.float32]:
        """Return `depth` from the codes, genes above bin 0 and total counts of single cells.

        A combination that is not among the cells takes the quantiles of all of them.
        """
        shares = (np.arange(DEPTH_QUANTILES) + 0.5) / DEPTH_QUANTILES
        pairs = np.stack([n_genes, totals]).astype(np.float64)  # (2, cells)
        depth = np.empty((len(combinations), 2, DEPTH_QUANTILES), dtype=np.float32)
        depth[:] = np.quantile(pairs, shares, axis=1).T
        order = np.lexsort(codes.T) if codes.shape[1] else np.arange(len(codes))
        changes = np.flatnonzero((np.diff(codes[order], axis=0) != 0).any(axis=1)) + 1
        place = {tuple(row): at for at, row in enumerate(combinations.tolist())}
        for cells in np.split(order, changes):
            at = place.get(tuple(codes[cells[0]].tolist()))
            if at is not None:
                depth[at] = np.quantile(pairs[:, cells], shares, axis=1).T
        return depth

    def matching(self, wanted: dict[int, int]) -> NDArray[np.bool_]:
        """Mark, as (combinations,), those with code ``wanted[slot]`` in every slot named."""
        match = np.ones(len(self.counts), dtype=bool)
        for slot, code in wanted.items():
            match &= self.combinations[:, slot] == code
        return match

    def n_cells(self, wanted: dict[int, int]) -> int:
        """Training cells with the wanted codes."""
        return int(self.counts[self.matching(wanted)].sum())
