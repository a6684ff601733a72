"""The cells of a run, as its task sees them, and of its steps: virtual ranks, dealt to the processes.

A run has a fixed number of virtual ranks, each a stream of cells of its own (`core.encoding.sampler`).
A step takes the next batch of every virtual rank; a process computes its virtual ranks one after
another and sums their gradients. So the run is the same on one process as on as many as there are
virtual ranks.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.cells.cell_filter import CellFilter
from core.cells.genes import GenePanel
from core.cells.one_vs_rest import OneVsRest
from core.cells.spelling import suggest
from core.cells.store import Split, Store
from core.encoding.batches import BatchEncoder
from core.encoding.cell_batch import CellBatch, split_batch
from core.encoding.loader import BatchSource
from core.encoding.panel_cells import PanelReader
from core.encoding.sampler import BlockSampler, Cursor
from core.errors import ConfigurationError, DataError
from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel, read_outline
from core.model.losses import VIEWS, LossCounts
from core.presets.schema import Preset, TrainSettings
from core.random_streams import Stream, generator
from core.training.start_weights import own_start

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunCells:
    """The store, its training and validation rows (ascending), and the genes that the model sees."""

    store: Store
    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    panel: GenePanel

    @classmethod
    def of(cls, preset: Preset, store: Store) -> "RunCells":
        """Choose the cells: those of ``data.where``; for a classification those that have a label.

        ConfigurationError if the preset names what the store does not have; DataError if a split has no
        cell of the filter, or there is too little to train on.
        """
        store = _store_of_task(preset, store)
        training = _rows(preset, store, "train")
        if len(training) == 0:
            raise DataError(
                f"{store.path}: no training cells; lower data.split.validation and data.split.test"
            )
        panel, validation = _panel(preset, store), _rows(preset, store, "validation")
        return cls(store, training, validation, panel)

    @property
    def training_codes(self) -> NDArray[np.int32]:
        """(training cells, phenotypes), codes of values; -1 where there is no label."""
        return np.asarray(self.store.phenotype_codes[self.training])


def _store_of_task(preset: Preset, store: Store) -> Store:
    """Return the store; with ``classification.positive`` one whose phenotype is one value vs rest."""
    if preset.classified is None:
        return store
    settings = preset.classification
    names = [("column", preset.classified), *(("given", name) for name in settings.given)]
    for key, name in names:
        if name not in store.phenotypes:
            raise ConfigurationError(
                f"classification.{key} names {name!r}, which is no phenotype of {store.path}; "
                f"{suggest(name, store.phenotypes)}"
            )
    if settings.positive is not None:
        return OneVsRest(store, preset.classified, settings.positive)
    return store


def _rows(preset: Preset, store: Store, split: Split) -> NDArray[np.int64]:
    cells = CellFilter.parse(preset.data.where, where="data.where")
    rows = store.rows(split)
    if cells and len(rows) > 0:
        chosen = store.select(cells, split=split)
        if len(chosen) == 0:
            remedy = (
                "" if split == "train" else f", or set data.split.{split} = 0 and prepare again"
            )
            raise DataError(
                f"{store.path}: no {split} cell matches data.where = {cells} "
                f"({cells.describe_no_match(store.labels, rows)}); choose other cells{remedy}"
            )
        rows = chosen
    name = preset.classified
    if name is None or len(rows) == 0:
        return rows
    codes = _class_codes(name, store, rows)
    classes = np.unique(codes[codes >= 0])
    if split == "train" and len(classes) < 2:
        found = f"no label of {name}"
        if len(classes):
            found = f"one {name} alone ({store.phenotypes[name][classes[0]]})"
        raise DataError(f"{store.path}: training cells have {found}; a classification needs two")
    return rows[codes >= 0]


def _class_codes(name: str, store: Store, rows: NDArray[np.int64]) -> NDArray[np.int32]:
    return np.asarray(store.phenotype_codes[rows, list(store.phenotypes).index(name)])


def _panel(preset: Preset, store: Store) -> GenePanel:
    """Choose the most variable genes, or those of the model that a classification starts from."""
    start = own_start(preset)
    if start is None:
        panel = store.panel(preset.data.genes, preset.data.include_genes)
        if len(panel) < preset.data.genes:
            logger.info("the store has %d genes; the panel takes all of them", len(panel))
        return panel
    _, known = read_outline(start)
    lacking = set(store.missing_genes(known))
    if 2 * len(lacking) > len(known):
        raise DataError(
            f"{store.path} has only {len(known) - len(lacking):,} of the {len(known):,} genes of "
            f"model.start_from; start from a model of these genes"
        )
    if lacking:
        message = "%d of the %d genes of model.start_from are not in the store, and are left out"
        logger.warning(message, len(lacking), len(known))
    return known.take(np.flatnonzero([gene not in lacking for gene in known.ids]))


def balanced_epochs(preset: Preset, cells: RunCells) -> Callable[[int], NDArray[np.int64]] | None:
    """Return what draws the rows of an epoch, equally many of each class; None if all cells are taken.

    Epoch -> (cells,), ascending rows with repeats, as many as there are training cells. A class with
    more cells than its part is sampled anew every epoch; one with fewer is repeated, and sampled for
    the rest.
    """
    if preset.classified is None or preset.classification.sampling == "natural":
        return None
    rows, seed = cells.training, preset.train.seed
    codes = _class_codes(preset.classified, cells.store, rows)
    classes = [rows[codes == code] for code in np.unique(codes)]
    sizes = np.full(len(classes), len(rows) // len(classes))
    sizes[: len(rows) % len(classes)] += 1

    def draw(epoch: int) -> NDArray[np.int64]:
        rng = generator(seed, epoch, Stream.BALANCED_EPOCH)
        parts = []
        for members, size in zip(classes, sizes.tolist(), strict=True):
            repeats, rest = divmod(size, len(members))
            parts += [members] * repeats + [rng.choice(members, rest, replace=False)]
        return np.sort(np.concatenate(parts))

    return draw


# -- the cells of a step
def virtual_ranks_of_process(
    virtual_ranks: int | None, *, index: int, count: int
) -> tuple[list[int], int]:
    """Return the virtual ranks of process ``index`` of ``count``, and their number in all.

    ``virtual_ranks`` is ``train.virtual_ranks``; None: one per process. ConfigurationError if the
    processes cannot share them equally.
    """
    total = count if virtual_ranks is None else virtual_ranks
    if total % count:
        raise ConfigurationError(
            f"train.virtual_ranks = {total} cannot be dealt equally to {count} processes; start a number "
            f"of processes that divides it, or begin a run of {count} virtual ranks"
        )
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
            raise ConfigurationError(
                f"train.batch_size = {train.batch_size} cells cannot be shared equally by {virtual_ranks} "
                f"virtual ranks; give a multiple of {virtual_ranks}"
            )
        return train.batch_size // virtual_ranks, None
    budget = train.tokens_per_batch // virtual_ranks
    if length is None:
        return train.batch_size, budget
    if budget < length:
        of_each = f" in each of {virtual_ranks} virtual ranks" if virtual_ranks > 1 else ""
        raise ConfigurationError(
            f"train.tokens_per_batch = {train.tokens_per_batch} has no room for a cell of "
            f"{length} tokens{of_each}; give at least {length * virtual_ranks} or lower data.genes"
        )
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
    """Return what encodes the batches of a virtual rank; ``bins_on_device``: not the bins of counts."""
    train, config, rows = preset.train, model.config, cells.training
    reader = PanelReader(cells.store, model.panel)
    encoder = BatchEncoder(
        config.tokens,
        model.values,
        max_length=config.longest_sequence,
        bins_on_device=bins_on_device,
        with_library_size=config.library_size,
        context_genes=config.context_genes,
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
    #: Tokens whose last hidden state is computed.
    n_outputs: float

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

    ``count`` counts the targets of a batch; ``pin``: tensors go into page-locked memory, for a GPU.
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
        sizes = [self._size(rank) for rank in ranks]
        return np.concatenate(rows), StepBatch(ranks, StepSize(*map(sum, zip(*sizes, strict=True))))

    def _size(self, rank: RankBatch) -> StepSize:
        arrays = rank.arrays
        lengths = arrays.encoded_lengths.astype(np.float64)
        counts = self._count(arrays)
        return StepSize(
            *(counts.genes, counts.phenotypes, counts.cells),
            *(arrays.n_cells, float(lengths.sum()), float((lengths**2).sum())),
            float(sum(len(part.output_position) for part in rank.parts)),
        )

    def cut(self, arrays: CellBatch, n_parts: int) -> list[BatchTensors]:
        """Cut a virtual rank's batch into parts and make them ready for the device."""
        parts = split_batch(arrays, n_parts, together=self._views)
        return [BatchTensors.on_host(part, pin=self._pin) for part in parts]
