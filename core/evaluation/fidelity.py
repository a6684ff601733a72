"""The short report on generated cells: do genes, cells and gene pairs look real.

Pooled gene means cannot tell a generator from independent sampling; the agreement of gene-gene
correlations within the sample can, and detected genes per cell show collapse. The measures are
meant for a sample of one condition; over mixed cell types the correlations mostly say that types
differ.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.errors import DataError

__all__ = ["FidelitySummary", "GeneComparison", "compare_cells"]

_CORRELATION_GENES = 100
_MAX_DETECTION = 0.97
_MIN_CELLS = 3

FloatArray = NDArray[np.float64]


class _Panel(Protocol):
    """What is needed of a `core.cells.genes.GenePanel`."""

    @property
    def symbols(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class GeneComparison:
    """One gene on both sides: mean log1p value and share of cells above zero."""

    gene: str
    real_mean: float
    generated_mean: float
    difference: float
    real_detection: float
    generated_detection: float


@dataclass(frozen=True)
class FidelitySummary:
    """How generated cells compare with real ones; NaN where a measure is undefined.

    Attributes
    ----------
    n_real, n_generated, n_genes
        Sizes.
    gene_mean_r
        Pearson correlation of the genes' means.
    detection_mae
        Mean over genes of the absolute difference of detection rates.
    genes_per_cell_real_mean, genes_per_cell_real_sd, genes_per_cell_generated_mean, \
genes_per_cell_generated_sd
        Panel genes above zero per cell.
    correlation_r, correlation_slope
        Agreement of the gene-gene correlations over all pairs of `n_correlation_genes` genes: their
        Pearson correlation, and generated on real through the origin (1 is ideal, 0 independent
        genes).
    n_correlation_genes
        Genes of highest variance in the real cells, detected in under 97 % of them; at most 100.
    top_genes
        Genes of highest real mean.
    furthest_genes
        Genes of largest absolute difference.
    """

    n_real: int
    n_generated: int
    n_genes: int
    gene_mean_r: float
    detection_mae: float
    genes_per_cell_real_mean: float
    genes_per_cell_real_sd: float
    genes_per_cell_generated_mean: float
    genes_per_cell_generated_sd: float
    correlation_r: float
    correlation_slope: float
    n_correlation_genes: int
    top_genes: tuple[GeneComparison, ...]
    furthest_genes: tuple[GeneComparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what is not a number becomes None."""
        record = asdict(self)
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                record[name] = None
        record["top_genes"] = list(record["top_genes"])
        record["furthest_genes"] = list(record["furthest_genes"])
        return record


def compare_cells(
    real: sparse.csr_matrix, generated: sparse.csr_matrix, panel: _Panel, *, n_top: int = 15
) -> FidelitySummary:
    """Compare generated with real cells of the same condition.

    Parameters
    ----------
    real, generated
        (cells, genes), log1p counts per 10k, columns in panel order; the numbers of cells may differ.
    panel
        The gene panel; its symbols name the genes.
    n_top
        Length of the gene tables.

    Raises
    ------
    DataError
        A side has no cells, or another number of genes than the panel.
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
    real_mean, generated_mean = _means(real), _means(generated)
    real_on, generated_on = _binary(real), _binary(generated)
    real_detection, generated_detection = _means(real_on), _means(generated_on)
    real_genes = np.asarray(real_on.sum(axis=1), dtype=float).ravel()
    generated_genes = np.asarray(generated_on.sum(axis=1), dtype=float).ravel()
    columns = _correlation_genes(real, real_mean, real_detection)
    correlation_r, slope = _correlation_agreement(real, generated, columns)

    def compare(gene: int) -> GeneComparison:
        return GeneComparison(
            gene=panel.symbols[gene],
            real_mean=float(real_mean[gene]),
            generated_mean=float(generated_mean[gene]),
            difference=float(generated_mean[gene] - real_mean[gene]),
            real_detection=float(real_detection[gene]),
            generated_detection=float(generated_detection[gene]),
        )

    highest = np.argsort(-real_mean, kind="stable")[:n_top]
    furthest = np.argsort(-np.abs(generated_mean - real_mean), kind="stable")[:n_top]
    return FidelitySummary(
        n_real=real.shape[0],
        n_generated=generated.shape[0],
        n_genes=len(panel),
        gene_mean_r=_pearson(real_mean, generated_mean),
        detection_mae=float(np.abs(real_detection - generated_detection).mean()),
        genes_per_cell_real_mean=float(real_genes.mean()),
        genes_per_cell_real_sd=float(real_genes.std()),
        genes_per_cell_generated_mean=float(generated_genes.mean()),
        genes_per_cell_generated_sd=float(generated_genes.std()),
        correlation_r=correlation_r,
        correlation_slope=slope,
        n_correlation_genes=len(columns),
        top_genes=tuple(compare(int(gene)) for gene in highest),
        furthest_genes=tuple(compare(int(gene)) for gene in furthest),
    )


def _means(matrix: sparse.csr_matrix) -> FloatArray:
    """(genes,) means over cells, summed in float64."""
    return np.asarray(matrix.sum(axis=0, dtype=np.float64)).ravel() / matrix.shape[0]


def _binary(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """One where a value is above zero; explicit zeros do not count."""
    return sparse.csr_matrix((matrix > 0).astype(np.float64))


def _correlation_genes(
    real: sparse.csr_matrix, mean: FloatArray, detection: FloatArray
) -> NDArray[np.int64]:
    """Columns of the genes whose correlations are compared, most variable first."""
    wide = real.astype(np.float64)
    variance = _means(sparse.csr_matrix(wide.multiply(wide))) - mean**2
    eligible = np.flatnonzero((detection < _MAX_DETECTION) & (variance > 1e-10))
    order = np.argsort(-variance[eligible], kind="stable")
    return eligible[order[:_CORRELATION_GENES]].astype(np.int64)


def _correlation_agreement(
    real: sparse.csr_matrix, generated: sparse.csr_matrix, columns: NDArray[np.int64]
) -> tuple[float, float]:
    """Pearson r and slope through the origin of generated on real gene-gene correlations."""
    if len(columns) < 3 or min(real.shape[0], generated.shape[0]) < _MIN_CELLS:
        return math.nan, math.nan
    upper = np.triu_indices(len(columns), k=1)
    real_r = _correlations(real[:, columns].toarray())[upper]
    generated_r = _correlations(generated[:, columns].toarray())[upper]
    power = float((real_r**2).sum())
    slope = float((generated_r * real_r).sum()) / power if power > 0 else math.nan
    return _pearson(real_r, generated_r), slope


def _correlations(values: NDArray[Any]) -> FloatArray:
    """(genes, genes) Pearson correlations; a constant gene correlates with nothing (0)."""
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    norm = np.sqrt((centred**2).sum(axis=0))
    scaled = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-10)
    correlations: FloatArray = scaled.T @ scaled
    return correlations


def _pearson(left: FloatArray, right: FloatArray) -> float:
    """Pearson correlation, NaN where a side is constant."""
    left, right = left - left.mean(), right - right.mean()
    norm = math.sqrt(float((left**2).sum()) * float((right**2).sum()))
    return float((left * right).sum()) / norm if norm > 1e-12 else math.nan
