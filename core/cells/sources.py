"""What every source of cells offers, whatever holds them, and the source that is an AnnData object.

A source names its matrices ("X", "raw", "layers/NAME") and gives any of them as CSR chunks. What the
values mean belongs to `matrix_state`.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy import sparse

from core.errors import DataError, TfxError
from core.wording import first_line

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

#: Values of a matrix stored by columns that are kept in memory.
BY_COLUMNS_VALUES = 2**25
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


class CellSource(Protocol):
    """Cells that are read a chunk at a time.

    To add a container: if AnnData's elements (obs, var, X, ...) are in an HDF5 or zarr group, give that
    group to `core.cells.stored_source.StoredSource`; if it fits into memory and a library reads it,
    give its AnnData object to `AnnDataSource`; else write a class with these members in a module of its
    own. Then recognise it in `core.cells.reading.open_source` and give its state in `fingerprint`
    there. Every error of the data is a DataError of one sentence that begins with `name`.
    """

    @property
    def name(self) -> str:
        """As the preset or the command line names it."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""

    @property
    def obs(self) -> "pd.DataFrame":
        """(cells, columns), all of them; `obs_columns` reads fewer."""

    @property
    def obs_names(self) -> "pd.Index[str]":
        """(cells,) names; no column is read."""

    def uns(self, key: str) -> Any:  # noqa: ANN401 (whatever is stored there)
        """Element of uns, or None."""

    def matrices(self) -> list[str]:
        """Names of the matrices: "X", "layers/NAME" by name, "raw"."""

    def var(self, matrix: str) -> "pd.DataFrame":
        """(genes, columns) of a matrix."""

    def obs_columns(self, names: Collection[str]) -> "pd.DataFrame":
        """(cells, those of the named columns that exist); ``attrs["columns"]`` lists all."""

    def stored(self, matrix: str) -> StoredMatrix:
        """How a matrix is stored."""

    def chunks(
        self, matrix: str, rows_per_chunk: int, *, start: int = 0, stop: int | None = None
    ) -> Iterator[sparse.csr_matrix]:
        """Rows [start, stop) of a matrix in order, as float32 CSR without stored zeros."""

    def release(self) -> None:
        """Drop what reading keeps in memory; further reading makes it again."""

    def close(self) -> None:
        """Close what was opened."""


class AnnDataSource:
    """Cells of an AnnData object, in memory or backed."""

    def __init__(self, adata: "AnnData", name: str) -> None:
        self.name = name
        self.n_cells = int(adata.n_obs)
        self._adata = adata
        self._converted: dict[str, Any] = {}

    @property
    def obs(self) -> "pd.DataFrame":
        obs: pd.DataFrame = self._adata.obs
        return obs

    @property
    def obs_names(self) -> "pd.Index[str]":
        names: pd.Index[str] = self._adata.obs_names
        return names

    def uns(self, key: str) -> Any:  # noqa: ANN401 (whatever is stored there)
        return self._adata.uns.get(key)

    def matrices(self) -> list[str]:
        names = [] if self._adata.X is None else ["X"]
        # AnnData 0.13 lists X among the layers, under None.
        layers = (name for name in self._adata.layers if name is not None)
        names += [f"layers/{name}" for name in sorted(layers)]
        return names + ([] if self._adata.raw is None else ["raw"])

    def var(self, matrix: str) -> "pd.DataFrame":
        var: pd.DataFrame = self._adata.raw.var if matrix == "raw" else self._adata.var
        return var

    def obs_columns(self, names: Collection[str]) -> "pd.DataFrame":
        return columns_of(self.obs, names)

    def stored(self, matrix: str) -> StoredMatrix:
        """How a matrix is stored; one by columns is transposed once, in memory."""
        values = self._matrix(matrix)
        n_values = values.nnz if hasattr(values, "nnz") else np.prod(values.shape)
        return StoredMatrix(int(n_values), is_sparse=hasattr(values, "format"))

    def chunks(
        self, matrix: str, rows_per_chunk: int, *, start: int = 0, stop: int | None = None
    ) -> Iterator[sparse.csr_matrix]:
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
        """Drop transposed matrices; further reading makes them again."""
        self._converted.clear()

    close = release  # the object itself is its owner's

    def _matrix(self, matrix: str) -> Any:  # noqa: ANN401 (any of AnnData's matrix types)
        if matrix == "X":
            return self._adata.X
        if matrix == "raw":
            return self._adata.raw.X
        return self._adata.layers[matrix.removeprefix("layers/")]


def to_anndata(source: CellSource) -> "AnnData":
    """Load obs, var and all matrices of a source into memory; values are float32."""
    import anndata

    matrices = {
        name: sparse.vstack(list(source.chunks(name, 8_192)), format="csr")
        for name in source.matrices()
    }
    layers = {name: one for name, one in matrices.items() if name.startswith("layers/")}
    first = "X" if "X" in matrices else next(iter(layers), None)
    if first is None:
        raise DataError(f"{source.name}: holds no matrix of values")
    adata = anndata.AnnData(
        matrices.get("X"),
        obs=source.obs,
        var=source.var(first),
        layers={name.removeprefix("layers/"): one for name, one in layers.items()},
    )
    if "raw" in matrices:
        adata.raw = anndata.AnnData(matrices["raw"], obs=source.obs[[]], var=source.var("raw"))
    return adata


@contextmanager
def in_one_sentence(what: str, remedy: str) -> Iterator[None]:
    """Turn the many errors of a library that reads files into a DataError: "WHAT (reason)REMEDY"."""
    try:
        yield
    except (TfxError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{what} ({first_line(error)}){remedy}") from error


def columns_of(obs: "pd.DataFrame", names: Collection[str]) -> "pd.DataFrame":
    """Copy those of the named columns that exist; ``attrs["columns"]`` lists all."""
    table = obs[[name for name in obs.columns if name in names]].copy()
    table.attrs["columns"] = [str(name) for name in obs.columns]
    return table


def to_csr(rows: Any, *, own: bool = False) -> sparse.csr_matrix:  # noqa: ANN401 (any matrix)
    """Turn rows of any kind into float32 CSR: columns ascending, no duplicates, no zeros.

    Rows that no other object holds (`own`) may be changed in place.
    """
    dense_or_sparse: Any = rows if sparse.issparse(rows) else np.atleast_2d(np.asarray(rows))
    matrix = sparse.csr_matrix(dense_or_sparse, dtype=np.float32, copy=not own)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix
