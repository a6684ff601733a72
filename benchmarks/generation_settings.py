"""What steps and genes per cell do to generated cells: a trained run beside cells of donors it has not seen.

    python benchmarks/generation_settings.py runs/base [RUN ...]
    python benchmarks/generation_settings.py RUN --steps 8 --cells 600 --json

Generated cells have the phenotypes of 1,000 validation cells, one by one, and are held against those
cells: a random forest's AUC (150 trees, out of fold), agreement of the gene-gene correlations within
types (r and slope, 100 genes), genes per cell. Training cells of other donors are the floor. Then genes
per cell by type, for the phenotypes of training cells, with genes per cell drawn first and not. One draw each: AUCs that
differ by less than 0.02 are noise.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from core.cells.store import Store
from core.evaluation.fidelity.measures import (
    correlation_agreement,
    correlation_genes,
    detected_genes,
    marginal_agreement,
    probability_generated,
    within_class_correlations,
)
from core.generation.cell_generator import sample_cells
from core.generation.cell_sizes import CellSizes
from core.generation.plan import CellPlan, plan_for
from core.model.folder import CellModel
from core.random_streams import Stream, generator

_TREES, _BATCH, _FEWEST = 150, 250, 50


def read_cells(model, store, split, n_most, seed=0):
    """Return expression, codes of the phenotypes of some cells of a split."""
    rows = np.asarray(store.rows(split))
    if len(rows) > n_most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, n_most, replace=False))
    codes = np.asarray(store.phenotype_codes[rows]).astype(np.int32)
    return store.read(rows, model.panel).toarray(), codes


def generate(model, codes, **settings):
    """Draw one cell per row of codes; return the cells and the processor seconds they took."""
    chosen = model.generate.model_copy(update=settings)
    sizes = CellSizes(model.reference, 0, None) if chosen.genes_per_cell == "sample" else None
    plan = plan_for(model, chosen)
    begun, parts = time.process_time(), []
    for first in range(0, len(codes), _BATCH):
        cells = range(first, min(first + _BATCH, len(codes)))
        some = codes[first : first + _BATCH]
        wanted = sizes.draw(cells, some)[0] if sizes is not None and sizes.is_known else None
        bins = sample_cells(
            model,
            some,
            chosen,
            CellPlan.draw(0, cells, plan, needs_normal=True),
            genes_per_cell=wanted,
        )
        rng = generator(0, first, Stream.DECODING)
        parts.append(model.table.decode(bins, how="sample", rng=rng))
    return np.concatenate(parts), time.process_time() - begun


def compare(real, real_classes, cells, classes):
    """Return the figures of some cells beside real ones."""
    genes = correlation_genes(real)
    r, slope = correlation_agreement(
        within_class_correlations(real[:, genes], real_classes),
        within_class_correlations(cells[:, genes], classes),
    )
    probability = np.concatenate(probability_generated(real, cells, seed=0, n_trees=_TREES))
    truth = np.repeat([0, 1], [len(real), len(cells)])
    from sklearn.metrics import roc_auc_score

    counts = detected_genes(cells)
    return {
        "within_r": r, "slope": slope, "rf_auc": float(roc_auc_score(truth, probability)),
        "gene_mean_r": marginal_agreement(real, cells)[0],
        "genes_mean": float(counts.mean()), "genes_sd": float(counts.std()),
    }  # fmt: skip


def by_type(model, codes, expression, slot):
    """Return type -> (cells, mean, sd) of genes per cell."""
    found = {}
    counts = detected_genes(expression)
    for code, name in enumerate(model.config.phenotype_values[slot]):
        own = counts[codes[:, slot] == code]
        if len(own) >= _FEWEST:
            found[name] = (len(own), float(own.mean()), float(own.std()))
    return found


def measure(run, steps, n_cells):
    """Measure one run and print its tables."""
    model = CellModel.load(run / "model" if (run / "model").is_dir() else run)
    store = Store.open(model.provenance["store"])
    names = list(model.config.phenotypes)
    slot = names.index("cell_type") if "cell_type" in names else 0
    real, codes = read_cells(model, store, "validation", n_cells)
    training, training_codes = read_cells(model, store, "train", n_cells)
    classes = codes[:, slot]
    rows = {"training cells, other donors": (
        compare(real, classes, training, training_codes[:, slot]), 0.0)}  # fmt: skip
    cases = {f"{n} steps": {"steps": n} for n in steps}
    cases[f"{steps[0]} steps, genes per cell none"] = {"steps": steps[0], "genes_per_cell": "none"}
    for case, settings in cases.items():
        cells, seconds = generate(model, codes, **settings)
        rows[case] = (compare(real, classes, cells, classes), seconds)
    counts = detected_genes(real)
    print(f"\n{run.name}: {len(real):,} validation cells, {real.shape[1]} genes, "
          f"{counts.mean():.1f} ({counts.std():.1f}) genes per cell\n")  # fmt: skip
    print("| cells | within r | slope | RF AUC | gene means r | genes per cell | processor s |")
    print("|---|---|---|---|---|---|---|")
    for case, (one, seconds) in rows.items():
        print(f"| {case} | {one['within_r']:.3f} | {one['slope']:.3f} | {one['rf_auc']:.3f} | "
              f"{one['gene_mean_r']:.3f} | {one['genes_mean']:.1f} ({one['genes_sd']:.1f}) | "
              f"{seconds:.1f} |")  # fmt: skip
    types = {"real": by_type(model, training_codes, training, slot)}
    for drawn in ("none", "sample"):
        cells, _ = generate(model, training_codes, steps=steps[0], genes_per_cell=drawn)
        types[drawn] = by_type(model, training_codes, cells, slot)
    print(
        f"\n| {names[slot]} | cells | real | genes per cell none | genes per cell sample |\n|---|---|---|---|---|"
    )
    for name, (n, *_) in types["real"].items():
        shown = " | ".join(f"{one[name][1]:.1f} ({one[name][2]:.1f})" for one in types.values())
        print(f"| {name} | {n} | {shown} |")
    return {"figures": {case: {**one, "seconds": s} for case, (one, s) in rows.items()},
            "types": types}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--steps", nargs="+", type=int, default=[8, 4, 16, 64])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="300 cells, the first of the steps")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    steps, n_cells = arguments.steps, arguments.cells
    if arguments.quick:
        steps, n_cells = steps[:1], min(n_cells, 300)
    machine = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    print(machine)
    found = {str(run): measure(run, steps, n_cells) for run in arguments.runs}
    if arguments.json:
        print(json.dumps({"machine": machine, "runs": found}))


if __name__ == "__main__":
    main()
