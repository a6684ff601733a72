"""HVG ranking: genes from most to least variable, as scanpy ranks them, over any number of cells.

Only sums over cells enter, so the cells are read in chunks and by any number of processes:
`rank_in_passes` requests sums, its caller reads the cells and merges the sums by ``+``. seurat_v3 takes
two passes over the counts, seurat one over counts per 10,000. The order is scanpy's, of all cells, but
for genes whose scores differ by rounding.

Sums of counts are whole numbers, and float64 adds those exactly (below 2**53, nine billion cells of a
count of 1,000): they are the same for any division of the cells. Sums of other values (counts per
10,000, log values) are the same only for the same chunks: cut them at fixed places and merge them in
their order.
"""

import logging
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from core.cells.normalisation import count_scales, log_normalise
from core.cells.store import StoredCells
from core.errors import DataError
from core.wording import first_line

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]
ValueKind = Literal["counts", "log1p"]

#: Values summed at a time. Their copies stay in the processor's cache: 3.5 ns per value instead of
#: 7.6 in one piece. Part of the result's last bits where values are not whole: never change it
#: within a format of the store.
_BLOCK = 2**17
#: skmisc's loess at scanpy's span of 0.3 kills the process below four genes and fails below 14.
_FEWEST_FOR_LOESS = 10
#: scanpy's settings of the two methods.
_LOESS_SPAN = 0.3
_LOESS_DEGREE = 2
_MEAN_BINS = 20


class CannotRankError(ValueError):
    """A method needs more cells, or more genes that differ; the message names what is missing."""


class _Sums:
    """Sums that merge with those of other cells, field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*map(operator.add, vars(self).values(), vars(other).values()))


@dataclass(frozen=True)
class GeneMoments(_Sums):
    """First and second moments of some cells, before division: (genes,) sums of values and squares."""

    n_cells: int
    sums: FloatArray
    squares: FloatArray

    def __sub__(self, other: "GeneMoments") -> "GeneMoments":
        """Leave some of the cells out; exact if values are whole numbers."""
        return GeneMoments(*map(operator.sub, vars(self).values(), vars(other).values()))

    @property
    def means(self) -> FloatArray:
        """(genes,), mean over all cells, zeros included."""
        return self.sums / max(self.n_cells, 1)

    @property
    def variances(self) -> FloatArray:
        """(genes,), unbiased variance; exactly 0 for a gene of one count, 0 for a single cell."""
        spread = self.squares - self.sums * self.means
        return np.maximum(spread, 0.0) / max(self.n_cells - 1, 1)


@dataclass(frozen=True)
class ClippedMoments(_Sums):
    """The few values above the limits, which clipping changes: (genes,) number, and unclipped sums."""

    n_values: FloatArray
    sums: FloatArray
    squares: FloatArray


@dataclass(frozen=True)
class MomentsPass:
    """A pass over cells: moments of the values as stored, of counts per 10,000, or of their log1p."""

    values: Literal["stored", "normalised", "log1p"]

    def sum_chunk(self, cells: StoredCells, value_kind: ValueKind, n_genes: int) -> GeneMoments:
        """Sum one chunk of cells as the store holds them."""
        values: NDArray[Any] = cells.values
        if self.values not in ("stored", value_kind):
            if value_kind == "log1p":
                values = np.expm1(values.astype(np.float64))
            else:
                scales = count_scales(cells.totals.astype(np.float64))
                scale = np.repeat(scales, np.diff(cells.indptr))
                is_log = self.values == "log1p"
                values = log_normalise(values, scale) if is_log else values * scale
        return moments(cells.genes, values, n_genes, len(cells.indptr) - 1)


@dataclass(frozen=True)
class ClipLimits:
    """Where seurat_v3 clips the counts of each gene; as a pass over cells, moments of larger counts."""

    #: (genes,), standard deviation expected at the gene's mean; 1 for a gene that does not vary.
    deviations: FloatArray
    #: (genes,), mean + deviation x square root of the number of cells.
    limits: FloatArray

    def sum_chunk(self, cells: StoredCells, _kind: ValueKind, _n_genes: int) -> ClippedMoments:
        """Sum one chunk of cells as the store holds them."""
        return clipped_moments(cells.genes, cells.values, self)


#: Runs a pass over all training cells, and merges the sums by ``+`` in the order of the chunks.
SumOverCells = Callable[[MomentsPass | ClipLimits], Any]


def moments(
    genes: NDArray[np.integer[Any]], values: NDArray[Any], n_genes: int, n_cells: int
) -> GeneMoments:
    """Sum one chunk of cells, given column and value of each non-zero entry, in any order."""
    sums, squares = np.zeros(n_genes), np.zeros(n_genes)
    once = np.ones(1)
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64)
        columns = genes[start : start + _BLOCK].astype(np.int32)
        # One row that names a gene once for each of its values: its product sums them in order,
        # as np.bincount does, in half the time.
        row = sparse.csr_matrix((block, columns, [0, len(block)]), shape=(1, n_genes))
        sums += np.asarray(row.T @ once)
        np.square(block, out=row.data)
        squares += np.asarray(row.T @ once)
    return GeneMoments(n_cells, sums, squares)


def clipped_moments(
    genes: NDArray[np.integer[Any]], values: NDArray[Any], limits: ClipLimits
) -> ClippedMoments:
    """Sum the counts above the limits in one chunk of cells; arguments as for `moments`."""
    n_genes = len(limits.limits)
    above = limits.limits
    if np.issubdtype(values.dtype, np.integer):  # comparing small integers takes half the time
        most = np.iinfo(values.dtype).max
        above = np.minimum(np.floor(above), most).astype(values.dtype)
    found = [np.empty(0, dtype=np.intp)]
    for start in range(0, len(values), _BLOCK):
        block = slice(start, start + _BLOCK)
        found.append(start + np.flatnonzero(values[block] > above[genes[block]]))
    places = np.concatenate(found)
    part = moments(genes[places], values[places], n_genes, 0)
    counted = np.bincount(genes[places].astype(np.intp), minlength=n_genes)
    return ClippedMoments(counted.astype(np.float64), part.sums, part.squares)


@dataclass(frozen=True)
class GeneRanking:
    """An order of genes."""

    #: (genes,), columns from most to least variable; genes never seen come last.
    order: NDArray[np.int32]
    #: "seurat_v3", "seurat", "variance" (the fallback) or "none".
    method: str
    #: Sentences the user should read.
    notices: list[str]


def resolve_method(wanted: str, value_kind: str) -> str:
    """Settle ``data.hvg`` = "auto"; DataError if seurat_v3 is wanted, but there are no counts."""
    if wanted == "seurat_v3" and value_kind != "counts":
        raise DataError(
            "data.hvg = 'seurat_v3' needs raw counts but the files hold log values; set it to "
            "'seurat' or 'auto', or set data.matrix to a matrix of counts"
        )
    if wanted == "auto":
        return "seurat_v3" if value_kind == "counts" else "seurat"
    return wanted


def rank_in_passes(
    sum_over_cells: SumOverCells, *, wanted: str, value_kind: ValueKind, n_genes: int
) -> GeneRanking:
    """Rank genes by their variability; `sum_over_cells` reads the training cells.

    It runs one pass, ``one_pass.sum_chunk(cells, value_kind, n_genes)`` for each chunk in any process.
    `wanted` is ``data.hvg``; "none" keeps the order of the columns. DataError if the method that the
    preset names fails on these cells.
    """
    method = resolve_method(wanted, value_kind)
    if method == "none":
        return GeneRanking(np.arange(n_genes, dtype=np.int32), "none", [])
    sums = sum_over_cells(MomentsPass("stored" if method == "seurat_v3" else "normalised"))
    try:
        if method == "seurat":
            return rank_by_dispersion(sums)
        limits = clip_limits(sums)
        return _rank_by_v3(sums, limits, sum_over_cells(limits))
    except CannotRankError as error:
        cells = f"{sums.n_cells} training cells x {n_genes} genes ({error})"
        if wanted == method:
            raise DataError(
                f"data.hvg = '{method}' cannot rank these {cells}; set data.hvg to 'auto' or "
                f"'none', or add cells"
            ) from error
        notice = (
            f"genes are ranked by the variance of their log values, because {method} failed on "
            f"{cells}"
        )
    logger.warning("%s", notice)
    sums = sum_over_cells(MomentsPass("log1p"))
    return GeneRanking(_order(sums.variances, sums), "variance", [notice])


def clip_limits(sums: GeneMoments) -> ClipLimits:
    """Fit the standard deviation that a gene has at its mean count (seurat_v3, first step).

    As scanpy: loess of log10 variance on log10 mean over the genes that vary, span 0.3, degree 2.
    """
    from skmisc.loess import loess  # type: ignore[import-untyped]

    means, variances = sums.means, sums.variances
    varies = variances > 0
    if varies.sum() < _FEWEST_FOR_LOESS:
        raise CannotRankError(f"fewer than {_FEWEST_FOR_LOESS} genes vary")
    fit = loess(
        np.log10(means[varies]), np.log10(variances[varies]), span=_LOESS_SPAN, degree=_LOESS_DEGREE
    )
    try:
        with warnings.catch_warnings():
            # On few cells loess warns in ways that do not help the user of a preset.
            warnings.simplefilter("ignore")
            fit.fit()
    except ValueError as error:
        raise CannotRankError(first_line(error)) from error
    deviations = np.ones(len(means))
    deviations[varies] = np.sqrt(10.0**fit.outputs.fitted_values)
    return ClipLimits(deviations, means + deviations * np.sqrt(sums.n_cells))


def _rank_by_v3(sums: GeneMoments, limits: ClipLimits, clipped: ClippedMoments) -> GeneRanking:
    """Rank genes by the variance of standardised, clipped counts, as Seurat v3 and scanpy do."""
    means, ceiling = sums.means, limits.limits
    clipped_sums = sums.sums - clipped.sums + clipped.n_values * ceiling
    clipped_squares = sums.squares - clipped.squares + clipped.n_values * ceiling**2
    spread = sums.n_cells * means**2 + clipped_squares - 2 * clipped_sums * means
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = spread / ((sums.n_cells - 1) * limits.deviations**2)
    return GeneRanking(_order(scores, sums), "seurat_v3", [])


def rank_by_dispersion(sums: GeneMoments) -> GeneRanking:
    """Rank genes by dispersion of counts per 10,000 in 20 bins of the mean, as scanpy's "seurat"."""
    means = np.where(sums.sums == 0, 1e-12, sums.means)
    with np.errstate(divide="ignore"):
        dispersions = np.log(sums.variances / means)
    dispersions[np.isneginf(dispersions)] = np.nan  # a gene that does not vary has none
    table = pd.DataFrame({"dispersion": dispersions})
    table["bin"] = pd.cut(np.log1p(means), bins=_MEAN_BINS, labels=False)
    of_bin = table.groupby("bin")["dispersion"]
    centres, widths = of_bin.transform("mean").to_numpy(), of_bin.transform("std").to_numpy()
    # scanpy: the normalised dispersion of a gene alone in its bin is 1.
    alone = np.isnan(widths)
    widths = np.where(alone, centres, widths)
    centres = np.where(alone, 0.0, centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = (dispersions - centres) / widths
    return GeneRanking(_order(scores, sums), "seurat", [])


def _order(scores: NDArray[np.float64], sums: GeneMoments) -> NDArray[np.int32]:
    """(genes,), highest score first; then genes without a score, then genes never seen."""
    finite = np.isfinite(scores)
    if not finite.any():
        raise CannotRankError("no gene has a finite score")
    # Rounded, so that scores which are equal but for the order of sums tie: both genes of a bin of
    # two score 1 / sqrt(2). The sort is stable: ties keep the order of the columns.
    scores = np.where(finite, np.round(scores, 10), -np.inf)
    return np.lexsort((-scores, sums.sums == 0)).astype(np.int32)
