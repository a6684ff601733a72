"""The validation of a run: masked loss and accuracies of cells that it does not learn from."""

from collections.abc import Callable

import numpy as np

from core.evaluation.masked_evaluation import evaluate_masked
from core.evaluation.metrics import score_phenotype
from core.evaluation.predict import predict_phenotypes
from core.progress import ProgressEvent
from core.random_streams import Stream, generator
from core.training.run_setup import RunSetup


def validation_metrics(setup: RunSetup, *, check_stop: Callable[[], None]) -> dict[str, float]:
    """Score the model of a run: the same cells, at most ``train.eval_cells``, and masks every time.

    Returns metrics by name; none if there are no cells. ``check_stop`` is called between batches; an
    exception that it raises ends the evaluation.
    """
    model, store, preset = setup.model, setup.cells.store, setup.preset
    rows = setup.cells.validation
    if len(rows) == 0:
        return {}
    if len(rows) > preset.train.eval_cells:
        rng = generator(preset.train.seed, Stream.VALIDATION_CELLS)
        rows = np.sort(rng.choice(rows, preset.train.eval_cells, replace=False))

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
    metrics = {"loss": masked.loss, "loss/phenotypes": masked.phenotype_loss}
    if model.config.classified is None:
        metrics |= {
            "loss/genes": masked.gene_loss,
            "acc/genes": masked.gene_accuracy,
            "acc/genes_baseline": masked.gene_baseline,
        }
    predicted = predict_phenotypes(model, store, rows, on_progress=on_progress)
    for name, slot in model.config.predicted.items():
        truth = np.asarray(store.phenotype_codes[rows, slot])
        scores = score_phenotype(truth, predicted[name].argmax(axis=1), store.phenotypes[name])
        if scores.n_cells:
            metrics[f"acc/{name}"] = scores.accuracy
            metrics[f"f1/{name}"] = scores.macro_f1
    return metrics


def describe_accuracies(metrics: dict[str, float]) -> str:
    """Return the accuracies in one line, for the narration."""
    return "  ".join(
        f"{name.removeprefix('acc/')} {value:.3f}"
        for name, value in metrics.items()
        if name.startswith("acc/") and name != "acc/genes_baseline"
    )
