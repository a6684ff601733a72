"""Iterative unmasking: all genes start hidden and are drawn a few at a time, given those before.

Genes are revealed in a random order of each cell's own (any-order autoregression; the confidence
order is offered with a warning, because it reveals zeros first and empties cells). Every cell has
its own random numbers, so that it does not depend on the batch it is in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.encoding.masking import Show
from core.encoding.tokens import MASK
from core.errors import ConfigurationError
from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel
from core.model.gene_outputs import gene_confidence, sample_genes
from core.presets.schema import GenerateSettings

__all__ = ["CellChance", "check_can_generate", "sample_cells"]


@dataclass(frozen=True)
class CellChance:
    """All the chance that goes into B cells, drawn cell by cell from (seed, number of the cell).

    Attributes
    ----------
    order
        (B, genes), the order in which genes are revealed.
    uniform, normal
        (B, genes), for the draw of each gene.
    """

    order: NDArray[np.int64]
    uniform: NDArray[np.float32]
    normal: NDArray[np.float32]

    @classmethod
    def draw(cls, seed: int, cells: range, n_genes: int) -> "CellChance":
        """Draw for the cells numbered ``cells``."""
        order = np.empty((len(cells), n_genes), dtype=np.int64)
        uniform = np.empty((len(cells), n_genes), dtype=np.float32)
        normal = np.empty((len(cells), n_genes), dtype=np.float32)
        for place, cell in enumerate(cells):
            rng = np.random.default_rng([seed, cell, 29])
            order[place] = rng.permutation(n_genes)
            uniform[place] = rng.random(n_genes, dtype=np.float32)
            normal[place] = rng.standard_normal(n_genes, dtype=np.float32)
        return cls(order, uniform, normal)


def check_can_generate(model: CellModel) -> list[str]:
    """Refuse models that cannot generate; return what the user should know of those that can.

    Raises
    ------
    ConfigurationError
        The layout is "expressed": its input presupposes which genes are on; or it is a classifier.
    """
    if model.config.classified is not None:
        message = (
            f"this model tells {model.config.classified} alone and generates nothing; use the model "
            f"it was fine-tuned from, or one of train.task = 'masked'"
        )
        raise ConfigurationError(message)
    if model.config.layout != "ranked":
        message = (
            "this model has the expressed layout, whose input presupposes which genes are on; "
            "train one with encoding.layout = 'ranked' to generate"
        )
        raise ConfigurationError(message)
    if model.masking.genes != "uniform":
        return [
            f"this model was trained with a fixed mask rate ({model.masking.genes}) and has never "
            f"seen a mostly hidden cell: its cells will be poor; train with masking.genes = "
            f"'uniform' to generate"
        ]
    return []


@torch.inference_mode()
def sample_cells(
    model: CellModel,
    codes: NDArray[np.int32],
    settings: GenerateSettings,
    chance: CellChance,
    *,
    on_step: Callable[[int], None] = lambda step: None,
) -> NDArray[np.int64] | NDArray[np.float32]:
    """Generate cells of given phenotypes.

    Parameters
    ----------
    model
        With the ranked layout.
    codes
        (cells, phenotypes), -1 writes [NO_*].
    settings
        Steps (at most one per gene), order, temperature, guidance.
    chance
        Of these cells.
    on_step
        Called with the number of steps done.

    Returns
    -------
    (cells, genes): bins, or log1p values of a continuous model.

    Notes
    -----
    Guidance g sharpens the condition: logits become (1 + g) conditional - g unconditional, the
    latter with all phenotypes masked (Ho and Salimans 2022).
    """
    network = model.network.eval()
    config = model.config
    n_cells, n_genes = len(codes), config.n_genes
    device = next(network.parameters()).device
    batch = _all_hidden(model, codes, device)
    free = _without_phenotypes(batch, model) if settings.guidance > 0 else None
    first = config.tokens.header_length
    width = len(batch.identity) // n_cells
    value = batch.value.view(n_cells, width).clone()
    number = batch.number.view(n_cells, width).clone()
    uniform = torch.from_numpy(chance.uniform).to(device)
    normal = torch.from_numpy(chance.normal).to(device)
    order = torch.from_numpy(chance.order).to(device)
    hidden = torch.ones(n_cells, n_genes, dtype=torch.bool, device=device)
    cells = torch.arange(n_cells, device=device).unsqueeze(1)
    steps = min(settings.steps, n_genes)
    ends = [round(n_genes * (step + 1) / steps) for step in range(steps)]
    done = 0
    for step, end in enumerate(ends):
        if settings.order == "random":
            genes = order[:, done:end]  # (cells, genes of this step)
        else:
            genes = order.gather(1, hidden.gather(1, order).nonzero()[:, 1].view(n_cells, -1))
        now = _ask(batch, cells, genes, value, number, first, share=1 - done / n_genes)
        logits = network(now).gene_logits
        if free is not None:
            shown = _ask(free, cells, genes, _keep_header(free, value, first), number, first,
                         share=1 - done / n_genes)  # fmt: skip
            unguided = network(shown).gene_logits
            logits = (1 + settings.guidance) * logits - settings.guidance * unguided
        at = (cells.expand_as(genes).reshape(-1), genes.reshape(-1))
        drawn = sample_genes(
            logits, config, temperature=settings.temperature, uniform=uniform[at], normal=normal[at]
        ).view(genes.shape)
        if settings.order == "confidence":
            sure = gene_confidence(logits, config).view(genes.shape)
            chosen = sure.topk(end - done, dim=1).indices
            genes, drawn = genes.gather(1, chosen), drawn.gather(1, chosen)
        _reveal(model, value, number, cells, genes, drawn, first)
        hidden[cells, genes] = False
        done = end
        on_step(step + 1)
    genes_only = slice(first, first + n_genes)
    if config.kind == "continuous":
        return number[:, genes_only].cpu().numpy()
    return (value[:, genes_only] - config.tokens.first_bin).cpu().numpy()


def _all_hidden(model: CellModel, codes: NDArray[np.int32], device: torch.device) -> BatchTensors:
    n_cells, n_genes = len(codes), model.config.n_genes
    states = np.where(codes < 0, Show.NOT_SPECIFIED, Show.VALUE).astype(np.int8)
    nothing = np.zeros((n_cells, n_genes), dtype=np.float32)
    arrays = model.batches.ranked(nothing, codes, states, np.ones(nothing.shape, dtype=bool))
    return BatchTensors.from_arrays(arrays, device)


def _without_phenotypes(batch: BatchTensors, model: CellModel) -> BatchTensors:
    """Mask every phenotype: the unconditional branch of guidance."""
    value = batch.value.view(batch.n_cells, -1).clone()
    value[:, 1 : model.config.tokens.n_phenotypes + 1] = MASK
    return replace(batch, value=value.view(-1))


def _keep_header(batch: BatchTensors, value: Tensor, first: int) -> Tensor:
    """Return the genes of ``value`` behind the header of ``batch``."""
    return torch.cat([batch.value.view(batch.n_cells, -1)[:, :first], value[:, first:]], dim=1)


def _ask(
    batch: BatchTensors,
    cells: Tensor,
    genes: Tensor,
    value: Tensor,
    number: Tensor,
    first: int,
    *,
    share: float,
) -> BatchTensors:
    """Return a batch that asks for ``genes`` of every cell, given the values so far."""
    position = (cells * value.shape[1] + first + genes).reshape(-1)
    read_bounds = np.arange(batch.n_cells + 1, dtype=np.int32) * genes.shape[1]
    return replace(
        batch,
        value=value.reshape(-1),
        number=number.reshape(-1),
        gene=genes.reshape(-1),
        gene_cell=cells.expand_as(genes).reshape(-1),
        gene_position=position,
        mask_share=torch.full_like(batch.mask_share, share),
        # Only the genes asked for are read; no phenotype is masked as a question here.
        read_position=position,
        gene_read=torch.arange(len(position), device=position.device),
        read_bounds=read_bounds,
        cu_reads=torch.from_numpy(read_bounds).to(position.device),
    )


def _reveal(
    model: CellModel,
    value: Tensor,
    number: Tensor,
    cells: Tensor,
    genes: Tensor,
    drawn: Tensor,
    first: int,
) -> None:
    """Write drawn genes into the input of the next step."""
    bin_0 = model.config.tokens.first_bin
    if model.config.kind == "continuous":
        on = drawn >= float(model.values.edges[0])  # below the threshold is "not expressed"
        number[cells, first + genes] = torch.where(on, drawn, torch.zeros_like(drawn))
        value[cells, first + genes] = bin_0
    else:
        value[cells, first + genes] = drawn + bin_0
