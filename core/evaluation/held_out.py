"""The honest figures of a model: held-out cells, every phenotype, baselines on the same cells.

All genes visible, all phenotypes hidden: the model says what each cell is. Beside it stand the
baselines, fitted on the same training cells and the same genes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.cells.cell_filter import CellFilter
from core.cells.store import OneVsRest, Split, Store
from core.errors import DataError
from core.evaluation.baselines import QUICK_BASELINES
from core.evaluation.conditions import evaluate_conditions
from core.evaluation.masked_evaluation import evaluate_masked
from core.evaluation.phenotype_section import KnownCells, report_phenotypes
from core.evaluation.predict import predict_phenotypes
from core.model.folder import CellModel
from core.presets.schema import LossSettings
from core.progress import Listener, ignore_progress
from core.random_streams import Stream, generator

__all__ = ["evaluate_held_out"]

#: Training cells the baselines are fitted on at most; a seeded sample beyond.
MAX_BASELINE_CELLS = 50_000


def evaluate_held_out(
    model: CellModel,
    store: Store,
    split: Split,
    *,
    loss: LossSettings,
    where: CellFilter | None = None,
    trained_where: CellFilter | None = None,
    max_cells: int | None = None,
    baselines: Sequence[str] = QUICK_BASELINES,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> dict[str, Any]:
    """Score a model on a split it was not trained on.

    Parameters
    ----------
    model, store
        The store must be the one the model was trained on, so that the split is honest.
    split
        "test", or "validation" while a model is still being chosen.
    loss
        The loss to report on masked genes.
    where
        Score only the cells of the split that match; default all of them.
    trained_where
        Filter that the model was trained with (``data.where``); the baselines learn from the same
        training cells.
    max_cells
        Score a seeded sample of at most so many cells.
    baselines
        Those of `core.evaluation.baselines.ALL_BASELINES` to stand beside the model.
    seed
        Of samples, masks and bootstrap draws.

    Returns
    -------
    A report for `core.evaluation.reports.write_evaluation_report`.

    Raises
    ------
    DataError
        The split has no cells, or none that match.
    """
    asked = model.config.predicted
    if model.config.classified is not None and model.config.positive is not None:
        store = OneVsRest(store, model.config.classified, model.config.positive)
    rows = store.rows(split)
    if len(rows) == 0:
        message = (
            f"{store.path}: the {split} split has no cells; set data.split.{split} above 0 or give "
            f"data.{split}_files, and prepare again"
        )
        raise DataError(message)
    if where:
        of_split, rows = rows, store.select(where, split=split)
        if len(rows) == 0:
            message = (
                f"{store.path}: no {split} cell matches {where.where} {where} "
                f"({where.describe_no_match(store.labels, of_split)}); ask for other cells"
            )
            raise DataError(message)
    rng = generator(seed, Stream.EVALUATED_CELLS)
    if max_cells is not None and len(rows) > max_cells:
        rows = np.sort(rng.choice(rows, max_cells, replace=False))
    train_rows = (
        store.select(trained_where, split="train") if trained_where else store.rows("train")
    )
    if len(train_rows) > MAX_BASELINE_CELLS:
        train_rows = np.sort(rng.choice(train_rows, MAX_BASELINE_CELLS, replace=False))

    probabilities = predict_phenotypes(model, store, rows, seed=seed, on_progress=on_progress)
    slots = list(asked.values())
    scored = KnownCells.of_store(store, rows, model.panel).of_slots(slots)
    notes = [
        f"{name}: no {split} cell has a label; not scored"
        for slot, name in enumerate(asked)
        if not (scored.codes[:, slot] >= 0).any()
    ]
    section = report_phenotypes(
        {name: store.phenotypes[name] for name in asked},
        probabilities,
        scored,
        KnownCells.of_store(store, train_rows, model.panel).of_slots(slots),
        baselines=baselines,
        donor_names=store.donor_names or (),
        symbols=model.panel.symbols,
        seed=seed,
        on_progress=on_progress,
    )
    report_split = store.report.get("split", {})
    conditions = evaluate_conditions(
        model, store, rows, probabilities, seed=seed, on_progress=on_progress
    )
    genes: dict[str, Any] = {}
    if model.config.classified is None:  # a classifier is asked for no gene
        masked = evaluate_masked(model, store, rows, loss, seed=seed, on_progress=on_progress)
        genes = {
            "genes": {
                "masked genes": masked.n_genes,
                "accuracy": masked.gene_accuracy,
                "accuracy of each gene's most common bin": masked.gene_baseline,
                "loss": masked.gene_loss,
            },
            "gene_rates": conditions.genes,
            "gene_table": conditions.gene_table,
        }
    return {
        "title": f"{model.provenance.get('name', 'model')} on {split} cells"
        + (f" where {where}" if where else ""),
        "facts": {
            "model": model.provenance.get("name"),
            "step": model.provenance.get("step"),
            "data": ", ".join(source.name for source in store.manifest.sources),
            "simulated": store.truth is not None,
            "split": split,
            "split by": report_split.get("method"),
            **({"where": str(where)} if where else {}),
            **({"trained where": str(trained_where)} if trained_where else {}),
            "cells": len(rows),
            "baselines": ", ".join(method.replace("_", " ") for method in baselines) or "none",
            "training cells of the baselines": len(train_rows),
            "genes": len(model.panel),
            "seed": seed,
        },
        "phenotypes": section.phenotypes,
        "two_genes": section.two_genes,
        "conditions": conditions.phenotypes,
        **genes,
        "notes": notes + section.notes,
    }
