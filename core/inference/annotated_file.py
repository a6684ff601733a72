"""An annotated copy of an .h5ad file, written under a temporary name and renamed when it is complete.

The file's matrices are copied as bytes and never read; additions are written into the copy, cells block by
block. Names that exist already are an error before anything is computed.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.cells.file_patterns import BUILTIN_PREFIX
from core.errors import ConfigurationError, MachineError
from core.files import replacing

#: Takes which cells, and their rows, block by block.
Write = Callable[[slice, NDArray[np.float32]], None]


@contextmanager
def annotated_copy(source: str, target: Path) -> Iterator["AnnotatedCopy"]:
    """Copy an .h5ad file, or "builtin:NAME", and give the copy; ``target`` is whole, or as it was.

    Raises
    ------
    MachineError
        The copy cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            if source.startswith(BUILTIN_PREFIX):
                from core.cells.builtin import load_builtin

                load_builtin(source).write_h5ad(partial)
            else:
                shutil.copyfile(source, partial)
            with h5py.File(partial, "r+") as file:
                yield AnnotatedCopy(source, file)
    except OSError as error:  # h5py's too, of a full disk
        message = f"{target} cannot be written ({error.strerror or error})"
        raise MachineError(message) from error


class AnnotatedCopy:
    """The open copy of a file, to which columns, arrays and facts are added."""

    def __init__(self, source: str, file: h5py.File) -> None:
        self._source, self._file = source, file

    @property
    def n_genes(self) -> int:
        """Genes of X."""
        index = self._file["var"][self._file["var"].attrs["_index"]]
        return len(index["codes"] if hasattr(index, "keys") else index)

    def check_free(self, *names: str, remedy: str) -> None:
        """Check that the file has none of the names ("obs/tfx_sex"), or raise a ConfigurationError."""
        if taken := [name for name in names if name in self._file]:
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
        """Add a CSR matrix ("layers/tfx_denoised") with values in the same, ascending columns of every row.

        Return a function that writes (cells, columns) values, in the order of the cells.
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
