"""The encoder: identity + value embeddings, then transformer layers over packed tokens.

BERT's maths by default (post-norm, GELU, biases); held against ``transformers.BertModel`` with the
same weights in the tests. Shapes: T tokens, D hidden size, H heads.
"""

from torch import Tensor, nn
from torch.nn import functional

from core.model.attention import AttentionRoute, CellBounds
from core.model.batch_tensors import BatchTensors
from core.model.configuration import TfxConfig

__all__ = ["CellEmbedding", "Encoder"]

_NORM_EPSILON = 1e-12  # BERT's


class CellEmbedding(nn.Module):
    """Embed each token as identity + value (+ the number itself, continuous)."""

    def __init__(self, config: TfxConfig) -> None:
        super().__init__()
        tokens = config.tokens
        self.identity = nn.Embedding(tokens.n_identities, config.hidden_size)
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
        self.norm = nn.LayerNorm(config.hidden_size, eps=_NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout)
        self.first_bin = tokens.first_bin

    def forward(self, batch: BatchTensors) -> Tensor:
        """Return (T, D)."""
        embedded = self.identity(batch.identity) + self.value(batch.value)
        if self.number is not None:
            follows = (batch.value == self.first_bin).unsqueeze(-1)
            embedded = embedded + self.number(batch.number.unsqueeze(-1)) * follows
        return self.dropout(self.norm(embedded))


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

    def forward(self, hidden_TD: Tensor, bounds: CellBounds, route: AttentionRoute) -> Tensor:
        """Return (T, D)."""
        if self.pre_norm:
            hidden_TD = hidden_TD + self._attend(self.attention_norm(hidden_TD), bounds, route)
            return hidden_TD + self._feed_forward(self.feed_forward_norm(hidden_TD))
        hidden_TD = self.attention_norm(hidden_TD + self._attend(hidden_TD, bounds, route))
        return self.feed_forward_norm(hidden_TD + self._feed_forward(hidden_TD))

    def _attend(self, hidden_TD: Tensor, bounds: CellBounds, route: AttentionRoute) -> Tensor:
        qkv = self.query_key_value(hidden_TD).view(len(hidden_TD), 3, self.heads, -1)
        q, k, v = qkv.unbind(1)  # (T, H, D / H) each
        dropout = self.attention_dropout if self.training else 0.0
        attended = route.attend(q, k, v, bounds, dropout).reshape(hidden_TD.shape)
        return self.dropout(self.attention_output(attended))

    def _feed_forward(self, hidden_TD: Tensor) -> Tensor:
        inner = self.feed_forward_in(hidden_TD)
        if self.gated:
            value, gate = inner.chunk(2, dim=-1)
            inner = value * functional.gelu(gate)
        else:
            inner = functional.gelu(inner)
        return self.dropout(self.feed_forward_out(inner))


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

    def forward(self, hidden_TD: Tensor, bounds: CellBounds, route: AttentionRoute) -> Tensor:
        """Return (T, D)."""
        for layer in self.layers:
            hidden_TD = layer(hidden_TD, bounds, route)
        return self.final_norm(hidden_TD)


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
