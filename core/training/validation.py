"""The validation of a run: masked loss and accuracies of cells that it does not learn from."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from core.cells.store import Store
from core.evaluation.masked_evaluation import evaluate_masked
from core.evaluation.phenotype_metrics import score_phenotype
from core.evaluation.predict import predict_phenotypes
from core.model.folder import CellModel
from core.presets.schema import LossSettings, TrainSettings
from core.progress import ProgressEvent
from core.random_streams import Stream, generator

__all__ = ["Validation", "describe_accuracies"]


class Validation:
    """Scores a model on the same cells under the same masks, every time it is asked.

    Parameters
    ----------
    store, rows
        Validation cells, of which ``train.eval_cells`` are taken; there may be none.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        settings: TrainSettings,
        loss: LossSettings,
        class_weights: torch.Tensor | None,
    ) -> None:
        if len(rows) > settings.eval_cells:
            rng = generator(settings.seed, Stream.VALIDATION_CELLS)
            rows = np.sort(rng.choice(rows, settings.eval_cells, replace=False))
        self.store, self.rows, self.loss = store, rows, loss
        self.seed, self.class_weights = settings.seed, class_weights

    def figures(self, model: CellModel, *, look: Callable[[], None]) -> dict[str, float]:
        """Return the figures by metric name; none where there are no cells.

        Parameters
        ----------
        look
            Called between batches; what it raises ends the evaluation.
        """
        if len(self.rows) == 0:
            return {}

        def on_progress(_: ProgressEvent) -> None:
            look()

        masked = evaluate_masked(
            model,
            self.store,
            self.rows,
            self.loss,
            seed=self.seed,
            class_weights=self.class_weights,
            on_progress=on_progress,
        )
        figures = {
            "loss": masked.loss,
            "loss/phenotypes": masked.phenotype_loss,
        }
        if model.config.classified is None:
            figures |= {
                "loss/genes": masked.gene_loss,
                "acc/genes": masked.gene_accuracy,
                "acc/genes_baseline": masked.gene_baseline,
            }
        predicted = predict_phenotypes(model, self.store, self.rows, on_progress=on_progress)
        for name, slot in model.config.predicted.items():
            values = self.store.phenotypes[name]
            truth = np.asarray(self.store.phenotype_codes[self.rows, slot])
            scores = score_phenotype(truth, predicted[name].argmax(axis=1), values)
            if scores.n_cells:
                figures[f"acc/{name}"] = scores.accuracy
                figures[f"f1/{name}"] = scores.macro_f1
        return figures


def describe_accuracies(figures: dict[str, float]) -> str:
    """Return the accuracies in one line, for the narration."""
    return "  ".join(
        f"{name.removeprefix('acc/')} {value:.3f}"
        for name, value in figures.items()
        if name.startswith("acc/") and name != "acc/genes_baseline"
    )
