"""The cells of a run, as its task sees them: the store, the rows of each split, the genes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.cells.cell_filter import CellFilter
from core.cells.genes import GenePanel
from core.cells.phenotypes import suggest
from core.cells.store import OneVsRest, Split, Store
from core.errors import ConfigurationError, DataError
from core.model.folder import read_outline
from core.presets.schema import Preset
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
            message = (
                f"{store.path}: no training cells; lower data.split.validation and data.split.test"
            )
            raise DataError(message)
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
            message = (
                f"classification.{key} names {name!r}, which is no phenotype of {store.path}; "
                f"{suggest(name, store.phenotypes)}"
            )
            raise ConfigurationError(message)
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
            message = (
                f"{store.path}: no {split} cell matches data.where = {cells} "
                f"({cells.describe_no_match(store.labels, rows)}); choose other cells{remedy}"
            )
            raise DataError(message)
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
        message = f"{store.path}: training cells have {found}; a classification needs two"
        raise DataError(message)
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
        message = (
            f"{store.path} has only {len(known) - len(lacking):,} of the {len(known):,} genes of "
            f"model.start_from; start from a model of these genes"
        )
        raise DataError(message)
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
