"""The skeleton's answer while genes are revealed one after another, kept up to date in place.

`core.model.skeleton.Skeleton` reads a whole batch; here a gene that is revealed adds its vote to a
sum of rank r, so that a step costs what the genes it asks for cost, not what the panel does. The
answer is the same (held against the network in the tests), in float64: sums that change thousands
of times, and a cell that does not depend on the cells beside it.

Shapes: B cells, S phenotype values shown, n genes asked for per cell, O outputs per gene, r rank.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from core.model.skeleton import Skeleton

__all__ = ["SkeletonState"]

#: Genes of the panel that are answered at once.
_PANEL_PART = 2_048


class SkeletonState:
    """What the skeleton knows of B cells, of which the same number of genes are visible.

    Parameters
    ----------
    skeleton
        The fitted skeleton.
    shown_BS
        One-hot rows of the phenotypes shown, [NO_*] where none is.
    """

    def __init__(self, skeleton: Skeleton, shown_BS: Tensor) -> None:
        self._skeleton = skeleton
        self._n_genes = skeleton.n_genes
        device = shown_BS.device
        # There are no float64 numbers on Apple's GPUs.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._class_BGO = (shown_BS @ skeleton.class_table).view(len(shown_BS), self._n_genes, -1)
        self._prior_GO = skeleton.gene_prior.view(self._n_genes, -1).to(self._dtype)
        rank = skeleton.votes.weight.shape[1]
        self._votes = skeleton.votes.weight.to(self._dtype)
        self._effects_GOr = skeleton.effects.weight.view(self._n_genes, -1, rank).to(self._dtype)
        gate = None if skeleton.class_gate is None else skeleton.class_gate(shown_BS)
        self._gate_Br = 1 + (shown_BS.new_zeros(1, rank) if gate is None else gate).to(self._dtype)
        first, _, last = skeleton.mix
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        self._mix_in = (first.weight.T.to(self._dtype), first.bias.to(self._dtype))
        self._mix_out = (last.weight.T.to(self._dtype), last.bias.to(self._dtype))
        self._sums_Br = torch.zeros(len(shown_BS), rank, dtype=self._dtype, device=device)
        self._cells = torch.arange(len(shown_BS), device=device).unsqueeze(1)
        self.n_visible = 0

    def reveal(self, genes: Tensor, bins: Tensor) -> None:
        """Make (B, n) genes visible, with their bins."""
        self._sums_Br += self._votes[genes * self._skeleton.n_bins + bins].sum(dim=1)
        self.n_visible += genes.shape[1]

    def hide(self, genes: Tensor, bins: Tensor) -> None:
        """Hide (B, n) visible genes, whose bins were ``bins``."""
        self._sums_Br -= self._votes[genes * self._skeleton.n_bins + bins].sum(dim=1)
        self.n_visible -= genes.shape[1]

    def logits(self, genes: Tensor) -> Tensor:
        """Return (B, n, O) logits of hidden genes (B, n)."""
        weight, hidden = self._weight_and_hidden()
        votes_BnO = torch.einsum("bnor,br->bno", self._effects_GOr[genes], hidden)
        return self._prior_GO[genes] + weight * self._class_BGO[self._cells, genes] + votes_BnO

    def panel_logits(self) -> Iterator[Tensor]:
        """Yield (B, some genes, O) logits of the whole panel, in parts, in float32."""
        weight, hidden = self._weight_and_hidden()
        for first in range(0, self._n_genes, _PANEL_PART):
            some = slice(first, first + _PANEL_PART)
            effects_xr = self._effects_GOr[some].flatten(0, 1).float()
            class_BxO = self._class_BGO[:, some]
            votes_BxO = (hidden.float() @ effects_xr.T).view(class_BxO.shape)
            yield self._prior_GO[some].float() + weight * class_BxO + votes_BxO

    def _weight_and_hidden(self) -> tuple[float, Tensor]:
        """Return the weight of the class table and the (B, r) hidden state."""
        skeleton = self._skeleton
        share = torch.full((1, 1), 1 - self.n_visible / self._n_genes, device=self._sums_Br.device)
        weight = float(share + torch.sigmoid(skeleton.class_scale(share)) * (1 - share))
        scale = float(1 + skeleton.share_scale(share))
        hidden = self._sums_Br * (scale / (self.n_visible + 8) ** 0.5) * self._gate_Br
        inner = nn.functional.gelu(torch.addmm(self._mix_in[1], hidden, self._mix_in[0]))
        hidden = hidden + torch.addmm(self._mix_out[1], inner, self._mix_out[0])
        return weight, hidden
