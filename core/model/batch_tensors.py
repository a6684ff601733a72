"""A batch as tensors: the arrays of `core.encoding.cell_batch.CellBatch`, and where its cells begin.

On the host `BatchTensors` keeps the small integers of the arrays, in page-locked memory where a GPU will
fetch them; `BatchTensors.to` brings it to a device in the form that the model takes. Bins that the encoder
left to the device are made on the way.
"""

import itertools
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.encoding.cell_batch import CellBatch
from core.encoding.tokens import FIRST_BIN, MASK

#: Fraction of a bucket's places that may be padding; below it cells join a bucket.
_MAX_PADDING = 0.125


@dataclass(frozen=True)
class LengthBucket:
    """Cells of nearly one length, padded to the longest of them."""

    #: (cells, longest), place of each in the packed array; a padded one names the cell's first.
    queries: Tensor
    keys: Tensor
    #: (cells, 1, 1, longest), True where a key exists; None when every one does.
    key_mask: Tensor | None
    #: (existing queries,), their flat places in `queries`, and in the packed array.
    query_exists: Tensor
    query_tokens: Tensor


@dataclass(frozen=True)
class CellBounds:
    """Where the cells of a packed batch begin, for queries and for keys.

    Every token is a key; queries are all tokens too, or only the output positions (last layer). What an
    attention route needs for its own arrangement (padding) is made here once per batch, from host
    integers, so that no route waits for the device to learn a shape.
    """

    #: (cells + 1,), host integers, first key and first query of each cell, and the end.
    keys: NDArray[np.integer[Any]]
    queries: NDArray[np.integer[Any]]
    #: The same on the device, int32.
    cu_keys: Tensor
    cu_queries: Tensor

    @classmethod
    def of(cls, keys: NDArray[np.integer[Any]], cu_keys: Tensor) -> "CellBounds":
        """Describe a batch in which every token is a query."""
        return cls(keys, keys, cu_keys, cu_keys)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.keys) - 1

    @cached_property
    def max_keys(self) -> int:
        """Keys of the longest cell."""
        return int(np.diff(self.keys).max(initial=0))

    @cached_property
    def max_queries(self) -> int:
        """Most queries of a cell."""
        return int(np.diff(self.queries).max(initial=0))

    @cached_property
    def is_rectangular(self) -> bool:
        """Whether all cells have the same number of keys, and the same number of queries."""
        return (
            self.n_cells * self.max_keys == self.keys[-1]
            and self.n_cells * self.max_queries == self.queries[-1]
        )

    @cached_property
    def equal_runs(self) -> list[tuple[int, int]]:
        """Runs of neighbouring cells of equal shape: (first cell, cell after the last)."""
        if self.is_rectangular:
            return [(0, self.n_cells)]
        shapes = np.stack([np.diff(self.keys), np.diff(self.queries)])
        changes = np.flatnonzero((np.diff(shapes, axis=1) != 0).any(axis=0)) + 1
        ends = [0, *changes.tolist(), self.n_cells]
        return list(itertools.pairwise(ends))

    @cached_property
    def buckets(self) -> list[LengthBucket]:
        """The cells in groups of nearly one length; those without a query are left out."""
        lengths, n_queries = np.diff(self.keys), np.diff(self.queries)
        order = np.argsort(lengths, kind="stable")
        order = order[n_queries[order] > 0]
        found = []
        start = 0
        while start < len(order):
            ordered = lengths[order[start:]]
            filled = np.cumsum(ordered) / (ordered * np.arange(1, len(ordered) + 1))
            within = np.flatnonzero(filled >= 1 - _MAX_PADDING)
            end = start + int(within[-1]) + 1
            found.append(self._bucket(np.sort(order[start:end])))
            start = end
        return found

    def _bucket(self, cells: NDArray[np.int64]) -> LengthBucket:
        keys, key_exists = _places(self.keys, cells)
        queries, query_exists = _places(self.queries, cells)
        device = self.cu_keys.device

        def move(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        return LengthBucket(
            queries=move(queries),
            keys=move(keys),
            key_mask=None if key_exists.all() else move(key_exists[:, None, None, :]),
            query_exists=move(np.flatnonzero(query_exists)),
            query_tokens=move(queries[query_exists]),
        )


def _places(
    bounds: NDArray[np.integer[Any]], cells: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(cells, longest) places in the packed array, and which of them exist."""
    starts = bounds[cells].astype(np.int64)
    lengths = bounds[cells + 1] - starts
    offsets = np.arange(int(lengths.max(initial=0)))
    exists = offsets < lengths[:, None]
    return starts[:, None] + np.where(exists, offsets, 0), exists


@dataclass(frozen=True)
class OutputPositions:
    """Positions whose last hidden states are wanted."""

    #: (R,), flat, ascending.
    position: Tensor
    #: Keys are all tokens, queries these positions.
    bounds: CellBounds


@dataclass(frozen=True)
class BatchTensors:
    """A batch on the host, or on the device as the model's input; shapes as in `CellBatch`.

    What a step must know of shapes stays on the host, so that it never waits for the device.
    """

    token_id: Tensor
    value: Tensor
    #: On the host a single zero instead of T zeros.
    continuous: Tensor
    cu_seqlens: Tensor
    gene_position: Tensor
    gene_cell: Tensor
    gene: Tensor
    gene_target: Tensor
    phenotype_position: Tensor
    phenotype_cell: Tensor
    phenotype_slot: Tensor
    phenotype_target: Tensor
    mask_rate: Tensor
    #: None once bins are made: always on the device.
    thresholds: Tensor | None
    first_gene: int
    library_size: Tensor | None
    possible: Tensor | None
    context: Tensor | None
    #: (R,), flat positions that a head reads: masked genes and phenotypes, ascending.
    output_position: Tensor
    #: (M,), (K,), place of the masked genes and phenotypes among those.
    output_of_gene: Tensor
    output_of_phenotype: Tensor
    #: (cells + 1,), first output position of each cell, int32.
    cu_outputs: Tensor
    #: (cells + 1,), host integers: first token, and first output position, of each cell.
    token_bounds: NDArray[np.int32]
    output_bounds: NDArray[np.int32]
    #: The same of the tokens in ``context``.
    context_bounds: NDArray[np.int32] | None = None

    @classmethod
    def from_arrays(cls, batch: CellBatch, device: torch.device | str = "cpu") -> "BatchTensors":
        """Copy a batch to ``device``."""
        return cls.on_host(batch, pin=torch.device(device).type == "cuda").to(device)

    @classmethod
    def on_host(cls, batch: CellBatch, *, pin: bool = False) -> "BatchTensors":
        """Wrap arrays; ``pin``: in page-locked memory, so that they travel while the host computes."""
        genes, phenotypes = batch.gene_position, batch.phenotype_position
        # Both kinds are ascending, and no position is in both.
        joined = np.concatenate([genes, phenotypes]).astype(np.int32)
        order = np.argsort(joined, kind="stable")
        place = np.empty(len(joined), dtype=np.int32)
        place[order] = np.arange(len(joined), dtype=np.int32)
        position = joined[order]
        output_bounds = np.searchsorted(position, batch.cu_seqlens).astype(np.int32)
        arrays: dict[str, Any] = {one.name: getattr(batch, one.name) for one in fields(batch)}
        arrays |= {
            "output_position": position,
            "output_of_gene": place[: len(genes)],
            "output_of_phenotype": place[len(genes) :],
            "cu_outputs": output_bounds,
        }
        wrapped: dict[str, Any] = {
            name: _wrap(array, pin=pin) if isinstance(array, np.ndarray) else array
            for name, array in arrays.items()
        }
        context_bounds = None
        if batch.context is not None:
            context_bounds = np.searchsorted(batch.context, batch.cu_seqlens).astype(np.int32)
        return cls(
            **wrapped,
            token_bounds=batch.cu_seqlens,
            output_bounds=output_bounds,
            context_bounds=context_bounds,
        )

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.token_bounds) - 1

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.token_id)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))

    @property
    def bounds(self) -> CellBounds:
        """Where cells begin; every token is a query."""
        return CellBounds.of(self.token_bounds, self.cu_seqlens)

    @property
    def outputs(self) -> OutputPositions:
        """The positions that a head reads."""
        bounds = CellBounds(self.token_bounds, self.output_bounds, self.cu_seqlens, self.cu_outputs)
        return OutputPositions(self.output_position, bounds)

    def in_context(self) -> "BatchTensors":
        """Return the batch as an encoder with attention reads it: the tokens of ``context`` alone."""
        context, bounds = self.context, self.context_bounds
        if context is None or bounds is None:
            return self

        def place(positions: Tensor) -> Tensor:
            return torch.searchsorted(context, positions)

        return replace(
            self,
            token_id=self.token_id[context],
            value=self.value[context],
            continuous=self.continuous[context],
            cu_seqlens=place(self.cu_seqlens.long()).int(),
            gene_position=place(self.gene_position),
            phenotype_position=place(self.phenotype_position),
            output_position=place(self.output_position),
            token_bounds=bounds,
            context=None,
            context_bounds=None,
        )

    @cached_property
    def cell_of_token(self) -> Tensor:
        """(T,), the cell of every token."""
        return torch.repeat_interleave(self.cu_seqlens.diff().long(), output_size=self.n_tokens)

    def to(self, device: torch.device | str) -> "BatchTensors":
        """Copy to ``device``, integers as the model takes them: int64, ``cu_*`` int32; bins made."""
        moved: dict[str, Any] = {
            field.name: _as_input(field.name, value, device)
            if isinstance(value := getattr(self, field.name), Tensor)
            else value
            for field in fields(self)
        }
        if len(self.continuous) != self.n_tokens:
            moved["continuous"] = moved["continuous"].new_zeros(self.n_tokens)
        batch = BatchTensors(**moved)
        return batch if batch.thresholds is None else batch._with_bins(batch.thresholds)

    def _with_bins(self, thresholds: Tensor) -> "BatchTensors":
        """Turn counts into bins, take those of masked genes as targets, and mask them."""
        bins = torch.zeros_like(self.value)
        for reaching in thresholds.unbind(1):
            bins += self.value >= reaching[self.cell_of_token]
        is_gene = self.token_id >= self.first_gene
        value = torch.where(is_gene, bins + FIRST_BIN, self.value)
        value[self.gene_position] = MASK
        target = bins[self.gene_position]
        return replace(self, value=value, gene_target=target, thresholds=None)


def _wrap(array: NDArray[Any], *, pin: bool) -> Tensor:
    if len(array) and array.strides == (0,):
        array = np.zeros(1, dtype=array.dtype)
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if pin else tensor


def _as_input(name: str, tensor: Tensor, device: torch.device | str) -> Tensor:
    tensor = tensor.to(device, non_blocking=True)
    if name in ("cu_seqlens", "cu_outputs", "thresholds", "possible") or tensor.is_floating_point():
        return tensor
    return tensor.long()
