"""The labels of all cells of all files as one small table: every combination once, with its cells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.checks.summary import FileSummary
from core.cells.phenotypes import MISSING, Labels, group_age_labels, requested_phenotypes
from core.presets.schema import DataSettings

__all__ = ["LabelColumn", "LabelTable", "make_label_table"]

#: Gives the codes of cells [start, stop) of all files, int64: those of all cells at once would be
#: the largest memory of a check.
_Codes = Callable[[int, int], NDArray[np.int64]]
_BLOCK_CELLS = 2**20


@dataclass(frozen=True)
class LabelColumn:
    """One property of cells.

    Attributes
    ----------
    name, column
        The phenotype (or "donor", "file", ...) and the obs column it is read from.
    values
        Labels in sorted order; files in the order of the preset.
    codes
        (rows of the table,), int64, index into `values` or `MISSING`.
    """

    name: str
    column: str
    values: tuple[str, ...]
    codes: NDArray[np.int64]


@dataclass(frozen=True)
class LabelTable:
    """Combinations of labels that occur, and how many cells have each.

    Attributes
    ----------
    phenotypes
        Name -> column, of the phenotypes that any file has, in header order.
    donors
        None where no file has the column of the split.
    files, batches
        The file of each cell, and technical groups that obs names.
    cells
        (rows,), int64, cells of each combination.
    """

    phenotypes: Mapping[str, LabelColumn]
    donors: LabelColumn | None
    files: LabelColumn
    batches: Mapping[str, LabelColumn]
    cells: NDArray[np.int64]

    @property
    def n_cells(self) -> int:
        """Cells of all files."""
        return int(self.cells.sum())

    def count(self, column: LabelColumn) -> NDArray[np.int64]:
        """(values,), cells that have each value of a column."""
        known = column.codes >= 0
        counts = np.bincount(
            column.codes[known], weights=self.cells[known], minlength=len(column.values)
        )
        return counts.astype(np.int64)

    def cross(self, first: LabelColumn, second: LabelColumn) -> NDArray[np.int64]:
        """(values of first, values of second), cells; those of which either is unknown left out."""
        known = (first.codes >= 0) & (second.codes >= 0)
        shape = (len(first.values), len(second.values))
        flat = first.codes[known] * shape[1] + second.codes[known]
        counts = np.bincount(flat, weights=self.cells[known], minlength=shape[0] * shape[1])
        return counts.astype(np.int64).reshape(shape)


def make_label_table(files: Sequence[FileSummary], data: DataSettings) -> LabelTable:
    """Join the labels of files that could be read; ages are grouped as `tfx prepare` does."""
    n_cells = [one.n_cells for one in files]
    columns: list[tuple[str, str, str, tuple[str, ...], _Codes]] = []
    for phenotype in requested_phenotypes(data):
        labels = [one.labels.get(phenotype.name) for one in files]
        if phenotype.name == "age" and data.age_groups == "decade":
            labels = group_age_labels(labels)
        if any(part is not None for part in labels):
            columns.append(("phenotype", phenotype.name, phenotype.column, *_join(labels, n_cells)))
    donors = [one.donors for one in files]
    if any(part is not None and part.values for part in donors):
        columns.append(("donor", "donor", data.split.by, *_join(donors, n_cells)))
    for name in dict.fromkeys(name for one in files for name in one.batches):
        labels = [one.batches.get(name) for one in files]
        columns.append(("batch", name, name, *_join(labels, n_cells)))
    names = tuple(one.name for one in files)
    columns.append(("file", "file", "", names, _file_codes(n_cells)))
    distinct, cells = _combinations([codes for *_, codes in columns], sum(n_cells))
    made = [
        (kind, LabelColumn(name, column, values, distinct[:, index]))
        for index, (kind, name, column, values, _) in enumerate(columns)
    ]
    return LabelTable(
        phenotypes={column.name: column for kind, column in made if kind == "phenotype"},
        donors=next((column for kind, column in made if kind == "donor"), None),
        files=next(column for kind, column in made if kind == "file"),
        batches={column.name: column for kind, column in made if kind == "batch"},
        cells=cells,
    )


def _file_codes(n_cells: Sequence[int]) -> _Codes:
    ends = np.cumsum(n_cells)
    return lambda start, stop: np.searchsorted(ends, np.arange(start, stop), side="right")


def _join(files: Sequence[Labels | None], n_cells: Sequence[int]) -> tuple[tuple[str, ...], _Codes]:
    """Values of all files together, and the codes of any range of cells."""
    values = sorted({value for labels in files if labels for value in labels.values})
    place = {value: code for code, value in enumerate(values)}
    recodes = [
        np.array([place[value] for value in labels.values] + [MISSING], dtype=np.int64)
        if labels
        else None
        for labels in files
    ]
    begins = np.concatenate(([0], np.cumsum(n_cells))).tolist()

    def codes(start: int, stop: int) -> NDArray[np.int64]:
        parts = [np.empty(0, dtype=np.int64)]
        for labels, recode, begin, end in zip(files, recodes, begins[:-1], begins[1:], strict=True):
            first, last = max(start, begin), min(stop, end)
            if first >= last:
                continue
            if labels is None or recode is None:
                parts.append(np.full(last - first, MISSING, dtype=np.int64))
            else:
                parts.append(recode[labels.codes[first - begin : last - begin]])
        return np.concatenate(parts)

    return tuple(values), codes


def _combinations(
    columns: Sequence[_Codes], n_cells: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct rows of columns side by side, and how often each occurs; a block of cells at a time."""
    rows = np.empty((0, len(columns)), dtype=np.int64)
    counts = np.empty(0, dtype=np.int64)
    for start in range(0, n_cells, _BLOCK_CELLS):
        stop = min(start + _BLOCK_CELLS, n_cells)
        block = np.column_stack([codes(start, stop) for codes in columns])
        rows, counts = _merge(
            np.concatenate([rows, block]),
            np.concatenate([counts, np.ones(stop - start, dtype=np.int64)]),
        )
    return rows, counts


def _merge(
    rows: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct rows in order of appearance, and the sum of the counts of each."""
    # One number per row, renumbered after every column: it never exceeds rows x values.
    numbers = np.zeros(len(rows), dtype=np.int64)
    for codes in rows.T:
        joined = numbers * (int(codes.max(initial=0)) + 2) + codes + 1
        numbers = pd.factorize(joined)[0].astype(np.int64)
    first = np.unique(numbers, return_index=True)[1]
    return rows[first], np.bincount(numbers, weights=counts).astype(np.int64)
