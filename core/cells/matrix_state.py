"""What a matrix of a source gives: its cells as counts or as log1p of counts per 10,000.

`matrix_choice` finds which matrix is read and on which scale its values are; `read_cells` brings every
chunk to counts or log1p values, holds each value to that scale, and finds library sizes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.genes import other_features
from core.cells.normalisation import count_scales, log_normalise
from core.cells.sources import CellSource
from core.cells.value_scale import ValueScale, are_whole, recover_counts
from core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

#: No natural log of one plus normalised counts is larger: log1p(1e6) is 13.8, one gene alone in a
#: cell normalised to a million.
LARGEST_LOG = 14.0
#: Larger ones are no whole numbers in float32, in which expression is read.
LARGEST_COUNT = 2**24
#: Sums of later cells may differ by this much (relative) from the total that the sample has.
_OTHER_TOTAL = 0.02
#: Library sizes are not smaller than sums of some of the counts, but for rounding errors.
_ROUNDING = 1e-6


class MatrixState(StrEnum):
    """What a matrix gives."""

    COUNTS = "counts"
    LOG1P = "log1p"
    UNKNOWN = "values of an unknown scale"
    SCALED = "scaled (negative values)"
    NOT_FINITE = "NaN or infinite values"
    EMPTY = "only zeros"


@dataclass(frozen=True)
class MatrixChoice:
    """The matrix taken from a source ("X", "raw" or "layers/NAME"), which gives counts or log1p."""

    matrix: str
    state: MatrixState
    scale: ValueScale
    #: Genes of the matrix.
    n_genes: int
    #: Matrices not taken by "auto" -> why.
    passed_over: dict[str, str] = field(default_factory=dict)
    #: Whether values are taken for log1p because the user, or tfx itself, says so.
    is_assumed: bool = False
    #: Where library sizes come from, if not from the matrix: an obs column, or another matrix.
    library: "str | MatrixChoice | None" = None
    #: What the user should know about the choice, and what may cost accuracy, in sentences.
    remarks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return what the matrix holds, in words: "counts", "log1p", or what is made of it."""
        if self.state == MatrixState.COUNTS and self.scale == ValueScale(unit="one"):
            return str(self.state)
        if self.state == MatrixState.LOG1P and self.scale.is_plain_log:
            return str(self.state)
        made = "counts" if self.state == MatrixState.COUNTS else "log1p of counts per 10,000"
        return f"{self.scale.describe()}, read as {made}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What was recognised, if values are not read as they are stored; and the remarks."""
        what = self.describe()
        is_as_stored = what == str(self.state)
        return self.remarks if is_as_stored else (f"{self.matrix} holds {what}", *self.remarks)


def genes_of(source: CellSource, matrix: str) -> "pd.DataFrame":
    """(genes, columns) of a matrix, without features that are not genes."""
    var, columns = source.var(matrix), gene_columns(source, matrix)
    return var if columns is None else var.iloc[columns]


def gene_columns(source: CellSource, matrix: str) -> NDArray[np.int64] | None:
    """(genes,) columns of a matrix that are genes, or None if all are."""
    is_other, _ = other_features(source.var(matrix))
    return np.flatnonzero(~is_other) if is_other.any() else None


def gene_chunks(
    source: CellSource, matrix: str, rows_per_chunk: int, *, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """First row and values, (cells, genes), of each chunk; features that are not genes are left out."""
    columns = gene_columns(source, matrix)
    for chunk in source.chunks(matrix, rows_per_chunk, start=start, stop=stop):
        yield start, chunk if columns is None else sparse.csr_matrix(chunk[:, columns])
        start += chunk.shape[0]


@dataclass(frozen=True)
class CellChunk:
    """Some cells of a matrix, by genes."""

    #: Row of the first in the source.
    first_row: int
    #: (cells, genes) float32: counts, or log1p of counts per 10,000.
    values: sparse.csr_matrix
    state: MatrixState
    #: (cells,) library sizes that are not the sums of the counts.
    known_sizes: NDArray[np.float64] | None = None

    @cached_property
    def library_sizes(self) -> NDArray[np.float64]:
        """(cells,) counts over all genes; of log values the sum of the normalised counts."""
        if self.known_sizes is not None:
            return self.known_sizes
        values = self.values.data
        if self.state != MatrixState.COUNTS:
            values = np.expm1(values.astype(np.float64))
        return row_sums(self.values, values)

    def log1p(self) -> sparse.csr_matrix:
        """(cells, genes) log1p of counts per 10,000."""
        chunk = self.values
        if self.state != MatrixState.COUNTS:
            return chunk
        scales = count_scales(self.library_sizes).astype(np.float32)
        values = log_normalise(chunk.data, np.repeat(scales, np.diff(chunk.indptr)))
        return sparse.csr_matrix((values, chunk.indices, chunk.indptr), shape=chunk.shape)


def read_cells(
    source: CellSource,
    choice: MatrixChoice,
    rows_per_chunk: int,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[CellChunk]:
    """Give the cells of rows [start, stop) in order, as the choice says.

    DataError names the first value that contradicts what the sampled cells hold.
    """
    of_obs, of_raw = None, None
    if isinstance(choice.library, MatrixChoice):
        of_raw = read_cells(source, choice.library, rows_per_chunk, start=start, stop=stop)
    elif choice.library is not None:
        of_obs = numbers_of(source.obs_columns([choice.library])[choice.library])
    for first, chunk in gene_chunks(source, choice.matrix, rows_per_chunk, start=start, stop=stop):
        rows = np.arange(first, first + chunk.shape[0])
        cells = convert_cells(chunk, choice, source, rows)
        if of_raw is not None:
            cells = replace(cells, known_sizes=next(of_raw).library_sizes)
        elif of_obs is not None:
            cells = replace(cells, known_sizes=of_obs[rows])
        if choice.library is not None:
            _check_sizes(cells, choice, source)
        yield cells


def _check_sizes(cells: CellChunk, choice: MatrixChoice, source: CellSource) -> None:
    sums, sizes = row_sums(cells.values, cells.values.data), cells.library_sizes
    if (bad := np.flatnonzero(~(sizes >= sums * (1 - _ROUNDING)))).size:
        row = cells.first_row + int(bad[0])
        where = choice.library if isinstance(choice.library, str) else "raw"
        raise DataError(
            f"{source.name}: cell {source.obs_names[row]} (row {row}) has {sums[bad[0]]:,.7g} counts in "
            f"{choice.matrix}, but a library size of {sizes[bad[0]]:,.7g} in {where}; correct or "
            f"remove it"
        )


def numbers_of(column: "pd.Series[Any]") -> NDArray[np.float64]:
    """(cells,) numbers of an obs column, NaN where it has none."""
    import pandas as pd

    return pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)


def convert_cells(
    chunk: sparse.csr_matrix, choice: MatrixChoice, source: CellSource, rows: NDArray[np.int64]
) -> CellChunk:
    """Bring values to counts or log1p; DataError names the first that contradicts the choice."""
    values, scale = chunk.data, choice.scale
    first_row = int(rows[0]) if len(rows) else 0

    def check(offending: NDArray[np.bool_], what: str) -> None:
        if not offending.any():
            return
        row, column = place_of(chunk, offending)
        value = values[np.flatnonzero(offending)[0]]
        raise DataError(
            f"{source.name}: {choice.matrix} holds {value:.6g} ({what}) "
            f"{name_place(source, choice.matrix, (int(rows[row]), column))}; correct the file "
            f"or set data.matrix to another matrix"
        )

    def made(data: NDArray[Any], sizes: NDArray[np.float64] | None = None) -> CellChunk:
        if data is values:
            return CellChunk(first_row, chunk, choice.state)
        of_genes = (data.astype(np.float32, copy=False), chunk.indices, chunk.indptr)
        cells = sparse.csr_matrix(of_genes, shape=chunk.shape)
        return CellChunk(first_row, cells, choice.state, sizes)

    check(~np.isfinite(values), "NaN or infinite")
    check(values < 0, "negative")
    if choice.state == MatrixState.COUNTS:
        if scale.is_counts:
            counts, sizes = np.rint(values), None
            if (values == counts).all():
                counts = values
            else:
                check(~are_whole(values), "not a whole number among counts")
        else:
            found = recover_counts(values, chunk.indptr, scale)
            bad = np.repeat(~found.fits, np.diff(chunk.indptr))
            check(bad, f"in a cell that does not hold {scale.describe()}")
            counts = found.counts
            sizes = found.library_sizes if scale.total and not scale.is_complete else None
        check(counts >= LARGEST_COUNT, f"a count of {LARGEST_COUNT:,} or more")
        return made(counts, sizes)
    if scale.is_plain_log:
        check(values > LARGEST_LOG, "too large for a log value")
        if not choice.is_assumed:
            _check_totals(row_sums(chunk, np.expm1(values)), choice, source, rows)
        return made(values)
    linear = scale.linear(values)
    sums = row_sums(chunk, linear)
    if not choice.is_assumed:
        _check_totals(sums, choice, source, rows)
    totals = sums if scale.total is None else np.full(len(sums), scale.total)
    scales = np.repeat(count_scales(totals), np.diff(chunk.indptr))
    return made(log_normalise(linear, scales))


def _check_totals(
    sums: NDArray[np.float64], choice: MatrixChoice, source: CellSource, rows: NDArray[np.int64]
) -> None:
    """Check that the cells add up to the total that the sampled cells have, or to less without some genes."""
    total = choice.scale.total
    if total is None:
        return
    bad = sums > total * (1 + _OTHER_TOTAL)
    if choice.scale.is_complete:
        bad |= (sums > 0) & (sums < total * (1 - _OTHER_TOTAL))
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{source.name}: {choice.matrix} holds {choice.scale.describe()}, but cell "
            f"{source.obs_names[rows[at]]} (row {rows[at]}) adds up to {sums[at]:,.7g}; normalise all "
            f"cells alike, or store raw counts"
        )


def row_sums(chunk: sparse.csr_matrix, values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(cells,) sums of `values`, which are one for each of the chunk's values."""
    sums = np.zeros(chunk.shape[0])
    filled = np.flatnonzero(np.diff(chunk.indptr))  # reduceat gives an empty row its neighbour's
    if len(filled):
        sums[filled] = np.add.reduceat(values, chunk.indptr[filled], dtype=np.float64)
    return sums


def name_place(source: CellSource, matrix: str, place: tuple[int, int]) -> str:
    """Name a cell and a gene of a matrix by (row, column)."""
    row, column = place
    gene = genes_of(source, matrix).index[column]
    return f"at cell {source.obs_names[row]} (row {row}), gene {gene}"


def place_of(chunk: sparse.csr_matrix, offending: NDArray[np.bool_]) -> tuple[int, int]:
    """Row and column of the first offending value."""
    first = int(np.flatnonzero(offending)[0])
    row = int(np.searchsorted(chunk.indptr, first, side="right")) - 1
    return row, int(chunk.indices[first])
