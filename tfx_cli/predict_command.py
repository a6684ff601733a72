"""`tfx predict`: what a model says of the cells of a file that it has never seen."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfx_cli.arguments import check_output, model_folder
from tfx_cli.options import Device, GeneIds, JsonOutput, Matrix, ModelOption
from tfx_cli.output import make_table, narrate, print_result, warn
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

    from core.inference.hints import Hint
    from core.inference.predict import PhenotypeAnswers
    from core.inference.query_cells import QueryCells
    from core.model.folder import CellModel

__all__ = ["predict"]


def predict(
    file: Annotated[str, typer.Argument(metavar="FILE.h5ad", help="The cells.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.h5ad | OUT.csv",
            help="A copy of the file with the answers in obs, or a table of the answers alone.",
        ),
    ],
    run: ModelOption = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--given",
            metavar="NAME[=COLUMN]",
            help="A phenotype that is known, as a hint: tissue, or tissue=organ for the obs column "
            "organ; can be repeated.",
        ),
    ] = None,
    least: Annotated[
        float,
        typer.Option(
            "--unsure-below", min=0.0, max=1.0, help="Probability below which an answer is unsure."
        ),
    ] = 0.5,
    prefix: Annotated[
        str, typer.Option("--prefix", help="What the new obs columns begin with.")
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
    lacks are masked, not taken for unexpressed. The model's folder is all it takes: neither its
    training cells nor its run.

    Examples
    --------
    tfx predict new.h5ad -o labelled.h5ad
    tfx predict new.h5ad -o labels.csv --given tissue=organ --run runs/base
    """  # fmt: skip
    check_output(output, (".h5ad", ".csv"), what="labelled cells", overwrite=overwrite)
    folder = model_folder(run)
    # torch and transformers, 3 s: not before the command line has proved right.
    from core.inference.annotated_file import AnnotatedCopy
    from core.inference.hints import read_hint
    from core.inference.predict import predict_phenotypes_of
    from core.inference.query_cells import open_query_cells
    from core.model.folder import CellModel
    from core.training.machine import choose_device

    model = CellModel.load(folder, device=choose_device(device, where="--device"))
    with open_query_cells(file, model.panel, matrix=matrix, gene_ids=gene_ids) as cells:
        hints = [read_hint(cells.source, model.config, one) for one in given or []]
        _tell(cells, model, hints)
        if output.suffix == ".csv":
            with show_progress() as listener:
                answers = predict_phenotypes_of(model, cells, hints, on_progress=listener)
            _write_table(output, _table(answers, cells, prefix, least))
        else:
            with AnnotatedCopy(file, output) as copy:
                asked = [n for n in model.config.predicted if n not in {h.name for h in hints}]
                copy.refuse_taken(
                    *(f"obs/{prefix}{name}{end}" for name in asked for end in _ENDINGS),
                    remedy="choose another --prefix",
                )
                with show_progress() as listener:
                    answers = predict_phenotypes_of(model, cells, hints, on_progress=listener)
                table = _table(answers, cells, prefix, least)
                copy.add_columns("obs", {str(name): table[name].array for name in table})
                copy.add_facts("tfx_prediction", _facts(model, folder, cells, hints, least))
        n_cells, missing = cells.n_cells, int(cells.missing.sum())
    narrate(f"{output}: {n_cells:,} cells")
    print_result(
        "predict",
        {
            "output": output,
            "cells": n_cells,
            "model": folder,
            "genes_missing": missing,
            "given": [hint.name for hint in hints],
            "phenotypes": {one.name: _summary(one, least) for one in answers},
        },
        as_json=as_json,
        text=lambda: _text(answers, n_cells, least, model.provenance),
    )


_ENDINGS = ("", "_probability", "_unsure")


def _tell(cells: "QueryCells", model: "CellModel", hints: "Sequence[Hint]") -> None:
    found = int((~cells.missing).sum())
    narrate(
        f"{cells.source.name}: {cells.n_cells:,} cells, {found:,} of {len(model.panel):,} genes "
        f"(by {cells.joined_by}), {cells.choice.matrix} holds {cells.choice.state}"
    )
    for hint in hints:
        if hint.unknown:
            listed = ", ".join(f"'{label}' ({n:,})" for label, n in list(hint.unknown.items())[:5])
            warn(f"--given {hint.name}: the model does not know {listed}; taken as not specified")


def _table(
    answers: "Sequence[PhenotypeAnswers]", cells: "QueryCells", prefix: str, least: float
) -> "pd.DataFrame":
    from core.inference.notebook import answers_table

    return answers_table(answers, cells.source.obs.index, unsure_below=least, prefix=prefix)


def _write_table(path: Path, table: "pd.DataFrame") -> None:
    from core.files import replace_file

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, table.to_csv(float_format="%.4f", index_label="cell"))


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


def _summary(one: "PhenotypeAnswers", least: float) -> dict[str, Any]:
    return {
        "cells": one.cells_per_value(),
        "mean_probability": float(one.probability.mean()) if len(one.probability) else None,
        "unsure": int(one.is_unsure(least).sum()),
    }


def _text(
    answers: "Sequence[PhenotypeAnswers]", n_cells: int, least: float, origin: dict[str, Any]
) -> Iterator["RenderableType"]:
    if origin.get("simulated"):
        yield "The model was trained on simulated cells: these labels say nothing about real biology."
    rows = []
    for one in answers:
        found = _summary(one, least)
        common = [
            f"{value} {n / max(n_cells, 1):.0%}" for value, n in list(found["cells"].items())[:3]
        ]
        rows.append(
            [
                one.name, ", ".join(common) + (", ..." if len(found["cells"]) > 3 else ""),
                f"{found['mean_probability'] or 0:.2f}", f"{found['unsure'] / max(n_cells, 1):.0%}",
            ]
        )  # fmt: skip
    yield make_table(["phenotype", "most cells are", "mean probability", "unsure"], rows)
