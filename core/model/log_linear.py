"""The log-linear part of the model, to whose logits the encoder's are added.

Its terms are each the field's strong simple baseline:

- class log-odds: main effects of the phenotypes shown on each gene's bin, an additive multinomial
  regression fitted before training and frozen, weighted by the mask rate: with all genes masked they are
  the whole prediction, with many visible genes those count more;
- latent cell states: a phenotype that no label names, groups of the training cells within their types
  (`core.model.log_linear_fit`), derived from all genes of a cell. Half of the training cells show theirs,
  real cells in use never do, and a generated cell is first given one;
- couplings: every visible (gene, bin) adds a vector of rank r to the logits of every (gene, bin), a
  low-rank table of all pairwise effects; rank 0 has none;
- phenotype scores: logistic regression from standardised gene values to each phenotype and a small
  network for the residual, both fitted before training and frozen; the implications of the other
  phenotypes shown are learnt.

Measured in the notes on generation: with a variable mask rate this beats a Gaussian copula where
plain encoders lost. Learning the class table instead of freezing it overfits.

Shapes: B cells, T tokens, M masked genes, K masked phenotypes, G genes, O outputs per gene, N bins,
V values of all phenotypes, S what can be shown: V + phenotypes (each has [NO_*] first) and, where
there are latent cell states, "none" and one for each; r rank.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.model.batch_tensors import BatchTensors
from core.model.configuration import TfxConfig

#: Entries of the class table above which it would rival the network in size.
MAX_CLASS_TABLE = 200_000_000
#: Fraction of the training cells that show their latent cell state.
_STATES_SHOWN = 0.5
#: Hidden units of the correction to the phenotype scores (metrics in phenotype_fit).
_CORRECTION_WIDTH = 256


class _Visible(NamedTuple):
    """The tokens of a batch, (T,) each: cell, gene and bin, and whether it is a visible gene."""

    cell: Tensor
    gene: Tensor
    bin: Tensor
    is_visible: Tensor

    def row(self, n_bins: int) -> Tensor:
        """(T,), rows of a table of all (gene, bin)."""
        return self.gene * n_bins + self.bin


class LogLinear(nn.Module):
    """Class log-odds, low-rank couplings and linear phenotype scores."""

    class_table: Tensor
    gene_prior: Tensor
    bin_values: Tensor
    phenotype_prior: Tensor
    score_weight: Tensor
    score_bias: Tensor
    state_scores: Tensor
    state_offset: Tensor
    state_prior: Tensor
    state_bias: Tensor
    state_depth: Tensor
    slot_not_specified: Tensor

    def __init__(self, config: TfxConfig) -> None:
        super().__init__()
        tokens = config.tokens
        n_genes, n_outputs, n_bins = config.n_genes, config.n_gene_outputs, config.n_bins
        n_values = sum(config.phenotype_sizes)
        self.n_states = config.cell_states
        self.n_phenotypes_shown = n_values + tokens.n_phenotypes
        n_shown = self.n_phenotypes_shown + (self.n_states + 1 if self.n_states else 0)
        rank = config.log_linear_rank
        self.n_genes, self.n_outputs = n_genes, n_outputs
        self.n_bins, self.n_shown = n_bins, n_shown
        self.first_gene = tokens.first_gene
        self.first_slot = tokens.first_slot
        self.first_bin = tokens.first_bin
        self.first_shown = tokens.first_bin + n_bins
        # Frozen, filled by core.model.log_linear_fit.
        self.register_buffer("gene_prior", torch.zeros(n_genes * n_outputs))
        self.register_buffer("class_table", torch.zeros(n_shown, n_genes * n_outputs))
        self.register_buffer("bin_values", torch.zeros(n_genes, n_bins))
        self.register_buffer("phenotype_prior", torch.zeros(n_values))
        self.register_buffer("score_weight", torch.zeros(n_values, n_genes))
        self.register_buffer("score_bias", torch.zeros(n_values))
        if self.n_states:
            self.register_buffer("state_scores", torch.zeros(n_genes * n_bins, self.n_states))
            self.register_buffer("state_offset", torch.zeros(self.n_states))
            self.register_buffer("state_prior", torch.zeros(self.n_phenotypes_shown, self.n_states))
            self.register_buffer("state_bias", torch.zeros(self.n_states))
            self.register_buffer("state_depth", torch.ones(2, self.n_states))
        self.register_buffer(
            "slot_not_specified",
            torch.as_tensor(tokens.not_specified - self.first_shown, dtype=torch.long),
        )
        # Learnt.
        self.class_scale = _scale_of_rate()
        self.couplings = nn.Embedding(n_genes * n_bins, rank) if rank else None
        self.share_scale = _scale_of_rate() if rank else None
        # A model without phenotypes has none of the parts about them.
        self.class_gate = nn.Linear(n_shown, rank, bias=False) if rank and n_shown else None
        self.mix = (
            nn.Sequential(nn.Linear(rank, 2 * rank), nn.GELU(), nn.Linear(2 * rank, rank))
            if rank
            else None
        )
        self.effects = nn.Linear(rank, n_genes * n_outputs, bias=False) if rank else None
        self.score_scale = _scale_of_rate()
        self.phenotype_correction = (
            nn.Sequential(
                nn.Linear(n_genes, _CORRECTION_WIDTH),
                nn.GELU(),
                nn.Dropout(0.5),
                nn.Linear(_CORRECTION_WIDTH, n_values),
            )
            if n_values
            else None
        )
        self.phenotype_pairs = (
            nn.Linear(self.n_phenotypes_shown, n_values, bias=False) if n_values else None
        )

    def start(self) -> None:
        """Set the learnt parts so that the model begins exactly at the class log-odds."""
        if self.couplings is not None:
            nn.init.normal_(self.couplings.weight, std=0.3)
        scales = [self.class_scale, self.share_scale, self.score_scale]
        for part in (*scales, self.mix, self.phenotype_correction):
            if part is not None:
                nn.init.zeros_(part[-1].weight)  # type: ignore[arg-type]
                nn.init.zeros_(part[-1].bias)  # type: ignore[arg-type]
        for linear in (self.effects, self.class_gate, self.phenotype_pairs):
            if linear is not None:
                nn.init.zeros_(linear.weight)
        if self.phenotype_correction is not None:
            self.phenotype_correction.requires_grad_(requires_grad=False)

    def forward(
        self, batch: BatchTensors, *, only: Literal["marginals", "class_log_odds"] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return gene logits (M, O) and phenotype logits (K, V).

        ``only`` leaves of the phenotypes their training frequencies, and of the genes their marginals, or these
        and the class log-odds.
        """
        gene = (batch.token_id - self.first_gene).clamp(min=0)
        bins = batch.value - self.first_bin
        is_visible = (batch.token_id >= self.first_gene) & (bins >= 0)
        visible = _Visible(batch.cell_of_token, gene, bins.clamp(0, self.n_bins - 1), is_visible)
        shown_BS = self._shown(batch)
        with_state_BS = shown_BS
        if self.n_states:
            with_state_BS = torch.cat([shown_BS, self._states(batch, visible)], dim=1)
        if only is not None:
            shown_BS = with_state_BS * float(only == "class_log_odds")
            frequencies = self.phenotype_prior.expand(len(batch.phenotype_cell), -1)
            return self._genes(batch, None, shown_BS), frequencies
        return (
            self._genes(batch, visible, with_state_BS),
            self._phenotypes(batch, visible, shown_BS),
        )

    def _shown(self, batch: BatchTensors) -> Tensor:
        """(B, S without states) one-hot of the phenotypes shown; a masked one counts as not specified."""
        n_shown = self.n_phenotypes_shown
        if n_shown == 0:
            return self.class_table.new_zeros(batch.n_cells, 0)
        slot = batch.token_id - self.first_slot
        is_slot = (slot >= 0) & (batch.token_id < self.first_gene)
        slot = slot.clamp(0, len(self.slot_not_specified) - 1)
        at = batch.value - self.first_shown
        at = torch.where(at < 0, self.slot_not_specified[slot], at).clamp(0, n_shown - 1)
        shown = torch.zeros(batch.n_cells * n_shown, device=at.device)
        shown = shown.index_add(0, batch.cell_of_token * n_shown + at, is_slot.float())
        return shown.view(batch.n_cells, n_shown)

    def _states(self, batch: BatchTensors, visible: _Visible) -> Tensor:
        """(B, 1 + states) one-hot of the state shown: in training that of about every second cell."""
        at = torch.zeros(batch.n_cells, dtype=torch.long, device=visible.gene.device)
        if self.training and len(batch.gene):
            rows = self.state_scores[visible.row(self.n_bins)] * visible.is_visible.unsqueeze(-1)
            scores_BK = self.state_offset.repeat(batch.n_cells, 1)
            scores_BK = scores_BK.index_add(0, visible.cell, rows)
            # The state is that of the whole cell: masked genes count by their targets.
            targets = batch.gene.long() * self.n_bins + batch.gene_target.long()
            scores_BK = scores_BK.index_add(0, batch.gene_cell.long(), self.state_scores[targets])
            is_shown = torch.rand(batch.n_cells, device=at.device) < _STATES_SHOWN
            at = torch.where(is_shown, 1 + scores_BK.argmax(dim=1), at)
        return functional.one_hot(at, 1 + self.n_states).to(self.class_table.dtype)

    def draw_states(
        self, shown_BS: Tensor, chance: Tensor, n_expressed: Tensor | None = None
    ) -> Tensor:
        """Draw the states of cells to be generated: (B, 1 + states) one-hot.

        ``shown_BS`` (B, S without states) are the phenotypes shown, ``chance`` (B,) uniform numbers, and
        ``n_expressed`` (B,) the genes that each cell is to express, if that is requested.
        """
        odds = self.state_bias + shown_BS @ self.state_prior
        if n_expressed is not None:
            middle, spread = self.state_depth
            distance = (torch.log1p(n_expressed).unsqueeze(1) - middle) / spread
            odds = odds - 0.5 * distance**2 - spread.log()
        below = torch.softmax(odds, dim=1).cumsum(dim=1)
        at = (below < chance.unsqueeze(1)).sum(dim=1).clamp(max=self.n_states - 1)
        return functional.one_hot(1 + at, 1 + self.n_states).to(shown_BS.dtype)

    def _genes(self, batch: BatchTensors, visible: _Visible | None, shown_BS: Tensor) -> Tensor:
        """(M, O); without ``visible`` genes no couplings."""
        if len(batch.gene) == 0:
            return self.class_table.new_zeros(0, self.n_outputs)
        rate = batch.mask_rate.unsqueeze(-1)  # (B, 1)
        weight = rate + torch.sigmoid(self.class_scale(rate)) * (1 - rate)
        logits = self.gene_prior + weight * (shown_BS @ self.class_table)
        if self.couplings is not None and visible is not None:
            logits = logits + self._coupled(batch, visible, shown_BS)
        return logits.view(-1, self.n_genes, self.n_outputs)[batch.gene_cell, batch.gene]

    def _coupled(self, batch: BatchTensors, visible: _Visible, shown_BS: Tensor) -> Tensor:
        """(B, genes x outputs): effects of the visible genes on all genes."""
        assert self.couplings is not None
        assert self.share_scale is not None
        assert self.mix is not None
        assert self.effects is not None
        rows_Tr = self.couplings(visible.row(self.n_bins)) * visible.is_visible.unsqueeze(-1)
        sums = torch.zeros(batch.n_cells, rows_Tr.shape[1], device=rows_Tr.device)
        sums = sums.index_add(0, visible.cell, rows_Tr.float())
        n_visible = torch.zeros(batch.n_cells, device=sums.device)
        n_visible = n_visible.index_add(0, visible.cell, visible.is_visible.float())
        hidden_Br = sums / torch.sqrt(n_visible + 8).unsqueeze(-1)
        hidden_Br = hidden_Br * (1 + self.share_scale(batch.mask_rate.unsqueeze(-1)))
        if self.class_gate is not None:
            hidden_Br = hidden_Br * (1 + self.class_gate(shown_BS))
        effects: Tensor = self.effects(hidden_Br + self.mix(hidden_Br))
        return effects

    def _phenotypes(self, batch: BatchTensors, visible: _Visible, shown_BS: Tensor) -> Tensor:
        if self.phenotype_correction is None or self.phenotype_pairs is None:
            return shown_BS.new_zeros(0, 0)
        standardised = self.bin_values[visible.gene, visible.bin] * visible.is_visible
        values_BG = torch.zeros(batch.n_cells * self.n_genes, device=standardised.device)
        values_BG = values_BG.index_add(0, visible.cell * self.n_genes + visible.gene, standardised)
        values_BG = values_BG.view(batch.n_cells, self.n_genes)
        rate = batch.mask_rate.unsqueeze(-1)
        fitted_BV = (values_BG @ self.score_weight.T) * (1 + self.score_scale(rate))
        # With nothing visible the prior; with everything visible the regression's own intercept.
        bias_BV = rate * self.phenotype_prior + (1 - rate) * self.score_bias
        fitted_BV = fitted_BV + (1 - rate) * self.phenotype_correction(values_BG)
        return (bias_BV + fitted_BV + self.phenotype_pairs(shown_BS))[batch.phenotype_cell]


def _scale_of_rate() -> nn.Sequential:
    """Make a small network from the mask rate to one factor."""
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
