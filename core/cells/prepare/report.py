"""The record of a store: its report and manifest, from what was decided while preparing."""

import json
import platform
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from core.cells.cell_labels import CellLabels
from core.cells.genes import GeneJoin
from core.cells.inputs import StoreInput, store_settings
from core.cells.manifest import FORMAT_VERSION, Manifest, SourceRecord
from core.cells.reading import TRUTH_KEY, version_of
from core.errors import DataError
from core.presets.schema import DataSettings

_VERSIONED = ("transformerics", "anndata", "scanpy", "numpy", "scipy")


def joint_truth(inputs: Sequence[StoreInput]) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the truth of simulated cells, if there are any, and a notice if several differ."""
    texts = {one.truth: one.name for one in inputs if one.truth is not None}
    if not texts:
        return None, []
    text, name = next(iter(texts.items()))
    try:
        truth: dict[str, Any] = json.loads(text)
    except ValueError as error:
        message = f"{name}: uns['{TRUTH_KEY}'] is not valid JSON ({error}); correct or remove it"
        raise DataError(message) from error
    if len(texts) > 1:
        others = " and ".join(texts.values())
        return truth, [f"the simulated truths of {others} differ; that of {name} is kept"]
    return truth, []


def describe_store(
    inputs: Sequence[StoreInput], join: GeneJoin, labels: CellLabels, n_empty: Sequence[int]
) -> dict[str, Any]:
    """Return `Store.report`, given the empty cells of each file; ranking and notices come later."""
    files = []
    for one, columns, empty_cells in zip(inputs, join.columns, n_empty, strict=True):
        lost = [one.table.ids[column] for column in np.flatnonzero(columns < 0)]
        files.append(
            {
                "name": one.name,
                "matrix": one.choice.matrix,
                "state": str(one.choice.state),
                "passed_over": one.choice.passed_over,
                "gene_ids": one.table.source,
                "n_cells": one.n_cells,
                "n_genes": len(one.table.ids),
                "lost_genes": len(lost),
                "lost_gene_examples": lost[:5],
                "absent_genes": len(join.panel) - (len(one.table.ids) - len(lost)),
                "empty_cells": empty_cells,
            }
        )
    return {
        "files": files,
        "n_genes": len(join.panel),
        "phenotypes": labels.phenotype_report,
        "left_out_phenotypes": labels.left_out,
        "split": labels.split_report,
        "gene_ranking": "",
        "notices": [],
    }


def make_manifest(
    data: DataSettings,
    key: str,
    inputs: Sequence[StoreInput],
    join: GeneJoin,
    labels: CellLabels,
    value_kind: Literal["counts", "log1p"],
    n_values: int,
    report: dict[str, Any],
) -> Manifest:
    """Return the manifest of a store of `n_values` stored values."""
    records = [
        SourceRecord(
            name=one.name,
            role=one.role,
            n_cells=one.n_cells,
            n_genes=len(one.table.ids),
            matrix=one.choice.matrix,
            state=str(one.choice.state),
            gene_ids=one.table.source,
            fingerprint=one.fingerprint,
        )
        for one in inputs
    ]
    return Manifest(
        format_version=FORMAT_VERSION,
        key=key,
        n_cells=sum(one.n_cells for one in inputs),
        n_values=n_values,
        value_kind=value_kind,
        gene_ids=list(join.panel.ids),
        gene_symbols=list(join.panel.symbols),
        genes_hash=join.panel.hash,
        phenotypes=labels.phenotypes,
        donors=labels.donor_names,
        sources=records,
        settings=store_settings(data),
        seed=data.split.seed,
        versions={"python": platform.python_version()}
        | {name: version_of(name) for name in _VERSIONED},
        report=report,
    )
