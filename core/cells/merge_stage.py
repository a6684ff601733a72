"""Second stage of preparing: one range of keys from all parts, written where it stands in the store.

Buckets are written in any order and by any process: each has a stretch of every array to itself. A
bucket that is done leaves a note, which also holds its counts too large for the array and the sums of
its training cells, from which genes are ranked.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from core.cells.gene_moments import GeneMoments, moments
from core.cells.normalisation import rescale_log
from core.cells.random_order import BUCKETS
from core.cells.shard_stage import in_order, rows_of
from core.cells.store import LARGE_COUNT, SPLITS
from core.cells.store_parts import Part, write_part
from core.errors import MachineError

__all__ = [
    "BucketTask",
    "MergePlan",
    "PartRecord",
    "large_counts",
    "new_array",
    "sums_of_training_cells",
    "write_bucket",
]

#: Parts that the disk is asked for together.
_PARTS_AHEAD = 64
#: macOS has no fdatasync.
_flush = getattr(os, "fdatasync", os.fsync)


@dataclass(frozen=True)
class PartRecord:
    """A part and where its cells come from.

    Attributes
    ----------
    path
        The part.
    source
        Number of the source in the store.
    first_cell
        The source's first cell among those of all sources.
    log_scale
        Factor that brings log values to counts per 10,000; 1 leaves them as they are.
    """

    path: str
    source: int
    first_cell: int
    log_scale: float


@dataclass(frozen=True)
class MergePlan:
    """What all buckets of a store share; written once, because every task needs it.

    Attributes
    ----------
    folder
        The store being written: arrays of their final size.
    labels
        Folder of ``phenotypes.npy``, ``splits.npy`` and perhaps ``donors.npy``, cells in the order
        of the sources.
    counts
        Whether values are counts.
    n_buckets
        A divisor of `BUCKETS`.
    sum_genes
        Number of genes, if the counts of training cells are summed on the way; else 0.
    parts
        In the order of the sources.
    """

    folder: str
    labels: str
    counts: bool
    n_buckets: int
    sum_genes: int
    parts: tuple[PartRecord, ...]

    def write(self, path: Path) -> None:
        """Write the plan where tasks find it."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "MergePlan":
        """Read the plan of a task."""
        record = json.loads(path.read_text(encoding="utf-8"))
        return cls(**record | {"parts": tuple(PartRecord(**part) for part in record["parts"])})


@dataclass(frozen=True)
class BucketTask:
    """One range of keys.

    Attributes
    ----------
    plan
        File of the `MergePlan`; its name tells its content.
    note
        What is left when the bucket is done.
    number
        Of the bucket.
    first_cell, first_value
        Where it begins in the store.
    """

    plan: Path
    note: Path
    number: int
    first_cell: int
    first_value: int


def new_array(folder: Path, name: str, shape: tuple[int, ...], dtype: Any) -> None:  # noqa: ANN401
    """Make an array file of its final size, all zeros, to be written in stretches."""
    header = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with (folder / f"{name}.npy").open("wb") as file:
        npy.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)


def write_bucket(task: BucketTask) -> None:
    """Write the cells of a bucket into the store, unless that is done.

    Raises
    ------
    MachineError
        The store cannot be written, or a part is damaged.
    """
    if task.note.exists():
        return
    plan = _plan(task.plan)
    cells, genes, values = _gather(plan, task.number)
    folder = Path(plan.folder)
    n_cells = len(cells["keys"])
    ends = task.first_value + np.cumsum(cells["lengths"])
    note: dict[str, NDArray[Any]] = {
        "at": np.empty(0, np.int64),
        "counts": np.empty(0, np.uint32),
    }
    of_cell = cells["first_cells"] + cells["rows"]
    labels = {
        path.stem: np.load(path, mmap_mode="r", allow_pickle=False)[of_cell]
        for path in sorted(Path(plan.labels).glob("*.npy"))
    }
    if plan.sum_genes:
        sums = _sum_training_cells(
            cells["lengths"], labels["splits"], genes, values, plan.sum_genes
        )
        note |= {"n_cells": np.array([sums.n_cells]), "sums": sums.sums, "squares": sums.squares}
    if plan.counts:
        at = np.flatnonzero(values >= LARGE_COUNT)
        note |= {"at": at + task.first_value, "counts": values[at].astype(np.uint32)}
        if values.dtype != np.uint16:
            values = np.minimum(values, LARGE_COUNT).astype(np.uint16)
    stretches: dict[str, tuple[int, NDArray[Any]]] = {
        "genes": (task.first_value, genes),
        "values": (task.first_value, values),
        "indptr": (task.first_cell + 1, ends.astype(np.int64)),
        "totals": (task.first_cell, cells["totals"].astype(np.float32)),
        "origins": (task.first_cell, np.column_stack((cells["sources"], cells["rows"]))),
    }
    stretches |= {name: (task.first_cell, column) for name, column in labels.items()}
    try:
        if n_cells:
            for name, (first, stretch) in stretches.items():
                _write_stretch(folder / f"{name}.npy", first, stretch)
        write_part(task.note, note)
    except OSError as error:
        message = (
            f"{folder}: the store cannot be written ({error.strerror or error}); free some space "
            f"or mend the folder, then run the same command to go on"
        )
        raise MachineError(message) from error


def large_counts(notes: list[Path]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Positions and counts that values.npy has no room for, from the notes in order of buckets."""
    at, counts = [np.empty(0, np.int64)], [np.empty(0, np.uint32)]
    for note in notes:
        with Part(note) as part:
            at.append(part.read("at"))
            counts.append(part.read("counts"))
    return np.concatenate(at), np.concatenate(counts)


def sums_of_training_cells(notes: list[Path]) -> GeneMoments:
    """Merge the sums of training cells, from the notes of a plan that asked for them."""
    return reduce(add, map(_read_sums, notes))


def _read_sums(note: Path) -> GeneMoments:
    with Part(note) as part:
        return GeneMoments(int(part.read("n_cells")[0]), part.read("sums"), part.read("squares"))


def _sum_training_cells(
    lengths: NDArray[np.int64],
    splits: NDArray[np.int8],
    genes: NDArray[Any],
    values: NDArray[Any],
    n_genes: int,
) -> GeneMoments:
    """Sum all cells, and take the few of other splits off again."""
    sums = moments(genes, values, n_genes, len(lengths))
    others = np.flatnonzero(splits != SPLITS.index("train"))
    if not len(others):
        return sums
    starts = np.concatenate(([0], np.cumsum(lengths)))
    return sums - moments(
        in_order(rows_of(genes, starts), others),
        in_order(rows_of(values, starts), others),
        n_genes,
        len(others),
    )


@lru_cache(maxsize=1)
def _plan(path: Path) -> MergePlan:
    return MergePlan.read(path)


@dataclass
class _Found:
    """Cells of a bucket as the parts give them.

    Attributes
    ----------
    columns
        What there is one of for each cell; pieces of arrays.
    genes, values
        One array for each cell.
    """

    columns: dict[str, list[NDArray[Any]]]
    genes: list[NDArray[Any]]
    values: list[NDArray[Any]]


def _gather(
    plan: MergePlan, number: int
) -> tuple[dict[str, NDArray[Any]], NDArray[Any], NDArray[Any]]:
    """Cells of a bucket in the order of their keys, their genes, and their values."""
    names = ("keys", "rows", "lengths", "totals", "sources", "first_cells")
    found = _Found({name: [] for name in names}, [], [])
    for first in range(0, len(plan.parts), _PARTS_AHEAD):
        _gather_from(plan.parts[first : first + _PARTS_AHEAD], plan.n_buckets, number, found)
    if not found.genes:
        nothing = {name: np.empty(0, np.int64) for name in names}
        return nothing, np.empty(0, np.uint16), np.empty(0, np.float32)
    cells = {name: np.concatenate(pieces) for name, pieces in found.columns.items()}
    order = np.lexsort((cells["rows"], cells["sources"], cells["keys"]))
    genes = in_order(found.genes, order)
    found.genes.clear()  # large, and not needed while values are put in order
    values = in_order(found.values, order)
    return {name: column[order] for name, column in cells.items()}, genes, values


def _gather_from(records: Sequence[PartRecord], n_buckets: int, number: int, found: _Found) -> None:
    """Read a bucket's cells from some parts, all of which the disk fetches at once."""
    step = BUCKETS // n_buckets
    fences = (number * step, (number + 1) * step + 1)
    with ExitStack() as stack:
        parts = [stack.enter_context(Part(Path(record.path))) for record in records]
        for part in parts:
            borders = part.read("value_fences", *fences)
            for name in ("genes", "values"):
                part.read_ahead(name, int(borders[0]), int(borders[-1]))
        for record, part in zip(records, parts, strict=True):
            borders = part.read("cell_fences", *fences)
            first, last = int(borders[0]), int(borders[-1])
            if first == last:
                continue
            starts = part.read("starts", first, last + 1)
            of_cells = {
                "keys": part.read("keys", first, last),
                "rows": part.read("rows", first, last),
                "lengths": np.diff(starts),
                "totals": part.read("totals", first, last) * record.log_scale,
                "sources": np.full(last - first, record.source, dtype=np.int64),
                "first_cells": np.full(last - first, record.first_cell, dtype=np.int64),
            }
            for name, column in of_cells.items():
                found.columns[name].append(column)
            stretch = int(starts[0]), int(starts[-1])
            found.genes += rows_of(part.read("genes", *stretch), starts - starts[0])
            values = _rescale(part.read("values", *stretch), record.log_scale)
            found.values += rows_of(values, starts - starts[0])


def _rescale(values: NDArray[Any], scale: float) -> NDArray[Any]:
    if scale == 1.0:
        return values
    return rescale_log(values.astype(np.float64), scale).astype(np.float32)


def _write_stretch(path: Path, first: int, stretch: NDArray[Any]) -> None:
    with _opened_array(path) as (file, offset, dtype, row_shape):
        rows = np.ascontiguousarray(stretch, dtype=dtype)
        row_bytes = dtype.itemsize * int(np.prod(row_shape, dtype=np.int64))
        buffer = memoryview(rows.reshape(-1).view(np.uint8).data)
        at = offset + first * row_bytes
        while buffer:
            written = os.pwrite(file, buffer, at)
            buffer, at = buffer[written:], at + written
        _flush(file)


@contextmanager
def _opened_array(path: Path) -> Iterator[tuple[int, int, np.dtype[Any], tuple[int, ...]]]:
    """Descriptor of an array file, where its data begin, and type and shape of its rows."""
    with path.open("r+b", buffering=0) as file:
        npy.read_magic(file)
        shape, _, dtype = npy.read_array_header_1_0(file)
        yield file.fileno(), file.tell(), dtype, shape[1:]
