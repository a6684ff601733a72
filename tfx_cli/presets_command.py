"""`tfx presets`: list, show, check and import presets; `tfx init`: a first one for your own files."""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from tfx_cli.arguments import check_output, gene_file, model_folder
from tfx_cli.command_line import argument, new_app, option
from tfx_cli.formatting import count_of
from tfx_cli.options import ASSIGNMENTS, CONFIG_FILES, DEVICE, JSON_OUTPUT, OVERWRITE, Device
from tfx_cli.output import Document, Paragraph, make_table, print_json, print_result, warn
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from core.cells.preset_draft import DraftFacts
    from core.presets.schema import Preset

app = new_app(no_args_is_help=True, add_completion=False)

_PRESET = argument("PRESET", "A file, or the name of a bundled preset.")


@app.callback()
def presets() -> None:
    """List, show and check presets: TOML files of the settings of data, model and training.

    Examples
    --------
    tfx presets show base --set train.batch_size=8
    tfx presets validate my_preset.toml
    """


@app.command("list")
def list_command(as_json: bool = JSON_OUTPUT) -> None:
    """List the bundled presets.

    Examples
    --------
    tfx presets list
    tfx presets list --json
    """
    from core.presets.catalogue import list_presets

    found = list_presets()
    records = [{"name": one.name, "title": one.title, "path": one.path} for one in found]
    print_result(
        "presets.list",
        {"presets": records},
        as_json=as_json,
        text=lambda: make_table(["name", "what"], [(one.name, one.title) for one in found]),
    )


@app.command("show")
def show_command(
    preset: str = _PRESET,
    config: list[Path] | None = CONFIG_FILES,
    assign: list[str] | None = ASSIGNMENTS,
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Show a preset in full: every key, its value, and the provenance of the value.

    The output is itself a preset.

    Examples
    --------
    tfx presets show base
    tfx presets show base --set model.layers=2 > mine.toml
    """
    from core.presets.loading import resolve_preset

    resolved = resolve_preset(
        Path(preset), overlays=config or (), environment=os.environ, assignments=assign or ()
    )
    print_result(
        "presets.show",
        {
            "name": resolved.name,
            "preset": resolved.preset.model_dump(mode="json"),
            "provenance": resolved.provenance,
            "origins": resolved.provenance,  # the name before 0.2
        },
        as_json=as_json,
        text=lambda: Document(resolved.to_toml()),
    )


@app.command("validate")
def validate_command(
    preset: str = _PRESET,
    config: list[Path] | None = CONFIG_FILES,
    assign: list[str] | None = ASSIGNMENTS,
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Check a preset and list all validation errors; exit code 2 if there are any.

    Variables TFX_SECTION__KEY of the environment are ignored: the file itself is checked.

    Examples
    --------
    tfx presets validate my_preset.toml
    tfx presets validate base --config on_the_cluster.toml
    """
    from core.presets.loading import resolve_preset

    resolved = resolve_preset(Path(preset), overlays=config or (), assignments=assign or ())
    print_result(
        "presets.validate",
        {"name": resolved.name, "valid": True},
        as_json=as_json,
        text=lambda: f"{preset}: valid",
    )


@app.command("values")
def values_command(
    run: str | None = argument(
        "[RUN]", "A run or a model folder; default: the newest run.", default=None
    ),
    as_json: bool = JSON_OUTPUT,
) -> None:
    """List the phenotypes of a model and their values, which you can request, with their training cells.

    Examples
    --------
    tfx presets values
    tfx presets values runs/base --json
    """
    from core.model.reference import ControlTokens

    folder = model_folder(run)
    tokens = ControlTokens.read(folder)
    cells = {name: tokens.counts_of(name) for name in tokens.phenotypes}
    print_result(
        "presets.values",
        {"model": folder, "training_cells": tokens.n_cells, "phenotypes": cells},
        as_json=as_json,
        text=lambda: _values_text(folder, tokens.n_cells, cells),
    )


def _values_text(
    folder: Path, n_cells: int, cells: Mapping[str, Mapping[str, int]]
) -> Iterator[Paragraph]:
    yield f"{folder}: what you can request of it, and its {n_cells:,} training cells"
    for name, counts in cells.items():
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        yield make_table([name, "training cells"], ordered)
        without = n_cells - sum(counts.values())
        if without:
            yield [f"{count_of(without, 'training cell')} without a known {name}"]


@app.command("import", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def import_command(
    context: typer.Context,
    source: Path | None = argument(
        "[FILE]",
        "A JSON configuration of PolyGene, or a shell script of PerturbGene; without one, "
        "give the command line itself after '--'.",
        default=None,
    ),
    output: Path | None = option("--output -o FILE", "File to write; default: stdout."),
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Turn a run of PolyGene or PerturbGene into a preset.

    A comment on each key names the option it comes from; options without effect here are listed
    with the reason. 'tfx docs published-models' has the table.

    Examples
    --------
    tfx presets import configs/pretrained_binary_bert_2432.json -o mine.toml
    tfx presets import run_training.sh -o mine.toml
    tfx presets import -o mine.toml -- python -m perturbgene.main --bin_edges 0.1 ...
    """
    from core.errors import ConfigurationError
    from core.files import replace_file
    from core.presets.loading import resolve_text
    from core.published.commands import read_arguments, read_file
    from core.published.to_preset import to_preset

    words = [*([] if source is None else [str(source)]), *context.args]
    if not words:
        raise ConfigurationError(
            "name a JSON configuration or a script, or give the command line after '--'"
        )
    if output is not None:
        check_output(output, (".toml",), what="the preset", overwrite=overwrite)
    run = read_arguments(words) if source is None or context.args else read_file(source)
    text = to_preset(run)
    resolved = resolve_text(text, where=output or Path("imported.toml"))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(output, text)
    print_result(
        "presets.import",
        {
            "system": run.system,
            "task": run.task,
            "output": output,
            "preset": resolved.preset.model_dump(mode="json"),
        },
        as_json=as_json,
        text=lambda: Document(text) if output is None else f"{output}: a run of {run.system}",
    )


@app.command("schema")
def schema_command(
    form: Literal["markdown", "json"] = option(
        "--format", "A page for people, or JSON Schema for editors.", default="markdown"
    ),
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Print the schema of presets: keys, values, defaults, meanings.

    JSON Schema makes editors complete and check presets as they are written.

    Examples
    --------
    tfx presets schema
    tfx presets schema --format json > preset.schema.json
    """
    from core.presets.fields import schema_as_json, schema_as_markdown

    if form == "json":
        print_json(schema_as_json())
        return
    print_result(
        "presets.schema",
        {"json_schema": schema_as_json()},
        as_json=as_json,
        text=lambda: Document(schema_as_markdown()),
    )


# -- tfx init
def init(
    files: list[str] = argument(
        "FILES...",
        "Files of cells: .h5ad, .zarr, .h5mu, 10x (.h5, folders of matrix.mtx); paths, globs, "
        "'name_{0..43}.h5ad', soma://PATH, builtin:atlas.",
    ),
    output: Path = option("--output -o FILE", "The preset to write.", default=Path("preset.toml")),
    genes: str | None = option(
        "--genes N|FILE",
        "Size of the gene panel; or a text file, one gene a line, of genes that it must have.",
    ),
    assign: list[str] | None = option(
        "--set KEY=VALUE",
        "Set one key of the preset, as in data.phenotypes.cell_type=annotation; can be repeated.",
    ),
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
    tfx init cells.h5ad --genes markers.txt --set data.phenotypes.cell_type=annotation
    """
    check_output(output, (".toml",), what="presets", overwrite=None)
    # anndata, scanpy, pandas and torch, 3 s: only after the place has proved right.
    from core.cells.draft_toml import choose_sizes, save_draft, with_changes, write_draft
    from core.cells.preset_draft import draft_changes, look_at_files
    from core.training.machine import choose_device

    changes = draft_changes(assign or (), genes)
    n_listed = 0
    if genes is not None and not genes.strip().isdigit():
        n_listed = len(gene_file(Path(genes), "--genes"))
    chosen = choose_device(device, where="--device")
    with show_progress() as listener:
        facts = look_at_files(files, changes=changes, on_progress=listener)
    sizes = choose_sizes(facts.n_cells, facts.n_genes, chosen, n_listed=n_listed)
    text = write_draft(facts, sizes, path=str(output), device=chosen)
    preset = save_draft(with_changes(text, changes), output)
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
            "split_by": preset.data.split.by,
            "warnings": list(facts.warnings),
        },
        as_json=as_json,
        text=lambda: _summary(facts, preset, output),
    )


def _summary(facts: "DraftFacts", preset: "Preset", output: Path) -> Iterator[Paragraph]:
    from core.wording import listed

    yield f"{output}: {facts.n_cells:,} cells x {facts.n_genes:,} genes, {facts.values}"
    given = preset.data.phenotypes
    notes = {one.phenotype: one for one in (*facts.phenotypes, *facts.left_out)}
    rows = []
    for name in dict.fromkeys([*notes, *given]):
        column = given.get(name) or ""
        is_found = name in notes and (not column or column == notes[name].column)
        rows.append([name, column, notes[name].note if is_found else "by --set"])
    if rows:
        yield make_table(["phenotype", "obs column", ""], rows)
    if further := [one for one in facts.further if one.phenotype not in given]:
        first = f"data.phenotypes.{further[0].phenotype}={further[0].column}"
        yield [
            f"could be phenotypes, too: {listed([one.column for one in further])}",
            f"add one by --set {shlex.quote(first)}, or uncomment its line in {output}",
        ]
    layers = f"{count_of(preset.model.layers, 'layer')} x {preset.model.hidden_size}"
    train, by = preset.train, preset.data.split.by
    length = f"{train.epochs:g} epochs" if train.epochs else f"{train.max_steps or 0:,} steps"
    split = f"split by {by}: {facts.split_note if by == facts.split_by else 'by --set'}"
    yield [
        split,
        f"{preset.data.genes:,} genes, {layers}, {length}, {train.batch_size} cells a step",
    ]
    command = f"tfx train {shlex.quote(str(output))}"
    yield [f"next: {command} --dry-run", f"      {command}"]
