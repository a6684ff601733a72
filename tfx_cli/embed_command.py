"""`tfx embed`: cells and genes as vectors, and expected expression."""

from pathlib import Path
from typing import Annotated

import typer

from core.errors import ConfigurationError
from tfx_cli.arguments import check_output, model_folder
from tfx_cli.options import Device, GeneIds, JsonOutput, Matrix, ModelOption
from tfx_cli.output import narrate, print_result, warn
from tfx_cli.progress import show_progress


def embed(
    file: Annotated[str, typer.Argument(metavar="FILE.h5ad", help="The cells.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT.h5ad", help="An annotated copy of the file."),
    ],
    run: ModelOption = None,
    place: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="PLACE",
            help="Output position of the embedding: cls, mean (over all tokens), or a phenotype.",
        ),
    ] = "cls",
    key: Annotated[
        str, typer.Option("--key", help="Name in obsm (cells), and in varm (genes).")
    ] = "X_tfx",
    genes: Annotated[
        bool, typer.Option("--genes", help="Add embeddings of the genes to varm as well.")
    ] = False,
    denoise: Annotated[
        str | None,
        typer.Option(
            "--denoise",
            metavar="LAYER",
            help="Add the expression that the model expects of each of its genes to this layer.",
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--given",
            metavar="NAME[=COLUMN]",
            help="A phenotype from obs to show to the model; default: none.",
        ),
    ] = None,
    matrix: Matrix = "auto",
    gene_ids: GeneIds = "auto",
    device: Device = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output file if it exists.")
    ] = False,
    as_json: JsonOutput = False,
) -> None:
    """Add embeddings of cells to obsm, ready for scanpy's neighbors and umap.

    Genes are joined as in 'tfx predict'. Then, in Python:
    sc.pp.neighbors(adata, use_rep="X_tfx"); sc.tl.umap(adata).

    Examples
    --------
    tfx embed new.h5ad -o embedded.h5ad
    tfx embed new.h5ad -o embedded.h5ad --from cell_type --genes --denoise tfx_denoised
    """
    check_output(output, (".h5ad",), what="embedded cells", overwrite=overwrite)
    folder = model_folder(run)
    # torch and transformers, 3 s: not before the options are checked.
    from core.inference.annotate import (
        add_denoised,
        add_gene_embeddings,
        embed_cells,
        gene_embeddings,
        note_on_embedding,
        resolve_position,
    )
    from core.inference.annotated_file import annotated_copy
    from core.inference.query_cells import open_query_cells, read_hint
    from core.model.folder import CellModel
    from core.training.machine import choose_device

    model = CellModel.load(folder, device=choose_device(device, where="--device"))
    position = resolve_position(model.config, place)
    if model.network.encoder_part is None:
        gene_embeddings(model)  # raises: there are none
    elif (note := note_on_embedding(model.config, position)) is not None:
        warn(note)
    if denoise is not None and "/" in denoise:
        message = f"--denoise {denoise}: the name of a layer has no '/'"
        raise ConfigurationError(message)
    width = model.config.hidden_size
    with open_query_cells(file, model.panel, matrix=matrix, gene_ids=gene_ids) as cells:
        hints = [read_hint(cells.source, model.config, one) for one in given or []]
        missing = int(cells.missing.sum())
        found = f"{len(model.panel) - missing:,} of {len(model.panel):,} genes"
        narrate(f"{file}: {cells.n_cells:,} cells, {found}")
        if cells.choice.matrix == "raw" and (genes or denoise):
            message = (
                f"{file}: the model's genes are in raw, which has other rows than var; leave out "
                f"--genes and --denoise, or give --matrix X"
            )
            raise ConfigurationError(message)
        with annotated_copy(file, output) as copy, show_progress() as listener:
            new = [f"obsm/{key}"] + [f"varm/{key}"] * genes
            new += [f"layers/{denoise}"] if denoise else []
            copy.check_free(*new, remedy="choose another --key, or layer of --denoise")
            write = copy.add_array(f"obsm/{key}", (cells.n_cells, width))
            embed_cells(model, cells, write, position=position, hints=hints, on_progress=listener)
            if genes:
                add_gene_embeddings(copy, key, model, cells)
            if denoise:
                add_denoised(copy, denoise, model, cells, hints=hints, on_progress=listener)
        n_cells = cells.n_cells
    narrate(f"{output}: obsm['{key}'] ({n_cells:,} x {width})")
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
