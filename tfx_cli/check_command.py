"""`tfx check`: whether cells are fit for preparing and training, before either costs time."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import ExitCode
from tfx_cli.arguments import existing_run, resolve_sources
from tfx_cli.formatting import count_of
from tfx_cli.options import Assignments, ConfigFiles, JsonOutput, Sources
from tfx_cli.output import findings_text, print_result
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from core.cells.checks.report import CheckReport, CheckRow
    from core.cells.genes import GenePanel

#: Rows of one check and level that the table shows; --json lists all.
_MOST_ALIKE = 5


def check(
    sources: Sources,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="RUN", help="Also check the genes of this run's model."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read some thousand cells of each file only.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 4 on warnings too.")] = False,
    config: ConfigFiles = None,
    assign: Assignments = None,
    as_json: JsonOutput = False,
) -> None:
    """Check whether cells are fit for preparing and training: ok, warn or fail, with the fix.

    Values and their kind, gene ids and overlap, empty and doublet-like cells, coverage and
    spelling of labels, donors and phenotypes that they confound, disk and time. Every value is
    read once and nothing is written. Exits with 4 if a row fails. docs/check.md explains each row.

    Examples
    --------
    tfx check 'cells_{0..43}.h5ad' --set data.phenotypes.age=age_years
    tfx check new_cells.h5ad --model base --quick
    """
    resolved = resolve_sources(sources, config, assign)
    # anndata, scanpy and pandas, 2 to 3 s: only after the preset has proved right.
    from core.cells.checks.check import check_data

    panel = None if model is None else _genes_of(model)
    with show_progress() as listener:
        report = check_data(
            resolved.preset.data,
            scope="quick" if quick else "full",
            model_genes=panel,
            on_progress=listener,
        )
    print_result("check", report.to_dict(), as_json=as_json, text=lambda: _tables(report))
    if report.level == "fail" or (strict and report.level == "warn"):
        raise typer.Exit(ExitCode.DATA)


def _genes_of(model: str) -> "GenePanel":
    from core.model.folder_checks import read_genes  # transformers and torch, 2 s
    from core.runlog.schema import MODEL_FOLDER

    folder = existing_run(model) or Path(model)
    of_run = folder / MODEL_FOLDER
    return read_genes(of_run if of_run.is_dir() else folder)


def _tables(report: "CheckReport") -> Iterator["RenderableType"]:
    facts = report.facts
    genes = "" if facts["genes"] is None else f" x {facts['genes']:,} genes"
    yield f"{count_of(len(facts['files']), 'file')}, {facts['cells']:,} cells{genes}"
    yield ""
    yield from findings_text(report, _shortened(report.rows))


def _shortened(rows: Sequence["CheckRow"]) -> Iterator[tuple["CheckRow", int]]:
    """Yield the first rows of each check and level, each with the number of rows omitted after it."""
    alike: dict[tuple[str, str, str], list[CheckRow]] = defaultdict(list)
    for row in rows:
        alike[row.family, row.check, row.level].append(row)
    for group in alike.values():
        shown = group[:_MOST_ALIKE] if len(group) > _MOST_ALIKE + 1 else group
        for row in shown[:-1]:
            yield row, 0
        yield shown[-1], len(group) - len(shown)
