"""`tfx generate --from FILE --set NAME=VALUE`: real cells with phenotypes set to other values."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ConfigurationError
from tfx_cli.output import make_table, narrate, print_result, warn
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

    from core.inference.edited_cells import EditedCells

__all__ = ["edit_file", "values_to_set"]

_SHOWN = 10


def values_to_set(pairs: Sequence[str]) -> dict[str, str]:
    """Read the NAME=VALUE of every --set.

    Raises
    ------
    ConfigurationError
        A pair is not NAME=VALUE, or a phenotype is set twice.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name and equals and value):
            message = f"--set {pair}: must be NAME=VALUE, as in disease=normal"
            raise ConfigurationError(message)
        if values.setdefault(name, value) != value:
            message = f"--set {pair}: {name} is already '{values[name]}'"
            raise ConfigurationError(message)
    if not values:
        message = "--from needs what to change, as in --set disease=normal"
        raise ConfigurationError(message)
    return values


def edit_file(
    file: str,
    values: Mapping[str, str],
    output: Path,
    *,
    folder: Path,
    seed: int,
    changes: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Change the cells of a file, write them and report which genes moved."""
    from core.inference.edited_cells import edit_cells, write_edited
    from core.inference.query_cells import open_query_cells
    from core.model.folder import CellModel

    model = CellModel.load(folder)
    settings = model.generate.model_copy(update={"decode": "sample", **changes})
    with (
        open_query_cells(file, model.panel) as query,
        show_progress() as listener,
    ):
        edited = edit_cells(
            model, query, values, obs=_obs_of(file), settings=settings, seed=seed,
            on_progress=listener,
        )  # fmt: skip
    for note in edited.notes:
        warn(note)
    write_edited(edited.cells, output)
    narrate(f"{output}: {edited.cells.n_obs:,} cells x {edited.cells.n_vars:,} genes")
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
            "simulated": bool(model.provenance.get("simulated")),
            "genes": [vars(change) for change in edited.changes],
            "notes": edited.notes,
        },
        as_json=as_json,
        text=lambda: _report(edited, values, simulated=bool(model.provenance.get("simulated"))),
    )


def _obs_of(file: str) -> "pd.DataFrame":
    import anndata

    from core.cells.builtin import load_builtin
    from core.cells.file_patterns import BUILTIN_PREFIX

    if file.startswith(BUILTIN_PREFIX):
        return load_builtin(file).obs
    cells = anndata.read_h5ad(file, backed="r")
    try:
        return cells.obs.copy()
    finally:
        cells.file.close()


def _report(
    edited: "EditedCells", values: Mapping[str, str], *, simulated: bool
) -> "Iterator[RenderableType]":
    if simulated:
        yield "The model was trained on simulated cells: these say nothing about real biology."
    wishes = ", ".join(f"{name} = {value}" for name, value in values.items())
    n_genes = edited.cells.n_vars
    yield (
        f"{wishes}: {edited.n_changed:,} of {edited.cells.n_obs:,} cells changed, "
        f"{edited.moved_per_cell:.1f} of {n_genes:,} genes each"
    )
    yield ""
    yield "genes whose mean moved most (log1p per 10k)"
    yield make_table(
        ["gene", "before", "after", "change", "cells it moved in"],
        [
            [
                one.gene, f"{one.before:.2f}", f"{one.after:.2f}", f"{one.change:+.2f}",
                f"{one.moved:.0%}",
            ]
            for one in edited.changes[:_SHOWN]
        ],
    )  # fmt: skip
