"""Where the cells of a packed batch begin, for queries and for keys, on the host and on the device.

Every token is a key; queries are all tokens too, or only those that something reads (last layer).
What an attention route needs for its own arrangement (padding) is made here once per batch, from
host integers, so that no route waits for the device to learn a shape.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["CellBounds", "LengthBucket"]

#: Share of a bucket's places that may be padding; below it cells join a bucket.
_MAX_PADDING = 0.125


@dataclass(frozen=True)
class LengthBucket:
    """Cells of nearly one length, padded to the longest of them.

    Attributes
    ----------
    n_cells
        Number of cells.
    queries, keys
        (cells, longest), place of each in the packed array; a padded one names the cell's first.
    key_mask
        (cells, 1, 1, longest), True where a key exists; None when every one does.
    query_exists
        (cells x longest,), places of the queries that exist, flat.
    query_tokens
        Places of those in the packed array.
    """

    n_cells: int
    queries: Tensor
    keys: Tensor
    key_mask: Tensor | None
    query_exists: Tensor
    query_tokens: Tensor


@dataclass(frozen=True)
class CellBounds:
    """Where the cells of a packed batch begin.

    Attributes
    ----------
    keys, queries
        (cells + 1,), host integers, first key and first query of each cell, and the end.
    cu_keys, cu_queries
        The same on the device, int32.
    """

    keys: NDArray[np.integer[Any]]
    queries: NDArray[np.integer[Any]]
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
        """Whether all cells have as many keys, and as many queries, as the longest."""
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
            n_cells=len(cells),
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
