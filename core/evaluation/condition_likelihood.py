"""What phenotypes alone tell of unseen cells' genes: the model's likelihood beside class marginals.

With every gene hidden a model can answer only from the phenotypes that are shown, and the best answer is the
distribution of each gene within the class. It needs no sampling, and catches what sampling would hide: a
model whose first genes are drawn from something else than its class. The class's marginals are those of the
independent genes of the protocol: counts of the class plus the shares of all cells, over n + 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from torch.nn import functional

from core.encoding.masking import Show
from core.evaluation.class_baselines import bin_counts, class_shares
from core.evaluation.predict import predict
from core.model.folder import CellModel
from core.model.gene_outputs import bin_logits
from core.random_streams import Stream, generator

__all__ = ["ConditionLikelihood", "class_marginal_nll", "condition_likelihood"]

_BATCH = 64
_BLOCK = 1_024
_RESAMPLES = 1_000

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ConditionLikelihood:
    """Negative log-likelihoods in nats per gene, means over cells; lower is better.

    Attributes
    ----------
    n_cells
        Real cells, of classes that training had.
    model, class_marginals
        Of the model, shown the phenotypes of the class, and of the class's marginals.
    interval
        95 % bootstrap interval over cells of model minus class marginals.
    """

    n_cells: int
    model: float
    class_marginals: float
    interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        lead = {"value": self.model - self.class_marginals, "interval": list(self.interval)}
        return {
            "cells": self.n_cells, "model": self.model, "class_marginals": self.class_marginals,
            "model_minus_class_marginals": lead,
        }  # fmt: skip

    def sentence(self) -> str:
        """Say who tells the genes better from the class alone."""
        low, high = self.interval
        better = "the model better" if high < 0 else "class marginals better" if low > 0 else None
        return (
            f"With every gene hidden an unseen cell costs the model {self.model:.3f} nats a gene and "
            f"class marginals {self.class_marginals:.3f}: "
            f"{f'{better} for sure' if better else 'not separated'}."
        )


def condition_likelihood(
    model: CellModel,
    real: sparse.csr_matrix,
    codes: NDArray[np.int32],
    classes: NDArray[np.int64],
    training: sparse.csr_matrix,
    training_classes: NDArray[np.int64],
    *,
    slots: Sequence[int],
    genes: NDArray[np.int64],
    most: int = 1_000,
    seed: int = 0,
) -> ConditionLikelihood | None:
    """Hide all genes of real cells, show what makes their class, and ask for the genes.

    Parameters
    ----------
    model
        Of the ranked layout, binned or binary; None is returned for others, whose answer is of another kind.
    real, codes, classes
        (cells, panel genes) log1p per 10,000; (cells, phenotypes) codes; (cells,) classes, -1 unknown.
    training, training_classes
        What the marginals are taken from.
    slots
        Phenotypes that make the class, and are shown.
    genes
        Panel genes that are scored.
    most
        Cells at most, an even sample.

    Returns
    -------
    None also where no real cell has a class that training had.
    """
    config = model.config
    if config.layout != "ranked" or config.kind == "continuous" or config.classified is not None:
        return None
    rows = np.flatnonzero(np.isin(classes, np.unique(training_classes[training_classes >= 0])))
    if len(rows) == 0:
        return None
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)]
    theirs = class_marginal_nll(
        _bins(model, real[rows], genes), classes[rows], _bins(model, training, genes),
        training_classes, config.n_bins,
    )  # fmt: skip
    batches = np.array_split(rows, -(-len(rows) // _BATCH))
    ours = np.concatenate(
        [_hidden_nll(model, real[some].toarray(), codes[some], slots)[:, genes] for some in batches]
    )
    of_model, of_marginals = ours.mean(axis=1), theirs.mean(axis=1)
    rng = generator(seed, Stream.LIKELIHOOD_RESAMPLES)
    n = len(rows)
    weights = rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES)
    low, high = np.percentile(weights @ (of_model - of_marginals) / n, (2.5, 97.5))
    return ConditionLikelihood(
        n, float(of_model.mean()), float(of_marginals.mean()), (float(low), float(high))
    )


def class_marginal_nll(
    bins: NDArray[np.uint8],
    classes: NDArray[np.int64],
    training_bins: NDArray[np.uint8],
    training_classes: NDArray[np.int64],
    n_bins: int,
) -> FloatArray:
    """(cells, genes) nats of cells' bins under the training marginals of their class.

    A bin that no training cell has counts as if one cell were spread over the bins.
    """
    overall = (bin_counts(training_bins, n_bins) + 1 / n_bins) / (len(training_bins) + 1)
    nll = np.empty(bins.shape)
    columns = np.arange(bins.shape[1])
    for code in np.unique(classes):
        shares = class_shares(training_bins[training_classes == code], overall)
        has = classes == code
        nll[has] = -np.log(shares[columns, bins[has]])
    return nll


def _bins(
    model: CellModel, expression: sparse.csr_matrix, genes: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """(cells, genes), block by block: the dense values of a wide panel never exist whole."""
    blocks = [
        model.values.encode(expression[first : first + _BLOCK].toarray())[:, genes]
        for first in range(0, expression.shape[0], _BLOCK)
    ]
    return np.concatenate(blocks)


def _hidden_nll(
    model: CellModel,
    values: NDArray[np.float32],
    codes: NDArray[np.int32],
    slots: Sequence[int],
) -> FloatArray:
    """(cells, genes) nats of every gene, all being hidden."""
    states = np.full(codes.shape, Show.MASKED, dtype=np.int8)
    states[:, list(slots)] = Show.VALUE
    shown = np.where(states == Show.VALUE, codes, 0).astype(np.int32)
    hidden = np.ones(values.shape, dtype=bool)
    cells = model.batches.ranked(values, shown, states, hidden)
    (prediction,) = predict(model, [cells])
    logits = bin_logits(prediction.output.gene_logits, model.config)
    targets = prediction.batch.gene_target.long()
    nll = functional.cross_entropy(logits, targets, reduction="none")
    found = np.zeros(values.shape)
    found[cells.gene_cell, cells.gene] = nll.double().cpu().numpy()
    return found
