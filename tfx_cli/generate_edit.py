"""`tfx generate --from FILE --set NAME=VALUE`: real cells with phenotypes set to other values."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ConfigurationError
from tfx_cli.output import make_table, narrate, print_result, warn
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from core.inference.edited_cells import EditedCells

#: Genes in the report for people.
_SHOWN = 10


def edit_file(
    file: str,
    pairs: Sequence[str],
    output: Path,
    *,
    folder: Path,
    seed: int,
    changes: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Change the cells of a file, write them and report which genes moved.

    Raises
    ------
    ConfigurationError
        A pair is not NAME=VALUE, a phenotype is set twice, or bins or counts are requested.
    """
    values = _values_to_set(pairs)
    if (decode := changes.get("decode")) in ("bins", "counts"):
        message = (
            f"--decode {decode}: genes that do not move keep their values, so the others need values "
            f"too; use sample or mean"
        )
        raise ConfigurationError(message)
    # torch and transformers, 3 s: not before the options are checked.
    from core.generation.request import changed_settings
    from core.inference.edited_cells import edit_cells, write_edited
    from core.inference.query_cells import open_query_cells
    from core.model.folder import CellModel

    model = CellModel.load(folder)
    settings = changed_settings(model.generate, {"decode": "sample", **changes})
    with open_query_cells(file, model.panel) as query, show_progress() as listener:
        edited = edit_cells(
            model, query, values, settings=settings, seed=seed, on_progress=listener
        )
    for note in edited.notes:
        warn(note)
    write_edited(edited.cells, output)
    narrate(f"{output}: {edited.cells.n_obs:,} cells x {edited.cells.n_vars:,} genes")
    is_simulated = bool(model.provenance.get("simulated"))
    print_result(
        "generate.edit",
        {
            "output": output,
            "from": file,
            "set": values,
            "cells": edited.cells.n_obs,
            "changed_cells": edited.n_changed,
            "moved_genes_per_cell": edited.moved_per_cell,
            "model": folder,
            "simulated": is_simulated,
            "genes": [vars(change) for change in edited.changes],
            "notes": edited.notes,
        },
        as_json=as_json,
        text=lambda: _report(edited, values, is_simulated=is_simulated),
    )


def _values_to_set(pairs: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for pair in pairs:
        name, _, value = (part.strip() for part in pair.partition("="))
        if not (name and value):
            message = f"--set {pair}: must be NAME=VALUE, as in disease=normal"
            raise ConfigurationError(message)
        if values.setdefault(name, value) != value:
            message = f"--set {pair}: {name} is already '{values[name]}'"
            raise ConfigurationError(message)
    if not values:
        message = "--from needs what to change, as in --set disease=normal"
        raise ConfigurationError(message)
    return values


def _report(
    edited: "EditedCells", values: Mapping[str, str], *, is_simulated: bool
) -> "Iterator[RenderableType]":
    if is_simulated:
        yield "The model was trained on simulated cells: these say nothing about real biology."
    wanted = ", ".join(f"{name} = {value}" for name, value in values.items())
    yield (
        f"{wanted}: {edited.n_changed:,} of {edited.cells.n_obs:,} cells changed, "
        f"{edited.moved_per_cell:.1f} of {edited.cells.n_vars:,} genes each"
    )
    yield ""
    yield "genes with the largest change of the mean (log1p per 10k)"
    rows = [
        [
            one.gene,
            f"{one.before:.2f}",
            f"{one.after:.2f}",
            f"{one.change:+.2f}",
            f"{one.moved:.0%}",
        ]
        for one in edited.changes[:_SHOWN]
    ]
    yield make_table(["gene", "before", "after", "change", "cells it moved in"], rows)
