"""Losses and accuracies under masks: genes and phenotypes masked as in training, or at fixed mask rates.

Masks come from a seed, so the same cells give the same numbers every time.

At a fixed rate the masked genes of a cell follow from the seed, the rate and the cell's row in the store:
neither other cells nor the batch size change a mask. All phenotypes are masked too. In the ranked layout
one pass through the network predicts both. In the expressed layout a masked token would reveal that its
gene is probably expressed: there phenotypes are predicted with the masked genes left out, and genes as in
training, with masks that are drawn per batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from core.cells.store import Store
from core.encoding.cell_batch import CellBatch
from core.encoding.masking import Show
from core.encoding.panel_cells import PanelReader
from core.evaluation.gene_scores import GeneScores
from core.evaluation.predict import (
    BATCH_SIZE,
    Probabilities,
    join_probabilities,
    phenotype_probabilities,
    predict,
    row_batches,
)
from core.model.folder import CellModel
from core.model.gene_outputs import predict_genes
from core.model.losses import masked_loss
from core.presets.schema import LossSettings, MaskingSettings
from core.progress import Listener, ignore_progress
from core.random_streams import Stream, generator

#: A little, as in BERT; half; nearly everything, as at the beginning of generation.
MASK_RATES = (0.15, 0.5, 0.9)


@dataclass(frozen=True)
class MaskedScores:
    """Scores under the masks of training; losses are in nats, means over masked positions.

    The accuracy is that of the predicted bin; for continuous models, of whether a gene is expressed.
    """

    loss: float
    gene_loss: float
    phenotype_loss: float
    gene_accuracy: float
    #: Accuracy of the most common training bin of each gene.
    gene_baseline: float
    #: Masked genes.
    n_genes: int


def evaluate_masked(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    loss: LossSettings,
    *,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    class_weights: torch.Tensor | None = None,
    on_progress: Listener = ignore_progress,
) -> MaskedScores:
    """Score a model under static masks drawn at the rates of its training.

    A classifier's genes are all visible. The model is left in evaluation mode.
    """
    config, masking = model.config, model.masking
    if config.classified is not None:
        masking = masking.model_copy(update={"genes": 0.0})
    offsets = np.cumsum([0, *config.phenotype_sizes])
    common = model.reference.bin_counts.argmax(axis=1)
    reader = PanelReader(store, model.panel)

    def batches() -> Iterator[CellBatch]:
        for number, some in row_batches(rows, batch_size, "scoring masked genes", on_progress):
            codes = np.asarray(store.phenotype_codes[some])
            rng = generator(seed, number, Stream.EVALUATION_MASKS)
            yield model.batches.masked(reader.read(some), codes, masking, rng)

    totals, weights = np.zeros(2), np.zeros(2)  # of genes and of phenotypes
    n_right = n_baseline_right = n_genes = 0
    for prediction in predict(model, batches()):
        cells, batch, output = prediction.cells, prediction.batch, prediction.output
        parts = masked_loss(
            output.gene_logits, output.phenotype_logits, batch, config, loss, class_weights
        )
        # The weight of a batch is what its means were taken over, so that batches of any size add up.
        targets = offsets[cells.phenotype_slot] + cells.phenotype_target
        weight = np.array(
            [
                len(np.unique(cells.gene_cell)) if loss.weighting == "rate" else len(cells.gene),
                len(targets) if class_weights is None else class_weights[targets].sum().item(),
            ]
        )
        totals += weight * np.array([parts.genes.item(), parts.phenotypes.item()])
        weights += weight
        truth = cells.gene_target
        if config.kind == "continuous":
            predicted = (output.gene_logits[:, 0] > 0).long()  # the logit of "expressed"
            truth = (truth > 0).astype(np.int64)
        else:
            predicted = predict_genes(output.gene_logits, config)
        n_right += int((predicted.cpu().numpy() == truth).sum())
        n_baseline_right += int((common[cells.gene] == truth).sum())
        n_genes += len(truth)
    gene_loss, phenotype_loss = (totals / np.maximum(weights, 1e-9)).tolist()
    return MaskedScores(
        loss=gene_loss + loss.phenotype_weight * phenotype_loss,
        gene_loss=gene_loss,
        phenotype_loss=phenotype_loss,
        gene_accuracy=n_right / max(n_genes, 1),
        gene_baseline=n_baseline_right / max(n_genes, 1),
        n_genes=n_genes,
    )


def draw_static_mask(
    rows: NDArray[np.int64], n_genes: int, rate: float, *, seed: int
) -> NDArray[np.bool_]:
    """(cells, genes), True where masked: ``rate`` of the genes of each row of the store, rounded."""
    n_masked = round(rate * n_genes)
    mask = np.zeros((len(rows), n_genes), dtype=bool)
    for number, row in enumerate(rows.tolist()):
        rng = generator(seed, Stream.HIDDEN_GENES, round(1000 * rate), row)
        mask[number, rng.permutation(n_genes)[:n_masked]] = True
    return mask


def evaluate_at_rate(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    rate: float,
    *,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> tuple[Probabilities, GeneScores]:
    """Mask a fraction of the genes and all phenotypes, and predict both.

    Returns
    -------
    phenotype -> (cells, values) probabilities, and the scores of the masked genes (empty for a
    classifier).
    """
    stage = f"{100 * rate:.0f} % of the genes masked"

    def batches() -> Iterator[CellBatch]:
        for number, some in row_batches(rows, batch_size, stage, on_progress):
            rng = generator(seed, number, Stream.MASK_RATE_BATCH, round(1000 * rate))
            yield from _batches_at_rate(model, store, some, rate, seed, rng)

    parts: list[Probabilities] = []
    genes = GeneScores(model, rate)
    has_genes = model.config.classified is None
    alternates = has_genes and model.config.layout != "ranked"  # phenotypes, genes, phenotypes, ...
    for number, prediction in enumerate(predict(model, batches())):
        if not alternates or number % 2 == 0:
            parts.append(phenotype_probabilities(model, prediction))
        if has_genes and (not alternates or number % 2 == 1):
            genes.add(
                prediction.output.gene_logits, prediction.cells.gene, prediction.batch.gene_target
            )
    return join_probabilities(model, parts), genes


def _batches_at_rate(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    rate: float,
    seed: int,
    rng: np.random.Generator,
) -> Iterator[CellBatch]:
    """Give the batch of the phenotypes, and that of the genes where it is another one."""
    names = list(model.config.phenotypes)
    expression = store.read(rows, model.panel)
    mask = draw_static_mask(rows, len(model.panel), rate, seed=seed)
    # A code of 0 masks a phenotype whose label is missing; the model does not see it.
    codes = np.zeros((len(rows), len(names)), dtype=np.int32)
    if model.config.layout == "ranked":
        states = np.full(codes.shape, Show.MASKED, dtype=np.int8)
        yield model.batches.ranked(expression.toarray(), codes, states, mask)
        return
    shown = sparse.csr_matrix(expression.multiply(~mask))
    shown.eliminate_zeros()
    yield model.batches.visible(shown, codes, names, rng)
    if model.config.classified is None:
        masking = MaskingSettings(
            genes=rate, phenotypes=1.0, unspecified=0.0, unexpressed=model.masking.unexpressed
        )
        yield model.batches.masked(expression, codes, masking, rng)
