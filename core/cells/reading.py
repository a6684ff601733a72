"""Sources of cells: an h5ad file, an AnnData object, or a built-in dataset, read in row chunks.

A source names its matrices ("X", "raw", "layers/NAME") and gives any of them as CSR chunks. What the
values mean belongs to `matrix_state`.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from core.cells.file_patterns import BUILTIN_PREFIX
from core.errors import DataError
from core.wording import first_line

if TYPE_CHECKING:
    import h5py
    import pandas as pd
    from anndata import AnnData

#: Values of a matrix stored by columns that are kept in memory.
BY_COLUMNS_VALUES = 2**25
#: Values of such a matrix that are looked at together.
_BLOCK_VALUES = 2**22
#: Where simulated data keep their truth, as a JSON string.
TRUTH_KEY = "tfx_truth"


@dataclass(frozen=True)
class StoredMatrix:
    """How a matrix is stored."""

    #: Stored values; of a dense matrix with its zeros.
    n_values: int
    #: Whether only the non-zero ones are stored.
    is_sparse: bool = False
    #: Whether it is stored by genes (CSC), so that a range of rows means reading all of it.
    by_columns: bool = False
    #: Whether it is stored in pieces: one that is read in part is decompressed whole.
    in_pieces: bool = False


class AnnDataSource:
    """Cells of an AnnData object, in memory or backed."""

    def __init__(self, adata: "AnnData", name: str) -> None:
        #: As the preset names it.
        self.name = name
        self.n_cells = int(adata.n_obs)
        self._adata = adata
        self._converted: dict[str, Any] = {}

    @property
    def obs(self) -> "pd.DataFrame":
        """(cells, columns)."""
        obs: pd.DataFrame = self._adata.obs
        return obs

    @property
    def truth(self) -> str | None:
        """Known truth of simulated cells, a JSON string."""
        truth = self._adata.uns.get(TRUTH_KEY)
        return None if truth is None else str(truth)

    def matrices(self) -> list[str]:
        """Names of the matrices: "X", "layers/NAME" by name, "raw"."""
        names = [] if self._adata.X is None else ["X"]
        names += [f"layers/{name}" for name in sorted(self._adata.layers)]
        return names + ([] if self._adata.raw is None else ["raw"])

    def var(self, matrix: str) -> "pd.DataFrame":
        """(genes, columns) of a matrix."""
        var: pd.DataFrame = self._adata.raw.var if matrix == "raw" else self._adata.var
        return var

    def obs_columns(self, names: Collection[str]) -> "pd.DataFrame":
        """(cells, those of the named columns that exist); ``attrs["columns"]`` lists all."""
        table = self.obs[[name for name in self.obs.columns if name in names]].copy()
        table.attrs["columns"] = [str(name) for name in self.obs.columns]
        return table

    def stored(self, matrix: str) -> StoredMatrix:
        """How a matrix is stored; one by columns is transposed once, in memory."""
        values = self._matrix(matrix)
        n_values = values.nnz if hasattr(values, "nnz") else np.prod(values.shape)
        return StoredMatrix(int(n_values), is_sparse=hasattr(values, "format"))

    def chunks(
        self, matrix: str, rows_per_chunk: int, *, start: int = 0, stop: int | None = None
    ) -> Iterator[sparse.csr_matrix]:
        """Rows [start, stop) of a matrix in order, as float32 CSR without stored zeros."""
        values = self._converted.get(matrix)
        if values is None:
            values = self._matrix(matrix)
            if getattr(values, "format", None) == "csc":
                stored = values.to_memory() if hasattr(values, "to_memory") else values
                values = self._converted[matrix] = sparse.csr_matrix(stored.tocsr())
        end = self.n_cells if stop is None else min(stop, self.n_cells)
        for first in range(start, end, rows_per_chunk):
            yield _to_csr(values[first : min(first + rows_per_chunk, end)])

    def release(self) -> None:
        """Drop transposed matrices; further reading makes them again."""
        self._converted.clear()

    close = release  # the object itself is its owner's

    def _matrix(self, matrix: str) -> Any:  # noqa: ANN401 (any of AnnData's matrix types)
        if matrix == "X":
            return self._adata.X
        if matrix == "raw":
            return self._adata.raw.X
        return self._adata.layers[matrix.removeprefix("layers/")]


class H5adSource:
    """Cells of an h5ad file, with the methods of `AnnDataSource`; one chunk is in memory.

    Of a matrix stored by columns (CSC), the requested rows are in memory: all its values are read.
    """

    def __init__(self, path: Path, file: "h5py.File") -> None:
        self.name = str(path)
        self._path = path
        self._file = file
        self._vars: dict[str, pd.DataFrame] = {}

    @cached_property
    def obs(self) -> "pd.DataFrame":
        """(cells, columns)."""
        return self._table("obs")

    @cached_property
    def n_cells(self) -> int:
        """Number of cells."""
        with _readable(self._path, "obs"):
            index = self._file["obs"][self._file["obs"].attrs["_index"]]
            return int((index["codes"] if hasattr(index, "keys") else index).shape[0])

    @cached_property
    def truth(self) -> str | None:
        """Known truth of simulated cells, a JSON string."""
        key = f"uns/{TRUTH_KEY}"
        return str(self._element(key)) if key in self._file else None

    def matrices(self) -> list[str]:
        """Names of the matrices: "X", "layers/NAME" by name, "raw"."""
        with _readable(self._path, "X"):
            layers = sorted(self._file["layers"]) if "layers" in self._file else []
            names = ["X", *(f"layers/{name}" for name in layers), "raw"]
            return [name for name in names if _holds_matrix(self._file.get(_key(name)))]

    def var(self, matrix: str) -> "pd.DataFrame":
        """(genes, columns) of a matrix."""
        key = "raw/var" if matrix == "raw" else "var"
        if key not in self._vars:
            self._vars[key] = self._table(key)
        return self._vars[key]

    def obs_columns(self, names: Collection[str]) -> "pd.DataFrame":
        """(cells, those of the named columns that exist); ``attrs["columns"]`` lists all."""
        import pandas as pd

        with _readable(self._path, "obs"):
            present = [str(name) for name in self._file["obs"].attrs["column-order"]]
        table = pd.DataFrame(index=pd.RangeIndex(self.n_cells))
        for name in filter(names.__contains__, present):
            with _readable(self._path, f"obs/{name}"):
                column = self._element(f"obs/{name}")
                is_text = pd.api.types.is_object_dtype(column)
                is_text = is_text or pd.api.types.is_string_dtype(column)
                # Text of every cell is many times its codes.
                table[name] = pd.Categorical(column) if is_text else column
        table.attrs["columns"] = present
        return table

    def stored(self, matrix: str) -> StoredMatrix:
        """How a matrix is stored."""
        with _readable(self._path, _key(matrix)):
            stored = self._file[_key(matrix)]
            is_dense = _is_dense(stored)
            values = stored if is_dense else stored["data"]
            return StoredMatrix(
                n_values=int(np.prod(values.shape)),
                is_sparse=not is_dense,
                by_columns=not is_dense and stored.attrs.get("encoding-type") == "csc_matrix",
                in_pieces=values.chunks is not None,
            )

    def chunks(
        self, matrix: str, rows_per_chunk: int, *, start: int = 0, stop: int | None = None
    ) -> Iterator[sparse.csr_matrix]:
        """Rows [start, stop) of a matrix in order, as float32 CSR without stored zeros."""
        shape, expected = self._shape(matrix), (self.n_cells, len(self.var(matrix)))
        if shape != expected:
            raise DataError(
                f"{self._path}: '{_key(matrix)}' is {' x '.join(map(str, shape))}, obs and var "
                f"make it {expected[0]} x {expected[1]}; write the file again by AnnData"
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
            with _readable(self._path, _key(matrix)):
                values: Any = self._file[_key(matrix)]
                if how.by_columns:
                    values = _rows_of_columns(values, begin, until)
                elif how.is_sparse:
                    values = _StoredRows(values)
            for first in range(begin, until, rows_per_chunk):
                with _readable(self._path, _key(matrix)):
                    last = min(first + rows_per_chunk, until)
                    chunk = _to_csr(values[first - first_row : last - first_row], own=True)
                yield chunk

    def release(self) -> None:
        """Nothing of a file stays in memory."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _shape(self, matrix: str) -> tuple[int, ...]:
        with _readable(self._path, _key(matrix)):
            stored = self._file[_key(matrix)]
            return tuple(stored.shape if _is_dense(stored) else stored.attrs["shape"])

    def _table(self, key: str) -> "pd.DataFrame":
        import pandas as pd

        table = self._element(key)
        if not isinstance(table, pd.DataFrame):
            raise DataError(
                f"{self._path}: '{key}' is no table; the file is damaged or was not written by AnnData"
            )
        return table

    def _element(self, key: str) -> Any:  # noqa: ANN401 (whatever is stored there)
        from anndata.io import read_elem

        with _readable(self._path, key):
            return read_elem(self._file[key])


CellSource = AnnDataSource | H5adSource


def open_source(spec: str | Path) -> CellSource:
    """Open an h5ad file by its path, or a built-in dataset ("builtin:NAME").

    DataError if the file is missing, a folder, unreadable, truncated, or not an h5ad.
    """
    if str(spec).startswith(BUILTIN_PREFIX):
        from core.cells.builtin import load_builtin  # builds on this package; scanpy's 2 s

        return AnnDataSource(load_builtin(str(spec)), str(spec))
    import h5py

    path = Path(spec)
    _check_path(path)
    try:
        with path.open("rb"):  # whose error is clearer than that of HDF5
            pass
        if not h5py.is_hdf5(path):
            raise DataError(f"{path}: not an h5ad file; tfx reads AnnData files (adata.write_h5ad)")
        file = h5py.File(path, "r")
    except PermissionError:
        raise DataError(
            f"{path}: no permission to read this file; change its mode or owner"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: damaged or truncated h5ad file ({first_line(error)}); copy it again"
        ) from error
    try:
        with _readable(path, "obs"):
            if "obs" not in file or "var" not in file:
                raise DataError(
                    f"{path}: an HDF5 file but not an h5ad (no obs and var); write it with AnnData"
                )
            if isinstance(file["obs"], h5py.Group):
                return H5adSource(path, file)
            # Written before anndata 0.7: its own reader knows those layouts.
            file.close()
            import anndata

            return AnnDataSource(anndata.read_h5ad(path), str(path))
    except DataError:
        file.close()
        raise


def fingerprint(spec: str) -> str:
    """State of a source: a file's size and time of change, a built-in dataset's version."""
    if spec.startswith(BUILTIN_PREFIX):
        return "+".join(f"{name}-{version_of(name)}" for name in ("transformerics", "scanpy"))
    _check_path(Path(spec))
    stat = Path(spec).stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def version_of(distribution: str) -> str:
    """Version of an installed distribution, or "unknown"."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def _to_csr(rows: Any, *, own: bool = False) -> sparse.csr_matrix:  # noqa: ANN401 (any matrix)
    """Turn rows of any kind into float32 CSR: columns ascending, no duplicates, no zeros.

    Rows that no other object holds (`own`) may be changed in place.
    """
    dense_or_sparse: Any = rows if sparse.issparse(rows) else np.atleast_2d(np.asarray(rows))
    matrix = sparse.csr_matrix(dense_or_sparse, dtype=np.float32, copy=not own)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


class _StoredRows:
    """Rows of a CSR matrix in a file; only `indptr` and the rows that are sliced are read."""

    def __init__(self, stored: "h5py.Group") -> None:
        self._data, self._genes = stored["data"], stored["indices"]
        # Unsigned numbers would hide a row that ends before it begins.
        self._indptr = stored["indptr"][:].astype(np.int64, copy=False)
        self._n_genes = int(stored.attrs["shape"][1])

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


def _rows_of_columns(stored: "h5py.Group", start: int, stop: int) -> sparse.csr_matrix:
    """Rows [start, stop) of a matrix stored by columns, a block of values in memory at a time."""
    n_genes = int(stored.attrs["shape"][1])
    indptr = stored["indptr"][:]
    rows, genes, data = [], [], []
    n_values = int(indptr[-1])
    for first in range(0, n_values, _BLOCK_VALUES):
        last = min(first + _BLOCK_VALUES, n_values)
        row = stored["indices"][first:last]
        kept = np.flatnonzero((row >= start) & (row < stop))
        rows.append((row[kept] - start).astype(np.int32))
        column = np.searchsorted(indptr, first + kept, side="right") - 1
        genes.append(column.astype(np.int32))
        data.append(stored["data"][first:last][kept])
    if not rows:
        return sparse.csr_matrix(np.zeros((stop - start, n_genes), dtype=np.float32))
    places = (np.concatenate(rows), np.concatenate(genes))
    return sparse.csr_matrix((np.concatenate(data), places), shape=(stop - start, n_genes))


def _check_path(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise DataError(
            f"{path}: a folder, not an h5ad file; name the files in it ('{path}/*.h5ad')"
        )


@contextmanager
def _readable(path: Path, key: str) -> Iterator[None]:
    """Turn the many errors of a damaged file into one sentence."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"{path}: '{key}' cannot be read ({first_line(error)}); the file is damaged or was not "
            f"written by AnnData"
        ) from error


def _is_dense(stored: "h5py.Dataset | h5py.Group") -> bool:
    return not hasattr(stored, "keys")


def _holds_matrix(stored: "h5py.Dataset | h5py.Group | None") -> bool:
    if stored is None or stored.attrs.get("encoding-type") == "null":
        return False
    return hasattr(stored, "shape") or "indptr" in stored


def _key(matrix: str) -> str:
    return "raw/X" if matrix == "raw" else matrix
