"""What preparing will cost: store, disk, memory, time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.cells.checks.gene_rows import SHORT_INDEX
from core.cells.checks.report import CheckRow, Rows
from core.cells.checks.survey import FileSummary
from core.cells.matrix_state import MatrixState
from core.files import free_space
from core.wording import duration, size

#: Row start 8, total 4, split 1, source 16, donor 4 bytes per cell; 4 more per phenotype.
_CELL_BYTES = 33
#: The pieces of the store before they are joined, and the store itself.
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
    """The cost of a store; memory and seconds of `tfx prepare` are rough."""

    n_cells: int
    n_values: int
    store_bytes: int
    #: While the store is made.
    peak_disk_bytes: int
    memory_bytes: int
    seconds: float
    #: On the disk of the store.
    free_bytes: int
    #: Whether values have been counted, not estimated.
    is_measured: bool


def estimate_cost(
    files: Sequence[FileSummary], n_genes: int, n_phenotypes: int, destination: Path
) -> Estimate | None:
    """Estimate the store of readable files; None if a file has no fit matrix.

    ``destination`` is the folder of the store, which need not exist.
    """
    n_values, store_bytes = 0.0, 0.0
    index_bytes = 2 if n_genes <= SHORT_INDEX else 4
    is_measured = True
    for one in files:
        if one.choice is None or one.stored is None:
            return None
        n_genes_here = len(one.table.ids) if one.table else 0
        is_dense = one.table is not None and one.stored.n_values >= one.n_cells * n_genes_here
        is_measured &= one.is_complete or not is_dense
        # Counted if the file was read; of a dense matrix, else, a sample or all of its values.
        n_here: float = one.stored.n_values
        if one.expression is not None and (one.is_complete or is_dense):
            n_here = one.expression.n_values * one.n_cells / len(one.expression.rows)
        value_bytes = 2 if one.choice.state == MatrixState.COUNTS else 4
        n_values += n_here
        store_bytes += n_here * (index_bytes + value_bytes)
        store_bytes += one.n_cells * (_CELL_BYTES + 4 * n_phenotypes)
    n_cells = sum(one.n_cells for one in files)
    return Estimate(
        n_cells=n_cells,
        n_values=round(n_values),
        store_bytes=round(store_bytes),
        peak_disk_bytes=round(_PEAK * store_bytes),
        memory_bytes=round(_BASE_MEMORY + _MEMORY_PER_CELL * n_cells),
        seconds=_BASE_SECONDS + n_values / _VALUES_PER_SECOND + n_cells / _CELLS_PER_SECOND,
        free_bytes=free_space(destination)[1],
        is_measured=is_measured,
    )


def check_cost(estimate: Estimate, destination: Path) -> list[CheckRow]:
    """Describe the cost of the store, and check that the disk has room for it."""
    rows = Rows("cost")
    about = "about" if estimate.is_measured else "roughly"
    needed = size(estimate.peak_disk_bytes)
    rows.ok(
        "store",
        f"{about} {size(estimate.store_bytes)} for {estimate.n_cells:,} cells, {needed} of disk "
        f"while it is made",
    )
    time, memory = duration(estimate.seconds), size(estimate.memory_bytes)
    rows.ok("time", f"preparing takes about {time} and {memory} of memory")
    free = f"{size(estimate.free_bytes)} free for {destination}"
    if estimate.peak_disk_bytes <= estimate.free_bytes:
        rows.ok("disk", free)
        return rows
    add = rows.fail if estimate.is_measured else rows.warn
    fix = "set data.store to a folder on a larger disk, or make room"
    add("disk", f"{free}, but {needed} are needed", fix)
    return rows
