"""`tfx check` and `tfx doctor`: whether cells, or this machine, are fit; each finding with its fix."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from core.errors import ExitCode
from tfx_cli.arguments import RUNS, existing_run, resolve_sources
from tfx_cli.command_line import option
from tfx_cli.formatting import count_of
from tfx_cli.options import ASSIGNMENTS, CONFIG_FILES, JSON_OUTPUT, SOURCES
from tfx_cli.output import Paragraph, make_table, narrate, print_result
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from core.cells.checks.report import CheckReport, CheckRow
    from core.cells.genes import GenePanel
    from core.findings import FindingsReport

#: Rows of one check and level that the table shows; --json lists all.
_MOST_ALIKE = 5
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def check(
    sources: list[str] = SOURCES,
    model: str | None = option("--model RUN", "Also check the genes of this run's model."),
    quick: bool = option("--quick", "Read some thousand cells of each file only.", default=False),
    strict: bool = option("--strict", "Exit with 4 on warnings too.", default=False),
    config: list[Path] | None = CONFIG_FILES,
    assign: list[str] | None = ASSIGNMENTS,
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Check whether cells are fit for preparing and training: ok, warn or fail, with the fix.

    Values and their kind, gene ids and overlap, empty and doublet-like cells, coverage and
    spelling of labels, donors and phenotypes that they confound, disk and time. Every value is
    read once and nothing is written. Exits with 4 if a row fails. 'tfx docs check' explains each row.

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
    print_result("check", report.to_dict(), as_json=as_json, text=lambda: _check_text(report))
    if report.level == "fail" or (strict and report.level == "warn"):
        raise typer.Exit(ExitCode.DATA)


def doctor(as_json: bool = JSON_OUTPUT) -> None:
    """Check whether this machine is fit for tfx: ok, warn or fail, with the fix.

    Python and packages, torch against driver, attention kernels by a real call each, memory,
    the disk of runs/, terminal, open files, optional packages. Leaves nothing behind and needs no
    network. Exits with 3 if a row fails.

    Examples
    --------
    tfx doctor
    tfx doctor --json > machine.json
    """
    # numpy and psutil here, torch later, in a check of its own.
    from core.doctor.check import check_machine

    narrate("checking this machine; torch takes some seconds")
    report = check_machine(RUNS)
    print_result(
        "doctor",
        report.to_dict(),
        as_json=as_json,
        text=lambda: _findings_text(report, ((row, 0) for row in report.rows)),
    )
    if report.level == "fail":
        raise typer.Exit(ExitCode.MACHINE)


def _genes_of(model: str) -> "GenePanel":
    from core.model.folder import read_genes  # transformers and torch, 2 s
    from core.runlog.schema import MODEL_FOLDER

    folder = existing_run(model) or Path(model)
    of_run = folder / MODEL_FOLDER
    return read_genes(of_run if of_run.is_dir() else folder)


def _check_text(report: "CheckReport") -> Iterator[Paragraph]:
    facts = report.facts
    genes = "" if facts["genes"] is None else f" x {facts['genes']:,} genes"
    yield f"{count_of(len(facts['files']), 'file')}, {facts['cells']:,} cells{genes}"
    yield from _findings_text(report, _shortened(report.rows))


def _shortened(rows: Sequence["CheckRow"]) -> Iterator[tuple["CheckRow", int]]:
    """Yield the first rows of each check and level, each with the number of rows omitted after it."""
    alike: dict[tuple[str, str, str], list[CheckRow]] = defaultdict(list)
    for row in rows:
        alike[row.family, row.check, row.level].append(row)
    for group in alike.values():
        shown = group[:_MOST_ALIKE] if len(group) > _MOST_ALIKE + 1 else group
        yield from ((row, 0) for row in shown[:-1])
        yield shown[-1], len(group) - len(shown)


def _findings_text(
    report: "FindingsReport[Any]", rows: Iterable[tuple[Any, int]]
) -> Iterator[Paragraph]:
    """Make the table of findings, by family, and the verdict; ``rows`` as from `_shortened`."""
    from rich.text import Text

    cells: list[list[object]] = []
    family = ""
    for row, n_more in rows:
        if row.family != family:
            family = row.family
            cells.append([Text(family, style="bold"), "", ""])
        finding = Text(row.finding, overflow="fold")  # a path is not cut
        if row.fix:
            finding.append(f"\n-> {row.fix}", style="cyan")
        cells.append([Text(f"  {row.level}", style=_STYLES[row.level]), row.check, finding])
        if n_more:
            cells.append(["", "", f"... and {n_more:,} more like it (--json lists all)"])
    yield make_table(["", "check", "finding"], cells)
    n_failures, n_warnings = len(report.of_level("fail")), len(report.of_level("warn"))
    warnings = count_of(n_warnings, "warning")
    if n_failures:
        yield f"not fit: {count_of(n_failures, 'failure')}, {warnings}"
    else:
        yield f"fit, with {warnings} to look at" if n_warnings else "fit"
