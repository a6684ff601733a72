"""From a user's files to the facts of a first preset: what `tfx init` writes down.

A draft is held against the checks that `tfx train` asks first; what they refuse for one phenotype
alone is left out with the reason, all else is refused here too.
"""

from collections.abc import Sequence
from contextlib import closing

import pandas as pd

from core.cells.checks.check import check_data
from core.cells.checks.report import CheckReport
from core.cells.file_patterns import expand_files
from core.cells.obs_columns import FoundColumn, ObsColumns, find_columns
from core.cells.reading import open_source
from core.presets.draft import ColumnNote, DraftFacts
from core.presets.schema import DataSettings
from core.progress import Listener, ProgressEvent, ignore_progress

__all__ = ["look_at_files"]

#: Labels that a note names.
_NAMED = 4
#: Warnings that the head of a preset lists.
_MOST_WARNINGS = 8
#: These are for `tfx check`, which reads every value.
_NOT_TOLD = ("cost",)


def look_at_files(files: Sequence[str], *, on_progress: Listener = ignore_progress) -> DraftFacts:
    """Look at tables and first values of h5ad files: seconds, whatever their size.

    Parameters
    ----------
    files
        Paths, globs, brace patterns, built-in datasets.
    on_progress
        Hears "reading labels" and "checking files".

    Raises
    ------
    ConfigurationError
        A file is listed twice, or there is no such built-in dataset.
    DataError
        `tfx train` would refuse the files; the message lists why.
    """
    paths = expand_files(files)
    tables = _read_tables(paths, on_progress)
    columns = find_columns(tables)
    split_by = "cells" if columns.donors is None else columns.donors.column
    refused: dict[str, str] = {}
    while True:
        phenotypes = [one for one in columns.phenotypes if one.name not in refused]
        settings = _settings(files, phenotypes, columns, refused, split_by)
        report = check_data(settings, scope="tables", on_progress=on_progress)
        faults = {
            row.subject or _phenotype_of(row.finding, phenotypes): row.finding
            for row in report.of_level("fail")
            if row.family == "phenotypes"
        }
        new = {one.name: faults[one.name] for one in phenotypes if one.name in faults}
        if not new:
            break
        refused |= new
    report.raise_failures()
    return _facts(files, paths, columns, refused, report)


def _read_tables(paths: Sequence[str], on_progress: Listener) -> list[pd.DataFrame]:
    tables = []
    for done, path in enumerate(paths):
        on_progress(ProgressEvent("reading labels", done, len(paths)))
        with closing(open_source(path)) as source:
            tables.append(source.obs)
    on_progress(ProgressEvent("reading labels", len(paths), len(paths)))
    return tables


def _settings(
    files: Sequence[str],
    phenotypes: Sequence[FoundColumn],
    columns: ObsColumns,
    refused: dict[str, str],
    split_by: str,
) -> DataSettings:
    mapped: dict[str, str | bool] = {one.name: one.column for one in phenotypes}
    mapped |= dict.fromkeys([*(one.name for one in columns.single), *refused], False)
    return DataSettings.model_validate(
        {"files": list(files), "phenotypes": mapped, "split": {"by": split_by}}
    )


def _phenotype_of(finding: str, phenotypes: Sequence[FoundColumn]) -> str:
    """Name the phenotype that a fault is about: its message says data.phenotypes.NAME."""
    named = [one.name for one in phenotypes if f"data.phenotypes.{one.name} " in finding]
    return max(named, key=len, default="")


def _facts(
    files: Sequence[str],
    paths: Sequence[str],
    columns: ObsColumns,
    refused: dict[str, str],
    report: CheckReport,
) -> DraftFacts:
    facts = report.facts
    matrices = {one["matrix"] for one in facts["files"]}
    warnings = [row.finding for row in report.of_level("warn") if row.family not in _NOT_TOLD]
    if len(warnings) > _MOST_WARNINGS:
        warnings[_MOST_WARNINGS - 1 :] = [f"and {len(warnings) - _MOST_WARNINGS + 1} more"]
    donors = columns.donors
    left_out = [ColumnNote(one.name, one.column, _only_value(one)) for one in columns.single]
    left_out += [
        ColumnNote(one.name, one.column, f"obs column {one.column!r}: {_reason(refused[one.name])}")
        for one in columns.phenotypes
        if one.name in refused
    ]
    return DraftFacts(
        files=files,
        n_files=len(paths),
        n_cells=facts["cells"],
        n_genes=facts["genes"],
        matrix=matrices.pop() if len(matrices) == 1 else "auto",
        values="counts" if facts["values"] == "counts" else "log1p values",
        gene_ids=" or ".join(dict.fromkeys(one["gene_ids"] for one in facts["files"])),
        phenotypes=[
            ColumnNote(one.name, one.column, _note(one, facts["cells"]))
            for one in columns.phenotypes
            if one.name not in refused
        ],
        left_out=left_out,
        partial=columns.partial,
        further=[
            ColumnNote(one.name, one.column, _note(one, facts["cells"])) for one in columns.further
        ],
        split_by="cells" if donors is None else donors.column,
        split_note="no column of three donors or more: single cells are dealt, scores may flatter"
        if donors is None
        else f"{len(donors.values):,} donors: none crosses a split",
        warnings=warnings,
    )


def _note(found: FoundColumn, n_cells: int) -> str:
    named = "; ".join(_short(value) for value in found.values[:_NAMED])  # labels have commas
    more = "; ..." if len(found.values) > _NAMED else ""
    known = "" if found.n_known == n_cells else f", known of {found.n_known:,} cells"
    return f"{len(found.values):,} values{known}: {named}{more}"


def _only_value(found: FoundColumn) -> str:
    if not found.values:
        return f"obs column {found.column!r} says nothing of any cell"
    return f"obs column {found.column!r} holds one value only, {_short(found.values[0])}"


def _reason(finding: str) -> str:
    """Cut the place off a refusal: the preset's line is the place."""
    return finding.partition(") ")[2] or finding


def _short(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:37]}..."
