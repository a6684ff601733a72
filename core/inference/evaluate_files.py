"""Evaluation of a model on labelled files that it has never seen.

Genes are joined and values normalised as for `tfx predict`; labels are translated to the model's values, and
those that it does not know are counted and left out. If the cells that the model was trained on still
exist, baselines learn from them, over the genes that all files have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_filter import CellFilter
from core.cells.store import Store
from core.encoding.cell_batch import CellBatch
from core.errors import DataError
from core.evaluation.baselines import QUICK_BASELINES
from core.evaluation.method_comparison import (
    KnownCells,
    baseline_cells,
    baseline_names,
    compare_methods,
    store_of_task,
    with_joint_donors,
)
from core.evaluation.predict import (
    Probabilities,
    batch_cells,
    join_probabilities,
    phenotype_probabilities,
    predict,
)
from core.evaluation.report.records import EvaluationFacts, EvaluationReport
from core.inference.labelled_files import LabelledFile, read_labelled, trained_on
from core.model.folder import CellModel
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator


def evaluate_files(
    model: CellModel,
    files: Sequence[str],
    *,
    labels: Sequence[str] = (),
    donor_column: str = "donor_id",
    store: Store | None = None,
    trained_where: CellFilter | None = None,
    baselines: Sequence[str] = QUICK_BASELINES,
    max_cells: int | None = None,
    matrix: str = "auto",
    gene_ids: str = "auto",
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> EvaluationReport:
    """Score a model on labelled files, with all genes visible and all phenotypes masked.

    Parameters
    ----------
    files, labels, donor_column, matrix, gene_ids
        See `core.inference.labelled_files.read_labelled`.
    store, trained_where
        The cells that the model was trained on, for the baselines; None: there are no baselines.
    baselines
        Some of `core.evaluation.baselines.ALL_BASELINES`.
    max_cells
        Score a seeded sample of at most this number of cells of each file.
    seed
        Of samples and bootstrap draws.

    Raises
    ------
    DataError
        A file cannot be read, has too few of the model's genes, or no file has a label to score.
    ConfigurationError
        The model has no such phenotype.
    """
    config = model.config

    def choose(codes: NDArray[np.int32]) -> NDArray[np.int64]:
        rows = np.flatnonzero((codes >= 0).any(axis=1))
        if max_cells is None or len(rows) <= max_cells:
            return rows
        rng = generator(seed, Stream.EVALUATED_CELLS)
        return np.sort(rng.choice(rows, max_cells, replace=False))

    read = []
    parts: list[Probabilities] = []
    for file in files:
        one = read_labelled(
            model, file, phenotypes=config.predicted, choose=choose, labels=labels,
            donor_column=donor_column, matrix=matrix, gene_ids=gene_ids,
        )  # fmt: skip
        read.append(one)
        parts.append(_predict(model, one, seed=seed, on_progress=on_progress))
    codes = np.concatenate([one.codes for one in read])
    if not len(codes):
        message = (
            f"{', '.join(files)}: no cell has a label that the model knows, of any of "
            f"{', '.join(config.predicted)}; name the columns by --label NAME=COLUMN"
        )
        raise DataError(message)
    present = ~np.any([one.missing for one in read], axis=0)
    donor_names, donors = _donor_codes(np.concatenate([one.donors for one in read]))
    expression = sparse.csr_matrix(sparse.vstack([one.expression for one in read]))
    training = None
    if store is not None:
        rng = generator(seed, Stream.EVALUATED_CELLS)
        training = baseline_cells(model, store_of_task(model, store), trained_where, rng)
        training, donor_names = with_joint_donors(
            training.of_genes(present), store.donor_names or (), donor_names
        )
    compared = compare_methods(
        config,
        join_probabilities(model, parts),
        KnownCells(expression, codes, donors).of_genes(present),
        training,
        baselines=baselines,
        donor_names=donor_names,
        symbols=[model.panel.symbols[gene] for gene in np.flatnonzero(present)],
        seed=seed,
        on_progress=on_progress,
    )
    name = model.provenance.get("name", "model")
    return replace(
        compared,
        title=f"{name} on {', '.join(Path(file).name for file in files)}",
        facts=EvaluationFacts(
            model=model.provenance.get("name"),
            step=model.provenance.get("step"),
            data=", ".join(files),
            simulated=_are_simulated(files),
            n_cells=len(codes),
            baselines=baseline_names(baselines if store is not None else ()),
            n_cells_of_baselines=None if training is None else len(training),
            n_genes=len(model.panel),
            n_genes_missing=int((~present).sum()),
            seed=seed,
        ),
        notes=(
            *(note for one in read for note in one.notes),
            *_training_notes(model, files, store),
            *compared.notes,
        ),
    )


def _predict(
    model: CellModel, file: LabelledFile, *, seed: int, on_progress: Listener
) -> Probabilities:
    size = batch_cells(model)

    def batches() -> Iterator[CellBatch]:
        for first in range(0, file.n_cells, size):
            last = min(first + size, file.n_cells)
            some = file.expression[slice(*np.searchsorted(file.rows, (first, last)).tolist())]
            if some.shape[0]:
                # A code of 0 masks a phenotype whose label is missing; the model does not see it.
                masked = np.zeros((some.shape[0], len(model.config.phenotypes)), dtype=np.int32)
                names = list(model.config.phenotypes)
                rng = generator(seed, first, Stream.QUERY_GENES)
                yield model.batches.visible(some, masked, names, rng, missing=file.missing)
            on_progress(ProgressEvent("predicting phenotypes", last, file.n_cells))

    return join_probabilities(
        model, (phenotype_probabilities(model, one) for one in predict(model, batches()))
    )


def _donor_codes(donors: NDArray[np.object_]) -> tuple[list[str], NDArray[np.int64] | None]:
    """Names, and (cells,) codes, -1 where not known; None if no donor is known."""
    names = sorted(set(donors.tolist()) - {""})
    if not names:
        return [], None
    place = {name: code for code, name in enumerate(names)} | {"": -1}
    return names, np.array([place[name] for name in donors.tolist()], dtype=np.int64)


def _are_simulated(files: Sequence[str]) -> bool:
    return all(file.startswith("builtin:atlas") for file in files)


def _training_notes(model: CellModel, files: Sequence[str], store: Store | None) -> list[str]:
    """Note how the files and the model's training cells are related."""
    notes = [
        f"the model was trained on {file}, so the scores are too high"
        for file in trained_on(model, files)
    ]
    if model.provenance.get("simulated") and not _are_simulated(files):
        notes.append(
            "the model was trained on simulated cells: its scores mean nothing for real biology"
        )
    if store is None:
        notes.append(
            "the cells that the model was trained on are gone or changed, so there are no baselines"
        )
    return notes
