"""Write a store's arrays: each cell to its place in the permuted order, one chunk in memory.

The meaning of the arrays is documented in `store`; what goes into them `prepare` decides.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.manifest import MANIFEST_NAME, Manifest
from core.cells.store import LARGE_COUNT, TRUTH_NAME, gene_index_type
from core.errors import ConfigurationError, MachineError

__all__ = ["ArrayWriter", "publish", "write_array", "write_manifest"]


class ArrayWriter:
    """The CSR arrays of a store, filled cell by cell in any order.

    Parameters
    ----------
    folder
        Where the arrays are made.
    values_per_cell
        (cells,), stored values of each cell, in the store's order.
    n_genes
        Columns.
    value_kind
        "counts" or "log1p".
    """

    def __init__(
        self,
        folder: Path,
        values_per_cell: NDArray[np.int64],
        n_genes: int,
        *,
        value_kind: Literal["counts", "log1p"],
    ) -> None:
        self._folder = folder
        self.indptr = np.concatenate(([0], np.cumsum(values_per_cell))).astype(np.int64)
        n_values = int(self.indptr[-1])
        self._counts = value_kind == "counts"
        value_type: type[np.uint16 | np.float32] = np.uint16 if self._counts else np.float32
        _refuse_full_disk(folder, n_values * 8 + len(values_per_cell) * 64)
        write_array(folder, "indptr", self.indptr)
        self._genes = _new_array(folder, "genes", n_values, gene_index_type(n_genes))
        self._values = _new_array(folder, "values", n_values, value_type)
        self._large: list[tuple[NDArray[np.int64], NDArray[np.uint32]]] = []

    def write(self, chunk: sparse.csr_matrix, places: NDArray[np.int64]) -> None:
        """Write the cells of a chunk.

        Parameters
        ----------
        chunk
            (cells, genes of the store), columns ascending within each cell.
        places
            (cells,), row of each cell in the store.
        """
        genes = chunk.indices.astype(self._genes.dtype)
        values = chunk.data
        starts = self.indptr[places]
        if self._counts:
            large = np.flatnonzero(values >= LARGE_COUNT)
            if len(large):
                cell = np.searchsorted(chunk.indptr, large, side="right") - 1
                positions = starts[cell] + large - chunk.indptr[cell]
                self._large.append((positions, values[large].astype(np.uint32)))
            values = np.minimum(values, LARGE_COUNT).astype(np.uint16)
        bounds = chunk.indptr.tolist()
        for row, start in enumerate(starts.tolist()):
            first, last = bounds[row], bounds[row + 1]
            self._genes[start : start + last - first] = genes[first:last]
            self._values[start : start + last - first] = values[first:last]

    def finish(self) -> None:
        """Flush the arrays and write the side table of large counts."""
        positions = np.concatenate([np.empty(0, np.int64), *(at for at, _ in self._large)])
        counts = np.concatenate([np.empty(0, np.uint32), *(count for _, count in self._large)])
        order = np.argsort(positions)
        write_array(self._folder, "large_at", positions[order])
        write_array(self._folder, "large_values", counts[order])
        for array in (self._genes, self._values):
            if isinstance(array, np.memmap):
                array.flush()


def write_array(folder: Path, name: str, array: NDArray[Any]) -> None:
    """Write one array of a store."""
    np.save(folder / f"{name}.npy", array, allow_pickle=False)


def write_manifest(folder: Path, manifest: Manifest, truth: Mapping[str, Any] | None) -> None:
    """Write the manifest, and the truth of simulated cells beside it."""
    if truth is not None:
        text = json.dumps(truth, indent=1, ensure_ascii=False) + "\n"
        (folder / TRUTH_NAME).write_text(text, encoding="utf-8")
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


@contextmanager
def publish(destination: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder to fill that appears at `destination` whole, or not at all.

    Whatever ends the block early, Ctrl-C included, leaves nothing behind, and an existing store as
    it was.

    Raises
    ------
    ConfigurationError
        `destination` exists and may not be replaced: `overwrite` is off, or it is no store.
    MachineError
        The folder cannot be written, or the disk is full.
    """
    replaceable = overwrite and (destination / MANIFEST_NAME).exists()
    if destination.exists() and not replaceable and not _is_empty_folder(destination):
        todo = "give another folder" if overwrite else "give another folder or overwrite it"
        what = "a store of other cells or settings" if _is_store(destination) else "not a store"
        message = f"{destination}: exists and is {what}; {todo}"
        raise ConfigurationError(message)
    made = _missing_parents(destination)
    partial = destination.with_name(f"{destination.name}.partial-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process with our number
        partial.mkdir(parents=True)
        yield partial
        _swap(partial, destination)
    except OSError as error:
        _clean(partial, made)
        if error.filename is None and error.errno is None:
            raise  # not about a file: a fault of ours
        message = f"{destination}: the store cannot be written ({error.strerror or error})"
        raise MachineError(message) from error
    except BaseException:
        _clean(partial, made)
        raise


def _swap(partial: Path, destination: Path) -> None:
    if not destination.exists():
        partial.rename(destination)
        return
    old = destination.with_name(f"{destination.name}.old-{os.getpid()}")
    destination.rename(old)
    try:
        partial.rename(destination)
    except BaseException:
        old.rename(destination)
        raise
    shutil.rmtree(old)


def _clean(partial: Path, made: list[Path]) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    for folder in made:
        if _is_empty_folder(folder):
            folder.rmdir()


def _missing_parents(destination: Path) -> list[Path]:
    """Parents that do not exist yet, innermost first."""
    return [parent for parent in destination.parents if not parent.exists()]


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _is_store(path: Path) -> bool:
    return (path / MANIFEST_NAME).exists()


def _new_array(folder: Path, name: str, length: int, dtype: Any) -> NDArray[Any]:  # noqa: ANN401
    path = folder / f"{name}.npy"
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(length,))


def _refuse_full_disk(folder: Path, n_bytes: int) -> None:
    # A write to a map on a full disk kills the process without a word, so ask first.
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        message = (
            f"{folder.parent}: the store needs {n_bytes / 1e9:.2f} GB but the disk has "
            f"{free / 1e9:.2f} GB free; free some space or give another folder"
        )
        raise MachineError(message)
