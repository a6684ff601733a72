"""HVG ranking: genes from most to least variable, as scanpy ranks them, over any number of cells.

Only sums over cells enter (`gene_moments`), so the cells are read in chunks and by any number of
processes: `rank_in_passes` requests sums, its caller reads the cells. seurat_v3 takes two passes over
the counts, seurat one over counts per 10,000. The order is scanpy's, of all cells, but for genes whose
scores differ by rounding.
"""

import logging
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.gene_moments import (
    ClipLimits,
    ClippedMoments,
    ClippedPass,
    GeneMoments,
    MomentsPass,
    SumOverCells,
    ValueKind,
)
from core.errors import DataError

logger = logging.getLogger(__name__)

Method = Literal["seurat_v3", "seurat", "none"]

#: skmisc's loess at scanpy's span of 0.3 kills the process below four genes and fails below 14.
_FEWEST_FOR_LOESS = 10
#: scanpy's settings of the two methods.
_LOESS_SPAN = 0.3
_LOESS_DEGREE = 2
_MEAN_BINS = 20


class CannotRankError(ValueError):
    """A method needs more cells, or more genes that differ; the message names what is missing."""


@dataclass(frozen=True)
class GeneRanking:
    """An order of genes."""

    #: (genes,), columns from most to least variable; genes never seen come last.
    order: NDArray[np.int32]
    #: "seurat_v3", "seurat", "variance" (the fallback) or "none".
    method: str
    #: Sentences the user should read.
    notices: list[str]


def resolve_method(wanted: str, value_kind: str) -> Method:
    """Settle ``data.hvg`` = "auto" for a kind of values ("counts" or "log1p").

    Raises
    ------
    DataError
        seurat_v3 is wanted, but there are no counts.
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


def rank_in_passes(
    sum_over_cells: SumOverCells, *, wanted: str, value_kind: ValueKind, n_genes: int
) -> GeneRanking:
    """Rank genes by their variability; `sum_over_cells` reads the training cells.

    It runs one pass, ``one_pass.sum_chunk(cells, value_kind, n_genes)`` for each chunk in any process,
    merged by ``+`` in the order of the chunks. The result is the same for the same chunks; that of
    counts is the same for any chunks. `wanted` is ``data.hvg``; "none" keeps the order of the columns.

    Raises
    ------
    DataError
        The method that the preset names needs counts, or fails on these cells.
    """
    method = resolve_method(wanted, value_kind)
    if method == "none":
        return GeneRanking(np.arange(n_genes, dtype=np.int32), "none", [])
    sums = sum_over_cells(MomentsPass("stored" if method == "seurat_v3" else "normalised"))
    try:
        if method == "seurat":
            return rank_by_dispersion(sums)
        limits = clip_limits(sums)
        return rank_by_v3(sums, limits, sum_over_cells(ClippedPass(limits)))
    except CannotRankError as error:
        if wanted == method:
            message = (
                f"data.hvg = '{method}' cannot rank these {sums.n_cells} training cells x "
                f"{n_genes} genes ({error}); set data.hvg to 'auto' or 'none', or add cells"
            )
            raise DataError(message) from error
        notice = (
            f"genes are ranked by the variance of their log values, because {method} failed on "
            f"{sums.n_cells} training cells x {n_genes} genes ({error})"
        )
    logger.warning("%s", notice)
    sums = sum_over_cells(MomentsPass("log1p"))
    return GeneRanking(_order(sums.variances, sums), "variance", [notice])


def clip_limits(sums: GeneMoments) -> ClipLimits:
    """Fit the standard deviation that a gene has at its mean count (seurat_v3, first step).

    As scanpy: loess of log10 variance on log10 mean over the genes that vary, span 0.3, degree 2.

    Raises
    ------
    CannotRankError
        Too few genes vary, or the local regression fails on them.
    """
    from skmisc.loess import loess  # type: ignore[import-untyped]

    means, variances = sums.means, sums.variances
    varies = variances > 0
    if varies.sum() < _FEWEST_FOR_LOESS:
        message = f"fewer than {_FEWEST_FOR_LOESS} genes vary"
        raise CannotRankError(message)
    fit = loess(
        np.log10(means[varies]), np.log10(variances[varies]), span=_LOESS_SPAN, degree=_LOESS_DEGREE
    )
    try:
        with warnings.catch_warnings():
            # On few cells loess warns in ways that do not help the user of a preset.
            warnings.simplefilter("ignore")
            fit.fit()
    except ValueError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CannotRankError(reason) from error
    deviations = np.ones(len(means))
    deviations[varies] = np.sqrt(10.0**fit.outputs.fitted_values)
    return ClipLimits(deviations, means + deviations * np.sqrt(sums.n_cells))


def rank_by_v3(sums: GeneMoments, limits: ClipLimits, clipped: ClippedMoments) -> GeneRanking:
    """Rank genes by the variance of standardised, clipped counts, as Seurat v3 and scanpy do.

    Raises
    ------
    CannotRankError
        No gene has a finite score.
    """
    means, ceiling = sums.means, limits.limits
    clipped_sums = sums.sums - clipped.sums + clipped.n_values * ceiling
    clipped_squares = sums.squares - clipped.squares + clipped.n_values * ceiling**2
    spread = sums.n_cells * means**2 + clipped_squares - 2 * clipped_sums * means
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = spread / ((sums.n_cells - 1) * limits.deviations**2)
    return GeneRanking(_order(scores, sums), "seurat_v3", [])


def rank_by_dispersion(sums: GeneMoments) -> GeneRanking:
    """Rank genes by dispersion of counts per 10,000 in 20 bins of the mean, as scanpy's "seurat".

    Raises
    ------
    CannotRankError
        No gene has a finite score.
    """
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
        message = "no gene has a finite score"
        raise CannotRankError(message)
    # Rounded, so that scores which are equal but for the order of sums tie: both genes of a bin of
    # two score 1 / sqrt(2). The sort is stable: ties keep the order of the columns.
    scores = np.where(finite, np.round(scores, 10), -np.inf)
    return np.lexsort((-scores, sums.sums == 0)).astype(np.int32)
