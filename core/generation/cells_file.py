"""Any number of generated cells to an .h5ad file, in memory that does not grow with them.

While the work lasts, finished cells lie in a folder ``FILE.h5ad.partial`` beside the file:

    request.json    what is being generated, by which weights
    progress.json   cells and values that are whole; replaced after every part
    values.f32, genes.i32   the expression, row after row; lengths.i32: values of each cell
    codes.i32       (cells, phenotypes); depths.f32: library size of each cell

Whatever lies beyond what progress.json says is cut off when the work goes on, so that a kill at any
moment costs one part. Parts end where batches end: the cells of a resumed file are the same, byte for
byte. At the end the .h5ad is put together inside the folder and renamed.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from scipy import sparse

from core.errors import ConfigurationError, DataError, MachineError
from core.files import plain_json, write_json
from core.generation.cells import GENERATION_KEY, CellSource
from core.generation.counts import COUNTS, log_values
from core.progress import Listener, ProgressEvent, ignore_progress

__all__ = [
    "check_disk_space",
    "discard_partial",
    "partial_folder",
    "read_first_cells",
    "write_generated",
]

logger = logging.getLogger(__name__)

#: About so many cells are made between two writes of progress.json.
_PART_CELLS = 1_024
#: Values copied at once into the .h5ad.
_COPIED_VALUES = 1 << 20
_FILES = {
    "values": np.dtype("<f4"), "genes": np.dtype("<i4"), "lengths": np.dtype("<i4"),
    "codes": np.dtype("<i4"), "depths": np.dtype("<f4"),
}  # fmt: skip


@dataclass(frozen=True)
class _Done:
    """What is whole of the partial files."""

    cells: int = 0
    values: int = 0


def partial_folder(output: Path) -> Path:
    """Return where the finished cells of ``output`` lie while the work lasts."""
    return output.with_name(f"{output.name}.partial")


def discard_partial(output: Path) -> None:
    """Throw the finished cells of an unfinished file away."""
    shutil.rmtree(partial_folder(output), ignore_errors=True)


def check_disk_space(source: CellSource, output: Path) -> None:
    """Refuse a file that the disk has no room for.

    Raises
    ------
    MachineError
        Cells while the work lasts, and the file beside them, need more than is free.
    """
    counts = source.model.reference.bin_counts
    on_per_cell = float((counts[:, 1:].sum(axis=1) / np.maximum(counts.sum(axis=1), 1)).sum())
    n_phenotypes = len(source.model.config.phenotypes)
    # Values and their genes, twice; codes, lengths and names.
    needed = source.request.n_cells * (2 * 8 * on_per_cell + 8 * n_phenotypes + 40)
    nearest = next(folder for folder in output.absolute().parents if folder.exists())
    there = sum(path.stat().st_size for path in partial_folder(output).glob("*.[fi]32"))
    free = shutil.disk_usage(nearest).free
    if free + there < needed:
        message = (
            f"{source.request.n_cells:,} cells need about {needed / 1e9:,.1f} GB (half of it for "
            f"parts that are removed at the end) but the disk of {nearest} has {free / 1e9:,.1f} GB "
            f"free; ask for fewer, free some space or choose another place"
        )
        raise MachineError(message)


def write_generated(
    source: CellSource,
    output: Path,
    *,
    restart: bool = False,
    on_progress: Listener = ignore_progress,
) -> None:
    """Generate the cells of a request into an .h5ad file, going on where an earlier attempt stopped.

    Parameters
    ----------
    source
        The cells.
    output
        The file; one that is there is replaced when the new one is whole.
    restart
        Throw unfinished cells of another request away, instead of refusing.
    on_progress
        Hears "generating cells" and "writing values".

    Raises
    ------
    ConfigurationError
        Unfinished cells of another request lie there.
    DataError
        The unfinished cells are damaged.
    MachineError
        Another process writes the same file, or the disk has no room.
    KeyboardInterrupt
        Ctrl-C; finished cells stay, and the same call goes on from there.
    """
    check_disk_space(source, output)
    folder = partial_folder(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_writer(folder, output):
            try:
                done = _unfinished(source, folder, restart=restart)
                _draw(source, folder, done, on_progress)
                assembled = folder / "assembled.h5ad"
                _assemble(source, folder, assembled, on_progress)
                assembled.replace(output)
            except BaseException as error:
                _leave(folder, told=isinstance(error, KeyboardInterrupt))
                raise
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        stays = f"; what is done stays in {folder}, and the same command goes on from there"
        message = f"{output} cannot be written ({reason}){stays if folder.exists() else ''}"
        raise MachineError(message) from error


def read_first_cells(path: Path, n_cells: int) -> sparse.csr_matrix:
    """Read the expression of the first cells of a file that was written here; counts come as log values."""
    with h5py.File(path) as file:
        matrix = file["X"]
        n_cells = min(n_cells, int(matrix.attrs["shape"][0]))
        indptr = matrix["indptr"][: n_cells + 1]
        end = int(indptr[-1])
        shape = (n_cells, int(matrix.attrs["shape"][1]))
        cells = sparse.csr_matrix((matrix["data"][:end], matrix["indices"][:end], indptr), shape)
        if file[f"uns/{GENERATION_KEY}/values"].asstr()[()] == COUNTS:
            return log_values(cells, file["obs/library_size"][:n_cells])
        return cells


@contextmanager
def _only_writer(folder: Path, output: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        message = f"another process is writing {output}; wait for it, or choose another name"
        raise MachineError(message) from None


def _fingerprint(source: CellSource) -> dict[str, Any]:
    """Return what must be equal for finished cells to be those of a request."""
    return plain_json(source.provenance() | {"batch_size": source.batch_size})


def _unfinished(source: CellSource, folder: Path, *, restart: bool) -> _Done:
    """Find out how far an earlier attempt at the same request came."""
    path = folder / "request.json"
    wanted = _fingerprint(source)
    done = _read_done(folder)
    if done.cells and not restart and _read_json(path) != wanted:
        message = (
            f"{folder} holds {done.cells:,} unfinished cells of another request or model; finish "
            f"that one first, add --overwrite to begin anew, or choose another name"
        )
        raise ConfigurationError(message)
    if not done.cells or _read_json(path) != wanted:
        for name in _FILES:
            _part(folder, name).unlink(missing_ok=True)
        (folder / "progress.json").unlink(missing_ok=True)
        write_json(path, wanted)
        return _Done()
    for name, size in _sizes(source, done).items():
        if _part(folder, name).stat().st_size < size:
            message = f"{folder}: {name} is shorter than progress.json says; remove the folder"
            raise DataError(message)
    logger.info("going on after %s cells that are done", f"{done.cells:,}")
    return done


def _draw(source: CellSource, folder: Path, done: _Done, on_progress: Listener) -> None:
    """Append the cells that are not there yet."""
    with ExitStack() as stack:
        files = {}
        for name, size in _sizes(source, done).items():
            _part(folder, name).touch()
            files[name] = stack.enter_context(_part(folder, name).open("r+b"))
            files[name].truncate(size)
            files[name].seek(size)
        cells, values = done.cells, done.values
        for block in source.blocks(start=done.cells, on_progress=on_progress):
            rows = block.expression
            arrays = {
                "values": rows.data, "genes": rows.indices, "lengths": np.diff(rows.indptr),
                "codes": block.codes, "depths": block.library_size,
            }  # fmt: skip
            for name, array in arrays.items():
                files[name].write(np.ascontiguousarray(array, dtype=_FILES[name]).tobytes())
            cells, values = block.cells.stop, values + rows.nnz
            if cells - done.cells >= _PART_CELLS or cells == source.request.n_cells:
                for file in files.values():
                    file.flush()
                    os.fsync(file.fileno())
                done = _Done(cells, values)
                write_json(folder / "progress.json", {"cells": cells, "values": values})


def _sizes(source: CellSource, done: _Done) -> dict[str, int]:
    """Bytes of each partial file when ``done`` is whole."""
    n_codes = len(source.model.config.phenotypes) * done.cells
    items = {"values": done.values, "genes": done.values, "lengths": done.cells, "codes": n_codes}
    items["depths"] = done.cells
    return {name: n * _FILES[name].itemsize for name, n in items.items()}


def _assemble(source: CellSource, folder: Path, path: Path, on_progress: Listener) -> None:
    """Put the .h5ad together from the parts; all but X and obs is anndata's own work."""
    from anndata import AnnData  # 400 ms

    n_cells, n_genes = source.request.n_cells, source.model.config.n_genes
    n_values = _read_done(folder).values
    AnnData(
        X=sparse.csr_matrix(np.zeros((0, n_genes), dtype=np.float32)),
        obs=pd.DataFrame(index=pd.Index([], dtype=str)),
        var=source.genes(),
        uns={GENERATION_KEY: source.provenance()},
    ).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file["X"], file["obs"]
        matrix = file.create_group("X")
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        matrix.attrs["shape"] = np.array([n_cells, n_genes], dtype=np.int64)
        for name, part in (("data", "values"), ("indices", "genes")):
            target = _column(matrix, name, n_values, _FILES[part])
            before = n_values if part == "genes" else 0
            for at, values in _pieces(_part(folder, part), _FILES[part], _COPIED_VALUES):
                target[at : at + len(values)] = values
                done = before + at + len(values)
                if n_values > _COPIED_VALUES:  # else it is over at once
                    on_progress(ProgressEvent("writing values", done, 2 * n_values))
        indptr = _column(matrix, "indptr", n_cells + 1, np.dtype("<i8"))
        end = 0
        for at, lengths in _pieces(_part(folder, "lengths"), _FILES["lengths"], _COPIED_VALUES):
            ends = end + np.cumsum(lengths, dtype=np.int64)
            indptr[at + 1 : at + 1 + len(ends)] = ends
            end = int(ends[-1])
        _write_obs(source, folder, file.create_group("obs"))


def _write_obs(source: CellSource, folder: Path, obs: h5py.Group) -> None:
    """Write names, labels and the mark of every cell, as anndata writes a data frame."""
    from anndata.io import write_elem

    n_cells, phenotypes = source.request.n_cells, source.model.config.phenotypes
    obs.attrs.update(
        {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
    )
    text = h5py.string_dtype(encoding="utf-8")
    depths = ["library_size"] if source.has_library_size else []
    obs.attrs.create("column-order", [*phenotypes, "synthetic", *depths], dtype=text)
    names = _column(obs, "_index", n_cells, text)
    names.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    mark = _column(obs, "synthetic", n_cells, np.dtype(bool))
    mark.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    code_columns = []
    for name, values in phenotypes.items():
        label = obs.create_group(name)
        label.attrs.update(
            {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
        )
        write_elem(label, "categories", np.array(list(values), dtype=object))
        column = _column(label, "codes", n_cells, np.min_scalar_type(-len(values) - 1))
        column.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        code_columns.append(column)
    if depths:
        column = _column(obs, "library_size", n_cells, _FILES["depths"])
        column.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for at, sizes in _pieces(_part(folder, "depths"), _FILES["depths"], _COPIED_VALUES):
            column[at : at + len(sizes)] = sizes
    step = 65_536
    codes = np.memmap(
        _part(folder, "codes"), dtype=_FILES["codes"], mode="r", shape=(n_cells, len(phenotypes))
    ) if phenotypes else np.zeros((n_cells, 0), dtype=np.int32)  # fmt: skip
    for first in range(0, n_cells, step):
        cells = range(first, min(first + step, n_cells))
        names[first : cells.stop] = source.cell_names(cells)
        mark[first : cells.stop] = True
        for slot, column in enumerate(code_columns):
            column[first : cells.stop] = codes[first : cells.stop, slot]


def _column(group: h5py.Group, name: str, length: int, kind: np.dtype[Any]) -> h5py.Dataset:
    """Make a compressed dataset that is filled piece by piece."""
    if length == 0:  # which has no pieces
        return group.create_dataset(name, (0,), kind)
    chunk = (min(length, 65_536),)
    return group.create_dataset(name, (length,), kind, chunks=chunk, compression="gzip")


def _pieces(path: Path, kind: np.dtype[Any], length: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Read a partial file piece by piece: place of the first value, values."""
    at = 0
    with path.open("rb") as file:
        while len(values := np.frombuffer(file.read(length * kind.itemsize), dtype=kind)):
            yield at, values
            at += len(values)


def _part(folder: Path, name: str) -> Path:
    return folder / f"{name}.{_FILES[name].kind}32"


def _read_done(folder: Path) -> _Done:
    record = _read_json(folder / "progress.json")
    return _Done(int(record["cells"]), int(record["values"])) if record else _Done()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        message = f"{path}: cannot be read ({error}); remove the folder {path.parent}"
        raise DataError(message) from error
    return record if isinstance(record, dict) else {}


def _leave(folder: Path, *, told: bool) -> None:
    """Keep the folder if it holds finished cells, and say so."""
    n_done = _read_done(folder).cells
    if n_done == 0:
        shutil.rmtree(folder, ignore_errors=True)
    elif told:
        logger.warning(
            "stopped; %s cells that are done stay in %s, and the same command goes on from there",
            f"{n_done:,}",
            folder,
        )
