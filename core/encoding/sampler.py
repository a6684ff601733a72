"""The order of training cells: a function of (seed, epoch), so that resuming needs only a cursor.

A store's cells are in random order already, so a block of neighbours is a random sample, and reading it
is one long read. An epoch is a permutation of blocks, dealt in turn to the virtual ranks; each virtual
rank joins its blocks to pools, shuffles each pool, and cuts its stream of cells into batches:

    rows -> blocks of 64 --permute(seed, epoch), deal--> pools of 8,192 cells
                                --shuffle(seed, epoch, virtual rank, pool)--> stream --cut--> batches

A batch is a number of cells, or the cells that begin within a number of tokens of the stream. The
leftover of a stream is not used in that epoch. Any batch of any epoch can be made without those before
it. `core.training.virtual_ranks` decides which process computes a virtual rank: the cells of a step are
the same on one process as on many.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigurationError
from core.random_streams import Stream, generator
from core.renamed import current_cursor

#: Neighbouring cells that stay together on disk: about 0.7 MB of counts at 2,900 genes per cell.
BLOCK_CELLS = 64
#: Cells shuffled together: about 100 MB of counts.
POOL_CELLS = 8_192


@dataclass(frozen=True)
class Cursor:
    """The next batch of a run in the order of cells."""

    seed: int
    #: The next batch, both counted from 0.
    epoch: int
    batch: int
    #: Streams that the epoch is dealt to.
    virtual_ranks: int
    #: Cells or tokens that a batch of the epoch is cut by.
    quota: int

    def to_json(self) -> dict[str, int]:
        """Return plain integers, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Cursor":
        """Read the record that `to_json` made."""
        present = current_cursor(record)
        return cls(**{name: int(present[name]) for name in cls.__dataclass_fields__})


class Pool(NamedTuple):
    """Cells that are read together."""

    #: (cells,), rows of the store, ascending: the order in which they are read.
    rows: NDArray[np.int64]
    #: (cells,), the shuffled order in which they enter batches, as places in ``rows``.
    order: NDArray[np.int64]
    #: (cells + 1,), start of each cell of ``order`` in the virtual rank's stream, and the end.
    starts: NDArray[np.int64]


class _Order(NamedTuple):
    """An epoch: the blocks of one virtual rank, the batches of any, and the start of each pool."""

    blocks: NDArray[np.int64]
    steps: int
    pool_starts: NDArray[np.int64]


class BlockSampler:
    """The cells of each batch of one virtual rank.

    ``rows`` (cells,) are training rows of the store, ascending. A batch has ``batch_size`` cells (fewer
    cells than that form one batch of all), or at most ``tokens_per_batch`` tokens for ``lengths`` (cells,)
    of the cells. ``rows_of_epoch`` is epoch -> rows, the same number as in ``rows``, ascending, repeats
    allowed (not with ``lengths``).
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        *,
        seed: int,
        batch_size: int = 32,
        lengths: NDArray[np.int64] | None = None,
        tokens_per_batch: int | None = None,
        virtual_rank: int = 0,
        virtual_ranks: int = 1,
        rows_of_epoch: Callable[[int], NDArray[np.int64]] | None = None,
        block_cells: int = BLOCK_CELLS,
        pool_cells: int = POOL_CELLS,
    ) -> None:
        assert (lengths is None) == (tokens_per_batch is None), "both or none"
        assert lengths is None or rows_of_epoch is None, "lengths are those of rows"
        self.rows, self.lengths, self.seed = rows, lengths, seed
        self.virtual_rank, self.virtual_ranks = virtual_rank, virtual_ranks
        n_cells = len(rows)
        # Virtual ranks differ by a block at most, and the surplus is not used: under 1 % of the cells.
        self.block_cells = min(block_cells, max(n_cells // (128 * virtual_ranks), 1))
        self.pool_blocks = max(pool_cells // self.block_cells, 1)
        self.block_starts = np.arange(0, n_cells, self.block_cells)
        if len(self.block_starts) < virtual_ranks:
            raise ConfigurationError(
                f"{n_cells} training cells cannot be dealt to {virtual_ranks} virtual ranks; lower train.virtual_ranks, or start fewer processes"
            )
        self.block_weights = (
            np.diff(self.block_starts, append=n_cells)
            if lengths is None
            else np.add.reduceat(lengths, self.block_starts)
        )
        smallest = np.sort(self.block_weights)[: len(self.block_starts) // virtual_ranks].sum()
        self.quota = min(self._full_quota(batch_size, tokens_per_batch), int(smallest))
        self._rows_of = lru_cache(maxsize=2)(rows_of_epoch or (lambda _: rows))
        self._order_of = lru_cache(maxsize=2)(self._order)
        #: (epoch, index) -> one of this virtual rank's pools.
        self.pool = lru_cache(maxsize=2)(self._pool)

    def _full_quota(self, batch_size: int, tokens_per_batch: int | None) -> int:
        if self.lengths is None or tokens_per_batch is None:
            return batch_size
        longest, ranks = int(self.lengths.max()), self.virtual_ranks
        if tokens_per_batch < 2 * longest:
            each = f" in each of {ranks} virtual ranks" if ranks > 1 else ""
            raise ConfigurationError(
                f"train.tokens_per_batch = {tokens_per_batch * ranks} has no room for two cells of "
                f"{longest} tokens{each}; give at least {2 * longest * ranks} or lower "
                f"encoding.max_length"
            )
        # The last cell that begins within the quota ends at most its length, less a token, behind it.
        return tokens_per_batch - longest + 1

    @property
    def start(self) -> Cursor:
        """The first batch of the first epoch."""
        return Cursor(self.seed, 0, 0, self.virtual_ranks, self.quota)

    def steps(self, epoch: int) -> int:
        """Batches of an epoch, the same on all virtual ranks."""
        if self.virtual_ranks == 1:
            return int(self.block_weights.sum()) // self.quota
        return self._order_of(epoch).steps

    def advance(self, cursor: Cursor) -> Cursor:
        """Return the cursor after the batch of ``cursor``."""
        if cursor.batch + 1 < self.steps(cursor.epoch):
            return replace(cursor, batch=cursor.batch + 1)
        return replace(cursor, epoch=cursor.epoch + 1, batch=0)

    def resume(self, cursor: Cursor) -> Cursor:
        """Check that a saved cursor means the same cells here, and return it; else ConfigurationError."""
        if cursor.seed != self.seed:
            raise ConfigurationError(
                f"train.seed = {self.seed}, but the checkpoint's order of cells has seed "
                f"{cursor.seed}; resume with the run's own config.toml"
            )
        if cursor.batch and cursor.virtual_ranks != self.virtual_ranks:
            raise ConfigurationError(
                f"the checkpoint is within an epoch dealt to {cursor.virtual_ranks} virtual ranks and "
                f"cannot continue with {self.virtual_ranks}; set train.virtual_ranks = "
                f"{cursor.virtual_ranks}"
            )
        if cursor.batch and cursor.quota != self.quota:
            raise ConfigurationError(
                f"the checkpoint is within an epoch cut by {cursor.quota} and cannot continue with "
                f"{self.quota}; resume with its train.batch_size or train.tokens_per_batch, and its "
                f"cells"
            )
        return replace(cursor, virtual_ranks=self.virtual_ranks, quota=self.quota)

    def pieces(self, cursor: Cursor) -> list[tuple[int, NDArray[np.int64]]]:
        """Return the cells of a batch in their order: (index of the pool, places in its rows)."""
        begin, end = cursor.batch * self.quota, (cursor.batch + 1) * self.quota
        pool_starts = self._order_of(cursor.epoch).pool_starts
        index = int(np.searchsorted(pool_starts, begin, side="right")) - 1
        found = []
        while index < len(pool_starts) - 1 and pool_starts[index] < end:
            pool = self.pool(cursor.epoch, index)
            first, last = np.searchsorted(pool.starts[:-1], (begin, end)).tolist()
            if first < last:
                found.append((index, pool.order[first:last]))
            index += 1
        return found

    def batch_rows(self, cursor: Cursor) -> NDArray[np.int64]:
        """Return the rows of a batch, in the order they enter it."""
        return np.concatenate(
            [self.pool(cursor.epoch, index).rows[at] for index, at in self.pieces(cursor)]
        )

    def generator(self, cursor: Cursor) -> np.random.Generator:
        """Return the generator of a batch: masks, genes of long cells."""
        return generator(self.seed, cursor.epoch, cursor.batch, self.virtual_rank, Stream.BATCH)

    def _order(self, epoch: int) -> _Order:
        blocks = generator(self.seed, epoch, Stream.BLOCK_ORDER).permutation(len(self.block_starts))
        dealt = [blocks[rank :: self.virtual_ranks] for rank in range(self.virtual_ranks)]
        steps = min(int(self.block_weights[own].sum()) for own in dealt) // self.quota
        own = dealt[self.virtual_rank]
        firsts = np.arange(0, len(own), self.pool_blocks)
        weights = np.add.reduceat(self.block_weights[own], firsts)
        return _Order(own, steps, np.concatenate(([0], np.cumsum(weights))))

    def _pool(self, epoch: int, index: int) -> Pool:
        blocks, _, pool_starts = self._order_of(epoch)
        own = np.sort(blocks[index * self.pool_blocks : (index + 1) * self.pool_blocks])
        places = (self.block_starts[own, None] + np.arange(self.block_cells)).ravel()
        places = places[places < len(self.rows)]
        rng = generator(self.seed, epoch, self.virtual_rank, index, Stream.CELL_ORDER)
        order = rng.permutation(len(places))
        weights = np.ones(len(places)) if self.lengths is None else self.lengths[places[order]]
        starts = pool_starts[index] + np.concatenate(([0], np.cumsum(weights))).astype(np.int64)
        return Pool(self._rows_of(epoch)[places], order, starts)
