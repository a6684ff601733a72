"""Checks for the same cells twice: copies with equal values, and cells marked as copies of another dataset."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.cells.cell_copies import CellCopies
from core.cells.checks.report import CheckRow, Rows
from core.wording import listed, percentage

_DROP = "set data.drop_duplicates = true, which keeps one of each"


def check_copies(
    names: Sequence[str],
    n_cells: Sequence[int],
    found: CellCopies,
    splits: NDArray[np.int8] | None,
    *,
    drops: bool,
) -> list[CheckRow]:
    """Report copies of cells: a failure if a cell and its copy are in different splits, else a warning.

    ``names`` and ``n_cells`` are those of the files; ``splits`` (cells of all files,) is None if unknown.
    ``drops`` is data.drop_duplicates.
    """
    rows = Rows("cells")
    n_copies, total = len(found.copies), sum(n_cells)
    if not n_copies:
        finding = "no two cells have the same counts"
        if few := total - found.n_compared:
            finding += f" ({few:,} cells were not read, or have too few counts to be compared)"
        rows.ok("copies", finding)
        return rows
    file_of = np.searchsorted(
        np.cumsum(n_cells), np.stack((found.copies, found.originals)), "right"
    )
    pairs = Counter(zip(*file_of.tolist(), strict=True))
    where = [
        f"{n:,} in {names[copy]}" + ("" if copy == original else f" of {names[original]}")
        for (copy, original), n in pairs.most_common()
    ]
    many = f"{n_copies:,} of {total:,} cells ({percentage(n_copies, total)}) are copies of others, with the same counts"
    finding = f"{many}: {listed(where)}"
    if drops:
        rows.ok("copies", f"{finding}; they are left out")
        return rows
    n_crossing = 0
    if splits is not None:
        n_crossing = int((splits[found.copies] != splits[found.originals]).sum())
    if n_crossing:
        crossing = f"{n_crossing:,} are in another split than the cell they repeat, so scores would be too high"
        rows.fail(
            "copies",
            f"{finding}; {crossing}",
            f"{_DROP}, or leave out the file that repeats another",
        )
    else:
        rows.warn("copies", f"{finding}; they count twice", _DROP)
    return rows


def check_secondary(n_secondary: int, total: int, *, drops: bool) -> list[CheckRow]:
    """Report cells that CELLxGENE marks as copies of another dataset's."""
    rows = Rows("cells")
    if n_secondary:
        finding = (
            f"{n_secondary:,} of {total:,} cells ({percentage(n_secondary, total)}) are marked "
            f"is_primary_data = False: their originals are in another dataset"
        )
        if drops:
            rows.ok(
                "primary data", f"{finding}; those with an original in these files are left out"
            )
        else:
            fix = f"if that dataset is among your files, {_DROP}"
            rows.warn("primary data", f"{finding} of CELLxGENE", fix)
    return rows
