"""The log-linear part's answer while genes are revealed one after another, kept up to date in place.

`core.model.log_linear.LogLinear` reads a whole batch; here a gene that is revealed adds its vote to a
sum of rank r, so that a step costs what the genes it asks for cost, not what the panel does. The
answer is the same (held against the network in the tests), in float64: sums that change thousands
of times, and a cell that does not depend on the cells beside it.

In the expressed layout only genes that are on have a vote, and a cell is whole once as many are known as it
is to express.

Shapes: B cells, S phenotype values shown, n genes asked for per cell, O outputs per gene, r rank.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from core.model.log_linear import LogLinear

__all__ = ["LogLinearState", "masked_share"]

#: Genes of the panel that are answered at once.
_PANEL_PART = 2_048


class LogLinearState:
    """What the log-linear part knows of B cells.

    Parameters
    ----------
    log_linear
        The fitted log-linear part.
    shown_BS
        One-hot rows of the phenotypes shown, [NO_*] where none is.
    n_expressed
        (B,) genes that each cell is to express, for the expressed layout; None: genes that are off are
        seen as well as those that are on.
    """

    def __init__(
        self, log_linear: LogLinear, shown_BS: Tensor, *, n_expressed: Tensor | None = None
    ) -> None:
        self._log_linear = log_linear
        self._n_genes = log_linear.n_genes
        device = shown_BS.device
        # There are no float64 numbers on Apple's GPUs.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sees_off = n_expressed is None
        self._whole = (
            torch.full((1, 1), self._n_genes, dtype=self._dtype, device=device)
            if n_expressed is None
            else n_expressed.unsqueeze(1).to(self._dtype).clamp(min=1)
        )
        self._class_BGO = (shown_BS @ log_linear.class_table).view(len(shown_BS), self._n_genes, -1)
        self._prior_GO = log_linear.gene_prior.view(self._n_genes, -1).to(self._dtype)
        self._pairs = (
            None if log_linear.couplings is None else _PairState(log_linear, shown_BS, self._dtype)
        )
        self._cells = torch.arange(len(shown_BS), device=device).unsqueeze(1)
        self._n_visible = torch.zeros_like(self._whole)

    def reveal(self, genes: Tensor, bins: Tensor) -> None:
        """Make (B, n) genes visible, with their bins."""
        self._move(genes, bins, 1)

    def hide(self, genes: Tensor, bins: Tensor) -> None:
        """Hide (B, n) visible genes, whose bins were ``bins``."""
        self._move(genes, bins, -1)

    def _move(self, genes: Tensor, bins: Tensor, sign: int) -> None:
        counts = None if self._sees_off else bins > 0
        if counts is None:
            self._n_visible += sign * genes.shape[1]
        else:
            self._n_visible += sign * counts.sum(dim=1, keepdim=True)
        if self._pairs is not None:
            self._pairs.move(genes, bins, counts, sign)

    def logits(self, genes: Tensor) -> Tensor:
        """Return (B, n, O) logits of hidden genes (B, n)."""
        share = self._masked_share()
        logits: Tensor = (
            self._prior_GO[genes]
            + self._class_weight(share)[..., None] * self._class_BGO[self._cells, genes]
        )
        if self._pairs is None:
            return logits
        hidden = self._pairs.hidden(share, self._n_visible)
        return logits + torch.einsum("bnor,br->bno", self._pairs.effects_GOr[genes], hidden)

    def panel_logits(self) -> Iterator[Tensor]:
        """Yield (B, some genes, O) logits of the whole panel, in parts, in float32."""
        share = self._masked_share()
        weight = self._class_weight(share)[..., None]
        hidden = None if self._pairs is None else self._pairs.hidden(share, self._n_visible).float()
        for first in range(0, self._n_genes, _PANEL_PART):
            some = slice(first, first + _PANEL_PART)
            logits_BxO = self._prior_GO[some].float() + weight * self._class_BGO[:, some]
            if self._pairs is not None and hidden is not None:
                effects_xr = self._pairs.effects_GOr[some].flatten(0, 1).float()
                logits_BxO = logits_BxO + (hidden @ effects_xr.T).view(
                    len(hidden), *logits_BxO.shape[1:]
                )
            yield logits_BxO

    def _masked_share(self) -> Tensor:
        return masked_share(self._n_visible, self._whole).float()

    def _class_weight(self, share: Tensor) -> Tensor:
        """(B or 1, 1) weight of the class table."""
        weight: Tensor = share + torch.sigmoid(self._log_linear.class_scale(share)) * (1 - share)
        return weight


class _PairState:
    """The sum of the couplings of the genes revealed so far, and what it says."""

    def __init__(self, log_linear: LogLinear, shown_BS: Tensor, dtype: torch.dtype) -> None:
        assert log_linear.couplings is not None
        assert log_linear.effects is not None
        assert log_linear.share_scale is not None
        assert log_linear.mix is not None
        rank = log_linear.couplings.weight.shape[1]
        self._n_bins, self._dtype, self._share_scale = (
            log_linear.n_bins,
            dtype,
            log_linear.share_scale,
        )
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

    def move(self, genes: Tensor, bins: Tensor, counts: Tensor | None, sign: int) -> None:
        """Add (1) or take back (-1) the votes of (B, n) genes, of those that ``counts`` (None: all)."""
        couplings_Bnr = self._couplings[genes * self._n_bins + bins]
        if counts is not None:
            couplings_Bnr = couplings_Bnr * counts.unsqueeze(-1)
        self._sums_Br += sign * couplings_Bnr.sum(dim=1)

    def hidden(self, share: Tensor, n_visible: Tensor) -> Tensor:
        """(B, r) hidden state; (B or 1, 1) masked share and genes visible."""
        scale = (1 + self._share_scale(share)).to(self._dtype)
        root = (n_visible + 8).sqrt()
        hidden = self._sums_Br * (scale / root) * self._gate_Br
        inner = nn.functional.gelu(torch.addmm(self._mix_in[1], hidden, self._mix_in[0]))
        return hidden + torch.addmm(self._mix_out[1], inner, self._mix_out[0])


def masked_share(n_known: Tensor, n_whole: Tensor) -> Tensor:
    """Return the masked share of cells of which ``n_known`` genes out of ``n_whole`` are known.

    Where all are known, or more than were expected, one more is taken to be hidden: it is asked for.
    """
    return 1 - torch.minimum(n_known / n_whole, 1 - 1 / n_whole)
