"""Reading for the checks: one file open at a time, one chunk of its matrix in memory.

First the tables and a first look at the matrices of every file, then the values. An error of a file
becomes a fault of its summary, and the other files are still read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from core.cells.checks.report import CheckRow, Family, fault_row
from core.cells.file_patterns import BUILTIN_PREFIX, check_overlap, expand_files
from core.cells.genes import GeneTable, choose_gene_ids
from core.cells.inputs import Role, StoreInput
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
from core.cells.reading import CellSource, StoredMatrix, fingerprint, open_source
from core.errors import DataError
from core.presets.schema import DataSettings
from core.progress import Listener, ProgressEvent

#: "full" reads every value, "quick" some cells of each file, "tables" none.
Scope = Literal["full", "quick", "tables"]
#: obs columns that name technical groups, in CELLxGENE and elsewhere.
_BATCH_COLUMNS = ("batch", "assay")
#: Values of a chunk if it were dense: 64 MB of float32.
_CHUNK_VALUES = 2**24
_MOST_ROWS = 8_192
#: Cells that "quick" reads at the start, in the middle and at the end of a file.
_QUICK_CELLS = 2_048


@dataclass(frozen=True)
class Expression:
    """Sums over the values of a file's matrix."""

    #: (cells read,), row of each in the file, ascending.
    rows: NDArray[np.int64]
    #: (cells read,), library size: sum of the counts, or of expm1 of the log values.
    library_sizes: NDArray[np.float32]
    #: (cells read,), genes that are not zero.
    genes_per_cell: NDArray[np.int32]
    #: (genes of the file,), cells read that express the gene.
    cells_per_gene: NDArray[np.int64]
    largest: float

    @property
    def n_values(self) -> int:
        """Values that are not zero, in the cells read."""
        return int(self.genes_per_cell.sum(dtype=np.int64))


@dataclass
class FileSummary:
    """What is known of a file, small enough to keep for all files at once."""

    name: str
    #: The split that the preset gives the file to, or "all".
    role: Role
    #: Errors that `tfx prepare` would raise for this file alone.
    faults: list[CheckRow] = field(default_factory=list)
    #: 0 if the file cannot be read.
    n_cells: int = 0
    #: (cells, columns), those with labels, donors and batches.
    obs: pd.DataFrame = field(default_factory=pd.DataFrame)
    #: Phenotype -> labels; None if the file lacks the column.
    labels: Mapping[str, Labels | None] = field(default_factory=dict)
    #: Labels of ``data.split.by``; None without such a column.
    donors: Labels | None = None
    #: Batch columns that the file has.
    batches: Mapping[str, Labels] = field(default_factory=dict)
    #: The matrix that is read, and how it is stored; None if none is fit.
    choice: MatrixChoice | None = None
    stored: StoredMatrix | None = None
    #: What the first cells of the other matrices are.
    others: Mapping[str, Inspection] = field(default_factory=dict)
    #: None if the genes cannot be named.
    table: GeneTable | None = None
    #: Known truth of simulated cells, a JSON string.
    truth: str | None = None
    #: State of the file when it was read.
    fingerprint: str = ""
    #: None if no value has been read.
    expression: Expression | None = None

    @property
    def columns(self) -> list[str]:
        """Names of all obs columns."""
        return list(self.obs.attrs.get("columns", map(str, self.obs.columns)))

    @property
    def is_complete(self) -> bool:
        """Whether every cell has been read."""
        return self.expression is not None and len(self.expression.rows) == self.n_cells

    @contextmanager
    def catching(self, family: Family, check: str) -> Iterator[None]:
        """Turn a data error into a fault of this file."""
        try:
            yield
        except DataError as error:
            self.faults.append(fault_row(family, check, error, subject=self.name))

    def as_input(self, first_cell: int) -> StoreInput:
        """Return a file without faults as the input of a store; its cells begin at `first_cell`."""
        assert self.choice is not None, f"{self.name} has faults"
        assert self.stored is not None, f"{self.name} has faults"
        assert self.table is not None, f"{self.name} has faults"
        return StoreInput(
            name=self.name,
            fingerprint=self.fingerprint,
            role=self.role,
            n_cells=self.n_cells,
            first_cell=first_cell,
            obs=self.obs,
            choice=self.choice,
            stored=self.stored,
            table=self.table,
            truth=self.truth,
        )


def survey_files(
    data: DataSettings, scope: Scope, on_progress: Listener
) -> tuple[list[FileSummary], list[CheckRow]]:
    """Read the files of a preset as far as the checks need.

    Returns a summary of each file, in the order of the preset, and faults of the list of files.
    Progress stages are "checking files" and, unless only tables are read, "reading cells".

    Raises
    ------
    ConfigurationError
        A file is listed twice, or there is no such built-in data set.
    """
    files, faults = _list_files(data)
    built_in: dict[str, CellSource] = {}  # made once: a simulation takes seconds

    def open_file(name: str) -> CellSource:
        if not name.startswith(BUILTIN_PREFIX):
            return open_source(name)
        if name not in built_in:
            built_in[name] = open_source(name)
        return built_in[name]

    for done, one in enumerate(files):
        on_progress(ProgressEvent("checking files", done, len(files)))
        _read_tables(one, open_file, data, every_matrix=scope != "tables")
    on_progress(ProgressEvent("checking files", len(files), len(files)))
    if scope == "tables":
        return files, faults
    fit = [one for one in files if one.choice]
    n_wanted, n_done = sum(_n_read(one, scope) for one in fit), 0
    for one in fit:

        def tick(n_cells: int, before: int = n_done) -> None:
            on_progress(ProgressEvent("reading cells", before + n_cells, n_wanted))

        _read_values(one, open_file, scope, tick)
        n_done += _n_read(one, scope)
    return files, faults


def _list_files(data: DataSettings) -> tuple[list[FileSummary], list[CheckRow]]:
    """Expand patterns one by one: one that matches nothing leaves the others."""
    faults: list[CheckRow] = []
    lists: dict[str, Sequence[str]] = {}
    for key in ("files", "validation_files", "test_files"):
        found: list[str] = []
        for pattern in getattr(data, key):
            try:
                found += expand_files([pattern], allow_missing=True)
            except DataError as error:
                faults.append(fault_row("files", "readable", error, subject=pattern))
        lists[f"data.{key}"] = expand_files(found, allow_missing=True)
    check_overlap(lists)
    roles: tuple[Role, ...] = ("all", "validation", "test")
    if data.validation_files and data.test_files:
        roles = ("train", "validation", "test")
    files = [
        FileSummary(name, role)
        for role, names in zip(roles, lists.values(), strict=True)
        for name in names
    ]
    return files, faults


def _read_tables(
    one: FileSummary,
    open_file: Callable[[str], CellSource],
    data: DataSettings,
    *,
    every_matrix: bool,
) -> None:
    """Read the tables of a file and look at its matrices."""
    # A built-in data set is not closed: it is read again.
    with one.catching("files", "readable"), closing(open_file(one.name)) as source:
        matrices = source.matrices()
        has_genes = not matrices or any(len(source.var(matrix)) for matrix in matrices)
        if source.n_cells == 0 or not has_genes:
            what = "genes" if source.n_cells else "cells"
            message = f"{one.name}: holds no {what}; leave the file out or check how it was written"
            raise DataError(message)
        _read_obs(one, source, data)
        one.truth, one.fingerprint = source.truth, fingerprint(one.name)
        one.n_cells = source.n_cells
        with one.catching("matrix", "values"):
            choice = choose_matrix(source, data.matrix)
            one.stored = source.stored(choice.matrix)
            one.choice = choice
        if not matrices:
            return
        # Genes are checked even if no matrix is fit, so that both faults are reported at once.
        matrix = matrices[0] if one.choice is None else one.choice.matrix
        with one.catching("genes", "gene ids"):
            where = f"{one.name} ({matrix})"
            one.table = choose_gene_ids(source.var(matrix), data.gene_ids, where)
        if every_matrix and one.choice is not None:
            one.others = _inspect_others(source, matrices, one.choice.matrix)


def _read_obs(one: FileSummary, source: CellSource, data: DataSettings) -> None:
    """Read the obs columns of phenotypes, donors and batches."""
    phenotypes = requested_phenotypes(data)
    by = data.split.by
    obs = source.obs_columns({*(phenotype.column for phenotype in phenotypes), by, *_BATCH_COLUMNS})
    labels: dict[str, Labels | None] = dict.fromkeys(phenotype.name for phenotype in phenotypes)
    for phenotype in phenotypes:
        try:
            labels[phenotype.name] = read_labels(obs, phenotype, where=one.name)
        except DataError as error:
            one.faults.append(fault_row("phenotypes", "coverage", error, subject=phenotype.name))

    def read(column: str) -> Labels | None:
        try:
            wanted = PhenotypeColumn(column, column, explicit=False)
            return read_labels(obs, wanted, where=one.name)
        except DataError:  # the column holds a measurement
            return None

    one.obs, one.labels = obs, labels
    one.donors = None if by == "cells" else read(by)
    one.batches = {column: found for column in _BATCH_COLUMNS if (found := read(column))}


def _inspect_others(source: CellSource, matrices: list[str], chosen: str) -> dict[str, Inspection]:
    """Look at the first cells of the matrices that are not read."""
    others: dict[str, Inspection] = {}
    for matrix in matrices:
        if matrix == chosen:
            continue
        try:
            others[matrix] = inspect_matrix(source, matrix)
        except DataError:  # not needed, so not a fault
            continue
        source.release()
    return others


def _read_values(
    one: FileSummary,
    open_file: Callable[[str], CellSource],
    scope: Scope,
    tick: Callable[[int], None],
) -> None:
    """Read the values of the chosen matrix, up to the first value that prepare cannot use."""
    choice = one.choice
    assert choice is not None, "only files with a fit matrix are read"
    rows, library_sizes, genes_per_cell = [], [], []
    cells_per_gene = np.zeros(0, dtype=np.int64)
    largest, n_read = 0.0, 0
    with one.catching("files", "readable"), closing(open_file(one.name)) as source:
        n_genes = len(source.var(choice.matrix))
        n_rows = int(np.clip(_CHUNK_VALUES // max(n_genes, 1), 64, _MOST_ROWS))
        cells_per_gene = np.zeros(n_genes, dtype=np.int64)
        for first, chunk in _chunks(source, choice.matrix, n_rows, _ranges(one.n_cells, scope)):
            n_faults = len(one.faults)
            with one.catching("matrix", "every value"):
                check_chunk(chunk, choice, source, first)
            if len(one.faults) > n_faults:
                break
            values = chunk.data.astype(np.float64)
            counts = np.expm1(values) if choice.state == MatrixState.LOG1P else values
            rows.append(np.arange(first, first + chunk.shape[0]))
            library_sizes.append(row_sums(chunk, counts).astype(np.float32))
            genes_per_cell.append(np.diff(chunk.indptr).astype(np.int32))
            cells_per_gene += np.bincount(chunk.indices, minlength=n_genes)
            largest = max(largest, float(values.max(initial=0.0)))
            n_read += chunk.shape[0]
            tick(n_read)
    if n_read:
        one.expression = Expression(
            np.concatenate(rows),
            np.concatenate(library_sizes),
            np.concatenate(genes_per_cell),
            cells_per_gene,
            largest,
        )


def _chunks(
    source: CellSource, matrix: str, n_rows: int, ranges: list[tuple[int, int]]
) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """First row and CSR of each chunk."""
    for start, stop in ranges:
        first = start
        for chunk in source.chunks(matrix, n_rows, start=start, stop=stop):
            yield first, chunk
            first += chunk.shape[0]


def _ranges(n_cells: int, scope: Scope) -> list[tuple[int, int]]:
    """Rows to read, as (start, stop)."""
    if scope == "full" or n_cells <= 3 * _QUICK_CELLS:
        return [(0, n_cells)]
    starts = (0, (n_cells - _QUICK_CELLS) // 2, n_cells - _QUICK_CELLS)
    return [(start, start + _QUICK_CELLS) for start in starts]


def _n_read(one: FileSummary, scope: Scope) -> int:
    return sum(stop - start for start, stop in _ranges(one.n_cells, scope))
