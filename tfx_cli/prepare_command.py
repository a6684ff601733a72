"""`tfx prepare`: from .h5ad files to a store, and what was found on the way."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import ConfigurationError
from tfx_cli.options import Assignments, ConfigFiles, JsonOutput
from tfx_cli.output import make_table, narrate, print_result
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from core.cells.store import Store
    from core.presets.loading import ResolvedPreset

__all__ = ["prepare"]

#: Labels of a kind that a report names before it says "and so many others".
_NAMED_LABELS = 5


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="PRESET | FILES...",
            help="A preset (file or bundled name), or .h5ad files: paths, globs, "
            "'name_{0..43}.h5ad', builtin:atlas.",
        ),
    ],
    store: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="STORE",
            help="Folder of the store; default: what the preset says, else stores/NAME-HASH.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a store of other cells or settings.")
    ] = False,
    config: ConfigFiles = None,
    assign: Assignments = None,
    as_json: JsonOutput = False,
) -> None:
    """Make a store from .h5ad files: checked, joined, split, and ready for training.

    'tfx train' does this where it is missing. A store that is there already, made of the same
    files with the same settings, is kept and reported.

    Examples
    --------
    tfx prepare base
    tfx prepare 'cells_{0..43}.h5ad' -o stores/cells --set data.phenotypes.age=age_years
    """
    resolved = _resolve(sources, config or [], assign or [])
    # anndata, scanpy and pandas, 2 to 3 s: not before the preset has proved right.
    from core.cells.manifest import MANIFEST_NAME
    from core.cells.prepare import default_store_path, prepare_store

    data = resolved.preset.data
    if store is None:
        store = Path(data.store) if data.store else default_store_path(data, resolved.name)
    manifest = store / MANIFEST_NAME
    before = _modified(manifest)
    with show_progress() as listener:
        made = prepare_store(data, store, overwrite=overwrite, on_progress=listener)
    is_reused = before is not None and _modified(manifest) == before
    narrate(f"{store}: {'there already, kept' if is_reused else 'written'}")
    print_result(
        "prepare",
        {
            "store": store,
            "reused": is_reused,
            "cells": made.n_cells,
            "genes": len(made.genes),
            "values": made.value_kind,
            "report": made.report,
        },
        as_json=as_json,
        # Notices have been narrated as they arose, if this run is the one that made the store.
        text=lambda: _report(made, with_notices=is_reused),
    )


def _resolve(sources: list[str], config: list[Path], assign: list[str]) -> "ResolvedPreset":
    """Tell a preset from files of cells, and settle all values."""
    from core.presets.catalogue import list_presets
    from core.presets.loading import resolve_preset

    bundled = {preset.name for preset in list_presets()}
    presets = [
        source
        for source in sources
        if source.endswith(".toml") or source.removeprefix("presets/") in bundled
    ]
    if not presets and len(sources) == 1 and not _names_cells(sources[0]):
        presets = sources  # a preset's name mistyped: let the search for it say so
    if presets and len(sources) > 1:
        message = (
            f"'{presets[0]}' is a preset and stands alone; give either one preset or files of cells"
        )
        raise ConfigurationError(message)
    return resolve_preset(
        Path(presets[0]) if presets else None,
        overlays=config,
        environment=os.environ,
        options={} if presets else {"data.files": sources},
        option_names={"data.files": "FILES"},
        assignments=assign,
    )


def _names_cells(source: str) -> bool:
    """Tell whether an argument is meant as cells: a file, a pattern, a built-in dataset."""
    looks_like_file = Path(source).suffix != "" or any(sign in source for sign in "*?[{/\\:")
    return looks_like_file or Path(source).exists()


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _report(store: "Store", *, with_notices: bool) -> "Iterator[RenderableType]":
    """Write the report of a store for people."""
    report = store.report
    yield f"{store.path}: {store.n_cells:,} cells x {len(store.genes):,} genes, {store.value_kind}"
    if report.get("gene_ranking"):
        yield f"genes ranked by {report['gene_ranking']} on training cells"
    yield ""
    yield make_table(
        ["file", "matrix", "holds", "gene ids", "cells", "genes", "lost genes"],
        [
            [
                file["name"],
                file["matrix"],
                file["state"],
                file["gene_ids"],
                file["n_cells"],
                file["n_genes"],
                file["lost_genes"],
            ]
            for file in report["files"]
        ],
    )
    yield ""
    yield make_table(
        ["phenotype", "values", "cells without", "unknown labels"],
        [
            [
                name,
                found["values"],
                found["missing_cells"],
                sum(found["unmapped_labels"].values()),
            ]
            for name, found in report["phenotypes"].items()
        ],
    )
    yield ""
    donors: Mapping[str, list[str]] = report["split"].get("donors") or {}
    yield make_table(
        ["split", "cells", "donors"],
        [
            [name, cells, len(donors[name]) if name in donors else None]
            for name, cells in report["split"]["cells"].items()
        ],
    )
    remarks = list(_remarks(report))
    if with_notices:
        remarks += report["notices"]
    if remarks:
        yield ""
        yield from (f"- {remark}" for remark in remarks)


def _remarks(report: Mapping[str, Any]) -> Iterator[str]:
    for name, reason in report["left_out_phenotypes"].items():
        yield f"{name} is left out: {reason}"
    for name, found in report["phenotypes"].items():
        token = f"[NO_{name.upper()}]"
        if found["missing_labels"]:
            yield f"{name}: taken as {token}: {_labels(found['missing_labels'])}"
        if found["unmapped_labels"]:
            yield (
                f"{name}: not among the values of training, so {token}: "
                f"{_labels(found['unmapped_labels'])}"
            )


def _labels(counts: Mapping[str, int]) -> str:
    """Name labels and their cells, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"'{label}' ({count:,} cells)" for label, count in ordered[:_NAMED_LABELS]]
    if len(ordered) > _NAMED_LABELS:
        named.append(f"{len(ordered) - _NAMED_LABELS} others")
    return ", ".join(named)
