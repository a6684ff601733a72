"""`tfx predict` and `tfx embed`: annotate the cells of a file that the model has never seen."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ConfigurationError
from core.files import csv_cell
from tfx_cli.arguments import (
    FIGURES,
    SIMULATED,
    check_output,
    genes_or_file,
    load_model,
    model_folder,
    save_figure,
)
from tfx_cli.command_line import argument, option
from tfx_cli.options import (
    DEVICE,
    JSON_OUTPUT,
    MARKERS,
    MODEL,
    OVERWRITE,
    UNSURE_AT,
    Device,
    FileOptions,
)
from tfx_cli.output import Paragraph, make_table, narrate, print_result, warn
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    import pandas as pd

    from core.inference.query_cells import Hint, QueryCells
    from core.model.calibration import UnsureRule
    from core.model.folder import CellModel

_CELLS = argument(
    "FILE", "The cells: .h5ad, .zarr, .h5mu, 10x (.h5, a folder of matrix.mtx), or soma://PATH."
)
_NOT_CALIBRATED = (
    "the probabilities of this model are not calibrated: it was trained without validation cells, or by an older "
    "tfx. Unsure means a probability below 0.5"
)
_GIVEN = option(
    "--label NAME[=COLUMN]",
    "A phenotype whose labels the file has, to show to the model: tissue, or tissue=organ for the obs "
    "column organ (default: the column that the model was trained on); can be repeated.",
)


def predict(
    file: str = _CELLS,
    *,
    output: Path = option(
        "--output -o OUT.h5ad | OUT.zarr | OUT.csv",
        "A copy of the file with the predictions in obs, or a table of the predictions.",
        default=...,
    ),
    run: str | None = MODEL,
    given: list[str] | None = _GIVEN,
    unsure_at: float | None = UNSURE_AT,
    unsure_below: float | None = option(
        "--unsure-below PROBABILITY",
        "Call predictions below this probability unsure instead, for every phenotype.",
        min=0.0,
        max=1.0,
    ),
    majority: str | None = option(
        "--majority neighbours|COLUMN",
        "Add the cell type that most of a cell's neighbours have, or most cells of its cluster in this obs "
        "column; 'unknown' where none has the majority.",
    ),
    majority_above: float = option(
        "--majority-above FRACTION",
        "Fraction of the cells that the majority must exceed.",
        default=0.5,
        min=0.0,
        max=1.0,
    ),
    plot: Path | None = option(
        "--plot FILE.png|.pdf|.svg", "Draw a dot plot of markers by predicted cell type."
    ),
    markers: str | None = MARKERS,
    prefix: str = option("--prefix", "Prefix of the new obs columns.", default="tfx_"),
    how: FileOptions,
    device: Device = DEVICE,
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Label the cells of a file: every phenotype of the model, with its probability.

    Adds to obs, for each phenotype that is not given, tfx_NAME (the most likely value),
    tfx_NAME_probability and tfx_NAME_unsure; for ages tfx_NAME_expected_years, too. A phenotype
    that the model could not predict on its validation donors is always unsure, and a line says
    why. With --majority, tfx_NAME_majority (of cell types, or of what a classifier predicts) is
    the value of most cells of a neighbourhood or a cluster; unsure cells count but do not vote.
    Genes are joined by id or symbol, in whichever kind the file and the model have them; those
    that the file lacks are masked, not taken for unexpressed. The model folder is enough: you
    need neither the training cells nor the run.

    Examples
    --------
    tfx predict new.h5ad -o labelled.h5ad
    tfx predict new.h5ad -o labels.csv --label tissue=organ --run runs/base
    tfx predict new.h5ad -o labelled.h5ad --majority leiden --plot markers.pdf
    """
    check_output(output, (".h5ad", ".zarr", ".csv"), what="labelled cells", overwrite=overwrite)
    if plot is not None:
        check_output(plot, FIGURES, what="figures", overwrite=True, option="--plot")
    elif markers is not None:
        raise ConfigurationError("--markers: belongs to --plot; give both")
    genes = [] if markers is None else genes_or_file(markers, "--markers")
    folder = model_folder(run)
    # torch and transformers, 3 s: not before the options are checked.
    from core.cells.annotated_copy import annotated_copy
    from core.files import replace_file
    from core.generation.comparison import shown_genes
    from core.inference.annotate import predict_phenotypes_of, prediction_table
    from core.inference.majority import (
        NEIGHBOURS,
        clusters_of,
        majority_labels,
        marker_dot_plot,
        neighbours_of,
        panel_expression,
    )
    from core.model.calibration import unsure_rules

    model = load_model(folder, device)
    rules = unsure_rules(
        model.calibration, model.config.predicted, at=unsure_at, below=unsure_below
    )
    with _query(file, model, given, how) as (cells, hints):
        with contextlib.ExitStack() as stack:
            copy = None
            if output.suffix != ".csv":
                copy = stack.enter_context(annotated_copy(file, output))
                known = {hint.name for hint in hints}
                names = [f"{prefix}{name}" for name in model.config.predicted if name not in known]
                ends = ("", "_probability", "_unsure", "_expected_years")
                columns = [f"obs/{name}{end}" for name in names for end in ends]
                if majority is not None:
                    columns += [f"obs/{name}_majority" for name in names]
                copy.check_free(*columns, remedy="choose another --prefix")
            panel_genes = shown_genes(model.panel, genes)
            groups = None if majority in (None, NEIGHBOURS) else clusters_of(cells, majority)
            with show_progress() as listener:
                predictions = predict_phenotypes_of(model, cells, hints, on_progress=listener)
            table = prediction_table(
                predictions, cells.source.obs_names, rules=rules, prefix=prefix
            )
            # Sex, age and disease are the donor's: neighbours of other donors have no vote on them.
            voted = next((one for one in predictions if one.name == "cell_type"), predictions[0])
            labels, votes = table[f"{prefix}{voted.name}"].array, None
            if plot is not None or majority == NEIGHBOURS:
                expression = panel_expression(cells)
                groups = neighbours_of(expression) if majority == NEIGHBOURS else groups
            if groups is not None:
                is_unsure = voted.is_unsure(rules[voted.name])
                labels = votes = majority_labels(voted, is_unsure, groups, above=majority_above)
                table[f"{prefix}{voted.name}_majority"] = votes
            if plot is not None:
                figure = marker_dot_plot(model, expression, labels, voted.name, panel_genes)
                save_figure(plot, figure, f"markers by predicted {voted.name}", is_tight=True)
            if copy is None:
                output.parent.mkdir(parents=True, exist_ok=True)
                safe = _without_formulas(table)
                replace_file(output, safe.to_csv(float_format="%.4f", index_label="cell"))
            else:
                copy.add_obs({str(name): table[name].array for name in table})
                copy.add_facts("tfx_prediction", _facts(model, folder, cells, hints, rules))
        n_cells, missing = cells.n_cells, int(cells.missing.sum())
        translated = len(cells.genes.translated)
    narrate(f"{output}: {n_cells:,} cells")
    summaries = {
        one.name: {
            "cells": one.cells_per_value(),
            "mean_probability": float(one.probability.mean()) if n_cells else None,
            "unsure": int(one.is_unsure(rules[one.name]).sum()),
            "unsure_below": None if rules[one.name].is_always else rules[one.name].below,
            "reason": rules[one.name].reason or None,
            "majority": _counts(votes) if votes is not None and one is voted else None,
        }
        for one in predictions
    }
    notes = [rules[one.name].reason for one in predictions if rules[one.name].reason]
    if not model.calibration and unsure_below is None:
        notes.append(_NOT_CALIBRATED)
    if model.provenance.get("simulated"):
        notes.append(SIMULATED)
    print_result(
        "predict",
        {
            "output": output,
            "cells": n_cells,
            "model": folder,
            "genes_missing": missing,
            "genes_translated": translated,
            "given": [hint.name for hint in hints],
            "calibrated": bool(model.calibration),
            "majority": majority,
            "phenotypes": summaries,
        },
        as_json=as_json,
        text=lambda: _predictions_text(summaries, n_cells, notes),
    )


def _without_formulas(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table for CSV, in which no name or label becomes a formula of a spreadsheet."""
    labels = {
        str(name): column.map(csv_cell)
        for name, column in table.items()
        if column.dtype == "category"
    }
    return table.assign(**labels).set_axis(table.index.map(csv_cell))


def embed(
    file: str = _CELLS,
    *,
    output: Path = option(
        "--output -o OUT.h5ad | OUT.zarr", "An annotated copy of the file.", default=...
    ),
    run: str | None = MODEL,
    place: str = option(
        "--from PLACE",
        "Output position of the embedding: cls, mean (over all tokens), or a phenotype.",
        default="cls",
    ),
    key: str = option("--key", "Name in obsm (cells), and in varm (genes).", default="X_tfx"),
    genes: bool = option("--genes", "Add embeddings of the genes to varm as well.", default=False),
    denoise: str | None = option(
        "--denoise KEY",
        "Add the expression that the model expects of each of its genes to obsm under this name; var KEY_known "
        "says which genes the columns are. Other genes of the file have no column.",
    ),
    given: list[str] | None = _GIVEN,
    how: FileOptions,
    device: Device = DEVICE,
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Add embeddings of cells to obsm, ready for scanpy's neighbors and umap.

    Genes are joined as in 'tfx predict'. Then, in Python:
    sc.pp.neighbors(adata, use_rep="X_tfx"); sc.tl.umap(adata).

    Examples
    --------
    tfx embed new.h5ad -o embedded.h5ad
    tfx embed new.h5ad -o embedded.h5ad --from cell_type --genes --denoise tfx_denoised
    """
    check_output(output, (".h5ad", ".zarr"), what="embedded cells", overwrite=overwrite)
    folder = model_folder(run)
    # torch and transformers, 3 s: not before the options are checked.
    from core.cells.annotated_copy import annotated_copy
    from core.inference.annotate import (
        add_denoised,
        add_gene_embeddings,
        denoised_column,
        embed_cells,
        gene_embeddings,
        note_on_embedding,
        resolve_position,
    )

    model = load_model(folder, device)
    position = resolve_position(model.config, place)
    if model.network.encoder_part is None:
        gene_embeddings(model)  # raises: there are none
    elif (note := note_on_embedding(model.config, position)) is not None:
        warn(note)
    if denoise == key:
        raise ConfigurationError(
            f"--denoise {denoise}: --key has this name in obsm; choose another"
        )
    if denoise is not None and "/" in denoise:
        raise ConfigurationError(f"--denoise {denoise}: a name in obsm has no '/'")
    width = model.config.hidden_size
    with _query(file, model, given, how) as (cells, hints):
        if cells.choice.matrix == "raw" and (genes or denoise):
            raise ConfigurationError(
                f"{file}: the model's genes are in raw, which has other rows than var; leave out "
                f"--genes and --denoise, or give --matrix X"
            )
        with annotated_copy(file, output) as copy, show_progress() as listener:
            new = [f"obsm/{key}"] + [f"varm/{key}"] * genes
            if denoise:
                new += [f"obsm/{denoise}", f"var/{denoised_column(denoise)}"]
            copy.check_free(*new, remedy="choose another --key or --denoise")
            write = copy.add_array(f"obsm/{key}", (cells.n_cells, width))
            embed_cells(model, cells, write, position=position, hints=hints, on_progress=listener)
            if genes:
                add_gene_embeddings(copy, key, model, cells)
            if denoise:
                add_denoised(copy, denoise, model, cells, hints=hints, on_progress=listener)
        n_cells, missing = cells.n_cells, int(cells.missing.sum())
    narrate(f"{output}: obsm['{key}'] ({n_cells:,} x {width})")
    if denoise:
        n_known = len(model.panel) - missing
        narrate(
            f"{output}: obsm['{denoise}'] ({n_cells:,} x {n_known:,}), of the genes that "
            f"var['{denoised_column(denoise)}'] marks; the model does not know the others"
        )
    print_result(
        "embed",
        {
            "output": output,
            "cells": n_cells,
            "key": key,
            "width": width,
            "model": folder,
            "from": place,
            "genes_missing": missing,
        },
        as_json=as_json,
        text=lambda: f'next: sc.pp.neighbors(adata, use_rep="{key}")',
    )


@contextlib.contextmanager
def _query(
    file: str, model: "CellModel", given: Sequence[str] | None, how: FileOptions
) -> Iterator[tuple["QueryCells", "list[Hint]"]]:
    """Open the cells of a file with the phenotypes that are given of them, and describe them."""
    from core.inference.query_cells import open_query_cells, read_hint

    with open_query_cells(file, model.panel, **vars(how)) as cells:
        hints = [read_hint(cells.source, model, one) for one in given or []]
        found = int((~cells.missing).sum())
        narrate(
            f"{cells.source.name}: {cells.n_cells:,} cells, {found:,} of {len(model.panel):,} "
            f"genes (by {cells.genes.joined_by}), {cells.choice.matrix} is read as {cells.choice.state}"
        )
        for one in hints:
            if one.unknown:
                first = list(one.unknown.items())[:5]
                labels = ", ".join(f"'{label}' ({n:,})" for label, n in first)
                warn(
                    f"--label {one.name}: the model does not know {labels}; taken as not specified"
                )
        yield cells, hints


def _facts(
    model: "CellModel",
    folder: Path,
    cells: "QueryCells",
    hints: "Sequence[Hint]",
    rules: "Mapping[str, UnsureRule]",
) -> dict[str, Any]:
    from core import __version__

    return {
        "tfx": __version__,
        "model": str(model.provenance.get("name", folder)),
        "step": int(model.provenance.get("step", 0)),
        "genes": len(model.panel),
        "genes_missing": int(cells.missing.sum()),
        "genes_translated": len(cells.genes.translated),
        "joined_by": cells.genes.joined_by,
        "matrix": cells.choice.matrix,
        "given": json.dumps({hint.name: hint.column for hint in hints}),
        "unsure_below": json.dumps(  # null: always unsure
            {name: None if rule.is_always else rule.below for name, rule in rules.items()}
        ),
        "calibrated": bool(model.calibration),
        "simulated_training_data": bool(model.provenance.get("simulated", False)),
    }


def _counts(labels: "pd.Categorical[str]") -> dict[str, int]:
    """Return label -> cells, the commonest first."""
    counts = labels.value_counts().sort_values(ascending=False, kind="stable")
    return {str(label): int(n) for label, n in counts.items() if n}


def _commonest(cells: Mapping[str, int], n_cells: int) -> str:
    common = list(cells.items())[:3]
    shown = ", ".join(f"{value} {n / max(n_cells, 1):.0%}" for value, n in common)
    return shown + (", ..." if len(cells) > 3 else "")


def _predictions_text(
    summaries: dict[str, dict[str, Any]], n_cells: int, notes: Sequence[str]
) -> Iterator[Paragraph]:
    rows = []
    for name, found in summaries.items():
        unsure = f"{found['unsure'] / max(n_cells, 1):.0%}"
        common = _commonest(found["cells"], n_cells)
        rows.append([name, common, f"{found['mean_probability'] or 0:.2f}", unsure])
    yield make_table(["phenotype", "most cells are", "mean probability", "unsure"], rows)
    votes = {name: found["majority"] for name, found in summaries.items() if found["majority"]}
    if votes:
        rows = []
        for name, counts in votes.items():
            unknown = counts.get("unknown", 0) / max(n_cells, 1)
            rows.append([name, _commonest(counts, n_cells), f"{unknown:.0%}"])
        yield make_table(["by majority", "most cells are", "unknown"], rows)
    yield [f"- {note}" for note in notes]
