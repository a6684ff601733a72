"""The short report on generated cells: whether genes, cells and correlations look real.

The measures are meant for a sample of one condition; over mixed cell types the correlations mostly reflect
that types differ.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import sparse

from core.cells.genes import GenePanel
from core.errors import DataError
from core.evaluation.fidelity.measures import (
    FloatArray,
    choose_variable_genes,
    correlation_agreement,
    pearson,
    within_class_correlations,
)
from core.files import plain_json

_MIN_CELLS, _MIN_GENES = 3, 3
#: Length of the gene tables.
_TOP = 15


@dataclass(frozen=True)
class GeneComparison:
    """One gene on both sides: mean log1p value and fraction of cells that express it."""

    gene: str
    real_mean: float
    generated_mean: float
    difference: float
    real_detection: float
    generated_detection: float


@dataclass(frozen=True)
class FidelitySummary:
    """How generated cells compare with real ones; NaN where a measure is undefined."""

    n_real: int
    n_generated: int
    n_genes: int
    #: Pearson correlation of the genes' means.
    gene_mean_r: float
    #: Mean over genes of the absolute difference of detection rates.
    detection_mae: float
    genes_per_cell_real_mean: float
    genes_per_cell_real_sd: float
    genes_per_cell_generated_mean: float
    genes_per_cell_generated_sd: float
    #: Agreement of the gene-gene correlations of `n_correlation_genes` genes: their Pearson correlation, and
    #: the slope of generated on real through the origin (1 is ideal, 0 independent genes).
    correlation_r: float
    correlation_slope: float
    n_correlation_genes: int
    #: Genes of highest real mean, and of largest absolute difference.
    top_genes: tuple[GeneComparison, ...]
    furthest_genes: tuple[GeneComparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what is not a number becomes None."""
        record: dict[str, Any] = plain_json(asdict(self))
        return record


def compare_cells(
    real: sparse.csr_matrix, generated: sparse.csr_matrix, panel: GenePanel
) -> FidelitySummary:
    """Compare generated with real cells of the same condition.

    Both are (cells, genes), log1p counts per 10,000, columns in panel order. A side without cells, or with
    another number of genes than the panel, is a DataError.
    """
    for side, matrix in (("real", real), ("generated", generated)):
        if matrix.shape[1] != len(panel):
            message = (
                f"the {side} cells have {matrix.shape[1]} genes, the panel {len(panel)}; "
                "read them with the model's panel"
            )
            raise DataError(message)
        if matrix.shape[0] == 0:
            message = f"there are no {side} cells to compare; widen the request"
            raise DataError(message)
    means = [_means(side) for side in (real, generated)]
    expressed = [sparse.csr_matrix((side > 0).astype(np.float64)) for side in (real, generated)]
    detection = [_means(side) for side in expressed]
    real_genes, generated_genes = (np.asarray(one.sum(axis=1)).ravel() for one in expressed)
    wide = real.astype(np.float64)
    variance = _means(sparse.csr_matrix(wide.multiply(wide))) - means[0] ** 2
    columns = choose_variable_genes(variance, detection[0])
    r = slope = math.nan
    if len(columns) >= _MIN_GENES and min(real.shape[0], generated.shape[0]) >= _MIN_CELLS:
        r, slope = correlation_agreement(
            *(
                within_class_correlations(side[:, columns].toarray(), np.zeros(side.shape[0], int))
                for side in (real, generated)
            )
        )
    difference = means[1] - means[0]
    of_genes = np.stack([*means, difference, *detection], axis=1)

    def largest(values: FloatArray) -> tuple[GeneComparison, ...]:
        genes = np.argsort(-values, kind="stable")[:_TOP].tolist()
        return tuple(
            GeneComparison(panel.symbols[gene], *of_genes[gene].tolist()) for gene in genes
        )

    return FidelitySummary(
        n_real=real.shape[0],
        n_generated=generated.shape[0],
        n_genes=len(panel),
        gene_mean_r=pearson(*means),
        detection_mae=float(np.abs(detection[0] - detection[1]).mean()),
        genes_per_cell_real_mean=float(real_genes.mean()),
        genes_per_cell_real_sd=float(real_genes.std()),
        genes_per_cell_generated_mean=float(generated_genes.mean()),
        genes_per_cell_generated_sd=float(generated_genes.std()),
        correlation_r=r,
        correlation_slope=slope,
        n_correlation_genes=len(columns),
        top_genes=largest(means[0]),
        furthest_genes=largest(np.abs(difference)),
    )


def _means(matrix: sparse.csr_matrix) -> FloatArray:
    """(genes,) means over cells, summed in float64."""
    return np.asarray(matrix.sum(axis=0, dtype=np.float64)).ravel() / matrix.shape[0]
