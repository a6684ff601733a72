"""The cells of a step: several virtual ranks of the epoch, dealt to the processes.

A run has a fixed number of virtual ranks, each a stream of cells of its own (`core.encoding.sampler`). A
step takes the next batch of every virtual rank; a process computes its virtual ranks one after another and adds up
their gradients. So the run is the same on one process as on as many as there are virtual ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.encoding.cell_batch import CellBatch, split_batch
from core.encoding.loader import BatchSource
from core.encoding.sampler import BlockSampler, Cursor
from core.errors import ConfigurationError
from core.model.batch_tensors import BatchTensors
from core.model.losses import LossCounts

__all__ = ["StepBatch", "VirtualRankBatch", "VirtualRankSources", "virtual_ranks_of_process"]


def virtual_ranks_of_process(
    virtual_ranks: int | None, *, index: int, count: int
) -> tuple[list[int], int]:
    """Return the virtual ranks that a process computes, and how many there are in all.

    Parameters
    ----------
    virtual_ranks
        ``train.virtual_ranks``; None: one per process.
    index, count
        Of the process, and of processes.

    Raises
    ------
    ConfigurationError
        The virtual ranks cannot be dealt equally.
    """
    total = count if virtual_ranks is None else virtual_ranks
    if total % count:
        message = (
            f"train.virtual_ranks = {total} cannot be dealt equally to {count} processes; start a number "
            f"of processes that divides it, or begin a run of {count} virtual ranks"
        )
        raise ConfigurationError(message)
    return list(range(index, total, count)), total


@dataclass(frozen=True)
class VirtualRankBatch:
    """One virtual rank's share of a step: its number, and its cells in one part or more."""

    virtual_rank: int
    arrays: CellBatch
    parts: list[BatchTensors]


@dataclass(frozen=True)
class StepBatch:
    """What one process computes in a step.

    Attributes
    ----------
    virtual_ranks
        The shares of its virtual ranks.
    counts
        Answers in them, of this process alone.
    n_cells, n_tokens
        Of this process.
    squared_lengths
        Sum over its cells of the square of their tokens: what attention costs.
    """

    virtual_ranks: list[VirtualRankBatch]
    counts: LossCounts
    n_cells: int
    n_tokens: int
    squared_lengths: float


class VirtualRankSources:
    """The batches of one process' virtual ranks, all at one cursor.

    Parameters
    ----------
    sources
        Virtual rank -> what encodes it.
    count
        Counts the answers of a batch.
    pin
        Put tensors into page-locked memory, for a GPU to fetch.
    """

    def __init__(
        self,
        sources: dict[int, BatchSource],
        *,
        count: Callable[[CellBatch], LossCounts],
        pin: bool = False,
    ) -> None:
        self._sources, self._count, self._pin = sources, count, pin
        #: Parts that each virtual rank's batch is cut into, from the next one made on.
        self.n_parts = 1

    @property
    def sampler(self) -> BlockSampler:
        """Of one of the virtual ranks: steps and cursors are the same for all."""
        return next(iter(self._sources.values())).sampler

    def batch(self, cursor: Cursor) -> tuple[NDArray[np.int64], StepBatch]:
        """Return the rows and the batches of a cursor."""
        rows, virtual_ranks = [], []
        for virtual_rank, source in self._sources.items():
            own, arrays = source.batch(cursor)
            rows.append(own)
            virtual_ranks.append(
                VirtualRankBatch(virtual_rank, arrays, self.cut(arrays, self.n_parts))
            )
        counts = [self._count(virtual_rank.arrays) for virtual_rank in virtual_ranks]
        lengths = [
            np.diff(virtual_rank.arrays.cu_seqlens).astype(np.float64)
            for virtual_rank in virtual_ranks
        ]
        return np.concatenate(rows), StepBatch(
            virtual_ranks,
            LossCounts(
                sum(c.genes for c in counts),
                sum(c.phenotypes for c in counts),
                sum(c.cells for c in counts),
            ),
            n_cells=sum(virtual_rank.arrays.n_cells for virtual_rank in virtual_ranks),
            n_tokens=sum(len(virtual_rank.arrays.token_id) for virtual_rank in virtual_ranks),
            squared_lengths=float(sum((own**2).sum() for own in lengths)),
        )

    def cut(self, arrays: CellBatch, n_parts: int) -> list[BatchTensors]:
        """Cut a virtual rank's batch into parts and make them ready for the device."""
        views = next(iter(self._sources.values())).views
        parts = split_batch(arrays, n_parts, together=views)
        return [BatchTensors.on_host(part, pin=self._pin) for part in parts]
