"""Reading for the checks: one file open at a time, one chunk of its matrix in memory.

First the tables and a first look at the matrices of every file, then the values. What cannot be
read becomes a fault of that file; the others are still read.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import sparse

from core.cells.checks.report import CheckRow, Family, fault_row
from core.cells.checks.summary import Expression, FileSummary
from core.cells.file_patterns import BUILTIN_PREFIX, expand_files, refuse_overlap
from core.cells.genes import choose_gene_ids
from core.cells.inputs import Role, StoredMatrix
from core.cells.matrix_state import (
    Inspection,
    MatrixChoice,
    MatrixState,
    check_chunk,
    choose_matrix,
    inspect_matrix,
    row_sums,
)
from core.cells.phenotypes import Labels, PhenotypeColumn, read_labels, requested_phenotypes
from core.cells.reading import CellSource, fingerprint, open_source
from core.errors import DataError
from core.presets.schema import DataSettings
from core.progress import Listener, ProgressEvent

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["BATCH_COLUMNS", "Depth", "survey_files"]

#: "full" reads every value, "quick" some cells of each file, "tables" none.
Depth = Literal["full", "quick", "tables"]
#: obs columns that name technical groups, in CELLxGENE and elsewhere.
BATCH_COLUMNS = ("batch", "assay")
#: Values of a chunk if it were dense: 64 MB of float32.
_CHUNK_VALUES = 2**24
_MOST_ROWS = 8_192
#: Cells that "quick" reads at the start, in the middle and at the end of a file.
_QUICK_CELLS = 2_048


def survey_files(
    data: DataSettings, depth: Depth, on_progress: Listener
) -> tuple[list[FileSummary], list[CheckRow]]:
    """Read the files of a preset as far as the checks need.

    Parameters
    ----------
    data
        The preset's data section.
    depth
        How much of the expression is read.
    on_progress
        Hears "checking files" and, unless only tables are read, "reading cells".

    Returns
    -------
    A summary of each file, in the order of the preset, and faults of the list of files.

    Raises
    ------
    ConfigurationError
        A file is listed twice, or there is no such built-in dataset.
    """
    files, faults = _list_files(data)
    built_in: dict[str, CellSource] = {}  # made once: a simulation takes seconds

    def open_one(name: str) -> CellSource:
        if not name.startswith(BUILTIN_PREFIX):
            return open_source(name)
        if name not in built_in:
            built_in[name] = open_source(name)
        return built_in[name]

    summaries: list[FileSummary] = []
    for done, (role, name) in enumerate(files):
        on_progress(ProgressEvent("checking files", done, len(files)))
        summaries.append(_look(open_one, name, role, data, every_matrix=depth != "tables"))
    on_progress(ProgressEvent("checking files", len(files), len(files)))
    if depth == "tables":
        return summaries, faults
    n_wanted = sum(_n_read(one.n_cells, depth) for one in summaries if one.choice)
    n_done = 0
    for index, one in enumerate(summaries):
        if one.choice is None:
            continue

        def tick(n_cells: int, before: int = n_done) -> None:
            on_progress(ProgressEvent("reading cells", before + n_cells, n_wanted))

        summaries[index] = _read_values(open_one, one, depth, tick)
        n_done += _n_read(one.n_cells, depth)
    return summaries, faults


def _list_files(data: DataSettings) -> tuple[list[tuple[Role, str]], list[CheckRow]]:
    """Expand patterns one by one: one that matches nothing leaves the others."""
    faults: list[CheckRow] = []
    lists: dict[str, list[str]] = {}
    for key in ("files", "validation_files", "test_files"):
        found: list[str] = []
        for pattern in getattr(data, key):
            try:
                found += expand_files([pattern], allow_missing=True)
            except DataError as error:
                faults.append(fault_row("files", "readable", error, subject=pattern))
        lists[key] = expand_files(found, allow_missing=True)
    refuse_overlap({f"data.{key}": files for key, files in lists.items()})
    given_elsewhere = bool(data.validation_files and data.test_files)
    main: Role = "train" if given_elsewhere else "all"
    files: list[tuple[Role, str]] = [(main, name) for name in lists["files"]]
    files += [("validation", name) for name in lists["validation_files"]]
    files += [("test", name) for name in lists["test_files"]]
    return files, faults


def _look(
    open_one: Callable[[str], CellSource],
    name: str,
    role: Role,
    data: DataSettings,
    *,
    every_matrix: bool,
) -> FileSummary:
    """Read the tables of a file and look at its matrices."""
    unreadable = FileSummary(name, role)
    try:
        source = open_one(name)
    except DataError as error:
        return _with_fault(unreadable, "files", "readable", error)
    with closing(source):  # a built-in dataset stays for its next reading
        try:
            matrices = source.matrices()
            _refuse_empty(source, matrices)
            summary = FileSummary(
                name,
                role,
                n_cells=source.n_cells,
                truth=source.truth,
                fingerprint=fingerprint(name),
            )
            summary = _read_labels(summary, source, data)
        except DataError as error:
            return _with_fault(unreadable, "files", "readable", error)
        try:
            choice = choose_matrix(source, data.matrix)
        except DataError as error:
            summary = _with_fault(summary, "matrix", "values", error)
        else:
            stored = StoredMatrix.of(source, choice.matrix)
            summary = dataclasses.replace(summary, choice=choice, stored=stored)
        if not matrices:
            return summary
        # Genes are looked at even where no matrix is fit: both faults are told at once.
        matrix = matrices[0] if summary.choice is None else summary.choice.matrix
        try:
            summary = _read_genes(summary, source.var(matrix), data, f"{name} ({matrix})")
        except DataError as error:
            summary = _with_fault(summary, "genes", "gene ids", error)
        if every_matrix and summary.choice is not None:
            others = _inspect_others(source, summary.choice)
            summary = dataclasses.replace(summary, others=others)
        return summary


def _refuse_empty(source: CellSource, matrices: Sequence[str]) -> None:
    has_genes = not matrices or any(len(source.var(matrix)) for matrix in matrices)
    if source.n_cells == 0 or not has_genes:
        what = "genes" if source.n_cells else "cells"
        message = f"{source.name}: holds no {what}; leave the file out or check how it was written"
        raise DataError(message)


def _read_labels(summary: FileSummary, source: CellSource, data: DataSettings) -> FileSummary:
    """Take from obs what phenotypes, donors and batches need."""
    phenotypes = requested_phenotypes(data)
    by = data.split.by
    obs = source.obs_columns({*(one.column for one in phenotypes), by, *BATCH_COLUMNS})
    labels: dict[str, Labels | None] = {}
    faults = list(summary.faults)
    for phenotype in phenotypes:
        try:
            labels[phenotype.name] = read_labels(obs, phenotype, where=summary.name)
        except DataError as error:
            labels[phenotype.name] = None
            faults.append(fault_row("phenotypes", "coverage", error, subject=phenotype.name))

    def read(column: str) -> Labels | None:
        return read_labels(obs, PhenotypeColumn(column, column, explicit=False), where=summary.name)

    return dataclasses.replace(
        summary,
        faults=tuple(faults),
        obs=obs,
        labels=labels,
        donors=None if by == "cells" else _or_none(read, by),
        batches={column: found for column in BATCH_COLUMNS if (found := _or_none(read, column))},
    )


def _or_none(read: Callable[[str], Labels | None], column: str) -> Labels | None:
    """Labels of a column, or None where it holds a measurement."""
    try:
        return read(column)
    except DataError:
        return None


def _read_genes(
    summary: FileSummary, var: "pd.DataFrame", data: DataSettings, where: str
) -> FileSummary:
    table = choose_gene_ids(var, data.gene_ids, where)
    return dataclasses.replace(summary, table=table, n_versioned=table.n_versioned)


def _inspect_others(source: CellSource, choice: MatrixChoice) -> dict[str, Inspection]:
    """Look at the first cells of the matrices that are not taken."""
    others: dict[str, Inspection] = {}
    for matrix in source.matrices():
        if matrix == choice.matrix:
            continue
        try:
            others[matrix] = inspect_matrix(source, matrix)
        except DataError:  # not needed, so no fault
            continue
        source.release()
    return others


def _read_values(
    open_one: Callable[[str], CellSource],
    summary: FileSummary,
    depth: Depth,
    tick: Callable[[int], None],
) -> FileSummary:
    """Read the values of the chosen matrix; a value that prepare refuses ends the reading."""
    choice = summary.choice
    assert choice is not None, "only files with a fit matrix are read"
    gathered: _Gathering | None = None
    try:
        source = open_one(summary.name)
        with closing(source):  # a built-in dataset stays for its next reading
            for start, chunk in _chunks(source, choice.matrix, depth):
                gathered = gathered or _Gathering(chunk.shape[1])
                try:
                    check_chunk(chunk, choice, source, start)
                except DataError as error:
                    summary = _with_fault(summary, "matrix", "every value", error)
                    break
                gathered.add(start, chunk, logged=choice.state == MatrixState.LOG1P)
                tick(gathered.n_cells)
    except DataError as error:
        summary = _with_fault(summary, "files", "readable", error)
    if gathered is None or not gathered.n_cells:
        return summary
    return dataclasses.replace(summary, expression=gathered.finish())


class _Gathering:
    """Adds up chunks: per cell 8 bytes and its row, per gene 8."""

    def __init__(self, n_genes: int) -> None:
        self.n_cells = 0
        self._rows: list[NDArray[np.int64]] = []
        self._totals: list[NDArray[np.float32]] = []
        self._genes: list[NDArray[np.int32]] = []
        self._cells_per_gene = np.zeros(n_genes, dtype=np.int64)
        self._largest = 0.0

    def add(self, first_row: int, chunk: sparse.csr_matrix, *, logged: bool) -> None:
        values = chunk.data.astype(np.float64)
        totals = row_sums(chunk, np.expm1(values) if logged else values)
        self._rows.append(np.arange(first_row, first_row + chunk.shape[0]))
        self._totals.append(totals.astype(np.float32))
        self._genes.append(np.diff(chunk.indptr).astype(np.int32))
        self._cells_per_gene += np.bincount(chunk.indices, minlength=len(self._cells_per_gene))
        if len(values):
            self._largest = max(self._largest, float(values.max()))
        self.n_cells += chunk.shape[0]

    def finish(self) -> Expression:
        return Expression(
            rows=np.concatenate(self._rows),
            totals=np.concatenate(self._totals),
            genes_per_cell=np.concatenate(self._genes),
            cells_per_gene=self._cells_per_gene,
            largest=self._largest,
        )


def _chunks(
    source: CellSource, matrix: str, depth: Depth
) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """First row and CSR of each chunk that the depth asks for."""
    n_genes = max(len(source.var(matrix)), 1)
    rows = int(np.clip(_CHUNK_VALUES // n_genes, 64, _MOST_ROWS))
    for start, stop in _ranges(source.n_cells, depth):
        at = start
        for chunk in source.chunks(matrix, rows, start=start, stop=stop):
            yield at, chunk
            at += chunk.shape[0]


def _ranges(n_cells: int, depth: Depth) -> list[tuple[int, int]]:
    """Rows to read, as (start, stop)."""
    if depth == "full" or n_cells <= 3 * _QUICK_CELLS:
        return [(0, n_cells)]
    middle = (n_cells - _QUICK_CELLS) // 2
    starts: Sequence[int] = (0, middle, n_cells - _QUICK_CELLS)
    return [(start, start + _QUICK_CELLS) for start in starts]


def _n_read(n_cells: int, depth: Depth) -> int:
    return sum(stop - start for start, stop in _ranges(n_cells, depth))


def _with_fault(summary: FileSummary, family: Family, check: str, error: DataError) -> FileSummary:
    row = fault_row(family, check, error, subject=summary.name)
    return dataclasses.replace(summary, faults=(*summary.faults, row))
