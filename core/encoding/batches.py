"""Batches: from cells as they are stored to packed tokens, with the masked positions and answers.

A batch is flat: T tokens of all cells one after another, and ``cu_seqlens`` where each cell begins.
Both layouts come out in the same form, so the model does not know them apart:

- ranked: every panel gene, in panel order, for every cell;
- expressed: the genes above bin 0, in no particular order, some of the masked ones replaced by
  unexpressed genes so that "bin 0" is an answer; a cell with more genes than ``max_length`` allows
  keeps a random choice of them.

Everything is vectorised over the batch but joining slices, one per cell. Values are binned as they
are stored: counts are compared with a cell's own thresholds (`count_bins`), never normalised.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.encoding.cell_batch import CellBatch, PendingBins
from core.encoding.count_bins import CountBins, levels_of_counts
from core.encoding.freed_memory import keep_freed_memory
from core.encoding.masking import (
    Show,
    draw_gene_mask,
    draw_masked_counts,
    draw_phenotype_states,
    draw_subsets,
)
from core.encoding.packing import GeneTokens, pack
from core.encoding.panel_cells import PanelCells
from core.encoding.tokens import MASK, TokenSpace
from core.encoding.unexpressed import Lookup, draw_unexpressed
from core.encoding.values import ValueEncoder
from core.presets.schema import MaskingSettings

__all__ = ["BatchEncoder", "CellBatch"]

FloatArray = NDArray[np.float32]


class BatchEncoder:
    """Make batches from expression and phenotype codes.

    Parameters
    ----------
    tokens
        Identities and values of the model.
    values
        Bins of the model.
    max_length
        Longest sequence; ranked sequences never need more than the panel.
    bins_on_device
        Leave the bins of counts to the device (`CellBatch.pending`) where that can be: stored
        counts, bins, and edges that all genes share.
    """

    def __init__(
        self,
        tokens: TokenSpace,
        values: ValueEncoder,
        *,
        max_length: int,
        bins_on_device: bool = False,
    ) -> None:
        # On the device the bins of masked genes are made as answers, which a classifier has not.
        self.bins_on_device = bins_on_device and tokens.classified is None
        self.tokens = tokens
        self.values = values
        self.max_length = max_length
        self.continuous = values.kind == "continuous"
        self._lookup: Lookup | None = None
        keep_freed_memory()

    @property
    def room(self) -> int:
        """Most genes of a sequence."""
        return self.max_length - self.tokens.header_length - 1

    def masked(
        self,
        expression: PanelCells | sparse.csr_matrix,
        codes: NDArray[np.int32],
        masking: MaskingSettings,
        rng: np.random.Generator,
    ) -> CellBatch:
        """Encode cells with genes and phenotypes hidden at random, as in training.

        Parameters
        ----------
        expression
            Cells over the panel: as stored, or (cells, genes) log1p counts per 10,000.
        codes
            (cells, phenotypes), -1 where missing.
        masking
            The rates.
        rng
            The only source of chance: the same state gives the same batch.
        """
        cells = expression if isinstance(expression, PanelCells) else PanelCells.of(expression)
        states = draw_phenotype_states(
            codes,
            mask=masking.phenotypes,
            drop=masking.drop_phenotypes,
            unspecified=masking.unspecified,
            rng=rng,
        )
        # Cells asked as annotation asks them: every gene shown, every known phenotype hidden.
        visible = rng.random(len(codes)) < masking.visible_cells
        states[visible[:, None] & (codes >= 0)] = Show.MASKED
        if self.tokens.layout == "expressed":
            return self._expressed(cells, codes, states, masking, rng, visible)
        n_masked = draw_masked_counts(np.full(cells.n_cells, cells.n_genes), masking.genes, rng)
        n_masked[visible] = 0
        mask = draw_gene_mask(n_masked, cells.n_genes, rng)
        return self._ranked(*self._dense(cells), codes, states, mask)

    def visible(
        self,
        expression: PanelCells | sparse.csr_matrix,
        codes: NDArray[np.int32],
        hidden: Sequence[str],
        rng: np.random.Generator,
        *,
        missing: NDArray[np.bool_] | None = None,
    ) -> CellBatch:
        """Encode cells with all genes visible and the ``hidden`` phenotypes masked.

        A masked phenotype has an answer only where its label is known. The other phenotypes are
        shown. ``rng`` chooses genes of cells longer than ``max_length``. Genes that are ``missing``
        (panel,) are masked: not known, rather than not expressed. In the expressed layout they are
        no tokens in any case.
        """
        cells = expression if isinstance(expression, PanelCells) else PanelCells.of(expression)
        states = np.where(codes < 0, Show.NOT_SPECIFIED, Show.VALUE).astype(np.int8)
        for name in hidden:
            states[:, self.tokens.names.index(name)] = Show.MASKED
        if self.tokens.layout == "expressed":
            nothing = MaskingSettings(genes=0.0, phenotypes=0.0)
            nobody = np.zeros(len(codes), dtype=bool)
            return self._expressed(cells, codes, states, nothing, rng, nobody)
        mask = np.zeros((cells.n_cells, cells.n_genes), dtype=bool)
        if missing is not None:
            mask[:, missing] = True
        return self._ranked(*self._dense(cells), codes, states, mask)

    def ranked(
        self,
        expression: FloatArray,
        codes: NDArray[np.int32],
        states: NDArray[np.int8],
        mask: NDArray[np.bool_],
    ) -> CellBatch:
        """Encode every panel gene of every cell, hiding exactly what ``states`` and ``mask`` say.

        Parameters
        ----------
        expression
            (cells, genes), dense; masked entries are answers only.
        codes, states
            (cells, phenotypes).
        mask
            (cells, genes).
        """
        bins = self.values.encode(expression)
        levels = np.where(bins > 0, expression, 0) if self.continuous else None
        return self._ranked(self._shown(bins), levels, None, codes, states, mask)

    def _ranked(
        self,
        value: NDArray[Any],
        levels: FloatArray | None,
        pending: PendingBins | None,
        codes: NDArray[np.int32],
        states: NDArray[np.int8],
        mask: NDArray[np.bool_],
    ) -> CellBatch:
        """Encode dense (cells, genes) values and, for continuous models, levels; both are changed."""
        n_cells, n_genes = mask.shape
        tokens = self.tokens
        at = np.flatnonzero(mask)
        n_masked = mask.sum(axis=1)
        target = self._answers(value, levels, pending, at)
        self._hide(value, levels, pending, at)
        every = (np.arange(n_genes) + tokens.first_gene).astype(tokens.token_id_type)
        genes = GeneTokens(
            lengths=np.full(n_cells, n_genes),
            identity=[every] * n_cells,
            value=list(value),
            number=None if levels is None else list(levels),
            masked_at=at,
            n_masked=n_masked,
            gene=(at - np.repeat(np.arange(n_cells) * n_genes, n_masked)).astype(np.int32),
            target=target,
            mask_rate=(n_masked / max(n_genes, 1)).astype(np.float32),
            pending=pending,
        )
        return pack(tokens, genes, codes, states)

    def _expressed(
        self,
        cells: PanelCells,
        codes: NDArray[np.int32],
        states: NDArray[np.int8],
        masking: MaskingSettings,
        rng: np.random.Generator,
        visible: NDArray[np.bool_],
    ) -> CellBatch:
        tokens = self.tokens
        count_bins = self._count_bins(cells)
        cells = self._without_bin_0(cells, count_bins)
        expressed = np.diff(cells.indptr)
        lengths = np.minimum(expressed, self.room)
        part = cells
        if (lengths < expressed).any():
            part = _only(cells, np.flatnonzero(draw_subsets(expressed, lengths, rng)), lengths)
        n_masked = draw_masked_counts(lengths, masking.genes, rng)
        n_masked[visible] = 0
        at = np.flatnonzero(draw_subsets(lengths, n_masked, rng))
        identity = self._identities(part)
        pending = self._pending(part, count_bins)
        value, levels = self._values(part, count_bins, pending)
        target = self._answers(value, levels, pending, at)
        if masking.unexpressed and len(at):
            swapped, genes = self._swaps(cells, n_masked, masking.unexpressed, rng)
            identity[at[swapped]] = genes + tokens.first_gene
            target[swapped] = 0
            if pending is not None:
                value[at[swapped]] = 0
        self._hide(value, levels, pending, at)
        spans = part.spans(np.arange(part.n_cells))
        packed = GeneTokens(
            lengths=lengths,
            identity=[identity[span] for span in spans],
            value=[value[span] for span in spans],
            number=None if levels is None else [levels[span] for span in spans],
            masked_at=at,
            n_masked=n_masked,
            gene=identity.take(at).astype(np.int32) - tokens.first_gene,
            target=target,
            mask_rate=(n_masked / np.maximum(lengths, 1)).astype(np.float32),
            pending=pending,
        )
        return pack(tokens, packed, codes, states)

    def _swaps(
        self,
        cells: PanelCells,
        n_masked: NDArray[np.int64],
        share: float,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Choose masked genes that give way to unexpressed ones: which of the masked, and to whom.

        Uniform over what the cell does not express. A cell that expresses nearly the whole panel
        may lack candidates: what cannot be swapped stays as it is.
        """
        swapped = np.flatnonzero(rng.random(int(n_masked.sum()), dtype=np.float32) < share)
        ends = np.searchsorted(swapped, np.concatenate(([0], np.cumsum(n_masked))))
        wanted = np.diff(ends)
        if self._lookup is None or self._lookup.width != cells.n_columns + 1:
            self._lookup = Lookup(cells.n_columns + 1)
        genes, n_drawn = draw_unexpressed(cells, wanted, self._lookup, rng)
        if (n_drawn < wanted).any():
            rank = np.arange(len(swapped)) - np.repeat(ends[:-1], wanted)
            swapped = swapped[rank < np.repeat(n_drawn, wanted)]
        return swapped, genes

    # ---------------------------------------------------------------- stored values to tokens

    def _count_bins(self, cells: PanelCells) -> CountBins | None:
        """Bins straight from counts, where values are counts and all genes have one set of edges."""
        if cells.totals is None or self.continuous or not self.values.edges_are_shared:
            return None
        return CountBins(self.values.edges, cells.totals)

    def _pending(self, cells: PanelCells, count_bins: CountBins | None) -> PendingBins | None:
        """Return what the device needs to make the bins, or None where the host makes them."""
        if not self.bins_on_device or count_bins is None or cells.values.dtype != np.uint16:
            return None
        thresholds = count_bins.thresholds.astype(np.int32)
        return PendingBins(thresholds, self.tokens.first_gene, self.tokens.first_bin)

    def _without_bin_0(self, cells: PanelCells, count_bins: CountBins | None) -> PanelCells:
        """Leave out values below a gene's first edge; usually there are none."""
        if count_bins is not None:
            on = count_bins.expressed(cells.values, cells.indptr)
        else:
            shared = self.values.edges_are_shared
            on = self.values.expressed(_levels(cells), cells.columns if shared else _genes(cells))
        if on is None or on.all():
            return cells
        at = np.flatnonzero(on)
        return _only(cells, at, np.diff(np.searchsorted(at, cells.indptr)))

    def _identities(self, cells: PanelCells) -> NDArray[np.integer[Any]]:
        """(values,), identity of each value's gene."""
        dtype = self.tokens.token_id_type
        genes = _genes(cells).astype(dtype, copy=False)
        return np.add(genes, self.tokens.first_gene, dtype=dtype)

    def _values(
        self, cells: PanelCells, count_bins: CountBins | None, pending: PendingBins | None
    ) -> tuple[NDArray[Any], FloatArray | None]:
        """(values,) tokens of the stored values, and levels where the model is continuous."""
        if pending is not None:
            return cells.values.copy(), None
        if count_bins is not None:
            value = count_bins.bins(
                cells.values, cells.indptr,
                first=self.tokens.first_bin, dtype=self.tokens.value_type,
            )  # fmt: skip
            return value, None
        levels = _levels(cells)
        shared = self.values.edges_are_shared  # then the genes do not matter
        bins = self.values.encode_flat(levels, cells.columns if shared else _genes(cells))
        if not self.continuous:
            return self._shown(bins), None
        return self._shown(bins), np.where(bins > 0, levels, np.float32(0))

    def _dense(
        self, cells: PanelCells
    ) -> tuple[NDArray[Any], FloatArray | None, PendingBins | None]:
        """(cells, genes) tokens of all genes, and levels where the model is continuous."""
        shape = (cells.n_cells, cells.n_genes)
        count_bins = self._count_bins(cells)
        pending = self._pending(cells, count_bins)
        value, levels = self._values(cells, count_bins, pending)
        at = np.repeat(np.arange(cells.n_cells) * cells.n_genes, np.diff(cells.indptr))
        at += _genes(cells)
        absent = self.tokens.first_bin if pending is None else 0
        dense = np.full(shape, absent, dtype=value.dtype)
        dense.ravel()[at] = value
        if levels is None:
            return dense, None, pending
        dense_levels = np.zeros(shape, dtype=np.float32)
        dense_levels.ravel()[at] = levels
        return dense, dense_levels, None

    def _shown(self, bins: NDArray[np.uint8]) -> NDArray[Any]:
        """Tokens of bins; continuous models have one token for all: a number follows."""
        if self.continuous:
            return np.full(bins.shape, self.tokens.first_bin, dtype=self.tokens.value_type)
        return np.add(bins, self.tokens.first_bin, dtype=self.tokens.value_type)

    def _answers(
        self,
        value: NDArray[Any],
        levels: FloatArray | None,
        pending: PendingBins | None,
        at: NDArray[np.int64],
    ) -> NDArray[Any]:
        """Bins, or levels of continuous models, at flat places, before they are masked."""
        if pending is not None:
            return np.zeros(len(at), dtype=np.uint8)
        if levels is not None:
            return levels.ravel().take(at)
        return value.ravel().take(at) - self.tokens.value_type(self.tokens.first_bin)

    @staticmethod
    def _hide(
        value: NDArray[Any],
        levels: FloatArray | None,
        pending: PendingBins | None,
        at: NDArray[np.int64],
    ) -> None:
        """Mask flat places, unless the device has yet to read the answers there."""
        if pending is None:
            value.ravel()[at] = MASK
        if levels is not None:
            levels.ravel()[at] = 0


def _genes(cells: PanelCells) -> NDArray[np.integer[Any]]:
    """(values,), panel index of each value's gene."""
    return cells.columns if cells.panel_of is None else cells.panel_of.take(cells.columns)


def _levels(cells: PanelCells) -> FloatArray:
    """(values,), log1p counts per 10,000."""
    if cells.totals is None:
        return cells.values
    return levels_of_counts(cells.values, cells.indptr, cells.totals)


def _only(cells: PanelCells, at: NDArray[np.int64], lengths: NDArray[np.int64]) -> PanelCells:
    """Keep the values at ascending places, ``lengths`` of each cell."""
    return replace(
        cells,
        indptr=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        columns=cells.columns.take(at),
        values=cells.values.take(at),
    )
