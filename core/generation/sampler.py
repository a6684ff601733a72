"""Iterative sampling: genes start hidden and are drawn a few at a time, given those before.

Genes are revealed in a random order of each cell's own (any-order autoregression); the encoder runs once
per step. In a model with a log-linear part the genes of a step are still drawn one after another: its sums
follow every gene, and only the encoder's part waits for the next step. A model of the expressed layout
reads only expressed genes, but can be queried about any: the whole panel is drawn, expressed genes join
the input, and the others are never shown, as in training. Gibbs sweeps: `core.generation.plan`.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from core.errors import ConfigurationError
from core.generation.partial_cells import PartialCells
from core.generation.plan import CellPlan, fixed_rate_of
from core.model.folder import CellModel
from core.presets.schema import GenerateSettings


def check_can_generate(model: CellModel, settings: GenerateSettings) -> list[str]:
    """Return what the user should know of a model that can generate.

    Raises
    ------
    ConfigurationError
        It is a classifier, it was not trained on genes that are not expressed, or the settings
        contradict the model.
    """
    if model.config.classified is not None:
        message = (
            f"this model predicts {model.config.classified} alone and generates nothing; use the model "
            f"it was fine-tuned from, or one of train.task = 'masked'"
        )
        raise ConfigurationError(message)
    if model.config.layout == "expressed":
        if settings.method == "gibbs":
            message = "models of the expressed layout have no Gibbs sweeps; leave method out"
            raise ConfigurationError(message)
        if not 0 < model.masking.unexpressed < 1:
            message = (
                f"this model was trained with masking.unexpressed = {model.masking.unexpressed:g} and "
                f"cannot predict which genes are expressed; train one with 0.5 to generate"
            )
            raise ConfigurationError(message)
    rate = model.masking.genes
    if rate == "uniform":
        return []
    cost = (
        "its cells start from class marginals and are redrawn by Gibbs sweeps, which look less "
        "real (random forest AUC 0.80 against 0.73 on pbmc68k)"
    )
    if fixed_rate_of(model, settings) is None:
        cost = "unmasking it gives poor cells"
    return [
        f"this model was trained with a fixed mask rate ({rate}) and has never seen a mostly hidden "
        f"cell: {cost}; train with masking.genes = 'uniform' to generate"
    ]


@torch.inference_mode()
def sample_cells(
    model: CellModel,
    codes: NDArray[np.int32],
    settings: GenerateSettings,
    plan: CellPlan,
    *,
    genes_per_cell: NDArray[np.float32] | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> NDArray[np.int64] | NDArray[np.float32]:
    """Generate cells of given phenotypes.

    Parameters
    ----------
    codes
        (cells, phenotypes), -1 writes [NO_*].
    plan
        Of these cells.
    genes_per_cell
        (cells,), genes that each cell is to express (`core.generation.cell_sizes`); None: not controlled.
    on_step
        Called with the number of steps done.

    Returns
    -------
    (cells, genes): bins, or log1p values of a continuous model.

    Notes
    -----
    Guidance g sharpens the condition: logits become (1 + g) conditional - g unconditional, the
    latter with all phenotypes masked (Ho and Salimans 2022). With the late ramp g grows with the
    fraction of genes revealed: early guidance harms (arXiv 2507.08965).
    """
    cells = PartialCells(model, codes, settings, plan, genes_per_cell)
    for step in range(len(plan.steps.ends)):
        if step == 0 and plan.steps.is_gibbs:
            cells.draw_marginals(codes)
        else:
            cells.draw(step)
        on_step(step + 1)
    return cells.values()
