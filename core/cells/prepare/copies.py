"""Copies among the cells of all parts: found, reported, and left out of the store."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.cells.cell_copies import CellCopies, find_copies
from core.cells.cell_labels import CellLabels
from core.cells.checks.copy_rows import check_copies
from core.cells.checks.survey import StoreInput
from core.cells.prepare.folder import Preparation, PreparationFolder, write_array
from core.cells.prepare.parts import ShardTask, read_array
from core.errors import DataError


def find_copies_of_parts(
    inputs: Sequence[StoreInput],
    tasks_of_inputs: Sequence[Sequence[ShardTask]],
    secondary: NDArray[np.bool_] | None,
) -> CellCopies:
    """Find copies among all cells, by the hashes in the parts."""
    n_cells = sum(one.n_cells for one in inputs)
    hashes, evidence = np.zeros(n_cells, dtype=np.uint64), np.zeros(n_cells, dtype=np.uint8)
    for one, tasks in zip(inputs, tasks_of_inputs, strict=True):
        for task in tasks:
            cells = one.first_cell + read_array(task.path, "rows")
            hashes[cells] = read_array(task.path, "hashes")
            evidence[cells] = read_array(task.path, "evidence")
    return find_copies(hashes, evidence, n_cells=n_cells, secondary=secondary)


def report_copies(
    job: Preparation, inputs: Sequence[StoreInput], copies: CellCopies, labels: CellLabels
) -> list[str]:
    """Return notices of copies; DataError if they cross the split."""
    names, n_cells = [one.name for one in inputs], [one.n_cells for one in inputs]
    drops = job.data.drop_duplicates
    (row,) = check_copies(names, n_cells, copies, labels.split.codes, drops=drops)
    if row.level == "fail":
        job.folder.keep = False  # with another preset the store has another folder
        raise DataError(row.sentence)
    return [row.sentence] if len(copies.copies) else []


def write_kept(folder: PreparationFolder, kept: NDArray[np.bool_] | None) -> str:
    """Write the place of each cell among the kept ones, -1 for a copy; return the file's path."""
    if kept is None:
        return ""
    places = np.where(kept, np.cumsum(kept) - 1, -1)
    name = f"kept-{hashlib.sha256(np.packbits(kept).tobytes()).hexdigest()[:16]}"
    write_array(folder.of_store, name, places)
    return str(folder.of_store / f"{name}.npy")
