"""Batches made ahead of the training step, by one thread.

The thread fetches a pool's cells in the order of the file, encodes its batches and puts them into a
short queue; numpy leaves the interpreter to the training step for most of that. One thread: a second
one gained nothing (measured on two cores). Never a forked process: h5py, torch and CUDA do not survive
a fork. `sampler` decides the order of cells, `batches` makes a batch of them.
"""

import queue
import threading
import time
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from core.encoding.batches import BatchEncoder
from core.encoding.cell_batch import CellBatch
from core.encoding.panel_cells import PanelCells, PanelReader
from core.encoding.sampler import BlockSampler, Cursor
from core.presets.schema import MaskingSettings

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

#: Batches kept ready: the training step uses them while the next pool is read.
READY_BATCHES = 8


class Loaded(NamedTuple, Generic[T]):
    """A finished batch."""

    #: (cells,), rows of the store.
    rows: NDArray[np.int64]
    batch: T
    #: The cursor after this batch.
    following: Cursor
    #: How long the training step waited for it.
    waited_seconds: float = 0.0


class CursorSource(Protocol[T_co]):
    """Makes the batch of any cursor: one virtual rank's (`BatchSource`), or those of several."""

    @property
    def sampler(self) -> BlockSampler:
        """The order of cells."""

    def batch(self, cursor: Cursor) -> tuple[NDArray[np.int64], T_co]:
        """Return the rows and the batch of a cursor."""


class BatchSource:
    """Encodes the batch of any cursor; neighbouring ones share the pools that were read.

    The source needs an encoder of its own. A cell is ``views`` times in its batch, each time masked
    anew; its copies are neighbours.
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
        pieces = {(cursor.epoch, index): places for index, places in self.sampler.pieces(cursor)}
        # Pools of earlier batches are dropped before more is read: one pool in memory, rarely two.
        self._pools = {key: pool for key, pool in self._pools.items() if key in pieces}
        for key in pieces:
            if key not in self._pools:
                self._pools[key] = self.reader.pool(self.sampler.pool(*key).rows)
        parts = []
        for key, places in pieces.items():
            pool, at = self._pools[key]
            parts.append((pool, np.repeat(at[places], self.views)))
        rows = np.repeat(self.sampler.batch_rows(cursor), self.views)
        codes = np.asarray(self.reader.store.phenotype_codes[rows])
        rng = self.sampler.generator(cursor)
        return rows, self.encoder.masked(self.reader.take(parts), codes, self.masking, rng)


class BatchLoader(Generic[T]):
    """Batches from a cursor on, without end, made ahead by a thread.

    Use as a context manager: leaving it, also by an exception or Ctrl-C, ends the thread.
    """

    def __init__(
        self, source: CursorSource[T], cursor: Cursor, *, ready: int = READY_BATCHES
    ) -> None:
        self._source = source
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
        """End the thread; batches that were made ahead are dropped."""
        self._closed.set()
        while self._thread.is_alive():
            try:  # the thread may wait for room in the queue
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.05)

    def next(self) -> Loaded[T]:
        """Wait for the next batch; an exception of the thread is raised here."""
        began = time.perf_counter()
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._closed.set()
            raise item
        return item._replace(waited_seconds=time.perf_counter() - began)

    def _run(self, cursor: Cursor) -> None:
        try:
            while not self._closed.is_set():
                rows, batch = self._source.batch(cursor)
                cursor = self._source.sampler.advance(cursor)
                self._put(Loaded(rows, batch, cursor))
        except BaseException as error:  # noqa: BLE001 (raised again in the training's thread)
            self._put(error)

    def _put(self, item: Loaded[T] | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return
