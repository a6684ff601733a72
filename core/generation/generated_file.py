"""Write any number of generated cells to an .h5ad file, in constant memory, and read such files.

While cells are being generated, finished ones are kept in a folder ``FILE.h5ad.partial`` beside the file:

    request.json    the request and the hash of the weights
    progress.json   cells and values that are complete; replaced after every part
    values.f32, genes.i32   the expression, row after row; lengths.i32: values of each cell
    codes.i32       (cells, phenotypes); library_sizes.f32: of each cell

Anything beyond what progress.json says is cut off when the work is resumed, so that a kill at any moment
costs one part. Parts end where batches end: a resumed file is the same, byte for byte. At the end the
.h5ad is assembled inside the folder and renamed.
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
from core.files import free_space, plain_json, write_json
from core.generation.cell_generator import COUNTS, GENERATION_KEY, CellGenerator
from core.generation.cell_sizes import log_values
from core.progress import Listener, ProgressEvent, ignore_progress

logger = logging.getLogger(__name__)

#: Approximate number of cells between two writes of progress.json.
_PART_CELLS = 1_024
#: Values copied at once into the .h5ad.
_COPIED_VALUES = 1 << 20
#: Rows of a chunk of the .h5ad.
_CHUNK = 65_536
_FLOAT, _INTEGER = np.dtype("<f4"), np.dtype("<i4")
_FILES = {
    "values": _FLOAT,
    "genes": _INTEGER,
    "lengths": _INTEGER,
    "codes": _INTEGER,
    "library_sizes": _FLOAT,
}


@dataclass(frozen=True)
class _Done:
    """How much of the partial files is complete."""

    cells: int = 0
    values: int = 0


def partial_folder(output: Path) -> Path:
    """Return the folder of the finished cells while ``output`` is incomplete."""
    return output.with_name(f"{output.name}.partial")


def discard_partial(output: Path) -> None:
    """Remove the finished cells of an incomplete file."""
    shutil.rmtree(partial_folder(output), ignore_errors=True)


def check_disk_space(made: CellGenerator, output: Path) -> None:
    """Check that the disk has room for the file and the partial files beside it.

    Raises
    ------
    MachineError
        They need more than is free.
    """
    counts = made.model.reference.bin_counts
    genes_per_cell = float((counts[:, 1:].sum(axis=1) / np.maximum(counts.sum(axis=1), 1)).sum())
    n_phenotypes = len(made.model.config.phenotypes)
    # Values and their genes, twice; codes, lengths and names.
    needed = made.request.n_cells * (2 * 8 * genes_per_cell + 8 * n_phenotypes + 40)
    nearest, free = free_space(output.absolute().parent)
    there = sum(path.stat().st_size for path in partial_folder(output).glob("*.[fi]32"))
    if free + there < needed:
        message = (
            f"{made.request.n_cells:,} cells need about {needed / 1e9:,.1f} GB (half of it for "
            f"parts that are removed at the end) but the disk of {nearest} has {free / 1e9:,.1f} GB "
            f"free; ask for fewer, free some space or choose another place"
        )
        raise MachineError(message)


def write_generated(
    made: CellGenerator,
    output: Path,
    *,
    restart: bool = False,
    on_progress: Listener = ignore_progress,
) -> None:
    """Generate the cells of a request into an .h5ad file; an interrupted attempt is resumed.

    An older file is replaced when the new one is complete.

    Parameters
    ----------
    restart
        Remove unfinished cells of another request instead of raising.

    Raises
    ------
    ConfigurationError
        There are unfinished cells of another request.
    DataError
        The unfinished cells are damaged.
    MachineError
        Another process writes the same file, or the disk has no room.
    KeyboardInterrupt
        Ctrl-C; finished cells are kept, and the same call resumes.
    """
    check_disk_space(made, output)
    folder = partial_folder(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_writer(folder, output):
            try:
                done = _unfinished(made, folder, restart=restart)
                _draw(made, folder, done, on_progress)
                assembled = folder / "assembled.h5ad"
                _assemble(made, folder, assembled, on_progress)
                assembled.replace(output)
            except BaseException as error:
                _clean_up(folder, warn=isinstance(error, KeyboardInterrupt))
                raise
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        stays = f"; finished cells stay in {folder}, and the same command resumes"
        message = f"{output} cannot be written ({reason}){stays if folder.exists() else ''}"
        raise MachineError(message) from error


def read_first_cells(path: Path, n_cells: int) -> sparse.csr_matrix:
    """Read the expression of the first cells of a generated file, as log values if it holds counts."""
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


def _fingerprint(made: CellGenerator) -> dict[str, Any]:
    """Return what finished cells must have in common with a request to belong to it."""
    return plain_json(made.provenance() | {"batch_size": made.batch_size})


def _unfinished(made: CellGenerator, folder: Path, *, restart: bool) -> _Done:
    """Return how much an earlier attempt at the same request completed."""
    path = folder / "request.json"
    wanted = _fingerprint(made)
    done = _read_done(folder)
    if done.cells and not restart and _read_json(path) != wanted:
        message = (
            f"{folder} holds {done.cells:,} unfinished cells of another request or model; finish "
            f"that one first, add --overwrite to start again, or choose another name"
        )
        raise ConfigurationError(message)
    if not done.cells or _read_json(path) != wanted:
        for name in _FILES:
            _part(folder, name).unlink(missing_ok=True)
        (folder / "progress.json").unlink(missing_ok=True)
        write_json(path, wanted)
        return _Done()
    for name, size in _sizes(made, done).items():
        if _part(folder, name).stat().st_size < size:
            message = f"{folder}: {name} is shorter than progress.json says; remove the folder"
            raise DataError(message)
    logger.info("resuming after %s finished cells", f"{done.cells:,}")
    return done


def _draw(made: CellGenerator, folder: Path, done: _Done, on_progress: Listener) -> None:
    """Append the missing cells."""
    with ExitStack() as stack:
        files = {}
        for name, size in _sizes(made, done).items():
            _part(folder, name).touch()
            files[name] = stack.enter_context(_part(folder, name).open("r+b"))
            files[name].truncate(size)
            files[name].seek(size)
        cells, values = done.cells, done.values
        for block in made.blocks(start=done.cells, on_progress=on_progress):
            rows = block.expression
            arrays = {
                "values": rows.data,
                "genes": rows.indices,
                "lengths": np.diff(rows.indptr),
                "codes": block.codes,
                "library_sizes": block.library_size,
            }
            for name, array in arrays.items():
                files[name].write(np.ascontiguousarray(array, dtype=_FILES[name]).tobytes())
            cells, values = block.cells.stop, values + rows.nnz
            if cells - done.cells >= _PART_CELLS or cells == made.request.n_cells:
                for file in files.values():
                    file.flush()
                    os.fsync(file.fileno())
                done = _Done(cells, values)
                write_json(folder / "progress.json", {"cells": cells, "values": values})


def _sizes(made: CellGenerator, done: _Done) -> dict[str, int]:
    """Bytes of each partial file at this progress."""
    per_cell = {"codes": len(made.model.config.phenotypes), "lengths": 1, "library_sizes": 1}
    return {
        name: (per_cell[name] * done.cells if name in per_cell else done.values) * kind.itemsize
        for name, kind in _FILES.items()
    }


def _assemble(made: CellGenerator, folder: Path, path: Path, on_progress: Listener) -> None:
    """Assemble the .h5ad from the parts; anndata writes all but X and obs."""
    from anndata import AnnData  # 400 ms

    n_cells, n_genes = made.request.n_cells, made.model.config.n_genes
    n_values = _read_done(folder).values
    AnnData(
        X=sparse.csr_matrix(np.zeros((0, n_genes), dtype=np.float32)),
        obs=pd.DataFrame(index=pd.Index([], dtype=str)),
        var=made.genes(),
        uns={GENERATION_KEY: made.provenance()},
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
                if n_values > _COPIED_VALUES:  # else it takes no time
                    on_progress(ProgressEvent("writing values", done, 2 * n_values))
        indptr = _column(matrix, "indptr", n_cells + 1, np.dtype("<i8"))
        end = 0
        for at, lengths in _pieces(_part(folder, "lengths"), _FILES["lengths"], _COPIED_VALUES):
            ends = end + np.cumsum(lengths, dtype=np.int64)
            indptr[at + 1 : at + 1 + len(ends)] = ends
            end = int(ends[-1])
        _write_obs(made, folder, file.create_group("obs"))


def _write_obs(made: CellGenerator, folder: Path, obs: h5py.Group) -> None:
    """Write names, labels and the mark of every cell, as anndata writes a data frame."""
    from anndata.io import write_elem

    n_cells, phenotypes = made.request.n_cells, made.model.config.phenotypes
    obs.attrs.update(
        {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
    )
    text = h5py.string_dtype(encoding="utf-8")
    sizes = ["library_size"] if made.has_library_size else []
    obs.attrs.create("column-order", [*phenotypes, "synthetic", *sizes], dtype=text)
    names = _column(obs, "_index", n_cells, text, encoding="string-array")
    mark = _column(obs, "synthetic", n_cells, np.dtype(bool), encoding="array")
    code_columns = []
    for name, values in phenotypes.items():
        label = obs.create_group(name)
        label.attrs.update(
            {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
        )
        write_elem(label, "categories", np.array(list(values), dtype=object))
        kind = np.min_scalar_type(-len(values) - 1)
        code_columns.append(_column(label, "codes", n_cells, kind, encoding="array"))
    if sizes:
        column = _column(obs, "library_size", n_cells, _FLOAT, encoding="array")
        for at, some in _pieces(_part(folder, "library_sizes"), _FLOAT, _COPIED_VALUES):
            column[at : at + len(some)] = some
    codes: NDArray[np.int32] = np.zeros((n_cells, 0), dtype=_INTEGER)
    if phenotypes:
        shape = (n_cells, len(phenotypes))
        codes = np.memmap(_part(folder, "codes"), dtype=_INTEGER, mode="r", shape=shape)
    for first in range(0, n_cells, _CHUNK):
        cells = range(first, min(first + _CHUNK, n_cells))
        names[first : cells.stop] = made.cell_names(cells)
        mark[first : cells.stop] = True
        for slot, column in enumerate(code_columns):
            column[first : cells.stop] = codes[first : cells.stop, slot]


def _column(
    group: h5py.Group, name: str, length: int, kind: np.dtype[Any], *, encoding: str = ""
) -> h5py.Dataset:
    """Make a compressed dataset that is filled piece by piece."""
    if length == 0:  # h5py allows no chunks of length 0
        column = group.create_dataset(name, (0,), kind)
    else:
        chunk = (min(length, _CHUNK),)
        column = group.create_dataset(name, (length,), kind, chunks=chunk, compression="gzip")
    if encoding:
        column.attrs.update({"encoding-type": encoding, "encoding-version": "0.2.0"})
    return column


def _pieces(path: Path, kind: np.dtype[Any], length: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Read a partial file piece by piece: index of the first value, values."""
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


def _clean_up(folder: Path, *, warn: bool) -> None:
    """Keep the folder if it holds finished cells."""
    n_done = _read_done(folder).cells
    if n_done == 0:
        shutil.rmtree(folder, ignore_errors=True)
    elif warn:
        logger.warning(
            "stopped; %s finished cells stay in %s, and the same command resumes",
            f"{n_done:,}",
            folder,
        )
