"""The encoder: identity + value embeddings, then transformer layers over packed tokens.

BERT's maths by default (post-norm, GELU, biases); held against ``transformers.BertModel`` with the
same weights in the tests. Only some positions are ever read, so the last layer computes keys and
values everywhere but the rest of itself only there: exact, a fifth of the work of four layers saved.
Shapes: T tokens, R positions read, D hidden size, H heads.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from core.model.attention import AttentionRoute
from core.model.batch_tensors import BatchTensors
from core.model.cell_bounds import CellBounds
from core.model.configuration import TfxConfig

__all__ = ["CellEmbedding", "Encoder", "Reads"]

_NORM_EPSILON = 1e-12  # BERT's


@dataclass(frozen=True)
class Reads:
    """Positions whose hidden state is wanted.

    Attributes
    ----------
    position
        (R,), flat, ascending.
    bounds, cu_bounds
        (cells + 1,), first of each cell, on the host and on the device (int32).
    """

    position: Tensor
    bounds: NDArray[np.int32]
    cu_bounds: Tensor


class CellEmbedding(nn.Module):
    """Embed each token as identity + value (+ the number itself, continuous).

    Identity and value add up, so that an average over tokens, which is what [CLS] attends to at first,
    knows how many genes are in which bin but not which ones. With a summary [CLS] is told.
    """

    def __init__(self, config: TfxConfig) -> None:
        super().__init__()
        tokens = config.tokens
        self.identity = nn.Embedding(tokens.n_token_ids, config.hidden_size)
        self.value = nn.Embedding(tokens.n_values, config.hidden_size)
        self.number = (
            nn.Sequential(
                nn.Linear(1, config.hidden_size),
                nn.GELU(),
                nn.Linear(config.hidden_size, config.hidden_size),
            )
            if config.kind == "continuous"
            else None
        )
        self.n_bins = 1 if config.kind == "continuous" else config.n_bins
        self.summary = (
            nn.Embedding(config.n_genes * self.n_bins, config.hidden_size)
            if config.cell_summary
            else None
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=_NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout)
        self.first_bin, self.first_gene = tokens.first_bin, tokens.first_gene

    def forward(self, batch: BatchTensors) -> Tensor:
        """Return (T, D)."""
        embedded = self.identity(batch.token_id) + self.value(batch.value)
        if self.number is not None:
            follows = (batch.value == self.first_bin).unsqueeze(-1)
            embedded = embedded + self.number(batch.continuous.unsqueeze(-1)) * follows
        if self.summary is not None:
            at_cls = batch.cu_seqlens[:-1].long()
            embedded = embedded.index_add(0, at_cls, self._summarise(batch, self.summary))
        return self.dropout(self.norm(embedded))

    def _summarise(self, batch: BatchTensors, table: nn.Embedding) -> Tensor:
        """(B, D), the sum over visible genes by the root of their number."""
        level = batch.value - self.first_bin
        visible = (batch.token_id >= self.first_gene) & (level >= 0)
        gene = (batch.token_id - self.first_gene).clamp(min=0)
        rows_TD = table(gene * self.n_bins + level.clamp(0, self.n_bins - 1))
        weight = visible.float()
        cell = torch.repeat_interleave(
            batch.cu_seqlens.diff().long(), output_size=len(batch.token_id)
        )
        n_visible = weight.new_zeros(batch.n_cells).index_add(0, cell, weight)
        if self.number is not None:
            weight = weight * batch.continuous
        sums = rows_TD.new_zeros(batch.n_cells, rows_TD.shape[1])
        sums = sums.index_add(0, cell, rows_TD * weight.to(rows_TD.dtype).unsqueeze(-1))
        return sums / torch.sqrt(n_visible + 8).to(sums.dtype).unsqueeze(-1)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward with residuals."""

    def __init__(self, config: TfxConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.heads
        self.pre_norm = config.norm == "pre"
        self.gated = config.activation == "geglu"
        self.attention_dropout = config.attention_dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=_NORM_EPSILON)
        inner = config.intermediate_size
        self.feed_forward_in = nn.Linear(width, 2 * inner if self.gated else inner)
        self.feed_forward_out = nn.Linear(inner, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=_NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_TD: Tensor,
        bounds: CellBounds,
        route: AttentionRoute,
        reads: Tensor | None = None,
    ) -> Tensor:
        """Return (T, D), or (R, D) at the positions ``reads`` with the bounds of those queries."""
        source_TD = self.attention_norm(hidden_TD) if self.pre_norm else hidden_TD
        attended = self._attend(source_TD, bounds, route, reads)
        kept = hidden_TD if reads is None else hidden_TD[reads]
        if self.pre_norm:
            kept = kept + attended
            return kept + self._feed_forward(self.feed_forward_norm(kept))
        kept = self.attention_norm(kept + attended)
        return self.feed_forward_norm(kept + self._feed_forward(kept))

    def _attend(
        self, source_TD: Tensor, bounds: CellBounds, route: AttentionRoute, reads: Tensor | None
    ) -> Tensor:
        width = source_TD.shape[1]
        if reads is None:
            qkv = self.query_key_value(source_TD)
            q, k, v = qkv.view(-1, 3, self.heads, width // self.heads).unbind(1)  # (T, H, D / H)
        else:
            kv = _some_outputs(self.query_key_value, source_TD, slice(width, 3 * width))
            k, v = kv.view(-1, 2, self.heads, width // self.heads).unbind(1)
            q = _some_outputs(self.query_key_value, source_TD[reads], slice(0, width))
            q = q.view(-1, self.heads, width // self.heads)  # (R, H, D / H)
        dropout = self.attention_dropout if self.training else 0.0
        attended = route.attend(q, k, v, bounds, dropout).flatten(1)
        return self.dropout(self.attention_output(attended))

    def _feed_forward(self, hidden_TD: Tensor) -> Tensor:
        inner = self.feed_forward_in(hidden_TD)
        if self.gated:
            value, gate = inner.chunk(2, dim=-1)
            inner = value * functional.gelu(gate)
        else:
            inner = functional.gelu(inner)
        return self.dropout(self.feed_forward_out(inner))


def _some_outputs(linear: nn.Module, source: Tensor, outputs: slice) -> Tensor:
    """Compute some of a linear layer's outputs; of one with low-rank additions all, which are few more."""
    if isinstance(linear, nn.Linear):
        return functional.linear(source, linear.weight[outputs], linear.bias[outputs])
    computed: Tensor = linear(source)[:, outputs]
    return computed.contiguous()


class Encoder(nn.Module):
    """A stack of layers; with pre-norm a last norm closes the residual stream."""

    def __init__(self, config: TfxConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.final_norm = (
            nn.LayerNorm(config.hidden_size, eps=_NORM_EPSILON)
            if config.norm == "pre"
            else nn.Identity()
        )

    def forward(
        self,
        hidden_TD: Tensor,
        bounds: CellBounds,
        route: AttentionRoute,
        reads: Reads | None = None,
    ) -> Tensor:
        """Return (T, D), or (R, D) at the positions that are read."""
        *first, last = self.layers
        for layer in first:
            hidden_TD = layer(hidden_TD, bounds, route)
        if reads is None:
            return self.final_norm(last(hidden_TD, bounds, route))
        asked = CellBounds(bounds.keys, reads.bounds, bounds.cu_keys, reads.cu_bounds)
        return self.final_norm(last(hidden_TD, asked, route, reads.position))


def initialise(module: nn.Module, *, deviation: float = 0.02) -> None:
    """Draw BERT's initial weights: normal with sd 0.02, biases zero, norms one."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=deviation)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=deviation)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
