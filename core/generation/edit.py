"""Real cells with a control token changed: the same cells, were they normal, say.

Genes are visited one after another, as in generation, by two models of the cell: one with the cell's own
phenotypes and its own genes so far, one with the phenotypes that are set and the changed genes so far. The
first gives the quantile of the cell's bin in its distribution; the second distribution, at the same
quantile, gives the changed bin. A gene whose distribution does not move keeps its bin, and a cell that has
the set phenotypes already does not change. (Abduction, action, prediction: Pearl's counterfactual, for an
autoregressive model.)

Shapes: B cells, G genes of the panel, n queried genes per cell.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import ConfigurationError
from core.generation.partial_cells import PartialCells
from core.generation.plan import CellPlan, StepPlan, plan_steps
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.model.losses import bin_logits
from core.presets.schema import GenerateSettings


def check_can_edit(model: CellModel) -> None:
    """Check that a model can change cells.

    Raises
    ------
    ConfigurationError
        The layout is "expressed", the encoding continuous, or the mask rate fixed.
    """
    if model.config.layout != "ranked" or model.config.kind == "continuous":
        message = (
            "cells are changed by models of the ranked layout with bins; train one with "
            "encoding.layout = 'ranked' and encoding.kind = 'binned'"
        )
        raise ConfigurationError(message)
    if model.masking.genes != "uniform":
        message = (
            f"this model was trained with a fixed mask rate ({model.masking.genes}), and changing cells "
            f"needs one trained at all mask rates; train with masking.genes = 'uniform'"
        )
        raise ConfigurationError(message)


@torch.inference_mode()
def edit_bins(
    model: CellModel,
    bins: NDArray[np.integer],
    codes: NDArray[np.int32],
    new_codes: NDArray[np.int32],
    *,
    settings: GenerateSettings,
    seed: int,
    first_cell: int = 0,
    present: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Change the phenotypes of cells, and their genes with them.

    Parameters
    ----------
    bins
        (B, G), the cells as they are.
    codes, new_codes
        (B, phenotypes), as they are and as they are set; -1 where not specified.
    settings
        Steps.
    seed, first_cell
        Cell i of a seed is the same whatever the cells beside it.
    present
        (G,), genes that the cells have; the others stay hidden and 0.

    Returns
    -------
    (B, G) bins.
    """
    here = np.flatnonzero(np.ones(bins.shape[1], bool) if present is None else present)
    within = plan_steps(settings, len(here), fixed_rate=None)
    cells = range(first_cell, first_cell + len(bins))
    drawn = CellPlan.draw(seed, cells, within, needs_normal=False)
    steps = StepPlan(bins.shape[1], within.sizes)
    plan = CellPlan(steps, here[drawn.genes], drawn.uniform, drawn.normal, state=None)
    unguided = settings.model_copy(update={"guidance": 0.0})
    before, after = (PartialCells(model, of, unguided, plan, None) for of in (codes, new_codes))
    known = torch.from_numpy(bins.astype(np.int64))
    changed = torch.zeros_like(known)
    uniform = torch.from_numpy(plan.uniform)
    for step in range(len(steps.sizes)):
        pairs = zip(before.logits_of_step(step), after.logits_of_step(step), strict=True)
        for (genes, at, logits), (_, _, new_logits) in pairs:
            old = known.to(genes.device).gather(1, genes)
            quantile = _quantile_of(logits, old, uniform[:, at].to(genes.device), model.config)
            new = _bin_at(new_logits, quantile, model.config)
            before.reveal(genes, old)
            after.reveal(genes, new)
            changed.scatter_(1, genes.cpu(), new.cpu())
    return changed.numpy()


def _cumulative(logits: Tensor, config: TfxConfig) -> Tensor:
    """(B, n, bins) distribution function, its last entry exactly 1."""
    flat = bin_logits(logits.flatten(0, 1), config).double()
    cumulative = torch.softmax(flat, dim=-1).cumsum(-1)
    return (cumulative / cumulative[:, -1:]).view(*logits.shape[:2], -1)


def _quantile_of(logits: Tensor, bins: Tensor, uniform: Tensor, config: TfxConfig) -> Tensor:
    """(B, n) quantile of each bin in its distribution, drawn evenly within the bin."""
    cumulative = _cumulative(logits, config)
    above = cumulative.gather(-1, bins.unsqueeze(-1)).squeeze(-1)
    below = cumulative.gather(-1, (bins - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    below = torch.where(bins > 0, below, torch.zeros_like(below))
    return below + uniform.double().clamp(1e-6, 1 - 1e-6) * (above - below)


def _bin_at(logits: Tensor, quantile: Tensor, config: TfxConfig) -> Tensor:
    """(B, n) the bin at a quantile of the distribution."""
    cumulative = _cumulative(logits, config)
    return (quantile.unsqueeze(-1) >= cumulative[..., :-1]).sum(-1)
