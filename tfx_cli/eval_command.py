"""`tfx eval`: score a model on cells it has not seen, or generated cells against real ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from core.errors import ConfigurationError, DataError
from tfx_cli.arguments import check_output_folder, model_folder, preset_of, report_folder
from tfx_cli.formatting import shortened
from tfx_cli.options import Device, GeneIds, JsonOutput, Matrix, check_unused
from tfx_cli.output import make_table, narrate, print_result
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from core.evaluation.report.records import EvaluationReport, FidelityReport, PhenotypeScores
    from core.evaluation.report.tables import ReportTable

#: Values up to which a confusion matrix fits a terminal of 100 columns.
_MOST_VALUES = 8
_LONGEST_NAME = 24
#: The ends and the middle of cividis, as in the picture.
_COLOURS = ((0, 34, 78), (124, 123, 120), (254, 232, 56))


def evaluate(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN FILES",
            help="A run, by name or folder (default: the newest), and labelled .h5ad files "
            "(default: the held-out cells of its store).",
        ),
    ] = None,
    split: Annotated[
        Literal["test", "validation"] | None,
        typer.Option("--split", help="Which held-out cells; default: test."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="NAME=VALUES",
            help="Only matching cells, as in tissue=lung,spleen; repeat to add conditions. "
            "Default: data.where of the run.",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="NAME=COLUMN",
            help="FILES: the obs column of a phenotype's true labels, as in tissue=organ; default: "
            "the CELLxGENE column, or one of the phenotype's name.",
        ),
    ] = None,
    max_cells: Annotated[
        int | None,
        typer.Option("--max-cells", min=1, help="Score a random sample (of each file)."),
    ] = None,
    baselines: Annotated[
        Literal["quick", "all", "none"],
        typer.Option(
            "--baselines",
            help="quick: logistic regression, gene marginals, majority; all: also gradient boosting "
            "and nearest neighbours, which take minutes; with --generated scVI (extra scvi).",
        ),
    ] = "quick",
    generated: Annotated[
        list[str] | None,
        typer.Option(
            "--generated",
            metavar="FILE.h5ad",
            help="Compare cells of tfx generate with held-out real ones; repeat for more files.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="NAMES",
            help="--generated: phenotypes that make a class, as in cell_type,sex; default: cell_type.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder of the report; default: RUN/eval, or RUN/eval-FILE.",
        ),
    ] = None,
    matrix: Matrix = "auto",
    gene_ids: GeneIds = "auto",
    device: Device = "auto",
    as_json: JsonOutput = False,
) -> None:
    """Score a model on held-out cells, or on files it has never seen, beside simple baselines.

    All genes are visible and all phenotypes hidden. The baselines have the same training cells,
    genes and split. The report (report.html and report.json, each confusion matrix as picture and
    CSV) goes to the run's folder; docs/evaluation.md explains each score. The scores of all test
    cells go into the model card, too. With --generated, cells of tfx generate are compared with
    real ones instead (docs/fidelity.md).

    Examples
    --------
    tfx eval
    tfx eval runs/base --split validation --json
    tfx eval --baselines all
    tfx eval --where sex=female,tissue=lung,spleen
    tfx eval runs/base new.h5ad --label tissue=organ
    tfx eval runs/base --generated generated.h5ad
    """
    run, files = _run_and_files(targets or [])
    _check_options(locals(), files)
    if output is not None:
        check_output_folder(output)
    folder = model_folder(run)
    # torch and transformers, 3 s: only after the run has been found.
    from core.generation.comparison import open_training_store
    from core.model.folder import CellModel
    from core.training.machine import choose_device

    chosen = "cpu" if generated else choose_device(device, where="--device")
    model = CellModel.load(folder, device=chosen)
    store = open_training_store(model)
    of_files: dict[str, Any] = {"labels": labels or (), "matrix": matrix, "gene_ids": gene_ids}
    if generated:
        from core.evaluation.fidelity.report import write_fidelity_report
        from core.evaluation.report.records import FIDELITY_VERSION, report_record
        from core.inference.evaluate_generated import evaluate_generated

        with show_progress() as listener:
            fidelity, pictures = evaluate_generated(
                model,
                generated,
                store=store,
                real_files=files,
                **_trained_on(folder.parent),
                classes=[one.strip() for one in classes.split(",")] if classes else (),
                max_cells=max_cells or 1_000,
                with_scvi=baselines == "all",
                on_progress=listener,
                **of_files,
            )
        target = output or report_folder(folder.parent, generated[0])
        written = write_fidelity_report(target, fidelity, pictures)
        narrate(f"report: {' and '.join(str(path) for path in written)}")
        print_result(
            "fidelity",
            report_record(fidelity),
            as_json=as_json,
            text=lambda: _fidelity_text(fidelity),
            version=FIDELITY_VERSION,
        )
        return
    from core.evaluation.baselines import BASELINE_SETS
    from core.evaluation.report.records import EVALUATION_VERSION, report_record
    from core.evaluation.report.writing import write_evaluation, write_into_card

    gene_rows: list[Any] = []
    scored: dict[str, Any] = {"baselines": BASELINE_SETS[baselines], "max_cells": max_cells}
    if files:
        from core.inference.evaluate_files import evaluate_files

        with show_progress() as listener:
            report = evaluate_files(
                model,
                files,
                store=store,
                **_trained_on(folder.parent),
                on_progress=listener,
                **scored,
                **of_files,
            )
    else:
        from core.cells.cell_filter import CellFilter
        from core.evaluation.held_out import evaluate_held_out

        if store is None:
            path = model.provenance.get("store")
            message = f"{folder.parent}: the store it was trained on ({path}) is gone or changed; prepare it again"
            raise DataError(message)
        trained_where = _trained_on(folder.parent)["trained_where"]
        with show_progress() as listener:
            report, gene_rows = evaluate_held_out(
                model,
                store,
                split or "test",
                loss=preset_of(folder.parent).loss,
                where=CellFilter.parse(where, where="--where") if where else trained_where,
                trained_where=trained_where,
                on_progress=listener,
                **scored,
            )
    target = output or (report_folder(folder.parent, files[0]) if files else folder.parent / "eval")
    written = write_evaluation(target, report, gene_rows)
    if not files and not where and (split or "test") == "test" and max_cells is None:
        write_into_card(folder, report)
    narrate(f"report: {written[0]}, {written[1]} and {len(written) - 2} more files")
    print_result(
        "eval",
        report_record(report),
        as_json=as_json,
        text=lambda: _evaluation_text(report),
        version=EVALUATION_VERSION,
    )


def _run_and_files(targets: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separate the run from the files of cells, which end in .h5ad or are built in."""
    names_cells = [one.endswith(".h5ad") or one.startswith("builtin:") for one in targets]
    has_run = bool(targets) and not names_cells[0]
    files = list(targets[1:] if has_run else targets)
    for file, is_cells in zip(files, names_cells[len(targets) - len(files) :], strict=True):
        if not is_cells:
            message = f"'{file}' is no .h5ad file; give one run, then files of cells"
            raise ConfigurationError(message)
    return targets[0] if has_run else None, files


def _check_options(given: dict[str, Any], files: Sequence[str]) -> None:
    """Check that options fit together."""
    generated = given["generated"]
    if not generated:
        check_unused({"--classes": given["classes"]}, "needs --generated")
    if generated and given["baselines"] == "none":
        message = "--baselines none: generated cells are always compared with baselines"
        raise ConfigurationError(message)
    held_out = {"--split": given["split"], "--where": given["where"]}
    if generated or files:
        reason = "cannot be used with --generated" if generated else "FILES are scored whole"
        check_unused(held_out, reason)
    if not files:
        of_files = {
            "--label": given["labels"],
            "--matrix": given["matrix"],
            "--gene-ids": given["gene_ids"],
        }
        what = "files of real cells" if generated else "files to score"
        check_unused(of_files, f"held-out cells have theirs in the store; name {what}")


def _trained_on(run: Path) -> dict[str, Any]:
    """Return the donor column and the training cells of a run.

    A model folder alone knows neither: CELLxGENE has its donors in "donor_id".
    """
    from core.cells.cell_filter import CellFilter
    from core.runlog.schema import CONFIG_FILE

    if not (run / CONFIG_FILE).is_file():
        return {"donor_column": "donor_id", "trained_where": None}
    data = preset_of(run).data
    return {
        "donor_column": "donor_id" if data.split.by == "cells" else data.split.by,
        "trained_where": CellFilter.parse(data.where, where="data.where"),
    }


# -- text


def _evaluation_text(report: "EvaluationReport") -> Iterator["RenderableType"]:
    from core.evaluation.report.tables import (
        gene_tables,
        headline_table,
        masked_gene_rows,
        phenotype_tables,
    )

    facts = report.facts
    simulated = ", simulated" if facts.simulated else ""
    how = (
        f"split by {facts.split_by}"
        if facts.n_genes_missing is None
        else f"{facts.n_genes_missing:,} of them missing"
    )
    yield f"{report.title}: {facts.n_cells:,} cells, {facts.n_genes:,} genes{simulated} ({how})"
    tables = [headline_table(report)] if report.phenotypes else []
    for table in [*tables, *list(phenotype_tables(report))[1:]]:
        yield from _section(table)
    for name, methods in report.phenotypes.items():
        yield from confusion_text(name, methods["model"])
    if report.genes is not None:
        yield ""
        yield ", ".join(f"{name} {value}" for name, value in masked_gene_rows(report))
    if report.gene_rates is not None:
        yield from _section(next(gene_tables(report)))
        for which in ("best", "worst"):
            if rows := getattr(report.gene_rates, which):
                yield f"{which} predicted: {', '.join(row.symbol for row in rows)}"
    if report.notes:
        yield ""
        yield from (f"- {note}" for note in report.notes)


def _section(table: "ReportTable") -> Iterator["RenderableType"]:
    yield ""
    yield table.title
    yield make_table(table.header, table.rows, right=range(table.n_labels, len(table.header)))


def confusion_text(phenotype: str, scores: "PhenotypeScores") -> Iterator["RenderableType"]:
    """Draw a confusion matrix as a heat map: rows are true values, in per cent of their cells.

    Nothing is drawn for more than `_MOST_VALUES` values, or if no value is confused.
    """
    matrix, values = scores.confusion, scores.values
    if matrix is None or values is None:
        return
    n_true = [sum(row) for row in matrix]
    n_predicted = [sum(column) for column in zip(*matrix, strict=True)]
    seen = [i for i in range(len(values)) if n_true[i] or n_predicted[i]]
    is_confused = any(matrix[i][j] for i in seen for j in seen if i != j)
    if len(seen) > _MOST_VALUES or not is_confused:
        return
    letters = [chr(ord("a") + place) for place in range(len(seen))]
    rows = []
    for letter, i in zip(letters, seen, strict=True):
        cells = [_cell(matrix[i][j] / n_true[i]) if n_true[i] else "" for j in seen]
        rows.append([f"{letter} {shortened(values[i], _LONGEST_NAME)}", n_true[i], *cells])
    yield ""
    yield f"{phenotype}: predictions (columns) in per cent of the true value's cells"
    yield make_table(["true value", "cells", *letters], rows, right=range(1, len(seen) + 2))


def _cell(fraction: float) -> "Text":
    from rich.text import Text

    if not fraction:
        return Text("  .")
    low, middle, high = _COLOURS
    start, end, part = (
        (low, middle, 2 * fraction) if fraction < 0.5 else (middle, high, 2 * fraction - 1)
    )
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(start, end, strict=True))
    ink = "black" if fraction > 0.5 else "white"
    return Text(f"{100 * fraction:3.0f}", style=f"{ink} on rgb({red},{green},{blue})")


def _fidelity_text(report: "FidelityReport") -> Iterator["RenderableType"]:
    from rich.text import Text

    from core.evaluation.fidelity.report import measure_table

    facts = report.facts
    yield (
        f"{report.title}: {facts.n_cells_generated:,} cells beside {facts.real_cells}; "
        f"{facts.matched_cells_per_side} matched by {facts.classes}; {facts.n_seeds} seeds"
    )
    yield ""
    table = measure_table(report, intervals=False)
    styles = {"met": "green", "NOT MET": "bold red"}
    rows = [[*row[:-1], Text(row[-1], style=styles.get(row[-1], ""))] for row in table.rows]
    yield make_table(table.header, rows, right=range(1, len(table.header) - 2))
    yield ""
    yield from (f"- {sentence}" for sentence in report.verdict)
    yield from (f"- note: {note}" for note in report.notes)
