"""How well phenotypes alone predict the genes of held-out cells: the model beside class marginals.

With all genes masked a model can predict only from the phenotypes that are visible, and the best
prediction is the distribution of each gene within the class. It needs no sampling, and finds a fault that
sampling would hide: a model whose first genes are drawn from something else than its class. The class's
marginals are those of the independent genes of the protocol: counts of the class plus the fractions of all
cells, over n + 1.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from torch.nn import functional

from core.encoding.cell_batch import CellBatch
from core.encoding.masking import Show
from core.evaluation.fidelity.class_baselines import Bins, bin_counts, class_fractions
from core.evaluation.fidelity.measures import Codes, FloatArray
from core.evaluation.method_comparison import KnownCells
from core.evaluation.predict import Prediction, predict
from core.evaluation.report.records import ConditionLikelihood, Difference
from core.model.folder import CellModel
from core.model.losses import bin_logits
from core.random_streams import Stream, generator

#: Cells at most: an even sample.
_MOST_CELLS = 1_000
_BATCH, _BLOCK, _RESAMPLES = 64, 1_024, 1_000


def condition_likelihood(
    model: CellModel,
    real: KnownCells,
    classes: Codes,
    training: KnownCells,
    training_classes: Codes,
    *,
    slots: Sequence[int],
    genes: Codes,
) -> ConditionLikelihood | None:
    """Mask all genes of real cells, show the phenotypes of their class, and predict the genes.

    Cells of ``real`` and ``training`` (from which the marginals are taken) have the model's genes, of which
    ``genes`` are scored, and classes, -1 unknown, made of the phenotypes at ``slots``.

    None for a model of the expressed layout, of continuous values, or a classifier, which predict
    something else; and if no real cell has a class that training had.
    """
    config = model.config
    if config.layout != "ranked" or config.kind == "continuous" or config.classified is not None:
        return None
    rows = np.flatnonzero(np.isin(classes, np.unique(training_classes[training_classes >= 0])))
    if len(rows) == 0:
        return None
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _MOST_CELLS)).astype(np.int64)]
    marginal_nll = class_marginal_nll(
        _bins(model, real.expression[rows], genes), classes[rows],
        _bins(model, training.expression, genes), training_classes, config.n_bins,
    )  # fmt: skip
    batches = (
        _masked_batch(model, real.take(some), slots)
        for some in np.array_split(rows, -(-len(rows) // _BATCH))
    )
    of_model = np.concatenate(
        [_gene_nll(model, one)[:, genes].mean(axis=1) for one in predict(model, batches)]
    )
    of_marginals = marginal_nll.mean(axis=1)
    rng = generator(0, Stream.LIKELIHOOD_RESAMPLES)
    n = len(rows)
    weights = rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES)
    low, high = np.percentile(weights @ (of_model - of_marginals) / n, (2.5, 97.5))
    ours, theirs = float(of_model.mean()), float(of_marginals.mean())
    return ConditionLikelihood(
        n, ours, theirs, Difference(ours - theirs, (float(low), float(high)))
    )


def class_marginal_nll(
    bins: Bins,
    classes: Codes,
    training_bins: Bins,
    training_classes: Codes,
    n_bins: int,
) -> FloatArray:
    """(cells, genes) nats of cells' bins under the training marginals of their class.

    One more cell is spread over the bins, so that none is impossible.
    """
    overall = (bin_counts(training_bins, n_bins) + 1 / n_bins) / (len(training_bins) + 1)
    nll = np.empty(bins.shape)
    columns = np.arange(bins.shape[1])
    for code in np.unique(classes):
        fractions = class_fractions(training_bins[training_classes == code], overall)
        has = classes == code
        nll[has] = -np.log(fractions[columns, bins[has]])
    return nll


def _bins(model: CellModel, expression: sparse.csr_matrix, genes: Codes) -> Bins:
    """(cells, genes), block by block: the dense values of a wide panel never exist whole."""
    blocks = [
        model.values.encode(expression[first : first + _BLOCK].toarray())[:, genes]
        for first in range(0, expression.shape[0], _BLOCK)
    ]
    return np.concatenate(blocks)


def _masked_batch(model: CellModel, cells: KnownCells, slots: Sequence[int]) -> CellBatch:
    values = cells.expression.toarray()
    states = np.full(cells.codes.shape, Show.MASKED, dtype=np.int8)
    states[:, list(slots)] = Show.VALUE
    codes = np.where(states == Show.VALUE, cells.codes, 0).astype(np.int32)
    return model.batches.ranked(values, codes, states, np.ones(values.shape, dtype=bool))


def _gene_nll(model: CellModel, prediction: Prediction) -> FloatArray:
    """(cells, genes) nats of every gene of a batch, all of which are masked."""
    logits = bin_logits(prediction.output.gene_logits, model.config)
    targets = prediction.batch.gene_target.long()
    nll = functional.cross_entropy(logits, targets, reduction="none")
    cells = prediction.cells
    found = np.zeros((int(cells.gene_cell.max()) + 1, model.config.n_genes))
    found[cells.gene_cell, cells.gene] = nll.double().cpu().numpy()
    return found
