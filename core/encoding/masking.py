"""Masking: what is hidden from the model, drawn for a whole batch at once.

Genes and phenotypes have separate probabilities. Drawing never looks at expression, so nothing of
an answer leaks through the mask (PolyGene's attention mask did that).
"""

from enum import IntEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Show", "draw_gene_mask", "draw_masked_counts", "draw_phenotype_states"]


class Show(IntEnum):
    """How a phenotype slot appears in the input."""

    VALUE = 0
    MASKED = 1
    NOT_SPECIFIED = 2
    DROPPED = 3


def draw_masked_counts(
    n_available: NDArray[np.integer[Any]],
    rate: float | Literal["uniform"],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw how many genes of each cell are masked.

    Parameters
    ----------
    n_available
        (cells,), genes that can be masked.
    rate
        A share: exactly that share of each cell, rounded at random so that it holds on average. Or
        "uniform": a share in (0, 1] per cell, stratified over the batch (LLaDA, MDLM), so that
        every batch sees all shares.

    Returns
    -------
    (cells,), at most ``n_available``; with "uniform" at least 1 where a gene is available.
    """
    n_cells = len(n_available)
    if rate == "uniform":
        shares = (rng.permutation(n_cells) + rng.random(n_cells)) / n_cells
        return np.minimum(np.ceil(shares * n_available), n_available).astype(np.int64)
    expected = float(rate) * n_available
    # One draw for the whole batch keeps cells of equal length rectangular.
    return np.floor(expected + rng.random()).astype(np.int64).clip(0, n_available)


def draw_gene_mask(
    n_masked: NDArray[np.integer[Any]], n_genes: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Choose which genes are masked: ``n_masked[i]`` of cell i, uniformly without replacement.

    Returns
    -------
    (cells, genes), True where masked.
    """
    keys = rng.random((len(n_masked), n_genes), dtype=np.float32)
    mask = np.zeros(keys.shape, dtype=bool)
    order = np.argsort(keys, axis=1)
    np.put_along_axis(mask, order, np.arange(n_genes) < np.asarray(n_masked)[:, None], axis=1)
    return mask


def draw_phenotype_states(
    codes: NDArray[np.integer[Any]],
    *,
    mask: float,
    drop: float,
    unspecified: float,
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    """Draw how each phenotype of each cell is shown.

    Parameters
    ----------
    codes
        (cells, phenotypes), -1 where the label is missing: those are always [NO_*].
    mask
        Probability of [MASK], the only state with a loss.
    drop
        Share of the masked ones that leave the input altogether (PerturbGene), without a loss.
    unspecified
        Probability that a known, unmasked value is written [NO_*], so that the model learns what
        "not specified" means even where every cell has a label.

    Returns
    -------
    (cells, phenotypes), `Show` values.
    """
    states = np.full(codes.shape, Show.VALUE, dtype=np.int8)
    states[rng.random(codes.shape) < unspecified] = Show.NOT_SPECIFIED
    masked = rng.random(codes.shape) < mask
    states[masked] = Show.MASKED
    states[masked & (rng.random(codes.shape) < drop)] = Show.DROPPED
    states[codes < 0] = Show.NOT_SPECIFIED
    return states
