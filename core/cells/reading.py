"""Sources of cells: an h5ad file, an AnnData object, or a built-in dataset, read in row chunks.

A source says which matrices it has ("X", "raw", "layers/NAME") and hands out any of them as CSR
chunks. What the values mean belongs to `matrix_state`.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy import sparse

from core.cells.file_patterns import BUILTIN_PREFIX
from core.cells.rows_of_matrix import StoredRows, rows_of_columns, to_csr
from core.errors import DataError

if TYPE_CHECKING:
    import h5py
    import pandas as pd
    from anndata import AnnData

__all__ = ["TRUTH_KEY", "AnnDataSource", "CellSource", "H5adSource", "fingerprint", "open_source"]

#: Values of a matrix stored by columns that are kept in memory.
BY_COLUMNS_VALUES = 2**25
#: Where simulated data keep their truth, as a JSON string.
TRUTH_KEY = "tfx_truth"


class CellSource(Protocol):
    """Cells of one origin.

    Attributes
    ----------
    name
        As the preset names it.
    n_cells
        Rows of every matrix.
    obs
        (cells, columns).
    """

    @property
    def name(self) -> str:
        """As the preset names it."""

    @property
    def n_cells(self) -> int:
        """Rows of every matrix."""

    @property
    def obs(self) -> "pd.DataFrame":
        """(cells, columns)."""

    @property
    def truth(self) -> str | None:
        """Known truth of simulated cells, a JSON string."""

    def matrices(self) -> list[str]:
        """Names of the matrices: "X", "layers/NAME" by name, "raw"."""

    def var(self, matrix: str) -> "pd.DataFrame":
        """(genes, columns) of a matrix."""

    def obs_columns(self, names: Collection[str]) -> "pd.DataFrame":
        """(cells, those of the named columns that exist); ``attrs["columns"]`` lists all."""

    def stored_values(self, matrix: str) -> int:
        """Count the stored values of a matrix: non-zero ones where it is sparse."""

    def is_sparse(self, matrix: str) -> bool:
        """Whether only non-zero values of a matrix are stored."""

    def is_by_columns(self, matrix: str) -> bool:
        """Whether a matrix is stored by genes (CSC), so that a range of rows means reading it all."""

    def is_in_pieces(self, matrix: str) -> bool:
        """Whether values are stored in pieces: one that is read in part is decompressed whole."""

    def chunks(
        self, matrix: str, rows_per_chunk: int, *, start: int = 0, stop: int | None = None
    ) -> Iterator[sparse.csr_matrix]:
        """Rows [start, stop) of a matrix in order, as float32 CSR without stored zeros."""

    def release(self) -> None:
        """Drop what was turned in memory; reading on turns it again."""

    def close(self) -> None:
        """Release files and memory."""


def open_source(spec: str | Path) -> CellSource:
    """Open an h5ad file or a built-in dataset.

    Parameters
    ----------
    spec
        A path, or "builtin:NAME".

    Raises
    ------
    DataError
        The file is missing, a folder, unreadable, truncated, or not an h5ad.
    """
    name = str(spec)
    if name.startswith(BUILTIN_PREFIX):
        from core.cells.builtin import load_builtin  # builds on this package; scanpy's 2 s

        return AnnDataSource(load_builtin(name), name)
    return _open_h5ad(Path(name))


def fingerprint(spec: str) -> str:
    """Tell a source from a changed one: a file's size and time of change, a built-in's version."""
    if spec.startswith(BUILTIN_PREFIX):
        return "+".join(f"{name}-{version_of(name)}" for name in ("transformerics", "scanpy"))
    _refuse_unfit_path(Path(spec))
    stat = Path(spec).stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"


class AnnDataSource:
    """Cells of an AnnData object, in memory or backed."""

    def __init__(self, adata: "AnnData", name: str) -> None:
        self.name = name
        self._adata = adata
        self._converted: dict[str, Any] = {}

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self._adata.n_obs)

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
        """Names of the matrices the object has."""
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

    def stored_values(self, matrix: str) -> int:
        """Count the stored values of a matrix."""
        values = self._matrix(matrix)
        return int(values.nnz if hasattr(values, "nnz") else np.prod(values.shape))

    def is_sparse(self, matrix: str) -> bool:
        """Whether only non-zero values of a matrix are stored."""
        return hasattr(self._matrix(matrix), "format")

    def is_by_columns(self, matrix: str) -> bool:
        """Whether a matrix is stored by genes; one in memory is turned once."""
        return False

    def is_in_pieces(self, matrix: str) -> bool:
        """Whether values are stored in pieces: not in memory."""
        return False

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
            yield to_csr(values[first : min(first + rows_per_chunk, end)])

    def release(self) -> None:
        """Drop what was turned in memory; reading on turns it again."""
        self._converted.clear()

    def close(self) -> None:
        """Drop what was turned; the object itself is its owner's."""
        self.release()

    def _matrix(self, matrix: str) -> Any:  # noqa: ANN401 (any of AnnData's matrix types)
        if matrix == "X":
            return self._adata.X
        if matrix == "raw":
            return self._adata.raw.X
        return self._adata.layers[matrix.removeprefix("layers/")]


class H5adSource:
    """Cells of an h5ad file; only the chunk asked for is in memory.

    Of a matrix stored by columns (CSC), the rows asked for are: all its values pass by for them.
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
        """Names of the matrices the file has."""
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
        for name in present:
            if name not in names:
                continue
            with _readable(self._path, f"obs/{name}"):
                column = self._element(f"obs/{name}")
                # Text of every cell is many times its codes.
                is_text = pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(
                    column
                )
                table[name] = pd.Categorical(column) if is_text else column
        table.attrs["columns"] = present
        return table

    def stored_values(self, matrix: str) -> int:
        """Count the stored values of a matrix."""
        with _readable(self._path, _key(matrix)):
            stored = self._file[_key(matrix)]
            return int(np.prod(stored.shape) if _is_dense(stored) else stored["data"].shape[0])

    def is_sparse(self, matrix: str) -> bool:
        """Whether only non-zero values of a matrix are stored."""
        with _readable(self._path, _key(matrix)):
            return not _is_dense(self._file[_key(matrix)])

    def is_by_columns(self, matrix: str) -> bool:
        """Whether a matrix is stored by genes (CSC)."""
        with _readable(self._path, _key(matrix)):
            stored = self._file[_key(matrix)]
            return not _is_dense(stored) and stored.attrs.get("encoding-type") == "csc_matrix"

    def is_in_pieces(self, matrix: str) -> bool:
        """Whether values are stored in pieces, as compressed ones are."""
        with _readable(self._path, _key(matrix)):
            stored = self._file[_key(matrix)]
            return (stored if _is_dense(stored) else stored["data"]).chunks is not None

    def chunks(
        self, matrix: str, rows_per_chunk: int, *, start: int = 0, stop: int | None = None
    ) -> Iterator[sparse.csr_matrix]:
        """Rows [start, stop) of a matrix in order, as float32 CSR without stored zeros."""
        self._refuse_other_shape(matrix)
        end = self.n_cells if stop is None else min(stop, self.n_cells)
        at_once = self._rows_at_once(matrix)
        for begin in range(start, end, at_once):
            until = min(begin + at_once, end)
            with _readable(self._path, _key(matrix)):
                values, first_row = self._rows(matrix, begin, until)
            for first in range(begin, until, rows_per_chunk):
                with _readable(self._path, _key(matrix)):
                    last = min(first + rows_per_chunk, until)
                    chunk = to_csr(values[first - first_row : last - first_row], own=True)
                yield chunk

    def release(self) -> None:
        """Nothing of a file stays in memory."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _refuse_other_shape(self, matrix: str) -> None:
        """Refuse a matrix that is not one of these cells and genes."""
        with _readable(self._path, _key(matrix)):
            stored = self._file[_key(matrix)]
            shape = stored.shape if _is_dense(stored) else tuple(stored.attrs["shape"])
            expected = (self.n_cells, len(self.var(matrix)))
            if tuple(shape) != expected:
                message = (
                    f"{self._path}: '{_key(matrix)}' is {' x '.join(map(str, shape))}, obs and var "
                    f"make it {expected[0]} x {expected[1]}; write the file again by AnnData"
                )
                raise DataError(message)

    def _rows_at_once(self, matrix: str) -> int:
        if not self.is_by_columns(matrix):
            return max(self.n_cells, 1)
        return max(self.n_cells * BY_COLUMNS_VALUES // max(self.stored_values(matrix), 1), 1)

    def _rows(self, matrix: str, start: int, stop: int) -> tuple[Any, int]:
        """Something to slice rows [start, stop) from, and which row its first one is."""
        stored = self._file[_key(matrix)]
        if _is_dense(stored):
            return stored, 0
        if self.is_by_columns(matrix):
            return rows_of_columns(stored, start, stop), start
        return StoredRows(stored), 0

    def _table(self, key: str) -> "pd.DataFrame":
        import pandas as pd

        table = self._element(key)
        if not isinstance(table, pd.DataFrame):
            message = f"{self._path}: '{key}' is no table; the file is damaged or was not written by AnnData"
            raise DataError(message)
        return table

    def _element(self, key: str) -> Any:  # noqa: ANN401 (whatever is stored there)
        from anndata.io import read_elem

        with _readable(self._path, key):
            return read_elem(self._file[key])


def _is_dense(stored: "h5py.Dataset | h5py.Group") -> bool:
    return not hasattr(stored, "keys")


def _open_h5ad(path: Path) -> CellSource:
    import h5py

    _refuse_unfit_path(path)
    try:
        is_hdf5 = h5py.is_hdf5(path)
        with path.open("rb"):
            pass
        if not is_hdf5:
            message = f"{path}: not an h5ad file; tfx reads AnnData files (adata.write_h5ad)"
            raise DataError(message)
        file = h5py.File(path, "r")
    except PermissionError:
        message = f"{path}: no permission to read this file; change its mode or owner"
        raise DataError(message) from None
    except OSError as error:
        message = f"{path}: damaged or truncated h5ad file ({_first_line(error)}); copy it again"
        raise DataError(message) from error
    try:
        with _readable(path, "obs"):
            return _source_of(path, file)
    except DataError:
        file.close()
        raise


def _source_of(path: Path, file: "h5py.File") -> CellSource:
    import h5py

    if "obs" not in file or "var" not in file:
        message = f"{path}: an HDF5 file but not an h5ad (no obs and var); write it with AnnData"
        raise DataError(message)
    if not isinstance(file["obs"], h5py.Group):
        # Written before anndata 0.7: its own reader knows those layouts.
        file.close()
        import anndata

        return AnnDataSource(anndata.read_h5ad(path), str(path))
    return H5adSource(path, file)


def _refuse_unfit_path(path: Path) -> None:
    if not path.exists():
        message = f"{path}: no such file; check the path"
        raise DataError(message)
    if path.is_dir():
        message = f"{path}: a folder, not an h5ad file; name the files in it ('{path}/*.h5ad')"
        raise DataError(message)


@contextmanager
def _readable(path: Path, key: str) -> Iterator[None]:
    """Turn the many errors of a damaged file into one sentence."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        message = (
            f"{path}: '{key}' cannot be read ({_first_line(error)}); the file is damaged or was not "
            f"written by AnnData"
        )
        raise DataError(message) from error


def _holds_matrix(stored: "h5py.Dataset | h5py.Group | None") -> bool:
    if stored is None or stored.attrs.get("encoding-type") == "null":
        return False
    return hasattr(stored, "shape") or "indptr" in stored


def _key(matrix: str) -> str:
    return "raw/X" if matrix == "raw" else matrix


def version_of(distribution: str) -> str:
    """Version of an installed distribution, or "unknown"."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
