"""Cells in an open HDF5 or zarr group that AnnData wrote, whatever its version; one chunk is in memory.

AnnData reads the tables and says what each element is; only the streaming of matrix rows is ours.
"""

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from core.cells.sources import BY_COLUMNS_VALUES, StoredMatrix, columns_of, in_one_sentence, to_csr
from core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from anndata.abc import CSCDataset, CSRDataset

#: Values of a matrix stored by columns that are looked at together.
_BLOCK_VALUES = 2**22


class StoredSource:
    """Cells of AnnData's elements in a group, with the members of `CellSource`.

    Of a matrix stored by columns (CSC), the requested rows are in memory: all its values are read.

    Parameters
    ----------
    group
        An open ``h5py.Group`` or ``zarr.Group`` with obs, var, X and the like; ``close`` closes it.
    read_old
        Reads the tables of a layout from before anndata 0.7, whose categories are in uns.
    """

    def __init__(
        self,
        group: Any,  # noqa: ANN401 (h5py.Group or zarr.Group)
        name: str,
        *,
        close: Callable[[], None] = lambda: None,
        read_old: Callable[[], "AnnData"] | None = None,
    ) -> None:
        self.name = name
        self.close = close
        self._group = group
        self._read_old = read_old
        self._vars: dict[str, pd.DataFrame] = {}

    @cached_property
    def obs(self) -> "pd.DataFrame":
        return self._table("obs")

    @cached_property
    def obs_names(self) -> "pd.Index[str]":
        if self.obs_layout is None:
            return self.obs.index
        import pandas as pd

        _, index_key = self.obs_layout
        with self._readable(f"obs/{index_key}"):
            return _names(pd.Index(self._element(f"obs/{index_key}")))

    @cached_property
    def n_cells(self) -> int:
        if self.obs_layout is None:
            return len(self.obs)
        _, index_key = self.obs_layout
        with self._readable("obs"):
            index = self._group["obs"][index_key]
            if _is_group(index):  # categories, or text with a mask of what is missing
                index = index["codes" if "codes" in index else "mask"]
            return int(index.shape[0])

    def uns(self, key: str) -> Any:  # noqa: ANN401 (whatever is stored there)
        with self._readable("uns"):
            is_there = f"uns/{key}" in self._group
        return self._element(f"uns/{key}") if is_there else None

    def matrices(self) -> list[str]:
        with self._readable("X"):
            layers = sorted(self._group["layers"]) if "layers" in self._group else []
            names = ["X", *(f"layers/{name}" for name in layers), "raw"]
            return [name for name in names if self._holds_matrix(self._key(name))]

    def var(self, matrix: str) -> "pd.DataFrame":
        key = "raw/var" if matrix == "raw" else "var"
        if key not in self._vars:
            self._vars[key] = self._table(key)
        return self._vars[key]

    def obs_columns(self, names: Collection[str]) -> "pd.DataFrame":
        import pandas as pd

        if self.obs_layout is None:
            return columns_of(self.obs, names).reset_index(drop=True)
        present, _ = self.obs_layout
        table = pd.DataFrame(index=pd.RangeIndex(self.n_cells))
        for name in filter(names.__contains__, present):
            with self._readable(f"obs/{name}"):
                column = pd.Series(self._element(f"obs/{name}"))
                is_text = pd.api.types.is_object_dtype(column)
                is_text = is_text or pd.api.types.is_string_dtype(column)
                # Text of every cell is many times its codes.
                table[name] = pd.Categorical(column) if is_text else column
        table.attrs["columns"] = present
        return table

    def stored(self, matrix: str) -> StoredMatrix:
        from anndata.abc import CSCDataset

        key = self._key(matrix)
        with self._readable(key):
            values = self._matrix(key)
            is_sparse = hasattr(values, "group")
            pieces = values.group["data"] if is_sparse else values
            return StoredMatrix(
                n_values=int(np.prod(pieces.shape)),
                is_sparse=is_sparse,
                by_columns=isinstance(values, CSCDataset),
                in_pieces=pieces.chunks is not None,
            )

    def chunks(
        self, matrix: str, rows_per_chunk: int, *, start: int = 0, stop: int | None = None
    ) -> Iterator[sparse.csr_matrix]:
        key = self._key(matrix)
        with self._readable(key):
            shape = tuple(self._matrix(key).shape)
        expected = (self.n_cells, len(self.var(matrix)))
        if shape != expected:
            raise DataError(
                f"{self.name}: '{key}' is {' x '.join(map(str, shape))}, obs and var make it "
                f"{expected[0]} x {expected[1]}; write the file again by AnnData"
            )
        end = self.n_cells if stop is None else min(stop, self.n_cells)
        how = self.stored(matrix)
        at_once = max(self.n_cells, 1)
        if how.by_columns:
            at_once = max(self.n_cells * BY_COLUMNS_VALUES // max(how.n_values, 1), 1)
            # Whole chunks: where they start must not depend on how many rows are read at once.
            at_once = -(-at_once // rows_per_chunk) * rows_per_chunk
        for begin in range(start, end, at_once):
            until = min(begin + at_once, end)
            first_row = begin if how.by_columns else 0
            with self._readable(key):
                values = self._matrix(key)
                if how.by_columns:
                    values = _rows_of_columns(values, begin, until)
                elif how.is_sparse:
                    values = _StoredRows(values)
            for first in range(begin, until, rows_per_chunk):
                with self._readable(key):
                    last = min(first + rows_per_chunk, until)
                    chunk = to_csr(values[first - first_row : last - first_row], own=True)
                yield chunk

    def release(self) -> None:
        """Nothing of a file stays in memory."""

    def _key(self, matrix: str) -> str:
        if matrix == "raw":
            return "raw.X" if "raw.X" in self._group else "raw/X"  # the former before anndata 0.7
        return matrix

    def _holds_matrix(self, key: str) -> bool:
        if key not in self._group:
            return False
        elem = self._group[key]
        return "indptr" in elem if _is_group(elem) else bool(elem.shape)  # None has no shape

    def _matrix(self, key: str) -> Any:  # noqa: ANN401 (a dense array, or AnnData's sparse dataset)
        from anndata.io import sparse_dataset

        elem = self._group[key]
        return sparse_dataset(elem) if _is_group(elem) else elem

    @cached_property
    def obs_layout(self) -> tuple[list[str], str] | None:
        """Columns of obs and the name of its index, if each is an element of its own (since 0.8)."""
        from anndata.experimental import read_dispatched

        is_part = False

        def read(read: Callable[[Any], Any], _name: str, elem: object, *, iospec: Any) -> Any:  # noqa: ANN401
            nonlocal is_part
            if is_part:
                return np.empty(0)  # for a table without rows: its columns are not read
            is_part = True
            is_split = (iospec.encoding_type, iospec.encoding_version) == ("dataframe", "0.2.0")
            return read(elem) if is_split else None

        with self._readable("obs"):
            table = read_dispatched(self._group["obs"], read)
            if table is None:
                return None
            return [str(name) for name in table.columns], str(table.index.name or "_index")

    @cached_property
    def old_tables(self) -> "AnnData":
        """Tables of a layout from before anndata 0.7."""
        assert self._read_old is not None, "a layout of today"
        return self._read_old()

    def _table(self, key: str) -> "pd.DataFrame":
        import pandas as pd

        with self._readable(key):
            is_old = (
                "raw.var" in self._group if key == "raw/var" else not _is_group(self._group[key])
            )
            if is_old and self._read_old is not None:
                old = self.old_tables.raw if key == "raw/var" else self.old_tables
                table = old.obs if key == "obs" else old.var
            else:
                table = self._element(key)
        if not isinstance(table, pd.DataFrame):
            raise DataError(
                f"{self.name}: '{key}' is no table; the file is damaged or was not written by AnnData"
            )
        table.index = _names(table.index)
        return table

    def _element(self, key: str) -> Any:  # noqa: ANN401 (whatever is stored there)
        from anndata.io import read_elem

        with self._readable(key), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old layouts
            return read_elem(self._group[key])

    def _readable(self, key: str) -> AbstractContextManager[None]:
        remedy = "; the file is damaged or was not written by AnnData"
        return in_one_sentence(f"{self.name}: '{key}' cannot be read", remedy)


class _StoredRows:
    """Rows of a CSR matrix in a file; only `indptr` and the rows that are sliced are read."""

    def __init__(self, stored: "CSRDataset") -> None:
        self._data, self._genes = stored.group["data"], stored.group["indices"]
        # Unsigned numbers would hide a row that ends before it begins.
        self._indptr = stored.group["indptr"][:].astype(np.int64, copy=False)
        self._n_genes = int(stored.shape[1])

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        """(rows, genes), as stored."""
        borders = self._indptr[rows.start : rows.stop + 1]
        if (np.diff(borders) < 0).any():
            raise ValueError("rows that end before they begin")
        values = slice(int(borders[0]), int(borders[-1]))
        genes = self._genes[values]
        if len(genes) and (genes.min() < 0 or genes.max() >= self._n_genes):
            raise ValueError(f"a gene outside the {self._n_genes:,} of var")
        shape = (len(borders) - 1, self._n_genes)
        return sparse.csr_matrix((self._data[values], genes, borders - borders[0]), shape=shape)


def _rows_of_columns(stored: "CSCDataset", start: int, stop: int) -> sparse.csr_matrix:
    """Rows [start, stop) of a matrix stored by columns, a block of values in memory at a time."""
    n_genes = int(stored.shape[1])
    indptr = stored.group["indptr"][:]
    rows, genes, data = [], [], []
    n_values = int(indptr[-1])
    for first in range(0, n_values, _BLOCK_VALUES):
        last = min(first + _BLOCK_VALUES, n_values)
        row = stored.group["indices"][first:last]
        kept = np.flatnonzero((row >= start) & (row < stop))
        rows.append((row[kept] - start).astype(np.int32))
        column = np.searchsorted(indptr, first + kept, side="right") - 1
        genes.append(column.astype(np.int32))
        data.append(stored.group["data"][first:last][kept])
    if not rows:
        return sparse.csr_matrix(np.zeros((stop - start, n_genes), dtype=np.float32))
    places = (np.concatenate(rows), np.concatenate(genes))
    return sparse.csr_matrix((np.concatenate(data), places), shape=(stop - start, n_genes))


def _is_group(elem: Any) -> bool:  # noqa: ANN401 (of h5py or zarr)
    return hasattr(elem, "keys")


def _names(index: "pd.Index[Any]") -> "pd.Index[str]":
    """Names as AnnData makes them of an index of numbers or categories."""
    import pandas as pd

    is_text = pd.api.types.is_string_dtype(index) and not isinstance(index, pd.CategoricalIndex)
    return index if is_text else index.astype(str)
