"""An annotated copy of an .h5ad file, written under a temporary name and renamed when it is complete.

The file's matrices are copied as bytes and never read; additions are written into the copy, cells block by
block. Names that exist already are an error before anything is computed.
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

Write = Callable[[slice, NDArray[np.float32]], None]


class AnnotatedCopy:
    """The copy; a context manager that renames it when the block succeeds, else removes it.

    Parameters
    ----------
    source
        An .h5ad file, or "builtin:NAME".
    target
        Path of the copy.

    Raises
    ------
    MachineError
        The copy cannot be written.
    """

    def __init__(self, source: str | Path, target: Path) -> None:
        self._source, self._target = source, target
        self._partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
        self._file: Any = None

    def __enter__(self) -> Self:
        """Copy the file."""
        with self._naming_failures():
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
                with self._naming_failures():
                    self._partial.replace(self._target)
        finally:
            self._partial.unlink(missing_ok=True)
        if isinstance(error, OSError):  # h5py's, of a full disk
            raise self._failure(error) from error

    @contextmanager
    def _naming_failures(self) -> Iterator[None]:
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
        index = self._file["var"][self._file["var"].attrs["_index"]]
        return len(index["codes"] if hasattr(index, "keys") else index)

    def check_free(self, *names: str, remedy: str) -> None:
        """Check that the file has none of the names ("obs/tfx_sex", "obsm/X_tfx").

        Raises
        ------
        ConfigurationError
            It has one; the message ends in ``remedy``.
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
            is_category = isinstance(values, pd.Categorical)
            write_elem(group, name, values if is_category else np.asarray(values))
        order = [str(name) for name in group.attrs["column-order"]]
        order += [name for name in columns if name not in order]
        group.attrs["column-order"] = np.array(order, dtype=h5py.string_dtype())

    def add_array(self, name: str, shape: tuple[int, int]) -> Write:
        """Add a float32 array ("obsm/X_tfx"); return a function that writes some of its rows."""
        folder, _, key = name.rpartition("/")
        chunks = (max(min(shape[0], 4096), 1), max(shape[1], 1))
        stored = self._group(folder).create_dataset(
            key, shape=shape, dtype=np.float32, chunks=chunks, compression="gzip"
        )
        stored.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return stored.__setitem__

    def add_sparse(self, name: str, shape: tuple[int, int], columns: NDArray[np.int64]) -> Write:
        """Add a CSR matrix ("layers/tfx_denoised") with values in the same columns of every row.

        Parameters
        ----------
        columns
            Ascending: those with values.

        Returns
        -------
        A function that writes (cells, columns) values, in the order of the cells.
        """
        folder, _, key = name.rpartition("/")
        group = self._group(folder).create_group(key)
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array(shape)
        n_values = shape[0] * len(columns)
        chunks = (max(min(n_values, 2**18), 1),)
        data, indices = (
            group.create_dataset(
                part, shape=(n_values,), dtype=kind, chunks=chunks, compression="gzip"
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
        """Add a dictionary of plain values to uns; it replaces one of the same name."""
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
