"""`tfx generate`: from control tokens to cells, and a short check of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from core.errors import ConfigurationError
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
from tfx_cli.output_files import check_output
from tfx_cli.progress import show_progress
from tfx_cli.run_folders import model_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from core.evaluation.fidelity import FidelitySummary
    from core.generation.comparison import MarkerCheck

__all__ = ["generate"]

_SAMPLING = "Sampling"
#: Sampling settings that changing cells heeds, too.
_EDITING = ("steps", "schedule", "decode")


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
        Path,
        typer.Option("--output", "-o", metavar="FILE.h5ad", help="Where the cells are written."),
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
            help="Change these real cells instead: --set says what.",
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
            help="Phenotypes left open: drawn from matching real cells, or none for [NO_*]."
        ),
    ] = "sample",
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same cells.")
    ] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Unmasking steps, each with one pass of the encoder; more are better.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    method: Annotated[
        Literal["auto", "unmask", "gibbs"] | None,
        typer.Option(
            help="gibbs redraws cells that start from class marginals, as auto does for models of "
            "a fixed mask rate.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    order: Annotated[
        Literal["random", "confidence"] | None,
        typer.Option(
            help="Order of unmasking; confidence empties cells.", rich_help_panel=_SAMPLING
        ),
    ] = None,
    schedule: Annotated[
        Literal["linear", "cosine"] | None,
        typer.Option(help="Genes per step: all alike, or few at first.", rich_help_panel=_SAMPLING),
    ] = None,
    remask: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the revealed genes that every step draws anew.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.01, help="1 draws from the model.", rich_help_panel=_SAMPLING),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(min=0.0, help="Above 0 exaggerates the condition.", rich_help_panel=_SAMPLING),
    ] = None,
    guidance_ramp: Annotated[
        Literal["late", "none"] | None,
        typer.Option(
            help="late: guidance grows with the share of genes revealed.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    genes_per_cell: Annotated[
        Literal["sample", "none"] | None,
        typer.Option(
            help="Genes per cell: as training cells of the phenotypes had, or as many as come.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    library_size: Annotated[
        float | None,
        typer.Option(
            metavar="COUNTS",
            help="Cells as deep as training cells of so many counts; default: as they were.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    decode: Annotated[
        Literal["sample", "mean", "bins", "counts"] | None,
        typer.Option(
            help="Value of a bin: drawn from the gene's training values, their mean, the bin, or "
            "whole counts at the cell's library size.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output file.")
    ] = False,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve", help="Answer requests of another program: JSON lines on stdin and stdout."
        ),
    ] = False,
    as_json: JsonOutput = False,
) -> None:
    """Generate synthetic cells of the phenotypes asked for, as an .h5ad file.

    Values are log1p of counts per 10,000, or counts with --decode counts. Every cell is marked
    obs["synthetic"], and uns["tfx_generation"] says which model, request and seed made it. The cells are compared with
    the markers of the request and with real cells where the training store is at hand.

    Examples
    --------
    tfx generate --sex female --tissue lung -n 500 -o lung.h5ad --plot lung.png
    tfx generate --run runs/pbmc68k --cell-type "CD14+ Monocyte" --steps 64
    tfx generate --balance cell_type -o rare.h5ad
    tfx generate --from patients.h5ad --set disease=normal -o healed.h5ad
    """
    request = phenotype_request(
        sex=sex, tissue=tissue, cell_type=cell_type, age=age, disease=disease, phenotype=phenotype
    )
    if serve:
        if request or plot is not None or as_json:
            message = "--serve takes its requests from stdin: leave the others out but for --run"
            raise ConfigurationError(message)
        from tfx_cli.generate_service import serve_stdin  # pydantic, 100 ms

        serve_stdin(model_folder(run))
        return
    check_output(output, (".h5ad",), what="cells", overwrite=overwrite)
    if plot is not None:
        check_output(plot, (".png",), what="pictures", overwrite=True, option="--plot")
    given = {
        "steps": steps, "method": method, "order": order, "schedule": schedule, "remask": remask,
        "temperature": temperature, "guidance": guidance, "guidance_ramp": guidance_ramp,
        "genes_per_cell": genes_per_cell, "decode": decode,
    }  # fmt: skip
    changes = {name: value for name, value in given.items() if value is not None}
    if set_values and from_file is None:
        message = "--set changes cells of a file; name it by --from"
        raise ConfigurationError(message)
    if from_file is not None:
        unfit = {
            "-n": n_cells, "--balance": balance, "--plot": plot, "--library-size": library_size,
            "a phenotype": request or None,
        }  # fmt: skip
        unfit |= {f"--{name}": changes.get(name) for name in changes if name not in _EDITING}
        if decode in ("bins", "counts"):
            message = f"--decode {decode}: changed cells keep values beside those that moved; use sample or mean"
            raise ConfigurationError(message)
        if others := [name for name, value in unfit.items() if value is not None]:
            message = (
                f"--from changes cells that there are and does not take {others[0]}; use --set"
            )
            raise ConfigurationError(message)
        from tfx_cli.generate_edit import edit_file, values_to_set  # 3 s, of torch

        values = values_to_set(set_values or [])
        edit_file(
            from_file, values, output, folder=model_folder(run), seed=seed, changes=changes,
            as_json=as_json,
        )  # fmt: skip
        return
    folder = model_folder(run)
    # torch and transformers, 3 s: not before the command line has proved right.
    from core.evaluation.fidelity import compare_cells
    from core.files import replace_file
    from core.generation.cells import BIN_NUMBERS, CellSource
    from core.generation.cells_file import read_first_cells, write_generated
    from core.generation.comparison import (
        MAX_COMPARED,
        check_markers,
        open_training_store,
        read_real_cells,
    )
    from core.generation.picture import comparison_png
    from core.generation.request import GenerationRequest, cells_wanted
    from core.model.folder import CellModel

    model = CellModel.load(folder)
    if n_cells is None:
        n_cells = cells_wanted(model, request, balance)
    full_request = GenerationRequest(
        phenotypes=request,
        n_cells=n_cells,
        unspecified=unspecified,
        settings=model.generate.model_copy(update=changes),
        seed=seed,
        library_size=library_size,
        balance=balance,
    )
    source = CellSource(model, full_request)
    for note in source.notes:
        warn(note)
    with show_progress() as listener:
        write_generated(source, output, restart=overwrite, on_progress=listener)
    narrate(f"{output}: {n_cells:,} synthetic cells x {model.config.n_genes:,} genes")
    generated = read_first_cells(output, MAX_COMPARED)
    wanted = source.phenotypes.wanted
    is_comparable = source.provenance()["values"] != BIN_NUMBERS
    if not is_comparable:
        warn("bin numbers are not compared with real cells")
    markers = check_markers(model, generated, wanted) if is_comparable else []
    store = open_training_store(model) if is_comparable else None
    real = None if store is None else read_real_cells(model, store, wanted)
    compared = None if real is None else (compare_cells(real[0], generated, model.panel), real[1])
    if plot is not None:
        if real is None:
            why = (
                "there are no real cells to draw beside them" if is_comparable else "these are bins"
            )
            warn(f"no picture is drawn: {why}")
        else:
            wishes = ", ".join(f"{name} {value}" for name, value in request.items()) or "all cells"
            replace_file(plot, comparison_png(real[0], generated, model.panel, title=wishes))
            narrate(f"{plot}: generated cells beside {real[0].shape[0]:,} real ones ({real[1]})")
    print_result(
        "generate",
        {
            "output": output,
            "cells": n_cells,
            "request": request,
            "training_cells": source.phenotypes.n_training,
            "model": folder,
            "simulated": bool(model.provenance.get("simulated")),
            "markers": [vars(marker) for marker in markers],
            "fidelity": None if compared is None else compared[0].to_dict(),
            "compared_with": None if compared is None else compared[1],
            "notes": source.notes,
        },
        as_json=as_json,
        text=lambda: _report(
            n_cells, source.phenotypes.n_training, markers, compared, model.provenance
        ),
    )


def _report(
    n_cells: int,
    n_training: int,
    markers: "list[MarkerCheck]",
    compared: "tuple[FidelitySummary, str] | None",
    origin: dict[str, Any],
) -> "Iterator[RenderableType]":
    if origin.get("simulated"):
        yield "The model was trained on simulated cells: these say nothing about real biology."
    yield f"{n_cells:,} synthetic cells; {n_training:,} training cells had what was asked for"
    if markers:
        yield ""
        yield "genes that set the request apart (mean log1p per 10k)"
        yield make_table(
            ["request", "gene", "training", "all training", "generated", "cells with it"],
            [
                [
                    f"{m.phenotype} = {m.value}", m.gene, f"{m.training_mean:.2f}",
                    f"{m.other_mean:.2f}", f"{m.generated_mean:.2f}",
                    f"{m.generated_detection:.0%}",
                ]
                for m in markers
            ],
        )  # fmt: skip
    if compared is not None:
        summary, which = compared
        yield ""
        yield f"beside {summary.n_real:,} real cells ({which}) of the same phenotypes"
        yield make_table(
            ["", "real", "generated"],
            [
                [
                    "genes per cell", f"{summary.genes_per_cell_real_mean:.1f} "
                    f"(sd {summary.genes_per_cell_real_sd:.1f})",
                    f"{summary.genes_per_cell_generated_mean:.1f} "
                    f"(sd {summary.genes_per_cell_generated_sd:.1f})",
                ],
                ["gene means, r", "", f"{summary.gene_mean_r:.3f}"],
                ["detection rates, mean difference", "", f"{summary.detection_mae:.3f}"],
                ["gene-gene correlations, r", "", f"{summary.correlation_r:.3f}"],
            ],
        )  # fmt: skip
