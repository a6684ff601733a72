"""The record of a store: its key, and report and manifest from what was decided while preparing; the store of a key."""

import hashlib
import json
import logging
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.cells.cell_labels import CellLabels
from core.cells.checks.survey import StoreInput
from core.cells.file_patterns import check_overlap, expand_files
from core.cells.gene_join import GeneJoin
from core.cells.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest, SourceRecord
from core.cells.reading import fingerprint, version_of
from core.cells.sources import TRUTH_KEY
from core.cells.store import Store
from core.cells.vocabularies import load_vocabulary
from core.errors import DataError
from core.presets.schema import DataSettings

logger = logging.getLogger(__name__)

_VERSIONED = ("transformerics", "anndata", "scanpy", "numpy", "scipy")
#: Raised whenever the same files and settings would make a store of other labels, values or cells. A store
#: records it among its versions; one without is from before it was recorded.
READING_RULES = "2"
RULES_NAME = "reading rules"
#: Settings that a store does not depend on: it holds all genes, wherever it is.
_NOT_OF_THE_STORE = {"genes", "include_genes", "genes_file", "store", "where"}
_FILE_LISTS = ("files", "validation_files", "test_files")


def store_key(data: DataSettings) -> str:
    """Hash of the settings and sources a store depends on: files changed, key changed."""
    settings = store_settings(data)
    record: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "settings": settings,
        "sources": [fingerprint(file) for key in _FILE_LISTS for file in settings[key]],
        # What the preset names must exist; what is a default need not.
        "explicit": sorted(data.split.model_fields_set & {"by"}),
    }
    if data.vocabulary is not None:
        record["vocabulary"] = load_vocabulary(Path(data.vocabulary))
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def store_settings(data: DataSettings) -> dict[str, Any]:
    """Return the settings that make the store, file patterns expanded."""
    settings = data.model_dump(mode="json", exclude=_NOT_OF_THE_STORE)
    if settings["values"] == "auto":
        del settings["values"]  # stores from before this key keep theirs
    if not data.drop_duplicates:
        del settings["drop_duplicates"]  # so are the stores of older releases
    lists = {key: expand_files(settings[key]) for key in _FILE_LISTS}
    check_overlap({f"data.{key}": files for key, files in lists.items()})
    return settings | lists


def joint_truth(inputs: Sequence[StoreInput]) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the truth of simulated cells, if there are any, and a notice if several differ."""
    texts = {one.truth: one.name for one in inputs if one.truth is not None}
    if not texts:
        return None, []
    text, name = next(iter(texts.items()))
    try:
        truth: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise DataError(
            f"{name}: uns['{TRUTH_KEY}'] is not valid JSON ({error}); correct or remove it"
        ) from error
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
        n_cells=len(labels.split.codes),
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
        | {name: version_of(name) for name in _VERSIONED}
        | {RULES_NAME: READING_RULES},
        report=report,
    )


def open_matching(destination: Path, key: str, *, overwrite: bool = False) -> Store | None:
    """Open the store of a key; None if there is none, or a damaged one that may be overwritten."""
    if not (destination / MANIFEST_NAME).exists():
        return None
    try:
        manifest = Manifest.load(destination)
        if manifest.key != key:
            return None
        if manifest.versions.get(RULES_NAME) != READING_RULES:
            logger.warning(
                "%s: an older tfx prepared this store; it took the label 'none' as missing, knew fewer forms "
                "of values and labels, and did not look for copies of cells; delete the store to prepare "
                "it again",
                destination,
            )
        return Store.open(destination)
    except DataError as error:
        if not overwrite:
            raise
        logger.warning("%s; it is replaced", error)
        return None
