"""`tfx eval`: score a model on cells it has not seen, or generated cells against real ones."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import ConfigurationError
from tfx_cli.arguments import (
    check_output_folder,
    check_unused,
    load_model,
    model_folder,
    names_in,
    preset_of,
    report_folder,
    run_and_files,
    trained_on,
)
from tfx_cli.command_line import argument, option
from tfx_cli.formatting import shortened
from tfx_cli.launch import stop_on_signals
from tfx_cli.options import DEVICE, JSON_OUTPUT, UNSURE_AT, Device, FileOptions
from tfx_cli.output import Paragraph, make_table, narrate, print_result
from tfx_cli.progress import progress_of_run

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from core.cells.store import Store
    from core.evaluation.report.records import EvaluationReport, FidelityReport, PhenotypeScores
    from core.evaluation.report.tables import ReportTable
    from core.inference.evaluate_doubles import DoublesReport
    from core.model.folder import CellModel
    from core.progress import Listener

#: Values up to which a confusion matrix fits a terminal of 100 columns.
_MOST_VALUES = 8  # one letter each
_LONGEST_NAME = 24
#: The ends and the middle of cividis, as in the picture.
_COLOURS = ((0, 34, 78), (124, 123, 120), (254, 232, 56))


def evaluate(
    targets: list[str] | None = argument(
        "RUN FILES",
        "A run, by name or folder (default: the newest), and labelled files: .h5ad, .zarr, .h5mu or "
        "soma://PATH (default: the held-out cells of its store).",
        default=None,
    ),
    *,
    split: Literal["test", "validation"] | None = option(
        "--split", "Which held-out cells; default: test."
    ),
    where: list[str] | None = option(
        "--where NAME=VALUES",
        "Only matching cells, as in tissue=lung,liver; repeat to add conditions. Default: "
        "data.where of the run.",
    ),
    labels: list[str] | None = option(
        "--label NAME=COLUMN",
        "FILES: the obs column of a phenotype's true labels, as in tissue=organ; default: the"
        " column of training, else that of CELLxGENE, or of the phenotype's name.",
    ),
    max_cells: int | None = option("--max-cells", "Score a random sample (of each file).", min=1),
    baselines: Literal["quick", "all", "none"] = option(
        "--baselines",
        "quick: logistic regression, gene marginals, majority; all: also gradient boosting "
        "and nearest neighbours, which take minutes; with --generated scVI (extra scvi).",
        default="quick",
    ),
    unsure_at: float | None = UNSURE_AT,
    cross_validate: Literal["donors"] | None = option(
        "--cross-validate donors",
        "Train one model more for each donor of the training cells, without this donor, and score it on "
        "this donor's cells. Ctrl-C stops, and the same command continues.",
    ),
    generated: list[str] | None = option(
        "--generated FILE.h5ad",
        "Compare cells of tfx generate with held-out real ones; repeat for more files.",
    ),
    classes: str | None = option(
        "--classes NAMES",
        "--generated: phenotypes that make a class, as in cell_type,sex; default: cell_type.",
    ),
    doubles: str | None = option(
        "--doubles NAME,NAME",
        "The two phenotypes that hold the perturbations of a cell, as in guide_1,guide_2: generate the pairs "
        "that the model was not trained on, and compare them with real cells and simple predictions.",
    ),
    output: Path | None = option(
        "--output -o FOLDER", "Folder of the report; default: RUN/eval, or RUN/eval-FILE."
    ),
    store: Path | None = option(
        "--store FOLDER", "The store the run was trained on, if it is in another place now."
    ),
    how: FileOptions,
    device: Device = DEVICE,
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Score a model on held-out cells, or on files it has never seen, beside simple baselines.

    All genes are visible and all phenotypes hidden. The baselines have the same training cells,
    genes and split. The report (report.html and report.json, each confusion matrix as picture and
    CSV) goes to the run's folder; 'tfx docs evaluation' explains each score. The scores of all test
    cells go into the model card, too. With --generated, cells of tfx generate are compared with
    real ones instead ('tfx docs fidelity'); with --doubles pairs of perturbations ('tfx docs perturb').

    Examples
    --------
    tfx eval
    tfx eval runs/base --split validation --json
    tfx eval --baselines all
    tfx eval --where sex=female,tissue=lung,liver
    tfx eval runs/base new.h5ad --label tissue=organ
    tfx eval runs/base --cross-validate donors
    tfx eval runs/base --generated generated.h5ad
    tfx eval runs/screen doubles.h5ad --doubles guide_1,guide_2
    """
    run, files = run_and_files(targets or [])
    _check_options(locals(), files)
    folder = model_folder(run)
    run_folder = folder.parent
    scored_file = next(iter(generated or files), None)
    target = output or (
        report_folder(run_folder, scored_file) if scored_file else run_folder / "eval"
    )
    if cross_validate and output is None:
        target = run_folder / "eval-cross-validation"
    check_output_folder(target, option="report:" if output is None else "--output")
    # torch and transformers, 3 s: only after the run has been found.
    from core.evaluation.baselines import BASELINE_SETS
    from core.evaluation.report.records import EVALUATION_VERSION, FIDELITY_VERSION, report_record
    from core.generation.comparison import find_training_store, open_training_store

    model = load_model(folder, "cpu" if generated else device)
    is_needed = store is not None or not (files or generated) or doubles is not None
    cells = find_training_store(model, store) if is_needed else open_training_store(model)
    _, trained_where = trained_on(run_folder)
    of_files: dict[str, Any] = {
        "store": cells,
        "trained_where": trained_where,
        "reading": how.reading(labels, run_folder),
    }
    if doubles is not None:
        from core.inference.evaluate_doubles import evaluate_doubles

        with progress_of_run(run_folder, "comparing") as listener:
            of_doubles = evaluate_doubles(
                model, names_in([doubles]), files=files, on_progress=listener, **of_files
            )
        print_result(
            "eval.doubles",
            {**asdict(of_doubles), "verdict": of_doubles.verdict},
            as_json=as_json,
            text=lambda: _doubles_text(of_doubles),
        )
        return
    if generated:
        from core.evaluation.fidelity.report import write_fidelity_report
        from core.inference.evaluate_generated import evaluate_generated

        with progress_of_run(run_folder, "comparing") as listener:
            fidelity, pictures = evaluate_generated(
                model,
                generated,
                real_files=files,
                classes=[one.strip() for one in classes.split(",")] if classes else (),
                max_cells=max_cells or 1_000,
                with_scvi=baselines == "all",
                on_progress=listener,
                **of_files,
            )
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
    from core.cells.cell_filter import CellFilter
    from core.evaluation.held_out import evaluate_held_out
    from core.evaluation.report.writing import write_evaluation, write_into_card
    from core.inference.evaluate_files import evaluate_files

    gene_rows: list[Any] = []
    scored: dict[str, Any] = {
        "baselines": BASELINE_SETS[baselines],
        "max_cells": max_cells,
        "unsure_at": unsure_at,
    }
    with progress_of_run(run_folder, "evaluating") as listener:
        if cross_validate:
            assert cells is not None, "a run without its store was refused above"
            report = _cross_validate(
                run_folder, device, model, cells, BASELINE_SETS[baselines], unsure_at, listener
            )
        elif cells is None or files:
            report = evaluate_files(model, files, on_progress=listener, **scored, **of_files)
        else:
            report, gene_rows = evaluate_held_out(
                model,
                cells,
                split or "test",
                loss=preset_of(run_folder).preset.loss,
                where=CellFilter.parse(where, where="--where") if where else trained_where,
                trained_where=trained_where,
                on_progress=listener,
                **scored,
            )
    written = write_evaluation(target, report, gene_rows)
    if not files and not where and split != "validation" and max_cells is None:
        write_into_card(folder, report)
    narrate(f"report: {written[0]}, {written[1]} and {len(written) - 2} more files")
    print_result(
        "eval",
        report_record(report),
        as_json=as_json,
        text=lambda: _evaluation_text(report),
        version=EVALUATION_VERSION,
    )


def _check_options(given: dict[str, Any], files: Sequence[str]) -> None:
    """Check that options fit together."""
    generated = given["generated"]
    if given["doubles"] is not None:
        unused = (
            "output",
            "generated",
            "split",
            "where",
            "max_cells",
            "unsure_at",
            "cross_validate",
        )
        check_unused(
            {f"--{name.replace('_', '-')}": given[name] for name in unused},
            "cannot be used with --doubles",
        )
        if given["baselines"] != "quick":
            raise ConfigurationError(
                f"--baselines {given['baselines']}: doubles have baselines of their own; leave it out"
            )
    if not generated:
        check_unused({"--classes": given["classes"]}, "needs --generated")
    if generated and given["baselines"] == "none":
        raise ConfigurationError(
            "--baselines none: generated cells are always compared with baselines"
        )
    if generated or files:
        reason = "cannot be used with --generated" if generated else "FILES are scored whole"
        check_unused({"--split": given["split"], "--where": given["where"]}, reason)
    if generated:
        check_unused({"--unsure-at": given["unsure_at"]}, "cannot be used with --generated")
    if given["cross_validate"]:
        names = {"--generated": "generated", "--split": "split", "--where": "where"}
        names |= {"--max-cells": "max_cells"}
        check_unused(
            {option: given[name] for option, name in names.items()} | {"FILES": files},
            "cannot be used with --cross-validate, which scores all training cells",
        )
    if generated or not files:
        check_unused({"--few-genes": given["how"].few_genes}, "needs FILES that are scored")
    if not files:
        what = "files of real cells" if generated else "files to score"
        reason = f"held-out cells have theirs in the store; name {what}"
        given["how"].check_unused(given["labels"], reason)


def _cross_validate(
    run: Path,
    device: str,
    model: "CellModel",
    store: "Store",
    baselines: "Sequence[str]",
    unsure_at: float | None,
    listener: "Listener",
) -> "EvaluationReport":
    """Train the models that leave out a donor, and score them; a signal stops as it stops training."""
    from core.inference.cross_validation import cross_validate
    from core.published.weights import convert_start

    preset = preset_of(run, error_type=ConfigurationError)
    if device != "auto":
        preset = preset.changed(options={"train.device": device})
    with stop_on_signals() as stop:
        return cross_validate(
            run,
            preset,
            model,
            store,
            baselines=baselines,
            unsure_at=unsure_at,
            convert_weights=convert_start,
            should_stop=stop,
            on_progress=listener,
        )


# -- text
def _evaluation_text(report: "EvaluationReport") -> Iterator[Paragraph]:
    from core.evaluation.report.tables import (
        gene_tables,
        headline_table,
        masked_gene_rows,
        part_table,
        phenotype_tables,
        split_text,
    )

    facts = report.facts
    simulated = ", simulated" if facts.simulated else ""
    how = (
        split_text(facts.split_by)
        if facts.n_genes_missing is None
        else f"{facts.n_genes_missing:,} of them missing"
    )
    yield f"{report.title}: {facts.n_cells:,} cells, {facts.n_genes:,} genes{simulated} ({how})"
    tables = [headline_table(report)] if report.phenotypes else []
    for table in [*tables, *list(phenotype_tables(report))[1:]]:
        yield _titled(table)
    for name, scores in report.of_model.items():
        yield confusion_text(name, scores)
    if report.genes is not None:
        yield ", ".join(f"{name} {value}" for name, value in masked_gene_rows(report))
    if rates := report.gene_rates:
        ends = {"best": rates.best, "worst": rates.worst}
        symbols = {end: ", ".join(row.symbol for row in rows) for end, rows in ends.items() if rows}
        lines = [f"{end} predicted: {names}" for end, names in symbols.items()]
        yield [*_titled(next(gene_tables(report))), *lines]
    if (parts := part_table(report)) is not None:
        yield [*_titled(parts), parts.note]
    yield [f"- {note}" for note in report.notes]


def _titled(table: "ReportTable") -> "list[RenderableType]":
    right = range(table.n_labels, len(table.header))
    return [table.title, make_table(table.header, table.rows, right=right)]


def confusion_text(phenotype: str, scores: "PhenotypeScores") -> "list[RenderableType]":
    """Draw a confusion matrix as a heat map: rows are true values, in per cent of their cells.

    Nothing is drawn for more than `_MOST_VALUES` values, or if no value is confused.
    """
    matrix, values = scores.confusion, scores.values
    if matrix is None or values is None:
        return []
    n_true = [sum(row) for row in matrix]
    n_predicted = [sum(column) for column in zip(*matrix, strict=True)]
    seen = [i for i in range(len(values)) if n_true[i] or n_predicted[i]]
    is_confused = any(matrix[i][j] for i in seen for j in seen if i != j)
    if len(seen) > _MOST_VALUES or not is_confused:
        return []
    letters = "abcdefgh"[: len(seen)]
    rows = []
    for letter, i in zip(letters, seen, strict=True):
        cells = [_cell(matrix[i][j] / n_true[i]) if n_true[i] else "" for j in seen]
        rows.append([f"{letter} {shortened(values[i], _LONGEST_NAME)}", n_true[i], *cells])
    table = make_table(["true value", "cells", *letters], rows, right=range(1, len(seen) + 2))
    return [f"{phenotype}: predictions (columns) in per cent of the true value's cells", table]


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


def _fidelity_text(report: "FidelityReport") -> Iterator[Paragraph]:
    from rich.text import Text

    from core.evaluation.fidelity.report import measure_table

    facts = report.facts
    yield (
        f"{report.title}: {facts.n_cells_generated:,} cells beside {facts.real_cells}; "
        f"{facts.matched_cells_per_side} matched by {facts.classes}; {facts.n_seeds} seeds"
    )
    table = measure_table(report, intervals=False)
    styles = {"met": "green", "NOT MET": "bold red"}
    rows = [[*row[:-1], Text(row[-1], style=styles.get(row[-1], ""))] for row in table.rows]
    yield make_table(table.header, rows, right=range(1, len(table.header) - 2))
    yield [
        *(f"- {sentence}" for sentence in report.verdict),
        *(f"- note: {note}" for note in report.notes),
    ]


def _doubles_text(report: "DoublesReport") -> Iterator[Paragraph]:
    from core.inference.evaluate_doubles import METHODS

    yield (
        f"{len(report.doubles):,} pairs of {' and '.join(report.phenotypes)} without training cells, over "
        f"{report.genes:,} genes; changes are those of mean log values from {report.control_cells:,} control cells "
        f"({report.control}). Correlation of each predicted change with that of the real cells:"
    )
    rows = [
        [one.double, one.cells, *(f"{one.correlation[name]:.3f}" for name in METHODS)]
        for one in report.doubles
    ]
    yield make_table(["double", "cells", *METHODS.values()], rows, right=range(1, 2 + len(METHODS)))
    rows = []
    for name, what in METHODS.items():
        low, high = report.intervals[name]
        interval = f"{low:.3f} to {high:.3f}" if low == low else ""
        rows.append(
            [what, f"{report.correlation[name]:.3f}", interval, f"{report.error[name]:.3f}"]
        )
    header = ["mean over doubles", "correlation", "95 % interval", "error (no change: 1)"]
    yield make_table(header, rows, right=range(1, 4))
    yield [report.verdict, *(f"- {note}" for note in report.notes)]
