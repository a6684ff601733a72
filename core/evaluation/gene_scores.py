"""How well hidden genes are told: likelihood, accuracy and ordinal error, gene by gene, bin by bin.

The likelihood is that of the model's own distribution, whatever loss it was trained with, so models
can be compared. Beside it stands the gene's marginal: its shares of training cells per bin.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from core.evaluation.gene_marginal import GeneMarginal
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.model.gene_outputs import bin_logits, predict_genes
from core.model.losses import hurdle_regression

__all__ = ["GeneScores"]

FloatArray = NDArray[np.float64]


@dataclass
class GeneScores:
    """Sums over the hidden genes of one mask rate.

    Attributes
    ----------
    rate
        Share of genes that was hidden.
    config
        The model's.
    marginal
        What the training cells say of each gene; None where that is no answer to the question
        (continuous values; the expressed layout, which mostly asks about expressed genes).
    n_asked, nll, n_right, off
        (genes,): hidden genes, and their sums of negative log-likelihood (nats), of right answers,
        and of the distance of answer and truth: in bins, of continuous models in log1p units.
        Right is the right bin, of continuous models whether the gene is on.
    marginal_nll, marginal_right, marginal_off
        (genes,), the same of the marginal.
    confusion
        (bins, bins), row = true; of continuous models off and on.
    """

    rate: float
    config: TfxConfig
    marginal: GeneMarginal | None
    n_asked: NDArray[np.int64] = field(init=False)
    nll: FloatArray = field(init=False)
    n_right: FloatArray = field(init=False)
    off: FloatArray = field(init=False)
    marginal_nll: FloatArray = field(init=False)
    marginal_right: FloatArray = field(init=False)
    marginal_off: FloatArray = field(init=False)
    confusion: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Begin at zero."""
        n_genes, n_bins = self.config.n_genes, self._n_bins
        self.n_asked = np.zeros(n_genes, dtype=np.int64)
        for name in ("nll", "n_right", "off", "marginal_nll", "marginal_right", "marginal_off"):
            setattr(self, name, np.zeros(n_genes))
        self.confusion = np.zeros((n_bins, n_bins), dtype=np.int64)

    @classmethod
    def of(cls, model: CellModel, rate: float) -> "GeneScores":
        """Return scores without a gene yet."""
        is_fair = model.config.kind != "continuous" and model.config.layout == "ranked"
        counts = model.reference.bin_counts
        return cls(rate, model.config, GeneMarginal.of(counts) if is_fair else None)

    @property
    def _n_bins(self) -> int:
        return 2 if self.config.kind == "continuous" else self.config.n_bins

    def add(
        self, logits: torch.Tensor, genes: NDArray[np.integer[Any]], targets: torch.Tensor
    ) -> None:
        """Add the answers of a batch.

        Parameters
        ----------
        logits
            (M, outputs).
        genes
            (M,), panel index.
        targets
            (M,), bins, or log1p values of continuous models.
        """
        n_genes = self.config.n_genes
        if self.config.kind == "continuous":
            nll = hurdle_regression(logits, targets)
            off = (predict_genes(logits, self.config) - targets).abs()
            truth, said = (targets > 0).long(), (logits[:, 0] > 0).long()
        else:
            truth = targets.long()
            nll = functional.cross_entropy(bin_logits(logits, self.config), truth, reduction="none")
            said = predict_genes(logits, self.config)
            off = (said - truth).abs()
        true, answer = truth.cpu().numpy(), said.cpu().numpy()

        def total(weights: NDArray[Any]) -> FloatArray:
            sums = np.bincount(genes, weights=weights, minlength=n_genes)
            return sums.astype(np.float64)

        self.n_asked += np.bincount(genes, minlength=n_genes)
        self.nll += total(nll.double().cpu().numpy())
        self.n_right += total(true == answer)
        self.off += total(off.double().cpu().numpy())
        pairs = true * self._n_bins + answer
        self.confusion += np.bincount(pairs, minlength=self._n_bins**2).reshape(
            self.confusion.shape
        )
        if self.marginal is not None:
            self.marginal_nll += total(self.marginal.nll[genes, true])
            self.marginal_right += total(self.marginal.common[genes] == true)
            self.marginal_off += total(np.abs(self.marginal.common[genes] - true))

    def mean(self, sums: FloatArray) -> float:
        """Return the mean over all hidden genes; NaN where none was hidden."""
        n_asked = int(self.n_asked.sum())
        return float(sums.sum() / n_asked) if n_asked else math.nan

    def each(self, sums: FloatArray) -> FloatArray:
        """Return (genes,) means of each gene; NaN where it was never hidden."""
        nothing = np.full(sums.shape, np.nan)
        return np.divide(sums, self.n_asked, out=nothing, where=self.n_asked > 0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        record: dict[str, Any] = {
            "rate": self.rate,
            "hidden_genes": int(self.n_asked.sum()),
            "nll": self.mean(self.nll),
            "accuracy": self.mean(self.n_right),
            "mean_off": self.mean(self.off),
        }
        if self.marginal is not None:
            record["marginal"] = {
                "nll": self.mean(self.marginal_nll),
                "accuracy": self.mean(self.marginal_right),
                "mean_off": self.mean(self.marginal_off),
            }
        n_true = self.confusion.sum(axis=1)
        record["bins"] = [
            {
                "bin": number,
                "genes": int(n),
                "accuracy": float(self.confusion[number, number] / n) if n else None,
            }
            for number, n in enumerate(n_true)
        ]
        record["confusion"] = self.confusion.tolist()
        return record
