"""`tfx generate`: from control tokens to cells, and a short comparison with real ones."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from core.errors import ConfigurationError
from core.presets.schema import GenerateSettings
from tfx_cli.arguments import check_output, model_folder
from tfx_cli.options import (
    Age,
    CellType,
    Disease,
    JsonOutput,
    ModelOption,
    PhenotypePairs,
    Sex,
    Tissue,
    phenotype_request,
)
from tfx_cli.output import make_table, narrate, print_result, warn
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from core.evaluation.fidelity.summary import FidelitySummary
    from core.generation.comparison import MarkerCheck

#: Sampling settings that apply to changed cells (--from), too.
_EDITING = ("steps", "schedule", "decode")


def _with_sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace ``**sampling`` of a command by one option for each sampling setting of a preset.

    Values are checked against the preset schema when the request is made.
    """
    signature = inspect.signature(command)
    kept = [one for one in signature.parameters.values() if one.kind != one.VAR_KEYWORD]
    for name, field in GenerateSettings.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        text = f"{field.description}"
        shown = typer.Option(
            option, help=f"{text[:1].upper()}{text[1:]}.", rich_help_panel="Sampling"
        )
        kept.append(_optional(name, field.annotation, shown))
    command.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return command


def _optional(name: str, kind: Any, option: Any) -> inspect.Parameter:  # noqa: ANN401 - a type
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


@_with_sampling_options
def generate(
    sex: Sex = None,
    tissue: Tissue = None,
    cell_type: CellType = None,
    age: Age = None,
    disease: Disease = None,
    phenotype: PhenotypePairs = None,
    n_cells: Annotated[
        int | None,
        typer.Option(
            "-n", "--cells", help="Number of cells; default 200, or what --balance needs."
        ),
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option(
            "--balance",
            metavar="PHENOTYPE",
            help="Fill up the rare values of a phenotype, as in cell_type.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.h5ad", help="File to write.")
    ] = Path("generated.h5ad"),
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE.png", help="Draw the cells beside real ones of the same kind."
        ),
    ] = None,
    from_file: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE.h5ad",
            help="Change these real cells instead; --set names the change.",
        ),
    ] = None,
    set_values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="With --from: the phenotype to change, as in disease=normal; can be repeated.",
        ),
    ] = None,
    run: ModelOption = None,
    unspecified: Annotated[
        Literal["sample", "none"],
        typer.Option(
            help="Phenotypes that you do not name: sample draws them from matching training cells, "
            "none writes [NO_*]."
        ),
    ] = "sample",
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same cells.")
    ] = 0,
    library_size: Annotated[
        float | None,
        typer.Option(
            metavar="COUNTS",
            help="Total counts of every cell; default: drawn from training cells.",
            rich_help_panel="Sampling",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output file.")
    ] = False,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Serve another program: JSON lines on stdin and stdout."),
    ] = False,
    as_json: JsonOutput = False,
    **sampling: Any,  # noqa: ANN401 - one option for each field of GenerateSettings
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
    tfx generate --from patients.h5ad --set disease=normal -o healed.h5ad
    """
    phenotypes = phenotype_request(
        sex=sex, tissue=tissue, cell_type=cell_type, age=age, disease=disease, phenotype=phenotype
    )
    if serve:
        if phenotypes or plot is not None or as_json:
            message = "--serve takes its requests from stdin: give no other option than --run"
            raise ConfigurationError(message)
        from tfx_cli.generate_service import serve_stdin

        serve_stdin(model_folder(run))
        return
    check_output(output, (".h5ad",), what="cells", overwrite=overwrite)
    if plot is not None:
        check_output(plot, (".png",), what="pictures", overwrite=True, option="--plot")
    changes = {name: value for name, value in sampling.items() if value is not None}
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
            message = f"--from changes real cells and does not take {others[0]}; use --set"
            raise ConfigurationError(message)
        from tfx_cli.generate_edit import edit_file

        edit_file(
            from_file,
            set_values or [],
            output,
            folder=model_folder(run),
            seed=seed,
            changes=changes,
            as_json=as_json,
        )
        return
    if set_values:
        message = "--set changes cells of a file; name it by --from"
        raise ConfigurationError(message)
    folder = model_folder(run)
    # torch and transformers, 3 s: not before the options are checked.
    from core.evaluation.fidelity.summary import compare_cells
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
    from core.generation.request import (
        GenerationRequest,
        cells_to_generate,
        changed_settings,
    )
    from core.model.folder import CellModel

    model = CellModel.load(folder)
    request = GenerationRequest(
        phenotypes,
        cells_to_generate(model, phenotypes, n_cells, balance),
        settings=changed_settings(model.generate, changes),
        unspecified=unspecified,
        seed=seed,
        library_size=library_size,
        balance=balance,
    )
    source = CellGenerator(model, request)
    for note in source.notes:
        warn(note)
    with show_progress() as listener:
        write_generated(source, output, restart=overwrite, on_progress=listener)
    narrate(f"{output}: {request.n_cells:,} synthetic cells x {model.config.n_genes:,} genes")
    generated = read_first_cells(output, MAX_COMPARED)
    wanted = source.phenotypes.wanted
    is_comparable = source.values != BIN_NUMBERS
    if not is_comparable:
        warn("bin numbers are not compared with real cells")
    markers = check_markers(model, generated, wanted) if is_comparable else []
    store = open_training_store(model) if is_comparable else None
    real = None if store is None else read_real_cells(model, store, wanted)
    compared = None if real is None else (compare_cells(real[0], generated, model.panel), real[1])
    if plot is not None and real is None:
        why = "there are no real cells to compare with" if is_comparable else "these are bins"
        warn(f"no picture is drawn: {why}")
    elif plot is not None and real is not None:
        title = ", ".join(f"{name} {value}" for name, value in phenotypes.items()) or "all cells"
        replace_file(plot, comparison_png(real[0], generated, model.panel, title=title))
        narrate(f"{plot}: generated cells beside {real[0].shape[0]:,} real ones ({real[1]})")
    n_training, is_simulated = source.phenotypes.n_training, bool(model.provenance.get("simulated"))
    print_result(
        "generate",
        {
            "output": output,
            "cells": request.n_cells,
            "request": phenotypes,
            "training_cells": n_training,
            "model": folder,
            "simulated": is_simulated,
            "markers": [vars(marker) for marker in markers],
            "fidelity": None if compared is None else compared[0].to_dict(),
            "compared_with": None if compared is None else compared[1],
            "notes": source.notes,
        },
        as_json=as_json,
        text=lambda: _report(
            request.n_cells, n_training, markers, compared, is_simulated=is_simulated
        ),
    )


def _report(
    n_cells: int,
    n_training: int,
    markers: "list[MarkerCheck]",
    compared: "tuple[FidelitySummary, str] | None",
    *,
    is_simulated: bool,
) -> "Iterator[RenderableType]":
    if is_simulated:
        yield "The model was trained on simulated cells: these say nothing about real biology."
    yield f"{n_cells:,} synthetic cells; {n_training:,} training cells match the request"
    if markers:
        yield ""
        yield "genes that set the request apart (mean log1p per 10k)"
        rows = [
            [
                f"{one.phenotype} = {one.value}",
                one.gene,
                f"{one.training_mean:.2f}",
                f"{one.other_mean:.2f}",
                f"{one.generated_mean:.2f}",
                f"{one.generated_detection:.0%}",
            ]
            for one in markers
        ]
        yield make_table(
            ["request", "gene", "training", "all training", "generated", "cells with it"], rows
        )
    if compared is not None:
        summary, which = compared
        real_mean, real_sd = summary.genes_per_cell_real_mean, summary.genes_per_cell_real_sd
        mean, sd = summary.genes_per_cell_generated_mean, summary.genes_per_cell_generated_sd
        yield ""
        yield f"compared with {summary.n_real:,} real cells ({which}) of the same phenotypes"
        rows = [
            ["genes per cell", f"{real_mean:.1f} (sd {real_sd:.1f})", f"{mean:.1f} (sd {sd:.1f})"],
            ["gene means, r", "", f"{summary.gene_mean_r:.3f}"],
            ["detection rates, mean difference", "", f"{summary.detection_mae:.3f}"],
            ["gene-gene correlations, r", "", f"{summary.correlation_r:.3f}"],
        ]
        yield make_table(["", "real", "generated"], rows)
