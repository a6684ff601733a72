"""Cells over a model's panel, as the store holds them: the input of the batch encoder.

Values stay counts and genes stay store columns for as long as possible: which of them enter a
sequence is decided first, and only those are translated. `PanelReader` reads cells of a store this
way. Where the panel has every gene of the store, the memory maps of the files are the cells, and the
system reads them.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.genes import GenePanel
from core.cells.normalisation import log_values
from core.cells.store import LARGE_COUNT, Store

#: Cells whose genes are counted at a time.
_COUNTING_CELLS = 4096
#: Cells of other splits that are fetched along rather than skipped.
_GAP = 32


@dataclass(frozen=True)
class PanelCells:
    """Cells in CSR form over the genes of a panel."""

    #: (cells + 1,), int64.
    indptr: NDArray[np.int64]
    #: (values,), columns of the source, each at most once per cell, all of genes of the panel.
    columns: NDArray[np.integer[Any]]
    #: (values,), above zero: float32 log1p counts per 10,000, or unsigned counts.
    values: NDArray[Any]
    #: (cells,), library sizes, 0 where not known; None where none is.
    totals: NDArray[np.float32] | None
    #: (columns of the source,), gene of each column, -1 for genes outside the panel; None where
    #: columns are the panel's genes.
    panel_of: NDArray[np.integer[Any]] | None
    #: (genes of the panel,), the inverse; genes that the source lacks have the column after the last.
    column_of: NDArray[np.int64] | None
    n_genes: int

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.indptr) - 1

    @property
    def n_columns(self) -> int:
        """Columns of the source."""
        return self.n_genes if self.panel_of is None else len(self.panel_of)

    @property
    def holds_counts(self) -> bool:
        """Whether `values` are counts, of cells of known library sizes."""
        return self.values.dtype.kind == "u"

    @classmethod
    def of(
        cls, matrix: sparse.csr_matrix, totals: NDArray[np.float32] | None = None
    ) -> "PanelCells":
        """Take (cells, genes of the panel) log1p counts per 10,000, without stored zeros."""
        return cls(
            indptr=matrix.indptr.astype(np.int64),
            columns=matrix.indices,
            values=matrix.data.astype(np.float32, copy=False),
            totals=totals,
            panel_of=None,
            column_of=None,
            n_genes=matrix.shape[1],
        )

    @property
    def genes(self) -> NDArray[np.integer[Any]]:
        """(values,), panel index of each value's gene."""
        return self.columns if self.panel_of is None else self.panel_of.take(self.columns)

    @property
    def gene_columns(self) -> NDArray[np.int64]:
        """(genes,), column of each gene of the panel."""
        return np.arange(self.n_genes) if self.column_of is None else self.column_of

    @property
    def log_values(self) -> NDArray[np.float32]:
        """(values,), log1p counts per 10,000."""
        if self.totals is None or not self.holds_counts:
            return self.values
        return log_values(self.values, self.indptr, self.totals)

    def only(self, at: NDArray[np.int64], lengths: NDArray[np.int64]) -> "PanelCells":
        """Keep the values at ascending places, ``lengths`` of each cell."""
        return replace(
            self,
            indptr=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            columns=self.columns.take(at),
            values=self.values.take(at),
        )

    def spans(self, cells: NDArray[np.integer[Any]]) -> list[slice]:
        """Return the place of the values of each of ``cells``."""
        starts, ends = self.indptr[cells].tolist(), self.indptr[cells + 1].tolist()
        return [slice(start, end) for start, end in zip(starts, ends, strict=True)]


class PanelReader:
    """Reads cells of a store for the encoder of a panel; genes that it lacks are never expressed.

    DataError if the store has none of the panel's genes.
    """

    def __init__(self, store: Store, panel: GenePanel) -> None:
        self.store = store
        found = store.column_map(panel)
        self.covers_store = bool((found >= 0).all())
        is_small = self.covers_store and len(panel) <= 65_536
        panel_of: NDArray[np.integer[Any]] | None = None
        column_of: NDArray[np.int64] | None = None
        if not np.array_equal(found, np.arange(len(panel))):
            panel_of = found.astype(np.uint16 if is_small else np.int32)
            column_of = np.full(len(panel), len(found), dtype=np.int64)
            known = np.flatnonzero(found >= 0)
            column_of[found[known]] = known
        self._in_panel = found >= 0
        self._whole = PanelCells(
            indptr=store.indptr,
            columns=store.columns,
            values=store.values,
            totals=store.totals if store.value_kind == "counts" else None,
            panel_of=panel_of,
            column_of=column_of,
            n_genes=len(panel),
        )

    def read(self, rows: NDArray[np.integer[Any]]) -> PanelCells:
        """Read cells, in the order of ``rows``."""
        cells = self.store.read_stored(rows)
        indptr, columns, values = cells.indptr, cells.genes, cells.values
        if not self.covers_store:
            kept = np.flatnonzero(self._in_panel.take(columns))
            columns, values = columns.take(kept), values.take(kept)
            indptr = np.searchsorted(kept, indptr).astype(np.int64)
        totals = cells.totals if self.store.value_kind == "counts" else None
        return replace(self._whole, indptr=indptr, columns=columns, values=values, totals=totals)

    def pool(self, rows: NDArray[np.int64]) -> tuple[PanelCells, NDArray[np.int64]]:
        """Prepare cells for `take`: what to take from, and where each of the ascending ``rows`` is in it."""
        if not self.covers_store:
            return self.read(rows), np.arange(len(rows))
        store = self.store
        breaks = np.flatnonzero(np.diff(rows) > _GAP)
        firsts, lasts = rows[np.concatenate(([0], breaks + 1))], rows[np.append(breaks, -1)]
        for array in (store.columns, store.values):
            _fetch(array, store.indptr[firsts], store.indptr[lasts + 1])
        return self._whole, rows

    def take(self, parts: Sequence[tuple[PanelCells, NDArray[np.integer[Any]]]]) -> PanelCells:
        """Join cells, given as (what to take from, which of its cells), in this order."""
        for cells, chosen in parts:
            if cells is self._whole:
                self.store.check_cells(chosen)
        # One slice per cell: a gather by flat indices takes ten times as long.
        spans = [(cells, cells.spans(chosen)) for cells, chosen in parts]
        lengths = [cells.indptr[chosen + 1] - cells.indptr[chosen] for cells, chosen in parts]
        columns = [cells.columns[span] for cells, each in spans for span in each]
        values = np.concatenate([cells.values[span] for cells, each in spans for span in each])
        if (
            parts[0][0] is self._whole
            and values.dtype == np.uint16
            and values.max(initial=0) == LARGE_COUNT
        ):
            values = self.store.read_stored(np.concatenate([rows for _, rows in parts])).values
        totals = [cells.totals[chosen] for cells, chosen in parts if cells.totals is not None]
        return replace(
            self._whole,
            indptr=np.concatenate([[0], *lengths]).cumsum(),
            columns=np.concatenate(columns),
            values=values,
            totals=np.concatenate(totals) if totals else None,
        )

    def count_values(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Count each cell's stored values of panel genes: (rows,).

        If the panel lacks genes of the store, this reads the genes of all these cells once: about ten
        seconds for a million cells.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if self.covers_store:
            return self.store.indptr[rows + 1] - self.store.indptr[rows]
        counts = np.empty(len(rows), dtype=np.int64)
        for start in range(0, len(rows), _COUNTING_CELLS):
            some = slice(start, start + _COUNTING_CELLS)
            counts[some] = np.diff(self.read(rows[some]).indptr)
        return counts


def _fetch(array: NDArray[Any], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
    """Let the system read parts of a map into memory, in this order, in the background."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, mmap.mmap) or not hasattr(owner, "madvise"):
        return
    before = array.ctypes.data - np.frombuffer(owner, dtype=np.uint8).ctypes.data
    first = (before + starts * array.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
    last = before + ends * array.itemsize
    for start, end in zip(first.tolist(), last.tolist(), strict=True):
        if start < end:
            owner.madvise(mmap.MADV_WILLNEED, start, end - start)
