"""The parts whose logits are summed: each looks at a batch and answers its masked positions.

`EncoderPart` is the transformer with its heads; `core.model.log_linear.LogLinear` is the classical
answer. A new part needs only the same ``forward``. Shapes: M masked genes, K masked phenotypes,
O outputs per gene, V values of all phenotypes together.
"""

from torch import Tensor, nn

from core.model.attention import AttentionRoute
from core.model.batch_tensors import BatchTensors
from core.model.cell_bounds import CellBounds
from core.model.cell_objectives import CellHeads, CellStates, reads_with_cls
from core.model.configuration import TfxConfig
from core.model.encoder import CellEmbedding, Encoder, Reads

__all__ = ["EncoderPart"]


class _Transform(nn.Module):
    """BERT's head transform: linear, GELU, norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(nn.functional.gelu(self.linear(hidden)))


class EncoderPart(nn.Module):
    """Embedding, encoder, and heads that read masked positions only.

    With a split head genes and phenotypes have their own transform and output, and every gene a
    bias of its own, which `fill_gene_bias` sets to the training marginals. With a joint head one
    linear layer answers everything, over bins and all phenotype values, as in the originals.
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
        """Make the part contribute nothing at first, so that other parts set the level."""
        assert not self.joint
        for output in (self.gene_output, self.phenotype_output):
            if output is not None:
                nn.init.zeros_(output.weight)
                nn.init.zeros_(output.bias)
        nn.init.zeros_(self.gene_bias.weight)

    def encode(
        self, batch: BatchTensors, route: AttentionRoute, reads: Reads | None = None
    ) -> Tensor:
        """Return the hidden state of every token, (T, D), or of those that are read, (R, D)."""
        bounds = CellBounds.of(batch.bounds, batch.cu_seqlens)
        return self.encoder(self.embedding(batch), bounds, route, reads)

    def forward(
        self, batch: BatchTensors, route: AttentionRoute
    ) -> tuple[Tensor, Tensor, CellStates | None]:
        """Return gene logits (M, O) and phenotype logits (K, V), joint: (M or K, bins + V).

        In training also what the heads of [CLS] say, if there are any.
        """
        states = None
        if self.cell_heads is not None and self.training:
            reads, former, at_cls = reads_with_cls(batch)
            hidden_RD = self.encode(batch, route, reads)
            states = self.cell_heads(hidden_RD[at_cls], batch)
            hidden_RD = hidden_RD[former]
        else:
            reads = Reads(batch.output_position, batch.output_bounds, batch.cu_outputs)
            hidden_RD = self.encode(batch, route, reads)
        at_genes = hidden_RD[batch.output_of_gene]
        at_phenotypes = hidden_RD[batch.output_of_phenotype]
        if self.joint:
            return (
                self.joint_output(self.joint_transform(at_genes)),
                self.joint_output(self.joint_transform(at_phenotypes)),
                states,
            )
        genes = self.gene_output(self.gene_transform(at_genes)) + self.gene_bias(batch.gene)
        if self.phenotype_transform is None or self.phenotype_output is None:
            return genes, at_phenotypes.new_zeros(len(at_phenotypes), 0), states
        return genes, self.phenotype_output(self.phenotype_transform(at_phenotypes)), states
