"""`tfx eval --generated`: generated cells beside real ones, the copula and independent genes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfx_cli.arguments import check_output_folder, model_folder, preset_of, report_folder
from tfx_cli.output import make_table, narrate, print_result
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from core.evaluation.report.records import FidelityReport

__all__ = ["evaluate_generated_cells"]


def evaluate_generated_cells(
    run: str | None,
    real_files: Sequence[str],
    generated: Sequence[str],
    *,
    output: Path | None,
    labels: Sequence[str],
    classes: str | None,
    max_cells: int | None,
    with_scvi: bool,
    matrix: str,
    gene_ids: str,
    as_json: bool,
) -> None:
    """Judge generated cells, write the report and print it; options as of `tfx eval`."""
    if output is not None:
        check_output_folder(output)
    folder = model_folder(run)
    # torch and transformers, 3 s: not before the run has been found.
    from core.cells.cell_filter import CellFilter
    from core.evaluation.fidelity.report import write_fidelity_report
    from core.evaluation.report.records import FIDELITY_VERSION, report_record
    from core.generation.comparison import open_training_store
    from core.inference.evaluate_generated import evaluate_generated
    from core.model.folder import CellModel
    from core.runlog.schema import CONFIG_FILE

    model = CellModel.load(folder)
    # A model folder alone knows neither; the donors of CELLxGENE are those of "donor_id".
    donor_column, trained_where = "donor_id", None
    if (folder.parent / CONFIG_FILE).is_file():
        data = preset_of(folder.parent).data
        donor_column = donor_column if data.split.by == "cells" else data.split.by
        trained_where = CellFilter.parse(data.where, where="data.where")
    with show_progress() as listener:
        report, pictures = evaluate_generated(
            model,
            generated,
            store=open_training_store(model),
            real_files=real_files,
            labels=labels,
            donor_column=donor_column,
            trained_where=trained_where,
            classes=[one.strip() for one in classes.split(",")] if classes else (),
            max_cells=max_cells or 1_000,
            with_scvi=with_scvi,
            matrix=matrix,
            gene_ids=gene_ids,
            on_progress=listener,
        )
    target = output or report_folder(folder.parent, generated[0])
    written = write_fidelity_report(target, report, pictures)
    narrate(f"report: {' and '.join(str(path) for path in written)}")
    print_result(
        "fidelity",
        report_record(report),
        as_json=as_json,
        text=lambda: _tables(report),
        version=FIDELITY_VERSION,
    )


def _tables(report: "FidelityReport") -> "Iterator[RenderableType]":
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
