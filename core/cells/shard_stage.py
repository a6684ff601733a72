"""First stage of preparing: a range of a source's rows, checked, joined to the store's genes, as a part.

Each task is a function of its own fields and writes one file, so tasks run in any order, in any
process, on any machine that sees the folder, and what is written already is not done again.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.matrix_state import MatrixChoice, MatrixState, check_chunk, row_sums
from core.cells.random_order import cell_keys, fences
from core.cells.reading import CellSource, open_source
from core.cells.store import gene_index_type
from core.cells.store_parts import Part, write_part
from core.errors import MachineError

__all__ = [
    "PartSummary",
    "ShardTask",
    "close_source",
    "in_order",
    "rows_of",
    "summarise_part",
    "write_shard",
]

T = TypeVar("T", bound=np.generic)

#: Raised whenever the same task would write other bytes: old parts are then not reused.
_PART_VERSION = 1


@dataclass(frozen=True)
class ShardTask:
    """Rows [start, stop) of one matrix.

    Attributes
    ----------
    source, fingerprint
        What `open_source` takes, and the state of the file when the task was planned.
    choice
        Matrix and what it holds.
    columns
        ``.npy`` file: (genes of the source,) int32 column in the store, -1 where left out. Its name
        tells its content.
    n_genes
        Columns of the store.
    seed
        Of the order of cells.
    folder
        Where the part goes; tasks of one folder share it among machines.
    rows_at_once
        Rows of a chunk; changes memory, not bytes.
    """

    source: str
    fingerprint: str
    choice: MatrixChoice
    start: int
    stop: int
    columns: Path
    n_genes: int
    seed: int
    folder: Path
    rows_at_once: int = 1_024

    @property
    def path(self) -> Path:
        """The part's file, named by everything that its bytes depend on."""
        record = [
            _PART_VERSION, self.source, self.fingerprint, self.choice.matrix,
            str(self.choice.state), self.start, self.stop, self.columns.stem, self.n_genes, self.seed,
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()
        return self.folder / f"{digest[:24]}.part"


@dataclass(frozen=True)
class PartSummary:
    """What the driver needs to know of a part.

    Attributes
    ----------
    n_cells, n_values
        Sizes.
    cells, values
        (BUCKETS + 1,), where each range of keys begins, in cells and in values.
    """

    n_cells: int
    n_values: int
    cells: NDArray[np.int64]
    values: NDArray[np.int64]


def write_shard(task: ShardTask) -> None:
    """Write the part of a task, unless it is there.

    Raises
    ------
    DataError
        The file cannot be read, or holds values that are not what its first cells promised; the
        message names the place.
    MachineError
        The part cannot be written.
    """
    if task.path.exists():
        return
    columns: NDArray[np.int32] = np.load(task.columns)
    has_them = np.array_equal(columns, np.arange(task.n_genes))
    source = _opened(task)
    n_cells = task.stop - task.start
    lengths = np.zeros(n_cells, dtype=np.int64)
    totals = np.zeros(n_cells)
    genes: list[NDArray[Any]] = []
    values: list[NDArray[Any]] = []
    at = 0
    for chunk in source.chunks(
        task.choice.matrix, task.rows_at_once, start=task.start, stop=task.stop
    ):
        check_chunk(chunk, task.choice, source, task.start + at)
        cells = slice(at, at + chunk.shape[0])
        at += chunk.shape[0]
        expression = chunk.data
        if task.choice.state == MatrixState.LOG1P:
            expression = np.expm1(expression.astype(np.float64))
        totals[cells] = row_sums(chunk, expression)
        taken = chunk if has_them else _take_columns(chunk, columns, task.n_genes)
        lengths[cells] = np.diff(taken.indptr)
        genes += rows_of(taken.indices.astype(gene_index_type(task.n_genes)), taken.indptr)
        values += rows_of(_narrow(taken.data, task.choice.state), taken.indptr)
    keys = cell_keys(task.seed, task.source, task.start, task.stop)
    order = np.argsort(keys, kind="stable")
    of_cells = fences(keys[order])
    starts = np.concatenate(([0], np.cumsum(lengths[order])))
    arrays = {
        "cell_fences": of_cells,
        "value_fences": starts[of_cells],
        "keys": keys[order],
        "rows": order + task.start,
        "starts": starts,
        "totals": totals[order],
    }
    arrays["genes"] = in_order(genes, order)
    genes.clear()  # large, and not needed while values are put in order
    arrays["values"] = in_order(values, order)
    values.clear()
    try:
        write_part(task.path, arrays)
    except OSError as error:
        message = (
            f"{task.folder.parent}: a piece of the store cannot be written "
            f"({error.strerror or error}); free some space or mend the folder, then run the same "
            f"command to go on"
        )
        raise MachineError(message) from error


def summarise_part(path: Path) -> PartSummary:
    """Read what the driver needs of a part."""
    with Part(path) as part:
        return PartSummary(
            part.size("keys"),
            part.size("genes"),
            part.read("cell_fences"),
            part.read("value_fences"),
        )


def rows_of(values: NDArray[T], starts: NDArray[np.integer[Any]]) -> list[NDArray[T]]:
    """Ragged rows, as views: row i is ``values[starts[i]:starts[i + 1]]``."""
    borders = starts.tolist()
    return [values[start:stop] for start, stop in itertools.pairwise(borders)]


def in_order(rows: Sequence[NDArray[T]], order: NDArray[np.int64]) -> NDArray[T]:
    """Join ragged rows, at least one, in another order; types are widened to the widest."""
    # Row by row: a gather by flat indices takes ten times as long.
    return np.concatenate([rows[number] for number in order.tolist()])


def close_source() -> None:
    """Close the source of the last task; between tasks of one file it stays open."""
    global _last
    if _last is not None:
        _last[1].close()
    _last = None


_last: tuple[tuple[str, str], CellSource] | None = None


def _opened(task: ShardTask) -> CellSource:
    global _last
    key = (task.source, task.fingerprint)
    if _last is None or _last[0] != key:
        close_source()
        _last = (key, open_source(task.source))
    return _last[1]


def _take_columns(
    chunk: sparse.csr_matrix, columns: NDArray[np.int32], n_genes: int
) -> sparse.csr_matrix:
    """Give a chunk the store's columns, ascending within each cell."""
    new = columns[chunk.indices]
    data, indptr = chunk.data, chunk.indptr
    kept = new >= 0
    if not kept.all():
        indptr = np.concatenate(([0], np.cumsum(kept)))[indptr]
        data, new = data[kept], new[kept]
    taken = sparse.csr_matrix((data, new, indptr), shape=(chunk.shape[0], n_genes))
    taken.sort_indices()  # checks first, and most files need none
    return taken


def _narrow(values: NDArray[np.float32], state: MatrixState) -> NDArray[Any]:
    if state != MatrixState.COUNTS:
        return values
    is_small = values.max(initial=0) <= np.iinfo(np.uint16).max
    return values.astype(np.uint16 if is_small else np.uint32)
