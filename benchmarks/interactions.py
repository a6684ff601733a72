"""Interactions of genes: the model's effects and simple measures against the edges of the simulated atlas.

    python benchmarks/interactions.py             8,000, 30,000 and 100,000 cells, 160 genes, two models
    python benchmarks/interactions.py --quick     8,000 cells, the preset base
    python benchmarks/interactions.py a.h5ad b.h5ad:treatment
                                                  and contexts of real cells (their cell types, or the values of
                                                  another obs column), whose edges nobody knows: evidence of
                                                  held-out donors for the strongest pairs
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
import itertools
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

_HERE = Path(__file__).parent
_BASE = str(_HERE / "../presets/base.toml")
_LOG_LINEAR = str(_HERE / "log_linear.toml")
#: Model -> its preset, and what is changed there.
MODELS = {
    "base": (_BASE, {}),
    "log-linear": (
        _LOG_LINEAR,
        {"model.layers": 0, "model.cell_summary": "false", "train.max_steps": 2000},
    ),
    "log-linear + attention": (_LOG_LINEAR, {}),
}
#: Measures that no model has a part in: equal for all models of the same cells.
_OF_MODELS = ("model", "model_directed", "log_linear", "encoder", "chosen")
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


def evidence_of_contexts(run: str, column: str, seed: int) -> dict[str, dict[str, float]]:
    """Value of a phenotype (its cells) -> measure -> evidence of held-out donors: rare, middle, common."""
    model = CellModel.load(Path(f"runs/{run}/model"))
    store = Store.open(str(model.provenance["store"]))
    read = store_reader(model, store)
    names = store.phenotypes[column]
    codes = np.asarray(store.phenotype_codes)[:, list(store.phenotypes).index(column)]
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    found = {}
    for code in np.argsort(counts, kind="stable").tolist():
        where = CellFilter((Condition(column, (names[code],)),))
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


def train(name: str, run: str, changes: dict) -> None:
    """Train a model of a preset with changes, unless the run is there."""
    if Path(f"runs/{run}/model").exists():
        return
    preset, own = MODELS[name]
    sets = [word for k, v in (changes | own).items() for word in ("--set", f"{k}={v}")]
    trained = call("train", preset, "--run", run, *sets)
    print(f"{run}: trained in {trained['seconds']:.0f} s", flush=True)


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


def show(results: dict[tuple[str, int], dict[str, list[dict]]]) -> None:
    """Print the tables as Markdown: a row per model, cells of the atlas, and measure."""
    if not results:
        return
    rows, seen = [], set()  # (model, cells, measure, its scores)
    for (model, n_cells), of_model in results.items():
        for name in dict.fromkeys(row["measure"] for row in of_model["scores"]):
            own = [row for row in of_model["scores"] if row["measure"] == name]
            shown = model if name in _OF_MODELS else ""
            if (shown, n_cells, name) not in seen:
                rows.append((shown, n_cells, name, own))
                seen.add((shown, n_cells, name))
    rows.sort(key=lambda row: row[1])
    kinds = list(dict.fromkeys(row["kind"] for *_, own in rows for row in own))
    print("\nAverage precision over all edges, by cells of the context (mean of contexts)\n")
    table(rows, [{"size": size, "kind": "all"} for size in SIZES], [f"{n} cells" for n in SIZES])
    print("\nAverage precision by kind of edge, all contexts\n")
    table(rows, [{"kind": kind} for kind in kinds], kinds)
    print("\nOther scores, all edges and contexts\n")
    columns = ("early_precision", "auroc", "responders", "sign")
    header = ["early precision", "AUROC", "AUROC of a source's responders", "sign right"]
    table(rows, [{"kind": "all"}] * len(columns), header, columns)
    print(f"\nEdges found (q < {FOUND}) / of them true / of these of the right sign\n")
    print(
        "| model | atlas | cells | true edges | permuted null | matched null | both (q) | weights | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (model, n_cells), of_model in results.items():
        for size in SIZES:
            own = [row for row in of_model["found"] if row["size"] == size]
            total = {k: sum(row[k] for row in own) for k in own[0] if isinstance(own[0][k], int)}
            parts = [
                f"{total[f'{q}_found']} / {total[f'{q}_true']} / {total[f'{q}_sign']}"
                for q in ("permuted", "matched", "both")
            ]
            chosen = ", ".join(row["chosen"] for row in own)
            seconds = np.mean([row["seconds"] for row in own])
            shown = [model, f"{n_cells:,}", str(size), str(total["edges"]), *parts, chosen]
            print(f"| {' | '.join([*shown, f'{seconds:.0f}'])} |")


def table(
    rows: list[tuple[str, int, str, list[dict]]],
    wanted: list[dict],
    header: list[str],
    columns: tuple[str, ...] = (),
) -> None:
    """Print means of scores (by default of average precision): a column for each kind of score that is wanted."""
    print(
        f"| model | atlas | measure | {' | '.join(header)} |\n|---|---|---|{'---|' * len(header)}"
    )
    for model, n_cells, name, scores in rows:
        cells = []
        for column, where in zip(
            columns or ("average_precision",) * len(wanted), wanted, strict=True
        ):
            own = [row[column] for row in scores if where.items() <= row.items()]
            own = [value for value in own if value == value]
            cells.append(f"{np.mean(own):.3f}" if own else "")
        print(f"| {model} | {n_cells:,} | {name} | {' | '.join(cells)} |")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="real cells with donors, each with ':column'")
    parser.add_argument("--quick", action="store_true", help="fewer cells, contexts and models")
    parser.add_argument("--models", default="base,log-linear", help=", ".join(MODELS))
    parser.add_argument("--cells", type=int, nargs="+", default=[8_000, 30_000, 100_000])
    parser.add_argument("--contexts", type=int, default=2, help="of each size")
    parser.add_argument("--only", choices=["edges", "knock-outs"], help="one of both parts")
    parser.add_argument("--no-trees", action="store_true", help="leave the slowest measure out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="keep the trained runs here, and use those that are there"
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    names = ["base"] if arguments.quick else arguments.models.split(",")
    names = [name for name in names if name]
    sizes, n_contexts = ([8_000], 1) if arguments.quick else (arguments.cells, arguments.contexts)
    measures = QUICK_MEASURES if arguments.no_trees else ALL_MEASURES
    common = {"data.genes": 160, "model.library_size": "true", "train.seed": arguments.seed}
    places = [file.partition(":") for file in arguments.files]
    files = [(Path(file).resolve(), column or "cell_type") for file, _, column in places]
    results, knock_outs = {}, {}
    with tempfile.TemporaryDirectory() as own, contextlib.chdir(arguments.folder or own):
        for name, n_cells in itertools.product(names, sizes):
            run = f"{name.replace(' + ', '-')}-{n_cells}"
            train(name, run, {"data.files": f"builtin:atlas?cells={n_cells}"} | common)
            if arguments.only != "knock-outs":
                results[name, n_cells] = measure(run, n_contexts, measures, arguments.seed)
            if arguments.only == "edges" or n_cells != sizes[0]:
                continue
            n_types, n_small = (3, 3) if arguments.quick else (4, 4)
            how = (
                {"n_genes": 3, "n_cells": 150}
                if arguments.quick
                else {"n_genes": 6, "n_cells": 300}
            )
            for version in (1, 2):
                of_version = run if version == 1 else f"{run}-directed"
                place = f"builtin:atlas?cells={n_cells}&version={version}"
                train(name, of_version, {"data.files": place} | common)
                store = Store.open(
                    str(CellModel.load(Path(f"runs/{of_version}/model")).provenance["store"])
                )
                where = cell_types(n_types) + contexts_of(store, _FEW_CELLS, n_small)
                knock_outs[f"{name}, atlas {version}"] = measure_knock_outs(
                    of_version, where, version=version, seed=arguments.seed, **how
                )
        real = {}
        for name, (file, column) in itertools.product(names, files):
            run = f"{name.replace(' + ', '-')}-{file.stem}"
            of_file = {"data.files": json.dumps(str(file)), f"data.phenotypes.{column}": column}
            train(name, run, of_file | common)
            real[f"{file.stem}, {name}"] = evidence_of_contexts(run, column, arguments.seed)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    show(results)
    show_knock_outs(knock_outs)
    for name, types in real.items():
        print(f"\n{name}: evidence of held-out donors for the strongest 1 % of pairs, by context\n")
        print(f"| measure | {' | '.join(types)} |\n|---|{'---|' * len(types)}")
        for measure_name in dict.fromkeys(key for one in types.values() for key in one):
            values = [f"{one.get(measure_name, np.nan):.2f}" for one in types.values()]
            print(f"| {measure_name} | {' | '.join(values)} |")
    if arguments.json:
        keyed = {f"{model}, {n_cells} cells": found for (model, n_cells), found in results.items()}
        print(json.dumps({"seed": arguments.seed, "results": keyed, "knock_outs": knock_outs}))


if __name__ == "__main__":
    main()
