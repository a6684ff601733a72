"""What preparing will cost: store, disk, memory, time."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.cells.checks.report import CheckRow
from core.cells.checks.summary import FileSummary
from core.cells.matrix_state import MatrixState
from core.wording import size

__all__ = ["Estimate", "check_cost", "estimate_cost"]

#: Genes that a uint16 can number.
_SHORT_INDEX = 65_536
#: Row start 8, total 4, split 1, origin 16, donor 4 bytes per cell; 4 more per phenotype.
_CELL_BYTES = 33
#: Parts on their way to the store, and the store itself.
_PEAK = 2.0
#: Measured with `tfx prepare` on 2 cores (benchmarks/prepare.md): 1,000,000 cells x 2,660 values in
#: 137 s and 0.63 GB, all processes together; 4,000,000 cells x 13 values in 40 s, 17 B more memory for
#: each cell. Compressed files and slow disks take longer.
_VALUES_PER_SECOND = 20e6
_CELLS_PER_SECOND = 150_000
_BASE_SECONDS = 3.0
_BASE_MEMORY = 0.6e9
#: Labels of a cell, in memory at once.
_MEMORY_PER_CELL = 20


@dataclass(frozen=True)
class Estimate:
    """What a store will take.

    Attributes
    ----------
    n_cells, n_values
        Of the store.
    store_bytes, peak_disk_bytes
        At the end, and while it is made.
    memory_bytes, seconds
        Of `tfx prepare`, very roughly.
    free_bytes
        Where the store will lie; None where this cannot be told.
    is_measured
        Whether values have been counted, rather than estimated or bounded.
    """

    n_cells: int
    n_values: int
    store_bytes: int
    peak_disk_bytes: int
    memory_bytes: int
    seconds: float
    free_bytes: int | None
    is_measured: bool


def estimate_cost(
    files: Sequence[FileSummary], n_genes: int, n_phenotypes: int, destination: Path
) -> Estimate | None:
    """Estimate the store of the files that can be read; None if a matrix is not settled.

    Parameters
    ----------
    files
        In any order.
    n_genes, n_phenotypes
        Of the store.
    destination
        Folder of the store, which need not exist.
    """
    if not files or any(one.choice is None for one in files):
        return None
    n_values, value_bytes = 0.0, 0.0
    index_bytes = 2 if n_genes <= _SHORT_INDEX else 4
    for one in files:
        here = _n_values(one)
        is_counts = one.choice is not None and one.choice.state == MatrixState.COUNTS
        n_values += here
        value_bytes += here * (index_bytes + (2 if is_counts else 4))
    n_cells = sum(one.n_cells for one in files)
    store_bytes = value_bytes + n_cells * (_CELL_BYTES + 4 * n_phenotypes)
    return Estimate(
        n_cells=n_cells,
        n_values=round(n_values),
        store_bytes=round(store_bytes),
        peak_disk_bytes=round(_PEAK * store_bytes),
        memory_bytes=round(_BASE_MEMORY + _MEMORY_PER_CELL * n_cells),
        seconds=_BASE_SECONDS + n_values / _VALUES_PER_SECOND + n_cells / _CELLS_PER_SECOND,
        free_bytes=_free(destination),
        is_measured=all(one.is_complete or not _is_dense(one) for one in files),
    )


def _n_values(one: FileSummary) -> float:
    """Values of a file: counted, else as stored, of a dense matrix at most or by its sample."""
    if one.expression is not None and (one.is_complete or _is_dense(one)):
        return one.expression.n_values * one.n_cells / len(one.expression.rows)
    return one.stored_values


def _is_dense(one: FileSummary) -> bool:
    return one.table is not None and one.stored_values >= one.n_cells * len(one.table.ids)


def check_cost(estimate: Estimate, destination: Path) -> Iterator[CheckRow]:
    """Judge whether the store fits the disk, and say what it costs."""
    about = "about" if estimate.is_measured else "roughly"
    yield CheckRow(
        "ok",
        "cost",
        "store",
        f"{about} {size(estimate.store_bytes)} for {estimate.n_cells:,} cells, "
        f"{size(estimate.peak_disk_bytes)} of disk while it is made",
    )
    yield CheckRow(
        "ok",
        "cost",
        "time",
        f"preparing takes about {_duration(estimate.seconds)} and {size(estimate.memory_bytes)} "
        f"of memory",
    )
    if estimate.free_bytes is None:
        return
    free = f"{size(estimate.free_bytes)} free for {destination}"
    lacks = estimate.peak_disk_bytes > estimate.free_bytes
    if lacks:
        yield CheckRow(
            "fail" if estimate.is_measured else "warn",
            "cost",
            "disk",
            f"{free}, but {size(estimate.peak_disk_bytes)} are needed",
            "set data.store to a folder on a larger disk, or make room",
        )
    else:
        yield CheckRow("ok", "cost", "disk", free)


def _free(destination: Path) -> int | None:
    """Bytes free where a folder is or will be."""
    folder = Path(destination).absolute()
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:  # not there yet
            continue
    return None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if seconds < 5_400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
