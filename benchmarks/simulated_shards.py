"""Shards of simulated cells at a whole genome's width, as loaders meet them.

Gamma-Poisson counts over 58,604 genes, about 2,900 detected per cell, sorted by cell type within a
shard. Each shard is written twice, gzipped: counts, and log1p counts per 10,000 as float32, which
is what the originals read. Nothing of biology is meant: only sizes, densities and orders.
"""

from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

N_GENES = 58_604
GENES_PER_CELL = 2_900
N_TYPES = 30
#: Genes whose counts are drawn one by one; the others are so faint that single molecules are.
N_BRIGHT = 14_000
_DISPERSION = 2.0
_BLOCK = 250


def write_shards(folder: Path, *, n_shards: int, cells_per_shard: int, seed: int = 0) -> None:
    """Write ``folder/counts_{i}.h5ad`` and ``folder/log_{i}.h5ad``."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, adata in enumerate(simulate_shards(n_shards, cells_per_shard, seed=seed)):
        adata.write_h5ad(folder / f"counts_{shard}.h5ad", compression="gzip")
        counts = adata.X
        scale = np.repeat(1e4 / np.asarray(counts.sum(axis=1)).ravel(), np.diff(counts.indptr))
        counts.data = np.log1p(counts.data * scale).astype(np.float32)
        adata.write_h5ad(folder / f"log_{shard}.h5ad", compression="gzip")


def simulate_shards(
    n_shards: int, cells_per_shard: int, *, seed: int = 0
) -> Iterator[anndata.AnnData]:
    """Simulate one shard after another: counts in X, four labels in obs."""
    rng = np.random.default_rng(seed)
    abundance = np.sort(rng.lognormal(0, 2.2, N_GENES))[::-1]
    abundance /= abundance.sum()
    place = rng.permutation(N_GENES)  # column of each gene, brightest first
    depth = _typical_depth(abundance)
    change = rng.lognormal(0, 0.7, (N_TYPES, N_BRIGHT))
    var = pd.DataFrame(index=[f"ENSG{number:011d}" for number in range(N_GENES)])
    for shard in range(n_shards):
        kind = np.sort(rng.integers(0, N_TYPES, cells_per_shard))
        blocks = [
            _counts(kind[start : start + _BLOCK], abundance, change, depth, place, rng)
            for start in range(0, cells_per_shard, _BLOCK)
        ]
        obs = pd.DataFrame(
            {
                "cell_type": pd.Categorical([f"type {number:02d}" for number in kind]),
                "sex": pd.Categorical(rng.choice(["female", "male"], cells_per_shard)),
                "tissue": pd.Categorical(rng.choice(["blood", "lung", "spleen"], cells_per_shard)),
                "donor_id": pd.Categorical([f"donor {shard % 10}"] * cells_per_shard),
            },
            index=[f"{shard}-{cell}" for cell in range(cells_per_shard)],
        )
        yield anndata.AnnData(sparse.vstack(blocks, format="csr"), obs, var)


def simulate_thin_shard(n_cells: int, values_per_cell: int, *, seed: int = 0) -> anndata.AnnData:
    """Cells of few values: for what grows with their number and not with their volume."""
    rng = np.random.default_rng(seed)
    genes = np.sort(rng.integers(0, N_GENES - values_per_cell, (n_cells, values_per_cell)), axis=1)
    genes += np.arange(values_per_cell)
    counts = rng.integers(1, 20, genes.size).astype(np.float32)
    ends = np.arange(0, genes.size + 1, values_per_cell)
    labels = {"cell_type": N_TYPES, "sex": 2, "tissue": 3, "donor_id": 10}
    obs = {
        name: pd.Categorical.from_codes(
            rng.integers(0, n, n_cells), [f"{name} {value:02d}" for value in range(n)]
        )
        for name, n in labels.items()
    }
    return anndata.AnnData(
        sparse.csr_matrix((counts, genes.ravel(), ends), shape=(n_cells, N_GENES)),
        pd.DataFrame(obs, index=[str(cell) for cell in range(n_cells)]),
        pd.DataFrame(index=[f"ENSG{number:011d}" for number in range(N_GENES)]),
    )


def _typical_depth(abundance: np.ndarray) -> float:
    """Molecules of a cell in which about `GENES_PER_CELL` genes are seen."""
    low, high = 1e2, 1e7
    for _ in range(60):
        middle = (low * high) ** 0.5
        seen = (1 - (1 + middle * abundance / _DISPERSION) ** -_DISPERSION).sum()
        low, high = (middle, high) if seen < GENES_PER_CELL else (low, middle)
    return low


def _counts(
    kind: np.ndarray,
    abundance: np.ndarray,
    change: np.ndarray,
    depth: float,
    place: np.ndarray,
    rng: np.random.Generator,
) -> sparse.csr_matrix:
    """Draw (cells, genes) counts of cells of the given types."""
    depths = depth * rng.lognormal(-0.08, 0.4, len(kind))
    bright = abundance[:N_BRIGHT] * change[kind] / np.exp(0.7**2 / 2)
    rates = bright * depths[:, None] * rng.gamma(_DISPERSION, 1 / _DISPERSION, bright.shape)
    drawn = sparse.coo_matrix(rng.poisson(rates).astype(np.float32))
    faint = abundance[N_BRIGHT:]
    n_faint = rng.poisson(depths * faint.sum())
    cell = np.repeat(np.arange(len(kind)), n_faint)
    ladder = np.cumsum(faint) / faint.sum()
    gene = N_BRIGHT + np.searchsorted(ladder, rng.random(len(cell))).clip(max=len(faint) - 1)
    rows = np.concatenate([drawn.row, cell])
    columns = place[np.concatenate([drawn.col, gene])]
    values = np.concatenate([drawn.data, np.ones(len(cell), np.float32)])
    return sparse.coo_matrix((values, (rows, columns)), shape=(len(kind), N_GENES)).tocsr()
