"""`tfx prepare`: from .h5ad files to a store, with a report."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfx_cli.arguments import resolve_sources
from tfx_cli.options import Assignments, ConfigFiles, JsonOutput, Sources, preset_option
from tfx_cli.output import make_table, narrate, print_result
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from core.cells.store import Store
    from core.presets.loading import ResolvedPreset

#: Labels of a kind that a report names; the others are counted.
_NAMED_LABELS = 5


def prepare(
    sources: Sources,
    store: Annotated[
        Path | None,
        preset_option("data.store", "--output", "-o", metavar="STORE"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a store of other cells or settings.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Processes; default: one to four, by size and cores."
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option("--dask", metavar="ADDRESS", help="Use this Dask scheduler: tcp://host:8786."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only compare a store with its checksums.")
    ] = False,
    config: ConfigFiles = None,
    assign: Assignments = None,
    as_json: JsonOutput = False,
) -> None:
    """Make a store from .h5ad files: checked, joined, split, and ready for training.

    'tfx train' does this where the store is missing. An existing store of the same files and
    settings is kept. Memory does not grow with the number of cells. After Ctrl-C, a kill or a full
    disk the same command continues where it stopped.

    Examples
    --------
    tfx prepare base
    tfx prepare 'cells_{0..43}.h5ad' -o stores/cells --set data.phenotypes.age=age_years
    tfx prepare stores/cells --verify
    tfx prepare 'cells_*.h5ad' --dask tcp://node1:8786
    """
    if verify and store is None and len(sources) == 1 and Path(sources[0]).is_dir():
        store = Path(sources[0])
    if verify and store is not None:
        _verify(store, as_json=as_json)
        return
    resolved = resolve_sources(sources, config, assign)
    store = store or _store_of(resolved)
    if verify:
        _verify(store, as_json=as_json)
        return
    # anndata, scanpy and pandas, 2 to 3 s: only after the preset has proved right.
    from core.cells.manifest import MANIFEST_NAME
    from core.cells.prepare import prepare_store

    manifest = store / MANIFEST_NAME
    before = _modified(manifest)
    with show_progress() as listener:
        made = prepare_store(
            resolved.preset.data,
            store,
            overwrite=overwrite,
            workers=workers,
            dask=dask,
            on_progress=listener,
        )
    is_reused = before is not None and _modified(manifest) == before
    narrate(f"{store}: {'exists, kept' if is_reused else 'written'}")
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


def _store_of(resolved: "ResolvedPreset") -> Path:
    from core.cells.prepare import store_path

    return store_path(resolved.preset.data, resolved.name)


def _verify(store: Path, *, as_json: bool) -> None:
    from core.cells.manifest import verify_store

    with show_progress() as listener:
        n_files = verify_store(store, on_progress=listener)
    print_result(
        "prepare",
        {"store": store, "verified": True, "files": n_files},
        as_json=as_json,
        text=lambda: f"{store}: all {n_files} files are as they were prepared",
    )


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _report(store: "Store", *, with_notices: bool) -> Iterator["RenderableType"]:
    report = store.report
    yield f"{store.path}: {store.n_cells:,} cells x {len(store.genes):,} genes, {store.value_kind}"
    if report.get("gene_ranking"):
        yield f"genes ranked by {report['gene_ranking']} on training cells"
    yield ""
    keys = ("name", "matrix", "state", "gene_ids", "n_cells", "n_genes", "lost_genes")
    yield make_table(
        ["file", "matrix", "holds", "gene ids", "cells", "genes", "lost genes"],
        [[file[key] for key in keys] for file in report["files"]],
    )
    yield ""
    yield make_table(
        ["phenotype", "values", "cells without", "unknown labels"],
        [
            [name, found["values"], found["missing_cells"], sum(found["unmapped_labels"].values())]
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
        remarks += [*report.get("warnings", []), *report["notices"]]
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
            labels = _labels(found["unmapped_labels"])
            yield f"{name}: not among the values of training, so {token}: {labels}"


def _labels(counts: Mapping[str, int]) -> str:
    """Name labels and their cells, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"'{label}' ({count:,} cells)" for label, count in ordered[:_NAMED_LABELS]]
    if len(ordered) > _NAMED_LABELS:
        named.append(f"{len(ordered) - _NAMED_LABELS} others")
    return ", ".join(named)
