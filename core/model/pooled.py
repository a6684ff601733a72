"""The pooled encoder: a cell as the sum of its visible genes, without attention.

One vector for every gene and bin, summed over the visible genes of a cell; residual blocks; one output for
every gene and bin. Its cost grows with the number of genes and not with its square, so that it reads panels
of thousands of genes on a CPU. It is a deep-sets network (Zaheer et al. 2017) with a table for its first
layer. Figures: benchmarks/model.md.

Shapes: B cells, T tokens, G genes, M masked genes, K masked phenotypes, D hidden size, O outputs per gene,
V values of all phenotypes.
"""

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.nn import functional

from core.encoding.tokens import MASK
from core.model.batch_tensors import BatchTensors
from core.model.configuration import TfxConfig
from core.model.library_size import LibrarySizeEmbedding
from core.model.principal_components import FEW_GENES, PrincipalComponents

_NORM_EPSILON = 1e-6
#: Of the vector of the mask rate at the start, beside components of one.
_MASK_RATE_DEVIATION = 0.1
_ZERO_AT_FIRST = ("gene_output.", "gene_bias.", "phenotype_output.")


class PooledEmbedding(nn.Module):
    """Sum a vector for every visible gene and bin, and one for every phenotype shown."""

    def __init__(self, config: TfxConfig) -> None:
        super().__init__()
        tokens, width = config.tokens, config.hidden_size
        self.n_genes, self.n_higher_bins = config.n_genes, config.n_bins - 1
        self.n_phenotypes = tokens.n_phenotypes
        self.first_gene, self.first_bin = tokens.first_gene, tokens.first_bin
        # Most genes of a cell are in bin 0: their vectors are summed by one product of matrices.
        self.gene = nn.Embedding(config.n_genes, width)
        self.higher_bin = nn.Embedding(config.n_genes * self.n_higher_bins, width)
        self.phenotype = nn.Embedding(tokens.n_values, width)
        self.mask_rate = nn.Linear(1, width)
        self.library_size = LibrarySizeEmbedding(width) if config.library_size else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: BatchTensors) -> Tensor:
        """Return (B, D)."""
        bins = batch.value - self.first_bin
        gene = batch.token_id - self.first_gene
        is_visible = (gene >= 0) & (bins >= 0)
        gene = gene.clamp(min=0)
        place = batch.cell_of_token * self.n_genes + gene
        visible_BG = torch.zeros(batch.n_cells * self.n_genes, device=gene.device)
        visible_BG = visible_BG.index_add(0, place, is_visible.float())
        visible_BG = visible_BG.view(batch.n_cells, self.n_genes)
        sums = visible_BG @ self.gene.weight
        sums = sums + self._higher_bins(batch, gene, bins, is_visible).to(sums.dtype)
        n_visible = visible_BG.sum(dim=1, keepdim=True)
        hidden_BD = self.dropout(sums / torch.sqrt(n_visible + FEW_GENES))
        hidden_BD = hidden_BD + self.mask_rate(batch.mask_rate.unsqueeze(-1))
        if self.n_phenotypes:
            slots = torch.arange(1, self.n_phenotypes + 1, device=gene.device)
            shown = batch.value[batch.cu_seqlens[:-1].long().unsqueeze(1) + slots]
            vectors = self.phenotype(shown) * (shown != MASK).unsqueeze(-1)
            hidden_BD = hidden_BD + vectors.sum(dim=1)
        if self.library_size is not None and batch.library_size is not None:
            hidden_BD = hidden_BD + self.library_size(batch.library_size)
        return hidden_BD

    def start_at(self, components: PrincipalComponents) -> None:
        """Begin with the principal components of training cells as the sum of a cell."""
        n_components = len(components.mean)
        of_first, higher = components.rows[:, :1], components.rows[:, 1:]
        with torch.no_grad():
            self.gene.weight[:, :n_components] = of_first.squeeze(1)
            self.higher_bin.weight[:, :n_components] = (higher - of_first).flatten(0, 1)
            self.mask_rate.bias[:n_components] = -components.mean
            self.mask_rate.weight.mul_(_MASK_RATE_DEVIATION)

    def _higher_bins(
        self, batch: BatchTensors, gene: Tensor, bins: Tensor, is_visible: Tensor
    ) -> Tensor:
        """(B, D), what genes above bin 0 add."""
        is_higher = is_visible & (bins > 0)
        row = gene * self.n_higher_bins + (bins - 1).clamp(0, self.n_higher_bins - 1)
        first, weight = batch.cu_seqlens[:-1].long(), None
        # A GPU does not tell the host how many genes are above bin 0; a tensor without data has no number.
        if row.device.type != "cpu" or is_fake(row):
            weight = is_higher.float()
        else:
            kept = is_higher.nonzero().squeeze(1)
            first = torch.searchsorted(kept, first)
            row = row[kept]
        return functional.embedding_bag(
            row, self.higher_bin.weight, first, mode="sum", per_sample_weights=weight
        )


class PooledBlock(nn.Module):
    """Norm and feed-forward with a residual."""

    def __init__(self, config: TfxConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=_NORM_EPSILON)
        self.feed_forward_in = nn.Linear(config.hidden_size, config.intermediate_size)
        self.feed_forward_out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_BD: Tensor) -> Tensor:
        """Return (B, D)."""
        inner = functional.gelu(self.feed_forward_in(self.norm(hidden_BD)))
        added: Tensor = self.dropout(self.feed_forward_out(inner))
        return hidden_BD + added


class PooledBlocks(nn.Module):
    """A stack of blocks, whose residual stream a last norm closes."""

    def __init__(self, config: TfxConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PooledBlock(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=_NORM_EPSILON)

    def forward(self, hidden_BD: Tensor) -> Tensor:
        """Return (B, D)."""
        for layer in self.layers:
            hidden_BD = layer(hidden_BD)
        closed: Tensor = self.final_norm(hidden_BD)
        return closed


class PooledPart(nn.Module):
    """Embedding, blocks, and one output for all genes and one for all phenotypes of a cell."""

    #: The gene output reads the cell's state as it is.
    gene_transform = None
    #: It has no heads of [CLS]: the state of the cell is what all others read.
    cell_heads = None

    def __init__(self, config: TfxConfig) -> None:
        super().__init__()
        width, n_values = config.hidden_size, sum(config.phenotype_sizes)
        self.n_genes, self.n_outputs = config.n_genes, config.n_gene_outputs
        self.embedding = PooledEmbedding(config)
        self.encoder = PooledBlocks(config)
        self.gene_output = nn.Linear(width, config.n_genes * config.n_gene_outputs, bias=False)
        self.gene_bias = nn.Embedding(config.n_genes, config.n_gene_outputs)
        # Few donors teach a network their identity; the log-linear part's regression resists that.
        leaves_phenotypes = config.log_linear and config.classified is None
        has_output = n_values and not leaves_phenotypes
        self.phenotype_output = nn.Linear(width, n_values) if has_output else None
        self.n_values = n_values

    def start_at_zero(self) -> None:
        """Make blocks and outputs zero at first."""
        for name, weights in self.named_parameters():
            if "feed_forward_out." in name or name.startswith(_ZERO_AT_FIRST):
                nn.init.zeros_(weights)

    def cell_states(self, batch: BatchTensors) -> Tensor:
        """Return (B, D), the states of the cells."""
        states: Tensor = self.encoder(self.embedding(batch))
        return states

    def forward(self, batch: BatchTensors, route: object = None) -> tuple[Tensor, Tensor, None]:
        """Return gene logits (M, O), phenotype logits (K, V), and no outputs of [CLS]."""
        states_BD = self.cell_states(batch)
        every = self.gene_output(states_BD).view(-1, self.n_genes, self.n_outputs)
        genes = every[batch.gene_cell, batch.gene] + self.gene_bias(batch.gene)
        if self.phenotype_output is None:
            return genes, states_BD.new_zeros(len(batch.phenotype_cell), self.n_values), None
        return genes, self.phenotype_output(states_BD)[batch.phenotype_cell], None

    def gene_vectors(self) -> Tensor:
        """Return (G, D), what a gene adds to a cell's sum when it is expressed, on average over its bins."""
        table = self.embedding.higher_bin.weight.view(
            self.n_genes, -1, self.gene_output.in_features
        )
        return table.mean(dim=1)
