"""Two constants of the log-linear part, as they are and as they might be: how much of it begins fitted, how long the number of genes per cell is held.

    python benchmarks/log_linear_constants.py                 the simulated atlas, log_linear.toml
    python benchmarks/log_linear_constants.py FILE.h5ad       this file, the same keys
    python benchmarks/log_linear_constants.py FILE.h5ad --steps 2000 6000     what longer training brings, instead

A log-linear part alone is trained for 2,000 steps with its gene pairs begun at the factor model for the whole rank
and for a quarter (`core.model.log_linear_fit`): validation loss per gene. From the second, cells of the
phenotypes of 1,000 validation cells are drawn with the number of genes per cell held to another fraction of the genes
(`core.generation.partial_cells`), and held against those cells: gene-gene correlations within types, and
the spread of genes per cell within types. With --steps, log-linear parts with the latent cell states of `tfx init`
(`core.cells.draft_toml`) are trained for so many steps instead. Validation cells only; one seed, one draw.
"""

import argparse
import contextlib
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from commands import call
from generation_settings import generate, read_cells

from core.cells.store import Store
from core.evaluation.fidelity.measures import (
    correlation_agreement,
    correlation_genes,
    within_class_correlations,
)
from core.generation import partial_cells
from core.model import log_linear_fit
from core.model.folder import CellModel

BASE = Path(__file__).resolve().with_name("log_linear.toml")


def train(run, file, steps=2000, states=0):
    """Train a log-linear part; return the last validation loss per gene."""
    keys = {
        "model.layers": 0, "model.cell_states": states, "train.max_steps": steps,
        "train.log_linear_steps": 0, "train.eval_steps": 500, "train.eval_cells": 800,
    }  # fmt: skip
    if file:
        keys["data.files"] = str(file.resolve())
    call("train", str(BASE), "--run", run, *(
        part for key, value in keys.items() for part in ("--set", f"{key}={value}")
    ))  # fmt: skip
    lines = Path("runs", run, "metrics.jsonl").read_text().splitlines()
    scored = [json.loads(line) for line in lines if '"validation"' in line]
    return scored[-1]["loss/genes"]


def spread(cells, classes):
    """Standard deviation of genes per cell within classes of 20 cells and more."""
    shown = (cells > 0).sum(axis=1)
    every = [shown[classes == one] for one in np.unique(classes)]
    return float(np.sqrt(np.mean([part.var() for part in every if len(part) >= 20])))


def show_steps(file, lengths):
    """Print the validation loss by the length of training."""
    print("\n| steps of 32 cells | validation loss per gene | s |\n|---|---|---|")
    for steps in lengths:
        began = time.perf_counter()
        loss = train(f"steps-{steps}", file, steps, states=64)
        print(f"| {steps:,} | {loss:.3f} | {time.perf_counter() - began:.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", help="lengths of training")
    chosen = parser.parse_args()
    file = chosen.file.resolve() if chosen.file else None
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        if chosen.steps:
            show_steps(file, chosen.steps)
            return
        losses = {}
        for begun in (1.0, 0.25):
            log_linear_fit._BEGUN = begun
            losses[begun] = train(f"begun-{begun}", file)
        model = CellModel.load(Path("runs/begun-0.25/model"))
        real, codes = read_cells(model, Store.open(model.provenance["store"]), "validation", 1000)
        classes = codes[:, list(model.config.phenotypes).index("cell_type")]
        genes = correlation_genes(real)
        of_real = within_class_correlations(real[:, genes], classes)
        print("\n| fraction of the rank begun | validation loss per gene |\n|---|---|")
        for begun, loss in losses.items():
            print(f"| {begun} | {loss:.3f} |")
        print("\n| drawn without looking | within r | slope | genes per cell | sd within types |")
        print("|---|---|---|---|---|")
        print(f"| real | | | {(real > 0).sum(axis=1).mean():.1f} | {spread(real, classes):.2f} |")
        for share in (1 / 16, 1 / 4, 1 / 2):
            partial_cells._LAST_FRACTION_WITH_LOG_LINEAR = share
            cells, _ = generate(model, codes)
            r, slope = correlation_agreement(
                of_real, within_class_correlations(cells[:, genes], classes)
            )
            mean = (cells > 0).sum(axis=1).mean()
            print(
                f"| {share:.4g} | {r:.3f} | {slope:.3f} | {mean:.1f} | {spread(cells, classes):.2f} |"
            )


if __name__ == "__main__":
    main()
