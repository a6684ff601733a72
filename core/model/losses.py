"""Losses, one value per masked position: binary, smoothed, ordinal, and regression.

Shapes: M masked positions, C classes. Each function is held against a written-out float64
reference in the tests. `masked_loss` puts them together as a preset asks. Where a step is cut into
parts, each part's sums are divided by what `LossCounts` counts over the whole step, so that the
parts' losses, and their gradients, add up to the step's.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from core.encoding.cell_batch import CellBatch
from core.model.batch_tensors import BatchTensors
from core.model.configuration import TfxConfig
from core.presets.schema import LossSettings

__all__ = [
    "LossCounts",
    "LossParts",
    "gaussian_cross_entropy",
    "gaussian_targets",
    "hurdle_regression",
    "loss_kind",
    "masked_loss",
    "smoothed_cross_entropy",
    "token_losses",
]

#: Bounds of the predicted log standard deviation, in log1p units: a narrower one would let single
#: cells dominate the loss.
LOG_DEVIATION_BOUNDS = (-3.0, 2.0)


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with label smoothing over the classes whose logit is finite.

    Parameters
    ----------
    logits
        (M, C); -inf marks classes that are no answer to this question.
    targets
        (M,), int64.
    smoothing
        Probability mass spread evenly over the possible classes (Szegedy et al. 2016).

    Returns
    -------
    (M,), nats.
    """
    log_probability = torch.log_softmax(logits.float(), dim=-1)
    loss = -log_probability.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    if smoothing == 0.0:
        return loss
    possible = torch.isfinite(logits)
    spread = -log_probability.masked_fill(~possible, 0.0).sum(-1) / possible.sum(-1)
    return (1 - smoothing) * loss + smoothing * spread


def gaussian_targets(n_bins: int, width: float) -> Tensor:
    """Return (bins, bins): row t is the target distribution of bin t, a Gaussian cut to the bins.

    q(j | t) is proportional to exp(-(j - t)^2 / (2 width^2)).
    """
    bins = torch.arange(n_bins, dtype=torch.float32)
    return torch.softmax(-((bins[None] - bins[:, None]) ** 2) / (2 * width**2), dim=-1)


def gaussian_cross_entropy(logits: Tensor, targets: Tensor, width: float) -> Tensor:
    """Ordinal cross-entropy: a near bin costs less than a far one (Transformerics).

    Parameters
    ----------
    logits
        (M, bins).
    targets
        (M,), int64.
    width
        Standard deviation of the target distribution, in bins.

    Returns
    -------
    (M,), nats; its floor is the entropy of the targets, not zero.
    """
    table = gaussian_targets(logits.shape[-1], width).to(logits.device)
    return -(table[targets] * torch.log_softmax(logits.float(), dim=-1)).sum(-1)


def hurdle_regression(outputs: Tensor, targets: Tensor) -> Tensor:
    """Regression of values that are often exactly zero: a hurdle, then a Gaussian.

    Parameters
    ----------
    outputs
        (M, 3): logit of "expressed"; mean and log standard deviation of the value where expressed.
    targets
        (M,), log1p counts per 10,000; 0 where not expressed.

    Returns
    -------
    (M,), nats: -log P(expressed or not), and where expressed the Gaussian's negative log density.
    """
    on_logit, mean, log_deviation = outputs.float().unbind(-1)
    expressed = (targets > 0).float()
    hurdle = functional.binary_cross_entropy_with_logits(on_logit, expressed, reduction="none")
    log_deviation = log_deviation.clamp(*LOG_DEVIATION_BOUNDS)
    squared = ((targets - mean) * torch.exp(-log_deviation)) ** 2
    density = 0.5 * squared + log_deviation + 0.5 * math.log(2 * math.pi)
    return hurdle + expressed * density


@dataclass(frozen=True)
class LossCounts:
    """What the sums of a loss are divided by, known on the host before anything is computed.

    Attributes
    ----------
    genes
        Masked genes; with ``loss.weighting = "rate"`` the cells that have any.
    phenotypes
        Masked phenotypes, or the sum of their class weights.
    cells
        All of them.
    """

    genes: float
    phenotypes: float
    cells: float = 0.0

    @classmethod
    def of(
        cls, batch: CellBatch, config: TfxConfig, settings: LossSettings, weights: Tensor | None
    ) -> "LossCounts":
        """Count the answers of a batch; ``weights`` are the class weights, on the host."""
        n_genes = len(batch.gene)
        if settings.weighting == "rate":
            n_genes = len(np.unique(batch.gene_cell))
        phenotypes = float(len(batch.phenotype_target))
        if weights is not None:
            offsets = np.cumsum([0, *config.phenotype_sizes[:-1]])
            answers = offsets[batch.phenotype_slot] + batch.phenotype_target
            phenotypes = weights[torch.from_numpy(answers)].sum().item()
        return cls(float(n_genes), phenotypes, float(batch.n_cells))


@dataclass(frozen=True)
class LossParts:
    """The loss of a batch and what it is made of.

    Attributes
    ----------
    total
        Scalar with a gradient.
    genes, phenotypes
        Scalars, mean per masked gene and per masked phenotype; zero where none is masked.
    """

    total: Tensor
    genes: Tensor
    phenotypes: Tensor


def loss_kind(settings: LossSettings, encoding: str) -> str:
    """Return the gene loss that a preset means for an encoding ("auto" resolved)."""
    if settings.kind != "auto":
        return settings.kind
    return {"binary": "bce", "binned": "label_smoothing", "continuous": "regression"}[encoding]


def masked_loss(
    gene_logits: Tensor,
    phenotype_logits: Tensor,
    batch: BatchTensors,
    config: TfxConfig,
    settings: LossSettings,
    class_weights: Tensor | None = None,
    counts: LossCounts | None = None,
) -> LossParts:
    """Compute the loss of a batch from the logits at its masked positions.

    Parameters
    ----------
    gene_logits
        (M, outputs).
    phenotype_logits
        (K, all phenotype values), or (K, bins + all values) with a joint head.
    batch
        The answers.
    config, settings
        What is asked, and at what price.
    class_weights
        (all phenotype values,), or None for equal weights.
    counts
        Of the step that the batch is a part of; None: the batch is the whole step.
    """
    gene_loss = token_losses(gene_logits, batch.gene_target, config, settings)
    offsets = phenotype_logits.new_tensor([0, *config.phenotype_sizes[:-1]], dtype=torch.long)
    answers = offsets.cumsum(0)[batch.phenotype_slot] + batch.phenotype_target
    weights = None if class_weights is None else class_weights[answers]
    if config.head == "joint":
        answers = answers + config.n_bins
    smoothing = settings.smoothing if config.head == "joint" else settings.phenotype_smoothing
    phenotype_loss = smoothed_cross_entropy(phenotype_logits, answers, smoothing)
    genes = _average(gene_loss, batch, settings, counts)
    if weights is None:
        phenotypes = phenotype_loss.sum() / max(
            len(phenotype_loss) if counts is None else counts.phenotypes, 1
        )
    else:
        total = weights.sum().clamp(min=1e-9) if counts is None else max(counts.phenotypes, 1e-9)
        phenotypes = (phenotype_loss * weights).sum() / total
    return LossParts(genes + settings.phenotype_weight * phenotypes, genes, phenotypes)


def token_losses(
    logits: Tensor, targets: Tensor, config: TfxConfig, settings: LossSettings
) -> Tensor:
    """Return (M,), the loss of each gene that is asked for: (M, outputs) against (M,) answers."""
    kind = loss_kind(settings, config.kind)
    if config.head == "joint":
        return smoothed_cross_entropy(logits, targets, settings.smoothing)
    if kind == "bce":
        return functional.binary_cross_entropy_with_logits(
            logits.float().squeeze(-1), targets.float(), reduction="none"
        )
    if kind == "label_smoothing":
        return smoothed_cross_entropy(logits, targets, settings.smoothing)
    if kind == "gaussian":
        return gaussian_cross_entropy(logits, targets, settings.gaussian_width)
    return hurdle_regression(logits, targets)


def _average(
    loss: Tensor, batch: BatchTensors, settings: LossSettings, counts: LossCounts | None
) -> Tensor:
    """Mean over masked genes, or over cells of each cell's own mean (the 1/t bound)."""
    if len(loss) == 0:
        return loss.sum()
    if settings.weighting == "mean":
        return loss.mean() if counts is None else loss.sum() / counts.genes
    count = torch.zeros(batch.n_cells, device=loss.device).index_add(
        0, batch.gene_cell, torch.ones_like(loss)
    )
    per_cell = loss / count[batch.gene_cell]
    return per_cell.sum() / ((count > 0).sum() if counts is None else counts.genes)
