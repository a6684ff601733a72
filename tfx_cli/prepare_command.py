"""`tfx prepare`: from .h5ad files to a store, with a report. `tfx stores`: list and delete stores."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ConfigurationError
from core.wording import listed, size
from tfx_cli.arguments import RUNS, STORES, resolve_sources
from tfx_cli.command_line import argument, new_app, option
from tfx_cli.formatting import ago
from tfx_cli.options import ASSIGNMENTS, CONFIG_FILES, JSON_OUTPUT, SOURCES, preset_option
from tfx_cli.output import Paragraph, confirm, make_table, narrate, print_result
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from core.cells.store import Store

#: Labels of a kind that a report names; the others are counted.
_NAMED_LABELS = 5


def prepare(
    sources: list[str] = SOURCES,
    store: Path | None = preset_option("--output -o STORE", "data.store"),
    overwrite: bool = option(
        "--overwrite", "Replace a store of other cells or settings.", default=False
    ),
    workers: int | None = option(
        "--workers", "Processes; default: one to four, by size and cores.", min=1
    ),
    dask: str | None = option("--dask ADDRESS", "Use this Dask scheduler: tcp://host:8786."),
    verify: bool = option("--verify", "Only compare a store with its checksums.", default=False),
    config: list[Path] | None = CONFIG_FILES,
    assign: list[str] | None = ASSIGNMENTS,
    as_json: bool = JSON_OUTPUT,
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
    if not verify or store is None:
        resolved = resolve_sources(sources, config, assign)
    # anndata, scanpy and pandas, 2 to 3 s: only after the preset has proved right.
    from core.cells.integrity import verify_store
    from core.cells.manifest import MANIFEST_NAME
    from core.cells.prepare import prepare_store, store_path

    store = store or store_path(resolved.preset.data, resolved.name)
    if verify:
        with show_progress() as listener:
            n_files = verify_store(store, on_progress=listener)
        print_result(
            "prepare",
            {"store": store, "verified": True, "files": n_files},
            as_json=as_json,
            text=lambda: f"{store}: all {n_files} files are as they were prepared",
        )
        return
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


def _modified(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _report(store: "Store", *, with_notices: bool) -> Iterator[Paragraph]:
    report = store.report
    head = f"{store.path}: {store.n_cells:,} cells x {len(store.genes):,} genes, {store.value_kind}"
    ranking = report.get("gene_ranking")
    yield [head, f"genes ranked by {ranking} on training cells"] if ranking else head
    keys = ("name", "matrix", "state", "gene_ids", "n_cells", "n_genes", "lost_genes")
    heads = ["file", "matrix", "holds", "gene ids", "cells", "genes", "lost genes"]
    yield make_table(heads, [[file[key] for key in keys] for file in report["files"]])
    rows = [
        [name, found["values"], found["missing_cells"], sum(found["unmapped_labels"].values())]
        for name, found in report["phenotypes"].items()
    ]
    yield make_table(["phenotype", "values", "cells without", "unknown labels"], rows)
    donors: Mapping[str, list[str]] = report["split"].get("donors") or {}
    rows = [
        [name, cells, len(donors[name]) if name in donors else None]
        for name, cells in report["split"]["cells"].items()
    ]
    yield make_table(["split", "cells", "donors"], rows)
    remarks = list(_remarks(report))
    if with_notices:
        remarks += [*report.get("warnings", []), *report["notices"]]
    yield [f"- {remark}" for remark in remarks]


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


# -- tfx stores
stores = new_app(no_args_is_help=True, add_completion=False)


@stores.callback()
def stores_command() -> None:
    """List and delete stores: the prepared cells that runs are trained on.

    Examples
    --------
    tfx stores list
    tfx stores delete pbmc68k-35c1bbaad2
    """


@stores.command("list")
def list_command(
    folder: Path = argument("[FOLDER]", "Folder of stores.", default=STORES),
    as_json: bool = JSON_OUTPUT,
) -> None:
    """List stores, the largest first, with the runs that were trained on them.

    An unfinished store holds the pieces of a preparation that stopped, which 'tfx prepare' uses
    when it continues.

    Examples
    --------
    tfx stores list
    tfx stores list /scratch/stores --json
    """
    from core.cells.keeping import list_stores

    if folder != STORES and not folder.is_dir():
        raise ConfigurationError(
            f"there is no folder '{folder}'; give the folder that holds stores"
        )
    found = list_stores(folder, RUNS)
    if not found:
        narrate(f"no stores in '{folder}'; 'tfx prepare' and 'tfx train' make them")
    now = time.time()
    rows = [
        [
            one.path.name,
            one.state,
            one.cells,
            one.genes,
            size(one.n_bytes),
            ago(one.modified, now=now),
            listed(one.runs),
        ]
        for one in found
    ]
    heads = ["store", "state", "cells", "genes", "size", "written", "runs"]
    print_result(
        "stores.list",
        {"folder": folder, "stores": [asdict(one) for one in found]},
        as_json=as_json,
        text=lambda: make_table(heads, rows, right=(4,)) if rows else [],
    )


@stores.command("delete")
def delete_command(
    names: list[str] = argument("STORE...", "Stores, by name or folder."),
    yes: bool = option("--yes", "Do not ask.", default=False),
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Delete stores for good, after asking.

    'tfx prepare' makes a store again while its files of cells exist. Until then the runs that were
    trained on it cannot continue, and 'tfx eval' cannot score them on held-out cells.

    Examples
    --------
    tfx stores delete base-35c1bbaad2
    tfx stores delete stores/base-35c1bbaad2 --yes
    """
    from core.cells.keeping import delete_store, find_stores

    found = find_stores(STORES, RUNS, names)
    freed = size(sum(one.n_bytes for one in found))
    if not yes:
        shown = ", ".join(
            f"{one.path} ({size(one.n_bytes)}"
            + f", used by {listed(one.runs)}" * bool(one.runs)
            + ")"
            for one in found
        )
        confirm(
            f"Delete {shown}?",
            refusal=f"there is no terminal to ask on: add --yes to delete {shown}",
        )
    for one in found:
        delete_store(one)
    print_result(
        "stores.delete",
        {"deleted": [one.path for one in found], "bytes": sum(one.n_bytes for one in found)},
        as_json=as_json,
        text=lambda: f"deleted: {', '.join(str(one.path) for one in found)} ({freed})",
    )
