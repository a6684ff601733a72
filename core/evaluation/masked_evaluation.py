"""Losses and accuracies under masks: genes and phenotypes masked as in training, or at fixed mask rates.

Masks come from a seed, so the same cells give the same numbers every time.

At a fixed rate the masked genes of a cell follow from the seed, the rate and the cell's row in the store:
neither other cells nor the batch size change a mask. All phenotypes are masked too. In the ranked layout
one pass through the network predicts both. In the expressed layout a masked token would reveal that its
gene is probably expressed: there phenotypes are predicted with the masked genes left out, and genes as in
training, with masks that are drawn per batch.

Genes have a likelihood, an accuracy and an ordinal error, by gene and by bin. The likelihood is that of the
model's own distribution, whatever loss it was trained with, so models can be compared. It is compared with
the gene's marginal: its fractions of training cells per bin, which look at no other gene.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch.nn import functional

from core.cells.genes import GenePanel
from core.cells.store import Store
from core.encoding.cell_batch import CellBatch
from core.encoding.masking import Show
from core.encoding.panel_cells import PanelCells, PanelReader
from core.evaluation.marginals import Marginals
from core.evaluation.predict import (
    Probabilities,
    join_probabilities,
    phenotype_probabilities,
    predict,
    row_batches,
)
from core.evaluation.report.records import (
    BinAccuracy,
    GeneMeans,
    GeneRates,
    GeneRow,
    MaskedGenes,
    RateScores,
)
from core.model.calibration import LEAST_CELLS
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.model.losses import (
    bin_logits,
    hurdle_regression,
    masked_loss,
    phenotype_losses,
    predict_genes,
)
from core.presets.schema import LossSettings, MaskingSettings
from core.progress import Listener, ignore_progress
from core.random_streams import Stream, generator

#: A little, as in BERT; half; nearly everything, as at the beginning of generation.
MASK_RATES = (0.15, 0.5, 0.9)
#: A gene that was masked less often has a mean that means little.
_LEAST_MASKED = 20
_N_LISTED = 10
#: Temperatures of which the best one counts in the gain of a phenotype; 1 is among them.
_TEMPERATURES = [2.0 ** (power / 2) for power in range(-8, 9)]
#: Fraction of its baseline's loss that a target has to gain to count in full in the score of a step.
_FULL_GAIN = 0.1


@dataclass(frozen=True)
class TargetLoss:
    """The loss of one kind of target, and that of its baseline (`Marginals`), in nats."""

    loss: float
    baseline: float
    #: What it counts in the loss of the model.
    weight: float
    #: Both losses of a phenotype, each at the temperature that suits these cells best; None: as they are.
    calibrated: tuple[float, float] | None = None

    @property
    def gain(self) -> float:
        """How far the loss is below that of the baseline.

        A phenotype's probabilities are calibrated when training is over, so a model that is only too sure of them
        has lost nothing.
        """
        own, baseline = self.calibrated or (self.loss, self.baseline)
        return baseline - own

    @property
    def score(self) -> float:
        """What it counts in the score: its weight times its gain, less while the gain is small.

        A target that gained nothing counts nothing, one that gained `_FULL_GAIN` of its baseline in full.
        """
        if not self.gain > 0:
            return 0.0
        full = max(_FULL_GAIN * abs(self.baseline), 1e-9)
        return self.weight * self.gain * min(self.gain / full, 1.0)


@dataclass(frozen=True)
class MaskedScores:
    """Scores under the masks of training; losses are in nats, means over masked positions.

    A gene's accuracy is that of the predicted bin; for continuous models, of whether it is expressed.
    """

    loss: float
    phenotype_loss: float
    genes: MaskedGenes
    #: None where no gene was masked.
    gene_target: TargetLoss | None
    #: By name; those of which a cell was masked.
    phenotype_targets: dict[str, TargetLoss]

    @property
    def score(self) -> float:
        """Nats gained over the baselines, of the loss of the model; higher is better.

        If all targets can be learnt it is the baselines' loss minus the model's. A phenotype that cannot be
        learnt has no part in it, so that its noise does not decide which step is the best.
        """
        genes = self.gene_target
        of_genes = 0.0 if genes is None else min(genes.gain, genes.score)  # also below the baseline
        return of_genes + sum(target.score for target in self.phenotype_targets.values())


def evaluate_masked(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    loss: LossSettings,
    *,
    seed: int = 0,
    class_weights: torch.Tensor | None = None,
    on_progress: Listener = ignore_progress,
) -> MaskedScores:
    """Score a model under static masks drawn at the rates of its training.

    A classifier's genes are all visible. The model is left in evaluation mode.
    """
    config, masking = model.config, model.masking
    if config.classified is not None:
        masking = masking.model_copy(update={"genes": 0.0})
    offsets = np.cumsum([0, *config.phenotype_sizes])
    common = model.reference.bin_counts.argmax(axis=1)
    reader = PanelReader(store, model.panel)

    def batches() -> Iterator[CellBatch]:
        for number, some in row_batches(rows, "scoring masked genes", on_progress):
            codes = np.asarray(store.phenotype_codes[some])
            rng = generator(seed, number, Stream.EVALUATION_MASKS)
            yield model.batches.masked(reader.read(some), codes, masking, rng)

    marginals = Marginals.of(model, loss, class_weights)
    totals, weights = np.zeros(2), np.zeros(2)  # of genes and of phenotypes
    gene_baseline = 0.0
    n_slots = len(config.phenotypes)
    # By temperature and phenotype: sums of the model's losses, and of the baseline's.
    by_slot = np.zeros((2, len(_TEMPERATURES), n_slots))
    slot_weights, slot_cells = np.zeros(n_slots), np.zeros(n_slots, dtype=np.int64)
    n_right = n_baseline_right = n_genes = 0
    for prediction in predict(model, batches()):
        cells, batch, output = prediction.cells, prediction.batch, prediction.output
        parts = masked_loss(
            output.gene_logits, output.phenotype_logits, batch, config, loss, class_weights
        )
        # The weight of a batch is what its means were taken over, so that batches of any size add up.
        targets = offsets[cells.phenotype_slot] + cells.phenotype_target
        of_class = np.ones(len(targets))
        if class_weights is not None:
            of_class = class_weights[targets].double().cpu().numpy()
        weight = np.array(
            [
                len(np.unique(cells.gene_cell)) if loss.weighting == "rate" else len(cells.gene),
                of_class.sum(),
            ]
        )
        totals += weight * np.array([parts.genes.item(), parts.phenotypes.item()])
        weights += weight
        constant = marginals.predict(batch)
        of_marginals = masked_loss(
            constant.gene_logits, constant.phenotype_logits, batch, config, loss, class_weights
        )
        gene_baseline += float(weight[0]) * of_marginals.genes.item()
        slots = cells.phenotype_slot
        slot_weights += np.bincount(slots, of_class, n_slots)
        slot_cells += np.bincount(slots, minlength=n_slots)
        for sums, logits in zip(
            by_slot, (output.phenotype_logits, constant.phenotype_logits), strict=True
        ):
            tried = [phenotype_losses(logits / t, batch, config, loss) for t in _TEMPERATURES]
            for row, losses in enumerate(torch.stack(tried).double().cpu().numpy()):
                sums[row] += np.bincount(slots, losses * of_class, n_slots)
        truth, best = _bins(output.gene_logits, batch.gene_target, config)
        n_right += int((best == truth).sum())
        n_baseline_right += int((common[cells.gene] == truth.cpu().numpy()).sum())
        n_genes += len(truth)
    gene_loss, phenotype_loss = (totals / np.maximum(weights, 1e-9)).tolist()
    by_slot /= np.maximum(slot_weights, 1e-9)
    (own, baseline), best = by_slot[:, len(_TEMPERATURES) // 2], by_slot.min(axis=1)
    # Phenotypes count in the loss as often as they are masked.
    of_loss = loss.phenotype_weight * slot_weights / max(float(slot_weights.sum()), 1e-9)
    return MaskedScores(
        loss=gene_loss + loss.phenotype_weight * phenotype_loss,
        phenotype_loss=phenotype_loss,
        gene_target=(
            TargetLoss(gene_loss, gene_baseline / float(weights[0]), 1.0) if n_genes else None
        ),
        phenotype_targets={
            name: TargetLoss(
                float(own[slot]),
                float(baseline[slot]),
                float(of_loss[slot]),
                tuple(best[:, slot].tolist()) if slot_cells[slot] >= LEAST_CELLS else None,
            )
            for slot, name in enumerate(config.phenotypes)
            if slot_cells[slot]
        },
        genes=MaskedGenes(
            n_masked=n_genes,
            accuracy=n_right / max(n_genes, 1),
            baseline_accuracy=n_baseline_right / max(n_genes, 1),
            loss=gene_loss,
        ),
    )


def draw_static_mask(
    rows: NDArray[np.int64], n_genes: int, rate: float, *, seed: int
) -> NDArray[np.bool_]:
    """(cells, genes), True where masked: ``rate`` of the genes of each row of the store, rounded."""
    n_masked = round(rate * n_genes)
    mask = np.zeros((len(rows), n_genes), dtype=bool)
    for number, row in enumerate(rows.tolist()):
        rng = generator(seed, Stream.HIDDEN_GENES, round(1000 * rate), row)
        mask[number, rng.permutation(n_genes)[:n_masked]] = True
    return mask


def evaluate_at_rate(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    rate: float,
    *,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> "tuple[Probabilities, GeneScores]":
    """Mask a fraction of the genes and all phenotypes, and predict both.

    Returns probabilities by phenotype, and the scores of the masked genes (empty for a classifier).
    """
    stage = f"{100 * rate:.0f} % of the genes masked"

    def batches() -> Iterator[CellBatch]:
        for number, some in row_batches(rows, stage, on_progress):
            rng = generator(seed, number, Stream.MASK_RATE_BATCH, round(1000 * rate))
            yield from _batches_at_rate(model, store, some, rate, seed, rng)

    parts: list[Probabilities] = []
    genes = GeneScores(model, rate)
    has_genes = model.config.classified is None
    alternates = has_genes and model.config.layout != "ranked"  # phenotypes, genes, phenotypes, ...
    for number, prediction in enumerate(predict(model, batches())):
        if not alternates or number % 2 == 0:
            parts.append(phenotype_probabilities(model, prediction))
        if has_genes and (not alternates or number % 2 == 1):
            genes.add(
                prediction.output.gene_logits, prediction.cells.gene, prediction.batch.gene_target
            )
    return join_probabilities(model, parts), genes


def _batches_at_rate(
    model: CellModel,
    store: Store,
    rows: NDArray[np.int64],
    rate: float,
    seed: int,
    rng: np.random.Generator,
) -> Iterator[CellBatch]:
    """Give the batch of the phenotypes, and that of the genes where it is another one."""
    names = list(model.config.phenotypes)
    expression, sizes = store.read(rows, model.panel), store.library_sizes(rows)
    mask = draw_static_mask(rows, len(model.panel), rate, seed=seed)
    # A code of 0 masks a phenotype whose label is missing; the model does not see it.
    codes = np.zeros((len(rows), len(names)), dtype=np.int32)
    if model.config.layout == "ranked":
        states = np.full(codes.shape, Show.MASKED, dtype=np.int8)
        yield model.batches.ranked(expression.toarray(), codes, states, mask, sizes)
        return
    shown = sparse.csr_matrix(expression.multiply(~mask))
    shown.eliminate_zeros()
    yield model.batches.visible(PanelCells.of(shown, sizes), codes, names, rng)
    if model.config.classified is None:
        masking = MaskingSettings(
            genes=rate, phenotypes=1.0, unspecified=0.0, unexpressed=model.masking.unexpressed
        )
        yield model.batches.masked(PanelCells.of(expression, sizes), codes, masking, rng)


def _bins(
    logits: torch.Tensor, targets: torch.Tensor, config: TfxConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """(M,) true and predicted bins of masked genes; of continuous models whether they are expressed."""
    if config.kind == "continuous":
        return (targets > 0).long(), (logits[:, 0] > 0).long()
    return targets.long(), predict_genes(logits, config)


def negative_log_likelihood(
    logits: torch.Tensor, targets: torch.Tensor, config: TfxConfig
) -> torch.Tensor:
    """(M,) nats of masked genes, of the model's own distribution, whatever loss it was trained with."""
    if config.kind == "continuous":
        return hurdle_regression(logits, targets)
    return functional.cross_entropy(bin_logits(logits, config), targets.long(), reduction="none")


class _Sums:
    """(genes,) sums over masked genes: negative log-likelihood (nats), right predictions, errors.

    An error is a distance in bins, of continuous models in log1p units.
    """

    def __init__(self, n_genes: int) -> None:
        self.nll, self.n_right, self.error = np.zeros((3, n_genes))

    def add(
        self,
        genes: NDArray[np.integer[Any]],
        nll: NDArray[Any],
        right: NDArray[np.bool_],
        error: NDArray[Any],
    ) -> None:
        """Add (M,) values of masked genes."""
        for sums, weights in ((self.nll, nll), (self.n_right, right), (self.error, error)):
            sums += np.bincount(genes, weights=weights, minlength=len(sums))

    def means(self, n_masked: int) -> GeneMeans:
        """Means over all masked genes; NaN if there are none."""
        sums = (self.nll, self.n_right, self.error)
        return GeneMeans(*(float(of.sum() / n_masked) if n_masked else math.nan for of in sums))


class GeneScores:
    """Scores of the masked genes of one mask rate, by gene.

    A right prediction is the right bin, of continuous models whether the gene is expressed.
    """

    def __init__(self, model: CellModel, rate: float) -> None:
        config = self._config = model.config
        self.rate = rate
        self.n_masked = np.zeros(config.n_genes, dtype=np.int64)
        self.model = _Sums(config.n_genes)
        # The marginal does not predict continuous values, nor which gene the expressed layout masks.
        self.marginal = None
        if config.kind != "continuous" and config.layout == "ranked":
            self.marginal = _Sums(config.n_genes)
            counts = model.reference.bin_counts
            smooth = counts + 1 / counts.shape[1]  # one more cell, so that no bin is impossible
            self._marginal_nll = -np.log(smooth / smooth.sum(axis=1, keepdims=True))
            self._common = counts.argmax(axis=1)
        n_bins = 2 if config.kind == "continuous" else config.n_bins
        #: (bins, bins), row = true; of continuous models not expressed and expressed.
        self.confusion = np.zeros((n_bins, n_bins), dtype=np.int64)

    def add(
        self, logits: torch.Tensor, genes: NDArray[np.integer[Any]], targets: torch.Tensor
    ) -> None:
        """Add (M, outputs) logits of a batch, with panel genes and bins, or log1p values of continuous models."""
        truth, best = _bins(logits, targets, self._config)
        nll = negative_log_likelihood(logits, targets, self._config)
        if self._config.kind == "continuous":
            error = (predict_genes(logits, self._config) - targets).abs()
        else:
            error = (best - truth).abs()
        true, predicted = truth.cpu().numpy(), best.cpu().numpy()
        self.n_masked += np.bincount(genes, minlength=len(self.n_masked))
        self.model.add(
            genes, nll.double().cpu().numpy(), true == predicted, error.double().cpu().numpy()
        )
        np.add.at(self.confusion, (true, predicted), 1)
        if self.marginal is not None:
            common = self._common[genes]
            self.marginal.add(
                genes, self._marginal_nll[genes, true], common == true, np.abs(common - true)
            )

    def means(self) -> RateScores:
        """Summarise all masked genes."""
        n_masked = int(self.n_masked.sum())
        n_true, n_right = self.confusion.sum(axis=1).tolist(), np.diag(self.confusion).tolist()
        return RateScores(
            **asdict(self.model.means(n_masked)),
            mask_rate=self.rate,
            n_masked=n_masked,
            marginal=None if self.marginal is None else self.marginal.means(n_masked),
            bins=tuple(
                BinAccuracy(number, n, right / n if n else math.nan)
                for number, (n, right) in enumerate(zip(n_true, n_right, strict=True))
            ),
            confusion=self.confusion.tolist(),
        )

    def row(self, gene: int, panel: GenePanel) -> GeneRow:
        """Summarise one gene, which must have been masked."""
        n = int(self.n_masked[gene])
        nll = float(self.model.nll[gene]) / n
        marginal = math.nan if self.marginal is None else float(self.marginal.nll[gene]) / n
        return GeneRow(
            panel.ids[gene],
            panel.symbols[gene],
            mask_rate=self.rate,
            n_masked=n,
            nll=nll,
            marginal_nll=marginal,
            gain=marginal - nll,
            accuracy=float(self.model.n_right[gene]) / n,
            mean_absolute_error=float(self.model.error[gene]) / n,
        )


def report_genes(
    scores: Sequence[GeneScores], panel: GenePanel, n_cells: int
) -> tuple[GeneRates, list[GeneRow]]:
    """Summarise the scores of several mask rates, ascending; return also a row per gene and rate.

    The genes that are predicted best and worst at the middle rate are named: by the gain over the gene's
    marginal, or by the likelihood if there is no marginal.
    """
    rows = [
        one.row(gene, panel) for gene in range(len(panel)) for one in scores if one.n_masked[gene]
    ]
    middle = scores[len(scores) // 2]
    judged = [row for row in rows if row.mask_rate == middle.rate and row.n_masked >= _LEAST_MASKED]
    ranked = sorted(judged, key=lambda row: row.nll if middle.marginal is None else -row.gain)
    n_listed = min(_N_LISTED, len(ranked) // 2)
    rates = GeneRates(
        n_cells=n_cells,
        rates=tuple(one.means() for one in scores),
        best=tuple(ranked[:n_listed]),
        worst=tuple(ranked[::-1][:n_listed]),
    )
    return rates, rows
