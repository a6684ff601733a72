"""A prepared dataset: a folder of plain ``.npy`` arrays in CSR form, read by memory map.

The store is lossless and serves every encoding: counts stay counts, and `Store.read` turns the
cells it is asked for into log1p of counts per 10,000. Cells stand in one seeded random order, so a
block of neighbours is a random sample. How the folder is written belongs to `prepare`.

Arrays (C cells, V stored values, P phenotypes):

==================  ========  =========  =====================================================
indptr.npy          (C + 1,)  int64      where each cell's values begin
genes.npy           (V,)      uint16 *   gene of each value, ascending within a cell
values.npy          (V,)      uint16 *   count or, in a log1p store, float32 value
large_at.npy        (L,)      int64      positions in values.npy of counts of 65,535 and more
large_values.npy    (L,)      uint32     those counts; values.npy holds 65,535 in their place
totals.npy          (C,)      float32    sum over all genes of the source file (counts, or per 10k)
phenotypes.npy      (C, P)    int32      code of each phenotype's value, -1 where missing
splits.npy          (C,)      int8       0 train, 1 validation, 2 test
donors.npy          (C,)      int32      donor code, -1 where missing; absent without donors
origins.npy         (C, 2)    int64      source (its place in the manifest) and row in it
gene_order.npy      (G,)      int32      columns from most to least variable
==================  ========  =========  =====================================================

(*) int32 above 65,536 genes; float32 in a log1p store.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_filter import CellFilter
from core.cells.genes import GenePanel
from core.cells.manifest import Manifest
from core.cells.store_tables import LabelColumn, make_anndata, make_phenotype_table
from core.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["LARGE_COUNT", "SPLITS", "TARGET_SUM", "Split", "Store", "StoredCells"]

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
#: Value in values.npy that stands for "look in the side table".
LARGE_COUNT = 65_535
#: Counts per cell after normalisation: the originals' and scanpy's convention.
TARGET_SUM = 1e4
TRUTH_NAME = "truth.json"


@dataclass(frozen=True)
class StoredCells:
    """Cells as they are stored, for encoders that work on counts.

    Attributes
    ----------
    indptr
        (cells + 1,), int64.
    genes
        (values,), store columns, ascending within a cell.
    values
        (values,), float32 log1p values or uint32 / uint16 counts (uint32 where a count needs it).
    totals
        (cells,), float32.
    """

    indptr: NDArray[np.int64]
    genes: NDArray[np.integer[Any]]
    values: NDArray[Any]
    totals: NDArray[np.float32]


class Store:
    """An opened store; `Store.open` makes it.

    Attributes
    ----------
    path
        The folder.
    manifest
        See `core.cells.manifest.Manifest`.
    genes
        All genes of the store, in the order of the arrays.
    hvg_order
        (genes,), columns from most to least variable in training cells.
    phenotype_codes
        (cells, phenotypes), int32, columns in the order of `phenotypes`; -1 is missing.
    split_codes
        (cells,), int8, an index into `SPLITS`.
    totals
        (cells,), float32, sum over all genes of the source file.
    donors
        (cells,), int32 codes of `donor_names`, -1 is missing; None without donors.
    origins
        (cells, 2), int64: index into ``manifest.sources``, and the row in that source.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.genes = GenePanel(tuple(manifest.gene_ids), tuple(manifest.gene_symbols))
        n_cells, n_values, n_genes = manifest.n_cells, manifest.n_values, len(self.genes)
        counts = manifest.value_kind == "counts"
        gene_type = gene_index_type(n_genes)
        self._indptr = self._array("indptr", (n_cells + 1,), np.int64)
        self._columns = self._array("genes", (n_values,), gene_type)
        self._values = self._array("values", (n_values,), np.uint16 if counts else np.float32)
        self._large_at = self._array("large_at", (None,), np.int64)
        self._large_values = self._array("large_values", self._large_at.shape, np.uint32)
        self.totals: NDArray[np.float32] = self._array("totals", (n_cells,), np.float32)
        self.phenotype_codes: NDArray[np.int32] = self._array(
            "phenotypes", (n_cells, len(manifest.phenotypes)), np.int32
        )
        self.split_codes: NDArray[np.int8] = self._array("splits", (n_cells,), np.int8)
        self.donors: NDArray[np.int32] | None = (
            None if manifest.donors is None else self._array("donors", (n_cells,), np.int32)
        )
        self.origins: NDArray[np.int64] = self._array("origins", (n_cells, 2), np.int64)
        self.hvg_order: NDArray[np.int32] = self._array("gene_order", (n_genes,), np.int32)
        self._column_maps: dict[str, NDArray[np.int32]] = {}

    @classmethod
    def open(cls, path: Path | str) -> "Store":
        """Open a store folder; arrays are mapped, not loaded.

        Raises
        ------
        DataError
            The folder is no store, is damaged, or has a format this tfx does not read.
        """
        folder = Path(path)
        return cls(folder, Manifest.load(folder))

    @property
    def n_cells(self) -> int:
        """Number of cells of all splits."""
        return self.manifest.n_cells

    @property
    def indptr(self) -> NDArray[np.int64]:
        """(cells + 1,), where each cell's values begin; the file's map, read-only."""
        return self._indptr

    @property
    def columns(self) -> NDArray[np.integer[Any]]:
        """(values,), store column of each value, ascending within a cell; the map, read-only."""
        return self._columns

    @property
    def values(self) -> NDArray[Any]:
        """(values,), as on disk: log1p float32, or uint16 counts; the map, read-only.

        A count of `LARGE_COUNT` and more stands here as `LARGE_COUNT`; `read_stored` looks it up.
        """
        return self._values

    @property
    def value_kind(self) -> Literal["counts", "log1p"]:
        """What the arrays hold; `read` answers in log1p per 10k for both."""
        return self.manifest.value_kind

    @property
    def phenotypes(self) -> dict[str, list[str]]:
        """Values of each phenotype in the order of their codes; phenotypes in header order."""
        return self.manifest.phenotypes

    @property
    def donor_names(self) -> list[str] | None:
        """Names behind `donors`."""
        return self.manifest.donors

    @property
    def report(self) -> dict[str, Any]:
        """What `prepare` found and decided: sources, genes, phenotypes, split, notices."""
        return self.manifest.report

    @cached_property
    def truth(self) -> dict[str, Any] | None:
        """The known truth of simulated cells, or None for real ones."""
        path = self.path / TRUTH_NAME
        if not path.exists():
            return None
        truth: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return truth

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Rows of one split, ascending."""
        return np.flatnonzero(self.split_codes == SPLITS.index(split)).astype(np.int64, copy=False)

    def where(self, cells: "CellFilter | str | Sequence[str]") -> NDArray[np.bool_]:
        """(cells,), whether each cell meets a filter; only labels are read.

        Parameters
        ----------
        cells
            As in ``store.where("sex=female,tissue=lung,spleen")``; see `cell_filter`.

        Raises
        ------
        ConfigurationError
            The filter cannot be read, or names what the store does not have.
        """
        return (cells if isinstance(cells, CellFilter) else CellFilter.parse(cells)).mask(self)

    def select(
        self,
        cells: "NDArray[np.bool_] | CellFilter | str | Sequence[str] | None" = None,
        *,
        split: Split | None = None,
    ) -> NDArray[np.int64]:
        """Rows of the cells meant, ascending.

        Parameters
        ----------
        cells
            (cells,) mask, or a filter; None, an empty filter or an empty list are all cells.
        split
            Only cells of this split.
        """
        if split is not None and cells is None:
            return self.rows(split)
        mask = self._mask(cells)
        if split is not None:
            mask = mask & (self.split_codes == SPLITS.index(split))
        return np.flatnonzero(mask).astype(np.int64, copy=False)

    @property
    def label_names(self) -> list[str]:
        """What cells can be filtered and grouped by: phenotypes, then split, donor and source."""
        own = ["split", "donor", "source"] if self.donors is not None else ["split", "source"]
        return list(dict.fromkeys([*self.phenotypes, *own]))

    def labels(self, name: str) -> LabelColumn:
        """Labels of all cells: of a phenotype, or else `own_labels`.

        Raises
        ------
        KeyError
            None of `label_names`.
        """
        if name not in self.phenotypes:
            return self.own_labels(name)
        column = list(self.phenotypes).index(name)
        return LabelColumn(self.phenotype_codes[:, column], self.phenotypes[name])

    def own_labels(self, name: str) -> LabelColumn:
        """Labels that every store has, whatever its phenotypes: "split", "donor", "source".

        Raises
        ------
        KeyError
            Another name, or "donor" where the store knows none.
        """
        if name == "split":
            return LabelColumn(self.split_codes, SPLITS)
        if name == "source":
            return LabelColumn(self.origins[:, 0], [one.name for one in self.manifest.sources])
        if name == "donor" and self.donors is not None and self.donor_names is not None:
            return LabelColumn(self.donors, self.donor_names)
        raise KeyError(name)

    def phenotype_table(self, rows: NDArray[np.integer[Any]] | None = None) -> pd.DataFrame:
        """Phenotypes of some cells, or of all, as categoricals; NaN where a label is missing.

        The index is the cell's row in the store.
        """
        return make_phenotype_table(self, rows)

    def panel(self, n_genes: int, include: Sequence[str] = ()) -> GenePanel:
        """Choose the genes of a model, most variable first.

        Parameters
        ----------
        n_genes
            Size of the panel; a store with fewer genes gives all it has.
        include
            Ids or symbols of genes that are in the panel whatever their variability; they take the
            places of the least variable ones.

        Raises
        ------
        DataError
            An included gene is not in the store; the message names the nearest.
        ConfigurationError
            More genes are included than the panel holds.
        """
        wanted: set[int] = set()
        for name in include:
            index = self.genes.index_of(name)
            if index is None:
                near = self.genes.nearest(name)
                hint = f"did you mean {', '.join(near)}?" if near else "use an id or symbol it has"
                message = (
                    f"{self.path}: data.include_genes names '{name}', which is none of the store's "
                    f"{len(self.genes)} genes; {hint}"
                )
                raise DataError(message)
            wanted.add(index)
        if len(wanted) > n_genes:
            message = (
                f"data.include_genes names {len(wanted)} genes but data.genes = {n_genes}; raise "
                f"data.genes"
            )
            raise ConfigurationError(message)
        is_wanted = np.zeros(len(self.genes), dtype=bool)
        is_wanted[list(wanted)] = True
        in_order = is_wanted[self.hvg_order]
        free = min(n_genes, len(self.genes)) - len(wanted)
        taken = in_order | (np.cumsum(~in_order) <= free)
        return self.genes.take(self.hvg_order[taken])

    def read(self, rows: NDArray[np.integer[Any]], panel: GenePanel) -> sparse.csr_matrix:
        """Expression of cells over a panel.

        Parameters
        ----------
        rows
            (cells,), in any order, repeats allowed.
        panel
            Genes wanted. Those the store lacks read as zero (logged once; see `missing_genes`).

        Returns
        -------
        (cells, genes of the panel) float32, log1p of counts per 10,000 with the total over all
        genes of the source file; no stored zeros, columns ascending within each row.

        Raises
        ------
        DataError
            The store has none of the panel's genes.
        """
        cells = self.read_stored(rows)
        columns, row_ends, kept = self._of_panel(cells, panel)
        values = cells.values[kept].astype(np.float32)
        if self.value_kind == "counts":
            values = log_normalise(values, np.diff(row_ends), cells.totals)
        return _csr(values, columns, row_ends, len(panel))

    def read_stored(self, rows: NDArray[np.integer[Any]]) -> StoredCells:
        """Cells as stored: gene columns of the store and raw values, rows in the order asked for."""
        rows = np.asarray(rows, dtype=np.int64)
        starts, ends = self._indptr[rows], self._indptr[rows + 1]
        # One slice per cell: a gather by flat indices takes ten times as long.
        spans = [
            slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
        genes = _join([self._columns[span] for span in spans], self._columns.dtype)
        values = _join([self._values[span] for span in spans], self._values.dtype)
        indptr = np.concatenate(([0], np.cumsum(ends - starts)))
        if len(self._large_at):
            values = self._with_large_counts(values, starts, indptr)
        return StoredCells(indptr, genes, values, self.totals[rows])

    def missing_genes(self, panel: GenePanel) -> list[str]:
        """Ids of the panel's genes that the store lacks and `read` gives as zero."""
        known = set(self.genes.ids)
        return [gene for gene in panel.ids if gene not in known]

    def read_counts(self, rows: NDArray[np.integer[Any]], panel: GenePanel) -> sparse.csr_matrix:
        """Raw counts of cells over a panel; arguments and shape as `read`.

        Returns
        -------
        (cells, genes of the panel), float32, or float64 where a count above 2**24 needs it: no
        count is rounded.

        Raises
        ------
        DataError
            The store holds log values, or none of the panel's genes.
        """
        if self.value_kind != "counts":
            message = (
                f"{self.path}: the store holds log values, from which counts cannot be told; "
                f"prepare one from files with counts, or read log1p values"
            )
            raise DataError(message)
        cells = self.read_stored(rows)
        columns, row_ends, kept = self._of_panel(cells, panel)
        counts = cells.values[kept]
        fits = counts.size == 0 or int(counts.max()) <= 2**24
        return _csr(
            counts.astype(np.float32 if fits else np.float64), columns, row_ends, len(panel)
        )

    def to_anndata(
        self,
        cells: "NDArray[Any] | CellFilter | str | Sequence[str] | None" = None,
        panel: GenePanel | None = None,
        *,
        values: Literal["log1p", "counts"] = "log1p",
    ) -> "AnnData":
        """Any cells as AnnData.

        Parameters
        ----------
        cells
            Rows in any order, repeats allowed, or whatever `select` takes. The result is in memory.
        panel
            Genes; default all of the store.
        values
            "log1p" of counts per 10,000, or the lossless "counts".

        Returns
        -------
        obs holds the phenotypes, and tfx_split, tfx_donor, tfx_source, tfx_row: where the cell came
        from. Its index is the number of the source and the row in it: "0-17".
        """
        rows = self._rows(cells)
        return make_anndata(self, rows, self.genes if panel is None else panel, values)

    def _mask(self, cells: Any) -> NDArray[np.bool_]:  # noqa: ANN401 (what `select` takes)
        if cells is None:
            return np.ones(self.n_cells, dtype=bool)
        if not isinstance(cells, np.ndarray):
            return self.where(cells)
        if cells.dtype != bool or cells.shape != (self.n_cells,):
            message = f"a mask of cells is bool ({self.n_cells},), not {cells.dtype} {cells.shape}"
            raise ValueError(message)
        return cells

    def _rows(self, cells: Any) -> NDArray[np.int64]:  # noqa: ANN401 (rows, or what `select` takes)
        if isinstance(cells, np.ndarray) and cells.dtype != bool:
            return cells.astype(np.int64, copy=False)
        return self.select(cells)

    def _of_panel(
        self, cells: StoredCells, panel: GenePanel
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_]]:
        """Panel columns of the values kept, where each row ends among them, and which are kept."""
        columns = self._column_map(panel)[cells.genes]
        kept = columns >= 0
        # Where each row ends among the kept values; a running sum over all values takes six times as long.
        row_ends = np.searchsorted(np.flatnonzero(kept), cells.indptr)
        return columns[kept], row_ends, kept

    def _column_map(self, panel: GenePanel) -> NDArray[np.int32]:
        """(genes of the store,) column in the panel, -1 where the panel lacks the gene."""
        cached = self._column_maps.get(panel.hash)
        if cached is not None:
            return cached
        missing = self.missing_genes(panel)
        if len(missing) == len(panel):
            message = (
                f"{self.path}: the store has none of the model's {len(panel)} genes "
                f"({', '.join(panel.ids[:3])}, ... against {', '.join(self.genes.ids[:3])}, ...); "
                f"prepare it with data.gene_ids set to the column of ids that the model knows"
            )
            raise DataError(message)
        if missing:
            logger.warning(
                "%s lacks %d of %d panel genes (%s, ...); they read as zero",
                self.path, len(missing), len(panel), ", ".join(missing[:3]),
            )  # fmt: skip
        columns = np.full(len(self.genes), -1, dtype=np.int32)
        place = {gene: index for index, gene in enumerate(self.genes.ids)}
        for column, gene in enumerate(panel.ids):
            if gene in place:
                columns[place[gene]] = column
        self._column_maps[panel.hash] = columns
        return columns

    def _with_large_counts(
        self,
        values: NDArray[np.uint16],
        starts: NDArray[np.int64],
        indptr: NDArray[np.int64],
    ) -> NDArray[Any]:
        reserved = np.flatnonzero(values == LARGE_COUNT)
        if not len(reserved):
            return values
        cell = np.searchsorted(indptr, reserved, side="right") - 1
        stored_at = starts[cell] + reserved - indptr[cell]
        widened = values.astype(np.uint32)
        widened[reserved] = self._large_values[np.searchsorted(self._large_at, stored_at)]
        return widened

    def _array(self, name: str, shape: tuple[int | None, ...], dtype: Any) -> NDArray[Any]:  # noqa: ANN401
        path = self.path / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            message = f"{self.path}: damaged store, {path.name} is missing; prepare it again"
            raise DataError(message) from None
        except (ValueError, OSError) as error:
            message = f"{path}: cannot be read ({error}); prepare the store again"
            raise DataError(message) from error
        fits = len(array.shape) == len(shape) and all(
            want is None or have == want for have, want in zip(array.shape, shape, strict=True)
        )
        if not fits or array.dtype != dtype:
            message = (
                f"{path}: damaged store, holds {array.dtype} {array.shape} instead of "
                f"{np.dtype(dtype)} {shape}; prepare it again"
            )
            raise DataError(message)
        # A plain view of the map: slicing numpy's memmap class costs microseconds per slice.
        return np.asarray(array)


def gene_index_type(n_genes: int) -> type[np.uint16] | type[np.int32]:
    """Smallest type of the stores that numbers `n_genes` columns."""
    return np.uint16 if n_genes <= 65_536 else np.int32


def _join(parts: list[NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


def _csr(
    values: NDArray[Any],
    columns: NDArray[np.int32],
    row_ends: NDArray[np.int64],
    n_columns: int,
) -> sparse.csr_matrix:
    """Make a canonical matrix; columns may stand in any order within a row."""
    index_type = np.int32 if row_ends[-1] < 2**31 else np.int64
    matrix = sparse.csr_matrix(
        (values, columns, row_ends.astype(index_type)), shape=(len(row_ends) - 1, n_columns)
    )
    matrix.sort_indices()
    return matrix


def log_normalise(
    counts: NDArray[np.float32],
    values_per_cell: NDArray[np.integer[Any]],
    totals: NDArray[np.float32],
) -> NDArray[np.float32]:
    """log1p of counts per 10,000; a cell without counts has no values to scale."""
    with np.errstate(divide="ignore"):
        scale = (TARGET_SUM / totals).astype(np.float32)
    normalised: NDArray[np.float32] = np.log1p(counts * np.repeat(scale, values_per_cell))
    return normalised
