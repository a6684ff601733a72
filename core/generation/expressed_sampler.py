"""Cells of the expressed layout: first which genes are on, over the whole panel, then how much.

Such a model reads only genes that are on, so that its input presupposes what is to be drawn. But it can be
asked about any gene: as a masked token beside those that are on so far. The panel is gone through in a
random order, a part per step; what comes out on joins the input, what comes out off is never seen again, as
in training. In training a set share of the masked genes was off (`masking.unexpressed`), in a cell nearly
all of the panel is: the log-odds of being on are moved by that difference, which the number of genes that the
cell is to express gives (`core.generation.depth`). At the end, which genes are on is settled, and their bins
are drawn once more, a part at a time, given all others.

Shapes: B cells, G genes of the panel, n genes asked for per cell.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.encoding.masking import Show
from core.encoding.packing import GeneTokens, pack
from core.encoding.tokens import MASK
from core.errors import ConfigurationError
from core.generation.depth import expression_log_odds, shift_expression, solve_shift
from core.generation.plan import CellPlan
from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel
from core.model.gene_outputs import bin_logits, sample_genes
from core.presets.schema import GenerateSettings

__all__ = ["check_expressed", "sample_expressed_cells"]

#: Parts in which the bins of the genes that are on are drawn once more.
_LEVEL_STEPS = 4


def check_expressed(model: CellModel, settings: GenerateSettings) -> list[str]:
    """Refuse what the expressed layout cannot do; return what the user should know.

    Raises
    ------
    ConfigurationError
        Order, remasking or Gibbs sweeps are asked for, or the model was never asked about a gene that
        is off.
    """
    if settings.order == "confidence" or settings.remask > 0 or settings.method == "gibbs":
        message = (
            "models of the expressed layout are unmasked in a random order, without remasking or Gibbs "
            "sweeps; leave order, remask and method out"
        )
        raise ConfigurationError(message)
    if not 0 < model.masking.unexpressed < 1:
        message = (
            f"this model was trained with masking.unexpressed = {model.masking.unexpressed:g} and cannot "
            f"tell which genes are on; train one with 0.5 to generate"
        )
        raise ConfigurationError(message)
    if model.masking.genes == "uniform":
        return []
    return [
        f"this model was trained with a fixed mask rate ({model.masking.genes}) and has never seen a "
        f"mostly hidden cell: its cells will be poor; train with masking.genes = 'uniform' to generate"
    ]


@torch.inference_mode()
def sample_expressed_cells(
    model: CellModel,
    codes: NDArray[np.int32],
    settings: GenerateSettings,
    plan: CellPlan,
    *,
    wanted_genes: NDArray[np.float32] | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> NDArray[np.int64] | NDArray[np.float32]:
    """Generate cells of given phenotypes; as `core.generation.sampler.sample_cells`.

    ``plan.normal`` must be there: it is the chance of the bins that are drawn at the end.
    """
    cells = _ExpressedCells(model, codes, settings, plan, wanted_genes)
    for step in range(len(plan.steps.ends)):
        cells.draw(step)
        on_step(step + 1)
    if model.config.kind == "binned":
        cells.draw_levels()
    return cells.drawn.cpu().numpy()


class _ExpressedCells:
    """B cells of which some genes are known to be on, some to be off, and the others are not known."""

    def __init__(
        self,
        model: CellModel,
        codes: NDArray[np.int32],
        settings: GenerateSettings,
        plan: CellPlan,
        wanted_genes: NDArray[np.float32] | None,
    ) -> None:
        self._model, self._config, self._settings = model, model.config, settings
        self._network = model.network.eval()
        self._device = next(self._network.parameters()).device
        self._codes, self._plan = codes, plan
        self._genes = torch.from_numpy(plan.genes).to(self._device)
        self._uniform = torch.from_numpy(plan.uniform).to(self._device)
        self._normal = torch.from_numpy(plan.normal).to(self._device)
        n_cells, self._n_genes = plan.genes.shape
        kind = torch.float32 if self._config.kind == "continuous" else torch.int64
        #: (B, G), bins or values; 0 where off or not known yet.
        self.drawn = torch.zeros(n_cells, self._n_genes, dtype=kind, device=self._device)
        counts = model.reference.bin_counts
        on_share = counts[:, 1:].sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
        if wanted_genes is None:
            wanted_genes = np.full(n_cells, on_share.sum(), dtype=np.float32)
        self._wanted = torch.from_numpy(wanted_genes).to(self._device)
        self._on_share = torch.from_numpy(on_share.astype(np.float32) + 1e-6).to(self._device)
        tokens = self._config.tokens
        self._room = self._config.longest_sequence - tokens.header_length - 1

    def draw(self, step: int) -> None:
        """Draw the genes of a step, as many at once as leave half the sequence to what is known."""
        end = self._plan.steps.ends[step]
        start = end - self._plan.steps.n_new[step]
        most = max(self._room // 2, 1)
        for first in range(start, end, most):
            at = slice(first, min(first + most, end))
            genes = self._genes[:, at]
            logits = self._logits(genes)
            logits = shift_expression(logits, self._calibration(logits, genes, first), self._config)
            drawn = sample_genes(
                logits.flatten(0, 1), self._config, temperature=self._settings.temperature,
                uniform=self._uniform[:, at].reshape(-1), normal=self._normal[:, at].reshape(-1),
            ).view(genes.shape)  # fmt: skip
            if self._config.kind == "continuous":  # below the threshold: not expressed
                drawn = torch.where(drawn >= float(self._model.values.edges[0]), drawn, 0.0)
            self.drawn.scatter_(1, genes, drawn.to(self.drawn.dtype))

    def draw_levels(self) -> None:
        """Draw the bins of the genes that are on once more, given that they are."""
        uniform = torch.special.ndtr(self._normal)
        # As the panel was drawn, so that every cell has its own order.
        for part in range(_LEVEL_STEPS):
            at = slice(part, None, _LEVEL_STEPS)
            genes = self._genes[:, at]
            is_on = self.drawn.gather(1, genes) > 0
            rows = is_on.nonzero()
            if not len(rows):
                continue
            flat = self._flat_logits([genes[cell][is_on[cell]] for cell in range(len(genes))])
            flat = bin_logits(flat, self._config).clone()
            flat[:, 0] = -math.inf
            drawn = sample_genes(
                flat, self._config, temperature=self._settings.temperature,
                uniform=uniform[:, at][is_on], normal=self._normal[:, at][is_on],
            )  # fmt: skip
            self.drawn[rows[:, 0], genes[is_on]] = drawn

    def _calibration(self, logits: Tensor, genes: Tensor, n_known: int) -> Tensor:
        """(B,) shift from training's share of genes that are off to the cell's."""
        wanted = self._wanted.clamp(1, self._n_genes - 1)
        unexpressed = self._model.masking.unexpressed
        shift = torch.log(wanted / (self._n_genes - wanted)) - math.log(
            (1 - unexpressed) / unexpressed
        )
        # What is still to come, shared out by how often each gene is on at all.
        left = (self._wanted - (self.drawn > 0).sum(dim=1)).clamp(min=0)
        share = self._on_share[genes].sum(dim=1) / self._on_share[self._genes[:, n_known:]].sum(
            dim=1
        )
        log_odds = expression_log_odds(logits, self._config) + shift[:, None]
        everything = torch.ones_like(genes, dtype=torch.bool)
        return shift + solve_shift(log_odds, everything, left * share, self._settings.temperature)

    def _logits(self, genes: Tensor) -> Tensor:
        """(B, n, O)."""
        return self._flat_logits(list(genes)).view(*genes.shape, -1)

    def _flat_logits(self, genes: list[Tensor]) -> Tensor:
        """(all asked, O), cell after cell; guided."""
        shown = np.where(self._codes < 0, Show.NOT_SPECIFIED, Show.VALUE).astype(np.int8)
        logits = self._network(self._ask(genes, shown)).gene_logits.float()
        guidance = self._settings.guidance
        if guidance > 0:
            if self._settings.guidance_ramp == "late":
                n_on = (self.drawn > 0).sum()
                guidance *= min(float(n_on / self._wanted.sum().clamp(min=1)), 1.0)
            free = self._network(self._ask(genes, np.full_like(shown, Show.MASKED)))
            logits = (1 + guidance) * logits - guidance * free.gene_logits.float()
        return logits

    def _ask(self, asked: list[Tensor], states: NDArray[np.int8]) -> BatchTensors:
        """Return the cells as they are known, with ``asked`` genes of each as masked tokens."""
        tokens = self._config.tokens
        identity, value, number, lengths, masked_at = [], [], [], [], []
        start = 0
        is_continuous = self._config.kind == "continuous"
        order = self._plan.genes
        drawn = self.drawn.cpu().numpy()
        for cell, genes in enumerate(asked):
            wanted = genes.cpu().numpy()
            on = order[cell][drawn[cell, order[cell]] > 0]
            on = on[~np.isin(on, wanted)][: max(self._room - len(wanted), 0)]
            every = np.concatenate([on, wanted])
            levels = drawn[cell, on]
            shown = np.zeros(len(on)) if is_continuous else levels
            identity.append((every + tokens.first_gene).astype(tokens.identity_type))
            hidden = np.full(len(wanted), MASK)
            value.append(
                np.concatenate([shown + tokens.first_bin, hidden]).astype(tokens.value_type)
            )
            number.append(np.concatenate([levels, np.zeros(len(wanted))]).astype(np.float32))
            masked_at.append(start + len(on) + np.arange(len(wanted)))
            lengths.append(len(every))
            start += len(every)
        n_masked = np.array([len(genes) for genes in asked])
        gene = np.concatenate([genes.cpu().numpy() for genes in asked]).astype(np.int32)
        packed = GeneTokens(
            lengths=np.array(lengths),
            identity=identity,
            value=value,
            number=number if is_continuous else None,
            masked_at=np.concatenate(masked_at),
            n_masked=n_masked,
            gene=gene,
            target=np.zeros(len(gene), np.float32 if is_continuous else tokens.value_type),
            mask_share=(n_masked / np.maximum(lengths, 1)).astype(np.float32),
        )
        return BatchTensors.from_arrays(pack(tokens, packed, self._codes, states), self._device)
