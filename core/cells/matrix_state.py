"""What the values of a matrix are: raw counts, log-normalised, or unfit; and which matrix to take.

Found by inspection, recorded, and never guessed silently: a first look at some cells chooses, and
`check_chunk` holds every further cell to it.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.phenotypes import suggest
from core.cells.sources import CellSource
from core.errors import DataError

#: Cells of the first look; every cell is checked later on.
_LOOK = 512
#: No natural log of one plus normalised counts is larger: log1p(1e6) is 13.8, one gene alone in a
#: cell normalised to a million.
LARGEST_LOG = 14.0
#: Sums that vary less than this (relative) come from normalisation, not from cells. float16 and
#: rounded values stay below, biological variation far above.
_CONSTANT = 0.01
#: Larger ones are no whole numbers in float32, in which expression is read.
LARGEST_COUNT = 2**24


class MatrixState(StrEnum):
    """What a matrix holds."""

    COUNTS = "counts"
    LOG1P = "log1p"
    NORMALISED = "normalised, not logged"
    LOG2 = "log2, not natural log"
    SCALED = "scaled (negative values)"
    NOT_FINITE = "NaN or infinite values"
    EMPTY = "only zeros"


#: What to do about a matrix that cannot be taken.
_REMEDY = {
    MatrixState.NORMALISED: "store raw counts, or take the log1p of it",
    MatrixState.LOG2: "store raw counts, or multiply by ln 2",
    MatrixState.SCALED: "set data.matrix to one with counts or log values ('raw', 'layers/NAME')",
    MatrixState.NOT_FINITE: "replace or drop them",
    MatrixState.EMPTY: "set data.matrix to one that holds expression",
}
_COUNT_WORDS = ("count", "umi")


@dataclass(frozen=True)
class Inspection:
    """What the first look at a matrix found."""

    state: MatrixState
    #: Largest finite value seen.
    largest: float = 0.0
    #: First offending cell and gene (row, column), or None.
    place: tuple[int, int] | None = None

    def describe(self) -> str:
        """State and range in words."""
        if self.state in {MatrixState.EMPTY, MatrixState.NOT_FINITE}:
            return str(self.state)
        return f"{self.state}, up to {self.largest:.4g}"


@dataclass(frozen=True)
class MatrixChoice:
    """The matrix taken from a source ("X", "raw" or "layers/NAME"), which holds counts or log1p."""

    matrix: str
    state: MatrixState
    #: Matrices not taken by "auto" -> why.
    passed_over: dict[str, str] = field(default_factory=dict)


def choose_matrix(source: CellSource, wanted: str) -> MatrixChoice:
    """Choose the matrix to read; DataError if it does not exist or holds neither counts nor log values.

    `wanted` names it, or is "auto": counts (X, layers named like counts, raw), else log-normalised
    values (X, raw, layers).
    """
    present = source.matrices()
    if wanted != "auto":
        if wanted not in present:
            raise DataError(
                f"{source.name}: no matrix '{wanted}' (data.matrix); {suggest(wanted, present)}"
            )
        found = inspect_matrix(source, wanted)
        if found.state not in {MatrixState.COUNTS, MatrixState.LOG1P}:
            raise DataError(_unfit(source, wanted, found))
        return MatrixChoice(wanted, found.state)
    if not present:
        raise DataError(
            f"{source.name}: holds no matrix (no X, raw or layers); add the expression values"
        )
    seen: dict[str, Inspection] = {}
    layers = [name for name in present if name.startswith("layers/")]
    counts_like = [name for name in layers if any(word in name.lower() for word in _COUNT_WORDS)]
    orders = (
        (MatrixState.COUNTS, ["X", *counts_like, "raw"]),
        (MatrixState.LOG1P, ["X", "raw", *layers]),
    )
    for state, order in orders:
        for matrix in filter(present.__contains__, order):
            if matrix not in seen:
                seen[matrix] = inspect_matrix(source, matrix)
            if seen[matrix].state == state:
                others = {name: look.describe() for name, look in seen.items() if name != matrix}
                return MatrixChoice(matrix, state, others)
    if len(seen) == 1:
        raise DataError(_unfit(source, *seen.popitem()))
    listed = "; ".join(f"{name}: {look.describe()}" for name, look in seen.items())
    raise DataError(
        f"{source.name}: no matrix holds raw counts or log1p values ({listed}); add one and set "
        f"data.matrix to it"
    )


def inspect_matrix(source: CellSource, matrix: str) -> Inspection:
    """Inspect the first cells of a matrix."""
    # A file may begin with one donor or type, but what its values are does not change.
    for chunk in source.chunks(matrix, _LOOK):
        if chunk.nnz:
            break
    else:
        return Inspection(MatrixState.EMPTY)
    values = chunk.data
    finite = np.isfinite(values)
    if not finite.all():
        return Inspection(MatrixState.NOT_FINITE, place=_place(chunk, ~finite))
    largest = float(values.max())
    if (values < 0).any():
        return Inspection(MatrixState.SCALED, largest, _place(chunk, values < 0))
    whole = values == np.rint(values)
    if whole.all():
        return Inspection(MatrixState.COUNTS, largest)
    if largest > LARGEST_LOG or constant_sum(row_sums(chunk, values)):
        return Inspection(MatrixState.NORMALISED, largest, _place(chunk, ~whole))
    natural = constant_sum(row_sums(chunk, np.expm1(values)))
    if not natural and constant_sum(row_sums(chunk, np.exp2(values) - 1)):
        return Inspection(MatrixState.LOG2, largest, _place(chunk, ~whole))
    return Inspection(MatrixState.LOG1P, largest)


def check_chunk(
    chunk: sparse.csr_matrix, choice: MatrixChoice, source: CellSource, first_row: int
) -> None:
    """Check that a chunk holds what the first look found; DataError names the first other value."""
    values = chunk.data
    checks: list[tuple[NDArray[np.bool_], str]] = [
        (~np.isfinite(values), "NaN or infinite"),
        (values < 0, "negative"),
    ]
    if choice.state == MatrixState.COUNTS:
        checks.append((values != np.rint(values), "not a whole number among counts"))
        checks.append((values >= LARGEST_COUNT, f"a count of {LARGEST_COUNT:,} or more"))
    else:
        checks.append((values > LARGEST_LOG, "too large for a log value"))
    for offending, what in checks:
        if offending.any():
            row, column = _place(chunk, offending)
            value = values[np.flatnonzero(offending)[0]]
            raise DataError(
                f"{source.name}: {choice.matrix} holds {value:.6g} ({what}) "
                f"{_name_place(source, choice.matrix, (first_row + row, column))}; correct the file "
                f"or set data.matrix to another matrix"
            )


def row_sums(chunk: sparse.csr_matrix, values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(cells,) sums of `values`, which are one for each of the chunk's values."""
    sums = np.zeros(chunk.shape[0])
    filled = np.flatnonzero(np.diff(chunk.indptr))  # reduceat gives an empty row its neighbour's
    if len(filled):
        sums[filled] = np.add.reduceat(values, chunk.indptr[filled], dtype=np.float64)
    return sums


def constant_sum(sums: NDArray[np.float64]) -> float | None:
    """Return the common sum of cells that have values, or None if they differ or are fewer than two."""
    sums = sums[sums > 0]
    if len(sums) < 2:
        return None
    middle = float(np.median(sums))
    return middle if float(np.ptp(sums)) <= _CONSTANT * middle else None


def _unfit(source: CellSource, matrix: str, found: Inspection) -> str:
    where = "" if found.place is None else f", first {_name_place(source, matrix, found.place)}"
    others = [name for name in source.matrices() if name != matrix]
    alternatives = f" (the file also has {', '.join(others)})" if others else ""
    return (
        f"{source.name}: {matrix} holds {found.describe()}{where}, where raw counts or log1p values "
        f"are needed; {_REMEDY[found.state]}{alternatives}"
    )


def _name_place(source: CellSource, matrix: str, place: tuple[int, int]) -> str:
    row, column = place
    gene = source.var(matrix).index[column]
    return f"at cell {source.obs_names[row]} (row {row}), gene {gene}"


def _place(chunk: sparse.csr_matrix, offending: NDArray[np.bool_]) -> tuple[int, int]:
    first = int(np.flatnonzero(offending)[0])
    row = int(np.searchsorted(chunk.indptr, first, side="right")) - 1
    return row, int(chunk.indices[first])
