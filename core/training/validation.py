"""What a run measures on its validation cells: metrics of the model, calibration, and constant baselines."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from core.evaluation.calibration import fit_calibration
from core.evaluation.masked_evaluation import evaluate_masked
from core.evaluation.metrics import score_phenotype
from core.evaluation.predict import predict_phenotypes
from core.progress import ProgressEvent
from core.random_streams import Stream, generator, sample_rows
from core.training.run_setup import RunSetup


def validation_metrics(setup: RunSetup, *, check_stop: Callable[[], object]) -> dict[str, float]:
    """Return the metrics of the same validation cells and masks every time; none without cells.

    The model is calibrated on these cells.
    """
    model, store, preset = setup.model, setup.cells.store, setup.preset
    rows = _validation_rows(setup)
    if len(rows) == 0:
        return {}

    def on_progress(_: ProgressEvent) -> None:
        check_stop()

    weights = setup.class_weights
    device = next(model.network.parameters()).device
    masked = evaluate_masked(
        model,
        store,
        rows,
        preset.loss,
        seed=preset.train.seed,
        class_weights=None if weights is None else weights.to(device),
        on_progress=on_progress,
    )
    metrics = {
        "loss": masked.loss,
        "score": masked.score,
        "loss/phenotypes": masked.phenotype_loss,
        **{f"gain/{name}": target.gain for name, target in masked.phenotype_targets.items()},
    }
    if masked.gene_target is not None:
        metrics["gain/genes"] = masked.gene_target.gain
    if model.config.classified is None:
        metrics |= {
            "loss/genes": masked.genes.loss,
            "acc/genes": masked.genes.accuracy,
            "acc/genes_baseline": masked.genes.baseline_accuracy,
        }
    model.calibration = {}  # of the weights at the evaluation before
    predicted = predict_phenotypes(model, store, rows, on_progress=on_progress)
    known = {
        name: np.asarray(store.phenotype_codes[rows, slot])
        for name, slot in model.config.predicted.items()
    }
    donors = None if store.donors is None else np.asarray(store.donors[rows])
    model.calibration = fit_calibration(known, predicted, donors, seed=preset.train.seed)
    for name, truth in known.items():
        scores = score_phenotype(truth, predicted[name].argmax(axis=1), store.phenotypes[name])
        if scores.n_cells:
            metrics[f"acc/{name}"] = scores.accuracy
            metrics[f"f1/{name}"] = scores.macro_f1
    return metrics


def majority_accuracies(setup: RunSetup) -> dict[str, float]:
    """Return the accuracy on the validation cells of always predicting a phenotype's most frequent training value."""
    store, rows, found = setup.cells.store, _validation_rows(setup), {}
    for name, slot in setup.model.config.predicted.items():
        truth = np.asarray(store.phenotype_codes[rows, slot])
        counts = setup.model.reference.value_counts(slot, len(store.phenotypes[name]))
        if (truth >= 0).any():
            found[name] = float((truth[truth >= 0] == np.argmax(counts)).mean())
    return found


def _validation_rows(setup: RunSetup) -> NDArray[np.int64]:
    settings = setup.preset.train
    rng = generator(settings.seed, Stream.VALIDATION_CELLS)
    return sample_rows(setup.cells.validation, settings.eval_cells, rng)
