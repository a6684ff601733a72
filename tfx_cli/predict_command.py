"""`tfx predict`: phenotypes of the cells of a file that the model has never seen."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfx_cli.arguments import check_output, model_folder
from tfx_cli.options import Device, GeneIds, JsonOutput, Matrix, ModelOption
from tfx_cli.output import make_table, narrate, print_result, warn
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from core.inference.annotate import PhenotypePredictions
    from core.inference.query_cells import Hint, QueryCells
    from core.model.folder import CellModel

#: Endings of the new obs columns of a phenotype.
_ENDINGS = ("", "_probability", "_unsure")


def predict(
    file: Annotated[str, typer.Argument(metavar="FILE.h5ad", help="The cells.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.h5ad | OUT.csv",
            help="A copy of the file with the predictions in obs, or a table of the predictions.",
        ),
    ],
    run: ModelOption = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--given",
            metavar="NAME[=COLUMN]",
            help="A known phenotype to show to the model: tissue, or tissue=organ for the obs "
            "column organ; can be repeated.",
        ),
    ] = None,
    least: Annotated[
        float,
        typer.Option(
            "--unsure-below",
            min=0.0,
            max=1.0,
            help="Probability below which a prediction is unsure.",
        ),
    ] = 0.5,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Prefix of the new obs columns.")
    ] = "tfx_",
    matrix: Matrix = "auto",
    gene_ids: GeneIds = "auto",
    device: Device = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output file if it exists.")
    ] = False,
    as_json: JsonOutput = False,
) -> None:
    """Label the cells of a file: every phenotype of the model, with its probability.

    Adds to obs, for each phenotype that is not given, tfx_NAME (the most likely value),
    tfx_NAME_probability and tfx_NAME_unsure. Genes are joined by id or symbol; those that the file
    lacks are masked, not taken for unexpressed. The model folder is enough: you need neither the
    training cells nor the run.

    Examples
    --------
    tfx predict new.h5ad -o labelled.h5ad
    tfx predict new.h5ad -o labels.csv --given tissue=organ --run runs/base
    """
    check_output(output, (".h5ad", ".csv"), what="labelled cells", overwrite=overwrite)
    folder = model_folder(run)
    # torch and transformers, 3 s: not before the options are checked.
    from core.files import replace_file
    from core.inference.annotate import predict_phenotypes_of, prediction_table
    from core.inference.annotated_file import annotated_copy
    from core.inference.query_cells import open_query_cells, read_hint
    from core.model.folder import CellModel
    from core.training.machine import choose_device

    model = CellModel.load(folder, device=choose_device(device, where="--device"))
    with open_query_cells(file, model.panel, matrix=matrix, gene_ids=gene_ids) as cells:
        hints = [read_hint(cells.source, model.config, one) for one in given or []]
        _narrate_input(cells, model, hints)

        def predicted() -> "tuple[list[PhenotypePredictions], Any]":
            with show_progress() as listener:
                found = predict_phenotypes_of(model, cells, hints, on_progress=listener)
            names = cells.source.obs.index
            return found, prediction_table(found, names, unsure_below=least, prefix=prefix)

        if output.suffix == ".csv":
            predictions, table = predicted()
            output.parent.mkdir(parents=True, exist_ok=True)
            replace_file(output, table.to_csv(float_format="%.4f", index_label="cell"))
        else:
            with annotated_copy(file, output) as copy:
                known = {hint.name for hint in hints}
                names = [name for name in model.config.predicted if name not in known]
                columns = [f"obs/{prefix}{name}{end}" for name in names for end in _ENDINGS]
                copy.check_free(*columns, remedy="choose another --prefix")
                predictions, table = predicted()
                copy.add_columns("obs", {str(name): table[name].array for name in table})
                copy.add_facts("tfx_prediction", _facts(model, folder, cells, hints, least))
        n_cells, missing = cells.n_cells, int(cells.missing.sum())
    narrate(f"{output}: {n_cells:,} cells")
    summaries = {one.name: _summary(one, least) for one in predictions}
    print_result(
        "predict",
        {
            "output": output,
            "cells": n_cells,
            "model": folder,
            "genes_missing": missing,
            "given": [hint.name for hint in hints],
            "phenotypes": summaries,
        },
        as_json=as_json,
        text=lambda: _report(
            summaries, n_cells, is_simulated=bool(model.provenance.get("simulated"))
        ),
    )


def _narrate_input(cells: "QueryCells", model: "CellModel", hints: "Sequence[Hint]") -> None:
    found = int((~cells.missing).sum())
    narrate(
        f"{cells.source.name}: {cells.n_cells:,} cells, {found:,} of {len(model.panel):,} genes "
        f"(by {cells.joined_by}), {cells.choice.matrix} holds {cells.choice.state}"
    )
    for hint in hints:
        if hint.unknown:
            labels = ", ".join(f"'{label}' ({n:,})" for label, n in list(hint.unknown.items())[:5])
            warn(f"--given {hint.name}: the model does not know {labels}; taken as not specified")


def _facts(
    model: "CellModel",
    folder: Path,
    cells: "QueryCells",
    hints: "Sequence[Hint]",
    least: float,
) -> dict[str, Any]:
    from core import __version__

    return {
        "tfx": __version__,
        "model": str(model.provenance.get("name", folder)),
        "step": int(model.provenance.get("step", 0)),
        "genes": len(model.panel),
        "genes_missing": int(cells.missing.sum()),
        "joined_by": cells.joined_by,
        "matrix": cells.choice.matrix,
        "given": json.dumps({hint.name: hint.column for hint in hints}),
        "unsure_below": least,
        "simulated_training_data": bool(model.provenance.get("simulated", False)),
    }


def _summary(one: "PhenotypePredictions", least: float) -> dict[str, Any]:
    return {
        "cells": one.cells_per_value(),
        "mean_probability": float(one.probability.mean()) if len(one.probability) else None,
        "unsure": int(one.is_unsure(least).sum()),
    }


def _report(
    summaries: dict[str, dict[str, Any]], n_cells: int, *, is_simulated: bool
) -> "Iterator[RenderableType]":
    if is_simulated:
        yield "The model was trained on simulated cells: these labels say nothing about real biology."
    rows = []
    for name, found in summaries.items():
        common = list(found["cells"].items())[:3]
        shown = ", ".join(f"{value} {n / max(n_cells, 1):.0%}" for value, n in common)
        rows.append(
            [
                name,
                shown + (", ..." if len(found["cells"]) > 3 else ""),
                f"{found['mean_probability'] or 0:.2f}",
                f"{found['unsure'] / max(n_cells, 1):.0%}",
            ]
        )
    yield make_table(["phenotype", "most cells are", "mean probability", "unsure"], rows)
