"""A model held against the labels of files that it has never seen.

Genes are joined and values normalised as for `tfx predict`; labels are brought to the model's own
words, and those that it does not know are counted and left out. Baselines, where the cells that the
model was trained on are still there, learn from these and see the genes that all files have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_filter import CellFilter
from core.cells.phenotypes import PhenotypeColumn, read_labels, suggest
from core.cells.reading import CellSource
from core.cells.store import OneVsRest, Store
from core.encoding.cell_batch import CellBatch
from core.errors import ConfigurationError, DataError
from core.evaluation.baselines import QUICK_BASELINES
from core.evaluation.held_out import MAX_BASELINE_CELLS
from core.evaluation.phenotype_section import KnownCells, report_phenotypes
from core.evaluation.predict import join_probabilities, phenotype_probabilities, predict
from core.inference.hints import Hint, read_hint
from core.inference.query_cells import QueryCells, open_query_cells
from core.model.folder import CellModel
from core.presets.schema import STANDARD_PHENOTYPES
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

__all__ = ["evaluate_files"]

#: Tokens of a batch, on a CPU and on a GPU.
_TOKENS = {"cpu": 2**14, "cuda": 2**17}
_FEW = 5


@dataclass(frozen=True)
class _Answered:
    """One file: its true codes and the model's answers.

    Attributes
    ----------
    codes
        (cells, phenotypes), the model's codes, -1 where the label is missing or unknown.
    donors
        (cells,), names; "" where not known.
    probabilities
        phenotype -> (cells, values).
    expression
        (cells, the model's genes).
    missing
        (the model's genes,), which the file lacks.
    notes
        What could not be scored.
    """

    codes: NDArray[np.int32]
    donors: NDArray[Any]
    probabilities: dict[str, NDArray[np.float32]]
    expression: sparse.csr_matrix
    missing: NDArray[np.bool_]
    notes: list[str]


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
) -> dict[str, Any]:
    """Score a model on labelled files, all genes visible and all phenotypes hidden.

    Parameters
    ----------
    files
        .h5ad files, or "builtin:NAME".
    labels
        Where the true labels of a phenotype are: "tissue=organ"; by default in the obs column of
        the CELLxGENE schema, else in that of the phenotype's own name.
    donor_column
        The obs column that names donors; files may lack it.
    store, trained_where
        The cells that the model was trained on, for the baselines; None: there are no baselines.
    baselines
        Methods of `core.evaluation.baselines`.
    max_cells
        Score a seeded sample of at most so many cells of each file.
    matrix, gene_ids
        As ``data.matrix`` and ``data.gene_ids`` of a preset.
    seed
        Of samples and bootstrap draws.

    Returns
    -------
    A report for `core.evaluation.reports.write_evaluation_report`.

    Raises
    ------
    DataError
        A file cannot be read, has too few of the model's genes, or no file has a label to score.
    ConfigurationError
        The model has no such phenotype.
    """
    config = model.config
    answered = []
    for file in files:
        with open_query_cells(file, model.panel, matrix=matrix, gene_ids=gene_ids) as cells:
            hints, notes = _read_truth(cells.source, model, labels)
            answered.append(
                _answer(
                    model, cells, hints, notes, donor_column, max_cells, seed=seed,
                    on_progress=on_progress,
                )
            )  # fmt: skip
    codes = np.concatenate([one.codes for one in answered])
    if not (codes >= 0).any():
        message = (
            f"{', '.join(files)}: no cell has a label that the model knows, of any of "
            f"{', '.join(config.predicted)}; say where the labels are by --label NAME=COLUMN"
        )
        raise DataError(message)
    present = ~np.any([one.missing for one in answered], axis=0)
    donor_names, donors = _donor_codes(np.concatenate([one.donors for one in answered]))
    training = None
    if store is not None:
        training, donor_names = _training_cells(
            model, store, trained_where, present, donor_names, seed=seed
        )
    expression = sparse.csr_matrix(sparse.vstack([one.expression for one in answered]))
    slots = list(config.predicted.values())
    section = report_phenotypes(
        {name: list(config.phenotypes[name]) for name in config.predicted},
        {
            name: np.concatenate([one.probabilities[name] for one in answered])
            for name in config.predicted
        },
        KnownCells(expression[:, present], codes, donors).of_slots(slots),
        None if training is None else training.of_slots(slots),
        baselines=baselines,
        donor_names=donor_names,
        symbols=[symbol for symbol, is_there in zip(model.panel.symbols, present, strict=True) if is_there],
        seed=seed,
        on_progress=on_progress,
    )  # fmt: skip
    notes = [note for one in answered for note in one.notes] + _origin_notes(model, files, store)
    methods = baselines if store is not None else ()
    return {
        "title": f"{model.provenance.get('name', 'model')} on {', '.join(Path(f).name for f in files)}",
        "facts": {
            "model": model.provenance.get("name"),
            "step": model.provenance.get("step"),
            "data": ", ".join(files),
            "simulated": all(str(file).startswith("builtin:atlas") for file in files),
            "cells": len(codes),
            "baselines": ", ".join(method.replace("_", " ") for method in methods) or "none",
            **(
                {}
                if training is None
                else {"training cells of the baselines": training.expression.shape[0]}
            ),
            "genes": len(model.panel),
            "genes missing": int((~present).sum()),
            "seed": seed,
        },
        "phenotypes": section.phenotypes,
        "two_genes": section.two_genes,
        "notes": notes + section.notes,
    }


def _read_truth(
    source: CellSource, model: CellModel, labels: Sequence[str]
) -> tuple[list[Hint], list[str]]:
    """Read the true labels of every phenotype that the file knows, and say what it does not."""
    named = {one.partition("=")[0]: one for one in labels}
    for name, wanted in named.items():
        if name not in model.config.predicted:
            message = (
                f"--label {wanted}: the model does not tell a phenotype '{name}'; "
                f"{suggest(name, model.config.predicted)}"
            )
            raise ConfigurationError(message)
        read_hint(source, model.config, wanted)  # an explicit request is met or refused
    hints, notes = [], []
    for name in model.config.predicted:
        if name not in named:
            candidates = [STANDARD_PHENOTYPES.get(name, name), name]
            if not any(one in source.obs_columns(candidates).columns for one in candidates):
                notes.append(f"{name}: {source.name} has no column '{candidates[0]}'; not scored")
                continue
        try:
            hint = read_hint(source, model.config, named.get(name, name))
        except DataError as error:
            notes.append(f"{name}: not scored ({error})")
            continue
        hints.append(hint)
        if hint.unknown:
            first = ", ".join(
                f"'{label}' ({n:,})" for label, n in list(hint.unknown.items())[:_FEW]
            )
            more = ", ..." if len(hint.unknown) > _FEW else ""
            notes.append(
                f"{name}: {sum(hint.unknown.values()):,} cells of {source.name} have labels that the "
                f"model does not know, and are not scored: {first}{more}"
            )
    return hints, notes


def _answer(
    model: CellModel,
    cells: QueryCells,
    hints: Sequence[Hint],
    notes: list[str],
    donor_column: str,
    max_cells: int | None,
    *,
    seed: int,
    on_progress: Listener,
) -> _Answered:
    config = model.config
    names = list(config.phenotypes)
    device = next(model.network.parameters()).device
    codes = np.full((cells.n_cells, len(names)), -1, dtype=np.int32)
    for hint in hints:
        codes[:, hint.slot] = hint.codes
    # Cells without a label to score are not asked about.
    chosen = np.flatnonzero((codes >= 0).any(axis=1))
    if max_cells is not None and len(chosen) > max_cells:
        rng = generator(seed, Stream.EVALUATED_CELLS)
        chosen = np.sort(rng.choice(chosen, max_cells, replace=False))
    is_chosen = np.zeros(cells.n_cells, dtype=bool)
    is_chosen[chosen] = True
    expression = [sparse.csr_matrix(np.zeros((0, len(model.panel)), dtype=np.float32))]
    size = max(_TOKENS.get(device.type, _TOKENS["cpu"]) // config.longest_sequence, 1)

    def batches() -> Iterator[CellBatch]:
        for first, block in cells.blocks(size):
            some = block[np.flatnonzero(is_chosen[first : first + block.shape[0]])]
            done = min(first + block.shape[0], cells.n_cells)
            on_progress(ProgressEvent("predicting phenotypes", done, cells.n_cells))
            if some.shape[0] == 0:
                continue
            expression.append(some)
            # A code of 0 masks a phenotype whose label is missing; the model does not see it.
            masked = np.zeros((some.shape[0], len(names)), dtype=np.int32)
            rng = generator(seed, first, Stream.QUERY_GENES)
            yield model.batches.visible(some, masked, names, rng, missing=cells.missing)

    probabilities = join_probabilities(
        model, (phenotype_probabilities(model, one) for one in predict(model, batches()))
    )
    return _Answered(
        codes[chosen],
        _donor_labels(cells, donor_column)[chosen],
        probabilities,
        sparse.csr_matrix(sparse.vstack(expression)),
        cells.missing,
        notes,
    )


def _donor_labels(cells: QueryCells, column: str) -> NDArray[Any]:
    """(cells,), names of the donors; "" where not known."""
    labels = read_labels(
        cells.source.obs_columns([column]), PhenotypeColumn("donor", column, explicit=False),
        where=cells.source.name,
    )  # fmt: skip
    if labels is None:
        return np.full(cells.n_cells, "", dtype=object)
    return np.array([*labels.values, ""], dtype=object)[labels.codes]


def _donor_codes(donors: NDArray[Any]) -> tuple[list[str], NDArray[np.int64] | None]:
    """Names, and (cells,) codes, -1 where not known; None where no donor is known."""
    names = sorted(set(donors.tolist()) - {""})
    if not names:
        return [], None
    place = {name: code for code, name in enumerate(names)} | {"": -1}
    return names, np.array([place[name] for name in donors.tolist()], dtype=np.int64)


def _training_cells(
    model: CellModel,
    store: Store,
    trained_where: CellFilter | None,
    present: NDArray[np.bool_],
    donor_names: list[str],
    *,
    seed: int,
) -> tuple[KnownCells, list[str]]:
    """Read the cells the model was trained on, in the model's codes and with donors of both sides."""
    if model.config.classified is not None and model.config.positive is not None:
        store = OneVsRest(store, model.config.classified, model.config.positive)
    rows = store.select(trained_where, split="train") if trained_where else store.rows("train")
    if len(rows) > MAX_BASELINE_CELLS:
        rng = generator(seed, Stream.EVALUATED_CELLS)
        rows = np.sort(rng.choice(rows, MAX_BASELINE_CELLS, replace=False))
    known = KnownCells.of_store(store, rows, model.panel)
    codes = np.full((len(rows), len(model.config.phenotypes)), -1, dtype=np.int64)
    stored = list(store.phenotypes)
    for slot, (name, values) in enumerate(model.config.phenotypes.items()):
        if name in stored:
            of_store = store.phenotypes[name]
            to_model = [values.index(one) if one in values else -1 for one in of_store]
            codes[:, slot] = np.array([*to_model, -1])[known.codes[:, stored.index(name)]]
    names = list(donor_names)
    donors = None
    if known.donors is not None and store.donor_names is not None:
        place = {name: code for code, name in enumerate(names)}
        for name in store.donor_names:
            place.setdefault(name, len(place))
        names = list(place)
        to_joint = np.array([*(place[name] for name in store.donor_names), -1])
        donors = to_joint[known.donors]
    return KnownCells(known.expression[:, present], codes, donors), names


def _origin_notes(model: CellModel, files: Sequence[str], store: Store | None) -> list[str]:
    """Say what the files and the model's own cells have to do with each other."""
    notes: list[str] = []
    sources = {str(one) for one in model.provenance.get("sources", [])}
    resolved = {Path(one).resolve() for one in sources if not one.startswith("builtin:")}
    notes += [
        f"{file} is what the model was trained on, so the figures flatter"
        for file in files
        if file in sources or Path(file).resolve() in resolved
    ]
    if model.provenance.get("simulated") and not all(
        str(f).startswith("builtin:atlas") for f in files
    ):
        notes.append(
            "the model was trained on simulated cells: its figures say nothing about real biology"
        )
    if store is None:
        notes.append(
            "the cells the model was trained on are gone or changed, so there are no baselines"
        )
    return notes
