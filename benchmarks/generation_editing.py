"""One token of real cells changed, beside cells of the same donor that truly had the other value.

    python benchmarks/generation_editing.py FILE.h5ad --column treatment --before ctrl --after panobinostat

Trains a log-linear part (no encoder) on some donors, changes the cells of a donor that training has not seen
(`tfx generate --from ... --set`), and compares the change with that donor's own other cells; beside it
the simplest rival, the training donors' mean change added to the donor's cells. Through the command line
throughout. Values are log1p of counts per 10,000; genes are the model's.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata
import numpy as np
import torch

from core.cells.store import Store
from core.evaluation.fidelity.measures import (
    correlation_agreement,
    correlation_genes,
    within_class_correlations,
)

PRESET = """\
[data]
files = {file!r}
genes = 300
[data.phenotypes]
edited = {column!r}
sex = false
age = false
[data.split]
by = {donor!r}
validation = 0.15
test = 0.2
[encoding]
bins = 8
edges = "gene_quantile"
threshold = 0.0
[masking]
genes = "uniform"
phenotypes = 0.3
[model]
layers = 0
log_linear = true
log_linear_rank = 48
[loss]
smoothing = 0.0
weighting = "rate"
[train]
max_steps = {steps}
batch_size = 64
schedule = "cosine"
eval_steps = {steps}
eval_cells = 400
save_steps = {steps}
"""


def tfx(folder, *arguments):
    """Run a `tfx` command in a folder and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tfx_cli", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def agreement(found, true):
    """Pearson r, and slope through the origin on the true change."""
    return float(np.corrcoef(found, true)[0, 1]), float((found * true).sum() / (true * true).sum())


def correlations(cells, genes):
    return within_class_correlations(cells[:, genes], np.zeros(len(cells), dtype=np.int64))


def measure(arguments, folder):
    cells = anndata.read_h5ad(arguments.file)
    donors = cells.obs[arguments.donor].astype(str)
    is_before = (cells.obs[arguments.column] == arguments.before).to_numpy()
    is_after = (cells.obs[arguments.column] == arguments.after).to_numpy()
    preset = PRESET.format(
        file=str(Path(arguments.file).absolute()), column=arguments.column, donor=arguments.donor,
        steps=300 if arguments.quick else 2000,
    )  # fmt: skip
    (folder / "editing.toml").write_text(preset)
    tfx(folder, "train", "editing.toml")
    run = json.loads((folder / "runs" / "editing" / "run.json").read_text())
    store = Store.open(folder / run["store"])
    names = store.labels["donor"]
    held_out = sorted({str(names.categories[names.codes[row]]) for row in store.rows("test")})
    seen = sorted({str(names.categories[names.codes[row]]) for row in store.rows("train")})
    donor = held_out[0]
    own = (donors == donor).to_numpy()
    cells[own & is_before].copy().write_h5ad(folder / "before.h5ad")
    print(tfx(folder, "generate", "--from", "before.h5ad", "--set", f"edited={arguments.after}",
              "-o", "after.h5ad"))  # fmt: skip
    edited = anndata.read_h5ad(folder / "after.h5ad")
    counts = cells[:, edited.var_names].X.toarray()
    totals = np.asarray(cells.X.sum(axis=1)).ravel()
    values = np.log1p(counts / totals[:, None] * 1e4)
    before, after = values[own & is_before], values[own & is_after]
    training = donors.isin(seen).to_numpy()
    shift = values[training & is_after].mean(axis=0) - values[training & is_before].mean(axis=0)
    changed = edited.X.toarray()
    found = changed.mean(axis=0) - edited.layers["before"].toarray().mean(axis=0)
    true = after.mean(axis=0) - before.mean(axis=0)
    genes = correlation_genes(after)
    of_after = correlations(after, genes)
    found = {
        "donor": donor, "training_donors": seen, "cells": len(before), "true_cells": len(after),
        "genes": len(edited.var_names),
        "change": {"model": agreement(found, true), "training donors' change": agreement(shift, true)},
        "mean_error": {
            "model": float(np.abs(changed.mean(axis=0) - after.mean(axis=0)).mean()),
            "unchanged": float(np.abs(before.mean(axis=0) - after.mean(axis=0)).mean()),
            "training donors' change": float(np.abs(before.mean(axis=0) + shift - after.mean(axis=0)).mean()),
        },
        "correlations": {
            "model": correlation_agreement(of_after, correlations(changed, genes)),
            "unchanged": correlation_agreement(of_after, correlations(before, genes)),
        },
        "named": {},
    }  # fmt: skip
    symbols = dict(zip(edited.var_names, edited.var_names, strict=True))
    if "gene_symbol" in edited.var:
        symbols = dict(zip(edited.var_names, edited.var["gene_symbol"].astype(str), strict=True))
    for place, name in enumerate(edited.var_names):
        if name in arguments.genes or symbols[name] in arguments.genes:
            one = [edited.layers["before"].toarray(), changed, after]
            found["named"][name] = [float(values[:, place].mean()) for values in one]
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("--column", required=True, help="obs column of the values")
    parser.add_argument("--before", required=True)
    parser.add_argument("--after", required=True)
    parser.add_argument("--donor", default="donor_id", help="obs column of donors")
    parser.add_argument("--genes", nargs="*", default=[], help="ids or symbols to tell of")
    parser.add_argument("--quick", action="store_true", help="300 steps instead of 2,000")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {platform.machine()}")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    print(f"\ndonor {found['donor']}, trained on {', '.join(found['training_donors'])}: "
          f"{found['cells']} cells {arguments.before} -> {arguments.after}, beside "
          f"{found['true_cells']} true ones, {found['genes']} genes\n")  # fmt: skip
    print("| | change of the means: r, slope | mean error of the profile | gene-gene r |")
    print("|---|---|---|---|")
    for name in ("model", "training donors' change", "unchanged"):
        change = found["change"].get(name)
        pairs = found["correlations"].get(name)
        shown = "" if change is None else f"{change[0]:.2f}, {change[1]:.2f}"
        print(f"| {name} | {shown} | {found['mean_error'][name]:.3f} | "
              f"{'' if pairs is None else f'{pairs[0]:.2f}'} |")  # fmt: skip
    for name, (before, after, true) in found["named"].items():
        print(f"{name}: {before:.2f} -> {after:.2f}, truly {true:.2f}")
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
