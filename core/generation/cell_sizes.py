"""How many genes a generated cell expresses, its library size, and whole counts of that size.

Drawn gene by gene, cells of one type vary too little in their number of expressed genes. So each cell
gets the genes per cell and the library size of a training cell with its phenotypes (one quantile gives
both), and the sampler meets that number (`core.generation.partial_cells`). It needs no training and
works for any model. A model that reads the library size needs no such help: its number of genes follows.

A model draws log1p of counts per 10,000. With the library size of a cell that is an expected count, seldom
whole: it is rounded up or down at random, so that means are kept, and an expressed gene has at least one.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.normalisation import TARGET_SUM, count_scales, log_normalise
from core.encoding.values import CountLattice
from core.errors import ConfigurationError
from core.generation.request import FEW_CELLS
from core.model.reference import SIZE_QUANTILES, Reference
from core.random_streams import Stream, generator_at

#: Fractions of a combination's cells at which its quantiles are kept.
_FRACTIONS = np.linspace(0, 1, 65)


class CellSizes:
    """Genes per cell and library sizes of the cells of a request.

    ``library_size`` is that of every cell; None draws those of training cells. ``is_known`` says whether
    the model folder keeps genes per cell, ``has_counts`` whether it keeps library sizes, too.
    """

    def __init__(self, reference: Reference, seed: int, library_size: float | None) -> None:
        self._reference, self._seed, self._library_size = reference, seed, library_size
        self.is_known = reference.genes_per_cell is not None
        self.has_counts = reference.library_size is not None and bool(reference.library_size.any())
        if library_size is not None and not self.has_counts:
            raise ConfigurationError(
                "this model keeps no counts of its training cells, so a library size cannot be "
                "given; train again from counts"
            )
        self._slots = _by_explained_size(reference)
        self._kept: dict[tuple[int, ...], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def draw(
        self, cells: range, codes: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (B,) panel genes to express and (B,) library sizes of the cells numbered ``cells``."""
        # One uniform number per cell, in order: a part is the same as within the whole.
        rng = generator_at(cells.start, self._seed, Stream.GENES_PER_CELL)
        at = rng.random(len(cells))
        n_genes, counts = np.empty(len(cells), np.float32), np.empty(len(cells), np.float32)
        for place, row in enumerate(codes):
            of_genes, of_counts = self._quantiles(tuple(row.tolist()))
            if self._library_size is not None:
                at[place] = np.interp(self._library_size, of_counts, _FRACTIONS)
            n_genes[place] = np.interp(at[place], _FRACTIONS, of_genes)
            counts[place] = np.interp(at[place], _FRACTIONS, of_counts)
        if self._library_size is not None:
            counts[:] = self._library_size
        return n_genes, counts

    def _quantiles(self, row: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Genes and counts at each of `_FRACTIONS` of the cells with all phenotypes of the row.

        Where these are few: of cells with those phenotypes on which the number of genes depends most.
        """
        if row not in self._kept:
            reference = self._reference
            assert reference.genes_per_cell is not None
            assert reference.library_size is not None
            kept = {slot: row[slot] for slot in self._slots if row[slot] >= 0}
            for slot in list(kept):
                if reference.n_cells(kept) >= FEW_CELLS:
                    break
                del kept[slot]
            chosen = reference.matching(kept)
            weight = np.repeat(reference.counts[chosen], SIZE_QUANTILES).astype(np.float64)
            weight /= weight.sum()
            self._kept[row] = (
                _weighted_quantiles(reference.genes_per_cell[chosen], weight),
                _weighted_quantiles(reference.library_size[chosen], weight),
            )
        return self._kept[row]


def _weighted_quantiles(
    sizes: NDArray[np.float32], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    flat = sizes.astype(np.float64).ravel()
    order = np.argsort(flat, kind="stable")
    middle = np.cumsum(weight[order]) - 0.5 * weight[order]
    return np.interp(_FRACTIONS, middle, flat[order])


def _by_explained_size(reference: Reference) -> list[int]:
    """Phenotype slots, those first that explain least of the genes per cell."""
    if reference.genes_per_cell is None:
        return []
    middle = reference.genes_per_cell.mean(axis=1).astype(np.float64)
    weight = reference.counts.astype(np.float64)
    overall = np.average(middle, weights=np.maximum(weight, 1e-9))

    def explained(slot: int) -> float:
        codes = reference.combinations[:, slot] + 1
        sizes = np.bincount(codes, weight)
        means = np.bincount(codes, weight * middle) / np.maximum(sizes, 1e-9)
        return float((sizes * (means - overall) ** 2).sum())

    return sorted(range(reference.combinations.shape[1]), key=explained)


def mean_genes_per_cell(reference: Reference) -> float:
    """Return the expected number of panel genes that a training cell expresses."""
    counts = reference.bin_counts
    return float((counts[:, 1:].sum(axis=1) / np.maximum(counts.sum(axis=1), 1)).sum())


def sample_counts(
    values: NDArray[np.float32], library_size: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Turn (genes,) log values of a cell of ``library_size`` counts into whole counts of its genes."""
    expected = np.expm1(values.astype(np.float64)) * (library_size / TARGET_SUM)
    counts = np.floor(expected + rng.random(len(values)))
    return np.where(values > 0, np.maximum(counts, 1.0), 0.0).astype(np.float32)


def lattice_counts(
    lattice: CountLattice,
    cell: int,
    bins: NDArray[np.integer[Any]],
    values: NDArray[np.float32],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Turn (genes,) log values of a cell of a lattice into whole counts of the ``bins`` they are in."""
    return lattice.counts(cell, bins, sample_counts(values, float(lattice.totals[cell]), rng))


def log_values(counts: sparse.csr_matrix, library_size: NDArray[np.floating]) -> sparse.csr_matrix:
    """Return log1p of counts per 10,000 of (cells, genes) counts, given (cells,) library sizes."""
    sizes = library_size.astype(np.float32)
    data = log_normalise(counts.data, np.repeat(count_scales(sizes), np.diff(counts.indptr)))
    return sparse.csr_matrix((data, counts.indices, counts.indptr), counts.shape)
