"""The log-linear part's logits while genes are revealed one after another, updated in place.

`core.model.log_linear.LogLinear` reads a whole batch; here a revealed gene adds its couplings to a sum of
rank r, so that a step costs what its queried genes cost, not what the panel does. The logits are those of
the network (compared in the tests). Sums are float64: they change thousands of times, and a cell must not
depend on the cells beside it.

In the expressed layout only expressed genes have couplings.

Shapes: B cells, S phenotype values shown, n queried genes per cell, O outputs per gene, r rank.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from core.model.log_linear import LogLinear

#: Genes of the panel per part of `panel_logits`.
_PANEL_PART = 2_048


class LogLinearState:
    """The sums of the log-linear part for B cells.

    ``shown_BS`` are one-hot rows of the phenotypes shown, [NO_*] where none is; ``n_expressed`` (B,) are the
    genes that each cell is to express, for the expressed layout. None: the ranked layout, which shows genes
    that are not expressed as well.
    """

    def __init__(
        self, log_linear: LogLinear, shown_BS: Tensor, *, n_expressed: Tensor | None = None
    ) -> None:
        self._class_scale, self._n_genes = log_linear.class_scale, log_linear.n_genes
        # There are no float64 numbers on Apple's GPUs.
        dtype = torch.float32 if shown_BS.device.type == "mps" else torch.float64
        self._shows_unexpressed = n_expressed is None
        if n_expressed is None:
            n_expressed = torch.full((1,), self._n_genes, device=shown_BS.device)
        self._n_in_all = n_expressed.unsqueeze(1).to(dtype).clamp(min=1)
        self._class_BGO = (shown_BS @ log_linear.class_table).view(len(shown_BS), self._n_genes, -1)
        self._prior_GO = log_linear.gene_prior.view(self._n_genes, -1).to(dtype)
        self._couplings = (
            None if log_linear.couplings is None else _CouplingSums(log_linear, shown_BS, dtype)
        )
        self._cells = torch.arange(len(shown_BS), device=shown_BS.device).unsqueeze(1)
        self._n_visible = torch.zeros_like(self._n_in_all)

    def reveal(self, genes: Tensor, bins: Tensor, *, sign: int = 1) -> None:
        """Make (B, n) genes visible, with their bins; a ``sign`` of -1 hides visible ones again."""
        is_shown = None if self._shows_unexpressed else bins > 0
        n_shown = genes.shape[1] if is_shown is None else is_shown.sum(dim=1, keepdim=True)
        self._n_visible += sign * n_shown
        if self._couplings is not None:
            self._couplings.add(genes, bins, is_shown, sign)

    def logits(self, genes: Tensor) -> Tensor:
        """Return (B, n, O) logits of hidden genes (B, n)."""
        rate = self._mask_rate()
        of_class = self._class_weight(rate) * self._class_BGO[self._cells, genes]
        logits: Tensor = self._prior_GO[genes] + of_class
        if self._couplings is None:
            return logits
        hidden = self._couplings.hidden(rate, self._n_visible)
        return logits + torch.einsum("bnor,br->bno", self._couplings.effects_GOr[genes], hidden)

    def panel_logits(self) -> Iterator[Tensor]:
        """Yield (B, some genes, O) logits of the whole panel, in parts, in float32."""
        rate = self._mask_rate()
        weight = self._class_weight(rate)
        couplings = self._couplings
        hidden = None if couplings is None else couplings.hidden(rate, self._n_visible).float()
        for first in range(0, self._n_genes, _PANEL_PART):
            some = slice(first, first + _PANEL_PART)
            logits_BxO = self._prior_GO[some].float() + weight * self._class_BGO[:, some]
            if couplings is not None and hidden is not None:
                effects_xr = couplings.effects_GOr[some].flatten(0, 1).float()
                of_couplings = (hidden @ effects_xr.T).view(len(hidden), *logits_BxO.shape[1:])
                logits_BxO = logits_BxO + of_couplings
            yield logits_BxO

    def _mask_rate(self) -> Tensor:
        return mask_rate(self._n_visible, self._n_in_all).float()

    def _class_weight(self, rate: Tensor) -> Tensor:
        """(B or 1, 1, 1) weight of the class table."""
        weight: Tensor = rate + torch.sigmoid(self._class_scale(rate)) * (1 - rate)
        return weight[..., None]


class _CouplingSums:
    """The sum of the couplings of the genes revealed so far, and the effects on hidden ones."""

    def __init__(self, log_linear: LogLinear, shown_BS: Tensor, dtype: torch.dtype) -> None:
        assert log_linear.couplings is not None
        assert log_linear.effects is not None
        assert log_linear.share_scale is not None
        assert log_linear.mix is not None
        rank = log_linear.couplings.weight.shape[1]
        self._n_bins, self._dtype = log_linear.n_bins, dtype
        self._rate_scale = log_linear.share_scale
        self._couplings = log_linear.couplings.weight.to(dtype)
        self.effects_GOr = log_linear.effects.weight.view(log_linear.n_genes, -1, rank).to(dtype)
        gate = None if log_linear.class_gate is None else log_linear.class_gate(shown_BS)
        self._gate_Br = 1 + (shown_BS.new_zeros(1, rank) if gate is None else gate).to(dtype)
        first, _, last = log_linear.mix
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        self._mix_in = (first.weight.T.to(dtype), first.bias.to(dtype))
        self._mix_out = (last.weight.T.to(dtype), last.bias.to(dtype))
        self._sums_Br = torch.zeros(len(shown_BS), rank, dtype=dtype, device=shown_BS.device)

    def add(self, genes: Tensor, bins: Tensor, is_shown: Tensor | None, sign: int) -> None:
        """Add (1) or subtract (-1) the couplings of (B, n) genes, of those shown (None: all)."""
        couplings_Bnr = self._couplings[genes * self._n_bins + bins]
        if is_shown is not None:
            couplings_Bnr = couplings_Bnr * is_shown.unsqueeze(-1)
        self._sums_Br += sign * couplings_Bnr.sum(dim=1)

    def hidden(self, rate: Tensor, n_visible: Tensor) -> Tensor:
        """(B, r) hidden state; (B or 1, 1) mask rate and visible genes."""
        scale = (1 + self._rate_scale(rate)).to(self._dtype)
        root = (n_visible + 8).sqrt()
        hidden = self._sums_Br * (scale / root) * self._gate_Br
        inner = nn.functional.gelu(torch.addmm(self._mix_in[1], hidden, self._mix_in[0]))
        return hidden + torch.addmm(self._mix_out[1], inner, self._mix_out[0])


def mask_rate(n_known: Tensor, n_in_all: Tensor) -> Tensor:
    """Return the mask rate of cells of which ``n_known`` genes out of ``n_in_all`` are known.

    Where all are known, or more than were expected, one more counts as hidden: the queried one.
    """
    return 1 - torch.minimum(n_known / n_in_all, 1 - 1 / n_in_all)
