"""The small simulated data set that tests train on, and presets for it."""

import numpy as np

from core.cells.atlas.simulation import simulate_cells
from core.cells.prepare import prepare_store
from core.presets.loading import resolve_preset

#: 464 training, 67 validation and 69 test cells or so; 720 genes.
TINY_ATLAS = "builtin:atlas?cells=600&seed=0"

#: The smallest model that has every part: two layers of width 32, dropout, 32 genes.
TINY_PRESET = {
    "data.files": [TINY_ATLAS],
    "data.genes": 32,
    "model.layers": 2,
    "model.hidden_size": 32,
    "model.heads": 4,
    "model.dropout": 0.1,
    "train.max_steps": 50,
    "train.batch_size": 32,
    "train.learning_rate": 2e-3,
    "train.eval_cells": 16,
    "train.log_steps": 1,
    "train.device": "cpu",
    "train.precision": "fp32",
    "train.threads": 1,  # the order of sums, and so every bit, depends on it
    "train.seed": 0,
}


def tiny_preset(**options):
    """Resolve the tiny preset; ``train__max_steps=3`` changes ``train.max_steps``."""
    changes = {name.replace("__", "."): value for name, value in options.items()}
    return resolve_preset(None, options=TINY_PRESET | changes)


def prepare_tiny_store(folder):
    """Simulate the cells and prepare their store."""
    return prepare_store(tiny_preset().preset.data, folder)


def expected_log1p(n_cells, *, seed=0, **condition):
    """Mean log1p counts per 10,000 of simulated cells of a condition, one donor per cell: (genes,)."""
    counts = simulate_cells(n_cells, seed=seed, n_donors=n_cells, **condition).X
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
    scaled = counts.multiply(1e4 / totals[:, None]).tocsr()
    return np.asarray(scaled.log1p().mean(axis=0), dtype=float).ravel()


def build_model(preset, store, *, name="example", **options):
    """Build the untrained model of a preset, as a run would."""
    from core.training import run_setup  # torch, which the tests of reading do without
    from core.training.virtual_ranks import RunCells

    run_setup.check_preset(preset)
    return run_setup.build_model(preset, RunCells.of(preset, store), name=name, **options)
