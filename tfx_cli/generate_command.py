"""`tfx generate`: from control tokens to cells, or real cells with phenotypes set to other values."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import ConfigurationError
from core.presets.schema import GenerateSettings
from tfx_cli.arguments import (
    JSON_OUTPUT,
    MATRIX,
    MODEL,
    OVERWRITE,
    VALUES,
    Values,
    as_sentence,
    check_output,
    load_model,
    model_folder,
    name_of_option,
    phenotype_request,
)
from tfx_cli.command_line import option
from tfx_cli.output import (
    Paragraph,
    make_table,
    narrate,
    print_result,
    progress_of_run,
    show_progress,
    warn,
)

if TYPE_CHECKING:
    from core.evaluation.fidelity.measures import FidelitySummary
    from core.generation.comparison import MarkerCheck
    from core.inference.edited_cells import EditedCells

#: The standard phenotypes, each with a value.
_PHENOTYPES = {
    "sex": "female",
    "tissue": "lung",
    "cell_type": "'B cell'",
    "age": "60-69",
    "disease": "normal",
}
#: Sampling settings that apply to changed cells (--from), too.
_EDITING = ("steps", "schedule", "decode")
#: Genes in the report on changed cells.
_SHOWN_GENES = 10
_SIMULATED = "The model was trained on simulated cells: these say nothing about real biology."


def _with_options_of_schema(command: Callable[..., None]) -> Callable[..., None]:
    """Replace ``**values`` by an option per standard phenotype and per sampling setting.

    Values are checked against the model and the preset schema when the request is made.
    """
    made: dict[str, tuple[Any, Any]] = {}
    for name, example in _PHENOTYPES.items():
        declaration = f"{name_of_option(name)} VALUE"
        shown = option(declaration, f"As in {example}.", rich_help_panel="Phenotypes")
        made[name] = (str | None, shown)
    for name, field in GenerateSettings.model_fields.items():
        text = f"{as_sentence(field.description)}."
        shown = option(name_of_option(name), text, rich_help_panel="Sampling")
        kind: Any = field.annotation
        made[name] = (kind | None, shown)
    signature = inspect.signature(command)
    *written, _ = signature.parameters.values()
    parameters = [
        inspect.Parameter(name, written[0].kind, default=shown, annotation=kind)
        for name, (kind, shown) in made.items()
    ]
    n_first = len(_PHENOTYPES)
    ordered = [*parameters[:n_first], *written, *parameters[n_first:]]
    command.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
    return command


@_with_options_of_schema
def generate(
    phenotype: list[str] | None = option(
        "--phenotype NAME=VALUE",
        "Any phenotype of the model, as in treatment=control; can be repeated.",
        rich_help_panel="Phenotypes",
    ),
    n_cells: int | None = option(
        "-n --cells", "Number of cells; default 200, or what --balance needs."
    ),
    balance: str | None = option(
        "--balance PHENOTYPE", "Fill up the rare values of a phenotype, as in cell_type."
    ),
    output: Path = option(
        "--output -o FILE.h5ad", "File to write.", default=Path("generated.h5ad")
    ),
    plot: Path | None = option(
        "--plot FILE.png", "Draw the cells beside real ones of the same kind."
    ),
    from_file: str | None = option(
        "--from FILE", "Change these real cells; --set names the change."
    ),
    set_values: list[str] | None = option(
        "--set NAME=VALUE",
        "Set this in every cell and leave all else equal, as in disease=normal; can be repeated.",
    ),
    labels: list[str] | None = option(
        "--label NAME=COLUMN",
        "With --from: the obs column of a phenotype, as in tissue=organ; default: the column that "
        "the model was trained on.",
    ),
    matrix: str = MATRIX,
    scale: Values = VALUES,
    run: str | None = MODEL,
    unspecified: Literal["sample", "none"] = option(
        "--unspecified",
        "Phenotypes that you do not name: sample draws them from matching training cells, none "
        "writes [NO_*].",
        default="sample",
    ),
    seed: int = option(
        "--seed", "The same seed gives the same cells.", min=0, max=2**63 - 1, default=0
    ),
    library_size: float | None = option(
        "--library-size COUNTS",
        "Total counts of every cell; default: drawn from training cells.",
        rich_help_panel="Sampling",
    ),
    overwrite: bool = OVERWRITE,
    serve: bool = option(
        "--serve", "Serve another program: JSON lines on stdin and stdout.", default=False
    ),
    as_json: bool = JSON_OUTPUT,
    **values: Any,  # noqa: ANN401 - see `_with_options_of_schema`
) -> None:
    """Generate synthetic cells of the requested phenotypes, as an .h5ad file.

    Values are log1p of counts per 10,000, or counts with --decode counts. Every cell is marked
    obs["synthetic"], and uns["tfx_generation"] records the model, the request and the seed. The
    cells are compared with real cells if the training store is still in its place.

    Examples
    --------
    tfx generate --sex female --tissue lung -n 500 -o lung.h5ad --plot lung.png
    tfx generate --run runs/pbmc68k --cell-type "CD14+ Monocyte" --steps 64
    tfx generate --balance cell_type -o rare.h5ad
    tfx generate --sex female --set sex=male -o flipped.h5ad
    tfx generate --from patients.h5ad --set disease=normal -o healed.h5ad
    """
    standard = {name: values.pop(name) for name in _PHENOTYPES}
    phenotypes = phenotype_request(phenotype=phenotype, **standard)
    changes = {name: value for name, value in values.items() if value is not None}
    if serve:
        if phenotypes or plot is not None or as_json:
            raise ConfigurationError(
                "--serve takes its requests from stdin: give no other option than --run"
            )
        from tfx_cli.generate_service import serve_stdin

        serve_stdin(model_folder(run))
        return
    check_output(output, (".h5ad",), what="cells", overwrite=overwrite)
    if plot is not None:
        check_output(plot, (".png",), what="pictures", overwrite=True, option="--plot")
    wanted = phenotype_request(phenotype=set_values, pair_option="--set")
    if from_file is not None:
        unfit = {
            "-n": n_cells,
            "--balance": balance,
            "--plot": plot,
            "--library-size": library_size,
            "a phenotype": phenotypes or None,
        }
        unfit |= {f"--{name}": value for name, value in changes.items() if name not in _EDITING}
        if others := [name for name, value in unfit.items() if value is not None]:
            raise ConfigurationError(
                f"--from changes real cells and does not take {others[0]}; use --set"
            )
        if not wanted:
            raise ConfigurationError("--from needs what to change, as in --set disease=normal")
        reading = {"matrix": matrix, "values": scale}
        folder = model_folder(run)
        _edit_file(
            from_file, wanted, labels or (), output, folder, seed, changes, reading, as_json=as_json
        )
        return
    of_from = {"--label": labels, "--matrix": matrix, "--values": scale}
    for unfit_option, given in of_from.items():
        if given and given != "auto":
            raise ConfigurationError(
                f"{unfit_option} belongs to cells of a file; name it by --from"
            )
    folder = model_folder(run)
    # torch and transformers, 3 s: not before the options are checked.
    from core.evaluation.fidelity.measures import compare_cells
    from core.files import replace_file
    from core.generation.cell_generator import BIN_NUMBERS, CellGenerator
    from core.generation.comparison import (
        MAX_COMPARED,
        check_markers,
        comparison_png,
        open_training_store,
        read_real_cells,
    )
    from core.generation.generated_file import read_first_cells, write_generated
    from core.generation.request import GenerationRequest, cells_to_generate, changed_settings

    model = load_model(folder)
    request = GenerationRequest(
        phenotypes,
        cells_to_generate(model, phenotypes, n_cells, balance),
        settings=changed_settings(model.generate, changes),
        unspecified=unspecified,
        seed=seed,
        library_size=library_size,
        balance=balance,
        changes=wanted,
    )
    source = CellGenerator(model, request)
    for note in source.notes:
        warn(note)
    with progress_of_run(folder.parent, "generating") as listener:
        write_generated(source, output, restart=overwrite, on_progress=listener)
    narrate(f"{output}: {request.n_cells:,} synthetic cells x {model.config.n_genes:,} genes")
    generated = read_first_cells(output, MAX_COMPARED)
    codes = source.phenotypes.wanted
    markers, real, summary = [], None, None
    if source.values == BIN_NUMBERS:
        warn("bin numbers are not compared with real cells")
    else:
        markers = check_markers(model, generated, codes)
        if (store := open_training_store(model)) is not None:
            real = read_real_cells(model, store, codes)
    if real is not None:
        summary = compare_cells(real[0], generated, model.panel)
    if plot is not None and real is None:
        is_bins = source.values == BIN_NUMBERS
        why = "these are bins" if is_bins else "there are no real cells to compare with"
        warn(f"no picture is drawn: {why}")
    elif plot is not None and real is not None:
        title = ", ".join(f"{name} {value}" for name, value in phenotypes.items()) or "all cells"
        replace_file(plot, comparison_png(real[0], generated, model.panel, title=title))
        narrate(f"{plot}: generated cells beside {real[0].shape[0]:,} real ones ({real[1]})")
    record = {
        "output": output,
        "cells": request.n_cells,
        "request": phenotypes,
        "set": wanted,
        "training_cells": source.phenotypes.n_training,
        "model": folder,
        "simulated": bool(model.provenance.get("simulated")),
        "markers": [vars(marker) for marker in markers],
        "fidelity": None if summary is None else summary.to_dict(),
        "compared_with": None if real is None else real[1],
        "notes": source.notes,
    }
    print_result(
        "generate", record, as_json=as_json, text=lambda: _generated_text(record, markers, summary)
    )


def _generated_text(
    record: Mapping[str, Any], markers: "list[MarkerCheck]", summary: "FidelitySummary | None"
) -> Iterator[Paragraph]:
    n_training = record["training_cells"]
    head = f"{record['cells']:,} synthetic cells; {n_training:,} training cells match the request"
    yield [_SIMULATED, head] if record["simulated"] else head
    if markers:
        rows = []
        for one in markers:
            means = (one.training_mean, one.other_mean, one.generated_mean)
            cells = [f"{one.phenotype} = {one.value}", one.gene, *(f"{n:.2f}" for n in means)]
            rows.append([*cells, f"{one.generated_detection:.0%}"])
        heads = ["request", "gene", "training", "all training", "generated", "cells with it"]
        title = "genes that set the request apart (mean log1p per 10k)"
        yield [title, make_table(heads, rows)]
    if summary is not None:
        real_mean, real_sd = summary.genes_per_cell_real_mean, summary.genes_per_cell_real_sd
        mean, sd = summary.genes_per_cell_generated_mean, summary.genes_per_cell_generated_sd
        which = record["compared_with"]
        title = f"compared with {summary.n_real:,} real cells ({which}) of the same phenotypes"
        rows = [
            ["genes per cell", f"{real_mean:.1f} (sd {real_sd:.1f})", f"{mean:.1f} (sd {sd:.1f})"],
            ["gene means, r", "", f"{summary.gene_mean_r:.3f}"],
            ["detection rates, mean difference", "", f"{summary.detection_mae:.3f}"],
            ["gene-gene correlations, r", "", f"{summary.correlation_r:.3f}"],
        ]
        yield [title, make_table(["", "real", "generated"], rows)]


# -- changed cells
def _edit_file(
    file: str,
    values: Mapping[str, str],
    labels: Sequence[str],
    output: Path,
    folder: Path,
    seed: int,
    changes: Mapping[str, Any],
    reading: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Change the cells of a file, write them and report which genes moved."""
    if (decode := changes.get("decode")) in ("bins", "counts"):
        raise ConfigurationError(
            f"--decode {decode}: genes that do not move keep their values, so the others need values "
            f"too; use sample or mean"
        )
    # torch and transformers, 3 s: not before the options are checked.
    from core.generation.request import changed_settings
    from core.inference.edited_cells import edit_cells, write_edited
    from core.inference.query_cells import open_query_cells

    model = load_model(folder)
    settings = changed_settings(model.generate, {"decode": "sample", **changes})
    with open_query_cells(file, model.panel, **reading) as query, show_progress() as listener:
        edited = edit_cells(
            model, query, values, labels=labels, settings=settings, seed=seed, on_progress=listener
        )
    for note in edited.notes:
        warn(note)
    write_edited(edited.cells, output)
    narrate(f"{output}: {edited.cells.n_obs:,} cells x {edited.cells.n_vars:,} genes")
    record = {
        "output": output,
        "from": file,
        "set": values,
        "cells": edited.cells.n_obs,
        "changed_cells": edited.n_changed,
        "moved_genes_per_cell": edited.moved_per_cell,
        "model": folder,
        "simulated": bool(model.provenance.get("simulated")),
        "genes": [vars(change) for change in edited.changes],
        "notes": edited.notes,
    }
    print_result(
        "generate.edit", record, as_json=as_json, text=lambda: _edited_text(record, edited)
    )


def _edited_text(record: Mapping[str, Any], edited: "EditedCells") -> Iterator[Paragraph]:
    wanted = ", ".join(f"{name} = {value}" for name, value in record["set"].items())
    head = (
        f"{wanted}: {edited.n_changed:,} of {edited.cells.n_obs:,} cells changed, "
        f"{edited.moved_per_cell:.1f} of {edited.cells.n_vars:,} genes each"
    )
    yield [_SIMULATED, head] if record["simulated"] else head
    rows = []
    for one in edited.changes[:_SHOWN_GENES]:
        means = [f"{one.before:.2f}", f"{one.after:.2f}", f"{one.change:+.2f}"]
        rows.append([one.gene, *means, f"{one.moved:.0%}"])
    table = make_table(["gene", "before", "after", "change", "cells it moved in"], rows)
    yield ["genes with the largest change of the mean (log1p per 10k)", table]
