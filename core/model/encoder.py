"""The encoder: identity + value embeddings, transformer layers over packed tokens, and heads.

BERT's maths by default (post-norm, GELU, biases); held against ``transformers.BertModel`` with the
same weights in the tests. Only the output positions are used, so the last layer computes keys and
values everywhere but the rest of itself only there: exact, a fifth of the work of four layers saved.

Shapes: B cells, T tokens, R output positions, M masked genes, K masked phenotypes, D hidden size,
H heads, O outputs per gene, V values of all phenotypes.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.encoding.tokens import CLS
from core.model.attention import AttentionRoute
from core.model.batch_tensors import BatchTensors, CellBounds, OutputPositions
from core.model.configuration import TfxConfig
from core.model.library_size import LibrarySizeEmbedding
from core.model.losses import CellHeads, ClsOutputs, outputs_with_cls
from core.model.principal_components import FEW_GENES, PrincipalComponents

_NORM_EPSILON = 1e-12  # BERT's
_DEVIATION = 0.02  # of its initial weights


class CellEmbedding(nn.Module):
    """Embed each token as identity + value (+ the number itself, continuous).

    Identity and value add up, so that an average over tokens, which [CLS] attends to at first, knows how
    many genes are in which bin but not which ones. A summary adds that to [CLS].
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
        n_rows = config.n_genes * self.n_bins
        self.summary = nn.Embedding(n_rows, config.hidden_size) if config.cell_summary else None
        self.library_size = (
            LibrarySizeEmbedding(config.hidden_size) if config.library_size else None
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=_NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout)
        self.first_bin, self.first_gene = tokens.first_bin, tokens.first_gene

    def forward(self, batch: BatchTensors, whole: BatchTensors | None = None) -> Tensor:
        """Return (T, D); the summary is that of the cells of ``whole``, if ``batch`` has some genes of them."""
        embedded = self.identity(batch.token_id) + self.value(batch.value)
        if self.number is not None:
            follows = (batch.value == self.first_bin).unsqueeze(-1)
            embedded = embedded + self.number(batch.continuous.unsqueeze(-1)) * follows
        at_cls = batch.cu_seqlens[:-1].long()
        if self.summary is not None:
            embedded = embedded.index_add(0, at_cls, self._summarise(whole or batch, self.summary))
        if self.library_size is not None and batch.library_size is not None:
            vectors = self.library_size(batch.library_size)
            embedded = embedded.index_add(0, at_cls, vectors.to(embedded.dtype))
        return self.dropout(self.norm(embedded))

    def start_at(self, components: PrincipalComponents) -> None:
        """Fill the table of the summary with the principal components of training cells."""
        assert self.summary is not None
        n_components = len(components.mean)
        with torch.no_grad():
            self.summary.weight.zero_()
            self.summary.weight[:, :n_components] = components.rows.flatten(0, 1)
            self.identity.weight[CLS, :n_components] -= components.mean

    def _summarise(self, batch: BatchTensors, table: nn.Embedding) -> Tensor:
        """(B, D), the sum over visible genes by the root of their number."""
        bins = batch.value - self.first_bin
        visible = (batch.token_id >= self.first_gene) & (bins >= 0)
        gene = (batch.token_id - self.first_gene).clamp(min=0)
        rows_TD = table(gene * self.n_bins + bins.clamp(0, self.n_bins - 1))
        weight, cell = visible.float(), batch.cell_of_token
        n_visible = weight.new_zeros(batch.n_cells).index_add(0, cell, weight)
        if self.number is not None:
            weight = weight * batch.continuous
        sums = rows_TD.new_zeros(batch.n_cells, rows_TD.shape[1])
        sums = sums.index_add(0, cell, rows_TD * weight.to(rows_TD.dtype).unsqueeze(-1))
        return sums / torch.sqrt(n_visible + FEW_GENES).to(sums.dtype).unsqueeze(-1)


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
        outputs: Tensor | None = None,
    ) -> Tensor:
        """Return (T, D), or (R, D) at the positions ``outputs``, which are the queries of ``bounds``."""
        source_TD = self.attention_norm(hidden_TD) if self.pre_norm else hidden_TD
        attended = self._attend(source_TD, bounds, route, outputs)
        kept = hidden_TD if outputs is None else hidden_TD[outputs]
        if self.pre_norm:
            kept = kept + attended
            return kept + self._feed_forward(self.feed_forward_norm(kept))
        kept = self.attention_norm(kept + attended)
        return self.feed_forward_norm(kept + self._feed_forward(kept))

    def _attend(
        self, source_TD: Tensor, bounds: CellBounds, route: AttentionRoute, outputs: Tensor | None
    ) -> Tensor:
        width = source_TD.shape[1]
        if outputs is None:
            qkv = self.query_key_value(source_TD)
            q, k, v = qkv.view(-1, 3, self.heads, width // self.heads).unbind(1)  # (T, H, D / H)
        else:
            kv = _some_outputs(self.query_key_value, source_TD, slice(width, 3 * width))
            k, v = kv.view(-1, 2, self.heads, width // self.heads).unbind(1)
            q = _some_outputs(self.query_key_value, source_TD[outputs], slice(0, width))
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
    """Compute some of a linear layer's outputs; with low-rank additions (LoRA) all, then those."""
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
        outputs: OutputPositions | None = None,
    ) -> Tensor:
        """Return (T, D), or (R, D) at the output positions."""
        *first, last = self.layers
        for layer in first:
            hidden_TD = layer(hidden_TD, bounds, route)
        if outputs is None:
            return self.final_norm(last(hidden_TD, bounds, route))
        return self.final_norm(last(hidden_TD, outputs.bounds, route, outputs.position))


def initialise(module: nn.Module, weights: Literal["bert", "fan_in"] = "bert") -> None:
    """Draw initial weights: normal, biases zero, norms one.

    Standard deviations are BERT's, or 1 / sqrt(inputs) for "fan_in", which keeps the variance of a layer's
    input at any width (LeCun et al. 1998). Embeddings are BERT's in both cases.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            is_bert = weights == "bert"
            nn.init.normal_(part.weight, std=_DEVIATION if is_bert else part.in_features**-0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=_DEVIATION)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, LibrarySizeEmbedding):
            part.start(_DEVIATION)


class _Transform(nn.Module):
    """BERT's head transform: linear, GELU, norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=_NORM_EPSILON)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(functional.gelu(self.linear(hidden)))


class EncoderPart(nn.Module):
    """Embedding, encoder, and heads that read masked positions only.

    With a split head genes and phenotypes have their own transform and output, and every gene a bias of
    its own. With a joint head one linear layer predicts everything, over bins and all phenotype values,
    as in the published models.
    """

    def __init__(self, config: TfxConfig) -> None:
        super().__init__()
        self.joint = config.head == "joint"
        width = config.hidden_size
        n_values = sum(config.phenotype_sizes)
        self.embedding = CellEmbedding(config)
        self.encoder = Encoder(config)
        if self.joint:
            self.joint_transform = _Transform(width)
            self.joint_output = nn.Linear(width, config.n_bins + n_values)
        else:
            self.gene_transform = _Transform(width)
            self.gene_output = nn.Linear(width, config.n_gene_outputs)
            self.gene_bias = nn.Embedding(config.n_genes, config.n_gene_outputs)
            self.phenotype_transform = _Transform(width) if n_values else None
            self.phenotype_output = nn.Linear(width, n_values) if n_values else None
        learns_cls = config.cls_reconstruction or config.cls_contrast
        self.cell_heads = CellHeads(config) if learns_cls else None

    def start_at_zero(self) -> None:
        """Make the outputs zero at first, where another part or the genes' biases have begun already."""
        assert not self.joint
        for output in (self.gene_output, self.phenotype_output):
            if output is not None:
                nn.init.zeros_(output.weight)
                nn.init.zeros_(output.bias)
        nn.init.zeros_(self.gene_bias.weight)

    def gene_vectors(self) -> Tensor:
        """Return (G, D), the identity embeddings of the genes."""
        return self.embedding.identity.weight[self.embedding.first_gene :]

    def encode(
        self,
        batch: BatchTensors,
        route: AttentionRoute,
        outputs: OutputPositions | None = None,
        whole: BatchTensors | None = None,
    ) -> Tensor:
        """Return the last hidden state of every token, (T, D), or at the output positions, (R, D)."""
        return self.encoder(self.embedding(batch, whole), batch.bounds, route, outputs)

    def forward(
        self, batch: BatchTensors, route: AttentionRoute
    ) -> tuple[Tensor, Tensor, ClsOutputs | None]:
        """Return gene logits (M, O) and phenotype logits (K, V), joint: (M or K, bins + V).

        In training also the outputs of the heads of [CLS], if there are any.
        """
        cell_outputs = None
        read = batch.in_context()
        if self.cell_heads is not None and self.training:
            outputs, former, at_cls = outputs_with_cls(read)
            hidden_RD = self.encode(read, route, outputs, batch)
            cell_outputs = self.cell_heads(hidden_RD[at_cls], batch)
            hidden_RD = hidden_RD[former]
        else:
            hidden_RD = self.encode(read, route, read.outputs, batch)
        at_genes = hidden_RD[batch.output_of_gene]
        at_phenotypes = hidden_RD[batch.output_of_phenotype]
        if self.joint:
            genes = self.joint_output(self.joint_transform(at_genes))
            return genes, self.joint_output(self.joint_transform(at_phenotypes)), cell_outputs
        genes = self.gene_output(self.gene_transform(at_genes)) + self.gene_bias(batch.gene)
        if self.phenotype_transform is None or self.phenotype_output is None:
            return genes, at_phenotypes.new_zeros(len(at_phenotypes), 0), cell_outputs
        phenotypes = self.phenotype_output(self.phenotype_transform(at_phenotypes))
        return genes, phenotypes, cell_outputs
