"""Cells that are being drawn: what is known of each, and what the model says of the rest.

All genes start hidden; `PartialCells` asks for some, and whoever draws them reveals them. The encoder reads
the cells as its layout has them (`core.generation.cell_input`), the log-linear part's state follows every gene, and
how many genes a cell is to express holds the log-odds in place (`core.generation.depth`).

Shapes: B cells, G genes of the panel, n genes asked for per cell, O outputs per gene.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.encoding.tokens import MASK
from core.generation.cell_input import ExpressedInput, RankedInput
from core.generation.class_marginals import draw_from_class_marginals
from core.generation.depth import expression_log_odds, shift_expression, solve_shift
from core.generation.log_linear_state import LogLinearState, masked_share
from core.generation.plan import CellPlan
from core.model.folder import CellModel
from core.model.gene_outputs import sample_genes
from core.presets.schema import GenerateSettings

__all__ = ["PartialCells", "shown_phenotypes"]

#: How often the depth of a cell is looked at while its genes are drawn.
_SHIFTS_PER_CELL = 8
#: Share of the panel that is drawn last, without looking: few genes must not pay for all. A log-linear part, which
#: follows every gene, carries the depth on by itself: held to the end, depth takes spread and correlations
#: away (benchmarks/log_linear_constants.md).
_LAST_SHARE, _LAST_SHARE_WITH_LOG_LINEAR = 1 / 16, 1 / 4


class PartialCells:
    """B cells that are being drawn.

    Parameters
    ----------
    model
        Of either layout.
    codes
        (B, phenotypes), -1 for [NO_*].
    settings
        Temperature and guidance.
    plan
        Of these cells: what is drawn in which step, and its chance.
    wanted_genes
        (B,) genes that each cell is to express, None: as many as come.
    """

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
        self._n_cells, self._n_genes = len(codes), model.config.n_genes
        self._bin_0 = model.config.tokens.first_bin
        shape = (self._n_cells, self._n_genes)
        #: Tokens of the values, MASK where hidden; and values of a continuous model.
        self._value = torch.full(shape, MASK, dtype=torch.long, device=device)
        self._number = torch.zeros(shape, device=device)
        self._cells = torch.arange(self._n_cells, device=device).unsqueeze(1)
        self._is_guided = settings.guidance > 0
        self._n_known = 0
        self._wanted_genes = (
            None if wanted_genes is None else torch.from_numpy(wanted_genes).to(device)
        )
        self._shift = torch.zeros(self._n_cells, device=device)
        self._n_known_at_shift = -1
        # A Gibbs sweep never hides more than a few.
        carries_on = self._network.log_linear is not None and not plan.steps.is_gibbs
        self._last_share = _LAST_SHARE_WITH_LOG_LINEAR if carries_on else _LAST_SHARE
        self._input: RankedInput | ExpressedInput | None = None  # nothing reads it but an encoder
        #: (B,) genes that a cell of the expressed layout shows when it is whole.
        self._whole: Tensor | None = None
        if model.config.layout == "expressed":
            counts = model.reference.bin_counts
            n_on = float((counts[:, 1:].sum(axis=1) / np.maximum(counts.sum(axis=1), 1)).sum())
            self._whole = (
                torch.full((self._n_cells,), n_on, device=device)
                if self._wanted_genes is None
                else self._wanted_genes
            )
            self._whole = self._whole.clamp(1, max(self._n_genes - 1, 1))
            if self._network.encoder_part is not None:
                self._input = ExpressedInput(model, codes, self._genes, n_on / self._n_genes)
        elif self._network.encoder_part is not None:
            self._input = RankedInput(model, codes, device)
        self._case = self._case_shift()
        self._states: list[LogLinearState] = []
        if self._network.log_linear is not None:
            chance = None if plan.state is None else torch.from_numpy(plan.state).to(device)
            shown = [
                shown_phenotypes(
                    model, codes, device, state_chance=chance, n_expressed=self._wanted_genes
                )
            ]
            if self._is_guided:
                shown.append(shown_phenotypes(model, np.full_like(codes, -1), device))
            self._states = [
                LogLinearState(self._network.log_linear, rows, n_expressed=self._whole)
                for rows in shown
            ]

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
        end, n = self._steps.ends[step], self._steps.sizes[step]
        genes = self._genes[:, end - n : end]
        if self._steps.is_gibbs:
            self._hide(genes)
            self._n_known_at_shift = -1
        parts = self._encoder_logits_of_step(genes)
        # The log-linear part follows every gene, in panels so large that it would take long, a few at a time.
        at_once = n if not self._states else -(-self._n_genes // self._settings.gene_steps)
        for first in range(0, n, at_once):
            some = slice(first, min(first + at_once, n))
            self._renew_shift_by_log_linear()
            logits = self._logits(genes[:, some], [part[:, some] for part in parts])
            logits = shift_expression(logits, self._shift + self._case, self._config)
            yield genes[:, some], slice(end - n + some.start, end - n + some.stop), logits

    def start_from_marginals(self, codes: NDArray[np.int32]) -> None:
        """Draw all genes, each on its own, from what training cells of the class had."""
        genes = self._genes[:, : self._n_genes]
        uniform = self._uniform[:, : self._n_genes]
        if self._states:
            self._renew_shift_by_log_linear()
            logits = shift_expression(self._states[0].logits(genes), self._shift, self._config)
            drawn = self._sample(logits, uniform, self._normal[:, :0])
        else:
            by_gene = torch.empty_like(uniform).scatter_(1, genes, uniform).cpu().numpy()
            start = draw_from_class_marginals(self._model, codes, by_gene)
            drawn = torch.from_numpy(start).to(genes.device).gather(1, genes)
        self.reveal(genes, drawn)

    def values(self) -> NDArray[np.int64] | NDArray[np.float32]:
        """Return (cells, genes) as drawn."""
        if self._config.kind == "continuous":
            return self._number.cpu().numpy()
        return (self._value - self._bin_0).cpu().numpy()

    def _encoder_logits(self, genes: Tensor) -> list[Tensor]:
        """(B, n, O) of the encoder, and of it without phenotypes where there is guidance."""
        part = self._network.encoder_part
        if part is None or self._input is None:
            return []
        route = self._network.attention_route(ragged=self._whole is not None)
        share = self._masked_share()
        most = self._input.most_asked(self._n_genes - self._n_known)
        found = []
        for with_phenotypes in (True, False)[: 2 if self._is_guided else 1]:
            answers = []
            for some in torch.split(genes, most, dim=1):
                asked = self._input.ask(
                    some, self._value, self._number, share, with_phenotypes=with_phenotypes
                )
                answers.append(part(asked, route)[0].float().view(*some.shape, -1))
            found.append(torch.cat(answers, dim=1))
        return found

    def _masked_share(self) -> Tensor:
        """(B,), as the model saw it in training."""
        if self._whole is None:
            return torch.full_like(self._shift, 1 - self._n_known / self._n_genes)
        return masked_share(self._n_expressed(), self._whole)

    def _case_shift(self) -> Tensor:
        """(B,) shift from training's share of masked genes that are off to that of whole cells."""
        if self._whole is None:
            return torch.zeros_like(self._shift)
        unexpressed = self._model.masking.unexpressed
        return torch.log(self._whole / (self._n_genes - self._whole)) - math.log(
            (1 - unexpressed) / unexpressed
        )

    def _encoder_logits_of_step(self, genes: Tensor) -> list[Tensor]:
        """(B, n, O) as `_encoder_logits`; without a log-linear part the depth needs all hidden genes."""
        if not self._looks_at_depth() or self._states:
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

    def _looks_at_depth(self) -> bool:
        """Tell whether there is a depth to meet, and enough genes hidden still to meet it with."""
        n_hidden = self._n_genes - self._n_known
        return self._wanted_genes is not None and n_hidden >= self._last_share * self._n_genes

    def _renew_shift_by_log_linear(self) -> None:
        """Renew the shift from what the log-linear part expects, now and then."""
        if not self._looks_at_depth() or not self._states:
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
        self._n_known_at_shift = self._n_known
        wanted = self._wanted_genes - self._n_expressed()
        log_odds = log_odds + self._case[:, None]
        self._shift = solve_shift(log_odds, is_hidden, wanted, self._settings.temperature)

    def _is_hidden(self) -> Tensor:
        """(B, genes)."""
        return self._value == MASK

    def _n_expressed(self) -> Tensor:
        """(B,) genes that were drawn and are expressed."""
        if self._config.kind == "continuous":
            return (self._number > 0).sum(dim=1)
        return (self._value > self._bin_0).sum(dim=1)

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
        for state in self._states:
            state.hide(genes, self._value.gather(1, genes) - self._bin_0)
        self._value.scatter_(1, genes, MASK)
        self._number.scatter_(1, genes, 0.0)
        self._n_known -= genes.shape[1]

    def reveal(self, genes: Tensor, drawn: Tensor) -> None:
        """Make drawn genes known."""
        if self._config.kind == "continuous":
            on = drawn >= float(self._model.values.edges[0])  # below the threshold: not expressed
            self._number.scatter_(1, genes, torch.where(on, drawn, torch.zeros_like(drawn)))
            self._value.scatter_(1, genes, self._bin_0)
        else:
            self._value.scatter_(1, genes, drawn + self._bin_0)
        for state in self._states:
            state.reveal(genes, drawn)
        self._n_known += genes.shape[1]


def shown_phenotypes(
    model: CellModel,
    codes: NDArray[np.int32],
    device: torch.device,
    *,
    state_chance: Tensor | None = None,
    n_expressed: Tensor | None = None,
) -> Tensor:
    """(B, S) one-hot rows of what is shown, as the log-linear part reads it.

    Parameters
    ----------
    codes
        (B, phenotypes), -1 where none is shown.
    state_chance
        (B,) uniform numbers by which each cell is given a latent cell state; None: it shows none.
    n_expressed
        (B,) genes that each cell is to express, which its state must fit.
    """
    tokens = model.config.tokens
    n_shown = sum(model.config.phenotype_sizes) + tokens.n_phenotypes
    first_shown = tokens.first_bin + tokens.n_bins
    at = torch.from_numpy(tokens.not_specified - first_shown + 1 + codes.astype(np.int64))
    shown = torch.zeros(len(codes), n_shown)
    if tokens.n_phenotypes:
        shown.scatter_(1, at, 1.0)
    shown = shown.to(device)
    log_linear = model.network.log_linear
    if log_linear is None or log_linear.n_states == 0:
        return shown
    if state_chance is None:
        no_state = torch.zeros(len(codes), dtype=torch.long, device=device)
        states = torch.nn.functional.one_hot(no_state, 1 + log_linear.n_states).to(shown.dtype)
    else:
        states = log_linear.draw_states(shown, state_chance, n_expressed)
    return torch.cat([shown, states], dim=1)
