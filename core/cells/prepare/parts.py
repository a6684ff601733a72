"""First stage of preparing: a range of a source's rows, checked and joined to the store's genes, as a part.

A part is one file that holds its cells in the order of their keys, so any range of keys is one stretch
of each of its arrays. It appears under its name whole or not at all. Each task depends on its own fields
alone and writes one file, so tasks run in any order, in any process, on any machine that sees the folder,
and finished parts are not made again, if their bytes are those that were written: a part ends with its
checksum.
"""

import contextlib
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_copies import gene_keys, hash_cells
from core.cells.matrix_state import MatrixChoice, MatrixState, read_cells
from core.cells.reading import open_source
from core.cells.sources import CellSource
from core.cells.store import gene_index_type
from core.errors import MachineError
from core.files import replacing
from core.random_streams import splitmix64
from core.wording import naming_write_errors

T = TypeVar("T", bound=np.generic)

#: Equal ranges of keys whose borders a part remembers; a power of two.
BUCKETS = 4_096
#: Raised whenever the same task would write other bytes: old parts are then not reused.
_PART_VERSION = 4
#: Behind an error of the disk.
CONTINUING = "; free some space or mend the folder, then run the same command to continue"
_ALIGNMENT = 64
_LENGTH_BYTES = 8
_CHECKSUM_BYTES = 4
#: A part is compared with its checksum by pieces of this size.
_READ_BYTES = 2**20
#: macOS and Windows have none.
_advise = getattr(os, "posix_fadvise", None)


@dataclass(frozen=True)
class ShardTask:
    """Rows [start, stop) of one matrix of a source."""

    #: What `open_source` takes, and the state of the file when the task was planned.
    source: str
    fingerprint: str
    choice: MatrixChoice
    start: int
    stop: int
    #: ``.npy`` file, named by its content: (genes of the source,) int32 column in the store, -1 where
    #: left out; features that are not genes are none of them.
    columns: Path
    #: Columns of the store.
    n_genes: int
    #: Of the order of cells.
    seed: int
    #: Where the part goes; tasks of one folder may be on several machines.
    folder: Path
    #: Rows of a chunk; changes memory, not bytes.
    rows_at_once: int

    @property
    def path(self) -> Path:
        """The part's file, named by everything that its bytes depend on."""
        record = [_PART_VERSION, self.source, self.fingerprint, self.choice.matrix]
        record += [str(self.choice.state), self.start, self.stop]
        record += [self.columns.stem, self.n_genes, self.seed]
        if self.choice.describe() != self.choice.state or self.choice.library is not None:
            record += [repr(self.choice.scale), repr(self.choice.library)]
        digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()
        return self.folder / f"{digest[:24]}.part"


def write_shard(task: ShardTask) -> None:
    """Write the part of a task, unless it exists."""
    if task.path.exists():
        return
    columns: NDArray[np.int32] = np.load(task.columns)
    has_them = np.array_equal(columns, np.arange(task.n_genes))
    source = _opened(task)
    is_counts = task.choice.state == MatrixState.COUNTS
    n_cells = task.stop - task.start
    lengths = np.zeros(n_cells, dtype=np.int64)
    totals = np.zeros(n_cells)
    hashes, evidence = np.zeros(n_cells, dtype=np.uint64), np.zeros(n_cells, dtype=np.uint8)
    gene_key = gene_keys(np.arange(task.n_genes, dtype=np.int32))
    genes: list[NDArray[Any]] = []
    values: list[NDArray[Any]] = []
    at = 0
    chunks = read_cells(source, task.choice, task.rows_at_once, start=task.start, stop=task.stop)
    for read in chunks:
        chunk = read.values
        cells = slice(at, at + chunk.shape[0])
        at += chunk.shape[0]
        totals[cells] = read.library_sizes
        taken = chunk if has_them else _take_columns(chunk, columns, task.n_genes)
        lengths[cells] = np.diff(taken.indptr)
        hashes[cells], evidence[cells] = hash_cells(taken, gene_key, is_counts=is_counts)
        genes += rows_of(taken.indices.astype(gene_index_type(task.n_genes)), taken.indptr)
        stored = taken.data
        if is_counts:
            is_small = stored.max(initial=0) <= np.iinfo(np.uint16).max
            stored = stored.astype(np.uint16 if is_small else np.uint32)
        values += rows_of(stored, taken.indptr)
    keys = _cell_keys(task.seed, task.source, task.start, task.stop)
    order = np.argsort(keys, kind="stable")
    # Where each equal range of keys begins.
    borders = np.arange(1, BUCKETS, dtype=np.uint64) * np.uint64(2**64 // BUCKETS)
    inner = np.searchsorted(keys[order], borders, side="left")
    fences = np.concatenate(([0], inner, [n_cells])).astype(np.int64)
    starts = np.concatenate(([0], np.cumsum(lengths[order])))
    arrays = {
        "cell_fences": fences,
        "value_fences": starts[fences],
        "keys": keys[order],
        "rows": order + task.start,
        "starts": starts,
        "totals": totals[order],
        "hashes": hashes[order],
        "evidence": evidence[order],
    }
    arrays["genes"] = in_order(genes, order)
    genes.clear()  # large, and not needed while values are put in order
    arrays["values"] = in_order(values, order)
    values.clear()
    with naming_write_errors(f"{task.folder.parent}: a piece of the store", CONTINUING):
        write_part(task.path, arrays)


def write_part(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write one-dimensional arrays into one file: a JSON header, their bytes, the CRC-32 of both."""
    header = {name: [str(array.dtype), len(array)] for name, array in arrays.items()}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + _LENGTH_BYTES) % _ALIGNMENT)
    with replacing(path) as partial, partial.open("wb") as file:
        checksum = 0
        start = len(text).to_bytes(_LENGTH_BYTES, "little") + text
        pieces: list[Any] = [np.ascontiguousarray(array) for array in arrays.values()]
        for piece in [start, *pieces]:
            file.write(piece)
            checksum = zlib.crc32(piece, checksum)
        file.write(checksum.to_bytes(_CHECKSUM_BYTES, "little"))
        file.flush()
        os.fsync(file.fileno())


def is_whole(path: Path) -> bool:
    """Whether a part exists and its bytes are those that were written."""
    checksum = 0
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - _CHECKSUM_BYTES
            while left > 0:
                piece = file.read(min(left, _READ_BYTES))
                checksum = zlib.crc32(piece, checksum)
                left -= len(piece) or left
            return file.read() == checksum.to_bytes(_CHECKSUM_BYTES, "little")
    except OSError:  # it does not exist, or the disk cannot read it any more
        return False


class Part:
    """A part, open for reading stretches of its arrays.

    A file that is not a whole part is a MachineError: a disk that lost power may keep a name without
    its bytes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        try:
            length = int.from_bytes(self._file.read(_LENGTH_BYTES), "little")
            header: dict[str, tuple[str, int]] = json.loads(self._file.read(length))
        except (ValueError, MemoryError):
            self._file.close()
            raise MachineError(self._damage()) from None
        #: Names of the arrays in the order in which they were written.
        self.names = tuple(header)
        self._places: dict[str, tuple[np.dtype[Any], int, int]] = {}
        at = _LENGTH_BYTES + length
        for name, (kind, count) in header.items():
            dtype = np.dtype(kind)
            self._places[name] = (dtype, count, at)
            at += dtype.itemsize * count
        if os.fstat(self._file.fileno()).st_size != at + _CHECKSUM_BYTES:
            self._file.close()
            raise MachineError(self._damage())

    def __enter__(self) -> Self:
        """Give the open part."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self._file.close()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Entries [start, stop) of an array."""
        dtype, count, at = self._places[name]
        values = np.empty((count if stop is None else stop) - start, dtype=dtype)
        buffer = values.view(np.uint8).data
        at += start * dtype.itemsize
        while buffer:
            got = os.preadv(self._file.fileno(), [buffer], at)
            if got == 0:
                raise MachineError(self._damage())
            buffer, at = buffer[got:], at + got
        return values

    def read_ahead(self, name: str, start: int, stop: int) -> None:
        """Ask the system to fetch entries [start, stop) of an array, if it takes advice."""
        if _advise is None:
            return
        dtype, _, at = self._places[name]
        begin, length = at + start * dtype.itemsize, (stop - start) * dtype.itemsize
        with contextlib.suppress(OSError):  # a file system may not take advice
            _advise(self._file.fileno(), begin, length, os.POSIX_FADV_WILLNEED)

    def _damage(self) -> str:
        return f"{self._path}: a damaged piece of an unfinished store; delete it and prepare again"


def read_array(path: Path, name: str) -> NDArray[Any]:
    """One whole array of a part."""
    with Part(path) as part:
        return part.read(name)


def rows_of(values: NDArray[T], starts: NDArray[np.integer[Any]]) -> list[NDArray[T]]:
    """Ragged rows, as views: row i is ``values[starts[i]:starts[i + 1]]``."""
    return [values[start:stop] for start, stop in itertools.pairwise(starts.tolist())]


def in_order(rows: Sequence[NDArray[T]], order: NDArray[np.int64]) -> NDArray[T]:
    """Join ragged rows, at least one, in another order; types are widened to the widest."""
    # Row by row: a gather by flat indices takes ten times as long.
    return np.concatenate([rows[number] for number in order.tolist()])


#: The source of the last task, by name and fingerprint; between tasks of one file it stays open.
_open: dict[tuple[str, str], CellSource] = {}


def close_source() -> None:
    """Close the source of the last task."""
    while _open:
        _open.popitem()[1].close()


def _opened(task: ShardTask) -> CellSource:
    key = (task.source, task.fingerprint)
    if key not in _open:
        close_source()
        _open[key] = open_source(task.source)
    return _open[key]


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


def _cell_keys(seed: int, source: str, start: int, stop: int) -> NDArray[np.uint64]:
    """Keys of a source's rows [start, stop), by which a store's cells are sorted.

    SplitMix64 of the row, from a start of the source's own: a key depends on the seed, the source's
    name and the row alone, so a source that is added or removed changes no other's keys.
    """
    own = hashlib.sha256(f"{seed}\0{source}".encode()).digest()[:8]
    return splitmix64(int.from_bytes(own, "little"), start, stop)
