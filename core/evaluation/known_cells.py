"""Cells with labels and donors, in a model's genes and codes: what is scored, and what baselines learn from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_filter import CellFilter
from core.cells.store import OneVsRest, Store
from core.model.folder import CellModel

#: Training cells that baselines are fitted on at most; a seeded sample beyond.
MAX_BASELINE_CELLS = 50_000


@dataclass(frozen=True)
class KnownCells:
    """Cells of a store or of files."""

    #: (cells, genes), log1p counts per 10,000.
    expression: sparse.csr_matrix
    #: (cells, phenotypes), the model's codes, -1 where a label is missing or unknown to the model.
    codes: NDArray[np.integer[Any]]
    #: (cells,), codes, -1 where not known; None without donors.
    donors: NDArray[np.integer[Any]] | None = None
    #: (cells,), rows of the store; None for cells of files.
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.codes)

    @classmethod
    def of_store(cls, model: CellModel, store: Store, rows: NDArray[np.int64]) -> "KnownCells":
        """Read cells of a store; labels that the model does not know count as missing."""
        stored, names = np.asarray(store.phenotype_codes[rows]), list(store.phenotypes)
        codes = np.full((len(rows), len(model.config.phenotypes)), -1, dtype=np.int32)
        for slot, (name, values) in enumerate(model.config.phenotypes.items()):
            if name in names:
                place = {value: code for code, value in enumerate(values)}
                to_model = [place.get(value, -1) for value in store.phenotypes[name]]
                codes[:, slot] = np.array([*to_model, -1])[stored[:, names.index(name)]]
        donors = None if store.donors is None else np.asarray(store.donors[rows])
        return cls(store.read(rows, model.panel), codes, donors, rows)

    def take(self, cells: NDArray[Any]) -> "KnownCells":
        """Return some of the cells."""
        donors, rows = (None if one is None else one[cells] for one in (self.donors, self.rows))
        return KnownCells(self.expression[cells], self.codes[cells], donors, rows)

    def of_genes(self, genes: NDArray[np.bool_]) -> "KnownCells":
        """Return the same cells with some of their genes."""
        return replace(self, expression=self.expression[:, genes])


def store_of_task(model: CellModel, store: Store) -> Store:
    """Return the store as a one-vs-rest classifier sees it; as it is for any other model."""
    config = model.config
    if config.classified is None or config.positive is None:
        return store
    return OneVsRest(store, config.classified, config.positive)


def baseline_cells(
    model: CellModel, store: Store, trained_where: CellFilter | None, rng: np.random.Generator
) -> KnownCells:
    """Read the cells that the model was trained on, a sample of at most `MAX_BASELINE_CELLS`."""
    rows = store.select(trained_where, split="train") if trained_where else store.rows("train")
    if len(rows) > MAX_BASELINE_CELLS:
        rows = np.sort(rng.choice(rows, MAX_BASELINE_CELLS, replace=False))
    return KnownCells.of_store(model, store, rows)


def with_joint_donors(
    cells: KnownCells, own_names: Sequence[str], names: Sequence[str]
) -> tuple[KnownCells, list[str]]:
    """Recode donors of ``own_names`` so that they continue ``names``; return all names too."""
    if cells.donors is None:
        return cells, list(names)
    place = {name: code for code, name in enumerate(names)}
    for name in own_names:
        place.setdefault(name, len(place))
    to_joint = np.array([*(place[name] for name in own_names), -1])
    return replace(cells, donors=to_joint[cells.donors]), list(place)
