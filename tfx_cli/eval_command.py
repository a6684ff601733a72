"""`tfx eval`: how well a model knows the phenotypes of cells it has not seen."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from core.errors import DataError
from tfx_cli.confusion_text import confusion_text
from tfx_cli.options import JsonOutput
from tfx_cli.output import make_table, narrate, print_result
from tfx_cli.progress import show_progress
from tfx_cli.run_folders import RUNS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from core.evaluation.report_tables import ReportTable

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run, by name or folder; default: the newest."),
    ] = None,
    split: Annotated[
        Literal["test", "validation"],
        typer.Option("--split", help="Which held-out cells; test is for the last look."),
    ] = "test",
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="NAME=VALUES",
            help="Only the cells that match, as in tissue=lung,spleen; repeat to add conditions. "
            "Default: the cells the model was trained for (data.where).",
        ),
    ] = None,
    max_cells: Annotated[
        int | None, typer.Option("--max-cells", min=1, help="Score a sample of so many cells.")
    ] = None,
    baselines: Annotated[
        Literal["quick", "all", "none"],
        typer.Option(
            "--baselines",
            help="quick: logistic regression, gene marginals, majority; all: also gradient boosting "
            "and nearest neighbours, which take minutes.",
        ),
    ] = "quick",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Folder of the report; default: RUN/eval."
        ),
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Score a model on held-out cells, per phenotype, beside simple baselines.

    All genes are visible and all phenotypes hidden. The baselines see the same training cells,
    genes and split. The report (report.html, .json and .md, each confusion matrix as picture and CSV)
    goes to the run's folder; docs/evaluation.md says what each figure means.

    Examples
    --------
    tfx eval
    tfx eval runs/base --split validation --json
    tfx eval --baselines all
    tfx eval --where sex=female,tissue=lung,spleen
    """
    from core.runlog.reader import find_run

    folder = find_run(RUNS, run)
    # torch and transformers, 3 s: not before the run has been found.
    from core.cells.cell_filter import CellFilter
    from core.evaluation.baselines import BASELINE_SETS
    from core.evaluation.held_out import evaluate_held_out
    from core.evaluation.reports import REPORT_VERSION, write_evaluation_report
    from core.generation.comparison import open_training_store
    from core.model.folder import CellModel
    from core.presets.loading import ResolvedPreset
    from core.runlog.schema import CONFIG_FILE, MODEL_FOLDER

    if not (folder / MODEL_FOLDER).is_dir():
        message = f"{folder} has no model yet (its first evaluation writes one); wait, or go on with 'tfx train {folder}'"
        raise DataError(message)
    model = CellModel.load(folder / MODEL_FOLDER)
    store = open_training_store(model)
    if store is None:
        message = f"{folder}: the store it was trained on ({model.origin.get('store')}) is gone or changed; prepare it again"
        raise DataError(message)
    config = folder / CONFIG_FILE
    try:
        text = config.read_text(encoding="utf-8")
    except OSError as error:
        message = f"{config} cannot be read ({error.strerror}); copy the whole run folder again"
        raise DataError(message) from error
    preset = ResolvedPreset.from_toml(text, where=str(config)).preset
    trained_where = CellFilter.parse(preset.data.where, where="data.where")
    with show_progress() as listener:
        report = evaluate_held_out(
            model,
            store,
            split,
            loss=preset.loss,
            where=CellFilter.parse(where, where="--where") if where else trained_where,
            trained_where=trained_where,
            max_cells=max_cells,
            baselines=BASELINE_SETS[baselines],
            on_progress=listener,
        )
    target = output or folder / "eval"
    files = write_evaluation_report(target, report)
    narrate(f"report: {', '.join(str(path) for path in files[:2])} and {len(files) - 2} more files")
    del report["gene_table"]  # a row per gene: genes.csv
    print_result(
        "eval", report, as_json=as_json, text=lambda: _tables(report), version=REPORT_VERSION
    )


def _tables(report: Mapping[str, Any]) -> "Iterator[RenderableType]":
    from core.evaluation.report_tables import gene_tables, label_of, phenotype_tables

    facts = report["facts"]
    simulated = ", simulated" if facts["simulated"] else ""
    yield (
        f"{report['title']}: {facts['cells']:,} cells, {facts['genes']:,} genes"
        f"{simulated} (split by {facts['split by']})"
    )
    yield ""
    yield "accuracy / macro-F1, all genes visible, all phenotypes hidden"
    methods = list(next(iter(report["phenotypes"].values()), {"model": {}}))
    rows = [
        [
            name,
            f"{of_phenotype['model']['n_cells']:,}",
            *(
                f"{of_phenotype[method]['accuracy']:.3f} / {of_phenotype[method]['macro_f1']:.3f}"
                for method in methods
            ),
        ]
        for name, of_phenotype in report["phenotypes"].items()
    ]
    yield make_table(["phenotype", "cells", *map(label_of, methods)], rows)
    for table in list(phenotype_tables(report))[1:]:
        yield ""
        yield from _section(table)
    for name, of_phenotype in report["phenotypes"].items():
        for number, part in enumerate(confusion_text(name, of_phenotype["model"])):
            if number == 0:
                yield ""
            yield part
    yield ""
    yield "masked genes: " + ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.3f}"
        for name, value in report["genes"].items()
    )
    by_rate = next(gene_tables(report))
    yield ""
    yield from _section(by_rate)
    for which in ("best", "worst"):
        if genes := report["gene_rates"][which]:
            yield f"told {which}: {', '.join(gene['symbol'] for gene in genes)}"
    if report["notes"]:
        yield ""
        yield from (f"- {note}" for note in report["notes"])


def _section(table: "ReportTable") -> "Iterator[RenderableType]":
    yield table.title
    yield make_table(table.header, table.rows, right=range(table.n_labels, len(table.header)))
