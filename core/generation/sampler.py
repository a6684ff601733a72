"""Iterative unmasking: all genes start hidden and are drawn a few at a time, given those before.

Genes are revealed in a random order of each cell's own (any-order autoregression; the confidence
order is offered with a warning, because it reveals zeros first and empties cells). The encoder is
asked once per step. In a model with a skeleton the genes of a step are drawn one after another all the
same: the skeleton's state follows every gene, and only the encoder's part waits for the next step.
Cells of the expressed layout are made by `core.generation.expressed_sampler`.
Models trained at a fixed mask rate have never seen a mostly hidden cell: theirs begin from class
marginals and are drawn anew, a share at a time, by Gibbs sweeps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.encoding.masking import Show
from core.encoding.tokens import MASK
from core.errors import ConfigurationError
from core.generation.class_marginals import draw_from_class_marginals
from core.generation.depth import expression_log_odds, shift_expression, solve_shift
from core.generation.expressed_sampler import check_expressed, sample_expressed_cells
from core.generation.plan import CellPlan, StepPlan, plan_steps
from core.generation.skeleton_state import SkeletonState
from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel
from core.model.gene_outputs import gene_confidence, sample_genes
from core.presets.schema import GenerateSettings

#: How often the depth of a cell is looked at while its genes are drawn, and the share of the panel that
#: is drawn last, without looking.
_SHIFTS_PER_CELL, _LAST_SHARE = 8, 1 / 16

__all__ = ["PartialCells", "check_can_generate", "needs_normal", "plan_for", "sample_cells"]


def check_can_generate(model: CellModel, settings: GenerateSettings) -> list[str]:
    """Refuse models that cannot generate; return what the user should know of those that can.

    Raises
    ------
    ConfigurationError
        It is a classifier, the layout is "expressed", or the settings contradict each other or the
        model.
    """
    if model.config.classified is not None:
        message = (
            f"this model tells {model.config.classified} alone and generates nothing; use the model "
            f"it was fine-tuned from, or one of train.task = 'masked'"
        )
        raise ConfigurationError(message)
    if model.config.layout == "expressed":
        return check_expressed(model, settings)
    if settings.order == "confidence" and (settings.remask > 0 or settings.method == "gibbs"):
        message = "the confidence order goes with neither remasking nor Gibbs sweeps; use order = 'random'"
        raise ConfigurationError(message)
    notes = []
    if settings.order == "confidence":
        notes.append(
            "confidence order reveals the surest genes first, which are zeros: expect nearly empty "
            "cells; use order = 'random'"
        )
    rate = model.masking.genes
    if rate == "uniform":
        return notes
    cost = (
        "its cells start from class marginals and are drawn anew by Gibbs sweeps, which look less "
        "real (random forest AUC 0.80 against 0.73 on pbmc68k)"
    )
    if _fixed_rate(model, settings) is None:
        cost = "unmasked all the same, its cells will be poor"
    notes.append(
        f"this model was trained with a fixed mask rate ({rate}) and has never seen a mostly hidden "
        f"cell: {cost}; train with masking.genes = 'uniform' to generate"
    )
    return notes


def _fixed_rate(model: CellModel, settings: GenerateSettings) -> float | None:
    """Return the share drawn anew per step of Gibbs sweeps, None for unmasking."""
    rate = model.masking.genes
    if model.config.layout == "expressed":
        return None
    if settings.method == "unmask" or settings.order == "confidence":
        return None
    if settings.method == "gibbs":
        return 0.15 if rate == "uniform" else max(float(rate), 1e-9)
    return None if rate == "uniform" else max(float(rate), 1e-9)


def needs_normal(model: CellModel) -> bool:
    """Tell whether the plan of a model's cells must hold normal numbers."""
    return model.config.kind == "continuous" or model.config.layout == "expressed"


def plan_for(model: CellModel, settings: GenerateSettings) -> StepPlan:
    """Divide the genes of a model among the steps of the settings."""
    return plan_steps(settings, model.config.n_genes, fixed_rate=_fixed_rate(model, settings))


@torch.inference_mode()
def sample_cells(
    model: CellModel,
    codes: NDArray[np.int32],
    settings: GenerateSettings,
    plan: CellPlan,
    *,
    wanted_genes: NDArray[np.float32] | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> NDArray[np.int64] | NDArray[np.float32]:
    """Generate cells of given phenotypes.

    Parameters
    ----------
    model
        Of either layout.
    codes
        (cells, phenotypes), -1 writes [NO_*].
    settings
        Order, temperature, guidance.
    plan
        Of these cells: what is drawn in which step, and its chance.
    wanted_genes
        (cells,), genes that each cell is to express (`core.generation.depth`); None: as many as come.
    on_step
        Called with the number of steps done.

    Returns
    -------
    (cells, genes): bins, or log1p values of a continuous model.

    Notes
    -----
    Guidance g sharpens the condition: logits become (1 + g) conditional - g unconditional, the
    latter with all phenotypes masked (Ho and Salimans 2022). With the late ramp g grows with the share
    of genes revealed: early guidance harms (arXiv 2507.08965).
    """
    if model.config.layout == "expressed":
        return sample_expressed_cells(
            model, codes, settings, plan, wanted_genes=wanted_genes, on_step=on_step
        )
    cells = PartialCells(model, codes, settings, plan, wanted_genes)
    for step in range(len(plan.steps.ends)):
        if step == 0 and plan.steps.fixed_rate is not None:
            cells.start_from_marginals(codes)
        elif settings.order == "confidence":
            cells.reveal_surest(plan.steps.n_new[step])
        else:
            cells.draw(step)
        on_step(step + 1)
    return cells.values()


class PartialCells:
    """B cells that are being drawn: the input of the encoder, and the skeleton's state of them."""

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
        device = next(self._network.parameters()).device
        self._steps = plan.steps
        self._genes = torch.from_numpy(plan.genes).to(device)
        self._uniform = torch.from_numpy(plan.uniform).to(device)
        self._normal = torch.from_numpy(plan.normal).to(device)
        self._batch = _all_hidden(model, codes, device)
        self._n_cells, self._n_genes = len(codes), model.config.n_genes
        self._first = model.config.tokens.header_length
        width = len(self._batch.identity) // self._n_cells
        self._value = self._batch.value.view(self._n_cells, width).clone()
        self._number = self._batch.number.view(self._n_cells, width).clone()
        self._cells = torch.arange(self._n_cells, device=device).unsqueeze(1)
        self._is_guided = settings.guidance > 0
        self._n_known = 0
        self._wanted_genes = (
            None if wanted_genes is None else torch.from_numpy(wanted_genes).to(device)
        )
        self._shift = torch.zeros(self._n_cells, device=device)
        self._n_known_at_shift = -1
        self._states: list[SkeletonState] = []
        if self._network.skeleton is not None:
            shown = [_shown(model, codes, device)]
            if self._is_guided:
                shown.append(_shown(model, np.full_like(codes, -1), device))
            self._states = [SkeletonState(self._network.skeleton, rows) for rows in shown]

    def draw(self, step: int) -> None:
        """Draw the genes of a step."""
        for genes, at, logits in self.questions(step):
            self.reveal(genes, self._sample(logits, self._uniform[:, at], self._normal[:, at]))

    def questions(self, step: int) -> Iterator[tuple[Tensor, slice, Tensor]]:
        """Ask for the genes of a step, a few at a time; those that are visible are hidden first.

        Yields
        ------
        Genes (B, n), which draws of the plan they are, and their logits (B, n, O). What is answered must
        be revealed before the next are asked for.
        """
        end = self._steps.ends[step]
        n = self._steps.n_new[step] + self._steps.n_again[step]
        if n == 0:
            return
        genes = self._genes[:, end - n : end]
        n_again = self._steps.n_again[step]
        if n_again:
            self._hide(genes[:, :n_again])
            self._n_known_at_shift = -1
        parts = self._encoder_logits_of_step(genes)
        # The skeleton follows every gene, in panels so large that it would take long, a few at a time.
        at_once = n if not self._states else -(-self._n_genes // self._settings.gene_steps)
        for first in range(0, n, at_once):
            some = slice(first, min(first + at_once, n))
            self._renew_shift_by_skeleton()
            logits = self._logits(genes[:, some], [part[:, some] for part in parts])
            logits = shift_expression(logits, self._shift, self._config)
            yield genes[:, some], slice(end - n + some.start, end - n + some.stop), logits

    def reveal_surest(self, n: int) -> None:
        """Reveal the ``n`` genes of each cell that the model is surest of."""
        is_hidden = self._is_hidden().gather(1, self._genes)
        at = is_hidden.nonzero()[:, 1].view(self._n_cells, -1)
        genes = self._genes.gather(1, at)
        logits = self._logits(genes, self._encoder_logits(genes))
        normal = self._normal.gather(1, at) if self._normal.shape[1] else self._normal
        drawn = self._sample(logits, self._uniform.gather(1, at), normal)
        sure = gene_confidence(logits.flatten(0, 1), self._config).view(genes.shape)
        chosen = sure.topk(n, dim=1).indices
        self.reveal(genes.gather(1, chosen), drawn.gather(1, chosen))

    def start_from_marginals(self, codes: NDArray[np.int32]) -> None:
        """Draw all genes, each on its own, from what training cells of the class had."""
        genes = self._genes[:, : self._n_genes]
        uniform = self._uniform[:, : self._n_genes]
        if self._states:
            self._renew_shift_by_skeleton()
            logits = shift_expression(self._states[0].logits(genes), self._shift, self._config)
            drawn = self._sample(logits, uniform, self._normal[:, :0])
        else:
            by_gene = torch.empty_like(uniform).scatter_(1, genes, uniform).cpu().numpy()
            start = draw_from_class_marginals(self._model, codes, by_gene)
            drawn = torch.from_numpy(start).to(genes.device).gather(1, genes)
        self.reveal(genes, drawn)

    def values(self) -> NDArray[np.int64] | NDArray[np.float32]:
        """Return (cells, genes) as drawn."""
        places = slice(self._first, self._first + self._n_genes)
        if self._config.kind == "continuous":
            return self._number[:, places].cpu().numpy()
        return (self._value[:, places] - self._config.tokens.first_bin).cpu().numpy()

    def _encoder_logits(self, genes: Tensor) -> list[Tensor]:
        """(B, n, O) of the encoder, and of it without phenotypes where there is guidance."""
        part = self._network.encoder_part
        if part is None:
            return []
        inputs = [self._value]
        if self._is_guided:
            without = self._value.clone()
            without[:, 1 : self._config.tokens.n_phenotypes + 1] = MASK
            inputs.append(without)
        route = self._network.attention_route(ragged=False)
        return [
            part(self._ask(genes, value), route)[0].float().view(*genes.shape, -1)
            for value in inputs
        ]

    def _encoder_logits_of_step(self, genes: Tensor) -> list[Tensor]:
        """(B, n, O) as `_encoder_logits`; without a skeleton the depth needs all hidden genes."""
        if self._wanted_genes is None or self._states:
            return self._encoder_logits(genes)
        is_hidden = self._is_hidden()
        hidden = is_hidden.nonzero()[:, 1].view(self._n_cells, -1)
        parts = self._encoder_logits(hidden)
        log_odds = torch.zeros(is_hidden.shape, device=genes.device)
        log_odds.scatter_(1, hidden, expression_log_odds(parts[0], self._config))
        self._renew_shift(log_odds, is_hidden)
        place = torch.zeros_like(is_hidden, dtype=torch.long)
        place.scatter_(
            1, hidden, torch.arange(hidden.shape[1], device=genes.device).expand_as(hidden)
        )
        at = place.gather(1, genes)
        return [part[self._cells, at] for part in parts]

    def _renew_shift_by_skeleton(self) -> None:
        """Renew the shift from what the skeleton expects, now and then."""
        if self._wanted_genes is None or not self._states:
            return
        since = self._n_known - self._n_known_at_shift
        if self._n_known_at_shift >= 0 and 0 <= since < self._n_genes / _SHIFTS_PER_CELL:
            return
        log_odds = torch.cat(
            [expression_log_odds(part, self._config) for part in self._states[0].panel_logits()],
            dim=1,
        )
        self._renew_shift(log_odds, self._is_hidden())

    def _renew_shift(self, log_odds: Tensor, is_hidden: Tensor) -> None:
        assert self._wanted_genes is not None
        if self._n_genes - self._n_known < _LAST_SHARE * self._n_genes:
            return  # the last few genes must not pay for all
        self._n_known_at_shift = self._n_known
        wanted = self._wanted_genes - self._n_expressed()
        self._shift = solve_shift(log_odds, is_hidden, wanted, self._settings.temperature)

    def _is_hidden(self) -> Tensor:
        """(B, genes)."""
        return self._value[:, self._first : self._first + self._n_genes] == MASK

    def _n_expressed(self) -> Tensor:
        """(B,) genes that were drawn and are expressed."""
        places = slice(self._first, self._first + self._n_genes)
        if self._config.kind == "continuous":
            return (self._number[:, places] > 0).sum(dim=1)
        return (self._value[:, places] > self._config.tokens.first_bin).sum(dim=1)

    def _logits(self, genes: Tensor, encoder: Sequence[Tensor]) -> Tensor:
        """(B, n, O) of all parts together, guided."""
        branches = [state.logits(genes) for state in self._states]
        if encoder:
            branches = [
                part if not branches else part + branches[branch]
                for branch, part in enumerate(encoder)
            ]
        if not self._is_guided:
            return branches[0]
        guidance = self._settings.guidance
        if self._settings.guidance_ramp == "late":
            guidance *= self._n_known / self._n_genes
        return (1 + guidance) * branches[0] - guidance * branches[1]

    def _sample(self, logits: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        return sample_genes(
            logits.flatten(0, 1), self._config, temperature=self._settings.temperature,
            uniform=uniform.reshape(-1), normal=normal.reshape(-1),
        ).view(uniform.shape)  # fmt: skip

    def _hide(self, genes: Tensor) -> None:
        places = self._first + genes
        for state in self._states:
            state.hide(genes, self._value[self._cells, places] - self._config.tokens.first_bin)
        self._value[self._cells, places] = MASK
        self._number[self._cells, places] = 0
        self._n_known -= genes.shape[1]

    def reveal(self, genes: Tensor, drawn: Tensor) -> None:
        """Write drawn genes into the input of the next step."""
        places, bin_0 = self._first + genes, self._config.tokens.first_bin
        if self._config.kind == "continuous":
            on = drawn >= float(self._model.values.edges[0])  # below the threshold: not expressed
            self._number[self._cells, places] = torch.where(on, drawn, torch.zeros_like(drawn))
            self._value[self._cells, places] = bin_0
        else:
            self._value[self._cells, places] = drawn + bin_0
        for state in self._states:
            state.reveal(genes, drawn)
        self._n_known += genes.shape[1]

    def _ask(self, genes: Tensor, value: Tensor) -> BatchTensors:
        """Return a batch that asks for ``genes`` of every cell, given the values so far."""
        position = (self._cells * value.shape[1] + self._first + genes).reshape(-1)
        read_bounds = np.arange(self._n_cells + 1, dtype=np.int32) * genes.shape[1]
        return replace(
            self._batch,
            value=value.reshape(-1),
            number=self._number.reshape(-1),
            gene=genes.reshape(-1),
            gene_cell=self._cells.expand_as(genes).reshape(-1),
            gene_position=position,
            mask_share=torch.full_like(self._batch.mask_share, 1 - self._n_known / self._n_genes),
            # Only the genes asked for are read; no phenotype is masked as a question here.
            read_position=position,
            gene_read=torch.arange(len(position), device=position.device),
            read_bounds=read_bounds,
            cu_reads=torch.from_numpy(read_bounds).to(position.device),
        )


def _all_hidden(model: CellModel, codes: NDArray[np.int32], device: torch.device) -> BatchTensors:
    n_cells, n_genes = len(codes), model.config.n_genes
    states = np.where(codes < 0, Show.NOT_SPECIFIED, Show.VALUE).astype(np.int8)
    nothing = np.zeros((n_cells, n_genes), dtype=np.float32)
    arrays = model.batches.ranked(nothing, codes, states, np.ones(nothing.shape, dtype=bool))
    return BatchTensors.from_arrays(arrays, device)


def _shown(model: CellModel, codes: NDArray[np.int32], device: torch.device) -> Tensor:
    """(B, S) one-hot rows of the phenotypes shown, as the skeleton reads them."""
    tokens = model.config.tokens
    n_shown = sum(model.config.phenotype_sizes) + tokens.n_phenotypes
    first_shown = tokens.first_bin + tokens.n_bins
    at = torch.from_numpy(tokens.not_specified - first_shown + 1 + codes.astype(np.int64))
    shown = torch.zeros(len(codes), n_shown)
    if tokens.n_phenotypes:
        shown.scatter_(1, at, 1.0)
    return shown.to(device)
