"""`tfx check`: whether cells are fit to prepare and train on, before either is paid for."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import ExitCode
from tfx_cli.cell_sources import resolve_sources
from tfx_cli.findings_table import findings_text
from tfx_cli.options import Assignments, ConfigFiles, JsonOutput
from tfx_cli.output import print_result
from tfx_cli.progress import show_progress
from tfx_cli.run_folders import existing_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from core.cells.checks import CheckReport, CheckRow
    from core.cells.genes import GenePanel

__all__ = ["check"]

#: Rows of one check and level that the table shows; --json lists all.
_MOST_ALIKE = 5


def check(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="PRESET | FILES...",
            help="A preset (file or bundled name), or .h5ad files: paths, globs, "
            "'name_{0..43}.h5ad', builtin:atlas.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="RUN",
            help="A run, by name or folder, or a model folder: tell which of its genes the cells "
            "have.",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Look at some thousand cells of each file instead of every value."
        ),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 4 on warnings too.")] = False,
    config: ConfigFiles = None,
    assign: Assignments = None,
    as_json: JsonOutput = False,
) -> None:
    """Report whether cells are fit to prepare and train on: ok, warn or fail, with the fix.

    Values and their kind, gene ids and overlap, empty and doublet-like cells, coverage and
    spelling of labels, donors and what cannot be told from them, disk and time. Every value is
    read once and nothing is written. Exits with 4 if a row says fail. What each row means:
    docs/check.md.

    Examples
    --------
    tfx check 'cells_{0..43}.h5ad' --set data.phenotypes.age=age_years
    tfx check new_cells.h5ad --model base --quick
    """
    resolved = resolve_sources(sources, config or [], assign or [])
    # anndata, scanpy and pandas, 2 to 3 s: not before the preset has proved right.
    from core.cells.checks import check_data

    panel = None if model is None else _genes_of(model)
    with show_progress() as listener:
        report = check_data(
            resolved.preset.data,
            depth="quick" if quick else "full",
            model_genes=panel,
            on_progress=listener,
        )
    print_result("check", report.to_dict(), as_json=as_json, text=lambda: _tables(report))
    if report.level == "fail" or (strict and report.level == "warn"):
        raise typer.Exit(ExitCode.DATA)


def _genes_of(model: str) -> "GenePanel":
    from core.cells.checks import read_model_genes

    return read_model_genes(existing_run(model) or Path(model))


def _tables(report: "CheckReport") -> "Iterator[RenderableType]":
    facts = report.facts
    genes = "" if facts["genes"] is None else f" x {facts['genes']:,} genes"
    n_files = len(facts["files"])
    yield f"{n_files:,} file{'s' * (n_files != 1)}, {facts['cells']:,} cells{genes}"
    yield ""
    yield from findings_text(report, _shortened(report.rows))


def _shortened(rows: "Sequence[CheckRow]") -> "Iterator[tuple[CheckRow, int]]":
    """Give the first rows of each check and level, and after the last how many there are more."""
    alike: dict[tuple[str, str, str], list[CheckRow]] = defaultdict(list)
    for row in rows:
        alike[row.family, row.check, row.level].append(row)
    for group in alike.values():
        shown = group[:_MOST_ALIKE] if len(group) > _MOST_ALIKE + 1 else group
        for row in shown[:-1]:
            yield row, 0
        yield shown[-1], len(group) - len(shown)
