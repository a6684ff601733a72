"""A prepared dataset: a folder of plain ``.npy`` arrays in CSR form, read by memory map.

The store is lossless and serves every encoding: counts stay counts, and `Store.read` turns the cells
requested into log1p of counts per 10,000. Cells are in one seeded random order, so a block of
neighbours is a random sample. `core.cells.prepare` writes the folder.
docs/store-format.md describes each array.
"""

import logging
import os
from collections import UserDict
from collections.abc import Iterable, Sequence
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
from core.cells.integrity import StoreChecks
from core.cells.manifest import MANIFEST_NAME, Manifest, unreadable
from core.cells.normalisation import log_values
from core.cells.phenotypes import check_lengths
from core.errors import ConfigurationError, DataError
from core.files import file_json
from core.wording import first_line, listed

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
#: Value in values.npy that means "look in the side table".
LARGE_COUNT = 65_535
TRUTH_NAME = "truth.json"


@dataclass(frozen=True)
class StoredCells:
    """Cells in CSR form as they are stored, for encoders that work on counts."""

    #: (cells + 1,).
    indptr: NDArray[np.int64]
    #: (values,), store columns, ascending within a cell.
    genes: NDArray[np.integer[Any]]
    #: (values,), float32 log1p values, or counts: uint16, or uint32 if one needs it.
    values: NDArray[Any]
    #: (cells,), float32.
    totals: NDArray[np.float32]


class NoStoreError(DataError):
    """The store of a run or model is gone, or was prepared again."""


class LabelColumns(UserDict[str, Any]):
    """Label columns by name: set to codes and values, read as a categorical with all its values."""

    def __getitem__(self, name: str) -> "pd.Categorical[str]":
        """(cells,) labels."""
        codes, values = self.data[name]
        return pd.Categorical.from_codes(codes, pd.Index(list(values)))


class Store:
    """An opened store; `Store.open` makes it. Arrays are maps of the files, read-only."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        #: All genes, in the order of the arrays.
        self.genes = GenePanel(tuple(manifest.gene_ids), tuple(manifest.gene_symbols))
        self.n_cells = n_cells = manifest.n_cells
        n_values, n_genes = manifest.n_values, len(self.genes)
        #: Values of each phenotype in the order of their codes; phenotypes in header order.
        self.phenotypes = manifest.phenotypes
        #: Names of the codes in `donors`.
        self.donor_names = manifest.donors
        #: What `prepare` found and decided: sources, genes, phenotypes, split, notices.
        self.report = manifest.report
        #: What `values` holds; `read` gives log1p of counts per 10,000 from both.
        self.value_kind = manifest.value_kind
        value_type = np.uint16 if self.value_kind == "counts" else np.float32
        gene_type = gene_index_type(n_genes)
        shapes: dict[str, tuple[tuple[int | None, ...], Any]] = {
            "indptr": ((n_cells + 1,), np.int64),
            "genes": ((n_values,), gene_type),
            "values": ((n_values,), value_type),
            "large_at": ((None,), np.int64),
            "large_values": ((None,), np.uint32),
            "totals": ((n_cells,), np.float32),
            "phenotypes": ((n_cells, len(manifest.phenotypes)), np.int32),
            "splits": ((n_cells,), np.int8),
            "origins": ((n_cells, 2), np.int64),
            "gene_order": ((n_genes,), np.int32),
        }
        if manifest.donors is not None:
            shapes["donors"] = ((n_cells,), np.int32)
        self._arrays = {name: self._map(name, *expected) for name, expected in shapes.items()}
        self._checks = StoreChecks(path, manifest, self._arrays)
        self._column_maps: dict[str, NDArray[np.int32]] = {}

    # CSR form of all cells. `check_cells` compares `columns` and `values` with their checksums.
    @cached_property
    def indptr(self) -> NDArray[np.int64]:
        """(cells + 1,), where the values of each cell begin."""
        return self._array("indptr")

    @property
    def columns(self) -> NDArray[np.integer[Any]]:
        """(values,), gene of each value, ascending within a cell."""
        return self._arrays["genes"]

    @property
    def values(self) -> NDArray[Any]:
        """(values,); a count of `LARGE_COUNT` or more is `LARGE_COUNT` here."""
        return self._arrays["values"]

    @cached_property
    def totals(self) -> NDArray[np.float32]:
        """(cells,), sum over all genes of the source file."""
        return self._array("totals")

    @cached_property
    def phenotype_codes(self) -> NDArray[np.int32]:
        """(cells, phenotypes), columns in the order of `phenotypes`; -1 is missing."""
        return self._array("phenotypes")

    @cached_property
    def split_codes(self) -> NDArray[np.int8]:
        """(cells,), index into `SPLITS`."""
        return self._array("splits")

    @cached_property
    def donors(self) -> NDArray[np.int32] | None:
        """(cells,), codes of `donor_names`, -1 is missing; None without donors."""
        return None if self.manifest.donors is None else self._array("donors")

    @cached_property
    def origins(self) -> NDArray[np.int64]:
        """(cells, 2): index into ``manifest.sources``, and the row in that source."""
        return self._array("origins")

    @cached_property
    def hvg_order(self) -> NDArray[np.int32]:
        """(genes,), columns from most to least variable in training cells."""
        return self._array("gene_order")

    @cached_property
    def _own_labels(self) -> LabelColumns:
        own: dict[str, tuple[NDArray[Any], Sequence[str]]] = {"split": (self.split_codes, SPLITS)}
        if self.donors is not None and self.manifest.donors is not None:
            own["donor"] = (self.donors, self.manifest.donors)
        own["source"] = (self.origins[:, 0], [one.name for one in self.manifest.sources])
        return LabelColumns(own)

    @cached_property
    def labels(self) -> LabelColumns:
        """What cells can be filtered by: phenotypes, then "split", "donor" and "source"."""
        codes, phenotypes = self._array("phenotypes"), self.manifest.phenotypes
        found: dict[str, Any] = {
            name: (codes[:, column], phenotypes[name]) for column, name in enumerate(phenotypes)
        }
        own = self._own_labels.data
        return LabelColumns(found | {name: own[name] for name in own if name not in found})

    def check_cells(self, rows: NDArray[np.integer[Any]]) -> None:
        """Compare the expression of cells with its checksums, once; DataError if it was damaged."""
        self._checks.check_values(self.indptr[rows], self.indptr[rows + 1])

    @classmethod
    def open(cls, path: Path | str) -> "Store":
        """Open a store folder; arrays are mapped, not loaded.

        Raises
        ------
        DataError
            The folder is no store, is damaged, or has a format this tfx does not read.
        """
        return cls(Path(path), Manifest.load(Path(path)))

    @classmethod
    def of_key(cls, key: str, places: Iterable[Path], *, owner: str) -> "Store":
        """Open the store of a key in the first of some places that has it.

        NoStoreError if none has, DataError if it is damaged; ``owner`` is the run or model that needs it.
        """
        places = list(dict.fromkeys(places))
        present = [place for place in places if (place / MANIFEST_NAME).exists()]
        for place in present:
            manifest = Manifest.load(place)
            if manifest.key == key:
                return cls(place, manifest)
        if present:
            raise NoStoreError(
                f"{present[0]} was prepared again after {owner} began, from other cells or settings; "
                f"train the preset again, or name the store of {owner} by --store"
            )
        where = f"{places[0]}: " if places else ""
        raise NoStoreError(
            f"{where}the store of {owner} is not there; name its new place by --store, or prepare it again"
        )

    @cached_property
    def truth(self) -> dict[str, Any] | None:
        """The known truth of simulated cells, or None for real ones."""
        path = self.path / TRUTH_NAME
        self._checks.check_file(TRUTH_NAME)
        return file_json(path) if path.exists() else None

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Rows of one split, ascending."""
        return np.flatnonzero(self.split_codes == SPLITS.index(split)).astype(np.int64, copy=False)

    def where(self, cells: CellFilter | str | Sequence[str]) -> NDArray[np.bool_]:
        """(cells,), whether each cell meets a filter such as "sex=female,tissue=lung,liver".

        ConfigurationError if the filter cannot be read, or names what the store does not have.
        """
        wanted = cells if isinstance(cells, CellFilter) else CellFilter.parse(cells)
        return wanted.mask(self.labels, self.n_cells, str(self.path))

    def select(
        self,
        cells: NDArray[np.bool_] | CellFilter | str | Sequence[str] | None = None,
        *,
        split: Split | None = None,
    ) -> NDArray[np.int64]:
        """Rows of cells, ascending: those of a (cells,) mask or of a filter; None or [] means all.

        With `split`, only cells of this split.
        """
        if cells is None:
            mask = np.ones(self.n_cells, dtype=bool)
        elif not isinstance(cells, np.ndarray):
            mask = self.where(cells)
        elif cells.dtype == bool and cells.shape == (self.n_cells,):
            mask = cells
        else:
            raise ValueError(
                f"a mask of cells is bool ({self.n_cells},), not {cells.dtype} {cells.shape}"
            )
        if split is not None:
            mask = mask & (self.split_codes == SPLITS.index(split))
        return np.flatnonzero(mask).astype(np.int64, copy=False)

    def phenotype_table(self, rows: NDArray[np.integer[Any]] | None = None) -> pd.DataFrame:
        """Phenotypes of some cells, or of all, as categoricals; NaN where a label is missing.

        The index is the cell's row in the store.
        """
        rows = np.arange(self.n_cells) if rows is None else rows
        columns = {name: self.labels[name].take(rows) for name in self.phenotypes}
        return pd.DataFrame(columns, index=pd.Index(rows, name="row"))

    def panel(self, n_genes: int, include: Sequence[str] = ()) -> GenePanel:
        """Choose the genes of a model, most variable first.

        Genes in `include` (ids or symbols) take the places of the least variable ones. A store with
        fewer than `n_genes` genes gives all of its genes. DataError if an included gene is not in the
        store, ConfigurationError if the panel does not hold all of them.
        """
        is_included = np.zeros(len(self.genes), dtype=bool)
        for name in include:
            index = self.genes.index_of(name)
            if index is None:
                near = self.genes.nearest(name)
                hint = f"did you mean {', '.join(near)}?" if near else "use an id or symbol it has"
                raise DataError(
                    f"{self.path}: data.include_genes names '{name}', which is none of the store's "
                    f"{len(self.genes)} genes; {hint}"
                )
            is_included[index] = True
        n_included = int(is_included.sum())
        if n_included > n_genes:
            raise ConfigurationError(
                f"data.include_genes names {n_included} genes but data.genes = {n_genes}; raise "
                f"data.genes"
            )
        in_order = is_included[self.hvg_order]
        free = min(n_genes, len(self.genes)) - n_included
        panel = self.genes.take(self.hvg_order[in_order | (np.cumsum(~in_order) <= free)])
        check_lengths([*panel.ids, *panel.symbols], f"{self.path}: the name of a gene")
        return panel

    def read(self, rows: NDArray[np.integer[Any]], panel: GenePanel) -> sparse.csr_matrix:
        """Expression of cells over a panel: (cells, genes of the panel) float32.

        log1p of counts per 10,000, of the total over all genes of the source file. Rows may come in
        any order and repeat. Genes that the store lacks are zero (logged once; see `missing_genes`);
        DataError if it has none of them. No stored zeros; columns ascend within each row.
        """
        cells = self.read_stored(rows)
        columns, row_ends, kept = self._of_panel(cells, panel)
        values = cells.values[kept].astype(np.float32)
        if self.value_kind == "counts":
            values = log_values(values, row_ends, cells.totals)
        return _csr(values, columns, row_ends, len(panel))

    def library_sizes(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """(rows,) total counts of cells over all genes of their file; 0 where the store holds log values."""
        if self.value_kind != "counts":
            return np.zeros(len(rows), dtype=np.float32)
        return np.asarray(self.totals[rows])

    def read_counts(self, rows: NDArray[np.integer[Any]], panel: GenePanel) -> sparse.csr_matrix:
        """Raw counts of cells over a panel; arguments and shape as for `read`.

        float32, or float64 if there is a count above 2**24: no count is rounded. DataError if the store
        holds log values.
        """
        if self.value_kind != "counts":
            raise DataError(
                f"{self.path}: the store holds log values, which do not give counts back; "
                f"prepare one from files with counts, or read log1p values"
            )
        cells = self.read_stored(rows)
        columns, row_ends, kept = self._of_panel(cells, panel)
        counts = cells.values[kept]
        fits = int(counts.max(initial=0)) <= 2**24
        values = counts.astype(np.float32 if fits else np.float64)
        return _csr(values, columns, row_ends, len(panel))

    def read_stored(self, rows: NDArray[np.integer[Any]]) -> StoredCells:
        """Cells as stored, in the order of `rows`: store columns and raw values."""
        rows = np.asarray(rows, dtype=np.int64)
        starts, ends = self.indptr[rows], self.indptr[rows + 1]
        self._checks.check_values(starts, ends)
        # One slice per cell: a gather by flat indices takes ten times as long.
        spans = [
            slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
        genes = np.concatenate([self.columns[:0], *(self.columns[span] for span in spans)])
        values = np.concatenate([self.values[:0], *(self.values[span] for span in spans)])
        indptr = np.concatenate(([0], np.cumsum(ends - starts)))
        large_at = self._arrays["large_at"]
        if len(large_at) and len(reserved := np.flatnonzero(values == LARGE_COUNT)):
            cell = np.searchsorted(indptr, reserved, side="right") - 1
            stored_at = starts[cell] + reserved - indptr[cell]
            values = values.astype(np.uint32)
            found = np.searchsorted(self._array("large_at"), stored_at)
            values[reserved] = self._array("large_values")[found]
        return StoredCells(indptr, genes, values, self.totals[rows])

    def missing_genes(self, panel: GenePanel) -> list[str]:
        """Ids of the panel's genes that the store lacks and `read` gives as zero."""
        known = set(self.genes.ids)
        return [gene for gene in panel.ids if gene not in known]

    def to_anndata(
        self,
        cells: NDArray[Any] | CellFilter | str | Sequence[str] | None = None,
        panel: GenePanel | None = None,
        *,
        values: Literal["log1p", "counts"] = "log1p",
    ) -> "AnnData":
        """Cells as AnnData in memory: of rows in any order (repeats allowed), or as for `select`.

        X holds "log1p" of counts per 10,000 or lossless "counts" over the panel, by default over all
        genes. obs holds the phenotypes, and tfx_split, tfx_donor, tfx_source and tfx_row; its index
        is the number of the source and the row in it: "0-17".
        """
        from anndata import AnnData  # 400 ms that reading batches does without

        is_rows = isinstance(cells, np.ndarray) and cells.dtype != bool
        rows = np.asarray(cells if is_rows else self.select(cells), dtype=np.int64)
        panel = self.genes if panel is None else panel
        names = pd.Series(
            [f"{source}-{row}" for source, row in self.origins[rows].tolist()], dtype=object
        )
        again = names.groupby(names).cumcount()  # a repeated cell gets -1, -2 and so on behind it
        names = names.where(again == 0, names + "-" + again.astype(str))
        obs = self.phenotype_table(rows).set_index(pd.Index(names, dtype=object))
        for name in ("donor", "split", "source"):
            if name in self._own_labels:
                obs[f"tfx_{name}"] = self._own_labels[name].take(rows)
        obs["tfx_row"] = self.origins[rows, 1]
        kind = "counts" if values == "counts" else "log1p counts per 10,000"
        return AnnData(
            X=self.read(rows, panel) if values == "log1p" else self.read_counts(rows, panel),
            obs=obs,
            var=pd.DataFrame({"gene_symbol": list(panel.symbols)}, index=pd.Index(panel.ids)),
            uns={"tfx": {"store": self.manifest.key, "values": kind}},
        )

    def _of_panel(
        self, cells: StoredCells, panel: GenePanel
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_]]:
        """Panel columns of the values kept, where each row ends among them, and which are kept."""
        columns = self.column_map(panel)[cells.genes]
        kept = columns >= 0
        # A running sum over all values takes six times as long.
        row_ends = np.searchsorted(np.flatnonzero(kept), cells.indptr)
        return columns[kept], row_ends, kept

    def column_map(self, panel: GenePanel) -> NDArray[np.int32]:
        """(genes of the store,) column in the panel, -1 where the panel lacks the gene.

        Genes that the store lacks are logged once; DataError if it has none of the panel's.
        """
        cached = self._column_maps.get(panel.hash)
        if cached is not None:
            return cached
        missing = self.missing_genes(panel)
        if len(missing) == len(panel):
            raise DataError(
                f"{self.path}: the store has none of the model's {len(panel)} genes "
                f"({', '.join(panel.ids[:3])}, ... against {', '.join(self.genes.ids[:3])}, ...); "
                f"prepare it with data.gene_ids set to the column of ids that the model knows"
            )
        if missing:
            text = "%s lacks %d of %d panel genes (%s); they are read as zero"
            logger.warning(text, self.path, len(missing), len(panel), listed(missing))
        place = {gene: column for column, gene in enumerate(panel.ids)}
        columns = np.array([place.get(gene, -1) for gene in self.genes.ids], dtype=np.int32)
        self._column_maps[panel.hash] = columns
        return columns

    def _array(self, name: str) -> NDArray[Any]:
        """Give an array whose file is as it was prepared."""
        self._checks.check_file(f"{name}.npy")
        return self._arrays[name]

    def _map(self, name: str, shape: tuple[int | None, ...], dtype: Any) -> NDArray[Any]:  # noqa: ANN401
        """Map the file of an array, whose size and type are checked."""
        path = self.path / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise DataError(
                f"{self.path}: damaged store, {path.name} is missing; prepare it again"
            ) from None
        except OSError as error:
            raise unreadable(path, error) from error
        except Exception as error:  # numpy reads the header as Python, which can raise anything
            raise DataError(
                f"{path}: cannot be read ({first_line(error)}); prepare the store again"
            ) from error
        fits = len(array.shape) == len(shape) and all(
            want is None or have == want for have, want in zip(array.shape, shape, strict=True)
        )
        if not fits or array.dtype != dtype:
            raise DataError(
                f"{path}: damaged store, holds {array.dtype} {array.shape} instead of "
                f"{np.dtype(dtype)} {shape}; prepare it again"
            )
        if path.stat().st_size != array.offset + array.nbytes:
            raise DataError(f"{path}: damaged store, has bytes behind its end; prepare it again")
        # A plain view of the map: slicing numpy's memmap class costs microseconds per slice.
        return np.asarray(array)


def places_of_store(recorded: str, owner: Path, relative: str) -> list[Path]:
    """Return where the store of a run or model may be, also after both were moved to another machine.

    ``recorded`` is its path at the time, ``relative`` that path from the folder ``owner``, or "".
    """
    owner = owner.resolve()
    places = [Path(recorded)] if recorded else []
    if relative:
        places.append(Path(os.path.normpath(owner / relative)))
    for folder in owner.parents[:3]:
        places += [folder / "stores" / Path(recorded).name, folder / Path(recorded).name]
    return places


def gene_index_type(n_genes: int) -> type[np.uint16] | type[np.int32]:
    """Smallest type of the stores that numbers `n_genes` columns."""
    return np.uint16 if n_genes <= 65_536 else np.int32


def _csr(
    values: NDArray[Any], columns: NDArray[np.int32], row_ends: NDArray[np.int64], n_columns: int
) -> sparse.csr_matrix:
    """Make a canonical matrix of columns in any order within a row."""
    index_type = np.int32 if row_ends[-1] < 2**31 else np.int64
    matrix = sparse.csr_matrix(
        (values, columns, row_ends.astype(index_type)), shape=(len(row_ends) - 1, n_columns)
    )
    matrix.sort_indices()
    return matrix
