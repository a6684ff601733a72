"""What [CLS] learns besides: to hold the whole cell, and to look the same under two maskings of it.

Masked training asks nothing of [CLS], so that its state says little of the cell. Two optional
objectives, used while training alone:

- reconstruction: from the last state of [CLS], and nothing else, every gene of the cell is told, the
  visible and the masked ones: an autoencoder whose bottleneck is one vector;
- contrast: a cell enters a step twice, masked differently; the two states of [CLS] are to be nearer to
  each other than to those of other cells (InfoNCE; van den Oord et al. 2018, SimCLR, Chen et al. 2020).

Shapes: B cells, T tokens, D width, G genes, O outputs per gene.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from core.model.batch_tensors import BatchTensors
from core.model.configuration import TfxConfig
from core.model.encoder import Reads
from core.model.losses import LossCounts, token_losses
from core.presets.schema import LossSettings

__all__ = ["VIEWS", "CellHeads", "CellStates", "cell_loss", "reads_with_cls"]

#: Maskings of a cell in one step, where they are contrasted: neighbours in the batch.
VIEWS = 2
_TEMPERATURE = 0.1  # SimCLR's
_PROJECTED = 64


@dataclass(frozen=True)
class CellStates:
    """What the heads of [CLS] say.

    Attributes
    ----------
    genes
        (T, O), what is said of the gene at each token; of no meaning at other tokens. None without
        reconstruction.
    projected
        (B, `_PROJECTED`), of length 1. None without contrast.
    """

    genes: Tensor | None
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

    def forward(self, cls_BD: Tensor, batch: BatchTensors) -> CellStates:
        """Read the states of [CLS]."""
        genes = projected = None
        if self.decoder is not None:
            cell = torch.repeat_interleave(
                batch.cu_seqlens.diff().long(), output_size=len(batch.token_id)
            )
            gene = (batch.token_id - self.first_gene).clamp(min=0)
            every = self.decoder(cls_BD).view(-1, self.n_outputs)  # (B x G, O)
            genes = every[cell * self.n_genes + gene]
        if self.projector is not None:
            projected = functional.normalize(self.projector(cls_BD).float(), dim=-1)
        return CellStates(genes, projected)


def reads_with_cls(batch: BatchTensors) -> tuple[Reads, Tensor, Tensor]:
    """Add [CLS] of every cell to the positions that a batch reads.

    Returns
    -------
    The positions; where among them the former ones stand, (R,), and the cells' [CLS], (B,).
    """
    n_cells, n_reads = batch.n_cells, len(batch.output_position)
    per_cell = batch.cu_outputs.diff().long()
    cell = torch.repeat_interleave(per_cell, output_size=n_reads)
    former = torch.arange(n_reads, device=cell.device) + cell + 1
    numbers = torch.arange(n_cells + 1, device=cell.device, dtype=torch.int32)
    bounds = batch.cu_outputs + numbers
    at_cls = bounds[:-1].long()
    position = batch.output_position.new_empty(n_reads + n_cells)
    position[former] = batch.output_position
    position[at_cls] = batch.cu_seqlens[:-1].long()
    on_host = (batch.output_bounds + np.arange(n_cells + 1)).astype(np.int32)
    return Reads(position, on_host, bounds), former, at_cls


def cell_loss(
    states: CellStates | None,
    batch: BatchTensors,
    config: TfxConfig,
    settings: LossSettings,
    counts: LossCounts | None = None,
) -> Tensor:
    """Compute the weighted loss of what [CLS] is to learn; 0 where it is nothing.

    Parameters
    ----------
    states
        Of the model in training.
    batch
        The cells and the answers of their masked genes.
    config, settings
        What is asked, and at what price.
    counts
        Of the step that the batch is a part of; None: the batch is the whole step.

    Notes
    -----
    Contrast is among the cells of one part of a step (``train.virtual_ranks``, ``train.micro_batches``).
    """
    total = torch.zeros((), device=batch.token_id.device)
    if states is None:
        return total
    n_cells = batch.n_cells if counts is None else counts.cells
    if states.genes is not None:
        loss = _reconstruction(states.genes, batch, config, settings) / max(n_cells, 1)
        total = total + settings.cls_reconstruction * loss
    if states.projected is not None:
        loss = _contrast(states.projected) / max(n_cells, 1)
        total = total + settings.cls_contrast * loss
    return total


def _reconstruction(
    said: Tensor, batch: BatchTensors, config: TfxConfig, settings: LossSettings
) -> Tensor:
    """Sum over cells of each one's mean over its genes."""
    tokens = config.tokens
    at_gene = batch.token_id >= tokens.first_gene
    if config.kind == "continuous":
        answers = batch.continuous.clone()
    else:
        answers = torch.where(at_gene, batch.value - tokens.first_bin, 0).clamp(min=0)
    answers[batch.gene_position] = batch.gene_target.to(answers.dtype)
    is_gene = at_gene.float()
    loss = token_losses(said.float(), answers, config, settings) * is_gene
    lengths = batch.cu_seqlens.diff().long()
    cell = torch.repeat_interleave(lengths, output_size=len(loss))
    sums = torch.zeros(2, batch.n_cells, device=loss.device)
    sums = sums.index_add(1, cell, torch.stack([loss, is_gene]))
    return (sums[0] / sums[1].clamp(min=1)).sum()


def _contrast(projected: Tensor) -> Tensor:
    """Sum over cells, each of which stands beside its other masking."""
    n_cells = len(projected)
    if n_cells <= VIEWS:
        return projected.sum() * 0.0  # there is no other cell
    itself = torch.eye(n_cells, dtype=torch.bool, device=projected.device)
    alike = (projected @ projected.T / _TEMPERATURE).masked_fill(itself, float("-inf"))
    other_view = torch.arange(n_cells, device=projected.device) ^ 1
    return functional.cross_entropy(alike, other_view, reduction="sum")
