"""All checks of cells together: what `tfx check` reports, and what prepare and train check first."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.cells.cell_labels import CellLabels, read_cell_labels
from core.cells.checks.cost_rows import Estimate, check_cost, estimate_cost
from core.cells.checks.donor_rows import check_donors
from core.cells.checks.gene_rows import check_genes
from core.cells.checks.label_table import LabelTable, make_label_table
from core.cells.checks.phenotype_rows import check_phenotypes
from core.cells.checks.report import CheckReport, CheckRow, fault_row
from core.cells.checks.survey import FileSummary, Scope, survey_files
from core.cells.checks.value_rows import check_cells, check_matrices
from core.cells.genes import GeneJoin, GenePanel
from core.errors import DataError
from core.presets.schema import DataSettings
from core.progress import Listener, ignore_progress
from core.wording import files_of

#: Folder of stores without a path of their own.
_STORES = Path("stores")


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
    for. Progress stages are "checking files" and "reading cells".

    Raises
    ------
    ConfigurationError
        A file is listed twice, or there is no such built-in data set.
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
    table: LabelTable | None = None
    labels: CellLabels | None = None
    if readable:
        table = make_label_table(readable, data)
        labels, faults = _prepared_labels(readable, data)
        rows += faults
        rows += check_phenotypes(readable, data, table, labels)
        rows += check_donors(readable, data, table, labels)
    estimate = None
    if join is not None:
        n_phenotypes = len(labels.phenotypes) if labels else 0
        estimate = estimate_cost(readable, len(join.panel), n_phenotypes, destination)
    if estimate is not None:
        rows += check_cost(estimate, destination)
    report = CheckReport.of(rows, _facts(files, scope, join, table, labels, estimate))
    return dataclasses.replace(report, files=tuple(files))


def _prepared_labels(
    files: Sequence[FileSummary], data: DataSettings
) -> tuple[CellLabels | None, list[CheckRow]]:
    """Split the cells and code their labels as `tfx prepare` does, or return its error as a row."""
    if any(row.family == "phenotypes" for one in files for row in one.faults):
        return None, []
    names, tables, roles = zip(*((one.name, one.obs, one.role) for one in files), strict=True)
    try:
        return read_cell_labels(data, names, tables, roles), []
    except DataError as error:
        if "data.split" in str(error):
            return None, [fault_row("donors", "split", error)]
        return None, [fault_row("phenotypes", "coverage", error)]


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
        "estimate": None if estimate is None else dataclasses.asdict(estimate),
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
        "matrices": matrices,
        "cells_read": 0 if expression is None else len(expression.rows),
        "values_read": 0 if expression is None else expression.n_values,
        "largest": None if expression is None else expression.largest,
    }
