"""What each part of a model contributes: the same cells and masks, with parts of the model left out.

Genes are masked as in training, phenotypes are predicted from all genes. A part that is left out is not
replaced: the rest predicts what it learnt to predict together with it. So "without the encoder" is the
log-linear part of this model, not one that was trained alone.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.cells.store import Store
from core.encoding.cell_batch import CellBatch
from core.encoding.panel_cells import PanelReader
from core.evaluation.marginals import Marginals
from core.evaluation.masked_evaluation import negative_log_likelihood
from core.evaluation.metrics import N_RESAMPLES, interval_of
from core.evaluation.predict import predict, predict_phenotypes, row_batches
from core.evaluation.report.records import Difference, PartMetric, Parts, PartScores
from core.model.cell_model import LeftOut, TfxModel
from core.model.folder import CellModel
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator, sample_rows

_Floats = NDArray[np.float64]

MAX_CELLS = 1_000
#: The name of the whole model, and of what looks at nothing else of the cell.
WHOLE, MARGINALS = "whole", "marginals"
_STAGE = "what each part contributes"


def parts_left_out(network: TfxModel) -> dict[str, frozenset[LeftOut]]:
    """Return name -> parts of a network that are left out; the whole model is first.

    "marginals" leaves out everything. A part that is the whole model is not left out.
    """
    found: dict[str, frozenset[LeftOut]] = {WHOLE: frozenset()}
    has_encoder, has_log_linear = network.encoder_part is not None, network.log_linear is not None
    if network.config.library_size:
        found["without_library_size"] = frozenset({"library_size"})
    if has_encoder and has_log_linear:
        found["without_the_encoder"] = frozenset({"encoder"})
        found["without_the_log_linear_part"] = frozenset({"log_linear"})
    if has_log_linear:
        found["class_log_odds_alone"] = frozenset({"encoder", "library_size", "couplings"})
    return found


def evaluate_parts(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    *,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> Parts:
    """Score a model on at most `MAX_CELLS` of the cells, a seeded sample, whole and without each of its parts."""
    rng = generator(seed, Stream.CONDITION_CELLS, MAX_CELLS)
    rows = sample_rows(rows, MAX_CELLS, rng)
    network, has_genes = model.network, model.config.classified is None
    variants = parts_left_out(network)
    total, done = len(rows) * (1 + has_genes) * len(variants), 0

    def count(event: ProgressEvent) -> None:
        on_progress(ProgressEvent(_STAGE, done + event.done, total))

    nll: dict[str, _Floats] = {}  # (cells,) sums over the masked genes of each cell
    n_masked = np.zeros(len(rows))
    predicted: dict[str, dict[str, NDArray[np.intp]]] = {}
    for name, left_out in variants.items():
        network.left_out = left_out
        try:
            if has_genes:
                n_masked, nll[name], of_marginals = _gene_sums(model, store, rows, seed, count)
                nll.setdefault(MARGINALS, of_marginals)
                done += len(rows)
            probabilities = predict_phenotypes(model, store, rows, seed=seed, on_progress=count)
            predicted[name] = {one: of_one.argmax(axis=1) for one, of_one in probabilities.items()}
            done += len(rows)
        finally:
            network.left_out = frozenset()
    predicted[MARGINALS] = {
        name: np.full(len(rows), np.argmax(model.reference.value_counts(slot, len(values))))
        for slot, (name, values) in enumerate(model.config.phenotypes.items())
    }
    draws = _Draws(
        len(rows), None if store.donors is None else np.asarray(store.donors[rows]), seed
    )
    genes = draws.compare(nll, n_masked, better="lower") if has_genes else {}
    accuracies: dict[str, dict[str, PartMetric]] = {name: {} for name in predicted}
    for phenotype, slot in model.config.predicted.items():
        truth = np.asarray(store.phenotype_codes[rows, slot])
        right = {name: of_all[phenotype] == truth for name, of_all in predicted.items()}
        if (truth >= 0).any():
            compared = draws.compare(right, truth >= 0, better="higher")
            for name, metric in compared.items():
                accuracies[name][phenotype] = metric
    return Parts(
        n_cells=len(rows),
        resampled="donors" if draws.is_of_donors else "cells",
        n_units=draws.n_units,
        scores={
            name: PartScores(genes.get(name), accuracies[name])
            for name in (MARGINALS, *reversed(variants))
        },
    )


def _gene_sums(
    model: CellModel, store: Store, rows: NDArray[np.int64], seed: int, on_progress: Listener
) -> tuple[_Floats, _Floats, _Floats]:
    """(cells,) each: masked genes, and their negative log-likelihood under the model and under the marginals."""
    reader, marginals = PanelReader(store, model.panel), Marginals.of(model)

    def batches() -> Iterator[CellBatch]:
        for number, some in row_batches(rows, _STAGE, on_progress):
            codes = np.asarray(store.phenotype_codes[some])
            rng = generator(seed, number, Stream.EVALUATION_MASKS)
            yield model.batches.masked(reader.read(some), codes, model.masking, rng)

    sums, first = np.zeros((3, len(rows))), 0
    for prediction in predict(model, batches()):
        cell, targets = first + prediction.cells.gene_cell, prediction.batch.gene_target
        constant = marginals.predict(prediction.batch)
        sums[0] += np.bincount(cell, minlength=len(rows))
        for row, output in ((1, prediction.output), (2, constant)):
            nll = negative_log_likelihood(output.gene_logits, targets, model.config)
            sums[row] += np.bincount(cell, nll.double().cpu().numpy(), len(rows))
        first += prediction.cells.n_cells
    return sums[0], sums[1], sums[2]


class _Draws:
    """Bootstrap draws of cells: of whole donors, where there are several."""

    def __init__(self, n_cells: int, donors: NDArray[np.integer[Any]] | None, seed: int) -> None:
        self._unit = np.arange(n_cells)
        self.is_of_donors = donors is not None and len(np.unique(donors)) > 1
        if donors is not None and self.is_of_donors:
            self._unit = np.unique(donors, return_inverse=True)[1]
        self.n_units = int(self._unit.max(initial=-1)) + 1
        fractions = np.full(self.n_units, 1 / max(self.n_units, 1))
        rng = generator(seed, Stream.BOOTSTRAP)
        self._weights = rng.multinomial(self.n_units, fractions, size=N_RESAMPLES).astype(
            np.float64
        )

    def compare(
        self,
        sums: Mapping[str, NDArray[Any]],
        counts: NDArray[Any],
        *,
        better: Literal["lower", "higher"],
    ) -> dict[str, PartMetric]:
        """Compare means, sums over (cells,) by counts, with that of the whole model."""
        n = np.bincount(self._unit, counts, self.n_units)
        means, drawn = {}, {}
        for name, of_cells in sums.items():
            of_units = np.bincount(self._unit, of_cells, self.n_units)
            with np.errstate(invalid="ignore", divide="ignore"):
                means[name] = float(of_units.sum() / n.sum())
                drawn[name] = (self._weights @ of_units) / (self._weights @ n)
        sign = 1.0 if better == "lower" else -1.0
        return {
            name: PartMetric(
                mean,
                _interval(drawn[name]),
                None
                if name == WHOLE
                else Difference(
                    sign * (mean - means[WHOLE]), _interval(sign * (drawn[name] - drawn[WHOLE]))
                ),
            )
            for name, mean in means.items()
        }


def _interval(drawn: _Floats) -> tuple[float, float]:
    drawn = drawn[np.isfinite(drawn)]  # not of a draw without any labelled cell
    return interval_of(drawn) if len(drawn) else (math.nan, math.nan)
