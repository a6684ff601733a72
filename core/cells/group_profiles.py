"""Reference profiles: what the cells of each group express, read once, in bounded memory."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.genes import GenePanel
from core.cells.phenotypes import suggest
from core.cells.store import Store
from core.errors import ConfigurationError
from core.progress import Listener, ProgressEvent, ignore_progress

__all__ = ["GroupProfiles", "group_profiles"]

#: Values read at a time: about 25 MB with their copies.
_BLOCK_VALUES = 2**19
#: Sums kept while cells are read (two float64 and one int64 per group and gene) take this at most.
_MOST_BYTES = 8 * 2**30


@dataclass(frozen=True)
class GroupProfiles:
    """Profiles of groups of cells.

    Attributes
    ----------
    groups
        One row per group that has cells: a categorical column for each label the cells are grouped
        by (NaN where the group's cells lack it), then ``n_cells``. Ordered by the codes of the
        labels, missing ones last.
    panel
        The genes.
    means
        (groups, genes), float32, mean log1p of counts per 10,000.
    detection
        (groups, genes), float32, share of cells with a value above zero.
    variances
        (groups, genes), float32, population variance of the log1p values.
    """

    groups: pd.DataFrame
    panel: GenePanel
    means: NDArray[np.float32]
    detection: NDArray[np.float32]
    variances: NDArray[np.float32]


def group_profiles(
    store: Store,
    panel: GenePanel,
    by: Sequence[str],
    rows: NDArray[np.integer[Any]] | None = None,
    *,
    on_progress: Listener = ignore_progress,
) -> GroupProfiles:
    """Summarise the expression of each group of cells.

    Parameters
    ----------
    store
        Where the cells are.
    panel
        Genes wanted; those the store lacks are zero.
    by
        Labels whose combinations make the groups: phenotypes, "donor", "split", "source". None
        makes one group of all cells.
    rows
        Cells of the store; default all of them. They are read in the store's order.
    on_progress
        Hears "reading profiles", in cells.

    Raises
    ------
    ConfigurationError
        The store has no such label, or groups x genes would not fit into memory.
    DataError
        The store has none of the panel's genes.
    """
    cells = store.select() if rows is None else np.sort(rows).astype(np.int64, copy=False)
    group, groups = _groups(store, by, cells)
    n_groups, n_genes = len(groups), len(panel)
    needed = n_groups * n_genes * 24
    if needed > _MOST_BYTES:
        message = (
            f"profiles of {n_groups:,} groups x {n_genes:,} genes would take {needed / 2**30:.0f} "
            f"GiB of memory; group by fewer labels than {', '.join(by)}, or choose fewer genes"
        )
        raise ConfigurationError(message)
    sums, squares = np.zeros(n_groups * n_genes), np.zeros(n_groups * n_genes)
    detected = np.zeros(n_groups * n_genes, dtype=np.int64)
    for start, stop in itertools.pairwise(_block_edges(store, cells)):
        block = store.read(cells[start:stop], panel)
        values = block.data.astype(np.float64)
        places = np.repeat(group[start:stop] * n_genes, np.diff(block.indptr)) + block.indices
        np.add.at(sums, places, values)
        np.add.at(squares, places, values * values)
        np.add.at(detected, places, 1)
        on_progress(ProgressEvent("reading profiles", stop, len(cells)))
    n_cells = groups["n_cells"].to_numpy()[:, None]
    shape = (n_groups, n_genes)
    means = sums.reshape(shape) / n_cells
    variances = np.maximum(squares.reshape(shape) / n_cells - means**2, 0.0)
    return GroupProfiles(
        groups=groups,
        panel=panel,
        means=means.astype(np.float32),
        detection=(detected.reshape(shape) / n_cells).astype(np.float32),
        variances=variances.astype(np.float32),
    )


def _groups(
    store: Store, by: Sequence[str], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """(cells,) group of each cell, and the table of groups."""
    for name in by:
        if name not in store.label_names:
            message = (
                f"{store.path} has no phenotype '{name}' to group by; "
                f"{suggest(name, store.label_names)}"
            )
            raise ConfigurationError(message)
    columns = [store.labels(name) for name in by]
    group, combinations = np.zeros(len(rows), dtype=np.int64), np.zeros((1, 0), dtype=np.int64)
    for column in columns:  # one label after another: all combinations at once could overflow
        codes = np.asarray(column.codes[rows], dtype=np.int64)
        codes = np.where(codes < 0, len(column.values), codes)
        found, group = np.unique(group * (len(column.values) + 1) + codes, return_inverse=True)
        before, code = np.divmod(found, len(column.values) + 1)
        combinations = np.column_stack((combinations[before], code))
    if len(rows) == 0:
        combinations = combinations[:0]
    labels = {
        name: pd.Categorical.from_codes(
            np.where(codes == len(column.values), -1, codes), pd.Index(list(column.values))
        )
        for name, column, codes in zip(by, columns, combinations.T, strict=True)
    }
    n_cells = np.bincount(group, minlength=len(combinations))
    return group, pd.DataFrame({**labels, "n_cells": n_cells})


def _block_edges(store: Store, rows: NDArray[np.int64]) -> list[int]:
    """Where blocks of about `_BLOCK_VALUES` stored values begin among the rows, and the end."""
    values = np.cumsum(store.indptr[rows + 1] - store.indptr[rows])
    block = values // _BLOCK_VALUES
    inner = np.flatnonzero(np.diff(block)) + 1
    return [0, *inner.tolist(), len(rows)]
