"""All checks of cells together: what `tfx check` reports, and what prepare and train check first."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cells.cell_copies import CellCopies, are_secondary, find_copies, without_copies
from core.cells.cell_labels import CellLabels, read_cell_labels
from core.cells.checks.copy_rows import check_copies, check_secondary
from core.cells.checks.donor_rows import check_donors
from core.cells.checks.gene_rows import check_genes
from core.cells.checks.phenotype_rows import check_phenotypes
from core.cells.checks.report import CheckReport, CheckRow, Rows, fault_row
from core.cells.checks.survey import FileSummary, LabelTable, Scope, make_label_table, survey_files
from core.cells.checks.value_rows import check_cells, check_matrices
from core.cells.gene_join import GeneJoin
from core.cells.genes import GenePanel
from core.cells.matrix_state import MatrixState
from core.cells.store import gene_index_type
from core.errors import DataError
from core.files import free_space
from core.presets.schema import DataSettings
from core.progress import Listener, ignore_progress
from core.wording import duration, files_of, size

#: Folder of stores without a path of their own.
_STORES = Path("stores")
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


def check_data(
    data: DataSettings,
    *,
    scope: Scope = "full",
    model_genes: GenePanel | None = None,
    on_progress: Listener = ignore_progress,
) -> CheckReport:
    """Check the cells of a preset.

    ``scope`` "full" reads every value once; "quick" some thousand cells of each file; "tables" none
    beyond the first cells of each matrix, which takes seconds, whatever the size (`tfx prepare`
    reads every value anyway). ``model_genes`` are those of a trained model that the cells are meant
    for. Progress stages are "checking files" and "reading cells". ConfigurationError if a file is listed
    twice, or if there is no such built-in data set.
    """
    destination = Path(data.store or _STORES)
    files, list_faults = survey_files(data, scope, on_progress)
    rows = [*list_faults, *(row for one in files for row in one.faults)]
    readable = [one for one in files if one.n_cells]
    if readable and not any(row.family == "files" for row in rows):
        finding = f"{files_of([one.name for one in readable])} can be read"
        rows.append(CheckRow("ok", "files", "readable", finding))
    rows += check_matrices(readable, data)
    join, gene_rows = check_genes(readable, data, model_genes)
    rows += gene_rows
    rows += check_cells(readable)
    table, labels = None, None
    if readable:
        table = make_label_table(readable, data)
        labels, faults = _prepared_labels(readable, data)
        secondary = are_secondary([one.obs for one in readable])
        copies = _copies(readable, secondary)
        n_secondary = 0 if secondary is None else int(secondary.sum())
        n_cells = [one.n_cells for one in readable]
        rows += check_secondary(n_secondary, sum(n_cells), drops=data.drop_duplicates)
        if copies is not None:
            names = [one.name for one in readable]
            splits = labels.split.codes if labels else None
            rows += check_copies(names, n_cells, copies, splits, drops=data.drop_duplicates)
            if data.drop_duplicates and len(copies.copies):
                labels, faults = _prepared_labels(readable, data, copies)
        rows += faults
        rows += check_phenotypes(table, labels, by_name=scope != "tables")
        rows += check_donors(table, labels)
    estimate = None
    if join is not None:
        n_phenotypes = len(labels.phenotypes) if labels else 0
        estimate = _estimate_cost(readable, len(join.panel), n_phenotypes, destination)
    rows += _check_cost(estimate, destination) if estimate else []
    report = CheckReport.of(rows, _facts(files, scope, join, table, labels, estimate))
    return replace(report, files=tuple(files), join=join, labels=labels)


def _copies(files: Sequence[FileSummary], secondary: NDArray[np.bool_] | None) -> CellCopies | None:
    """Find copies among the cells that were read; None if none was."""
    *firsts, n_cells = itertools.accumulate((one.n_cells for one in files), initial=0)
    of_files = zip(firsts, (one.expression for one in files), strict=True)
    read = [(first + one.rows, one.hashes, one.evidence) for first, one in of_files if one]
    return find_copies(read, n_cells, secondary=secondary) if read else None


def _prepared_labels(
    files: Sequence[FileSummary], data: DataSettings, dropped: CellCopies | None = None
) -> tuple[CellLabels | None, list[CheckRow]]:
    """Split the cells and code their labels as `tfx prepare` does, or return its error as a row."""
    if any(row.family == "phenotypes" for one in files for row in one.faults):
        return None, []
    names, tables, roles = zip(*((one.name, one.obs, one.role) for one in files), strict=True)
    if dropped is not None:
        tables = tuple(without_copies(tables, dropped))
    try:
        return read_cell_labels(data, names, tables, roles), []
    except DataError as error:
        if "data.split" in str(error):
            return None, [fault_row("donors", "split", error)]
        return None, [fault_row("phenotypes", "coverage", error)]


def _estimate_cost(
    files: Sequence[FileSummary], n_genes: int, n_phenotypes: int, destination: Path
) -> Estimate | None:
    """Estimate the store of readable files; None if a file has no fit matrix."""
    n_values, store_bytes = 0.0, 0.0
    index_bytes = np.dtype(gene_index_type(n_genes)).itemsize
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


def _check_cost(estimate: Estimate, destination: Path) -> list[CheckRow]:
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


def _facts(
    files: Sequence[FileSummary],
    scope: Scope,
    join: GeneJoin | None,
    table: LabelTable | None,
    labels: CellLabels | None,
    estimate: Estimate | None,
) -> dict[str, Any]:
    states = {str(one.choice.state) for one in files if one.choice}
    phenotypes = {}
    if table is not None:
        for name, column in table.phenotypes.items():
            counts = table.count(column).tolist()
            phenotypes[name] = {
                "column": column.column,
                "labels": dict(zip(column.values, counts, strict=True)),
                "known_cells": sum(counts),
            }
    return {
        "depth": scope,
        "cells": sum(one.n_cells for one in files),
        "genes": None if join is None else len(join.panel),
        "values": states.pop() if len(states) == 1 else None,
        "files": [_describe(one) for one in files],
        "phenotypes": phenotypes,
        "donors": None if table is None or table.donors is None else len(table.donors.values),
        "split": None if labels is None else labels.split_report["cells"],
        "estimate": None if estimate is None else asdict(estimate),
    }


def _describe(one: FileSummary) -> dict[str, Any]:
    expression, choice, table = one.expression, one.choice, one.table
    matrices = {matrix: found.describe() for matrix, found in one.others.items()}
    if choice is not None:
        matrices = {choice.matrix: str(choice.state)} | choice.passed_over | matrices
    return {
        "name": one.name,
        "role": one.role,
        "cells": one.n_cells,
        "genes": None if table is None else len(table.ids),
        "gene_ids": None if table is None else table.source,
        "matrix": None if choice is None else choice.matrix,
        "state": None if choice is None else str(choice.state),
        "recovers_counts": choice is not None and choice.scale.unit is not None,
        "matrices": matrices,
        "cells_read": 0 if expression is None else len(expression.rows),
        "values_read": 0 if expression is None else expression.n_values,
        "largest": None if expression is None else expression.largest,
    }
