"""Depth: how many genes a cell shows, drawn from real cells and held while its genes are drawn.

Cells of one kind differ several-fold in counts, and so in how many genes are seen at all. Drawn gene by
gene, this spread comes out too narrow. So each cell first gets a depth of a training cell with its
phenotypes (a rank within them, which says both its genes and its counts), and while genes are drawn all
log-odds of being expressed are shifted alike, by what brings the expected number to that depth: drawing
given the sum, in its exponential form. It needs no training and works for any model.

Shapes: B cells, R genes still hidden.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import ConfigurationError
from core.generation.request import FEW_CELLS
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.model.reference import SIZE_QUANTILES, Reference
from core.random_streams import Stream, generator_at

__all__ = ["DepthDraw", "expression_log_odds", "shift_expression", "solve_shift"]

#: The largest shift: beyond it genes would be forced on that the cell's kind does not have.
_LARGEST_SHIFT = 2.0
_HALVINGS = 14


class DepthDraw:
    """The depths that the cells of a request get.

    Parameters
    ----------
    model
        Whose training cells the depths come from.
    seed
        Of the request.
    library_size
        Counts that every cell shall have, or None: as training cells had.

    Attributes
    ----------
    is_known
        Whether the model folder keeps depths; without them cells come as deep as they come.
    has_counts
        Whether it keeps counts, too.

    Raises
    ------
    ConfigurationError
        A library size is given, but the model knows no counts.
    """

    def __init__(self, model: CellModel, seed: int, library_size: float | None) -> None:
        self._reference, self._seed, self._library_size = model.reference, seed, library_size
        self.is_known = self._reference.genes_per_cell is not None
        library_sizes = self._reference.library_size
        self.has_counts = library_sizes is not None and bool(library_sizes.any())
        if library_size is not None and not self.has_counts:
            message = (
                "this model keeps no counts of its training cells, so a library size cannot be "
                "given; train again from counts"
            )
            raise ConfigurationError(message)
        self._slots = _by_explained_depth(self._reference)
        self._kept: dict[tuple[int, ...], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def draw(
        self, cells: range, codes: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (B,) panel genes to be expressed, and (B,) counts, of the cells numbered ``cells``."""
        # One uniform number per cell, in order: a part is the same as within the whole.
        rng = generator_at(cells.start, self._seed, Stream.GENES_PER_CELL)
        rank = rng.random(len(cells))
        n_genes, counts = np.empty(len(cells), np.float32), np.empty(len(cells), np.float32)
        for place, row in enumerate(codes):
            points, shares = self._quantiles(tuple(row.tolist()))
            if self._library_size is not None:
                counts[place] = self._library_size
                share = np.interp(self._library_size, points[1], shares)
                n_genes[place] = np.interp(share, shares, points[0])
                continue
            n_genes[place], counts[place] = (np.interp(rank[place], shares, one) for one in points)
        return n_genes, counts

    def _quantiles(self, row: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(2, points) genes and counts, ascending, and (points,) the share of cells below each.

        Of cells with all phenotypes of the row; where they are few, of cells with those phenotypes that
        depth depends on most.
        """
        if row not in self._kept:
            assert self._reference.genes_per_cell is not None
            assert self._reference.library_size is not None
            kept = {slot: row[slot] for slot in self._slots if row[slot] >= 0}
            for slot in list(kept):
                if self._reference.n_cells(kept) >= FEW_CELLS:
                    break
                del kept[slot]
            chosen = self._reference.matching(kept)
            weight = np.repeat(self._reference.counts[chosen], SIZE_QUANTILES).astype(np.float64)
            weight /= weight.sum()
            points = []
            for quantiles in (self._reference.genes_per_cell, self._reference.library_size):
                flat = quantiles[chosen].astype(np.float64).ravel()
                order = np.argsort(flat, kind="stable")
                middle = np.cumsum(weight[order]) - 0.5 * weight[order]
                shares = np.linspace(0, 1, 65)
                points.append(np.interp(shares, middle, flat[order]))
            self._kept[row] = np.stack(points), np.linspace(0, 1, 65)
        return self._kept[row]


def _by_explained_depth(reference: Reference) -> list[int]:
    """Phenotype slots, those first that say least of how many genes a cell shows."""
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


def expression_log_odds(logits: Tensor, config: TfxConfig) -> Tensor:
    """Return (...,) log-odds of being expressed from (..., O) logits."""
    if config.kind == "continuous" or logits.shape[-1] == 1:
        return logits[..., 0]
    return torch.logsumexp(logits[..., 1 : config.n_bins], dim=-1) - logits[..., 0]


def shift_expression(logits: Tensor, shift: Tensor, config: TfxConfig) -> Tensor:
    """Add (B,) shifts to the log-odds of being expressed of (B, n, O) logits."""
    shift = shift.to(logits.dtype)[:, None]
    shifted = logits.clone()
    if config.kind == "continuous" or logits.shape[-1] == 1:
        shifted[..., 0] += shift
    else:
        shifted[..., 0] -= shift
    return shifted


def solve_shift(log_odds: Tensor, is_hidden: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Find the shift at which the hidden genes are expected to add what is wanted.

    Parameters
    ----------
    log_odds, is_hidden
        (B, G), and which of them count.
    wanted
        (B,) genes still to be expressed.
    temperature
        Of sampling.

    Returns
    -------
    (B,), at most `_LARGEST_SHIFT` either way.
    """
    low = torch.full_like(wanted, -_LARGEST_SHIFT, dtype=log_odds.dtype)
    high = -low
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        expected = torch.sigmoid((log_odds + middle[:, None]) / temperature) * is_hidden
        is_short = expected.sum(dim=1) < wanted
        low = torch.where(is_short, middle, low)
        high = torch.where(is_short, high, middle)
    return 0.5 * (low + high)
