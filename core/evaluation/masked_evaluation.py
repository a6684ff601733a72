"""A model held against cells with known answers: masked loss, masked genes, hidden phenotypes.

Masks come from a seed, so the same cells give the same figures every time. Two questions:

- as in training, genes and phenotypes hidden at the training's rates: loss, and how often a masked
  gene's bin is right, beside always answering the gene's most common bin;
- all genes visible and all phenotypes hidden: what the model says of each phenotype.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from core.cells.store import Store
from core.encoding.panel_cells import PanelReader
from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel
from core.model.gene_outputs import predict_genes
from core.model.losses import masked_loss
from core.presets.schema import LossSettings
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

__all__ = ["MaskedScores", "evaluate_masked", "predict_phenotypes"]


@dataclass(frozen=True)
class MaskedScores:
    """Scores under the training's masks.

    Attributes
    ----------
    loss, gene_loss, phenotype_loss
        Means over masked positions, in nats, of the preset's own loss; a classifier's of cells with
        every gene visible.
    gene_accuracy
        Share of masked genes whose bin is told rightly; continuous models: whether expressed.
    gene_baseline
        The same for always answering the gene's most common training bin.
    n_genes
        Masked genes scored.
    """

    loss: float
    gene_loss: float
    phenotype_loss: float
    gene_accuracy: float
    gene_baseline: float
    n_genes: int


def _device(model: CellModel) -> torch.device:
    return next(model.network.parameters()).device


def _row_batches(
    rows: NDArray[np.int64], batch_size: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for number, start in enumerate(range(0, len(rows), batch_size)):
        yield number, rows[start : start + batch_size]


@torch.inference_mode()
def evaluate_masked(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    loss: LossSettings,
    *,
    batch_size: int = 64,
    seed: int = 0,
    class_weights: torch.Tensor | None = None,
    on_progress: Listener = ignore_progress,
) -> MaskedScores:
    """Score a model under static masks drawn at its training's rates.

    Parameters
    ----------
    model
        Put into evaluation mode here and left so.
    store, rows
        The cells.
    loss
        The loss to report.
    seed
        Of the masks.
    """
    model.network.eval()
    batches, config, device = model.batches, model.config, _device(model)
    offsets = np.cumsum([0, *config.phenotype_sizes])
    totals, weights = np.zeros(2), np.zeros(2)  # of genes and of phenotypes
    gene_hits = baseline_hits = n_genes = 0
    common = model.reference.bin_counts.argmax(axis=1)
    reader = PanelReader(store, model.panel)
    masking = model.masking
    if config.classified is not None:
        masking = masking.model_copy(update={"genes": 0.0})
    for number, some in _row_batches(rows, batch_size):
        rng = generator(seed, number, Stream.EVALUATION_MASKS)
        arrays = batches.masked(
            reader.read(some), np.asarray(store.phenotype_codes[some]), masking, rng
        )
        batch = BatchTensors.from_arrays(arrays, device)
        output = model.network(batch)
        parts = masked_loss(
            output.gene_logits, output.phenotype_logits, batch, config, loss, class_weights
        )
        # A batch weighs what its means were taken over, so that batches of any size add up.
        answers = offsets[arrays.phenotype_slot] + arrays.phenotype_target
        weight = np.array(
            [
                len(np.unique(arrays.gene_cell)) if loss.weighting == "rate" else len(arrays.gene),
                len(answers) if class_weights is None else class_weights[answers].sum().item(),
            ]
        )
        totals += weight * np.array([parts.genes.item(), parts.phenotypes.item()])
        weights += weight
        truth, guess = arrays.gene_target, common[arrays.gene]
        if config.kind == "continuous":
            said = (output.gene_logits[:, 0] > 0).long()  # a logit: is it on?
            truth = (truth > 0).astype(np.int64)
        else:
            said = predict_genes(output.gene_logits, config)
        gene_hits += int((said.cpu().numpy() == truth).sum())
        baseline_hits += int((guess == truth).sum())
        n_genes += len(truth)
        on_progress(
            ProgressEvent(
                "scoring masked genes", min((number + 1) * batch_size, len(rows)), len(rows)
            )
        )
    gene_loss, phenotype_loss = (totals / np.maximum(weights, 1e-9)).tolist()
    return MaskedScores(
        loss=gene_loss + loss.phenotype_weight * phenotype_loss,
        gene_loss=gene_loss,
        phenotype_loss=phenotype_loss,
        gene_accuracy=gene_hits / max(n_genes, 1),
        gene_baseline=baseline_hits / max(n_genes, 1),
        n_genes=n_genes,
    )


@torch.inference_mode()
def predict_phenotypes(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    *,
    batch_size: int = 64,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> dict[str, NDArray[np.float32]]:
    """Ask for every phenotype that the model answers, all genes visible and all phenotypes hidden.

    Returns
    -------
    phenotype -> (cells, values) probabilities.
    """
    model.network.eval()
    batches, device = model.batches, _device(model)
    names, asked = list(model.config.phenotypes), model.config.answered
    reader = PanelReader(store, model.panel)
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in asked}
    for number, some in _row_batches(rows, batch_size):
        rng = generator(seed, number, Stream.VISIBLE_GENES)
        # Codes are hidden from the model; zeros make every slot a question, label or not.
        nothing = np.zeros((len(some), len(names)), dtype=np.int32)
        arrays = batches.visible(reader.read(some), nothing, names, rng)
        batch = BatchTensors.from_arrays(arrays, device)
        logits = model.network(batch).phenotype_logits
        for name, slot in asked.items():
            probability = model.network.phenotype_probabilities(
                logits[batch.phenotype_slot == slot], slot
            )
            parts[name].append(probability.float().cpu().numpy())
        on_progress(
            ProgressEvent(
                "predicting phenotypes", min((number + 1) * batch_size, len(rows)), len(rows)
            )
        )
    return {name: np.concatenate(found) for name, found in parts.items() if found}
