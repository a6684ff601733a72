"""The checks together: what `tfx check` reports, and what prepare and train ask first.

Reading belongs to `survey`; every other module here is a family of pure functions from what was
read to rows.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.cells.cell_labels import CellLabels, read_cell_labels
from core.cells.checks.cell_rows import check_cells_of_files
from core.cells.checks.cost import Estimate, check_cost, estimate_cost
from core.cells.checks.donor_rows import check_donors
from core.cells.checks.gene_rows import check_genes, check_model_genes, join_files
from core.cells.checks.label_table import LabelTable, make_label_table
from core.cells.checks.matrix_rows import check_matrices
from core.cells.checks.phenotype_rows import check_phenotypes
from core.cells.checks.report import CheckReport, CheckRow, fault_row
from core.cells.checks.summary import FileSummary
from core.cells.checks.survey import Depth, survey_files
from core.cells.genes import GeneJoin, GenePanel
from core.errors import DataError
from core.presets.schema import DataSettings
from core.progress import Listener, ignore_progress
from core.wording import files_of

__all__ = ["check_data", "preflight", "preflight_with_files"]

#: Where stores without a path of their own lie.
_STORES = Path("stores")


def preflight(data: DataSettings, *, on_progress: Listener = ignore_progress) -> CheckReport:
    """Check what tables and the first cells of each file tell: seconds, whatever the size.

    `tfx prepare` reads every value anyway, and refuses what only this shows.

    Parameters
    ----------
    data
        The preset's data section.
    on_progress
        Hears "checking files".

    Raises
    ------
    ConfigurationError
        A file is listed twice, or there is no such built-in dataset.
    """
    return preflight_with_files(data, on_progress=on_progress)[1]


def preflight_with_files(
    data: DataSettings, *, on_progress: Listener = ignore_progress
) -> tuple[list[FileSummary], CheckReport]:
    """Check as `preflight` does; also return what was read of each file."""
    files, faults = survey_files(data, "tables", on_progress)
    return files, _report(files, faults, data, "tables", None, Path(data.store or _STORES))


def check_data(
    data: DataSettings,
    *,
    depth: Depth = "full",
    model_genes: GenePanel | None = None,
    destination: Path | None = None,
    on_progress: Listener = ignore_progress,
) -> CheckReport:
    """Check the cells of a preset.

    Parameters
    ----------
    data
        The preset's data section.
    depth
        "full" reads every value once, "quick" some thousand cells of each file, "tables" none
        beyond the first look at each matrix.
    model_genes
        Of a trained model that the cells are meant for.
    destination
        Folder of the store; default: what the preset says, else below "stores".
    on_progress
        Hears "checking files" and "reading cells".

    Raises
    ------
    ConfigurationError
        A file is listed twice, or there is no such built-in dataset.
    """
    destination = destination or Path(data.store or _STORES)
    files, faults = survey_files(data, depth, on_progress)
    return _report(files, faults, data, depth, model_genes, destination)


def _report(
    files: Sequence[FileSummary],
    list_faults: Sequence[CheckRow],
    data: DataSettings,
    depth: Depth,
    model_genes: GenePanel | None,
    destination: Path,
) -> CheckReport:
    rows = list(list_faults)
    for one in files:
        rows += one.faults
    readable = [one for one in files if one.is_readable]
    if readable and not any(row.family == "files" for row in rows):
        finding = f"{files_of([one.name for one in readable])} can be read"
        rows.append(CheckRow("ok", "files", "readable", finding))
    rows += check_matrices(readable, data)
    join, faults = join_files(readable, data)
    rows += faults
    rows += check_genes(readable, data, join)
    if model_genes is not None:
        rows += check_model_genes(readable, model_genes)
    if depth != "tables":
        rows += check_cells_of_files(readable)
    table: LabelTable | None = None
    labels: CellLabels | None = None
    if readable:
        table = make_label_table(readable, data)
        labels, faults = _settle_labels(readable, data)
        rows += faults
        rows += check_phenotypes(readable, data, table, labels)
        rows += check_donors(readable, data, table, labels)
    estimate = None
    if join is not None:
        n_phenotypes = len(labels.phenotypes) if labels else 0
        estimate = estimate_cost(readable, len(join.panel), n_phenotypes, destination)
    if estimate is not None:
        rows += check_cost(estimate, destination)
    return CheckReport.of(rows, _facts(files, depth, join, table, labels, estimate))


def _settle_labels(
    files: Sequence[FileSummary], data: DataSettings
) -> tuple[CellLabels | None, list[CheckRow]]:
    """Split the cells and code their labels as `tfx prepare` does, or say why it would not."""
    if any(row.family == "phenotypes" for one in files for row in one.faults):
        return None, []
    try:
        labels = read_cell_labels(
            data,
            [one.name for one in files],
            [one.obs for one in files],
            [one.role for one in files],
        )
    except DataError as error:
        if "data.split" in str(error):
            return None, [fault_row("donors", "split", error)]
        return None, [fault_row("phenotypes", "coverage", error)]
    return labels, []


def _facts(
    files: Sequence[FileSummary],
    depth: Depth,
    join: GeneJoin | None,
    table: LabelTable | None,
    labels: CellLabels | None,
    estimate: Estimate | None,
) -> dict[str, Any]:
    states = {str(one.choice.state) for one in files if one.choice}
    phenotypes = {}
    if table is not None:
        for name, column in table.phenotypes.items():
            counts = table.count(column)
            phenotypes[name] = {
                "column": column.column,
                "labels": {value: int(n) for value, n in zip(column.values, counts, strict=True)},
                "known_cells": int(counts.sum()),
            }
    return {
        "depth": depth,
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
    expression = one.expression
    matrices = {matrix: found.describe() for matrix, found in one.others.items()}
    if one.choice is not None:
        matrices = {one.choice.matrix: str(one.choice.state)} | one.choice.passed_over | matrices
    return {
        "name": one.name,
        "role": one.role,
        "cells": one.n_cells,
        "genes": None if one.table is None else len(one.table.ids),
        "gene_ids": None if one.table is None else one.table.source,
        "matrix": None if one.choice is None else one.choice.matrix,
        "state": None if one.choice is None else str(one.choice.state),
        "matrices": matrices,
        "cells_read": 0 if expression is None else len(expression.rows),
        "values_read": 0 if expression is None else expression.n_values,
        "largest": None if expression is None else expression.largest,
    }
