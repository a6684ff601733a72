"""Perturbed cells as .h5ad, and responses and screens as tables."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from core.cells.reading import open_source
from core.cells.sources import AnnDataSource
from core.cells.store import Store
from core.generation.cell_generator import gene_table, model_facts
from core.interactions.perturbation import PerturbRequest
from core.interactions.responses import Perturbation
from core.interactions.result import FOUND
from core.interactions.screen import Screen
from core.model.folder import CellModel

if TYPE_CHECKING:
    from anndata import AnnData

#: Key of the provenance in ``uns``.
PERTURBATION_KEY = "tfx_perturbation"
#: Column and label of control cells that the package cell-eval expects.
TARGET, CONTROL = "target_gene", "non-targeting"


def response_table(found: Perturbation, model: CellModel) -> pd.DataFrame:
    """Return the response of each gene, those with the smallest q first; docs/perturb.md has the columns."""
    columns: dict[str, Any] = {
        "gene": np.array(model.panel.symbols, dtype=object),
        "gene_id": np.array(model.panel.ids, dtype=object),
        "is_set": np.isin(np.arange(len(model.panel)), found.wanted.genes),
        "before": found.before_mean,
        "after": found.after_mean,
        "shift": found.shift,
        "moved": found.moved,
        "p_donors": found.p_donors,
        "p_matched": found.p_matched,
        "q": found.q,
        "found": found.q < FOUND,
        "correlation": found.correlation,
        "other_perturbations": found.other_perturbations,
    }
    table = pd.DataFrame(columns).iloc[found.order()]
    return table[~table["shift"].isna()].reset_index(drop=True)


def screen_table(found: Screen, model: CellModel) -> pd.DataFrame:
    """Return the genes of a screen, a row each, the strongest effects first."""
    symbols, ids = (
        np.array(names, dtype=object)[found.genes]
        for names in (model.panel.symbols, model.panel.ids)
    )
    return pd.DataFrame(
        {
            "gene": symbols,
            "gene_id": ids,
            "cells": found.n_cells,
            "donors": found.n_donors,
            "before": found.before,
            "shift": found.shift,
            "p_donors": found.p_donors,
            "p_matched": found.p_matched,
            "q": found.q,
            "found": found.q < FOUND,
            "alone": found.alone,
            "correlation": found.correlation,
        }
    )


def perturbed_anndata(
    found: Perturbation, model: CellModel, request: PerturbRequest, obs: pd.DataFrame, source: str
) -> "AnnData":
    """Return the cells before and after as one AnnData: X log1p counts per 10,000.

    ``obs`` are the labels of the perturbed cells. ``obs["target_gene"]`` is the perturbation, or "non-targeting" for the cells
    as they were; ``obs["changed"]`` says which cells had another value of a gene that is set.
    """
    from anndata import AnnData  # 400 ms

    known = ~found.cells.missing
    before = found.cells.expression[found.at]
    label = found.wanted.label
    names = obs.index.astype(str)
    labels = pd.concat([obs, obs])
    labels.index = pd.Index([*names, *(f"{name}-{label}" for name in names)])
    labels[TARGET] = pd.Categorical(np.repeat([CONTROL, label], len(obs)).tolist())
    is_changed = np.isin(found.at, found.changed.at)
    labels["changed"] = np.concatenate([np.zeros(len(obs), dtype=bool), is_changed])
    labels["synthetic"] = np.repeat([False, True], len(obs))
    table = response_table(found, model).set_index("gene_id")
    var = gene_table(model.panel)[known]
    numbers = table.drop(columns=["gene"]).reindex(var.index)
    facts = {
        "perturbation": found.wanted.text,
        "genes": [model.panel.symbols[gene] for gene in found.wanted.genes.tolist()],
        "bins": found.wanted.bins.tolist(),
        "perturbed_from": source,
        "context": found.cells.name,
        "values": "log1p of counts per 10,000; genes that did not move keep their value",
        "meaning": "association, not causation",
        "steps": request.steps,
        "seed": request.seed,
        **model_facts(model),
        "notes": list(found.notes),
    }
    shifts = pd.DataFrame([dataclasses.asdict(one) for one in found.phenotypes])
    return AnnData(
        X=sparse.csr_matrix(sparse.vstack([before, found.after]))[:, known],
        obs=labels,
        var=var.join(numbers),
        uns={PERTURBATION_KEY: facts, "tfx_phenotype_shifts": shifts},
    )


def source_labels(
    file: "str | AnnData | None", store: Store | None, found: Perturbation
) -> pd.DataFrame:
    """Return obs of the perturbed cells, of their file or of the store."""
    rows = found.cells.rows[found.at]
    if file is None:
        assert store is not None, "the cells were read from it"
        table = store.phenotype_table(rows)
        if "donor" in store.labels:
            table["donor"] = store.labels["donor"].take(rows)
        table.index = pd.Index([f"cell-{row}" for row in rows.tolist()])
        return table
    source = open_source(file) if isinstance(file, str) else AnnDataSource(file, "the AnnData")
    try:
        return source.obs.iloc[rows].copy()
    finally:
        source.close()


def table_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as plain values."""
    return [
        {str(key): value for key, value in row.items()} for row in table.to_dict(orient="records")
    ]
