"""What each part of the model is worth: the loss of masked genes of donors that the model has not seen.

    python benchmarks/model.py --quick                     the simulated atlas, 8,000 training cells
    python benchmarks/model.py --quick onek1k_blood.h5ad   this file, 128 genes
    python benchmarks/model.py FILE.h5ad --genes 512 --steps 6000 --only right sized

A model is trained for each row of the table, from the same cells and with the same masks: the log-linear
part and the encoder as in `tfx init`, the encoder in pre-norm with weights of 1 / sqrt(fan-in) and the
learning rate of 2e-3, and both with the library size (`model.library_size`). Then 15 %, 50 % and 90 % of
the genes of test cells are masked: mean nats per masked gene, with phenotypes shown and with phenotypes
masked, and the difference from the first row, paired over donors, with its standard error. One seed.
"""

import argparse
import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from first_path import call

from core.cells.store import Store
from core.encoding.masking import Show
from core.evaluation.masked_evaluation import MASK_RATES, draw_static_mask
from core.evaluation.predict import predict
from core.model.folder import CellModel
from core.model.losses import bin_logits

BASE = Path(__file__).resolve().with_name("log_linear.toml")
#: 8,000 training cells with the split below.
ATLAS = "builtin:atlas?cells=11500"
COMMON = {
    "data.split.validation": 0.1,
    "data.split.test": 0.2,
    "masking.visible_cells": 0.0,
    "model.cell_summary": "false",
}
LOG_LINEAR = {"model.layers": 0, "train.log_linear_steps": 0, "train.batch_size": 32}
ENCODER = {"model.log_linear": "false", "train.log_linear_steps": 0, "train.batch_size": 64}
RIGHT = ENCODER | {
    "model.norm": "pre",
    "model.initial_weights": "fan_in",
    "model.dropout": 0.0,
    "train.learning_rate": 2e-3,
    "loss.weighting": "mean",
}
SIZED = {"model.library_size": "true"}
POOLED = RIGHT | SIZED | {"model.encoder": "pooled", "model.hidden_size": 128, "model.layers": 3}
LOG_ODDS = {"model.log_linear": "true", "model.log_linear_rank": 0}
VARIANTS = {
    "log_linear": ("log-linear part", LOG_LINEAR),
    "log_linear_sized": ("log-linear part, library size", LOG_LINEAR | SIZED),
    "today": ("encoder as in tfx init", ENCODER),
    "right": ("encoder, pre-norm, fan-in, 2e-3", RIGHT),
    "sized": ("the same, library size", RIGHT | SIZED),
    "pooled": ("pooled encoder, library size", POOLED),
    "pooled_log_odds": ("the same, class log-odds and regression", POOLED | LOG_ODDS),
}


def train(name: str, keys: dict) -> tuple[CellModel, float]:
    """Train a model; return it and the seconds of the whole command."""
    sets = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    trained = call("train", str(BASE), "--run", name, *sets)
    return CellModel.load(Path("runs", name, "model")), trained["seconds"]


def cell_losses(
    model: CellModel, store: Store, rows: np.ndarray, rate: float, show: Show
) -> np.ndarray:
    """(cells,) mean nats per masked gene, with phenotypes at ``show``."""

    def batches():
        for first in range(0, len(rows), 64):
            some = rows[first : first + 64]
            codes = np.asarray(store.phenotype_codes[some])
            states = np.where(codes < 0, Show.NOT_SPECIFIED, show).astype(np.int8)
            mask = draw_static_mask(some, len(model.panel), rate, seed=0)
            expression = store.read(some, model.panel).toarray()
            yield model.batches.ranked(expression, codes, states, mask, store.library_sizes(some))

    found = []
    for prediction in predict(model, batches()):
        logits = bin_logits(prediction.output.gene_logits, model.config)
        nll = torch.nn.functional.cross_entropy(
            logits, prediction.batch.gene_target, reduction="none"
        )
        cell = prediction.cells.gene_cell
        found.append(np.bincount(cell, nll.double().numpy()) / np.bincount(cell))
    return np.concatenate(found)


def paired(losses: np.ndarray, first: np.ndarray, donors: np.ndarray) -> str:
    """Mean difference over cells, and its standard error over donors."""
    difference = losses - first
    if not difference.any():
        return ""
    sums, sizes = np.bincount(donors, difference), np.bincount(donors)
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    mean = difference.mean()
    n = len(sizes)
    error = np.sqrt(n / max(n - 1, 1) * ((sums - mean * sizes) ** 2).sum()) / sizes.sum()
    return f" ({mean:+.3f} ± {error:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", nargs="?", help=".h5ad file of counts; default: simulated cells")
    parser.add_argument("--genes", type=int, help="default: 128 of a file, all of the atlas")
    parser.add_argument("--steps", type=int, default=6000, help="of 64 cells, for the encoders")
    parser.add_argument("--log-linear-steps", type=int, default=3000, help="of 32 cells")
    parser.add_argument("--cells", type=int, default=2000, help="test cells scored")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--quick", action="store_true", help="1,200 steps, 600 test cells")
    parser.add_argument("--set", nargs="+", default=[], help="KEY=VALUE for every model")
    parser.add_argument("--json", action="store_true", help="last line one JSON object")
    chosen = parser.parse_args()
    file = ATLAS if chosen.file is None else str(Path(chosen.file).resolve())
    genes = chosen.genes or (2_000 if chosen.file is None else 128)
    steps = 1_200 if chosen.quick else chosen.steps
    n_cells = 600 if chosen.quick else chosen.cells
    torch.set_num_threads(1)
    first, table = {}, {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in chosen.only:
            title, keys = VARIANTS[name]
            of_run = chosen.log_linear_steps if keys.get("model.layers") == 0 else steps
            keys = {
                **COMMON, **keys, "data.files": file, "data.genes": genes, "train.max_steps": of_run,
                "train.eval_steps": of_run, "train.save_steps": of_run,
                **dict(pair.split("=", 1) for pair in chosen.set),
            }  # fmt: skip
            model, seconds = train(name, keys)
            store = Store.open(model.provenance["store"])
            rows = store.rows("test")
            if len(rows) > n_cells:
                rows = np.sort(np.random.default_rng(0).choice(rows, n_cells, replace=False))
            donors = (
                np.arange(len(rows)) if store.donors is None else np.asarray(store.donors)[rows]
            )
            if not table:
                print(
                    f"\n{len(store.rows('train')):,} training cells, {len(model.panel)} genes, {len(rows):,} "
                    f"test cells of {len(np.unique(donors))} other donors\n"
                )
                rates = " / ".join(f"{rate:g}" for rate in MASK_RATES)
                print(f"| model | s | phenotypes shown: {rates} | masked: {rates} |")
                print("|---|---|---|---|", flush=True)
            cells, table[name] = [], {"seconds": seconds}
            for show in (Show.VALUE, Show.MASKED):
                texts = []
                for rate in MASK_RATES:
                    losses = cell_losses(model, store, rows, rate, show)
                    against = first.setdefault((show, rate), losses)
                    table[name][f"{show.name.lower()} {rate}"] = float(losses.mean())
                    texts.append(f"{losses.mean():.3f}{paired(losses, against, donors)}")
                cells.append(" / ".join(texts))
            print(f"| {title} | {seconds:.0f} | {' | '.join(cells)} |", flush=True)
    if chosen.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()
