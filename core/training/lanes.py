"""The cells of a step: several lanes of the epoch, dealt to the processes.

A run has a fixed number of lanes, each a stream of cells of its own (`core.encoding.sampler`). A
step takes the next batch of every lane; a process computes its lanes one after another and adds up
their gradients. So the run is the same on one process as on as many as there are lanes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.encoding.batch_parts import split_batch
from core.encoding.cell_batch import CellBatch
from core.encoding.loader import BatchSource
from core.encoding.sampler import BlockSampler, Cursor
from core.errors import ConfigurationError
from core.model.batch_tensors import HostBatch
from core.model.losses import LossCounts

__all__ = ["LaneBatch", "LaneSources", "StepBatch", "lanes_of_process"]


def lanes_of_process(lanes: int | None, *, index: int, count: int) -> tuple[list[int], int]:
    """Return the lanes that a process computes, and how many there are in all.

    Parameters
    ----------
    lanes
        ``train.lanes``; None: one per process.
    index, count
        Of the process, and of processes.

    Raises
    ------
    ConfigurationError
        The lanes cannot be dealt equally.
    """
    total = count if lanes is None else lanes
    if total % count:
        message = (
            f"train.lanes = {total} cannot be dealt equally to {count} processes; start a number "
            f"of processes that divides it, or begin a run of {count} lanes"
        )
        raise ConfigurationError(message)
    return list(range(index, total, count)), total


@dataclass(frozen=True)
class LaneBatch:
    """One lane's share of a step: its number, and its cells in one part or more."""

    lane: int
    arrays: CellBatch
    parts: list[HostBatch]


@dataclass(frozen=True)
class StepBatch:
    """What one process computes in a step.

    Attributes
    ----------
    lanes
        The shares of its lanes.
    counts
        Answers in them, of this process alone.
    n_cells, n_tokens
        Of this process.
    squared_lengths
        Sum over its cells of the square of their tokens: what attention costs.
    """

    lanes: list[LaneBatch]
    counts: LossCounts
    n_cells: int
    n_tokens: int
    squared_lengths: float


class LaneSources:
    """The batches of one process' lanes, all at one cursor.

    Parameters
    ----------
    sources
        Lane -> what encodes it.
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
        #: Parts that each lane's batch is cut into, from the next one made on.
        self.n_parts = 1

    @property
    def sampler(self) -> BlockSampler:
        """Of one of the lanes: steps and cursors are the same for all."""
        return next(iter(self._sources.values())).sampler

    def batch(self, cursor: Cursor) -> tuple[NDArray[np.int64], StepBatch]:
        """Return the rows and the batches of a cursor."""
        rows, lanes = [], []
        for lane, source in self._sources.items():
            own, arrays = source.batch(cursor)
            rows.append(own)
            lanes.append(LaneBatch(lane, arrays, self.cut(arrays, self.n_parts)))
        counts = [self._count(lane.arrays) for lane in lanes]
        lengths = [np.diff(lane.arrays.cu_seqlens).astype(np.float64) for lane in lanes]
        return np.concatenate(rows), StepBatch(
            lanes,
            LossCounts(
                sum(c.genes for c in counts),
                sum(c.phenotypes for c in counts),
                sum(c.cells for c in counts),
            ),
            n_cells=sum(lane.arrays.n_cells for lane in lanes),
            n_tokens=sum(len(lane.arrays.identity) for lane in lanes),
            squared_lengths=float(sum((own**2).sum() for own in lengths)),
        )

    def cut(self, arrays: CellBatch, n_parts: int) -> list[HostBatch]:
        """Cut a lane's batch into parts and make them ready for the device."""
        views = next(iter(self._sources.values())).views
        parts = split_batch(arrays, n_parts, together=views)
        return [HostBatch.of(part, pin=self._pin) for part in parts]
