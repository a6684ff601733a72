"""How well two genes alone tell a phenotype of two values: sex is mostly XIST and a Y gene.

A high figure that two genes reach as well says that the model has found these genes, and nothing
about the rest of the cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.evaluation.phenotype_metrics import score_phenotype

__all__ = ["TwoGenes", "tell_by_two_genes"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class TwoGenes:
    """What logistic regression on two genes reaches.

    Attributes
    ----------
    genes
        Panel indices: the gene that goes most with the phenotype in training cells, and the one
        that goes most with what the first leaves over.
    accuracy, balanced_accuracy
        On the scored cells.
    """

    genes: tuple[int, int]
    accuracy: float
    balanced_accuracy: float

    def to_dict(self, symbols: Sequence[str]) -> dict[str, Any]:
        """Return plain values, with the genes' symbols."""
        return {
            "genes": [symbols[gene] for gene in self.genes],
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
        }


def tell_by_two_genes(
    train_x: sparse.csr_matrix,
    train_codes: NDArray[np.integer[Any]],
    test_x: sparse.csr_matrix,
    test_codes: NDArray[np.integer[Any]],
    n_values: int,
) -> TwoGenes | None:
    """Choose two genes on training cells and score them on test cells.

    Parameters
    ----------
    train_x, test_x
        (cells, genes), log1p counts per 10k.
    train_codes, test_codes
        (cells,), -1 where missing.
    n_values
        Values of the phenotype.

    Returns
    -------
    None unless the training cells have exactly two values, the test cells more than one, and two
    genes vary.
    """
    from sklearn.linear_model import LogisticRegression  # 500 ms

    rows, scored = np.flatnonzero(train_codes >= 0), np.flatnonzero(test_codes >= 0)
    present = np.unique(train_codes[rows])
    if len(present) != 2 or len(np.unique(test_codes[scored])) < 2:
        return None
    x = train_x[rows].astype(np.float64)
    y = (train_codes[rows] == present[1]).astype(np.float64)
    genes = _two_genes(x, y - y.mean())
    if genes is None:
        return None
    columns = list(genes)
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(x[:, columns].toarray(), train_codes[rows])
    told = np.full(len(test_codes), -1, dtype=np.int64)
    told[scored] = model.predict(test_x[scored][:, columns].toarray())
    scores = score_phenotype(test_codes, told, [str(code) for code in range(n_values)])
    return TwoGenes(genes, scores.accuracy, scores.balanced_accuracy)


def _two_genes(x: sparse.csr_matrix, y: FloatArray) -> tuple[int, int] | None:
    """Forward selection by correlation; ``y`` is centred."""
    n_cells = x.shape[0]
    mean = np.asarray(x.mean(axis=0)).ravel()
    power = np.asarray(x.multiply(x).sum(axis=0)).ravel() - n_cells * mean**2
    varies = power > 1e-8 * n_cells
    if varies.sum() < 2:
        return None

    def strength(target: FloatArray, left: FloatArray) -> FloatArray:
        share = np.asarray(x.T @ target) ** 2
        return np.divide(share, left, out=np.zeros_like(left), where=left > 1e-8 * n_cells)

    first = int(strength(y, np.where(varies, power, 0.0)).argmax())
    one = x[:, [first]].toarray().ravel() - mean[first]
    rest = y - one * (one @ y) / power[first]
    overlap = np.asarray(x.T @ one)  # the centred gene takes the other's mean off
    left = np.where(varies, power - overlap**2 / power[first], 0.0)
    left[first] = 0.0
    if not (left > 1e-8 * n_cells).any():
        return None
    return first, int(strength(rest, left).argmax())
