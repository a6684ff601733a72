"""The cells of one context, of a store or of files, with the donors behind them.

A context is a filter on labels: ``cell_type=macrophage``, or that and ``sex=female``. Expression is read only
of the cells that match, at most `MAX_CELLS` of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from core.cells.ages import is_age_name
from core.cells.cell_filter import CellFilter
from core.cells.store import SPLITS, Store
from core.errors import DataError
from core.evaluation.method_comparison import KnownCells
from core.inference.evaluate_files import Reading, join_files, read_labelled, trained_on
from core.model.folder import CellModel
from core.random_streams import Stream, generator

if TYPE_CHECKING:
    from anndata import AnnData

#: Cells of a context beyond which a seeded sample is taken.
MAX_CELLS = 20_000
#: Cells and donors that a context must have, and cells that must express a gene.
LEAST_CELLS, LEAST_DONORS, LEAST_EXPRESSING = 20, 2, 10

FloatArray = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ContextCells:
    """The cells of one context."""

    #: The filter as the user wrote it, or "all cells".
    name: str
    #: (cells, the model's genes), log1p counts per 10,000.
    expression: sparse.csr_matrix
    #: (cells, phenotypes), the model's codes, -1 where not known.
    codes: NDArray[np.int32]
    #: (cells,), codes, -1 where not known.
    donors: Integers
    #: (cells,), 0 where not known.
    library_size: NDArray[np.float32]
    #: (cells,), whether the model was trained without this cell.
    held_out: Mask
    #: (the model's genes,), which the cells lack.
    missing: Mask
    #: Which phenotypes are ages: they are no part of a class.
    is_age: Mask
    #: (cells,), their rows in the store, or in their file.
    rows: Integers

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.codes)

    def take(self, cells: NDArray[Any]) -> "ContextCells":
        """Return some of the cells."""
        return replace(
            self,
            expression=self.expression[cells],
            codes=self.codes[cells],
            donors=self.donors[cells],
            library_size=self.library_size[cells],
            held_out=self.held_out[cells],
            rows=self.rows[cells],
        )

    @cached_property
    def n_donors(self) -> int:
        """Number of known donors."""
        return len(np.unique(self.donors[self.donors >= 0]))

    @cached_property
    def classes(self) -> Integers:
        """(cells,), codes of the combinations of phenotypes that occur, ages left out."""
        return group_codes(self.codes[:, ~self.is_age])

    @cached_property
    def strata(self) -> Integers:
        """(cells,), codes of the combinations of donor and class that occur."""
        return group_codes(np.column_stack([self.donors, self.classes]))

    @cached_property
    def halves(self) -> Integers:
        """(cells,), 0 or 1: two halves of the donors with about equally many cells; of the cells without donors."""
        units = self.donors if self.n_donors >= LEAST_DONORS else np.arange(len(self))
        names, places, counts = np.unique(units, return_inverse=True, return_counts=True)
        order = generator(0, Stream.INTERACTION_HALVES).permutation(len(names))
        order = order[np.argsort(-counts[order], kind="stable")]
        half, sizes = np.zeros(len(names), dtype=np.int64), [0, 0]
        for unit in order.tolist():
            half[unit] = int(sizes[1] < sizes[0])
            sizes[half[unit]] += int(counts[unit])
        return half[places]

    def two_sides(self) -> "tuple[ContextCells, ContextCells] | None":
        """Return cells to learn from, and cells of other donors that the model has not seen; None without."""
        is_other = self.held_out
        if is_other.all():
            is_other = self.halves == 1
        mine, others = self.take(~is_other), self.take(is_other)
        enough = min(len(mine), len(others)) >= LEAST_CELLS
        known = self.n_donors == 0 or min(mine.n_donors, others.n_donors) >= 1
        return (mine, others) if enough and known else None


def group_codes(rows: NDArray[Any]) -> Integers:
    """Return (cells,) codes of the combinations of (cells, n) values that occur."""
    if rows.shape[1] == 0:
        return np.zeros(len(rows), dtype=np.int64)
    return np.unique(rows, axis=0, return_inverse=True)[1].ravel().astype(np.int64)


Reader = Callable[[CellFilter], ContextCells]


def store_reader(model: CellModel, store: Store, *, seed: int = 0) -> Reader:
    """Return a function that reads the cells of a filter from the store that a model was trained on."""

    def read(where: CellFilter) -> ContextCells:
        rows = store.select(where)
        if len(rows) == 0:
            every = np.arange(store.n_cells)
            raise DataError(_no_cell(str(store.path), where, store.labels, every))
        rows = _sample(rows, seed)
        known = KnownCells.of_store(model, store, rows)
        lacking = set(store.missing_genes(model.panel))
        return _checked(
            ContextCells(
                name=str(where) or "all cells",
                expression=known.expression,
                codes=known.codes.astype(np.int32),
                donors=np.full(len(rows), -1) if known.donors is None else known.donors.astype(np.int64),
                library_size=store.library_sizes(rows),
                held_out=np.asarray(store.split_codes[rows]) != SPLITS.index("train"),
                missing=np.array([gene in lacking for gene in model.panel.ids]),
                is_age=_ages(model),
                rows=rows,
            )
        )  # fmt: skip

    return read


def file_reader(
    model: CellModel,
    files: "Sequence[str | AnnData]",
    *,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> Reader:
    """Return a function that reads the cells of a filter from files."""
    config = model.config
    names = [file if isinstance(file, str) else "the AnnData" for file in files]
    seen = set(trained_on(model, names))
    donor_codes: dict[str, int] = {"": -1}  # one code for a donor in all contexts

    def read(where: CellFilter) -> ContextCells:
        def choose(codes: NDArray[np.int32]) -> Integers:
            known = {
                name: pd.Categorical.from_codes(codes[:, slot].tolist(), pd.Index(values))
                for slot, (name, values) in enumerate(config.phenotypes.items())
            }
            rows = np.flatnonzero(where.mask(known, len(codes), ", ".join(names)))
            if len(rows) == 0 and len(files) == 1:
                raise DataError(_no_cell(names[0], where, known, np.arange(len(codes))))
            return _sample(rows, seed)

        parts = [
            read_labelled(model, file, phenotypes=config.phenotypes, choose=choose, reading=reading)
            for file in files
        ]
        known, _ = join_files(parts)
        donors = [donor for part in parts for donor in part.donors.tolist()]
        for donor in donors:
            donor_codes.setdefault(donor, len(donor_codes) - 1)
        if not len(known):
            raise DataError(
                f"{', '.join(names)}: no cell matches {where.where} {where}; choose other cells"
            )
        is_new = [
            np.full(len(part.rows), name not in seen)
            for name, part in zip(names, parts, strict=True)
        ]
        cells = ContextCells(
            name=str(where) or "all cells",
            expression=known.expression,
            codes=known.codes.astype(np.int32),
            donors=np.array([donor_codes[donor] for donor in donors], dtype=np.int64),
            library_size=np.concatenate([part.library_size for part in parts]),
            held_out=np.concatenate(is_new),
            missing=np.any([part.missing for part in parts], axis=0),
            is_age=_ages(model),
            rows=np.concatenate([part.rows for part in parts]),
        )  # fmt: skip
        return _checked(cells.take(_sample(np.arange(len(cells)), seed)))

    return read


def _ages(model: CellModel) -> Mask:
    return np.array([is_age_name(name) for name in model.config.phenotypes], dtype=bool)


def _sample(rows: Integers, seed: int) -> Integers:
    if len(rows) <= MAX_CELLS:
        return rows
    rng = generator(seed, Stream.INTERACTION_CELLS)
    return np.sort(rng.choice(rows, MAX_CELLS, replace=False))


def _no_cell(name: str, where: CellFilter, labels: Any, among: Integers) -> str:  # noqa: ANN401
    why = where.describe_no_match(labels, among)
    return f"{name}: no cell matches {where.where} {where} ({why}); choose other cells"


def _checked(cells: ContextCells) -> ContextCells:
    """Refuse a context of too few cells or donors."""
    if 0 < cells.n_donors < LEAST_DONORS:
        raise DataError(
            f"{cells.name}: all cells are of one donor, whose peculiarities a network would show; choose "
            f"a wider --where, with {LEAST_DONORS} donors at least"
        )
    if len(cells) < LEAST_CELLS:
        raise DataError(
            f"{cells.name}: {len(cells):,} cells are too few for a network, which needs {LEAST_CELLS}; "
            f"choose a wider --where"
        )
    return cells
