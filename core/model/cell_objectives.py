"""Optional objectives of [CLS]: to represent the whole cell, and to look the same under two maskings of it.

Masked training has no target at [CLS], so that its state represents little of the cell. Two objectives change
that, in training alone:

- reconstruction: the last state of [CLS] alone predicts every gene of the cell, visible and masked: an
  autoencoder whose bottleneck is one vector;
- contrast: a cell enters a step twice, masked differently; the two states of [CLS] are to be nearer to
  each other than to those of other cells (InfoNCE; van den Oord et al. 2018, SimCLR, Chen et al. 2020).

Shapes: B cells, T tokens, R output positions, D width, G genes, O outputs per gene.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from core.model.batch_tensors import BatchTensors, CellBounds, OutputPositions
from core.model.configuration import TfxConfig
from core.model.losses import LossCounts, token_losses
from core.presets.schema import LossSettings

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
    is_gene = at_gene.float()
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
