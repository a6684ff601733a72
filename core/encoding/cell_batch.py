"""A batch of packed cells: its tokens, its masked positions, and their targets.

    [CLS] [SEX] ... [START] genes of cell 0 [END] [CLS] [SEX] ... [START] genes of cell 1 [END] ...

`pack` puts headers around the genes that `batches` chose; `split_batch` cuts a batch that does not fit
into memory. A classifier predicts one phenotype, at [CLS]: whatever a caller wants shown, its input
never holds the label that it predicts, nor a phenotype that it was not trained with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.encoding.masking import Show
from core.encoding.tokens import CLS, END, MASK, NONE, START, TokenSpace

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class CellBatch:
    """A batch of B cells, T tokens, M masked genes and K masked phenotypes.

    Integers are as small as their range allows; `core.model.batch_tensors` widens them on the device.
    """

    #: (T,), which token stands at a position, and its value; see `core.encoding.tokens`.
    token_id: Integers
    value: Integers
    #: (T,), float32, log1p values at visible genes of continuous models; else one repeated zero.
    continuous: NDArray[np.float32]
    #: (B + 1,), int32, first token of each cell.
    cu_seqlens: NDArray[np.int32]
    #: (M,), flat position, cell, panel index, and target: a bin, or the log1p value (float32).
    gene_position: Integers
    gene_cell: Integers
    gene: Integers
    gene_target: NDArray[Any]
    #: (K,), flat position, cell, slot of the phenotype, and code.
    phenotype_position: Integers
    phenotype_cell: Integers
    phenotype_slot: Integers
    phenotype_target: Integers
    #: (B,), float32, masked fraction of each cell's genes.
    mask_rate: NDArray[np.float32]
    #: (B, edges), int32, smallest count of each cell that reaches each edge, where the device has yet
    #: to make the bins: ``value`` then holds counts at genes, masked ones too, and ``gene_target`` is
    #: meaningless. None where bins are made.
    thresholds: NDArray[np.int32] | None = None
    #: Token id of gene 0.
    first_gene: int = 0
    #: (B,), float32, library sizes, 0 where not known; None for a model that does not read them.
    library_size: NDArray[np.float32] | None = None
    #: (M, bins), whether a whole count of the cell falls into the bin; None where all bins are possible.
    possible: NDArray[np.bool_] | None = None
    #: (C,), flat positions that an encoder with attention reads, ascending, with all masked genes and phenotypes
    #: above; None where it reads all. Other parts of a model read every token.
    context: Integers | None = None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.cu_seqlens) - 1

    @cached_property
    def max_length(self) -> int:
        """Tokens of the longest cell."""
        return int(np.diff(self.cu_seqlens).max(initial=0))

    @property
    def encoded_lengths(self) -> NDArray[np.int32]:
        """(B,), tokens of each cell that an encoder with attention reads."""
        if self.context is None:
            return np.diff(self.cu_seqlens)
        return np.diff(np.searchsorted(self.context, self.cu_seqlens)).astype(np.int32)


def pack(
    tokens: TokenSpace,
    codes: NDArray[np.int32],
    states: NDArray[np.int8],
    *,
    lengths: NDArray[np.int64],
    token_id: Sequence[NDArray[Any]],
    value: Sequence[NDArray[Any]],
    continuous: Sequence[NDArray[np.float32]] | None,
    masked_at: NDArray[np.int64],
    n_masked: NDArray[np.int64],
    gene: NDArray[np.integer[Any]],
    target: NDArray[Any],
    mask_rate: NDArray[np.float32],
    thresholds: NDArray[np.int32] | None = None,
    library_size: NDArray[np.float32] | None = None,
    possible: NDArray[np.bool_] | None = None,
    in_context: NDArray[np.bool_] | None = None,
) -> CellBatch:
    """Put headers and ends around the genes of each cell.

    ``codes`` and ``states`` are (cells, phenotypes); ``lengths``, ``n_masked`` and ``mask_rate``
    (cells,); ``token_id``, ``value`` and ``continuous`` have one array per cell, of its genes.
    ``masked_at`` (M,) is the place of the masked genes among all genes of the batch, ascending, with
    panel index ``gene`` and ``target`` (M,), and ``possible`` (M, bins). ``in_context``, of all genes of
    the batch, says which an encoder with attention reads.
    """
    n_cells, n_slots = codes.shape
    if tokens.classified is not None:
        states = _states_of_classifier(tokens, states)
    width = n_slots + 2
    keep = np.ones((n_cells, width), dtype=bool)
    keep[:, 1:-1] = states != Show.DROPPED
    header = keep.sum(axis=1)
    cu_seqlens = np.zeros(n_cells + 1, dtype=np.int32)
    np.cumsum(header + lengths + 1, out=cu_seqlens[1:])

    header_id = np.array([CLS, *range(tokens.first_slot, tokens.first_gene), START])
    header_value = np.full((n_cells, width), NONE)
    shown = tokens.not_specified + np.where(states == Show.VALUE, codes + 1, 0)
    header_value[:, 1:-1] = np.where(states == Show.MASKED, MASK, shown)
    value_type = tokens.value_type if thresholds is None else np.uint16
    joined_value = _join(header_value, keep, value, value_type, NONE)
    if continuous is None:
        numbers = np.broadcast_to(np.float32(0), joined_value.shape)
    else:
        numbers = _join(np.zeros(keep.shape), keep, continuous, np.float32, 0)

    not_genes = np.cumsum(header) + np.arange(n_cells)  # tokens before each cell's first gene
    context = None
    if in_context is not None:
        is_read = np.ones(int(cu_seqlens[-1]), dtype=bool)
        is_read[np.arange(len(in_context)) + np.repeat(not_genes, lengths)] = in_context
        context = np.flatnonzero(is_read).astype(np.int32)
    masked_cell, masked_slot = np.nonzero((states == Show.MASKED) & (codes >= 0))
    place = (np.cumsum(keep, axis=1) - 1)[masked_cell, masked_slot + 1]
    gene_position = (masked_at + np.repeat(not_genes, n_masked)).astype(np.int32)
    gene_cell = np.repeat(np.arange(n_cells, dtype=np.int32), n_masked)
    predicted = slice(None)
    if tokens.classified is not None:
        predicted = slice(0)
        place = np.zeros_like(place)  # of [CLS]
    return CellBatch(
        token_id=_join(
            np.broadcast_to(header_id, keep.shape), keep, token_id, tokens.token_id_type, END
        ),
        value=joined_value,
        continuous=numbers,
        cu_seqlens=cu_seqlens,
        gene_position=gene_position[predicted],
        gene_cell=gene_cell[predicted],
        gene=gene[predicted],
        gene_target=target[predicted],
        phenotype_position=cu_seqlens[masked_cell] + place,
        phenotype_cell=masked_cell,
        phenotype_slot=masked_slot,
        phenotype_target=codes[masked_cell, masked_slot],
        mask_rate=mask_rate,
        thresholds=thresholds,
        first_gene=tokens.first_gene,
        library_size=library_size,
        possible=None if possible is None else possible[predicted],
        context=context,
    )


def _states_of_classifier(tokens: TokenSpace, states: NDArray[np.int8]) -> NDArray[np.int8]:
    """Mask the classified phenotype; write [NO_*] for the others, except those that are given."""
    assert tokens.classified is not None
    allowed = np.full_like(states, Show.NOT_SPECIFIED)
    for name in tokens.given:
        slot = tokens.names.index(name)
        is_shown = (states[:, slot] == Show.VALUE) | (states[:, slot] == Show.DROPPED)
        allowed[is_shown, slot] = states[is_shown, slot]
    allowed[:, tokens.names.index(tokens.classified)] = Show.MASKED
    return allowed


def _join(
    headers: NDArray[Any],
    keep: NDArray[np.bool_],
    bodies: Sequence[NDArray[Any]],
    dtype: type[np.generic],
    last: int,
) -> NDArray[Any]:
    """Join, for each cell, what it keeps of its header, its body and the ``last`` token."""
    # The end of a cell precedes the next one's header: one piece fewer per cell.
    pieces = np.empty((len(headers), headers.shape[1] + 1), dtype=dtype)
    pieces[:, 0] = last
    pieces[:, 1:] = headers
    if keep.all():
        between = list(pieces)
    else:
        kept = np.concatenate([np.ones((len(keep), 1), dtype=bool), keep], axis=1)
        between = np.split(pieces[kept], np.cumsum(kept.sum(axis=1))[:-1])
    parts = [part for pair in zip(between, bodies, strict=True) for part in pair]
    return np.concatenate([*parts, np.array([last], dtype=dtype)])[1:]


def split_batch(batch: CellBatch, n_parts: int, *, together: int = 1) -> list[CellBatch]:
    """Cut a batch between cells, at the boundaries nearest to equal numbers of tokens.

    Every part is a batch of its own. A batch of fewer cells than ``n_parts`` gives one part per cell;
    ``together`` neighbouring cells stay in one part.
    """
    n_groups = batch.n_cells // together
    n_parts = min(n_parts, n_groups)
    if n_parts == 1:
        return [batch]
    bounds = batch.cu_seqlens[::together]
    wanted = np.arange(1, n_parts) * (int(bounds[-1]) / n_parts)
    cuts = np.abs(bounds[1:-1, None] - wanted).argmin(axis=0) + 1
    # Every part has a cell: long cells may draw two cuts to one place.
    cuts = np.maximum.accumulate(cuts - np.arange(n_parts - 1)) + np.arange(n_parts - 1)
    cuts = np.minimum(cuts, n_groups - n_parts + 1 + np.arange(n_parts - 1))
    edges = [0, *(together * cuts).tolist(), batch.n_cells]
    return [_cells(batch, first, last) for first, last in pairwise(edges)]


def _cells(batch: CellBatch, first: int, last: int) -> CellBatch:
    """Cells ``first`` up to ``last`` of a batch."""
    start, end = int(batch.cu_seqlens[first]), int(batch.cu_seqlens[last])
    genes = slice(*np.searchsorted(batch.gene_cell, (first, last)).tolist())
    phenotypes = slice(*np.searchsorted(batch.phenotype_cell, (first, last)).tolist())
    context = batch.context
    if context is not None:
        context = context[slice(*np.searchsorted(context, (start, end)).tolist())] - np.int32(start)

    def counted_from(array: Integers, some: slice, zero: int) -> Integers:
        return array[some] - array.dtype.type(zero)

    return replace(
        batch,
        token_id=batch.token_id[start:end],
        value=batch.value[start:end],
        continuous=batch.continuous[start:end],
        cu_seqlens=batch.cu_seqlens[first : last + 1] - batch.cu_seqlens[first],
        gene_position=counted_from(batch.gene_position, genes, start),
        gene_cell=counted_from(batch.gene_cell, genes, first),
        gene=batch.gene[genes],
        gene_target=batch.gene_target[genes],
        phenotype_position=counted_from(batch.phenotype_position, phenotypes, start),
        phenotype_cell=counted_from(batch.phenotype_cell, phenotypes, first),
        phenotype_slot=batch.phenotype_slot[phenotypes],
        phenotype_target=batch.phenotype_target[phenotypes],
        mask_rate=batch.mask_rate[first:last],
        thresholds=None if batch.thresholds is None else batch.thresholds[first:last],
        library_size=None if batch.library_size is None else batch.library_size[first:last],
        possible=None if batch.possible is None else batch.possible[genes],
        context=context,
    )
