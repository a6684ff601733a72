"""Checks of the values: the kind of values of each file, and what they show of the cells."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.cells.checks.report import CheckRow, Rows, fault_row
from core.cells.checks.survey import Expression, FileSummary
from core.cells.hvg_ranking import resolve_method
from core.cells.matrix_state import MatrixChoice, MatrixState
from core.cells.store import LARGE_COUNT
from core.errors import DataError
from core.presets.schema import DataSettings
from core.wording import files_of, listed, percentage, some_of

#: A cell has few genes below 200, the customary limit of scanpy and Seurat for whole
#: transcriptomes, or below a fifth of the median, which is less for a panel of few genes.
_FEW_GENES = 200
_FEW_OF_MEDIAN = 0.2
#: Fraction of cells with few genes above which a file is warned of.
_MANY_POOR = 0.05
#: Median absolute deviations, on the log scale, beyond which a cell is an outlier (the rule of
#: "Single-cell best practices", Heumos et al. 2023).
_OUTLIER = 5.0
#: Two cells in one droplet have about twice the counts of one.
_TWICE = 2.0
#: Fraction of doublet-like cells above which a file is warned of.
_MANY_DOUBLETS = 0.03
#: Donors with fewer cells are compared with the whole file.
_ENOUGH_CELLS = 100

#: Files whose matrix could be chosen, and files whose values have been read.
Chosen = Sequence[tuple[FileSummary, MatrixChoice]]
Read = Sequence[tuple[FileSummary, Expression]]


def check_matrices(files: Sequence[FileSummary], data: DataSettings) -> list[CheckRow]:
    """Check which matrix of each file is read, and its values; a file may have none."""
    rows = Rows("matrix")
    chosen = [(one, one.choice) for one in files if one.choice is not None]
    _matrices_read(rows, chosen)
    _one_kind(rows, chosen, data)
    _every_value(rows, files, [one for one, _ in chosen])
    largest = {
        one.name: one.expression.largest
        for one, choice in chosen
        if one.expression and choice.state == MatrixState.COUNTS
    }
    over = [name for name, value in largest.items() if value > LARGE_COUNT]
    if over:
        finding = (
            f"{files_of(over)}: counts above {LARGE_COUNT:,} (up to {max(largest.values()):,.0f})"
        )
        rows.ok("large counts", f"{finding} go to the store's side table")
    return rows


def _matrices_read(rows: Rows, chosen: Chosen) -> None:
    alike: dict[str, list[str]] = defaultdict(list)
    remarks: dict[str, list[str]] = defaultdict(list)
    passed: dict[str, None] = {}
    for one, choice in chosen:
        alike[f"{choice.matrix} holds {choice.describe()}"].append(one.name)
        others = {matrix: found.describe() for matrix, found in one.others.items()}
        for matrix, what in (others | choice.passed_over).items():
            passed[f"{matrix} ({what})"] = None
        for remark in choice.remarks:
            remarks[remark].append(one.name)
        for warning in choice.warnings:
            fix = "give raw counts if you have them"
            rows.append(CheckRow("warn", "matrix", "values", warning, fix, one.name))
    for finding, names in (alike | remarks).items():
        rows.ok("values", finding + some_of(names, len(chosen)))
    if passed:
        rows.ok("values", f"not read: {listed(list(passed))}")
    for one, choice in chosen:
        counts = [
            name
            for name, found in one.others.items()
            if found.state == MatrixState.COUNTS and found.n_genes >= choice.n_genes
        ]
        if counts and choice.state != MatrixState.COUNTS:
            finding = (
                f"{choice.matrix} (log values) is read, although {counts[0]} holds counts, which "
                f"contain more information"
            )
            fix = f"set data.matrix to '{counts[0]}' if it holds raw counts"
            rows.warn("values", finding, fix, one.name)


def _one_kind(rows: Rows, chosen: Chosen, data: DataSettings) -> None:
    by_state = {
        choice.state: f"{one.name} ({choice.matrix}) holds {choice.describe()}"
        for one, choice in reversed(chosen)
    }
    if len(by_state) > 1:
        fix = "all files must hold the same kind of values, set data.matrix to a matrix that does"
        rows.fail("one kind", " but ".join(reversed(by_state.values())), fix)
        return
    for state in by_state:
        try:
            resolve_method(data.hvg, str(state))
        except DataError as error:
            rows.append(fault_row("matrix", "gene ranking", error))


def _every_value(rows: Rows, files: Sequence[FileSummary], chosen: Sequence[FileSummary]) -> None:
    n_read = sum(len(one.expression.rows) for one in chosen if one.expression)
    has_fault = any(row.check == "every value" for one in files for row in one.faults)
    if not n_read or has_fault:
        return
    n_cells = sum(one.n_cells for one in chosen)
    if n_read == n_cells:
        rows.ok("every value", f"all values of {n_cells:,} cells were read, and agree")
    else:
        rows.ok("every value", f"{n_read:,} of {n_cells:,} cells were read, a sample")


def check_cells(files: Sequence[FileSummary]) -> list[CheckRow]:
    """Check genes per cell and library sizes of the files whose values have been read."""
    rows = Rows("cells")
    read = [(one, one.expression) for one in files if one.expression is not None]
    if read:
        _empty_cells(rows, read)
        _few_genes(rows, read)
        _doublets(rows, read)
    return rows


def _empty_cells(rows: Rows, read: Read) -> None:
    for one, expression in read:
        if n_empty := int(np.sum(expression.genes_per_cell == 0)):
            finding = f"{_of(n_empty, len(expression.rows))} have no counts"
            fix = "remove them: sc.pp.filter_cells(adata, min_genes=1)"
            rows.warn("empty cells", finding, fix, one.name)
    if not rows:
        rows.ok("empty cells", "none")


def few_genes(genes_per_cell: NDArray[np.int32]) -> tuple[NDArray[np.bool_], int]:
    """Find cells that have values but fewer genes than a limit; return it too."""
    filled = genes_per_cell > 0
    if not filled.any():
        return filled, 0
    limit = int(min(_FEW_GENES, _FEW_OF_MEDIAN * float(np.median(genes_per_cell[filled]))))
    return filled & (genes_per_cell < limit), limit


def _few_genes(rows: Rows, read: Read) -> None:
    medians = []
    for one, expression in read:
        poor, limit = few_genes(expression.genes_per_cell)
        filled = expression.genes_per_cell[expression.genes_per_cell > 0]
        medians.append(float(np.median(filled)) if len(filled) else 0.0)
        if (n_poor := int(poor.sum())) > _MANY_POOR * len(poor):
            few = f"{_of(n_poor, len(poor))} have fewer than {limit} genes"
            fix = f"remove what may be debris: sc.pp.filter_cells(adata, min_genes={limit})"
            rows.warn("few genes", f"{few} (median {medians[-1]:,.0f})", fix, one.name)
    if not rows.has_warned("few genes"):
        lowest, highest = f"{min(medians):,.0f}", f"{max(medians):,.0f}"
        by_file = lowest if min(medians) == max(medians) else f"{lowest} to {highest} by file"
        rows.ok("few genes", f"hardly any cell has few genes (median genes per cell: {by_file})")


def looks_like_doublet(
    library_sizes: NDArray[np.float32],
    genes_per_cell: NDArray[np.int32],
    groups: NDArray[np.integer],
) -> NDArray[np.bool_]:
    """Find cells with far more counts and genes than the others of their group.

    ``groups`` is the donor of each cell, -1 if unknown; small groups are compared with all cells.
    Returns (cells,), whether log counts and log genes both exceed the median of the group by more
    than 5 median absolute deviations, and the counts by more than a factor of two. This is a hint:
    large cells (plasma cells, cycling cells) look the same.
    """
    suspicious = np.zeros(len(library_sizes), dtype=bool)
    filled = library_sizes > 0
    sizes = np.bincount(groups[filled & (groups >= 0)], minlength=int(groups.max(initial=0)) + 1)
    own = np.where((groups >= 0) & (sizes[groups] >= _ENOUGH_CELLS), groups, -1)
    for group in np.unique(own[filled]):
        members = filled & (own == group)
        compared = filled if group < 0 else members
        deviates = library_sizes[members] > _TWICE * np.median(library_sizes[compared])
        for measure in (library_sizes, genes_per_cell):
            logged = np.log1p(measure[compared].astype(np.float64))
            median = np.median(logged)
            spread = np.median(np.abs(logged - median))
            deviates &= np.log1p(measure[members].astype(np.float64)) > median + _OUTLIER * spread
        suspicious[members] = deviates
    return suspicious


def _doublets(rows: Rows, read: Read) -> None:
    check, finding = "doublet-like cells", "have far more counts and genes than the others of"
    n_all, n_read = 0, 0
    compared = set()
    for one, expression in read:
        if one.choice is None or one.choice.state != MatrixState.COUNTS:
            continue
        groups, group = np.full(len(expression.rows), -1, dtype=np.int64), "file"
        if one.donors is not None:
            groups, group = one.donors.codes[expression.rows].astype(np.int64), "donor"
        found = looks_like_doublet(expression.library_sizes, expression.genes_per_cell, groups)
        n_found = int(found.sum())
        n_all, n_read = n_all + n_found, n_read + len(found)
        compared.add(f"their {group}")
        if n_found > _MANY_DOUBLETS * len(found):
            many = f"{_of(n_found, len(found))} {finding} their {group}"
            fix = "look for doublets (sc.pp.scrublet) and remove them"
            rows.warn(check, f"{many}; a hint only, large cells look the same", fix, one.name)
    if not n_read:
        rows.ok(check, "not checked: log values do not show library sizes")
    elif not rows.has_warned(check):
        rows.ok(check, f"{_of(n_all, n_read)} {finding} {' or '.join(sorted(compared))}")


def _of(n: int, n_cells: int) -> str:
    return f"{n:,} of {n_cells:,} cells ({percentage(n, n_cells)})"
