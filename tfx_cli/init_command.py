"""`tfx init`: a first preset for the user's own files, with a comment on every choice."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tfx_cli.arguments import check_output
from tfx_cli.command_line import argument, option
from tfx_cli.formatting import count_of
from tfx_cli.options import DEVICE, JSON_OUTPUT, Device
from tfx_cli.output import Paragraph, make_table, print_result, show_progress, warn

if TYPE_CHECKING:
    from core.cells.preset_draft import DraftFacts, Sizes


def init(
    files: list[str] = argument(
        "FILES...", ".h5ad files: paths, globs, 'name_{0..43}.h5ad', builtin:atlas."
    ),
    output: Path = option("--output -o FILE", "The preset to write.", default=Path("preset.toml")),
    device: Device = DEVICE,
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Write a preset for your own files; 'tfx train' runs it as it is.

    Finds the obs columns of the five standard phenotypes under their usual names, other useful
    columns (treatment, genotype, ...), donors to split by, and counts or log values; chooses genes,
    model size and steps for this number of cells and this machine (or --device). Every choice has
    a comment. An existing file is never replaced.

    Examples
    --------
    tfx init cells.h5ad
    tfx init 'cells_{0..43}.h5ad' -o mine.toml --device cuda
    """
    check_output(output, (".toml",), what="presets", overwrite=None)
    # anndata, scanpy, pandas and torch, 3 s: only after the place has proved right.
    from core.cells.preset_draft import choose_sizes, look_at_files, save_draft, write_draft
    from core.training.machine import choose_device

    chosen = choose_device(device, where="--device")
    with show_progress() as listener:
        facts = look_at_files(files, on_progress=listener)
    sizes = choose_sizes(facts.n_cells, facts.n_genes, chosen)
    save_draft(write_draft(facts, sizes, path=str(output), device=chosen), output)
    for warning in facts.warnings:
        warn(warning)
    print_result(
        "init",
        {
            "preset": str(output),
            "cells": facts.n_cells,
            "genes": facts.n_genes,
            "values": facts.values,
            "phenotypes": {one.phenotype: one.column for one in facts.phenotypes},
            "left_out": {one.phenotype: one.note for one in facts.left_out},
            "further": {one.phenotype: one.column for one in facts.further},
            "split_by": facts.split_by,
            "warnings": list(facts.warnings),
        },
        as_json=as_json,
        text=lambda: _summary(facts, sizes, output),
    )


def _summary(facts: "DraftFacts", sizes: "Sizes", output: Path) -> Iterator[Paragraph]:
    yield f"{output}: {facts.n_cells:,} cells x {facts.n_genes:,} genes, {facts.values}"
    rows = [[one.phenotype, one.column, one.note] for one in facts.phenotypes]
    rows += [[one.phenotype, "", one.note] for one in facts.left_out]
    if rows:
        yield make_table(["phenotype", "obs column", ""], rows)
    layers = f"{count_of(sizes.layers, 'layer')} x {sizes.hidden_size}"
    steps = f"{sizes.max_steps:,} steps of {sizes.batch_size} cells"
    split = f"split by {facts.split_by}: {facts.split_note}"
    yield [split, f"{sizes.genes:,} genes, {layers}, {steps}"]
    train = f"tfx train {shlex.quote(str(output))}"
    yield [f"next: {train} --dry-run", f"      {train}"]
