"""Two simple generators that a model must beat, by classifiers that learn from cells, and by likelihood.

Independent genes and a Gaussian copula draw cells of given classes (a cell type, a combination of
phenotypes) from the training cells of the class, and cannot draw classes without training cells. They work
in bins, bin 0 being "not expressed"; `core.encoding.values` makes bins of values and values of bins.

The copula follows the idea of scDesign2 (Sun et al. 2021, doi:10.1186/s13059-021-02367-2) and scDesign3
(Song et al. 2024, doi:10.1038/s41587-023-01772-1): marginals per gene and class, joined by a Gaussian
dependence. Here the marginals are fractions of bins, and the dependence is shrunk to that of all classes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from torch.nn import functional

from core.encoding.cell_batch import CellBatch
from core.encoding.masking import Show
from core.encoding.values import ValueEncoder, ValueTable
from core.errors import DataError
from core.evaluation.fidelity.measures import (
    ClassClassifier,
    Codes,
    FloatArray,
    LabelledCells,
    macro_f1,
)
from core.evaluation.method_comparison import KnownCells
from core.evaluation.metrics import interval_of
from core.evaluation.predict import Prediction, predict
from core.evaluation.report.records import ConditionLikelihood, Difference, Rebalanced
from core.model.folder import CellModel
from core.model.losses import bin_logits
from core.random_streams import Stream, generator

#: Least weight of the pooled correlation in that of a class, and cells at which it is a half.
_LEAST_SHRINKAGE, _HALF_SHRUNK = 0.3, 50
#: Classes of no more cells have no correlation of their own.
_FEW_CELLS = 5
#: Weight of the identity, which makes every correlation matrix positive definite.
_IDENTITY = 0.05
#: Ways to learn from rare classes, in the order of the report.
REBALANCED_BY = ("real", "class weights", "repeated", "copula", "generated")
#: Real cells that classifiers learn from at most; bootstrap draws of their scores.
_MOST_CELLS, _RESAMPLES = 5_000, 500
#: Held-out cells of the likelihood at most (an even sample), and bootstrap draws.
_MOST_HELD_OUT, _LIKELIHOOD_RESAMPLES = 1_000, 1_000
_BATCH, _BLOCK = 64, 1_024

Bins = NDArray[np.uint8]


class ClassBaselines:
    """Independent genes and the Gaussian copula, fitted to the same training cells.

    ``bins`` are (cells, genes); cells without a class (-1) are left out; ``rng`` breaks ties of equal bins
    when ranks become normal scores.
    """

    def __init__(self, bins: Bins, classes: Codes, n_bins: int, rng: np.random.Generator) -> None:
        labelled = classes >= 0
        bins, classes = bins[labelled], classes[labelled]
        if not len(bins):
            raise DataError(
                "no training cell has a class; there is nothing for the baselines to learn"
            )
        overall = bin_counts(bins, n_bins) / len(bins)
        self._cumulative: dict[int, FloatArray] = {}
        self._own: dict[int, NDArray[np.float32]] = {}
        #: Class -> training cells.
        self.n_cells: dict[int, int] = {}
        products = np.zeros((bins.shape[1], bins.shape[1]))
        for code in np.unique(classes).tolist():
            of_class = bins[classes == code]
            n = self.n_cells[code] = len(of_class)
            self._cumulative[code] = np.cumsum(class_fractions(of_class, overall), axis=1)
            scores = normal_scores(of_class, rng)
            products += scores.T @ scores
            if n > _FEW_CELLS:
                self._own[code] = _as_correlations(scores.T @ scores).astype(np.float32)
        self._pooled = _as_correlations(products)

    def independent(self, classes: Codes, rng: np.random.Generator) -> Bins:
        """(cells, genes) bins of new cells of ``classes``, with every gene drawn on its own."""
        drawn = np.empty((len(classes), len(self._pooled)), dtype=np.uint8)
        for code, rows in self._rows(classes):
            drawn[rows] = self._invert(code, rng.random((len(rows), drawn.shape[1])))
        return drawn

    def copula(self, classes: Codes, rng: np.random.Generator) -> Bins:
        """(cells, genes) bins of new cells whose genes depend on each other as in their class."""
        from scipy.stats import norm  # 200 ms

        drawn = np.empty((len(classes), len(self._pooled)), dtype=np.uint8)
        for code, rows in self._rows(classes):
            factor = np.linalg.cholesky(self.correlations(code))
            normal = rng.standard_normal((len(rows), drawn.shape[1])) @ factor.T
            drawn[rows] = self._invert(code, norm.cdf(normal))
        return drawn

    def correlations(self, code: int) -> FloatArray:
        """(genes, genes) correlations of the normal scores of a class, shrunk; 1 on the diagonal."""
        pooled_weight = max(_LEAST_SHRINKAGE, _HALF_SHRUNK / (self.n_cells[code] + _HALF_SHRUNK))
        mixed = self._pooled
        if code in self._own:
            mixed = (1 - pooled_weight) * self._own[code] + pooled_weight * self._pooled
        mixed = (1 - _IDENTITY) * mixed
        np.fill_diagonal(mixed, 1.0)
        return mixed

    def _rows(self, classes: Codes) -> Iterator[tuple[int, NDArray[np.int64]]]:
        for code in np.unique(classes).tolist():
            if code not in self.n_cells:
                raise DataError(f"no training cell has class {code}; leave its cells out")
            yield code, np.flatnonzero(classes == code)

    def _invert(self, code: int, uniform: FloatArray) -> Bins:
        """(cells, genes) bins at which the class's distribution passes the uniform numbers."""
        bins = np.zeros(uniform.shape, dtype=np.uint8)
        for cumulative in self._cumulative[code].T[:-1]:
            bins += uniform >= cumulative
        return bins


def normal_scores(bins: Bins, rng: np.random.Generator) -> FloatArray:
    """(cells, genes), ranks of cells as standard normal scores, gene by gene; ties are random."""
    from scipy.stats import norm  # 200 ms

    order = np.lexsort((rng.random(bins.shape), bins), axis=0)
    ranks = np.empty(bins.shape, dtype=np.int64)
    np.put_along_axis(ranks, order, np.arange(len(bins))[:, None], axis=0)
    scores: FloatArray = norm.ppf((ranks + 0.5) / len(bins))
    return scores


def bin_counts(bins: Bins, n_bins: int) -> FloatArray:
    """(genes, bins), cells in each bin."""
    return np.stack([(bins == number).sum(axis=0) for number in range(n_bins)], axis=1) * 1.0


def class_fractions(of_class: Bins, overall: FloatArray) -> FloatArray:
    """(genes, bins), counts of a class's cells plus the ``overall`` fractions of all cells, over n + 1."""
    return (bin_counts(of_class, overall.shape[1]) + overall) / (len(of_class) + 1)


def _as_correlations(products: FloatArray) -> FloatArray:
    """Scale products of centred scores to 1 on the diagonal."""
    scale = 1 / np.sqrt(np.maximum(np.diag(products), 1e-12))
    scaled: FloatArray = products * scale[:, None] * scale
    return scaled


# ------------------------------------------------------------------------------------- rare classes
def compare_rebalancing(
    training: LabelledCells,
    real: LabelledCells,
    generated: LabelledCells,
    encoder: ValueEncoder,
    table: ValueTable,
    n_classes: int,
) -> dict[str, Rebalanced]:
    """Fit a classifier of the class in five ways and score each on the same held-out real cells.

    It learns from (a sample of 5,000) real training cells: as they are; with equal weights of the classes;
    with cells of rare classes repeated; and with rare classes filled up to the largest by the copula, or by
    ``generated`` cells as far as they suffice. Empty if training or held-out cells have one class only.
    """
    rng = generator(0, Stream.REBALANCING)
    some = training.take(np.sort(rng.permutation(len(training))[:_MOST_CELLS]))
    counts = np.bincount(some.classes, minlength=n_classes)
    real = real.take(np.isin(real.classes, np.flatnonzero(counts)))
    if (counts > 0).sum() < 2 or len(np.unique(real.classes)) < 2:
        return {}
    missing = np.where(counts > 0, counts.max() - counts, 0)
    baselines = ClassBaselines(encoder.encode(some.values), some.classes, encoder.n_bins, rng)
    wanted = np.repeat(np.arange(n_classes), missing)
    drawn = table.decode(baselines.copula(wanted, rng), how="sample", rng=rng)
    nothing = some.take(np.zeros(0, dtype=np.int64))
    added = {
        "real": nothing,
        "class weights": nothing,
        "repeated": some.take(_fill(some.classes, missing, rng, repeat=True)),
        "copula": LabelledCells(drawn, wanted),
        "generated": generated.take(_fill(generated.classes, missing, rng, repeat=False)),
    }
    n = len(real)
    weights = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES)])
    predicted, scores = {}, {}
    for name in REBALANCED_BY:
        classifier = ClassClassifier(
            np.concatenate([some.values, added[name].values]),
            np.concatenate([some.classes, added[name].classes]),
            balanced=name == "class weights",
        )
        predicted[name] = classifier.predict(real.values)
        scores[name] = macro_f1(real.classes, predicted[name], n_classes, weights)
    found = {}
    for name, of_way in scores.items():
        ahead = of_way - scores["class weights"]
        recalls = [
            (predicted[name][real.classes == code] == code).mean()
            for code in np.unique(real.classes)
        ]
        found[name] = Rebalanced(
            float(np.mean(recalls)),
            float(of_way[0]),
            Difference(float(ahead[0]), interval_of(ahead[1:])),
            len(added[name]),
        )
    return found


def _fill(classes: Codes, missing: Codes, rng: np.random.Generator, *, repeat: bool) -> Codes:
    """Rows of the cells that each class is missing; without repeats, of those that exist."""
    rows = [np.zeros(0, dtype=np.int64)]
    for code, n in enumerate(missing.tolist()):
        of_class = np.flatnonzero(classes == code)
        if n and len(of_class):
            rows.append(
                rng.choice(of_class, n if repeat else min(n, len(of_class)), replace=repeat)
            )
    return np.concatenate(rows)


# --------------------------------------------------------------------- likelihood from the class alone
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

    The best prediction is then the distribution of each gene within the class: counts of the class plus the
    fractions of all cells, over n + 1. Without sampling, this finds a model that ignores the class. Cells of ``real`` and ``training`` (from which the marginals are taken) have the model's genes, of which
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
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _MOST_HELD_OUT)).astype(np.int64)]
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
    weights = rng.multinomial(n, np.full(n, 1 / n), _LIKELIHOOD_RESAMPLES)
    interval = interval_of(weights @ (of_model - of_marginals) / n)
    ours, theirs = float(of_model.mean()), float(of_marginals.mean())
    return ConditionLikelihood(n, ours, theirs, Difference(ours - theirs, interval))


def class_marginal_nll(
    bins: Bins, classes: Codes, training_bins: Bins, training_classes: Codes, n_bins: int
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
