"""Interactions of genes: the model's effects and simple measures against the edges of the simulated atlas.

    python benchmarks/interactions.py             30,000 cells, 160 genes, two models
    python benchmarks/interactions.py --quick     8,000 cells, a model without attention
    python benchmarks/interactions.py a.h5ad      and the cell types of real cells, whose edges nobody knows:
                                                  evidence of held-out donors for the strongest pairs
    python benchmarks/interactions.py --json      last line one JSON object

Contexts are combinations of cell type, tissue and disease, of about 25, 50, 100, 200 and 500 cells (training
and held-out donors together). Simple measures see all cells of the context; "pearson_shrunken" and "all cells"
see those of other contexts, too, as the model did. Tables: average precision over ordered pairs, by size of the
context and by kind of edge; the edges found at q < 0.05 and how many of them are true; what the command
takes as weights; seconds.

Knock-outs (`knock_outs.py`): genes that respond to a knock-out in the model, against knock-outs of the simulator, in
both versions of the atlas; version 2 has directed regulation, so that the direction of edges is scored, too.
`--only knock-outs` leaves the rest out.
"""

import argparse
import contextlib
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from commands import call
from knock_outs import cell_types, measure_knock_outs, show_knock_outs

from core.cells.atlas.edges import TrueEdges
from core.cells.cell_filter import CellFilter, Condition
from core.cells.store import Store
from core.interactions.baselines import (
    ALL_MEASURES,
    QUICK_MEASURES,
    SIGNED_MEASURES,
    measure_association,
)
from core.interactions.cells import LEAST_CELLS, store_reader
from core.interactions.network import find_interactions
from core.interactions.request import Request
from core.interactions.result import FOUND, Network
from core.interactions.statistics import q_values
from core.interactions.truth import edges_of_context, score_edges
from core.model.folder import CellModel

#: Model -> what it changes in log_linear.toml.
MODELS = {
    "log-linear": {"model.layers": 0, "model.cell_summary": "false", "train.max_steps": 2000},
    "log-linear + encoder": {},
}
SIZES = (25, 50, 100, 200, 500)
_PHENOTYPES = ("cell_type", "tissue", "disease")
#: Cells of a small context of knock-outs.
_FEW_CELLS = 60


def contexts_of(store: Store, size: int, n: int) -> list[CellFilter]:
    """Return filters of the contexts whose number of cells is nearest to a size."""
    columns = [list(store.phenotypes).index(name) for name in _PHENOTYPES]
    codes = np.asarray(store.phenotype_codes)[:, columns]
    combinations, counts = np.unique(codes, axis=0, return_counts=True)
    nearest = np.argsort(np.abs(np.log(counts / size)), kind="stable")[:n]
    return [
        CellFilter(
            tuple(
                Condition(name, (store.phenotypes[name][code],))
                for name, code in zip(_PHENOTYPES, combinations[one].tolist(), strict=True)
            )
        )
        for one in nearest.tolist()
    ]


def measure(
    run: str, n_contexts: int, measures: tuple[str, ...], seed: int
) -> dict[str, list[dict]]:
    """Score every context: rows of scores, and rows about the found edges."""
    model = CellModel.load(Path(f"runs/{run}/model"))
    store = Store.open(str(model.provenance["store"]))
    read = store_reader(model, store)
    everything = measure_association(read(CellFilter()), ["pearson"])["pearson"]
    scores, found = [], []
    for size in SIZES:
        for where in contexts_of(store, size, n_contexts):
            began = time.perf_counter()
            request = Request(where=where, measures=measures, seed=seed)
            network = find_interactions(model, read, request, store=store).networks[0]
            seconds = time.perf_counter() - began
            cells = read(where)
            pairs = np.ix_(network.sources, network.targets)
            truth = edges_of_context(model, cells).take(pairs)
            weights = {k: v for k, v in network.measures.items() if k != "model_error"}
            pooled = np.where(np.isnan(network.weight), np.nan, everything[pairs])
            weights |= {"all cells": pooled, "chosen": network.weight}
            place = {"size": size, "context": network.context}
            scores += [
                place | vars(score) for score in score_edges(weights, truth, set(SIGNED_MEASURES))
            ]
            row = {"size": size, "context": network.context, "cells": network.n_cells}
            row |= {"chosen": network.chosen, "passes": network.n_passes, "seconds": seconds}
            found.append(row | found_edges(network, truth))
            print(f"{run}: {network.context}, {network.n_cells} cells, {seconds:.0f} s", flush=True)
    return {"scores": scores, "found": found}


def evidence_of_types(run: str, seed: int) -> dict[str, dict[str, float]]:
    """Cell type (its cells) -> measure -> evidence of held-out donors, of a rare, a middle and a common type."""
    model = CellModel.load(Path(f"runs/{run}/model"))
    store = Store.open(str(model.provenance["store"]))
    read = store_reader(model, store)
    names = store.phenotypes["cell_type"]
    codes = np.asarray(store.phenotype_codes)[:, list(store.phenotypes).index("cell_type")]
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    found = {}
    for code in np.argsort(counts, kind="stable").tolist():
        where = CellFilter((Condition("cell_type", (names[code],)),))
        cells = read(where) if counts[code] >= LEAST_CELLS else None
        if cells is not None and cells.two_sides() is not None:
            found[f"{names[code]} ({counts[code]:,})"] = where
    chosen = [list(found)[at] for at in (0, len(found) // 2, -1)] if found else []
    return {
        name: find_interactions(model, read, Request(where=found[name], seed=seed), store=store)
        .networks[0]
        .evidence
        for name in dict.fromkeys(chosen)
    }


def found_edges(network: Network, truth: TrueEdges) -> dict[str, float]:
    """Count the edges found against each null, and the true ones, and those of the right sign, among them."""
    row, sign = {}, truth.sign
    for name, q in (
        ("permuted", q_values(network.p)),
        ("matched", q_values(network.p_matched)),
        ("both", network.q),
    ):
        called = (q < FOUND) & ~truth.is_partial
        true = called & (sign != 0)
        row[f"{name}_found"] = int(called.sum())
        row[f"{name}_true"] = int(true.sum())
        row[f"{name}_sign"] = int((np.sign(network.weight)[true] == sign[true]).sum())
    row["edges"] = int((sign != 0).sum())
    return row


def show(results: dict[str, dict[str, list[dict]]]) -> None:
    """Print the tables as Markdown."""
    for model, of_model in results.items():
        scores = of_model["scores"]
        measures = list(dict.fromkeys(row["measure"] for row in scores))
        print(
            f"\n{model}: average precision over all edges, by cells of the context (mean of contexts)\n"
        )
        table(
            scores, measures, "size", [(size, "all") for size in SIZES],
            [f"{size} cells" for size in SIZES],
        )  # fmt: skip
        kinds = list(dict.fromkeys(row["kind"] for row in scores))
        print(f"\n{model}: average precision by kind of edge, all contexts\n")
        table(scores, measures, None, [(None, kind) for kind in kinds], kinds)
        print(f"\n{model}: other scores, all edges and contexts\n")
        print("| measure | early precision | AUROC | AUROC of a source's responders | sign right |")
        print("|---|---|---|---|---|")
        for name in measures:
            own = [row for row in scores if row["measure"] == name and row["kind"] == "all"]
            columns = ("early_precision", "auroc", "responders")
            values = [np.nanmean([row[column] for row in own]) for column in columns]
            signs = [row["sign"] for row in own if row["sign"] == row["sign"]]
            sign = f"{np.mean(signs):.2f}" if signs else ""
            print(f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} | {sign} |")
        print(f"\n{model}: edges found (q < {FOUND}) / of them true / of these of the right sign\n")
        print(
            "| cells | true edges | permuted null | matched null | both (q) | weights | seconds |"
        )
        print("|---|---|---|---|---|---|---|")
        for size in SIZES:
            own = [row for row in of_model["found"] if row["size"] == size]
            total = {k: sum(row[k] for row in own) for k in own[0] if isinstance(own[0][k], int)}
            parts = [
                f"{total[f'{q}_found']} / {total[f'{q}_true']} / {total[f'{q}_sign']}"
                for q in ("permuted", "matched", "both")
            ]
            chosen = ", ".join(row["chosen"] for row in own)
            seconds = np.mean([row["seconds"] for row in own])
            shown = [str(size), str(total["edges"]), *parts, chosen, f"{seconds:.0f}"]
            print(f"| {' | '.join(shown)} |")


def table(
    scores: list[dict], measures: list[str], by: str | None, columns: list[tuple], header: list[str]
) -> None:
    """Print mean average precisions, a row per measure."""
    print(f"| measure | {' | '.join(header)} |\n|---|{'---|' * len(header)}")
    for name in measures:
        cells = []
        for value, kind in columns:
            own = [
                row["average_precision"]
                for row in scores
                if row["measure"] == name
                and row["kind"] == kind
                and (by is None or row[by] == value)
            ]
            cells.append(f"{np.mean(own):.3f}" if own else "")
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="real cells with cell types and donors")
    parser.add_argument("--quick", action="store_true", help="fewer cells, contexts and models")
    parser.add_argument("--models", default=",".join(MODELS), help="of these, by commas")
    parser.add_argument("--contexts", type=int, default=2, help="of each size")
    parser.add_argument("--only", choices=["edges", "knock-outs"], help="one of both parts")
    parser.add_argument("--no-trees", action="store_true", help="leave the slowest measure out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="keep the trained runs here, and use those that are there"
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    n_cells, n_contexts = (8_000, 1) if arguments.quick else (30_000, arguments.contexts)
    names = ["log-linear"] if arguments.quick else arguments.models.split(",")
    names = [name for name in names if name]
    measures = QUICK_MEASURES if arguments.no_trees else ALL_MEASURES
    base = Path(__file__).with_name("log_linear.toml")
    common = {"data.files": f"builtin:atlas?cells={n_cells}", "data.genes": 160}
    common |= {"model.library_size": "true", "train.seed": arguments.seed}
    of_files = {k: v for k, v in common.items() if k != "data.files"} | MODELS["log-linear"]
    files = [file.resolve() for file in arguments.files]
    results, knock_outs = {}, {}
    with tempfile.TemporaryDirectory() as own, contextlib.chdir(arguments.folder or own):
        for name in names:
            settings = MODELS[name]
            sets = [word for k, v in (common | settings).items() for word in ("--set", f"{k}={v}")]
            run = name.replace(" + ", "-")
            if not Path(f"runs/{run}/model").exists():
                trained = call("train", str(base), "--run", run, *sets)
                print(f"{name}: trained in {trained['seconds']:.0f} s", flush=True)
            if arguments.only != "knock-outs":
                results[name] = measure(run, n_contexts, measures, arguments.seed)
            if arguments.only == "edges":
                continue
            n_types, n_small = (3, 3) if arguments.quick else (4, 4)
            how = (
                {"n_genes": 3, "n_cells": 150}
                if arguments.quick
                else {"n_genes": 6, "n_cells": 300}
            )
            for version in (1, 2):
                of_version = run if version == 1 else f"{run}-directed"
                if not Path(f"runs/{of_version}/model").exists():
                    place = f"data.files=builtin:atlas?cells={n_cells}&version={version}"
                    call("train", str(base), "--run", of_version, *sets, "--set", place)
                store = Store.open(
                    str(CellModel.load(Path(f"runs/{of_version}/model")).provenance["store"])
                )
                places = cell_types(n_types) + contexts_of(store, _FEW_CELLS, n_small)
                knock_outs[f"{name}, atlas {version}"] = measure_knock_outs(
                    of_version, places, version=version, seed=arguments.seed, **how
                )
        real = {}
        for file in files:
            sets = [word for k, v in of_files.items() for word in ("--set", f"{k}={v}")]
            if not Path(f"runs/{file.stem}/model").exists():
                place = f"data.files={json.dumps(str(file))}"
                call("train", str(base), "--run", file.stem, *sets, "--set", place)
            real[file.stem] = evidence_of_types(file.stem, arguments.seed)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    show(results)
    show_knock_outs(knock_outs)
    for name, types in real.items():
        print(
            f"\n{name}: evidence of held-out donors for the strongest 1 % of pairs, by cell type\n"
        )
        print(f"| measure | {' | '.join(types)} |\n|---|{'---|' * len(types)}")
        for measure_name in dict.fromkeys(key for one in types.values() for key in one):
            values = [f"{one.get(measure_name, np.nan):.2f}" for one in types.values()]
            print(f"| {measure_name} | {' | '.join(values)} |")
    if arguments.json:
        print(json.dumps({"seed": arguments.seed, "results": results, "knock_outs": knock_outs}))


if __name__ == "__main__":
    main()
