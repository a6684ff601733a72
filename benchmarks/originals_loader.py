"""The originals' way from a shard to padded tokens, re-implemented from its description.

A shard is read whole; then cell by cell an AnnData view is taken, values are binned by
``np.digitize``, bins and phenotypes become strings, each is held against the vocabulary and looked
up, and a batch is padded as Python lists. What is slow here is slow on purpose: it is the baseline.
"""

from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import torch

PAD, CLS, EOS = "[PAD]", "[CLS]", "[EOS]"


def make_vocabulary(phenotypes: dict[str, list[str]], n_genes: int, n_bins: int) -> dict[str, int]:
    """Number all tokens: specials, phenotype values, bins, genes."""
    words = [PAD, CLS, EOS]
    words += [f"[{value}]" for values in phenotypes.values() for value in values]
    words += [f"bin_{number}" for number in range(n_bins)]
    words += [f"gene_{number}" for number in range(n_genes)]
    return {word: number for number, word in enumerate(words)}


def encode_cell(
    cell: anndata.AnnData,
    phenotypes: list[str],
    vocabulary: dict[str, int],
    edges: np.ndarray,
    max_length: int,
) -> tuple[list[int], list[int]]:
    """Encode one cell as value ids and gene ids; a long one loses its last genes."""
    row = cell.X
    bins = np.digitize(row.data, edges)
    expressed = bins > 0
    values = [f"bin_{number}" for number in bins[expressed]]
    genes = [f"gene_{number}" for number in row.indices[expressed]]
    header = [f"[{cell.obs[name].iloc[0]}]" for name in phenotypes]
    words = [*[CLS, *header, *values][: max_length - 1], EOS]
    names = [*[CLS, *header, *genes][: max_length - 1], EOS]
    for _ in range(2):  # once where tokens are made, once where they are looked up
        for word in words:
            assert word in vocabulary, word
        for name in names:
            assert name in vocabulary, name
    return [vocabulary[word] for word in words], [vocabulary[name] for name in names]


def pad(cells: list[tuple[list[int], list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad a batch to its longest cell."""
    longest = max(len(values) for values, _ in cells)
    return {
        "values": torch.tensor([v + [pad_id] * (longest - len(v)) for v, _ in cells]),
        "genes": torch.tensor([g + [pad_id] * (longest - len(g)) for _, g in cells]),
        "mask": torch.tensor([[1] * len(v) + [0] * (longest - len(v)) for v, _ in cells]),
    }


def batches(
    shard: Path,
    phenotypes: dict[str, list[str]],
    edges: np.ndarray,
    *,
    batch_size: int,
    max_length: int,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the batches of one shard in the order of the file; the first waits for the reading."""
    data = anndata.read_h5ad(shard)
    vocabulary = make_vocabulary(phenotypes, data.n_vars, len(edges) + 1)
    names = list(phenotypes)
    for start in range(0, data.n_obs, batch_size):
        cells = [
            encode_cell(data[number], names, vocabulary, edges, max_length)
            for number in range(start, min(start + batch_size, data.n_obs))
        ]
        yield pad(cells, vocabulary[PAD])
