"""Second stage of preparing: one range of keys from all parts, written to its place in the store.

Buckets are written in any order and by any process: each has a stretch of every array to itself. A
bucket that is done leaves a note, a part that holds the places and checksums of its stretches, its counts
too large for the array, and the sums of its training cells, from which genes are ranked.
"""

import os
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import compress
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from core.cells.hvg_ranking import GeneMoments, moments
from core.cells.prepare.parts import (
    BUCKETS,
    CONTINUING,
    Part,
    in_order,
    is_whole,
    read_array,
    rows_of,
    write_part,
)
from core.cells.store import LARGE_COUNT, SPLITS
from core.files import file_json
from core.wording import naming_write_errors

#: Parts whose stretches are requested from the disk together.
_PARTS_AHEAD = 64
#: Arrays of a note that hold the place of a stretch end with this: first row, rows, CRC-32.
_STRETCH = ".npy"
#: macOS has no fdatasync.
_flush = getattr(os, "fdatasync", os.fsync)


@dataclass(frozen=True)
class PartRecord:
    """A part and where its cells come from."""

    path: str
    #: Number of the source in the store, and its first cell among those of all sources.
    source: int
    first_cell: int


@dataclass(frozen=True)
class MergePlan:
    """What all buckets of a store have in common; written once, because every task needs it."""

    #: The store that is being written: arrays of their final size.
    folder: str
    #: Folder of ``phenotypes.npy``, ``splits.npy`` and perhaps ``donors.npy``, cells in the order of
    #: the sources.
    labels: str
    #: Whether values are counts.
    counts: bool
    #: A divisor of `BUCKETS`.
    n_buckets: int
    #: Number of genes, if the counts of training cells are also summed; else 0.
    sum_genes: int
    #: In the order of the sources.
    parts: tuple[PartRecord, ...]
    #: ``.npy`` file, named by its content: (cells of all sources,) place of each cell in ``labels``, -1 if
    #: it is left out; "" if none is.
    kept: str = ""


@dataclass(frozen=True)
class BucketTask:
    """One range of keys."""

    #: File of the `MergePlan`, named by its content.
    plan: Path
    #: Written when the bucket is done.
    note: Path
    number: int
    #: Where it begins in the store.
    first_cell: int
    first_value: int


def new_array(folder: Path, name: str, shape: tuple[int, ...], dtype: Any) -> None:  # noqa: ANN401
    """Make an array file of its final size, to be written in stretches: zeros where nothing was written."""
    header = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    path = folder / f"{name}.npy"
    path.touch()
    with path.open("r+b") as file:
        npy.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)


def write_bucket(task: BucketTask) -> None:
    """Write the cells of a bucket into the store, unless that is done and its bytes are still there."""
    plan = _read_plan(task.plan)
    if is_whole(task.note) and _are_written(Path(plan.folder), task.note):
        return
    cells, genes, values = _gather(plan, task.number)
    of_cell = cells["first_cells"] + cells["rows"]
    if plan.kept:
        of_cell = np.load(plan.kept, mmap_mode="r", allow_pickle=False)[of_cell]
    labels = {
        path.stem: np.load(path, mmap_mode="r", allow_pickle=False)[of_cell]
        for path in sorted(Path(plan.labels).glob("*.npy"))
    }
    note: dict[str, NDArray[Any]] = {"at": np.empty(0, np.int64), "counts": np.empty(0, np.uint32)}
    if plan.sum_genes:
        sums = moments(genes, values, plan.sum_genes, len(of_cell))
        others = np.flatnonzero(labels["splits"] != SPLITS.index("train"))
        if len(others):  # few
            starts = np.concatenate(([0], np.cumsum(cells["lengths"])))
            other_genes = in_order(rows_of(genes, starts), others)
            other_values = in_order(rows_of(values, starts), others)
            sums -= moments(other_genes, other_values, plan.sum_genes, len(others))
        note |= {"n_cells": np.array([sums.n_cells]), "sums": sums.sums, "squares": sums.squares}
    if plan.counts:
        at = np.flatnonzero(values >= LARGE_COUNT)
        note |= {"at": at + task.first_value, "counts": values[at].astype(np.uint32)}
        if values.dtype != np.uint16:
            values = np.minimum(values, LARGE_COUNT).astype(np.uint16)
    ends = task.first_value + np.cumsum(cells["lengths"])
    origins = np.column_stack((cells["sources"], cells["rows"]))
    of_cells = {"totals": cells["totals"].astype(np.float32), "origins": origins, **labels}
    stretches = {"genes": (task.first_value, genes), "values": (task.first_value, values)}
    # Its first entry is the last of the bucket before.
    stretches["indptr"] = (task.first_cell, np.append(task.first_value, ends))
    stretches |= {name: (task.first_cell, array) for name, array in of_cells.items()}
    with naming_write_errors(f"{plan.folder}: the store", CONTINUING):
        if len(of_cell):
            for name, (first, stretch) in stretches.items():
                checksum = _write_stretch(Path(plan.folder) / f"{name}.npy", first, stretch)
                note[f"{name}{_STRETCH}"] = np.array([first, len(stretch), checksum])
        write_part(task.note, note)


def fences_of(
    record: PartRecord, kept: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the equal ranges of keys begin among a part's cells and values that are kept."""
    path = Path(record.path)
    cells, values = read_array(path, "cell_fences"), read_array(path, "value_fences")
    if kept is None:
        return cells, values
    of_part = kept[record.first_cell + read_array(path, "rows")]
    lengths = np.diff(read_array(path, "starts")) * of_part
    return np.append(0, np.cumsum(of_part))[cells], np.append(0, np.cumsum(lengths))[cells]


def large_counts(notes: list[Path]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Positions and counts that values.npy has no room for, from the notes in order of buckets."""
    at, counts = ([read_array(note, name) for note in notes] for name in ("at", "counts"))
    return np.concatenate(at), np.concatenate(counts)


def sums_of_training_cells(notes: list[Path]) -> GeneMoments:
    """Merge the sums of training cells, from the notes of a plan with `sum_genes`."""
    names = ("n_cells", "sums", "squares")
    read = ([read_array(note, name) for name in names] for note in notes)
    return reduce(add, (GeneMoments(int(n_cells[0]), *sums) for n_cells, *sums in read))


@lru_cache(maxsize=1)
def _read_plan(path: Path) -> MergePlan:
    record = file_json(path)
    return MergePlan(**record | {"parts": tuple(PartRecord(**part) for part in record["parts"])})


def _gather(
    plan: MergePlan, number: int
) -> tuple[dict[str, NDArray[Any]], NDArray[Any], NDArray[Any]]:
    """Cells of a bucket in the order of their keys, their genes, and their values."""
    step = BUCKETS // plan.n_buckets
    fences = (number * step, (number + 1) * step + 1)
    names = ("keys", "rows", "totals", "lengths", "sources", "first_cells")
    place = np.load(plan.kept, mmap_mode="r", allow_pickle=False) if plan.kept else None
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    genes: list[NDArray[Any]] = []
    values: list[NDArray[Any]] = []
    for at in range(0, len(plan.parts), _PARTS_AHEAD):
        records = plan.parts[at : at + _PARTS_AHEAD]
        with ExitStack() as stack:
            parts = [stack.enter_context(Part(Path(record.path))) for record in records]
            for part in parts:  # the disk fetches all of them at once
                start, *_, stop = part.read("value_fences", *fences).tolist()
                part.read_ahead("genes", start, stop)
                part.read_ahead("values", start, stop)
            for record, part in zip(records, parts, strict=True):
                first, *_, last = part.read("cell_fences", *fences).tolist()
                if first == last:
                    continue
                starts = part.read("starts", first, last + 1)
                own = {name: part.read(name, first, last) for name in names[:3]}
                own["lengths"] = np.diff(starts)
                own["sources"] = np.full(last - first, record.source, dtype=np.int64)
                own["first_cells"] = np.full(last - first, record.first_cell, dtype=np.int64)
                stays = np.ones(last - first, dtype=bool)
                if place is not None:
                    stays = place[record.first_cell + own["rows"]] >= 0
                for name, array in own.items():
                    columns[name].append(array[stays])
                stretch = int(starts[0]), int(starts[-1])
                genes += compress(rows_of(part.read("genes", *stretch), starts - starts[0]), stays)
                values += compress(
                    rows_of(part.read("values", *stretch), starts - starts[0]), stays
                )
    if not genes:
        nothing = {name: np.empty(0, np.int64) for name in names}
        return nothing, np.empty(0, np.uint16), np.empty(0, np.float32)
    cells = {name: np.concatenate(pieces) for name, pieces in columns.items()}
    order = np.lexsort((cells["rows"], cells["sources"], cells["keys"]))
    all_genes = in_order(genes, order)
    genes.clear()  # large, and not needed while values are put in order
    return {name: cells[name][order] for name in names}, all_genes, in_order(values, order)


def _write_stretch(path: Path, first: int, stretch: NDArray[Any]) -> int:
    """Write rows from `first` on into an array file; return the CRC-32 of their bytes."""
    with path.open("r+b", buffering=0) as file:
        npy.read_magic(file)
        shape, _, dtype = npy.read_array_header_1_0(file)
        rows = np.ascontiguousarray(stretch, dtype=dtype)
        at = file.tell() + first * dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        buffer = memoryview(rows.reshape(-1).view(np.uint8).data)
        checksum = zlib.crc32(buffer)
        while buffer:
            written = os.pwrite(file.fileno(), buffer, at)
            buffer, at = buffer[written:], at + written
        _flush(file.fileno())
        return checksum


def _are_written(folder: Path, note: Path) -> bool:
    """Whether the stretches of a note have the bytes that were written."""
    with Part(note) as part:
        stretches = {name: part.read(name) for name in part.names if name.endswith(_STRETCH)}
    for name, (first, n_rows, checksum) in stretches.items():
        array = np.load(folder / name, mmap_mode="r", allow_pickle=False)
        if zlib.crc32(array[first : first + n_rows].data) != checksum:
            return False
    return True
