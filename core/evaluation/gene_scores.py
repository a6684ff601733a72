"""How well masked genes are predicted: likelihood, accuracy and ordinal error, by gene and by bin.

The likelihood is that of the model's own distribution, whatever loss it was trained with, so models can
be compared. It is compared with the gene's marginal: its fractions of training cells per bin, which look
at no other gene.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from core.cells.genes import GenePanel
from core.evaluation.report.records import BinAccuracy, GeneMeans, GeneRates, GeneRow, RateScores
from core.model.folder import CellModel
from core.model.gene_outputs import bin_logits, predict_genes
from core.model.losses import hurdle_regression

#: A gene that was masked less often has a mean that means little.
LEAST_MASKED = 20
_N_LISTED = 10

FloatArray = NDArray[np.float64]


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
        """Add the predictions of a batch.

        Parameters
        ----------
        logits
            (M, outputs).
        genes
            (M,), panel index.
        targets
            (M,), bins, or log1p values of continuous models.
        """
        if self._config.kind == "continuous":
            nll = hurdle_regression(logits, targets)
            error = (predict_genes(logits, self._config) - targets).abs()
            truth, best = (targets > 0).long(), (logits[:, 0] > 0).long()
        else:
            truth = targets.long()
            nll = functional.cross_entropy(
                bin_logits(logits, self._config), truth, reduction="none"
            )
            best = predict_genes(logits, self._config)
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
    """Summarise the scores of several mask rates, ascending.

    Returns
    -------
    Means by rate, with the genes that are predicted best and worst at the middle rate: by the gain over the
    gene's marginal, or by the likelihood if there is no marginal. And a row per gene and rate.
    """
    rows = [
        one.row(gene, panel) for gene in range(len(panel)) for one in scores if one.n_masked[gene]
    ]
    middle = scores[len(scores) // 2]
    judged = [row for row in rows if row.mask_rate == middle.rate and row.n_masked >= LEAST_MASKED]
    ranked = sorted(judged, key=lambda row: row.nll if middle.marginal is None else -row.gain)
    n_listed = min(_N_LISTED, len(ranked) // 2)
    rates = GeneRates(
        n_cells=n_cells,
        rates=tuple(one.means() for one in scores),
        best=tuple(ranked[:n_listed]),
        worst=tuple(ranked[::-1][:n_listed]),
    )
    return rates, rows
