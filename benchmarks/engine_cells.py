"""What the engine's benchmarks train on: simulated cells of chosen lengths, and models of a size.

The batches are real ones, made by tfx's own encoder at the masking rates of the originals. Only
lengths and the numbers of classes matter to speed; the values mean nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from core.encoding.batches import BatchEncoder
from core.encoding.cell_batch import CellBatch
from core.encoding.values import ValueEncoder
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.presets.schema import LossSettings, MaskingSettings

#: PolyGene's ten bins: below 0.1, then equal widths to 9.
EDGES = np.linspace(0.1, 9, 9, dtype=np.float32)
PHENOTYPES = {
    name: [f"{name} {number}" for number in range(size)]
    for name, size in zip(
        ("sex", "tissue", "cell_type", "age", "disease"), (2, 45, 161, 14, 31), strict=True
    )
}
#: CLS, the phenotypes, START, END.
N_SPECIAL = len(PHENOTYPES) + 3
WHOLE_GENOME = 58_604
MASKING = MaskingSettings(genes=0.15, phenotypes=0.5, unspecified=0.0, drop_phenotypes=0.0)
LOSS = LossSettings(smoothing=0.5, phenotype_smoothing=0.5)


@dataclass(frozen=True)
class Size:
    """Of an encoder; feed-forward is four times as wide."""

    layers: int
    width: int
    heads: int

    @property
    def layer_parameters(self) -> int:
        """Weights of the layers' matrices, P of the formula."""
        return self.layers * 12 * self.width**2

    def flops_per_token(self, lengths: np.ndarray, *, read_share: float | None = None) -> float:
        """Floating-point operations of a training step per token: 6 P + 12 layers width mean L.

        Mean L is sum L^2 / sum L, what a token attends to. With ``read_share``, the share of tokens
        that a head reads, what the last layer leaves out (all but its keys and values) is not counted.
        """
        attended = float((lengths.astype(float) ** 2).sum() / lengths.sum())
        linear, attention = 6 * 12 * self.width**2, 12 * self.width * attended
        if read_share is None:
            return self.layers * (linear + attention)
        last = linear * (2 + 10 * read_share) / 12 + attention * read_share
        return (self.layers - 1) * (linear + attention) + last


def make_network(
    size: Size, layout: str, n_genes: int, *, longest: int, dropout: float = 0.0, **changes: object
) -> TfxModel:
    """Make a model without a log-linear part, with split heads and the same weights every time."""
    config = TfxConfig(
        phenotype_names=list(PHENOTYPES),
        phenotype_values=list(PHENOTYPES.values()),
        n_genes=n_genes,
        n_bins=len(EDGES) + 1,
        layout=layout,
        longest_sequence=longest,
        hidden_size=size.width,
        layers=size.layers,
        heads=size.heads,
        intermediate_size=4 * size.width,
        dropout=dropout,
        **changes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TfxModel(config)
        network.start()
    return network.train()


def reading_whole_last_layer(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap `Encoder.forward`: every position of the last layer is computed, what is read is taken."""

    def whole(*arguments: Any) -> Tensor:
        *others, reads = arguments
        hidden = forward(*others)
        return hidden if reads is None else hidden[reads.position]

    return whole


def draw_lengths(rng: np.random.Generator, n_cells: int) -> np.ndarray:
    """Draw tokens per cell of the expressed layout: log-normal, mean 500, sigma 0.6, 64 to 1,024."""
    return rng.lognormal(np.log(500) - 0.6**2 / 2, 0.6, n_cells).round().clip(64, 1024).astype(int)


def make_batch(config: TfxConfig, lengths: Sequence[int], seed: int) -> CellBatch:
    """Make a masked batch of cells of these lengths, in tokens (ranked: all the model's genes)."""
    rng = np.random.default_rng([seed, 7])
    ranked = config.layout == "ranked"
    expressed = [config.n_genes // 10 if ranked else length - N_SPECIAL for length in lengths]
    genes = [np.sort(rng.choice(config.n_genes, count, replace=False)) for count in expressed]
    indptr = np.concatenate([[0], np.cumsum(expressed)])
    values = rng.uniform(EDGES[0], EDGES[-1], indptr[-1]).astype(np.float32)
    cells = sparse.csr_matrix(
        (values, np.concatenate(genes), indptr), shape=(len(expressed), config.n_genes)
    )
    codes = np.stack(
        [rng.integers(0, size, len(expressed)) for size in config.phenotype_sizes], axis=1
    ).astype(np.int32)
    encoder = BatchEncoder(
        config.tokens, ValueEncoder("binned", EDGES), max_length=config.longest_sequence
    )
    batch = encoder.masked(cells, codes, MASKING, rng)
    assert np.diff(batch.cu_seqlens).tolist() == list(lengths), "lengths are not those asked for"
    return batch


def read_share(batch: CellBatch) -> float:
    """Share of a batch's tokens that a head reads."""
    return (len(batch.gene_position) + len(batch.phenotype_position)) / len(batch.token_id)
