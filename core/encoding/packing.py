"""From headers and genes to one flat array of tokens per batch, with the positions of what is asked.

    [CLS] [SEX] ... [START] genes of cell 0 [END] [CLS] [SEX] ... [START] genes of cell 1 [END] ...

Which genes a cell has, and what is hidden, is decided by `batches`. A classifier is asked one thing,
at [CLS]: whatever a caller wants shown, its input never holds what it is asked, nor a phenotype that
it was not trained with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.encoding.cell_batch import CellBatch, PendingBins
from core.encoding.masking import Show
from core.encoding.tokens import CLS, END, MASK, NONE, START, TokenSpace

__all__ = ["GeneTokens", "pack"]


@dataclass(frozen=True)
class GeneTokens:
    """The genes of B cells: N tokens, of which M are masked.

    Attributes
    ----------
    lengths
        (B,), tokens of each cell.
    identity, value, number
        B arrays each, one cell's tokens; ``number`` is None but for continuous models.
    masked_at
        (M,), place of the masked tokens among all N, ascending.
    n_masked
        (B,), how many of them each cell has.
    gene, target
        (M,), panel index and answer.
    mask_rate
        (B,), masked share of each cell's genes.
    pending
        As in `CellBatch`.
    """

    lengths: NDArray[np.int64]
    identity: Sequence[NDArray[Any]]
    value: Sequence[NDArray[Any]]
    number: Sequence[NDArray[np.float32]] | None
    masked_at: NDArray[np.int64]
    n_masked: NDArray[np.int64]
    gene: NDArray[np.integer[Any]]
    target: NDArray[Any]
    mask_rate: NDArray[np.float32]
    pending: PendingBins | None = None


def pack(
    tokens: TokenSpace, genes: GeneTokens, codes: NDArray[np.int32], states: NDArray[np.int8]
) -> CellBatch:
    """Put headers and ends around the genes of each cell.

    Parameters
    ----------
    tokens
        Identities and values of the model.
    genes
        What stands between START and END.
    codes, states
        (cells, phenotypes), labels and how they are shown.
    """
    n_cells, n_slots = codes.shape
    if tokens.classified is not None:
        states = _states_of_classifier(tokens, states)
    width = n_slots + 2
    keep = np.ones((n_cells, width), dtype=bool)
    keep[:, 1:-1] = states != Show.DROPPED
    header = keep.sum(axis=1)
    cu_seqlens = np.zeros(n_cells + 1, dtype=np.int32)
    np.cumsum(header + genes.lengths + 1, out=cu_seqlens[1:])

    identity_of = np.array([CLS, *range(tokens.first_slot, tokens.first_gene), START])
    value_of = np.full((n_cells, width), NONE)
    shown = tokens.not_specified + np.where(states == Show.VALUE, codes + 1, 0)
    value_of[:, 1:-1] = np.where(states == Show.MASKED, MASK, shown)
    dense_identity = np.broadcast_to(identity_of, keep.shape)
    identity = _join(dense_identity, keep, genes.identity, tokens.token_id_type, END)
    value_type = tokens.value_type if genes.pending is None else np.uint16
    value = _join(value_of, keep, genes.value, value_type, NONE)
    if genes.number is None:
        number = np.broadcast_to(np.float32(0), value.shape)
    else:
        number = _join(np.zeros(keep.shape), keep, genes.number, np.float32, 0)

    before_genes = np.cumsum(header) + np.arange(n_cells)  # tokens that are no genes, until here
    asked_cell, asked_slot = np.nonzero((states == Show.MASKED) & (codes >= 0))
    place = np.cumsum(keep, axis=1) - 1
    asked_place = place[asked_cell, asked_slot + 1]
    gene_position = (genes.masked_at + np.repeat(before_genes, genes.n_masked)).astype(np.int32)
    gene_cell = np.repeat(np.arange(n_cells, dtype=np.int32), genes.n_masked)
    asked_genes = slice(None)
    if tokens.classified is not None:
        asked_genes = slice(0)
        asked_place = np.zeros_like(asked_place)  # of [CLS]
    return CellBatch(
        token_id=identity,
        value=value,
        continuous=number,
        cu_seqlens=cu_seqlens,
        gene_position=gene_position[asked_genes],
        gene_cell=gene_cell[asked_genes],
        gene=genes.gene[asked_genes],
        gene_target=genes.target[asked_genes],
        phenotype_position=cu_seqlens[asked_cell] + asked_place,
        phenotype_cell=asked_cell,
        phenotype_slot=asked_slot,
        phenotype_target=codes[asked_cell, asked_slot],
        mask_rate=genes.mask_rate,
        pending=genes.pending,
    )


def _states_of_classifier(tokens: TokenSpace, states: NDArray[np.int8]) -> NDArray[np.int8]:
    """Mask the phenotype that is asked; write [NO_*] for the others but those that are given."""
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
    # The end of a cell stands before the next one's header: one piece fewer per cell.
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
