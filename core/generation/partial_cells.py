"""Cells while they are drawn: what is known of each, and the model's logits for the rest.

All genes start hidden; `PartialCells` gives logits for some, and the caller reveals what it draws from
them. The encoder reads the cells in their layout (`core.generation.encoder_input`). The log-linear part's sums
follow every gene (`core.generation.log_linear_state`). Where a cell is to express a given number of genes, all
log-odds of expression are shifted (`core.generation.expression_shift`).

Shapes: B cells, G genes of the panel, n queried genes per cell, O outputs per gene.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.encoding.tokens import MASK
from core.encoding.values import CountLattice
from core.generation.cell_sizes import mean_genes_per_cell
from core.generation.encoder_input import ExpressedInput, RankedInput
from core.generation.expression_shift import expression_log_odds, shift_expression, solve_shift
from core.generation.log_linear_state import LogLinearState, mask_rate
from core.generation.plan import CellPlan
from core.model.folder import CellModel
from core.model.library_size import close_bins
from core.model.losses import sample_genes
from core.presets.schema import GenerateSettings

#: How often the shift of a cell is renewed while its genes are drawn.
_SHIFTS_PER_CELL = 8
#: Fraction of the panel that is drawn last, without a new shift: few genes must not make up for all. A
#: log-linear part follows every gene and holds the number by itself: a shift to the end takes spread and
#: correlations away (benchmarks/log_linear_constants.md).
_LAST_FRACTION, _LAST_FRACTION_WITH_LOG_LINEAR = 1 / 16, 1 / 4
#: Cells of the whole training set that are added to each class.
_PSEUDO_CELLS = 5.0


class PartialCells:
    """B cells that are being drawn.

    ``codes`` are (B, phenotypes), -1 for [NO_*]; ``plan`` says which genes of these cells each step draws,
    and holds their random numbers; ``genes_per_cell`` (B,) are the genes that each cell is to express,
    None: not controlled. ``lattice`` are their library sizes, for a model that reads them.
    """

    def __init__(
        self,
        model: CellModel,
        codes: NDArray[np.int32],
        settings: GenerateSettings,
        plan: CellPlan,
        genes_per_cell: NDArray[np.float32] | None,
        lattice: CountLattice | None = None,
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
        self._continuous = torch.zeros(shape, device=device)
        self._cells = torch.arange(self._n_cells, device=device).unsqueeze(1)
        self._is_guided = settings.guidance > 0
        self._n_known = 0
        sizes = None if genes_per_cell is None else torch.from_numpy(genes_per_cell).to(device)
        #: (B,) genes to express; None: not controlled, because the library size decides them, say.
        self._genes_per_cell = sizes if lattice is None else None
        #: (B,); (B, G, O) effects on the logits; (B, G or 1, bins): of the library size.
        self._library_size: Tensor | None = None
        self._library_effects: Tensor | None = None
        self._possible: Tensor | None = None
        if lattice is not None and self._network.library_size is not None:
            self._library_size = torch.from_numpy(lattice.totals).to(device)
            self._library_effects = self._network.library_size(self._library_size)
            if self._config.n_gene_outputs > 1:
                self._possible = torch.from_numpy(lattice.possible).to(device)
        self._shift = torch.zeros(self._n_cells, device=device)
        self._n_known_at_shift = -1
        # A Gibbs sweep never hides more than a few genes.
        holds_number = self._network.log_linear is not None and not plan.steps.is_gibbs
        self._last_fraction = _LAST_FRACTION_WITH_LOG_LINEAR if holds_number else _LAST_FRACTION
        self._input: RankedInput | ExpressedInput | None = None  # only for an encoder
        #: (B,) genes that a complete cell of the expressed layout shows.
        self._n_shown: Tensor | None = None
        if model.config.layout == "expressed":
            mean = mean_genes_per_cell(model.reference)
            self._n_shown = sizes
            if self._n_shown is None:
                self._n_shown = torch.full((self._n_cells,), mean, device=device)
            self._n_shown = self._n_shown.clamp(1, max(self._n_genes - 1, 1))
            if self._network.encoder_part is not None:
                fraction = mean / self._n_genes
                self._input = ExpressedInput(
                    model, codes, self._genes, fraction, self._library_size
                )
        elif self._network.encoder_part is not None:
            self._input = RankedInput(model, codes, device, self._library_size)
        self._layout_shift = self._shift_of_layout()
        self._states: list[LogLinearState] = []
        if self._network.log_linear is not None:
            uniform = None if plan.state is None else torch.from_numpy(plan.state).to(device)
            shown = [shown_phenotypes(model, codes, device, uniform=uniform, n_expressed=sizes)]
            if self._is_guided:
                shown.append(shown_phenotypes(model, np.full_like(codes, -1), device))
            self._states = [
                LogLinearState(self._network.log_linear, rows, n_expressed=self._n_shown)
                for rows in shown
            ]

    def draw(self, step: int) -> None:
        """Draw the genes of a step."""
        for genes, at, logits in self.logits_of_step(step):
            self.reveal(genes, self._sample(logits, self._uniform[:, at], self._normal[:, at]))

    def logits_of_step(self, step: int) -> Iterator[tuple[Tensor, slice, Tensor]]:
        """Give logits for the genes of a step, a few genes at a time; visible ones are hidden first.

        Yields genes (B, n), their place among the draws of the plan, and their logits (B, n, O). The
        caller must `reveal` them before the next are due.
        """
        end, n = self._steps.ends[step], self._steps.sizes[step]
        genes = self._genes[:, end - n : end]
        if self._steps.is_gibbs:
            self._hide(genes)
            self._n_known_at_shift = -1
        parts = self._encoder_logits_of_step(genes)
        # The log-linear part follows every gene; in large panels, where that takes long, a few at a time.
        at_once = n if not self._states else -(-self._n_genes // self._settings.gene_steps)
        for first in range(0, n, at_once):
            some = slice(first, min(first + at_once, n))
            self._renew_shift_by_log_linear()
            logits = self._logits(genes[:, some], [part[:, some] for part in parts])
            logits = shift_expression(logits, self._shift + self._layout_shift, self._config)
            yield genes[:, some], slice(end - n + some.start, end - n + some.stop), logits

    def draw_marginals(self, codes: NDArray[np.int32]) -> None:
        """Draw all genes, each on its own, from the training cells of the class."""
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

    def reveal(self, genes: Tensor, drawn: Tensor) -> None:
        """Make (B, n) drawn genes known."""
        if self._config.kind == "continuous":
            threshold = float(self._model.values.edges[0])  # below it a gene is not expressed
            values = torch.where(drawn >= threshold, drawn, torch.zeros_like(drawn))
            self._continuous.scatter_(1, genes, values)
            self._value.scatter_(1, genes, self._bin_0)
        else:
            self._value.scatter_(1, genes, drawn + self._bin_0)
        for state in self._states:
            state.reveal(genes, drawn)
        self._n_known += genes.shape[1]

    def values(self) -> NDArray[np.int64] | NDArray[np.float32]:
        """Return (cells, genes): bins, or values of a continuous model."""
        if self._config.kind == "continuous":
            return self._continuous.cpu().numpy()
        return (self._value - self._bin_0).cpu().numpy()

    def _hide(self, genes: Tensor) -> None:
        for state in self._states:
            state.reveal(genes, self._value.gather(1, genes) - self._bin_0, sign=-1)
        self._value.scatter_(1, genes, MASK)
        self._continuous.scatter_(1, genes, 0.0)
        self._n_known -= genes.shape[1]

    def _encoder_logits(self, genes: Tensor) -> list[Tensor]:
        """(B, n, O) of the encoder and, with guidance, of it without phenotypes."""
        part = self._network.encoder_part
        if part is None or self._input is None:
            return []
        route = self._network.attention_route()
        rate = self._mask_rate()
        most = self._input.most_queried(self._n_genes - self._n_known)
        found = []
        for with_phenotypes in (True, False)[: 2 if self._is_guided else 1]:
            logits = []
            for some in torch.split(genes, most, dim=1):
                batch = self._input.query(
                    some, self._value, self._continuous, rate, with_phenotypes=with_phenotypes
                )
                logits.append(part(batch, route)[0].float().view(*some.shape, -1))
            found.append(torch.cat(logits, dim=1))
        return found

    def _mask_rate(self) -> Tensor:
        """(B,), by training's definition of the layout."""
        if self._n_shown is None:
            return torch.full_like(self._shift, 1 - self._n_known / self._n_genes)
        return mask_rate(self._n_expressed(), self._n_shown)

    def _shift_of_layout(self) -> Tensor:
        """(B,) shift from training's fraction of masked genes not expressed to that of whole cells."""
        if self._n_shown is None:
            return torch.zeros_like(self._shift)
        unexpressed = self._model.masking.unexpressed
        return torch.log(self._n_shown / (self._n_genes - self._n_shown)) - math.log(
            (1 - unexpressed) / unexpressed
        )

    def _encoder_logits_of_step(self, genes: Tensor) -> list[Tensor]:
        """(B, n, O) as `_encoder_logits`; without a log-linear part the shift needs all hidden genes."""
        if not self._is_controlled() or self._states:
            return self._encoder_logits(genes)
        is_hidden = self._is_hidden()
        hidden = is_hidden.nonzero()[:, 1].view(self._n_cells, -1)
        parts = self._encoder_logits(hidden)
        log_odds = torch.zeros(is_hidden.shape, device=genes.device)
        log_odds.scatter_(1, hidden, expression_log_odds(parts[0], self._config))
        self._renew_shift(log_odds, is_hidden)
        place = torch.zeros_like(is_hidden, dtype=torch.long)
        numbers = torch.arange(hidden.shape[1], device=genes.device).expand_as(hidden)
        at = place.scatter_(1, hidden, numbers).gather(1, genes)
        return [part[self._cells, at] for part in parts]

    def _is_controlled(self) -> bool:
        """Whether a number of genes is to be met, and enough genes are hidden to meet it with."""
        n_hidden = self._n_genes - self._n_known
        return self._genes_per_cell is not None and n_hidden >= self._last_fraction * self._n_genes

    def _renew_shift_by_log_linear(self) -> None:
        """Renew the shift from the log-linear part's expectation, a few times per cell."""
        if not self._is_controlled() or not self._states:
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
        assert self._genes_per_cell is not None
        self._n_known_at_shift = self._n_known
        missing = self._genes_per_cell - self._n_expressed()
        log_odds = log_odds + self._layout_shift[:, None]
        self._shift = solve_shift(log_odds, is_hidden, missing, self._settings.temperature)

    def _is_hidden(self) -> Tensor:
        """(B, G)."""
        return self._value == MASK

    def _n_expressed(self) -> Tensor:
        """(B,) genes that were drawn and are expressed."""
        if self._config.kind == "continuous":
            return (self._continuous > 0).sum(dim=1)
        return (self._value > self._bin_0).sum(dim=1)

    def _logits(self, genes: Tensor, encoder: Sequence[Tensor]) -> Tensor:
        """(B, n, O) of all parts together, guided."""
        branches = [state.logits(genes) for state in self._states]
        if encoder:
            pairs = zip(encoder, branches, strict=True)
            branches = [part + of_state for part, of_state in pairs] if branches else list(encoder)
        logits = branches[0]
        if self._is_guided:
            guidance = self._settings.guidance
            if self._settings.guidance_ramp == "late":
                guidance *= self._n_known / self._n_genes
            logits = (1 + guidance) * branches[0] - guidance * branches[1]
        if self._library_effects is not None:
            logits = logits + self._library_effects[self._cells, genes]
        if self._possible is not None:
            possible = self._possible.expand(-1, self._n_genes, -1)
            logits = close_bins(logits, possible[self._cells, genes])
        return logits

    def _sample(self, logits: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        drawn = sample_genes(
            logits.flatten(0, 1),
            self._config,
            temperature=self._settings.temperature,
            uniform=uniform.reshape(-1),
            normal=normal.reshape(-1),
        )
        return drawn.view(uniform.shape)


def shown_phenotypes(
    model: CellModel,
    codes: NDArray[np.int32],
    device: torch.device,
    *,
    uniform: Tensor | None = None,
    n_expressed: Tensor | None = None,
) -> Tensor:
    """(B, S) one-hot rows of the phenotypes shown, -1 where none is, as the log-linear part reads them.

    ``uniform`` (B,) random numbers choose each cell's latent cell state, which fits the ``n_expressed`` (B,)
    genes that it is to express; without them it shows none.
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
    if uniform is None:
        no_state = torch.zeros(len(codes), dtype=torch.long, device=device)
        states = torch.nn.functional.one_hot(no_state, 1 + log_linear.n_states).to(shown.dtype)
    else:
        states = log_linear.draw_states(shown, uniform, n_expressed)
    return torch.cat([shown, states], dim=1)


def draw_from_class_marginals(
    model: CellModel, codes: NDArray[np.int32], uniform: NDArray[np.float32]
) -> NDArray[np.int64] | NDArray[np.float32]:
    """Draw every gene on its own: (cells, genes) bins, or the gene's mean where it is expressed.

    Of a cell's phenotypes, the value that fewest training cells have is the class: it is the most
    specific, and the sweeps that follow see the others. Expressed genes take a bin as all training
    cells did. ``codes`` are (cells, phenotypes), -1 where nothing is specified; ``uniform`` (cells, genes).
    """
    reference, sizes = model.reference, model.config.phenotype_sizes
    starts = np.cumsum([0, *sizes])[:-1]
    counts = reference.bin_counts.astype(float) + 1.0
    n_expressing = counts[:, 1:].sum(axis=1)
    overall = n_expressing / counts.sum(axis=1)  # (genes,) fraction of cells that express it
    overall_mean = (model.table.means[:, 1:] * counts[:, 1:]).sum(axis=1) / n_expressing
    cumulative = np.cumsum(counts[:, 1:], axis=1) / n_expressing[:, None]
    n_cells = [reference.value_counts(slot, size) for slot, size in enumerate(sizes)]
    drawn = np.empty(uniform.shape, np.float32 if model.config.kind == "continuous" else np.int64)
    for row in np.unique(codes, axis=0):
        rows = np.flatnonzero((codes == row).all(axis=1))
        known = [(slot, int(code)) for slot, code in enumerate(row) if code >= 0]
        rate, mean = overall, overall_mean
        if known:
            slot, code = min(known, key=lambda value: n_cells[value[0]][value[1]])
            n, detection = n_cells[slot][code], reference.detection[starts[slot] + code]
            rate = (n * detection + _PSEUDO_CELLS * overall) / (n + _PSEUDO_CELLS)
            seen = detection > 0
            of_class = reference.means[starts[slot] + code] / np.where(seen, detection, 1)
            mean = np.where(seen, of_class, mean)
        is_expressed = uniform[rows] < rate
        if model.config.kind == "continuous":
            drawn[rows] = np.where(is_expressed, mean, 0)
            continue
        # Where the gene is expressed, uniform / rate is uniform again.
        left = np.where(is_expressed, uniform[rows] / np.maximum(rate, 1e-12), 0.0)
        bins = (left[..., None] >= cumulative).sum(axis=-1)
        drawn[rows] = np.where(is_expressed, 1 + bins.clip(max=cumulative.shape[1] - 1), 0)
    return drawn
