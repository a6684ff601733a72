"""The conditions beside the headline: other phenotypes given, and genes partly hidden.

A few thousand cells say enough, and each condition costs as much as the headline, so they are asked
about a seeded sample; the headline's condition stands beside them on the same cells.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cells.store import Store
from core.evaluation.gene_report import gene_table, report_genes
from core.evaluation.masked_evaluation import MASK_RATES, evaluate_at_rate
from core.evaluation.phenotype_report import report_answers
from core.evaluation.predict import predict_given_others
from core.model.folder import CellModel
from core.progress import Listener, ignore_progress
from core.random_streams import Stream, generator

__all__ = ["MAX_CONDITION_CELLS", "Conditions", "evaluate_conditions"]

MAX_CONDITION_CELLS = 2_000
#: What is kept of each condition: matrices, curves and single donors are the headline's.
_KEPT = (
    "accuracy", "balanced_accuracy", "macro_f1", "top3_accuracy", "mean_years_off", "n_cells",
    "intervals",
)  # fmt: skip


@dataclass(frozen=True)
class Conditions:
    """Parts of the report.

    Attributes
    ----------
    phenotypes
        Cells, and phenotype -> condition -> figures.
    genes
        Hidden genes by mask rate; see `core.evaluation.gene_report`. A classifier has none.
    gene_table
        A row per gene and rate.
    """

    phenotypes: dict[str, Any]
    genes: dict[str, Any]
    gene_table: list[list[Any]]


def evaluate_conditions(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    hidden: dict[str, NDArray[Any]],
    *,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> Conditions:
    """Score a model with other phenotypes given and with genes hidden.

    Parameters
    ----------
    rows
        The cells of the headline; a sample of at most `MAX_CONDITION_CELLS` is asked about.
    hidden
        phenotype -> (cells of ``rows``, values) probabilities of the headline.
    """
    chosen = np.arange(len(rows))
    if len(rows) > MAX_CONDITION_CELLS:
        rng = generator(seed, Stream.CONDITION_CELLS)
        chosen = np.sort(rng.choice(chosen, MAX_CONDITION_CELLS, replace=False))
    some = rows[chosen]
    answers = {"hidden": {name: told[chosen] for name, told in hidden.items()}}
    given = predict_given_others(model, store, some, seed=seed, on_progress=on_progress)
    if given:
        answers["given"] = given
    scores = []
    for rate in MASK_RATES:
        told, genes = evaluate_at_rate(model, store, some, rate, seed=seed, on_progress=on_progress)
        answers[f"masked_{rate}"] = told
        scores += [genes] if model.config.classified is None else []
    donors = None if store.donors is None else np.asarray(store.donors[some])
    codes = np.asarray(store.phenotype_codes[some])
    phenotypes: dict[str, Any] = {}
    for name, slot in model.config.predicted.items():
        if not (codes[:, slot] >= 0).any():
            continue
        values = store.phenotypes[name]
        report = report_answers(
            name, values, codes[:, slot], {one: told[name] for one, told in answers.items()},
            donors=donors, donor_names=store.donor_names or (), seed=seed,
        )  # fmt: skip
        phenotypes[name] = {
            condition: {key: figures[key] for key in _KEPT if key in figures}
            for condition, figures in report.items()
        }
    return Conditions(
        {"cells": len(some), "phenotypes": phenotypes},
        report_genes(scores, model.panel, len(some)) if scores else {},
        gene_table(scores, model.panel) if scores else [],
    )
