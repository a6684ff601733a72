"""Batches made ahead of the training step, by one thread.

The thread fetches a pool's cells in the order of the file, encodes its batches and puts them into a
short queue; numpy leaves the interpreter to the training step for most of that. One thread: a second
one gained nothing (measured on two cores). Never a forked process: h5py, torch and CUDA do not survive
a fork. The order of cells is `sampler`'s, what a batch holds is `batches`'.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from core.encoding.batches import BatchEncoder
from core.encoding.cell_batch import CellBatch
from core.encoding.panel_cells import PanelCells, PanelReader
from core.encoding.sampler import BlockSampler, Cursor
from core.presets.schema import MaskingSettings

__all__ = ["BatchLoader", "BatchSource", "CursorSource", "Loaded"]

B = TypeVar("B")
T = TypeVar("T")
B_co = TypeVar("B_co", covariant=True)

#: Batches kept ready: what the training step goes on with while the next pool is read.
READY_BATCHES = 8


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A batch and where it came from.

    Attributes
    ----------
    rows
        (cells,), rows of the store.
    batch
        What the loader was asked to make.
    following
        The cursor to go on from once this batch has been learnt from.
    waited_seconds
        How long the training step waited for it.
    """

    rows: NDArray[np.int64]
    batch: T
    following: Cursor
    waited_seconds: float = 0.0


class CursorSource(Protocol[B_co]):
    """Makes the batch of any cursor: one virtual rank's (`BatchSource`), or those of several."""

    @property
    def sampler(self) -> BlockSampler:
        """The order of cells."""

    def batch(self, cursor: Cursor) -> tuple[NDArray[np.int64], B_co]:
        """Return the rows and the batch of a cursor."""


class BatchSource:
    """Encodes the batch of any cursor; neighbouring ones share the pools that were read.

    Parameters
    ----------
    reader
        Reads the store over the model's panel.
    encoder
        Of the model, used by nobody else at the same time.
    sampler
        The order of cells.
    masking
        What is hidden.
    views
        How often a cell is in its batch, each time masked anew; its copies are neighbours.
    """

    def __init__(
        self,
        reader: PanelReader,
        encoder: BatchEncoder,
        sampler: BlockSampler,
        masking: MaskingSettings,
        *,
        views: int = 1,
    ) -> None:
        self.views = views
        self.reader, self.encoder = reader, encoder
        self.sampler, self.masking = sampler, masking
        self._pools: dict[tuple[int, int], tuple[PanelCells, NDArray[np.int64]]] = {}

    def batch(self, cursor: Cursor) -> tuple[NDArray[np.int64], CellBatch]:
        """Return the rows and the batch of a cursor."""
        pieces = self.sampler.pieces(cursor)
        keys = [(cursor.epoch, number) for number, _ in pieces]
        # What earlier batches had is dropped before more is read: one pool in memory, rarely two.
        self._pools = {key: cells for key, cells in self._pools.items() if key in keys}
        for key in keys:
            if key not in self._pools:
                self._pools[key] = self.reader.pool(self.sampler.pool(*key).rows)
        pools = [self._pools[key] for key in keys]
        cells = self.reader.take(
            [
                (pool, np.repeat(at[places], self.views))
                for (pool, at), (_, places) in zip(pools, pieces, strict=True)
            ]
        )
        rows = np.repeat(self.sampler.batch_rows(cursor), self.views)
        codes = np.asarray(self.reader.store.phenotype_codes[rows])
        rng = self.sampler.generator(cursor)
        return rows, self.encoder.masked(cells, codes, self.masking, rng)


class BatchLoader(Generic[T]):
    """Batches from a cursor on, without end, made ahead by a thread.

    Parameters
    ----------
    source
        Makes them.
    cursor
        The first one.
    finish
        Called by the thread with each batch: what the training step gets, such as tensors in
        page-locked memory.
    ready
        Batches made ahead.

    Notes
    -----
    Use as a context manager: leaving it, also by an exception or Ctrl-C, ends the thread.
    """

    def __init__(
        self,
        source: CursorSource[B],
        cursor: Cursor,
        finish: Callable[[B], T],
        *,
        ready: int = READY_BATCHES,
    ) -> None:
        def make(cursor: Cursor) -> Loaded[T]:
            rows, arrays = source.batch(cursor)
            return Loaded(rows, finish(arrays), source.sampler.advance(cursor))

        self._make = make
        self._queue: queue.Queue[Loaded[T] | BaseException] = queue.Queue(maxsize=ready)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(cursor,), name="tfx-loader", daemon=True
        )

    def __enter__(self) -> "BatchLoader[T]":
        """Begin to load."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread."""
        self.close()

    def close(self) -> None:
        """End the thread; batches that were made ahead are dropped."""
        self._closed.set()
        while self._thread.is_alive():
            try:  # a thread that waits for a free place looks around again
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.05)

    def next(self) -> Loaded[T]:
        """Wait for the next batch.

        Raises
        ------
        BaseException
            What ended the thread, as it was raised there.
        """
        began = time.perf_counter()
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._closed.set()
            raise item
        return Loaded(item.rows, item.batch, item.following, time.perf_counter() - began)

    def _run(self, cursor: Cursor) -> None:
        try:
            while not self._closed.is_set():
                loaded = self._make(cursor)
                cursor = loaded.following
                self._put(loaded)
        except BaseException as error:  # noqa: BLE001 (raised again in the training's thread)
            self._put(error)

    def _put(self, item: Loaded[T] | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return
