"""The cells of a step: several virtual ranks of the epoch, dealt to the processes.

A run has a fixed number of virtual ranks, each a stream of cells of its own (`core.encoding.sampler`).
A step takes the next batch of every virtual rank; a process computes its virtual ranks one after
another and sums their gradients. So the run is the same on one process as on as many as there are
virtual ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.encoding.batches import BatchEncoder
from core.encoding.cell_batch import CellBatch, split_batch
from core.encoding.loader import BatchSource
from core.encoding.panel_cells import PanelReader
from core.encoding.sampler import BlockSampler, Cursor
from core.errors import ConfigurationError
from core.model.batch_tensors import BatchTensors
from core.model.cell_objectives import VIEWS
from core.model.folder import CellModel
from core.model.losses import LossCounts
from core.presets.schema import Preset, TrainSettings
from core.training.run_cells import RunCells, balanced_epochs


def virtual_ranks_of_process(
    virtual_ranks: int | None, *, index: int, count: int
) -> tuple[list[int], int]:
    """Return the virtual ranks of process ``index`` of ``count``, and their number in all.

    ``virtual_ranks`` is ``train.virtual_ranks``; None: one per process. ConfigurationError if the
    processes cannot share them equally.
    """
    total = count if virtual_ranks is None else virtual_ranks
    if total % count:
        message = (
            f"train.virtual_ranks = {total} cannot be dealt equally to {count} processes; start a number "
            f"of processes that divides it, or begin a run of {count} virtual ranks"
        )
        raise ConfigurationError(message)
    return list(range(index, total, count)), total


def cells_per_virtual_rank(
    train: TrainSettings, virtual_ranks: int, *, length: int | None = None
) -> tuple[int, int | None]:
    """Return the cells that each virtual rank gives to a step, and its tokens if those limit it.

    ``length`` is the tokens of every cell; None if cells differ. ConfigurationError if the virtual
    ranks cannot share the cells equally, or the tokens have no room for a cell.
    """
    if train.tokens_per_batch is None:
        if train.batch_size % virtual_ranks:
            message = (
                f"train.batch_size = {train.batch_size} cells cannot be shared equally by {virtual_ranks} "
                f"virtual ranks; give a multiple of {virtual_ranks}"
            )
            raise ConfigurationError(message)
        return train.batch_size // virtual_ranks, None
    budget = train.tokens_per_batch // virtual_ranks
    if length is None:
        return train.batch_size, budget
    if budget < length:
        of_each = f" in each of {virtual_ranks} virtual ranks" if virtual_ranks > 1 else ""
        message = (
            f"train.tokens_per_batch = {train.tokens_per_batch} has no room for a cell of "
            f"{length} tokens{of_each}; give at least {length * virtual_ranks} or lower data.genes"
        )
        raise ConfigurationError(message)
    return budget // length, None


def make_batch_source(
    preset: Preset,
    cells: RunCells,
    model: CellModel,
    *,
    virtual_rank: int = 0,
    virtual_ranks: int = 1,
    bins_on_device: bool = False,
) -> BatchSource:
    """Return what encodes the training batches of one of several virtual ranks.

    ``bins_on_device`` leaves the bins of counts to the device.
    """
    train, config, rows = preset.train, model.config, cells.training
    reader = PanelReader(cells.store, model.panel)
    encoder = BatchEncoder(
        config.tokens,
        model.values,
        max_length=config.longest_sequence,
        bins_on_device=bins_on_device,
    )
    is_ranked = config.layout == "ranked"
    batch_size, budget = cells_per_virtual_rank(
        train, virtual_ranks, length=encoder.tokens.required_length if is_ranked else None
    )
    lengths = None
    if budget is not None:
        genes = np.minimum(reader.count_values(rows), encoder.room)
        lengths = genes + encoder.tokens.header_length + 1
    sampler = BlockSampler(
        rows,
        seed=train.seed,
        batch_size=batch_size,
        lengths=lengths,
        tokens_per_batch=budget,
        virtual_rank=virtual_rank,
        virtual_ranks=virtual_ranks,
        rows_of_epoch=balanced_epochs(preset, cells),
    )
    views = VIEWS if config.cls_contrast else 1
    return BatchSource(reader, encoder, sampler, preset.training_masking, views=views)


@dataclass(frozen=True)
class RankBatch:
    """The cells of one virtual rank in a step, whole and cut into parts for the device."""

    virtual_rank: int
    arrays: CellBatch
    parts: list[BatchTensors]


class StepSize(NamedTuple):
    """Targets, cells and tokens of a step: of one process, or summed over all."""

    #: Masked genes and phenotypes, and cells, as the loss counts them.
    genes: float
    phenotypes: float
    targeted_cells: float
    n_cells: float
    n_tokens: float
    #: Sum over cells of the square of their tokens: what attention costs.
    squared_lengths: float

    @property
    def counts(self) -> LossCounts:
        """The targets."""
        return LossCounts(*self[:3])


@dataclass(frozen=True)
class StepBatch:
    """What one process computes in a step."""

    ranks: list[RankBatch]
    #: Of this process alone.
    size: StepSize


class StepSource:
    """The batches of one process' virtual ranks, all at one cursor.

    ``sources`` are by virtual rank; ``count`` counts the targets of a batch; ``pin`` is whether tensors
    go into page-locked memory, for a GPU to fetch.
    """

    def __init__(
        self,
        sources: dict[int, BatchSource],
        *,
        count: Callable[[CellBatch], LossCounts],
        pin: bool = False,
    ) -> None:
        self._sources, self._count, self._pin = sources, count, pin
        first = next(iter(sources.values()))
        #: Of one virtual rank; steps and cursors are the same for all.
        self.sampler: BlockSampler = first.sampler
        self._views = first.views
        #: Parts that each virtual rank's batch is cut into, from the next batch on.
        self.n_parts = 1

    def batch(self, cursor: Cursor) -> tuple[NDArray[np.int64], StepBatch]:
        """Return the rows and the batches of a cursor."""
        rows, ranks = [], []
        for virtual_rank, source in self._sources.items():
            own, arrays = source.batch(cursor)
            rows.append(own)
            ranks.append(RankBatch(virtual_rank, arrays, self.cut(arrays, self.n_parts)))
        sizes = [self._size(rank.arrays) for rank in ranks]
        return np.concatenate(rows), StepBatch(ranks, StepSize(*map(sum, zip(*sizes, strict=True))))

    def _size(self, arrays: CellBatch) -> StepSize:
        lengths = np.diff(arrays.cu_seqlens).astype(np.float64)
        counts = self._count(arrays)
        return StepSize(
            *(counts.genes, counts.phenotypes, counts.cells),
            *(arrays.n_cells, float(lengths.sum()), float((lengths**2).sum())),
        )

    def cut(self, arrays: CellBatch, n_parts: int) -> list[BatchTensors]:
        """Cut a virtual rank's batch into parts and make them ready for the device."""
        parts = split_batch(arrays, n_parts, together=self._views)
        return [BatchTensors.on_host(part, pin=self._pin) for part in parts]
