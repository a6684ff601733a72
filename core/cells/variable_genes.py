"""Genes from most to least variable, as scanpy ranks them, over training cells."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.errors import DataError

__all__ = ["GeneRanking", "rank_genes", "resolve_method"]

logger = logging.getLogger(__name__)

#: skmisc's loess at scanpy's span of 0.3 kills the process below four genes and fails below 14.
_FEWEST_FOR_LOESS = 10

Method = Literal["seurat_v3", "seurat", "none"]
_SCORE_COLUMN: Mapping[str, str] = {"seurat_v3": "variances_norm", "seurat": "dispersions_norm"}


@dataclass(frozen=True)
class GeneRanking:
    """An order of genes.

    Attributes
    ----------
    order
        (genes,), int32, columns from most to least variable; genes never seen come last.
    method
        How it was found: "seurat_v3", "seurat", "variance" (the fallback) or "none".
    notices
        Sentences the user should read.
    """

    order: NDArray[np.int32]
    method: str
    notices: list[str]


def resolve_method(wanted: str, value_kind: str) -> Method:
    """Settle "auto", and refuse seurat_v3 where there are no counts.

    Parameters
    ----------
    wanted
        ``data.hvg``.
    value_kind
        "counts" or "log1p".
    """
    if wanted == "seurat_v3" and value_kind != "counts":
        message = (
            "data.hvg = 'seurat_v3' needs raw counts but the files hold log values; set it to "
            "'seurat' or 'auto', or set data.matrix to a matrix of counts"
        )
        raise DataError(message)
    if wanted == "auto":
        return "seurat_v3" if value_kind == "counts" else "seurat"
    methods: dict[str, Method] = {"seurat_v3": "seurat_v3", "seurat": "seurat", "none": "none"}
    return methods[wanted]


def rank_genes(
    counts: sparse.csr_matrix | None,
    read_log_values: Callable[[], sparse.csr_matrix],
    *,
    wanted: str,
) -> GeneRanking:
    """Rank genes by their variability.

    Parameters
    ----------
    counts
        (training cells, genes), or None where only log values exist.
    read_log_values
        Gives (training cells, genes), log1p of counts per 10,000; called only where they are
        needed, since both matrices together are the largest memory of `prepare`.
    wanted
        ``data.hvg``: "auto", "seurat_v3", "seurat" or "none" (the order of the columns).

    Raises
    ------
    DataError
        The method that the preset names needs counts, or fails on these cells.
    """
    method = resolve_method(wanted, "log1p" if counts is None else "counts")
    matrix = counts if method == "seurat_v3" and counts is not None else read_log_values()
    n_genes = int(matrix.shape[1])
    if method == "none":
        return GeneRanking(np.arange(n_genes, dtype=np.int32), "none", [])
    notices: list[str] = []
    try:
        scores = _scanpy_scores(matrix, method)
    except (ValueError, ZeroDivisionError, IndexError, FloatingPointError) as error:
        # loess and binning need enough different genes; too few cells or genes break them.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if wanted == method:
            message = (
                f"data.hvg = '{method}' cannot rank these {matrix.shape[0]} training cells x "
                f"{n_genes} genes ({reason}); set data.hvg to 'auto' or 'none', or add cells"
            )
            raise DataError(message) from error
        notices.append(
            f"genes are ranked by the variance of their log values, because {method} failed on "
            f"{matrix.shape[0]} training cells x {n_genes} genes ({reason})"
        )
        logger.warning("%s", notices[-1])
        method_used, scores = "variance", _variances(read_log_values())
    else:
        method_used = method
    seen = np.bincount(matrix.indices, minlength=n_genes) > 0
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.lexsort((-scores, ~seen))  # stable: ties keep the order of the columns
    return GeneRanking(order.astype(np.int32), method_used, notices)


def _scanpy_scores(matrix: sparse.csr_matrix, method: str) -> NDArray[np.float64]:
    if method == "seurat_v3" and np.sum(_variances(matrix) > 0) < _FEWEST_FOR_LOESS:
        message = f"fewer than {_FEWEST_FOR_LOESS} genes vary"
        raise ValueError(message)
    # Imported here: scanpy takes 2 s that no other part of a store needs.
    import scanpy as sc
    from anndata import AnnData

    with warnings.catch_warnings():
        # On log values of one scale, genes alike in mean, or few cells scanpy warns in ways that
        # say nothing to the user of a preset.
        warnings.simplefilter("ignore")
        adata = AnnData(matrix)
        adata.uns["log1p"] = {"base": None}
        with _same_threads():
            table = sc.pp.highly_variable_genes(
                adata, flavor=method, n_top_genes=matrix.shape[1], inplace=False
            )
    scores: NDArray[np.float64] = table[_SCORE_COLUMN[method]].to_numpy(dtype=np.float64)
    if not np.isfinite(scores).any():
        message = "no gene has a finite score"
        raise ValueError(message)
    return np.where(np.isinf(scores), np.nan, scores)


@contextlib.contextmanager
def _same_threads() -> Iterator[None]:
    """Keep torch's number of threads, where torch is loaded.

    scanpy's numba kernels set the number of OpenMP threads of the whole process, and sums in
    another number of threads differ in their last bits: a run would not resume exactly.
    """
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else 0
    try:
        yield
    finally:
        if torch is not None:
            torch.set_num_threads(before)


def _variances(matrix: sparse.csr_matrix) -> NDArray[np.float64]:
    n = max(matrix.shape[0], 1)
    genes = int(matrix.shape[1])
    values = matrix.data.astype(np.float64)
    means = np.bincount(matrix.indices, weights=values, minlength=genes) / n
    squares = np.bincount(matrix.indices, weights=values**2, minlength=genes) / n
    variances: NDArray[np.float64] = squares - means**2
    return variances
