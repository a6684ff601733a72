"""Made-up cells of the lengths of a run's own: what a forecast lets the model compute on."""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.encoding.batches import BatchEncoder
from core.encoding.cell_batch import CellBatch
from core.encoding.values import ValueEncoder
from core.model.configuration import TfxConfig
from core.presets.schema import MaskingSettings

__all__ = ["example_batch"]


def example_batch(
    config: TfxConfig, masking: MaskingSettings, lengths: NDArray[np.int64], n_cells: int
) -> CellBatch:
    """Make up a training batch.

    Parameters
    ----------
    config, masking
        Of the model, and what is hidden.
    lengths
        (some cells,), tokens of the run's cells; the made-up ones have those at even shares.
    n_cells
        To make.
    """
    rng = np.random.default_rng(0)
    tokens = config.tokens
    shares = (np.arange(n_cells) + 0.5) / n_cells
    wanted = np.quantile(lengths, shares).round().astype(int)
    n_genes = np.clip(wanted - tokens.header_length - 1, 1, config.n_genes)
    rng.shuffle(n_genes)
    columns = [np.sort(rng.choice(config.n_genes, count, replace=False)) for count in n_genes]
    indptr = np.concatenate([[0], np.cumsum(n_genes)])
    values = rng.uniform(0.2, 8.0, int(indptr[-1])).astype(np.float32)
    expression = sparse.csr_matrix(
        (values, np.concatenate(columns), indptr), shape=(n_cells, config.n_genes)
    )
    n_edges = config.n_bins - 1 if config.kind == "binned" else 1
    edges = np.linspace(0.1, 7.0, n_edges, dtype=np.float32)
    codes = [rng.integers(0, max(values, 1), n_cells) for values in config.phenotype_sizes]
    encoder = BatchEncoder(
        tokens, ValueEncoder(config.kind, edges), max_length=config.longest_sequence
    )
    joined = np.stack(codes, axis=1) if codes else np.zeros((n_cells, 0))
    return encoder.masked(expression, joined.astype(np.int32), masking, rng)
