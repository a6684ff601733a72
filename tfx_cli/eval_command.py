"""`tfx eval`: how well a model knows the phenotypes of cells it has not seen."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from core.errors import ConfigurationError, DataError
from tfx_cli.arguments import check_output_folder, model_folder, preset_of, report_folder
from tfx_cli.confusion_text import confusion_text
from tfx_cli.options import Device, GeneIds, JsonOutput, Matrix
from tfx_cli.output import make_table, narrate, print_result
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from core.cells.store import Store
    from core.evaluation.report.records import EvaluationReport, GeneRow
    from core.evaluation.report.tables import ReportTable
    from core.model.folder import CellModel

__all__ = ["evaluate"]


def evaluate(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN FILES",
            help="A run, by name or folder (default: the newest), and labelled .h5ad files to score "
            "it on (default: the held-out cells of its store).",
        ),
    ] = None,
    split: Annotated[
        Literal["test", "validation"] | None,
        typer.Option("--split", help="Which held-out cells: test (default) is for the last look."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="NAME=VALUES",
            help="Only the cells that match, as in tissue=lung,spleen; repeat to add conditions. "
            "Default: the cells the model was trained for (data.where).",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="NAME=COLUMN",
            help="FILES: the obs column of a phenotype's true labels, as in tissue=organ; default: "
            "that of the CELLxGENE schema, or of the phenotype's name.",
        ),
    ] = None,
    max_cells: Annotated[
        int | None,
        typer.Option("--max-cells", min=1, help="Score a sample of so many cells (of each file)."),
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
            help="Judge cells of tfx generate against unseen real ones; repeat to judge several "
            "files as one set.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="NAMES",
            help="--generated: the phenotypes that make a class, as in cell_type,sex; default: "
            "cell_type.",
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

    All genes are visible and all phenotypes hidden. The baselines see the same training cells,
    genes and split. The report (report.html and report.json, each confusion matrix as picture and CSV)
    goes to the run's folder; docs/evaluation.md explains each score. The scores of all test cells go
    into the model card, too. With --generated, cells of tfx generate are judged instead
    (docs/fidelity.md).

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
    if classes is not None and not generated:
        message = "--classes: goes with --generated"
        raise ConfigurationError(message)
    if generated:
        _refuse_together("goes without --generated", {"--split": split, "--where": where})
        if baselines == "none":
            message = "--baselines none: generated cells are always held against theirs"
            raise ConfigurationError(message)
        if not files:
            _refuse_together(
                "held-out cells have theirs in the store; name files of real cells",
                {"--label": labels, "--matrix": _chosen(matrix), "--gene-ids": _chosen(gene_ids)},
            )
        from tfx_cli.eval_generated import evaluate_generated_cells

        evaluate_generated_cells(
            run, files, generated, output=output, labels=labels or (), classes=classes,
            max_cells=max_cells, with_scvi=baselines == "all", matrix=matrix, gene_ids=gene_ids,
            as_json=as_json,
        )  # fmt: skip
        return
    if files:
        _refuse_together("FILES are scored whole", {"--split": split, "--where": where})
    else:
        _refuse_together(
            "held-out cells have theirs in the store; name files to score",
            {"--label": labels, "--matrix": _chosen(matrix), "--gene-ids": _chosen(gene_ids)},
        )
    if output is not None:
        check_output_folder(output)
    folder = model_folder(run)
    # torch and transformers, 3 s: not before the run has been found.
    from core.evaluation.baselines import BASELINE_SETS
    from core.evaluation.report.records import EVALUATION_VERSION, report_record
    from core.evaluation.report.writing import write_evaluation, write_into_card
    from core.generation.comparison import open_training_store
    from core.model.folder import CellModel
    from core.training.machine import choose_device

    model = CellModel.load(folder, device=choose_device(device, where="--device"))
    store = open_training_store(model)
    gene_rows: list[GeneRow] = []
    if files:
        report = _score_files(
            model, store, folder.parent, files,
            labels=labels or (), baselines=BASELINE_SETS[baselines], max_cells=max_cells,
            matrix=matrix, gene_ids=gene_ids,
        )  # fmt: skip
        target = output or report_folder(folder.parent, files[0])
    else:
        report, gene_rows = _score_held_out(
            model, store, folder.parent, split or "test", where,
            baselines=BASELINE_SETS[baselines], max_cells=max_cells,
        )  # fmt: skip
        target = output or folder.parent / "eval"
    written = write_evaluation(target, report, gene_rows)
    if not files and not where and (split or "test") == "test" and max_cells is None:
        write_into_card(folder, report)
    narrate(
        f"report: {', '.join(str(path) for path in written[:2])} and {len(written) - 2} more files"
    )
    print_result(
        "eval",
        report_record(report),
        as_json=as_json,
        text=lambda: _tables(report),
        version=EVALUATION_VERSION,
    )


def _run_and_files(targets: Sequence[str]) -> tuple[str | None, list[str]]:
    """Tell the run from the files: a file ends in .h5ad or is built in."""
    names_cells = [one.endswith(".h5ad") or one.startswith("builtin:") for one in targets]
    if not targets or names_cells[0]:
        run, files, are_cells = None, list(targets), names_cells
    else:
        run, files, are_cells = targets[0], list(targets[1:]), names_cells[1:]
    if not all(are_cells):
        wrong = files[are_cells.index(False)]
        message = f"'{wrong}' is no .h5ad file; give one run, then files of cells"
        raise ConfigurationError(message)
    return run, files


def _refuse_together(why: str, options: Mapping[str, object]) -> None:
    for option, value in options.items():
        if value:
            message = f"{option}: {why}"
            raise ConfigurationError(message)


def _chosen(value: str) -> str | None:
    return None if value == "auto" else value


def _score_held_out(
    model: "CellModel",
    store: "Store | None",
    folder: Path,
    split: Literal["test", "validation"],
    where: list[str] | None,
    *,
    baselines: Sequence[str],
    max_cells: int | None,
) -> "tuple[EvaluationReport, list[GeneRow]]":
    from core.cells.cell_filter import CellFilter
    from core.evaluation.held_out import evaluate_held_out

    if store is None:
        message = f"{folder}: the store it was trained on ({model.provenance.get('store')}) is gone or changed; prepare it again"
        raise DataError(message)
    preset = preset_of(folder)
    trained_where = CellFilter.parse(preset.data.where, where="data.where")
    with show_progress() as listener:
        return evaluate_held_out(
            model,
            store,
            split,
            loss=preset.loss,
            where=CellFilter.parse(where, where="--where") if where else trained_where,
            trained_where=trained_where,
            max_cells=max_cells,
            baselines=baselines,
            on_progress=listener,
        )


def _score_files(
    model: "CellModel",
    store: "Store | None",
    folder: Path,
    files: Sequence[str],
    *,
    labels: Sequence[str],
    baselines: Sequence[str],
    max_cells: int | None,
    matrix: str,
    gene_ids: str,
) -> "EvaluationReport":
    from core.cells.cell_filter import CellFilter
    from core.inference.evaluate_files import evaluate_files
    from core.runlog.schema import CONFIG_FILE

    # A model folder alone knows neither; the donors of CELLxGENE are those of "donor_id".
    donor_column, trained_where = "donor_id", None
    if (folder / CONFIG_FILE).is_file():
        data = preset_of(folder).data
        donor_column = donor_column if data.split.by == "cells" else data.split.by
        trained_where = CellFilter.parse(data.where, where="data.where")
    with show_progress() as listener:
        return evaluate_files(
            model,
            files,
            labels=labels,
            donor_column=donor_column,
            store=store,
            trained_where=trained_where,
            baselines=baselines,
            max_cells=max_cells,
            matrix=matrix,
            gene_ids=gene_ids,
            on_progress=listener,
        )


def _tables(report: "EvaluationReport") -> Iterator["RenderableType"]:
    from core.evaluation.report.tables import headline_table, phenotype_tables

    facts = report.facts
    simulated = ", simulated" if facts.simulated else ""
    how = (
        f"split by {facts.split_by}"
        if facts.n_genes_missing is None
        else f"{facts.n_genes_missing:,} of them missing"
    )
    yield f"{report.title}: {facts.n_cells:,} cells, {facts.n_genes:,} genes{simulated} ({how})"
    if report.phenotypes:
        yield ""
        yield from _section(headline_table(report))
    for table in list(phenotype_tables(report))[1:]:
        yield ""
        yield from _section(table)
    for name, methods in report.phenotypes.items():
        for number, part in enumerate(confusion_text(name, methods["model"])):
            if number == 0:
                yield ""
            yield part
    yield from _genes(report)
    if report.notes:
        yield ""
        yield from (f"- {note}" for note in report.notes)


def _genes(report: "EvaluationReport") -> Iterator["RenderableType"]:
    from core.evaluation.report.tables import gene_tables, masked_gene_rows

    if report.genes is not None:
        yield ""
        yield ", ".join(f"{name} {value}" for name, value in masked_gene_rows(report))
    if report.gene_rates is not None:
        yield ""
        yield from _section(next(gene_tables(report)))
        for which in ("best", "worst"):
            if rows := getattr(report.gene_rates, which):
                yield f"{which} predicted: {', '.join(row.symbol for row in rows)}"


def _section(table: "ReportTable") -> Iterator["RenderableType"]:
    yield table.title
    yield make_table(table.header, table.rows, right=range(table.n_labels, len(table.header)))
