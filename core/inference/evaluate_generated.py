"""Comparison of generated cells with held-out real ones, by the whole fidelity protocol.

The real cells are the held-out ones of the store that the model was trained on, or those of files; the
baselines learn from the training cells of the store. If some phenotypes were requested of the generated
cells, only real cells that have them count. One or several phenotypes, by default the cell type, make the
classes of cells.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_filter import CellFilter
from core.cells.genes import GenePanel
from core.cells.phenotypes import suggest
from core.cells.store import Store
from core.encoding.values import ValueEncoder, ValueTable, fit_value_encoder
from core.errors import ConfigurationError, DataError
from core.evaluation.fidelity.judge import LabelledCells
from core.evaluation.fidelity.likelihood import condition_likelihood
from core.evaluation.fidelity.pictures import fidelity_pictures
from core.evaluation.fidelity.protocol import Draw, run_protocol
from core.evaluation.fidelity.rebalancing import compare_rebalancing
from core.evaluation.fidelity.scvi_baseline import ScviBaseline, check_scvi
from core.evaluation.fidelity.verdict import mark_methods, verdict
from core.evaluation.method_comparison import KnownCells
from core.evaluation.report.records import FidelityFacts, FidelityReport
from core.inference.generated_cells import GeneratedCells, read_generated
from core.inference.labelled_files import read_labelled, trained_on
from core.model.folder import CellModel
from core.presets.schema import EncodingSettings
from core.progress import Listener, ignore_progress

#: The baselines' bins: not expressed, and nine of equal counts per gene.
_BASELINE_BINS = 10
#: Training cells, and held-out cells, read at most: an even sample.
_MOST_CELLS = 20_000
#: Genes scored at most: the copula needs the square of their number.
_MOST_GENES = 2_000

Codes = NDArray[np.int64]


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
) -> tuple[FidelityReport, dict[str, bytes]]:
    """Score generated cells beside real cells, independent genes and the Gaussian copula.

    Parameters
    ----------
    model
        The model that generated them.
    files
        Files of `tfx generate`; several files are scored as one set of cells.
    store
        The store that the model was trained on; None: no baselines, and `real_files` are needed.
    real_files
        Real cells to compare with, instead of the held-out cells of the store.
    labels, donor_column, matrix, gene_ids
        How to read these: `core.inference.labelled_files.read_labelled`.
    trained_where
        The cells of the store that the model was trained on.
    classes
        Phenotypes that make the classes; default the cell type.
    max_cells, n_seeds, n_trees, n_resamples
        See `core.evaluation.fidelity.protocol.run_protocol`.
    with_scvi
        Also compare with scVI, trained on the same cells; needs counts and scvi-tools.

    Returns
    -------
    The report, and its pictures by heading.

    Raises
    ------
    DataError
        A file is unfit, there are no real cells, or too few that match.
    ConfigurationError
        The model has no such phenotype.
    MachineError
        scVI is requested and scvi-tools is not installed.
    """
    if with_scvi:
        check_scvi()
    provenance = model.provenance
    generated = read_generated(model, files)
    notes = list(generated.notes)
    training = None if store is None else _training_cells(model, store, trained_where)
    missing = np.zeros(len(model.panel), dtype=bool)
    if real_files:
        real, missing = _cells_of_files(
            model, real_files, labels, donor_column, matrix=matrix, gene_ids=gene_ids
        )
        source = f"cells of {', '.join(Path(one).name for one in real_files)}"
        notes += [
            f"the model was trained on {file}, so these real cells are not held out"
            for file in trained_on(model, real_files)
        ]
    elif store is not None:
        real = _held_out_cells(model, store, trained_where)
        source = "held-out cells" + (" of held-out donors" if real.donors is not None else "")
    else:
        message = (
            f"the store that the model was trained on ({provenance.get('store')}) is gone or "
            f"changed: prepare it again, or name files of real cells before --generated"
        )
        raise DataError(message)
    names = _class_phenotypes(model, generated, classes)
    requested = _describe(model, generated.requests)
    meets = _meets(real.codes, generated.requests)
    if not meets.any():
        message = (
            f"none of the {len(meets):,} {source} has the phenotypes that were requested "
            f"({requested}); name files of such cells before --generated"
        )
        raise DataError(message)
    real = real.take(np.flatnonzero(meets))
    genes, gene_notes = _scored_genes(model, real.expression, missing)
    notes += gene_notes
    made = KnownCells(generated.expression, generated.codes)
    slots = [model.config.phenotype_names.index(name) for name in names]
    class_names, (of_made, of_real, *of_training) = _classes(
        model, slots, [one for one in (made, real, training) if one is not None]
    )
    for side, codes in (("generated", of_made), ("real", of_real)):
        n_without = int((codes < 0).sum())
        if n_without:
            notes.append(f"{n_without:,} {side} cells have no {' and '.join(names)}; not scored")

    def label(cells: KnownCells, codes: Codes) -> LabelledCells:
        known = codes >= 0
        values = cells.expression[known][:, genes].toarray().astype(np.float32)
        return LabelledCells(_as_model_values(model, values, genes), codes[known])

    labelled_real, labelled_made = label(real, of_real), label(made, of_made)
    labelled_training = matching = None
    if training is not None:
        labelled_training = label(training, of_training[0])
        matching = _meets(training.codes, generated.requests)[of_training[0] >= 0]
        if not matching.any():
            notes.append(
                "no training cell has the requested phenotypes, so there is no copula and there are no "
                "independent genes: these draw from training cells alone"
            )
    else:
        notes.append(
            "the cells that the model was trained on are gone or changed: no baselines, and no measures "
            "of copies or of the requested class"
        )
    panel = model.panel.take(genes)
    encoder, table = _baseline_bins(
        model, labelled_real if labelled_training is None else labelled_training, panel
    )
    others: dict[str, Draw] = {}
    if with_scvi:
        draw = None
        if training is not None and store is not None and matching is not None:
            known = np.flatnonzero(of_training[0] >= 0)[matching]
            rows, learnt = training.take(known).rows, of_training[0][known]
            assert rows is not None
            draw = _scvi(model, store, rows, learnt, genes, on_progress)
        if draw is None:
            notes.append("scVI is left out: it learns from counts of training cells, and has none")
        else:
            others["scvi"] = draw
    result = run_protocol(
        labelled_real,
        labelled_made,
        labelled_training,
        encoder,
        table,
        len(class_names),
        donors=None if real.donors is None else real.donors[of_real >= 0].astype(np.int64),
        matching=matching,
        others=others,
        max_cells=max_cells,
        n_seeds=n_seeds,
        n_trees=n_trees,
        n_resamples=n_resamples,
        on_progress=on_progress,
    )
    rebalanced, likelihood = {}, None
    if training is not None and labelled_training is not None:
        rebalanced = compare_rebalancing(
            labelled_training, labelled_real, labelled_made, encoder, table, len(class_names)
        )
        likelihood = condition_likelihood(
            model, real, of_real, training, of_training[0], slots=slots, genes=genes
        )
    if provenance.get("simulated"):
        notes.append(
            "the model was trained on simulated cells: the scores mean nothing for real biology"
        )
    marks = mark_methods(result.scores, result.limits)
    sentences = verdict(result.scores, marks, min(result.n_cells))
    report = FidelityReport(
        title=f"Cells generated by {provenance.get('name', 'the model')}",
        facts=FidelityFacts(
            files=", ".join(files),
            n_cells_generated=generated.n_cells,
            requested=requested,
            model=provenance.get("name"),
            step=provenance.get("step"),
            simulated=bool(provenance.get("simulated")),
            real_cells=f"{len(labelled_real):,} {source}",
            training_cells="gone" if training is None else str(len(training)),
            classes=" and ".join(names) or "one: the model has no phenotypes",
            matched_cells_per_side=", ".join(f"{n:,}" for n in result.n_cells),
            n_genes=len(genes),
            n_seeds=n_seeds,
            n_trees=n_trees,
        ),
        verdict=(*sentences, *([] if likelihood is None else [likelihood.sentence()])),
        scores=result.scores,
        marks=marks,
        limits=result.limits,
        class_cells={class_names[code]: n for code, n in result.class_cells.items()},
        likelihood=likelihood,
        rebalancing=rebalanced,
        notes=tuple(notes),
    )
    return report, fidelity_pictures(result.shown, panel.symbols, class_names)


# --------------------------------------------------------------------------------------- the cells


def _training_cells(model: CellModel, store: Store, where: CellFilter | None) -> KnownCells:
    rows = _even_sample(_matching_rows(store, store.rows("train"), where))
    return KnownCells.of_store(model, store, rows)


def _held_out_cells(model: CellModel, store: Store, where: CellFilter | None) -> KnownCells:
    rows = np.sort(np.concatenate([store.rows("validation"), store.rows("test")]))
    if len(rows) == 0:
        message = (
            f"{store.path}: no cell was held out of training; set data.split.test above 0 and "
            f"train again, or name files of real cells before --generated"
        )
        raise DataError(message)
    cells = KnownCells.of_store(model, store, _even_sample(_matching_rows(store, rows, where)))
    is_by_donor = store.report.get("split", {}).get("method") != "cells"
    return cells if is_by_donor else replace(cells, donors=None)


def _matching_rows(store: Store, rows: Codes, where: CellFilter | None) -> Codes:
    return rows[store.where(where)[rows]] if where else rows


def _even_sample(rows: Codes) -> Codes:
    """At most 20,000: the cells of a store are in random order, so an even sample is a random one."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), _MOST_CELLS)).astype(np.int64)]


def _cells_of_files(
    model: CellModel,
    files: Sequence[str],
    labels: Sequence[str],
    donor_column: str,
    *,
    matrix: str,
    gene_ids: str,
) -> tuple[KnownCells, NDArray[np.bool_]]:
    """Read files of real cells; and (panel genes,), which a file lacks."""
    read = [
        read_labelled(
            model, file, phenotypes=model.config.phenotypes,
            choose=lambda codes: np.arange(0, len(codes), max(1, -(-len(codes) // _MOST_CELLS))),
            labels=labels, donor_column=donor_column, matrix=matrix, gene_ids=gene_ids,
        )
        for file in files
    ]  # fmt: skip
    donors = np.concatenate([one.donors for one in read])
    names, codes = np.unique(donors.astype(str), return_inverse=True)
    cells = KnownCells(
        sparse.csr_matrix(sparse.vstack([one.expression for one in read])),
        np.concatenate([one.codes for one in read]),
        codes.astype(np.int64) if len(names) > 1 else None,
    )
    return cells, np.any([one.missing for one in read], axis=0)


# ------------------------------------------------------------------------------- classes, requests


def _class_phenotypes(
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
    return ("cell_type",) if "cell_type" in labelled else tuple(labelled[:1])


def _classes(
    model: CellModel, slots: Sequence[int], sides: Sequence[KnownCells]
) -> tuple[list[str], list[Codes]]:
    """Code -> name of each class, and (cells,) codes of every side; -1 where a label is missing."""
    if not slots:
        return ["all cells"], [np.zeros(len(one), dtype=np.int64) for one in sides]
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
    return names, np.split(codes, np.cumsum([len(one) for one in sides])[:-1])


def _meets(codes: NDArray[np.integer], requests: Sequence[dict[int, int]]) -> NDArray[np.bool_]:
    """(cells,), which have the phenotypes that at least one file requests."""
    met = np.zeros(len(codes), dtype=bool)
    for request in requests:
        met |= np.all([codes[:, slot] == code for slot, code in request.items()], axis=0)
    return met


def _describe(model: CellModel, requests: Sequence[dict[int, int]]) -> str:
    names, values = model.config.phenotype_names, list(model.config.phenotypes.values())
    texts = [
        ", ".join(f"{names[slot]} {values[slot][code]}" for slot, code in request.items())
        for request in requests
    ]
    return "; ".join(dict.fromkeys(text or "all cells" for text in texts))


# -------------------------------------------------------------------------- genes, values, baselines


def _scored_genes(
    model: CellModel, real: sparse.csr_matrix, missing: NDArray[np.bool_]
) -> tuple[Codes, list[str]]:
    """Columns of the panel that are scored, in panel order, and notes on the others."""
    from sklearn.utils.sparsefuncs import mean_variance_axis  # 500 ms

    genes, notes = np.flatnonzero(~missing), []
    if missing.any():
        notes.append(f"{int(missing.sum()):,} genes of the model are not in the files; not scored")
    if len(genes) > _MOST_GENES:
        variance = mean_variance_axis(sparse.csr_matrix(real[:, genes], dtype=np.float64), axis=0)[
            1
        ]
        genes = np.sort(genes[np.argsort(-variance, kind="stable")[:_MOST_GENES]])
        notes.append(f"the {_MOST_GENES:,} most variable of {len(model.panel):,} genes are scored")
    return genes.astype(np.int64), notes


def _as_model_values(
    model: CellModel, values: NDArray[np.float32], genes: Codes
) -> NDArray[np.float32]:
    """Turn values into 0 and 1 for a binary model, as its generated cells are."""
    if model.config.kind != "binary":
        return values
    edges = model.values.edges[..., 0]
    edge = edges if edges.ndim == 0 else edges[genes]
    return (values >= np.minimum(edge, 1)).astype(np.float32)


def _baseline_bins(
    model: CellModel, cells: LabelledCells, panel: GenePanel
) -> tuple[ValueEncoder, ValueTable]:
    """Return the baselines' bins and the training values in each."""
    kind = "binary" if model.config.kind == "binary" else "binned"
    settings = EncodingSettings(
        kind=kind, bins=_BASELINE_BINS, edges="gene_quantile", threshold=0.0
    )
    expression = sparse.csr_matrix(cells.values)
    encoder = fit_value_encoder(settings, expression, panel)
    return encoder, ValueTable.fit(encoder, expression)


def _scvi(
    model: CellModel,
    store: Store,
    rows: Codes,
    classes: Codes,
    genes: Codes,
    on_progress: Listener,
) -> Draw | None:
    """Train scVI on the counts of training cells; None if there are none."""
    if store.value_kind != "counts" or len(rows) == 0:
        return None
    counts = sparse.csr_matrix(store.read_counts(rows, model.panel)[:, genes])
    totals = store.totals[rows].astype(np.float64)
    scvi = ScviBaseline(counts, totals, classes, on_progress=on_progress)

    def draw(classes: Codes, rng: np.random.Generator) -> NDArray[np.float32]:
        return _as_model_values(model, scvi.draw(classes, rng), genes)

    return draw
