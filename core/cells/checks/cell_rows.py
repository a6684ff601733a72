"""Checks of the cells: empty ones, those with few genes, those as deep as two."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from core.cells.checks.report import CheckRow
from core.cells.checks.summary import Expression, FileSummary
from core.cells.matrix_state import MatrixState
from core.wording import percentage

__all__ = ["check_cells_of_files", "few_genes", "looks_like_doublet"]

#: A cell of fewer genes is thin: 200 is scanpy's and Seurat's customary floor for whole
#: transcriptomes; a panel of few genes is held to a fifth of its median.
_FEW_GENES = 200
_FEW_OF_MEDIAN = 0.2
#: Share of thin cells above which a file is warned of.
_MANY_THIN = 0.05
#: Median absolute deviations, on the log scale, beyond which a cell is an outlier (the rule of
#: "Single-cell best practices", Heumos et al. 2023).
_OUTLIER = 5.0
#: Two cells in one droplet have about twice the counts of one.
_TWICE = 2.0
#: Share of doublet-like cells above which a file is warned of.
_MANY_DEEP = 0.03
#: Donors with fewer cells are compared with the whole file.
_ENOUGH_CELLS = 100


def check_cells_of_files(files: Sequence[FileSummary]) -> Iterator[CheckRow]:
    """Judge the depth of cells, file by file.

    Parameters
    ----------
    files
        Those of which no value has been read are left aside.
    """
    read = [one for one in files if one.expression is not None]
    if not read:
        return
    yield from _check_empty(read)
    yield from _check_few_genes(read)
    yield from _check_depth(read)


def few_genes(genes_per_cell: NDArray[np.int32]) -> tuple[NDArray[np.bool_], int]:
    """Find cells that have values but few genes, and the number of genes below which they lie."""
    filled = genes_per_cell > 0
    if not filled.any():
        return filled, 0
    floor = int(min(_FEW_GENES, _FEW_OF_MEDIAN * float(np.median(genes_per_cell[filled]))))
    return filled & (genes_per_cell < floor), floor


def looks_like_doublet(
    totals: NDArray[np.float32], genes_per_cell: NDArray[np.int32], groups: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Find cells far deeper than the others of their group, in counts and in genes.

    Parameters
    ----------
    totals, genes_per_cell
        (cells,), counts and genes of each cell.
    groups
        (cells,), donor of each cell, -1 unknown; small groups are compared with all cells.

    Returns
    -------
    (cells,), whether log counts and log genes both lie more than 5 median absolute deviations
    above the median of the group, and the counts above twice their median. A hint: large cells
    (plasma cells, cycling cells) look the same.
    """
    suspicious = np.zeros(len(totals), dtype=bool)
    filled = totals > 0
    if not filled.any():
        return suspicious
    sizes = np.bincount(groups[filled & (groups >= 0)], minlength=1)
    own = np.where((groups >= 0) & (sizes[groups] >= _ENOUGH_CELLS), groups, -1)
    for group in np.unique(own[filled]):
        # Cells of small groups are judged beside the whole file.
        members = filled & (own == group)
        beside = filled if group < 0 else members
        deep = totals[members] > _TWICE * np.median(totals[beside])
        for measure in (totals, genes_per_cell):
            logged = np.log1p(measure[beside].astype(np.float64))
            middle = np.median(logged)
            spread = np.median(np.abs(logged - middle))
            deep &= np.log1p(measure[members].astype(np.float64)) > middle + _OUTLIER * spread
        suspicious[members] = deep
    return suspicious


def _check_empty(read: Sequence[FileSummary]) -> Iterator[CheckRow]:
    any_empty = False
    for one in read:
        expression = _expression(one)
        n_empty = int(np.sum(expression.genes_per_cell == 0))
        if not n_empty:
            continue
        any_empty = True
        n_read = len(expression.rows)
        yield CheckRow(
            "warn",
            "cells",
            "empty cells",
            f"{one.name}: {n_empty:,} of {n_read:,} cells ({percentage(n_empty, n_read)}) have no "
            f"counts at all",
            "drop them: sc.pp.filter_cells(adata, min_genes=1)",
            one.name,
        )
    if not any_empty:
        yield CheckRow("ok", "cells", "empty cells", "none")


def _check_few_genes(read: Sequence[FileSummary]) -> Iterator[CheckRow]:
    warned = False
    medians = []
    for one in read:
        expression = _expression(one)
        thin, floor = few_genes(expression.genes_per_cell)
        filled = expression.genes_per_cell[expression.genes_per_cell > 0]
        medians.append(float(np.median(filled)) if len(filled) else 0.0)
        n_thin = int(thin.sum())
        if n_thin > _MANY_THIN * len(thin):
            warned = True
            yield CheckRow(
                "warn",
                "cells",
                "few genes",
                f"{one.name}: {n_thin:,} of {len(thin):,} cells ({percentage(n_thin, len(thin))}) have "
                f"fewer than {floor} genes (median {medians[-1]:,.0f})",
                f"drop what may be debris: sc.pp.filter_cells(adata, min_genes={floor})",
                one.name,
            )
    if not warned:
        lowest, highest = min(medians), max(medians)
        per_file = (
            f"{lowest:,.0f}" if lowest == highest else f"{lowest:,.0f} to {highest:,.0f} by file"
        )
        yield CheckRow(
            "ok", "cells", "few genes", f"few cells are thin (median genes per cell: {per_file})"
        )


def _check_depth(read: Sequence[FileSummary]) -> Iterator[CheckRow]:
    counted = [one for one in read if one.choice and one.choice.state == MatrixState.COUNTS]
    if not counted:
        yield CheckRow(
            "ok", "cells", "doublet-like depth", "not judged: log values no longer tell the depth"
        )
        return
    n_deep_all = 0
    warned = False
    for one in counted:
        expression = _expression(one)
        groups = np.full(len(expression.rows), -1, dtype=np.int64)
        if one.donors is not None:
            groups = one.donors.codes[expression.rows].astype(np.int64)
        deep = looks_like_doublet(expression.totals, expression.genes_per_cell, groups)
        n_deep = int(deep.sum())
        n_deep_all += n_deep
        if n_deep > _MANY_DEEP * len(deep):
            warned = True
            yield CheckRow(
                "warn",
                "cells",
                "doublet-like depth",
                f"{one.name}: {n_deep:,} of {len(deep):,} cells ({percentage(n_deep, len(deep))}) are "
                f"far deeper than the others of {_group(one)} in counts and genes; a hint, large "
                f"cells look the same",
                "look for doublets (sc.pp.scrublet) and drop them",
                one.name,
            )
    if not warned:
        n_read = sum(len(_expression(one).rows) for one in counted)
        groups_of = {_group(one) for one in counted}
        yield CheckRow(
            "ok",
            "cells",
            "doublet-like depth",
            f"{n_deep_all:,} of {n_read:,} cells ({percentage(n_deep_all, n_read)}) are far deeper than "
            f"the others of {' or '.join(sorted(groups_of))}",
        )


def _group(one: FileSummary) -> str:
    return "their file" if one.donors is None else "their donor"


def _expression(one: FileSummary) -> Expression:
    assert one.expression is not None, "files that were read only"
    return one.expression
