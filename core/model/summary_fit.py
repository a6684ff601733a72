"""Begin the summary of [CLS] at the principal components of training cells.

Two layers that start from nothing represent the cell worse after a thousand steps than fifty components
do (benchmarks/embeddings.md). The sum that `model.cell_summary` gives to [CLS] is linear in the cell's
genes and bins, so that components fit into it exactly: [CLS] begins with them, and training changes what
does not serve it. A classifier, which predicts at [CLS] from the first step, does better from noise
(docs/classify.md).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from core.encoding.tokens import CLS
from core.encoding.values import ValueTable
from core.model.configuration import TfxConfig
from core.model.encoder import CellEmbedding
from core.random_streams import Stream, generator

#: Cells and dense entries used at most.
_CELLS = 20_000
_ENTRIES = 60_000_000
#: Of a component over cells: well above the rest of [CLS] at the start, small enough to be unlearnt.
_DEVIATION = 0.1


def start_summary(
    embedding: CellEmbedding,
    config: TfxConfig,
    table: ValueTable,
    expression: sparse.csr_matrix,
    bins: NDArray[np.uint8],
    *,
    seed: int,
) -> None:
    """Fill the summary's table with the principal components of training cells, all of one variance.

    ``table`` holds the mean value of each gene's bins; ``expression`` (log1p counts per 10,000) and
    ``bins`` are (cells, genes) of training cells.
    """
    from sklearn.decomposition import PCA  # 500 ms

    assert embedding.summary is not None
    n_cells, n_genes = bins.shape
    most = max(min(_CELLS, _ENTRIES // n_genes), 2)
    rows = np.arange(n_cells)
    if n_cells > most:
        rows = generator(seed, Stream.SUMMARY_CELLS).choice(n_cells, most, replace=False)
    n_components = min(config.hidden_size, n_genes, len(rows) - 1)
    if n_components < 1:
        return
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
    # As the embedding sums: over the visible genes of a whole cell, by the root of their number.
    is_token = some > 0 if config.layout == "expressed" else np.ones_like(some, dtype=bool)
    sums = (values @ axes) / np.sqrt(is_token.sum(axis=1) + 8.0)[:, None]
    spread = sums.std(axis=0)
    scale = np.divide(_DEVIATION, spread, out=np.zeros_like(spread), where=spread > 1e-8)
    axes = axes * scale
    rows_of_table = axes
    if config.kind != "continuous":
        rows_of_table = (bin_values[:, :, None] * axes[:, None, :]).reshape(-1, n_components)
    with torch.no_grad():
        embedding.summary.weight.zero_()
        embedding.summary.weight[:, :n_components] = _tensor(rows_of_table)
        embedding.identity.weight[CLS, :n_components] -= _tensor(sums.mean(axis=0) * scale)


def _tensor(values: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
