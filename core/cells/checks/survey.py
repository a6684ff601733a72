"""Reading for the checks: one file open at a time, one chunk of its matrix in memory.

First the tables and a first look at the matrices of every file, then the values. An error of a file
becomes a fault of its summary, and the other files are still read. `LabelTable` joins the labels of
all files: each combination with its cells.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.cell_copies import PRIMARY_COLUMN, gene_keys, hash_cells
from core.cells.checks.report import CheckRow, Family, fault_row
from core.cells.file_patterns import BUILTIN_PREFIX, check_overlap, expand_files
from core.cells.gene_join import join_genes
from core.cells.genes import GeneTable, choose_gene_ids
from core.cells.matrix_choice import Inspection, choose_matrix, inspect_matrix, of_one_kind
from core.cells.matrix_state import CellChunk, MatrixChoice, MatrixState, genes_of, read_cells
from core.cells.phenotypes import (
    MISSING,
    Labels,
    PhenotypeColumn,
    count_joined,
    count_missing,
    join_labels,
    read_labels,
    requested_phenotypes,
)
from core.cells.reading import fingerprint, open_source
from core.cells.sources import TRUTH_KEY, CellSource, StoredMatrix
from core.errors import DataError
from core.presets.schema import DataSettings
from core.progress import Listener, ProgressEvent

#: "full" reads every value, "quick" some cells of each file, "tables" none.
Scope = Literal["full", "quick", "tables"]
Codes = NDArray[np.int64]
Role = Literal["all", "train", "validation", "test"]
#: obs columns that name technical groups, in CELLxGENE and elsewhere.
_BATCH_COLUMNS = ("batch", "assay")
#: Values of a chunk if it were dense: 64 MB of float32.
_CHUNK_VALUES = 2**24
_MOST_ROWS = 8_192
#: Cells that "quick" reads at the start, in the middle and at the end of a file.
_QUICK_CELLS = 2_048
#: The codes of all cells at once would be the largest memory of a check.
_BLOCK_CELLS = 2**20


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
    #: (cells read,), as of `core.cells.cell_copies.hash_cells` over the genes of the store.
    hashes: NDArray[np.uint64]
    evidence: NDArray[np.uint8]

    @property
    def n_values(self) -> int:
        """Values that are not zero, in the cells read."""
        return int(self.genes_per_cell.sum(dtype=np.int64))


@dataclass(frozen=True)
class StoreInput:
    """One source with the decisions about it; the source itself is closed again."""

    #: As the preset names it, and the state it was seen in.
    name: str
    fingerprint: str
    #: The split that the preset gave it to, or "all".
    role: Role
    #: Its cells, and its first among those of all sources.
    n_cells: int
    first_cell: int
    #: (cells, columns), with those that phenotypes and split need.
    obs: pd.DataFrame
    choice: MatrixChoice
    stored: StoredMatrix
    table: GeneTable
    #: Known truth of simulated cells, a JSON string.
    truth: str | None


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
    others: dict[str, Inspection] = field(default_factory=dict)
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
            self.faults.append(fault_row(family, check, error, self.name))

    def as_input(self, first_cell: int) -> StoreInput:
        """Return a file without faults as the input of a store; its cells begin at `first_cell`."""
        assert not self.faults, self.name
        return StoreInput(
            *(self.name, self.fingerprint, self.role, self.n_cells, first_cell, self.obs),
            *(self.choice, self.stored, self.table, self.truth),  # type: ignore[arg-type]
        )


def survey_files(
    data: DataSettings, scope: Scope, on_progress: Listener
) -> tuple[list[FileSummary], list[CheckRow]]:
    """Summarise each file, in the order of the preset; return faults of the list of files too.

    Progress stages are "checking files" and, unless only tables are read, "reading cells". Raises
    ConfigurationError as `check_data` does.
    """
    files, faults = _list_files(data)
    open_builtin = functools.cache(open_source)  # made once: a simulation takes seconds

    def open_file(one: FileSummary) -> CellSource:
        return (open_builtin if one.name.startswith(BUILTIN_PREFIX) else open_source)(one.name)

    for done, one in enumerate(files):
        on_progress(ProgressEvent("checking files", done, len(files)))
        with one.catching("files", "readable"), closing(open_file(one)) as source:
            _read_tables(one, source, data, every_matrix=scope != "tables")
    on_progress(ProgressEvent("checking files", len(files), len(files)))
    chosen = [one for one in files if one.choice is not None]
    choices = of_one_kind([one.choice for one in chosen if one.choice is not None])
    for one, choice in zip(chosen, choices, strict=True):
        one.choice = choice
    if scope == "tables":
        return files, faults
    ranges = {one.name: _ranges(one.n_cells, scope) for one in files if one.choice}
    sizes = {name: sum(stop - start for start, stop in of) for name, of in ranges.items()}
    keys = _gene_keys(files, data)
    n_before = 0
    for one in files:
        if one.choice is None:
            continue

        def tick(n_cells: int, n_before: int = n_before) -> None:
            on_progress(ProgressEvent("reading cells", n_before + n_cells, sum(sizes.values())))

        opening = functools.partial(open_file, one)
        _read_values(one, one.choice, opening, ranges[one.name], keys.get(one.name), tick)
        n_before += sizes[one.name]
    return files, faults


def _list_files(data: DataSettings) -> tuple[list[FileSummary], list[CheckRow]]:
    """Expand patterns one by one: one that matches nothing leaves the others."""
    faults: list[CheckRow] = []
    lists: dict[str, Sequence[str]] = {}
    for key in ("files", "validation_files", "test_files"):
        expanded: list[str] = []
        for pattern in getattr(data, key):
            try:
                expanded += expand_files([pattern], allow_missing=True)
            except DataError as error:
                faults.append(fault_row("files", "readable", error, pattern))
        lists[f"data.{key}"] = expand_files(expanded, allow_missing=True)
    check_overlap(lists)
    roles: tuple[Role, ...] = ("all", "validation", "test")
    if data.validation_files and data.test_files:
        roles = ("train", "validation", "test")
    names = zip(roles, lists.values(), strict=True)
    return [FileSummary(name, role) for role, found in names for name in found], faults


def _read_tables(
    one: FileSummary, source: CellSource, data: DataSettings, *, every_matrix: bool
) -> None:
    """Read the tables of a file and look at its matrices."""
    matrices = source.matrices()
    has_genes = not matrices or any(len(genes_of(source, matrix)) for matrix in matrices)
    if source.n_cells == 0 or not has_genes:
        what = "genes" if source.n_cells else "cells"
        raise DataError(
            f"{one.name}: holds no {what}; leave the file out or check how it was written"
        )
    _read_obs(one, source, data)
    truth = source.uns(TRUTH_KEY)
    one.truth = None if truth is None else str(truth)
    one.fingerprint = fingerprint(one.name)
    one.n_cells = source.n_cells
    with one.catching("matrix", "values"):
        choice = choose_matrix(source, data.matrix, values=data.values)
        one.stored = source.stored(choice.matrix)
        one.choice = choice
    if not matrices:
        return
    # Genes are checked even if no matrix is fit, so that both faults are reported at once.
    chosen = matrices[0] if one.choice is None else one.choice.matrix
    with one.catching("genes", "gene ids"):
        where = f"{one.name} ({chosen})"
        one.table = choose_gene_ids(genes_of(source, chosen), data.gene_ids, where)
    if not every_matrix or one.choice is None:
        return
    for matrix in matrices:
        if matrix != chosen:
            with suppress(DataError):  # not needed, so not a fault
                one.others[matrix] = inspect_matrix(source, matrix)
                source.release()


def _read_obs(one: FileSummary, source: CellSource, data: DataSettings) -> None:
    """Read the obs columns of phenotypes, donors and batches."""
    phenotypes = requested_phenotypes(data)
    by = data.split.by
    wanted = {*(phenotype.column for phenotype in phenotypes), by, *_BATCH_COLUMNS, PRIMARY_COLUMN}
    obs = source.obs_columns(wanted)
    labels: dict[str, Labels | None] = dict.fromkeys(phenotype.name for phenotype in phenotypes)
    for phenotype in phenotypes:
        try:
            labels[phenotype.name] = read_labels(obs, phenotype, where=one.name)
        except DataError as error:
            one.faults.append(fault_row("phenotypes", "coverage", error, phenotype.name))

    def read(column: str) -> Labels | None:
        with suppress(DataError):  # the column holds a measurement
            return read_labels(obs, PhenotypeColumn(column, column, explicit=False), where=one.name)
        return None

    one.obs, one.labels = obs, labels
    one.donors = None if by == "cells" else read(by)
    one.batches = {column: found for column in _BATCH_COLUMNS if (found := read(column))}


def _gene_keys(files: Sequence[FileSummary], data: DataSettings) -> dict[str, NDArray[np.uint64]]:
    """Return the keys of each file's genes by which its cells are hashed; {} if the genes do not meet."""
    named = [(one.name, one.table) for one in files if one.table is not None]
    if not named:
        return {}
    try:
        join = join_genes([table for _, table in named], [name for name, _ in named], data.join)
    except DataError:
        return {}
    return {name: gene_keys(of) for (name, _), of in zip(named, join.columns, strict=True)}


def _read_values(
    one: FileSummary,
    choice: MatrixChoice,
    open_file: Callable[[], CellSource],
    ranges: Sequence[tuple[int, int]],
    keys: NDArray[np.uint64] | None,
    tick: Callable[[int], None],
) -> None:
    """Read the values of the chosen matrix, up to the first value that prepare cannot use.

    ``keys`` (genes of the file,) are those of `hash_cells`; None hashes no cell.
    """
    read = []
    cells_per_gene = np.zeros(choice.n_genes, dtype=np.int64)
    largest, n_read = 0.0, 0
    with one.catching("files", "readable"), closing(open_file()) as source:
        keys = np.zeros(choice.n_genes, dtype=np.uint64) if keys is None else keys
        n_rows = int(np.clip(_CHUNK_VALUES // max(choice.n_genes, 1), 64, _MOST_ROWS))
        for cells in _cells(one, source, choice, n_rows, ranges):
            chunk = cells.values
            read.append(
                (
                    np.arange(cells.first_row, cells.first_row + chunk.shape[0]),
                    cells.library_sizes.astype(np.float32),
                    np.diff(chunk.indptr).astype(np.int32),
                    *hash_cells(chunk, keys, is_counts=choice.state == MatrixState.COUNTS),
                )
            )
            cells_per_gene += np.bincount(chunk.indices, minlength=len(cells_per_gene))
            largest = max(largest, float(chunk.data.max(initial=0.0)))
            n_read += chunk.shape[0]
            tick(n_read)
    if n_read:
        rows, sizes, genes, *hashed = (np.concatenate(column) for column in zip(*read, strict=True))
        one.expression = Expression(rows, sizes, genes, cells_per_gene, largest, *hashed)


def _cells(
    one: FileSummary,
    source: CellSource,
    choice: MatrixChoice,
    n_rows: int,
    ranges: Sequence[tuple[int, int]],
) -> Iterator[CellChunk]:
    """Give the cells of some rows; the first that prepare cannot use becomes a fault and ends them."""
    with one.catching("matrix", "every value"):
        for start, stop in ranges:
            yield from read_cells(source, choice, n_rows, start=start, stop=stop)


def _ranges(n_cells: int, scope: Scope) -> list[tuple[int, int]]:
    """Rows to read, as (start, stop)."""
    if scope == "full" or n_cells <= 3 * _QUICK_CELLS:
        return [(0, n_cells)]
    starts = (0, (n_cells - _QUICK_CELLS) // 2, n_cells - _QUICK_CELLS)
    return [(start, start + _QUICK_CELLS) for start in starts]


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
    #: Text of a missing label -> cells.
    missing: Mapping[str, int] = field(default_factory=dict)
    #: Label -> its other spellings -> cells.
    joined: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelTable:
    """The labels of all readable files: combinations that occur, and how many cells have each."""

    summaries: Sequence[FileSummary]
    data: DataSettings
    #: Those that any file has, in header order.
    phenotypes: Mapping[str, LabelColumn]
    #: None if no file has the column of the split.
    donors: LabelColumn | None
    files: LabelColumn
    #: Technical groups that obs names.
    batches: Sequence[LabelColumn]
    #: (rows,), cells of each combination.
    cells: Codes

    @property
    def n_cells(self) -> int:
        """Cells of all files."""
        return int(self.cells.sum())

    @property
    def obs_columns(self) -> list[str]:
        """Names of the obs columns of all files."""
        return list(dict.fromkeys(name for one in self.summaries for name in one.columns))

    def count(self, column: LabelColumn) -> Codes:
        """(values,), cells that have each value of a column."""
        known = column.codes >= 0
        codes, cells = column.codes[known], self.cells[known]
        return np.bincount(codes, cells, len(column.values)).astype(np.int64)

    def cross(self, first: LabelColumn, second: LabelColumn) -> Codes:
        """(values of first, values of second), cells with both values known."""
        counts = np.zeros((len(first.values), len(second.values)), dtype=np.int64)
        known = (first.codes >= 0) & (second.codes >= 0)
        np.add.at(counts, (first.codes[known], second.codes[known]), self.cells[known])
        return counts


def make_label_table(files: Sequence[FileSummary], data: DataSettings) -> LabelTable:
    """Join the labels of readable files; ages are grouped as `tfx prepare` does."""
    columns: dict[tuple[str, str, str], Sequence[Labels | None]] = {}
    for phenotype in requested_phenotypes(data):
        labels = join_labels(
            [one.labels[phenotype.name] for one in files],
            phenotype,
            decades=data.age_groups == "decade",
        )
        if any(part is not None for part in labels):
            columns["phenotype", phenotype.name, phenotype.column] = labels
    if any(one.donors is not None and one.donors.values for one in files):
        by = PhenotypeColumn("donor", data.split.by, explicit=False)
        columns["donor", "donor", data.split.by] = join_labels([one.donors for one in files], by)
    for name in dict.fromkeys(name for one in files for name in one.batches):
        columns["batch", name, name] = [one.batches.get(name) for one in files]
    values = [
        sorted({value for labels in column if labels for value in labels.values})
        for column in columns.values()
    ]
    codes_of = [{value: code for code, value in enumerate(known)} for known in values]
    counts = []
    for file, one in enumerate(files):
        of_file = [column[file] for column in columns.values()]
        for start in range(0, one.n_cells, _BLOCK_CELLS):
            block = np.full((min(_BLOCK_CELLS, one.n_cells - start), len(columns) + 1), MISSING)
            block[:, -1] = file
            for index, found in enumerate(of_file):
                if found is not None:
                    recode = np.array([*map(codes_of[index].get, found.values), MISSING], np.int64)
                    block[:, index] = recode[found.codes[start : start + _BLOCK_CELLS]]
            counts.append(pd.DataFrame(block).value_counts(sort=False))
    joined = pd.concat(counts)
    joined = joined.groupby(level=list(range(len(columns) + 1))).sum()
    rows = joined.index.to_frame().to_numpy(np.int64)
    made = [
        (
            kind,
            LabelColumn(
                name,
                column,
                tuple(values[index]),
                rows[:, index],
                count_missing(labels),
                count_joined(labels),
            ),
        )
        for index, ((kind, name, column), labels) in enumerate(columns.items())
    ]
    return LabelTable(
        summaries=files,
        data=data,
        phenotypes={column.name: column for kind, column in made if kind == "phenotype"},
        donors=next((column for kind, column in made if kind == "donor"), None),
        files=LabelColumn("file", "", tuple(one.name for one in files), rows[:, -1]),
        batches=[column for kind, column in made if kind == "batch"],
        cells=joined.to_numpy().astype(np.int64),
    )
