"""Batches: cells as packed token arrays, with the masked positions and their answers.

A batch is flat: T tokens of all cells one after another, and ``cu_seqlens`` where each cell begins.
Both layouts come out in the same form, so the model does not know them apart:

- ranked: every panel gene, in panel order, for every cell;
- expressed: the genes above bin 0, plus masked unexpressed ones swapped in so that "bin 0" is an
  answer; a cell with more genes than ``max_length`` allows keeps a random choice of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.encoding.masking import (
    Show,
    draw_gene_mask,
    draw_masked_counts,
    draw_phenotype_states,
)
from core.encoding.tokens import CLS, END, MASK, NONE, START, TokenSpace
from core.encoding.values import ValueEncoder
from core.presets.schema import MaskingSettings

__all__ = ["BatchEncoder", "CellBatch"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class CellBatch:
    """A batch of B cells, T tokens, M masked genes and K masked phenotypes.

    Attributes
    ----------
    identity, value
        (T,), what stands at a position and how much of it; see `core.encoding.tokens`.
    number
        (T,), float32, the log1p value at visible genes of continuous models, else 0.
    cu_seqlens
        (B + 1,), int32, first token of each cell.
    gene_position, gene_cell, gene, gene_target
        (M,), flat position, cell, panel index, and answer: a bin, or the log1p value (float32).
    phenotype_position, phenotype_cell, phenotype_slot, phenotype_target
        (K,), flat position, cell, phenotype number, and code.
    mask_share
        (B,), float32, masked share of each cell's genes.
    """

    identity: IntArray
    value: IntArray
    number: FloatArray
    cu_seqlens: NDArray[np.int32]
    gene_position: IntArray
    gene_cell: IntArray
    gene: IntArray
    gene_target: NDArray[np.int64] | FloatArray
    phenotype_position: IntArray
    phenotype_cell: IntArray
    phenotype_slot: IntArray
    phenotype_target: IntArray
    mask_share: FloatArray

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
        return self.n_cells * self.max_length == len(self.identity)


def _take(index: NDArray[Any], *arrays: NDArray[Any]) -> list[NDArray[Any]]:
    """Index several parallel arrays alike."""
    return [array[index] for array in arrays]


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
    """

    def __init__(self, tokens: TokenSpace, values: ValueEncoder, *, max_length: int) -> None:
        self.tokens = tokens
        self.values = values
        self.max_length = max_length
        self.continuous = values.kind == "continuous"

    def masked(
        self,
        expression: sparse.csr_matrix,
        codes: NDArray[np.int32],
        masking: MaskingSettings,
        rng: np.random.Generator,
    ) -> CellBatch:
        """Encode cells with genes and phenotypes hidden at random, as in training.

        Parameters
        ----------
        expression
            (cells, genes), log1p counts per 10,000, in panel order.
        codes
            (cells, phenotypes), -1 where missing.
        masking
            The rates.
        rng
            The only source of chance: the same state gives the same batch.
        """
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
            return self._expressed(expression, codes, states, masking, rng, visible)
        n_cells, n_genes = expression.shape
        n_masked = draw_masked_counts(np.full(n_cells, n_genes), masking.genes, rng)
        n_masked[visible] = 0
        mask = draw_gene_mask(n_masked, n_genes, rng)
        return self.ranked(expression.toarray(), codes, states, mask)

    def visible(
        self,
        expression: sparse.csr_matrix,
        codes: NDArray[np.int32],
        hidden: Sequence[str],
        rng: np.random.Generator,
    ) -> CellBatch:
        """Encode cells with all genes visible and the ``hidden`` phenotypes masked.

        A masked phenotype has an answer only where its label is known. The other phenotypes are
        shown. ``rng`` chooses genes of cells longer than ``max_length``.
        """
        states = np.where(codes < 0, Show.NOT_SPECIFIED, Show.VALUE).astype(np.int8)
        for name in hidden:
            states[:, self.tokens.names.index(name)] = Show.MASKED
        if self.tokens.layout == "expressed":
            nothing = MaskingSettings(genes=0.0, phenotypes=0.0)
            nobody = np.zeros(len(codes), dtype=bool)
            return self._expressed(expression, codes, states, nothing, rng, nobody)
        mask = np.zeros(expression.shape, dtype=bool)
        return self.ranked(expression.toarray(), codes, states, mask)

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
        n_cells, n_genes = expression.shape
        bins = self.values.encode(expression).astype(np.int64)
        tokens = self.tokens
        gene_value = (
            np.full(bins.shape, tokens.first_bin) if self.continuous else bins + tokens.first_bin
        )
        gene_value[mask] = MASK
        width = tokens.header_length + n_genes + 1
        first = tokens.header_length
        identity = np.empty((n_cells, width), dtype=np.int64)
        value = np.full((n_cells, width), NONE, dtype=np.int64)
        number = np.zeros((n_cells, width), dtype=np.float32)
        self._write_header(identity, value, codes, states)
        identity[:, first:-1] = tokens.first_gene + np.arange(n_genes)
        identity[:, -1] = END
        value[:, first:-1] = gene_value
        if self.continuous:
            number[:, first:-1] = np.where(mask | (bins == 0), 0, expression)
        keep = self._kept_tokens(states, width)
        position = self._positions(keep)
        gene_cell, gene = np.nonzero(mask)
        target = expression * (bins > 0) if self.continuous else bins
        return self._batch(
            identity, value, number, keep, position, codes, states,
            gene_position=position[gene_cell, gene + first],
            gene_cell=gene_cell,
            gene=gene,
            gene_target=target[gene_cell, gene],
            mask_share=mask.mean(axis=1, dtype=np.float32),
        )  # fmt: skip

    def _expressed(
        self,
        expression: sparse.csr_matrix,
        codes: NDArray[np.int32],
        states: NDArray[np.int8],
        masking: MaskingSettings,
        rng: np.random.Generator,
        visible: NDArray[np.bool_],
    ) -> CellBatch:
        n_cells = expression.shape[0]
        tokens = self.tokens
        cell = np.repeat(np.arange(n_cells), np.diff(expression.indptr))
        gene = expression.indices.astype(np.int64)
        level = expression.data.astype(np.float32)
        bins = self.values.encode_flat(level, gene).astype(np.int64)
        on = bins > 0
        cell, gene, level, bins = cell[on], gene[on], level[on], bins[on]

        # A random order within each cell decides which genes stay and which are masked.
        room = self.max_length - tokens.header_length - 1
        order = np.lexsort((rng.random(len(cell)), cell))
        expressed = np.bincount(cell, minlength=n_cells)
        place = np.empty(len(cell), dtype=np.int64)
        place[order] = np.arange(len(cell)) - np.repeat(np.cumsum(expressed) - expressed, expressed)
        kept = np.minimum(expressed, room)
        n_masked = draw_masked_counts(kept, masking.genes, rng)
        n_masked[visible] = 0
        share = np.divide(n_masked, kept, out=np.zeros(n_cells), where=kept > 0)
        stays = place < kept[cell]
        cell, gene, level, bins, place = _take(stays, cell, gene, level, bins, place)
        masked = place < n_masked[cell]

        swapped = masked & (rng.random(len(cell)) < masking.unexpressed)
        if swapped.any():
            self._swap_in_unexpressed(cell, gene, level, bins, swapped, expression, rng)
        order = np.lexsort((gene, cell))
        cell, gene, level, bins, masked = _take(order, cell, gene, level, bins, masked)

        first = tokens.header_length
        width = first + int(kept.max(initial=0)) + 1
        column = first + np.arange(len(cell)) - np.repeat(np.cumsum(kept) - kept, kept)
        identity = np.empty((n_cells, width), dtype=np.int64)
        value = np.full((n_cells, width), NONE, dtype=np.int64)
        number = np.zeros((n_cells, width), dtype=np.float32)
        self._write_header(identity, value, codes, states)
        identity[:, first:] = END
        identity[cell, column] = tokens.first_gene + gene
        shown = np.full(len(cell), tokens.first_bin) if self.continuous else bins + tokens.first_bin
        value[cell, column] = np.where(masked, MASK, shown)
        if self.continuous:
            number[cell, column] = np.where(masked, 0, level)
        keep = self._kept_tokens(states, width)
        keep[:, first:] = np.arange(first, width) <= (first + kept)[:, None]
        position = self._positions(keep)
        return self._batch(
            identity, value, number, keep, position, codes, states,
            gene_position=position[cell[masked], column[masked]],
            gene_cell=cell[masked],
            gene=gene[masked],
            gene_target=(np.where(bins > 0, level, 0).astype(np.float32) if self.continuous
                         else bins)[masked],
            mask_share=share.astype(np.float32),
        )  # fmt: skip

    def _swap_in_unexpressed(
        self,
        cell: IntArray,
        gene: IntArray,
        level: FloatArray,
        bins: IntArray,
        swapped: NDArray[np.bool_],
        expression: sparse.csr_matrix,
        rng: np.random.Generator,
    ) -> None:
        """Replace the ``swapped`` genes, in place, by distinct unexpressed genes of the same cell.

        Uniform over what the cell does not express. A cell that expresses nearly the whole panel
        may lack candidates: what cannot be swapped stays as it is.
        """
        n_cells, n_genes = expression.shape
        free = np.ones((n_cells, n_genes), dtype=bool)
        everything = np.repeat(np.arange(n_cells), np.diff(expression.indptr))
        above = self.values.encode_flat(expression.data, expression.indices) > 0
        free[everything[above], expression.indices[above]] = False
        wanted = np.bincount(cell[swapped], minlength=n_cells)
        keys = rng.random((n_cells, n_genes), dtype=np.float32)
        keys[~free] = 2.0
        most = int(wanted.max())
        chosen = np.argpartition(keys, min(most, n_genes - 1), axis=1)[:, :most]
        chosen = np.take_along_axis(
            chosen, np.argsort(np.take_along_axis(keys, chosen, axis=1), axis=1), axis=1
        )
        where = np.flatnonzero(swapped)
        where = where[np.argsort(cell[where], kind="stable")]
        of_cell = cell[where]
        rank = np.arange(len(where)) - np.repeat(np.cumsum(wanted) - wanted, wanted)
        possible = rank < free.sum(axis=1)[of_cell]
        where, of_cell, rank = where[possible], of_cell[possible], rank[possible]
        gene[where] = chosen[of_cell, rank]
        level[where] = 0
        bins[where] = 0

    def _write_header(
        self,
        identity: IntArray,
        value: IntArray,
        codes: NDArray[np.int32],
        states: NDArray[np.int8],
    ) -> None:
        """Fill CLS, the phenotype slots and START of padded (cells, width) arrays."""
        tokens = self.tokens
        n = tokens.n_phenotypes
        identity[:, 0] = CLS
        identity[:, 1 : n + 1] = tokens.first_slot + np.arange(n)
        identity[:, n + 1] = START
        value[:, : n + 2] = NONE
        value[:, 1 : n + 1] = np.select(
            [states == Show.VALUE, states == Show.MASKED],
            [tokens.not_specified + codes + 1, np.full(codes.shape, MASK)],
            np.broadcast_to(tokens.not_specified, codes.shape),
        )

    def _kept_tokens(self, states: NDArray[np.int8], width: int) -> NDArray[np.bool_]:
        keep = np.ones((len(states), width), dtype=bool)
        keep[:, 1 : self.tokens.n_phenotypes + 1] = states != Show.DROPPED
        return keep

    @staticmethod
    def _positions(keep: NDArray[np.bool_]) -> IntArray:
        """Flat position of each kept entry of a padded array."""
        return (np.cumsum(keep.ravel()) - 1).reshape(keep.shape)

    def _batch(
        self,
        identity: IntArray,
        value: IntArray,
        number: FloatArray,
        keep: NDArray[np.bool_],
        position: IntArray,
        codes: NDArray[np.int32],
        states: NDArray[np.int8],
        *,
        gene_position: IntArray,
        gene_cell: IntArray,
        gene: IntArray,
        gene_target: IntArray | FloatArray,
        mask_share: FloatArray,
    ) -> CellBatch:
        asked_cell, asked_slot = np.nonzero((states == Show.MASKED) & (codes >= 0))
        lengths = keep.sum(axis=1)
        cu_seqlens = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=cu_seqlens[1:])
        return CellBatch(
            identity=identity[keep],
            value=value[keep],
            number=number[keep],
            cu_seqlens=cu_seqlens,
            gene_position=gene_position,
            gene_cell=gene_cell,
            gene=gene,
            gene_target=gene_target,
            phenotype_position=position[asked_cell, asked_slot + 1],
            phenotype_cell=asked_cell,
            phenotype_slot=asked_slot,
            phenotype_target=codes[asked_cell, asked_slot].astype(np.int64),
            mask_share=mask_share,
        )
