"""The labels of all cells of all files as one small table: each combination with its cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.checks.survey import FileSummary
from core.cells.phenotypes import MISSING, Labels, group_age_labels, requested_phenotypes
from core.presets.schema import DataSettings

Codes = NDArray[np.int64]
#: The codes of all cells at once would be the largest memory of a check.
_BLOCK_CELLS = 2**20


@dataclass(frozen=True)
class LabelColumn:
    """One property of cells."""

    #: The phenotype (or "donor", "file", ...).
    name: str
    #: In obs; "" for the file.
    column: str
    #: Sorted labels; files in the order of the preset.
    values: tuple[str, ...]
    #: (rows of the table,), index into `values` or `MISSING`.
    codes: Codes


@dataclass(frozen=True)
class LabelTable:
    """Combinations of labels that occur, and how many cells have each."""

    #: Those that any file has, in header order.
    phenotypes: Mapping[str, LabelColumn]
    #: None if no file has the column of the split.
    donors: LabelColumn | None
    files: LabelColumn
    #: Technical groups that obs names.
    batches: Mapping[str, LabelColumn]
    #: (rows,), cells of each combination.
    cells: Codes

    @property
    def n_cells(self) -> int:
        """Cells of all files."""
        return int(self.cells.sum())

    def count(self, column: LabelColumn) -> Codes:
        """(values,), cells that have each value of a column."""
        known = column.codes >= 0
        counts = np.bincount(
            column.codes[known], weights=self.cells[known], minlength=len(column.values)
        )
        return counts.astype(np.int64)

    def cross(self, first: LabelColumn, second: LabelColumn) -> Codes:
        """(values of first, values of second), cells with both values known."""
        known = (first.codes >= 0) & (second.codes >= 0)
        shape = (len(first.values), len(second.values))
        flat = first.codes[known] * shape[1] + second.codes[known]
        counts = np.bincount(flat, weights=self.cells[known], minlength=shape[0] * shape[1])
        return counts.astype(np.int64).reshape(shape)


def make_label_table(files: Sequence[FileSummary], data: DataSettings) -> LabelTable:
    """Join the labels of readable files; ages are grouped as `tfx prepare` does."""
    columns: dict[tuple[str, str, str], list[Labels | None]] = {}
    for phenotype in requested_phenotypes(data):
        labels = [one.labels[phenotype.name] for one in files]
        if phenotype.name == "age" and data.age_groups == "decade":
            labels = group_age_labels(labels)
        if any(part is not None for part in labels):
            columns["phenotype", phenotype.name, phenotype.column] = labels
    if any(one.donors is not None and one.donors.values for one in files):
        columns["donor", "donor", data.split.by] = [one.donors for one in files]
    for name in dict.fromkeys(name for one in files for name in one.batches):
        columns["batch", name, name] = [one.batches.get(name) for one in files]
    values, codes, cells = _combine(list(columns.values()), [one.n_cells for one in files])
    made = [
        (kind, LabelColumn(name, column, values[index], codes[:, index]))
        for index, (kind, name, column) in enumerate(columns)
    ]
    return LabelTable(
        phenotypes={column.name: column for kind, column in made if kind == "phenotype"},
        donors=next((column for kind, column in made if kind == "donor"), None),
        files=LabelColumn("file", "", tuple(one.name for one in files), codes[:, -1]),
        batches={column.name: column for kind, column in made if kind == "batch"},
        cells=cells,
    )


def _combine(
    columns: Sequence[Sequence[Labels | None]], n_cells: Sequence[int]
) -> tuple[list[tuple[str, ...]], Codes, Codes]:
    """Values of each column; distinct rows of codes, the file last; and the cells of each row."""
    values = [
        tuple(sorted({value for labels in column if labels for value in labels.values}))
        for column in columns
    ]
    places = [{value: code for code, value in enumerate(known)} for known in values]
    rows: Codes = np.empty((0, len(columns) + 1), dtype=np.int64)
    cells: Codes = np.empty(0, dtype=np.int64)
    for file, n in enumerate(n_cells):
        of_file = [column[file] for column in columns]
        recodes = [
            np.array([*(place[value] for value in labels.values), MISSING]) if labels else None
            for labels, place in zip(of_file, places, strict=True)
        ]
        for start in range(0, n, _BLOCK_CELLS):
            stop = min(start + _BLOCK_CELLS, n)
            block = np.full((stop - start, len(columns) + 1), MISSING, dtype=np.int64)
            block[:, -1] = file
            for index, (labels, recode) in enumerate(zip(of_file, recodes, strict=True)):
                if labels is not None and recode is not None:
                    block[:, index] = recode[labels.codes[start:stop]]
            rows = np.concatenate([rows, block])
            rows, cells = _merge(rows, np.concatenate([cells, np.ones(stop - start, np.int64)]))
    return values, rows, cells


def _merge(rows: Codes, counts: Codes) -> tuple[Codes, Codes]:
    """Distinct rows in order of appearance, and the sum of the counts of each."""
    # One number per row, renumbered after every column: it never exceeds rows x values.
    numbers = np.zeros(len(rows), dtype=np.int64)
    for codes in rows.T:
        joined = numbers * (int(codes.max(initial=0)) + 2) + codes + 1
        numbers = pd.factorize(joined)[0].astype(np.int64)
    first = np.unique(numbers, return_index=True)[1]
    return rows[first], np.bincount(numbers, weights=counts).astype(np.int64)
