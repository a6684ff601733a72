"""The library size as an input: what the total counts of a cell say of each of its genes.

A value is log1p(10,000 c / N), with a whole count c and the cell's library size N over all genes of its
file. So N shifts the probability of every bin, and a bin between the values of two neighbouring counts
cannot occur: `core.encoding.values.possible_bins` finds those, and `close_bins` gives them probability
zero. Figures: benchmarks/model.md.

Shapes: B cells, M masked genes, G genes, O outputs per gene.
"""

import torch
from torch import Tensor, nn

from core.model.batch_tensors import BatchTensors
from core.model.configuration import TfxConfig

#: Features of a library size.
N_FEATURES = 32
#: Library sizes of a file differ by a factor of two or so: this brings their logarithms to about one.
_SCALE = 2.0


class LibrarySizeFeatures(nn.Module):
    """Smooth functions of the logarithm of the library size, all zero where it is not known."""

    #: Mean natural logarithm of the training cells' library sizes.
    mean_log: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_log", torch.zeros(()))
        self.inner = nn.Linear(1, N_FEATURES)

    def start(self) -> None:
        """Draw the initial weights, of slopes and places of about one."""
        nn.init.normal_(self.inner.weight)
        nn.init.normal_(self.inner.bias)

    def forward(self, library_size: Tensor) -> Tensor:
        """Return (B, `N_FEATURES`) of (B,) library sizes, 0 where not known."""
        standardised = _SCALE * (torch.log(library_size.clamp(min=1.0)) - self.mean_log)
        is_known = (library_size > 0).unsqueeze(-1)
        return torch.tanh(self.inner(standardised.unsqueeze(-1))) * is_known


class LibrarySizeEmbedding(nn.Module):
    """A vector for the library size, zero where it is not known."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = LibrarySizeFeatures()
        self.vector = nn.Linear(N_FEATURES, width, bias=False)

    def start(self, deviation: float) -> None:
        """Draw the features, and the weights of the vector with a standard deviation of ``deviation``."""
        self.features.start()
        nn.init.normal_(self.vector.weight, std=deviation)

    def forward(self, library_size: Tensor) -> Tensor:
        """Return (B, width) of (B,) library sizes, 0 where not known."""
        vectors: Tensor = self.vector(self.features(library_size))
        return vectors


class LibrarySizeEffects(nn.Module):
    """Effects of the library size on the logits of every gene and bin; zero at the start."""

    def __init__(self, config: TfxConfig) -> None:
        super().__init__()
        self.n_genes, self.n_outputs = config.n_genes, config.n_gene_outputs
        self.features = LibrarySizeFeatures()
        self.effects = nn.Linear(N_FEATURES, self.n_genes * self.n_outputs, bias=False)

    def start(self) -> None:
        """Draw the features, and begin without an effect."""
        self.features.start()
        nn.init.zeros_(self.effects.weight)

    def forward(self, library_size: Tensor) -> Tensor:
        """Return (B, G, O) logits to add, of (B,) library sizes, 0 where not known."""
        effects: Tensor = self.effects(self.features(library_size))
        return effects.view(-1, self.n_genes, self.n_outputs)

    def add(self, gene_logits: Tensor, batch: BatchTensors) -> Tensor:
        """Return (M, O) logits of the masked genes of a batch with the effects, impossible bins closed."""
        if batch.library_size is None:
            return gene_logits
        effects = self(batch.library_size)[batch.gene_cell, batch.gene]
        logits = gene_logits + effects.to(gene_logits.dtype)
        return logits if batch.possible is None else close_bins(logits, batch.possible)


def close_bins(logits: Tensor, possible: Tensor) -> Tensor:
    """Give (..., bins) logits probability zero where a bin is not ``possible``."""
    return logits.masked_fill(~possible, float("-inf"))
