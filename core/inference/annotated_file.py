"""A copy of an .h5ad file with something added, made beside its place and renamed when it is whole.

The file's matrices are copied as bytes and never read; what is added is written into the copy, cells
block by block. Names that are taken are refused before anything is computed.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.file_patterns import BUILTIN_PREFIX
from core.errors import ConfigurationError, MachineError

__all__ = ["AnnotatedCopy"]

_COMPRESSION = "gzip"


class AnnotatedCopy:
    """The copy; a context manager that renames it when the block ends well, else removes it.

    Parameters
    ----------
    source
        An .h5ad file, or "builtin:NAME".
    target
        Where the copy will be.

    Raises
    ------
    ConfigurationError
        A name that is to be added is there already (`refuse_taken`).
    MachineError
        The copy cannot be written.
    """

    def __init__(self, source: str | Path, target: Path) -> None:
        self._source, self._target = source, target
        self._partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
        self._file: Any = None

    def __enter__(self) -> Self:
        """Copy the file."""
        with self._telling():
            self._target.parent.mkdir(parents=True, exist_ok=True)
            if str(self._source).startswith(BUILTIN_PREFIX):
                from core.cells.builtin import load_builtin

                load_builtin(str(self._source)).write_h5ad(self._partial)
            else:
                shutil.copyfile(self._source, self._partial)
            self._file = h5py.File(self._partial, "r+")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Rename the copy, or remove it."""
        try:
            if self._file is not None:
                self._file.close()
            if error is None:
                with self._telling():
                    self._partial.replace(self._target)
        finally:
            self._partial.unlink(missing_ok=True)
        if isinstance(error, OSError):  # h5py's, of a full disk
            raise self._failure(error) from error

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._partial.unlink(missing_ok=True)
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> MachineError:
        return MachineError(f"{self._target} cannot be written ({error.strerror or error})")

    @property
    def n_genes(self) -> int:
        """Genes of X."""
        return len(self._index("var"))

    def _index(self, table: str) -> Any:  # noqa: ANN401 (an h5py dataset or group)
        found = self._file[table][self._file[table].attrs["_index"]]
        return found["codes"] if hasattr(found, "keys") else found

    def refuse_taken(self, *names: str, remedy: str) -> None:
        """Refuse names ("obs/tfx_sex", "obsm/X_tfx") that the file has already.

        Raises
        ------
        ConfigurationError
            With ``remedy`` as the way out.
        """
        taken = [name for name in names if name in self._file]
        if taken:
            message = f"{self._source} has {', '.join(taken)} already; {remedy}"
            raise ConfigurationError(message)

    def add_columns(self, table: str, columns: Mapping[str, Any]) -> None:
        """Add columns to "obs" or "var"."""
        from anndata.io import write_elem

        group = self._file[table]
        for name, values in columns.items():
            write_elem(
                group, name, values if isinstance(values, pd.Categorical) else np.asarray(values)
            )
        order = [str(name) for name in group.attrs["column-order"]]
        group.attrs["column-order"] = np.array(
            [*order, *(name for name in columns if name not in order)], dtype=h5py.string_dtype()
        )

    def add_array(
        self, name: str, shape: tuple[int, int]
    ) -> Callable[[slice, NDArray[np.float32]], None]:
        """Add a float32 array ("obsm/X_tfx"); return what takes its rows, block by block."""
        folder, _, key = name.rpartition("/")
        group = self._group(folder)
        rows = max(min(shape[0], 4096), 1)
        stored = group.create_dataset(
            key, shape=shape, dtype=np.float32, chunks=(rows, max(shape[1], 1)),
            compression=_COMPRESSION,
        )  # fmt: skip
        stored.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

        def write(span: slice, values: NDArray[np.float32]) -> None:
            stored[span] = values

        return write

    def add_sparse(
        self, name: str, shape: tuple[int, int], columns: NDArray[np.int64]
    ) -> Callable[[slice, NDArray[np.float32]], None]:
        """Add a CSR matrix ("layers/tfx_denoised") that has values in some columns of every row.

        Parameters
        ----------
        name, shape
            Of the matrix.
        columns
            Ascending: which columns have values.

        Returns
        -------
        What takes (cells, columns) values, in the order of the cells.
        """
        folder, _, key = name.rpartition("/")
        group = self._group(folder).create_group(key)
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array(shape)
        n_values = shape[0] * len(columns)
        chunks = (max(min(n_values, 2**18), 1),)
        data, indices = (
            group.create_dataset(
                part, shape=(n_values,), dtype=kind, chunks=chunks, compression=_COMPRESSION
            )
            for part, kind in (("data", np.float32), ("indices", np.int32))
        )
        group.create_dataset("indptr", data=np.arange(shape[0] + 1, dtype=np.int64) * len(columns))

        def write(span: slice, values: NDArray[np.float32]) -> None:
            place = slice(span.start * len(columns), span.stop * len(columns))
            data[place] = values.ravel()
            indices[place] = np.tile(columns.astype(np.int32), len(values))

        return write

    def add_facts(self, key: str, facts: Mapping[str, Any]) -> None:
        """Add a dictionary of plain values to uns; an older one of that name goes."""
        from anndata.io import write_elem

        group = self._group("uns")
        if key in group:
            del group[key]
        write_elem(group, key, dict(facts))

    def _group(self, name: str) -> Any:  # noqa: ANN401 (an h5py group)
        group = self._file.require_group(name)
        if "encoding-type" not in group.attrs:
            group.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        return group
