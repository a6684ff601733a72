"""The principal components of training cells, at which an encoder's view of the whole cell begins.

Layers that start from nothing represent the cell worse after a thousand steps than fifty components do
(benchmarks/embeddings.md), and beside class log-odds an encoder that starts from nothing did not learn to read
the genes of the simulated atlas (docs/decisions/0007-a-pooled-encoder-on-a-cpu.md). A sum of one vector for every visible gene and bin is linear in the cell's genes and
bins, so that components fit into it exactly, and training changes what does not serve it. A classifier does
better from noise (docs/classify.md).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from core.encoding.values import ValueTable
from core.model.configuration import TfxConfig
from core.random_streams import Stream, generator

#: Added to the number of visible genes, whose square root divides their sum: few genes say little.
FEW_GENES = 8
#: Cells and dense entries used at most.
_CELLS = 20_000
_ENTRIES = 60_000_000


@dataclass(frozen=True)
class PrincipalComponents:
    """What each gene adds to the sum of a cell, which the root of (visible genes + `FEW_GENES`) divides."""

    #: (genes, bins, components); continuous: (genes, 1, components), which the value multiplies.
    rows: Tensor
    #: (components,) mean over training cells, all genes being visible.
    mean: Tensor


def principal_components(
    config: TfxConfig,
    table: ValueTable,
    expression: sparse.csr_matrix,
    bins: NDArray[np.uint8],
    *,
    spread: Literal["equal", "natural"],
    deviation: float,
    seed: int,
) -> PrincipalComponents | None:
    """Return up to ``config.hidden_size`` components of training cells; None if there are too few cells.

    ``table`` holds the mean value of each gene's bins; ``expression`` (log1p counts per 10,000) and
    ``bins`` are (cells, genes). Over cells each component has a standard deviation of ``deviation``, or
    with "natural" all of them in quadratic mean, so that the strongest differences between cells lead.
    """
    from sklearn.decomposition import PCA  # 500 ms

    n_cells, n_genes = bins.shape
    most = max(min(_CELLS, _ENTRIES // n_genes), 2)
    rows = np.arange(n_cells)
    if n_cells > most:
        rows = generator(seed, Stream.SUMMARY_CELLS).choice(n_cells, most, replace=False)
    n_components = min(config.hidden_size, n_genes, len(rows) - 1)
    if n_components < 1:
        return None
    some, columns = bins[rows], np.arange(n_genes)
    # Values of visible genes; 0 where not expressed, which is no token, or has no number.
    bin_values = np.where(np.arange(table.means.shape[1]) > 0, table.means, 0.0)  # (genes, bins)
    if config.kind == "continuous":
        values = np.where(some > 0, expression[rows].toarray(), 0.0)
    else:
        if config.layout == "ranked":
            bin_values = (
                bin_values - bin_values[columns, some].mean(axis=0)[:, None]
            )  # a masked gene is average then
        values = bin_values[columns, some]
    values = values.astype(np.float32)
    axes = PCA(n_components, svd_solver="randomized", random_state=seed).fit(values).components_.T
    # As the encoder sums: over the visible genes of a whole cell, by the root of their number.
    is_token = some > 0 if config.layout == "expressed" else np.ones_like(some, dtype=bool)
    sums = (values @ axes) / np.sqrt(is_token.sum(axis=1) + float(FEW_GENES))[:, None]
    found = sums.std(axis=0)
    if spread == "natural":
        found = np.full_like(found, np.sqrt((found**2).mean()))
    scale = np.divide(deviation, found, out=np.zeros_like(found), where=found > 1e-8)
    axes = axes * scale
    of_bins = axes[:, None, :]
    if config.kind != "continuous":
        of_bins = bin_values[:, :, None] * of_bins
    return PrincipalComponents(_tensor(of_bins), _tensor(sums.mean(axis=0) * scale))


def _tensor(values: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
