"""From logits to losses, one value per masked position, and to predictions of genes.

Binary and binned models predict bins, continuous ones log1p counts per 10,000.

Each function is held against a written-out float64 reference in the tests. `masked_loss` puts them
together as a preset requests. Where a step is cut into parts, each part's sums are divided by the
`LossCounts` of the whole step, so that the parts' losses, and their gradients, add up to the step's.

Masked training has no target at [CLS], so that its state represents little of the cell. Two optional
objectives change that, in training alone. Reconstruction: the last state of [CLS] predicts every gene of
the cell, visible and masked. Contrast: a cell enters a step twice, masked differently; the two states of
[CLS] are to be nearer to each other than to those of other cells (InfoNCE; van den Oord et al. 2018,
SimCLR, Chen et al. 2020).

Shapes: M masked positions, C classes; B cells, T tokens, R output positions, D width, G genes, O outputs
per gene.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from core.encoding.cell_batch import CellBatch
from core.model.batch_tensors import BatchTensors, CellBounds, OutputPositions
from core.model.configuration import TfxConfig
from core.presets.schema import LossSettings

#: Bounds of the predicted log standard deviation, in log1p units: a narrower one would let single
#: cells dominate the loss.
LOG_DEVIATION_BOUNDS = (-3.0, 2.0)


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with label smoothing over the classes whose logit is finite: (M,), nats.

    ``logits`` (M, C) are -inf at impossible classes; ``smoothing`` is the probability mass spread evenly
    over the possible ones (Szegedy et al. 2016).
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
    """Ordinal cross-entropy: a near bin costs less than a far one (Transformerics): (M,), nats.

    ``width`` is the standard deviation of the target distribution, in bins, cut to those whose logit is
    finite. The least possible loss is the entropy of the targets, not zero.
    """
    possible = torch.isfinite(logits)
    wanted = gaussian_targets(logits.shape[-1], width).to(logits.device)[targets] * possible
    log_probability = torch.log_softmax(logits.float(), dim=-1).masked_fill(~possible, 0.0)
    return -(wanted / wanted.sum(-1, keepdim=True) * log_probability).sum(-1)


def hurdle_regression(outputs: Tensor, targets: Tensor) -> Tensor:
    """Regression of values that are often exactly zero, a hurdle and then a Gaussian: (M,), nats.

    -log P(expressed or not), and where expressed the Gaussian's negative log density. ``outputs`` (M, 3)
    are the logit of "expressed", and mean and log standard deviation of the value where expressed;
    ``targets`` (M,) are log1p counts per 10,000, 0 where not expressed.
    """
    expressed_logit, mean, log_deviation = outputs.float().unbind(-1)
    expressed = (targets > 0).float()
    hurdle = functional.binary_cross_entropy_with_logits(
        expressed_logit, expressed, reduction="none"
    )
    log_deviation = log_deviation.clamp(*LOG_DEVIATION_BOUNDS)
    squared = ((targets - mean) * torch.exp(-log_deviation)) ** 2
    density = 0.5 * squared + log_deviation + 0.5 * math.log(2 * math.pi)
    return hurdle + expressed * density


@dataclass(frozen=True)
class LossCounts:
    """The divisors of a loss, known on the host before anything is computed."""

    #: Masked genes; with ``loss.weighting = "rate"`` the cells that have any.
    genes: float
    #: Masked phenotypes, or the sum of their class weights.
    phenotypes: float
    #: All cells.
    cells: float = 0.0

    @classmethod
    def of(
        cls, batch: CellBatch, config: TfxConfig, settings: LossSettings, weights: Tensor | None
    ) -> "LossCounts":
        """Count the targets of a batch; ``weights`` are the class weights, on the host."""
        n_genes = len(batch.gene)
        if settings.weighting == "rate":
            n_genes = len(np.unique(batch.gene_cell))
        phenotypes = float(len(batch.phenotype_target))
        if weights is not None:
            offsets = np.cumsum([0, *config.phenotype_sizes[:-1]])
            targets = offsets[batch.phenotype_slot] + batch.phenotype_target
            phenotypes = weights[torch.from_numpy(targets)].sum().item()
        return cls(float(n_genes), phenotypes, float(batch.n_cells))


@dataclass(frozen=True)
class LossParts:
    """The loss of a batch and its parts, scalars."""

    #: With a gradient.
    total: Tensor
    #: Mean per masked gene and per masked phenotype; zero where none is masked.
    genes: Tensor
    phenotypes: Tensor


def loss_kind(settings: LossSettings, encoding: str) -> str:
    """Return the gene loss of a preset for an encoding ("auto" resolved)."""
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

    ``gene_logits`` are (M, outputs), ``phenotype_logits`` (K, all phenotype values), with a joint head
    (K, bins + all values), ``class_weights`` (all phenotype values,). ``counts`` are those of the step
    that the batch is a part of; None: the batch is the whole step.
    """
    gene_loss = token_losses(gene_logits, batch.gene_target, config, settings)
    genes = _average(gene_loss, batch, settings, counts)
    phenotype_loss = phenotype_losses(phenotype_logits, batch, config, settings)
    weights = None
    if class_weights is not None:
        weights = class_weights[_phenotype_targets(batch, config)]
    if weights is None:
        n_phenotypes = len(phenotype_loss) if counts is None else counts.phenotypes
        phenotypes = phenotype_loss.sum() / max(n_phenotypes, 1)
    else:
        total = weights.sum().clamp(min=1e-9) if counts is None else max(counts.phenotypes, 1e-9)
        phenotypes = (phenotype_loss * weights).sum() / total
    return LossParts(genes + settings.phenotype_weight * phenotypes, genes, phenotypes)


def phenotype_losses(
    logits: Tensor, batch: BatchTensors, config: TfxConfig, settings: LossSettings
) -> Tensor:
    """Return (K,), the loss of each masked phenotype, from logits as of `masked_loss`."""
    targets, is_joint = _phenotype_targets(batch, config), config.head == "joint"
    return smoothed_cross_entropy(
        logits,
        targets + config.n_bins if is_joint else targets,
        settings.smoothing if is_joint else settings.phenotype_smoothing,
    )


def _phenotype_targets(batch: BatchTensors, config: TfxConfig) -> Tensor:
    """(K,), the true values, numbered over all phenotypes."""
    slots = batch.phenotype_slot
    offsets = slots.new_tensor([0, *config.phenotype_sizes[:-1]], dtype=torch.long)
    return offsets.cumsum(0)[slots] + batch.phenotype_target


def token_losses(
    logits: Tensor, targets: Tensor, config: TfxConfig, settings: LossSettings
) -> Tensor:
    """Return (M,), the loss of each masked gene: (M, outputs) against (M,) targets."""
    kind = loss_kind(settings, config.kind)
    if config.head == "joint" or kind == "label_smoothing":
        return smoothed_cross_entropy(logits, targets, settings.smoothing)
    if kind == "bce":
        return functional.binary_cross_entropy_with_logits(
            logits.float().squeeze(-1), targets.float(), reduction="none"
        )
    if kind == "gaussian":
        return gaussian_cross_entropy(logits, targets, settings.gaussian_width)
    return hurdle_regression(logits, targets)


def _average(
    loss: Tensor, batch: BatchTensors, settings: LossSettings, counts: LossCounts | None
) -> Tensor:
    """Average over masked genes, or over cells each cell's own mean (the 1/t bound)."""
    if len(loss) == 0:
        return loss.sum()
    if settings.weighting == "mean":
        return loss.mean() if counts is None else loss.sum() / counts.genes
    count = torch.zeros(batch.n_cells, device=loss.device).index_add(
        0, batch.gene_cell, torch.ones_like(loss)
    )
    per_cell = loss / count[batch.gene_cell]
    return per_cell.sum() / ((count > 0).sum() if counts is None else counts.genes)


# -- predictions
def bin_logits(logits: Tensor, config: TfxConfig) -> Tensor:
    """Return (M, bins) float32 logits of a binary or binned model, whatever its head."""
    logits = logits.float()
    if config.head == "joint":
        return logits[:, : config.n_bins]
    if config.kind == "binary":
        return torch.cat([torch.zeros_like(logits), logits], dim=-1)
    return logits


def predict_genes(logits: Tensor, config: TfxConfig) -> Tensor:
    """Return (M,): the most likely bin (int64), or the expected value of a continuous model."""
    if config.kind == "continuous":
        expressed_logit, mean, _ = logits.float().unbind(-1)
        return torch.sigmoid(expressed_logit) * mean
    return bin_logits(logits, config).argmax(-1)


def expected_values(logits: Tensor, config: TfxConfig, means: Tensor) -> Tensor:
    """Return (M,) expected values, log1p counts per 10,000, of binary models too.

    ``means`` (M, bins) is the mean training value of each bin of each gene; continuous models do not
    use it.
    """
    if config.kind == "continuous":
        return predict_genes(logits, config).clamp(min=0.0)
    return (torch.softmax(bin_logits(logits, config), dim=-1) * means).sum(-1)


def sample_genes(
    logits: Tensor, config: TfxConfig, *, temperature: float, uniform: Tensor, normal: Tensor
) -> Tensor:
    """Draw a value for each masked gene: (M,) bins (int64), or values >= 0 of a continuous model.

    A ``temperature`` below 1 sharpens. ``uniform``, in [0, 1), and ``normal``, standard normal, are (M,)
    numbers of the caller, so that a cell's draws do not depend on its batch.
    """
    if config.kind == "continuous":
        expressed_logit, mean, log_deviation = logits.float().unbind(-1)
        expressed = uniform < torch.sigmoid(expressed_logit / temperature)
        deviation = torch.exp(log_deviation.clamp(*LOG_DEVIATION_BOUNDS)) * temperature
        return torch.where(
            expressed, (mean + deviation * normal).clamp(min=0.0), torch.zeros_like(mean)
        )
    # By the inverse distribution function in float32 (float32 Gumbel draws lose diversity).
    probability = torch.softmax(bin_logits(logits, config) / temperature, dim=-1)
    cumulative = probability.cumsum(-1)
    drawn = (uniform.unsqueeze(-1) * cumulative[:, -1:] >= cumulative).sum(-1)
    return drawn.clamp(max=probability.shape[-1] - 1)


# -- optional objectives of [CLS]

#: Maskings of a cell in one step, where they are contrasted: neighbours in the batch.
VIEWS = 2
_TEMPERATURE = 0.1  # SimCLR's
_PROJECTED = 64


class ClsOutputs(NamedTuple):
    """Outputs of the heads of [CLS]."""

    #: (T, O), predictions of the gene at each token, meaningless at other tokens; None without
    #: reconstruction.
    genes: Tensor | None
    #: (B, `_PROJECTED`), of length 1; None without contrast.
    projected: Tensor | None


class CellHeads(nn.Module):
    """Heads that read [CLS], for training alone."""

    def __init__(self, config: TfxConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.n_outputs = config.n_bins if config.head == "joint" else config.n_gene_outputs
        self.n_genes, self.first_gene = config.n_genes, config.tokens.first_gene
        self.decoder = (
            nn.Linear(width, config.n_genes * self.n_outputs) if config.cls_reconstruction else None
        )
        self.projector = (
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, _PROJECTED))
            if config.cls_contrast
            else None
        )

    def forward(self, cls_BD: Tensor, batch: BatchTensors) -> ClsOutputs:
        """Read the states of [CLS]."""
        genes = projected = None
        if self.decoder is not None:
            gene = (batch.token_id - self.first_gene).clamp(min=0)
            every = self.decoder(cls_BD).view(-1, self.n_outputs)  # (B x G, O)
            genes = every[batch.cell_of_token * self.n_genes + gene]
        if self.projector is not None:
            projected = functional.normalize(self.projector(cls_BD).float(), dim=-1)
        return ClsOutputs(genes, projected)


def outputs_with_cls(batch: BatchTensors) -> tuple[OutputPositions, Tensor, Tensor]:
    """Add [CLS] of every cell to the output positions of a batch.

    Returns the positions, the places of the former ones among them, (R,), and of [CLS], (B,).
    """
    n_cells, n_outputs = batch.n_cells, len(batch.output_position)
    per_cell = batch.cu_outputs.diff().long()
    cell = torch.repeat_interleave(per_cell, output_size=n_outputs)
    former = torch.arange(n_outputs, device=cell.device) + cell + 1
    cu_outputs = batch.cu_outputs + torch.arange(n_cells + 1, device=cell.device, dtype=torch.int32)
    at_cls = cu_outputs[:-1].long()
    position = batch.output_position.new_empty(n_outputs + n_cells)
    position[former] = batch.output_position
    position[at_cls] = batch.cu_seqlens[:-1].long()
    on_host = (batch.output_bounds + np.arange(n_cells + 1)).astype(np.int32)
    bounds = CellBounds(batch.token_bounds, on_host, batch.cu_seqlens, cu_outputs)
    return OutputPositions(position, bounds), former, at_cls


def cell_loss(
    outputs: ClsOutputs | None,
    batch: BatchTensors,
    config: TfxConfig,
    settings: LossSettings,
    counts: LossCounts | None = None,
) -> Tensor:
    """Compute the weighted loss of the objectives of [CLS]; 0 without outputs of its heads.

    ``counts`` are those of the step that the batch is a part of; None: the batch is the whole step.
    Contrast is among the cells of one part of a step (``train.virtual_ranks``, ``train.micro_batches``).
    """
    total = torch.zeros((), device=batch.token_id.device)
    if outputs is None:
        return total
    n_cells = max(batch.n_cells if counts is None else counts.cells, 1)
    if outputs.genes is not None:
        loss = _reconstruction(outputs.genes, batch, config, settings) / n_cells
        total = total + settings.cls_reconstruction * loss
    if outputs.projected is not None:
        total = total + settings.cls_contrast * (_contrast(outputs.projected) / n_cells)
    return total


def _reconstruction(
    predicted: Tensor, batch: BatchTensors, config: TfxConfig, settings: LossSettings
) -> Tensor:
    """Sum over cells of each one's mean over its genes."""
    tokens = config.tokens
    at_gene = batch.token_id >= tokens.first_gene
    if config.kind == "continuous":
        targets = batch.continuous.clone()
    else:
        targets = torch.where(at_gene, batch.value - tokens.first_bin, 0).clamp(min=0)
    targets[batch.gene_position] = batch.gene_target.to(targets.dtype)
    is_known = at_gene & (batch.value >= tokens.first_bin)
    is_gene = is_known.float().index_fill(0, batch.gene_position, 1.0)
    loss = token_losses(predicted.float(), targets, config, settings) * is_gene
    sums = torch.zeros(2, batch.n_cells, device=loss.device)
    sums = sums.index_add(1, batch.cell_of_token, torch.stack([loss, is_gene]))
    return (sums[0] / sums[1].clamp(min=1)).sum()


def _contrast(projected: Tensor) -> Tensor:
    """Sum over cells, each of which is next to its other masking."""
    n_cells = len(projected)
    if n_cells <= VIEWS:
        return projected.sum() * 0.0  # there is no other cell
    itself = torch.eye(n_cells, dtype=torch.bool, device=projected.device)
    alike = (projected @ projected.T / _TEMPERATURE).masked_fill(itself, float("-inf"))
    other_view = torch.arange(n_cells, device=projected.device) ^ 1
    return functional.cross_entropy(alike, other_view, reduction="sum")
