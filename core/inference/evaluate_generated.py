"""Generated cells held against real ones that training has not seen, by the whole protocol.

The real cells are the held-out ones of the store that the model was trained on, or those of files; the
baselines learn from the training cells of the store. Where the generated cells were asked to have some
phenotypes, only real cells that have them count. Which cells are of one class is said by one or several
phenotypes, by default the cell type.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_filter import CellFilter
from core.cells.genes import GenePanel
from core.cells.phenotypes import suggest
from core.cells.store import Store
from core.encoding.values import ValueTable, fit_value_encoder
from core.errors import ConfigurationError, DataError
from core.evaluation.condition_likelihood import condition_likelihood
from core.evaluation.fidelity_judge import LabelledCells
from core.evaluation.fidelity_pictures import fidelity_pictures
from core.evaluation.fidelity_protocol import Draw, run_protocol
from core.evaluation.fidelity_verdict import mark_methods, verdict
from core.evaluation.rebalancing import compare_rebalancing
from core.evaluation.scvi_baseline import ScviBaseline, check_scvi
from core.files import plain_json
from core.inference.generated_cells import GeneratedCells, read_generated
from core.inference.labelled_files import read_labelled
from core.model.folder import CellModel
from core.presets.schema import EncodingSettings
from core.progress import Listener, ignore_progress

__all__ = ["evaluate_generated"]

#: The baselines' bins: not expressed, and nine of equal counts per gene.
_BASELINE_BINS = 10
#: Training cells read at most.
_MOST_TRAINING = 20_000
#: Held-out cells read at most.
_MOST_REAL = 20_000
#: Genes scored at most: the copula needs the square of their number.
_MOST_GENES = 2_000

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class _Cells:
    """Cells of one origin.

    Attributes
    ----------
    expression, codes
        (cells, panel genes), (cells, phenotypes).
    donors, stored
        (cells,), donors, and rows of the store; None where not known.
    """

    expression: sparse.csr_matrix
    codes: Codes
    donors: NDArray[np.int64] | None = None
    stored: NDArray[np.int64] | None = None

    def take(self, rows: NDArray[Any]) -> "_Cells":
        donors, stored = (None if one is None else one[rows] for one in (self.donors, self.stored))
        return _Cells(self.expression[rows], self.codes[rows], donors, stored)


def evaluate_generated(
    model: CellModel,
    files: Sequence[str],
    *,
    store: Store | None,
    real_files: Sequence[str] = (),
    labels: Sequence[str] = (),
    donor_column: str = "donor_id",
    trained_where: CellFilter | None = None,
    classes: Sequence[str] = (),
    max_cells: int = 1_000,
    n_seeds: int = 3,
    n_trees: int = 300,
    n_resamples: int = 100,
    with_scvi: bool = False,
    matrix: str = "auto",
    gene_ids: str = "auto",
    on_progress: Listener = ignore_progress,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Score generated cells beside real cells, independent genes and the Gaussian copula.

    Parameters
    ----------
    model
        The model that generated them.
    files
        What `tfx generate` wrote; several files are scored as one set of cells.
    store
        What the model was trained on; None: no baselines, and `real_files` are needed.
    real_files
        Real cells to compare with instead of the held-out cells of the store.
    labels, donor_column, matrix, gene_ids
        How to read these, as in `core.inference.evaluate_files`.
    trained_where
        The cells of the store that the model was trained for.
    classes
        Phenotypes that say which cells are of one class; default the cell type.
    max_cells, n_seeds, n_trees, n_resamples
        See `core.evaluation.fidelity_protocol.run_protocol`.
    with_scvi
        With scVI beside them, trained on the same cells; needs counts and scvi-tools.

    Returns
    -------
    A report for `core.evaluation.fidelity_report`, in plain JSON values, and its pictures by heading.

    Raises
    ------
    DataError
        A file is unfit, there are no real cells, or too few that match.
    ConfigurationError
        The model has no such phenotype.
    MachineError
        scvi-tools is asked for and not installed.
    """
    if with_scvi:
        check_scvi()
    generated = read_generated(model, files)
    notes = list(generated.notes)
    training = None if store is None else _stored(model, store, trained_where, "train")
    if real_files:
        real, missing = _real_files(
            model, real_files, labels, donor_column, matrix=matrix, gene_ids=gene_ids
        )
        beside = f"cells of {', '.join(Path(one).name for one in real_files)}"
        notes += _same_files(model, real_files)
    elif store is not None:
        real = _stored(model, store, trained_where, "held-out")
        missing = np.zeros(len(model.panel), dtype=bool)
        beside = "held-out cells" + (" of unseen donors" if real.donors is not None else "")
    else:
        message = (
            f"the store that the model was trained on ({model.provenance.get('store')}) is gone or "
            f"changed: prepare it again, or name files of real cells before --generated"
        )
        raise DataError(message)
    names = _class_names(model, generated, classes)
    matching = None if training is None else _meets(training.codes, generated.requests)
    asked = _meets(real.codes, generated.requests)
    if not asked.any():
        message = (
            f"none of the {len(asked):,} {beside} has the phenotypes that were asked for "
            f"({_describe(model, generated.requests)}); name files of such cells before --generated"
        )
        raise DataError(message)
    real = real.take(np.flatnonzero(asked))
    genes, gene_note = _genes(model, real.expression, missing)
    notes += gene_note
    own = _Cells(generated.expression, generated.codes)
    slots = [model.config.phenotype_names.index(name) for name in names]
    class_names, (of_generated, of_real, *of_training) = _classes(
        model, slots, [one for one in (own, real, training) if one is not None]
    )
    for side, codes in (("generated", of_generated), ("real", of_real)):
        n_without = int((codes < 0).sum())
        if n_without:
            notes.append(f"{n_without:,} {side} cells have no {' and '.join(names)}; not scored")

    def label(cells: _Cells, codes: NDArray[np.int64]) -> LabelledCells:
        known = codes >= 0
        values = cells.expression[known][:, genes].toarray().astype(np.float32)
        return LabelledCells(_in_models_terms(model, values, genes), codes[known])

    labelled_training = None
    if training is not None:
        labelled_training = label(training, of_training[0])
        assert matching is not None
        matching = matching[of_training[0] >= 0]
        n_matching = int(matching.sum())
        if n_matching == 0:
            notes.append(
                "no training cell has what was asked for, so the copula and independent genes, which "
                "only repeat what they have seen, have nothing to draw from"
            )
    else:
        notes.append(
            "the cells the model was trained on are gone or changed: no baselines, and nothing on "
            "copies or on cells being of the class that was asked for"
        )
    labelled_real = label(real, of_real)
    bins_from = labelled_real if labelled_training is None else labelled_training
    panel = model.panel.take(genes)
    encoder, table = _baseline_bins(model, bins_from, panel)
    others: dict[str, Draw] = {}
    if with_scvi:
        draw = None
        if training is not None and store is not None and matching is not None:
            known = np.flatnonzero(of_training[0] >= 0)[matching]
            draw = _scvi(
                model, store, training.take(known), of_training[0][known], genes, on_progress
            )
        if draw is None:
            notes.append(
                "scVI is left out: it learns from counts of the training cells, of which there are none"
            )
        else:
            others["scvi"] = draw
    result = run_protocol(
        labelled_real,
        label(own, of_generated),
        labelled_training,
        encoder,
        table,
        len(class_names),
        donors=None if real.donors is None else real.donors[of_real >= 0],
        matching=matching,
        others=others,
        max_cells=max_cells,
        n_seeds=n_seeds,
        n_trees=n_trees,
        n_resamples=n_resamples,
        on_progress=on_progress,
    )
    rebalanced = {}
    if labelled_training is not None:
        rebalanced = compare_rebalancing(
            labelled_training, labelled_real, label(own, of_generated), encoder, table,
            len(class_names),
        )  # fmt: skip
    likelihood = None
    if training is not None:
        likelihood = condition_likelihood(
            model, real.expression, real.codes, of_real, training.expression, of_training[0],
            slots=slots, genes=genes,
        )  # fmt: skip
    if model.provenance.get("simulated"):
        notes.append(
            "the model was trained on simulated cells: the figures say nothing about real biology"
        )
    marks = mark_methods(result)
    report = {
        "title": f"Cells generated by {model.provenance.get('name', 'the model')}",
        "facts": {
            "files": ", ".join(files),
            "generated cells": generated.n_cells,
            "asked for": _describe(model, generated.requests),
            "model": model.provenance.get("name"),
            "step": model.provenance.get("step"),
            "simulated": bool(model.provenance.get("simulated")),
            "real cells": f"{len(labelled_real):,} {beside}",
            "training cells": "gone" if training is None else len(of_training[0]),
            "classes": " and ".join(names) or "one: the model has no phenotypes",
            "matched cells on a side": ", ".join(f"{n:,}" for n in result.n_cells),
            "genes": len(genes),
            "seeds": n_seeds,
            "trees": n_trees,
        },
        "verdict": verdict(result, marks) + ([] if likelihood is None else [likelihood.sentence()]),
        "scores": result.scores,
        "marks": marks,
        "limits": result.limits,
        "class_cells": {class_names[code]: n for code, n in result.class_cells.items()},
        "likelihood": likelihood,
        "rebalancing": rebalanced,
        "notes": notes,
    }
    return plain_json(report), fidelity_pictures(result.shown, panel.symbols, class_names)


def _stored(model: CellModel, store: Store, where: CellFilter | None, which: str) -> _Cells:
    """Read training cells, or those of the other splits, an even sample of at most 20,000."""
    if which == "train":
        rows, most = store.rows("train"), _MOST_TRAINING
    else:
        rows = np.sort(np.concatenate([store.rows("validation"), store.rows("test")]))
        most = _MOST_REAL
        if len(rows) == 0:
            message = (
                f"{store.path}: no cell was held out of training; set data.split.test above 0 and "
                f"train again, or name files of real cells before --generated"
            )
            raise DataError(message)
    if where:
        rows = rows[store.where(where)[rows]]
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)]
    # Cells stand in random order, so an even sample is a random one.
    names = list(store.phenotypes)
    codes = np.full((len(rows), len(model.config.phenotypes)), -1, dtype=np.int32)
    for slot, (name, values) in enumerate(model.config.phenotypes.items()):
        if name in names:
            place = {value: code for code, value in enumerate(values)}
            to_model = [place.get(value, -1) for value in store.phenotypes[name]]
            stored = np.asarray(store.phenotype_codes[rows, names.index(name)])
            codes[:, slot] = np.array([*to_model, -1])[stored]
    donors = None
    if store.donors is not None and store.report.get("split", {}).get("method") != "cells":
        donors = np.asarray(store.donors[rows]).astype(np.int64)
    return _Cells(store.read(rows, model.panel), codes, donors, rows)


def _scvi(
    model: CellModel,
    store: Store,
    cells: _Cells,
    classes: NDArray[np.int64],
    genes: NDArray[np.int64],
    on_progress: Listener,
) -> Draw | None:
    """Train scVI on the counts of training cells; None where there are none."""
    if store.value_kind != "counts" or cells.stored is None or len(cells.stored) == 0:
        return None
    counts = sparse.csr_matrix(store.read_counts(cells.stored, model.panel)[:, genes])
    totals = store.totals[cells.stored].astype(np.float64)
    scvi = ScviBaseline(counts, totals, classes, on_progress=on_progress)

    def draw(classes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        return _in_models_terms(model, scvi.draw(classes, rng), genes)

    return draw


def _real_files(
    model: CellModel,
    files: Sequence[str],
    labels: Sequence[str],
    donor_column: str,
    *,
    matrix: str,
    gene_ids: str,
) -> tuple[_Cells, NDArray[np.bool_]]:
    """Read files of real cells; and (panel genes,), which a file lacks."""
    known = [
        read_labelled(
            model, file, labels=labels, donor_column=donor_column, most=_MOST_REAL,
            matrix=matrix, gene_ids=gene_ids,
        )
        for file in files
    ]  # fmt: skip
    donors = np.concatenate([one.donors for one in known])
    names, codes = np.unique(donors.astype(str), return_inverse=True)
    cells = _Cells(
        sparse.csr_matrix(sparse.vstack([one.expression for one in known])),
        np.concatenate([one.codes for one in known]),
        codes.astype(np.int64) if len(names) > 1 else None,
    )
    return cells, np.any([one.missing for one in known], axis=0)


def _same_files(model: CellModel, files: Sequence[str]) -> list[str]:
    """Say which of the files the model was trained on."""
    sources = [str(one) for one in model.provenance.get("sources", [])]
    resolved = {Path(one).resolve() for one in sources if not one.startswith("builtin:")}
    return [
        f"{file} is what the model was trained on, so these real cells are not unseen"
        for file in files
        if file in sources or Path(file).resolve() in resolved
    ]


def _class_names(
    model: CellModel, generated: GeneratedCells, wanted: Sequence[str]
) -> tuple[str, ...]:
    """Return the phenotypes that make the classes."""
    names = model.config.phenotype_names
    for name in wanted:
        if name not in names:
            message = f"--classes {name}: the model has no such phenotype; {suggest(name, names)}"
            raise ConfigurationError(message)
    if wanted:
        return tuple(dict.fromkeys(wanted))
    labelled = [name for slot, name in enumerate(names) if (generated.codes[:, slot] >= 0).any()]
    if "cell_type" in labelled:
        return ("cell_type",)
    return tuple(labelled[:1])


def _classes(
    model: CellModel, slots: Sequence[int], sides: Sequence[_Cells]
) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Code -> name of each class, and (cells,) codes of every side; -1 where a label is missing."""
    if not slots:
        return ["all cells"], [np.zeros(len(one.codes), dtype=np.int64) for one in sides]
    chosen = np.concatenate([one.codes[:, slots] for one in sides])
    known = (chosen >= 0).all(axis=1)
    combinations, inverse = np.unique(chosen[known], axis=0, return_inverse=True)
    codes = np.full(len(chosen), -1, dtype=np.int64)
    codes[known] = inverse.ravel()
    values = list(model.config.phenotypes.values())
    names = [
        ", ".join(values[slot][code] for slot, code in zip(slots, row, strict=True))
        for row in combinations
    ]
    return names, np.split(codes, np.cumsum([len(one.codes) for one in sides])[:-1])


def _meets(codes: Codes, requests: Sequence[dict[int, int]]) -> NDArray[np.bool_]:
    """(cells,), which have what was asked for in at least one file."""
    met = np.zeros(len(codes), dtype=bool)
    for request in requests:
        of_file = np.ones(len(codes), dtype=bool)
        for slot, code in request.items():
            of_file &= codes[:, slot] == code
        met |= of_file
    return met


def _describe(model: CellModel, requests: Sequence[dict[int, int]]) -> str:
    names, values = model.config.phenotype_names, list(model.config.phenotypes.values())
    texts = [
        ", ".join(f"{names[slot]} {values[slot][code]}" for slot, code in request.items())
        for request in requests
    ]
    return "; ".join(dict.fromkeys(text or "all cells" for text in texts))


def _genes(
    model: CellModel, real: sparse.csr_matrix, missing: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], list[str]]:
    """Columns of the panel that are scored, in panel order, and what was left out."""
    genes, notes = np.flatnonzero(~missing), []
    if missing.any():
        notes.append(f"{int(missing.sum()):,} genes of the model are not in the files; not scored")
    if len(genes) > _MOST_GENES:
        wide = real[:, genes].astype(np.float64)
        mean = np.asarray(wide.mean(axis=0)).ravel()
        variance = np.asarray(wide.multiply(wide).mean(axis=0)).ravel() - mean**2
        genes = np.sort(genes[np.argsort(-variance, kind="stable")[:_MOST_GENES]])
        notes.append(f"the {_MOST_GENES:,} most variable of {len(model.panel):,} genes are scored")
    return genes.astype(np.int64), notes


def _in_models_terms(
    model: CellModel, values: NDArray[np.float32], genes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """On or off for a binary model, whose generated cells are so already."""
    if model.config.kind != "binary":
        return values
    edges = model.values.edges[..., 0]
    edge = edges if edges.ndim == 0 else edges[genes]
    return (values >= np.minimum(edge, 1)).astype(np.float32)


def _baseline_bins(model: CellModel, cells: LabelledCells, panel: GenePanel) -> tuple[Any, Any]:
    """Return the baselines' bins and the training values within each."""
    kind = "binary" if model.config.kind == "binary" else "binned"
    settings = EncodingSettings(
        kind=kind, bins=_BASELINE_BINS, edges="gene_quantile", threshold=0.0
    )  # fmt: skip
    expression = sparse.csr_matrix(cells.values)
    encoder = fit_value_encoder(settings, expression, panel)
    return encoder, ValueTable.fit(encoder, expression)
