"""Write any number of generated cells to an .h5ad file, in constant memory, and read such files.

While cells are being generated, finished ones are kept in a folder ``FILE.h5ad.partial`` beside the file:

    request.json    the request and the hash of the weights
    parts.jsonl     a line per finished part: all cells and values so far, and a checksum of its bytes
    values.f32, genes.i32   the expression, row after row; lengths.i32: values of each cell
    codes.i32       (cells, phenotypes); library_sizes.f32: of each cell

When the work is resumed everything from the first part on that is missing or damaged is made again, so
that a kill at any moment costs one part. Parts end where batches end: a resumed file is the same, byte
for byte. At the end the .h5ad is assembled inside the folder and renamed. No other user can open the folder.
"""

import itertools
import logging
import os
import shutil
import zlib
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from core.cells.annotated_copy import empty_rows, write_whole
from core.cells.reading import open_source
from core.errors import ConfigurationError, MachineError
from core.files import file_bytes, free_space, plain_json, replace_file, write_json
from core.folders import FolderInUseError, locked_folder
from core.generation.cell_generator import COUNTS, GENERATION_KEY, CellGenerator, gene_table
from core.generation.cell_sizes import log_values, mean_genes_per_cell
from core.progress import Listener, ProgressEvent, ignore_progress
from core.runlog.json_lines import parse_object, to_line
from core.wording import cause

logger = logging.getLogger(__name__)

#: Approximate number of cells of a part.
_PART_CELLS = 1_024
#: Values from which putting them together reports its progress.
_MANY_VALUES = 1 << 20
#: Values of a piece of an array in the .h5ad.
_CHUNK = 65_536
_PARTS = "parts.jsonl"
_FLOAT, _INTEGER = np.dtype("<f4"), np.dtype("<i4")
_FILES = {
    "values": _FLOAT,
    "genes": _INTEGER,
    "lengths": _INTEGER,
    "codes": _INTEGER,
    "library_sizes": _FLOAT,
}


def partial_folder(output: Path) -> Path:
    """Return the folder of the finished cells while ``output`` is incomplete."""
    return output.with_name(f"{output.name}.partial")


def discard_partial(output: Path) -> None:
    """Remove the finished cells of an incomplete file."""
    shutil.rmtree(partial_folder(output), ignore_errors=True)


def _check_disk_space(made: CellGenerator, output: Path) -> None:
    """Check that the disk has room for the file and the partial files beside it."""
    n_cells, n_phenotypes = made.request.n_cells, len(made.model.config.phenotypes)
    # Values and their genes, twice; codes, lengths and names.
    per_cell = 2 * 8 * mean_genes_per_cell(made.model.reference) + 8 * n_phenotypes + 40
    needed = n_cells * per_cell
    nearest, free = free_space(output.absolute().parent)
    there = sum(path.stat().st_size for path in partial_folder(output).glob("*.[fi]32"))
    if free + there < needed:
        raise MachineError(
            f"{n_cells:,} cells need about {needed / 1e9:,.1f} GB (half of it for "
            f"parts that are removed at the end) but the disk of {nearest} has {free / 1e9:,.1f} GB "
            f"free; request fewer, free some space or choose another place"
        )


def write_generated(
    made: CellGenerator,
    output: Path,
    *,
    restart: bool = False,
    on_progress: Listener = ignore_progress,
) -> None:
    """Generate the cells of a request into an .h5ad file; an interrupted attempt is resumed.

    An older file is replaced when the new one is complete. ``restart`` removes unfinished cells of
    another request, which are a ConfigurationError without it. MachineError if another process writes the same
    file, its unfinished cells belong to another user, or the disk has no room. After Ctrl-C (KeyboardInterrupt)
    finished cells are kept, and the same call resumes.
    """
    _check_disk_space(made, output)
    folder = partial_folder(output)
    try:
        with locked_folder(folder, is_private=True) as held:
            try:
                finished = folder / "assembled.h5ad"
                finished.unlink(missing_ok=True)  # of an earlier attempt
                n_values = _draw(
                    made, folder, _unfinished(made, folder, restart=restart), on_progress
                )
                _assemble(made, folder, n_values, finished, on_progress)
                finished.replace(output)
            except BaseException as error:
                n_done = _parts_so_far(folder)[-1]["cells"]
                if not n_done:
                    held.remove()
                elif isinstance(error, KeyboardInterrupt):
                    logger.warning(
                        "stopped; %s finished cells stay in %s, and the same command resumes",
                        f"{n_done:,}",
                        folder,
                    )
                raise
            held.remove()
    except FolderInUseError:
        raise MachineError(
            f"another process is writing {output}; wait for it, or choose another name"
        ) from None
    except OSError as error:
        reason = cause(error)
        stays = f"; finished cells stay in {folder}, and the same command resumes"
        raise MachineError(
            f"{output} cannot be written ({reason}){stays if folder.exists() else ''}"
        ) from error


def read_first_cells(path: Path, n_cells: int) -> sparse.csr_matrix:
    """Read the expression of the first cells of a generated file, as log values if it holds counts."""
    with closing(open_source(path)) as source:
        n_cells = min(n_cells, source.n_cells)
        cells = next(source.chunks("X", max(n_cells, 1)))
        if source.uns(GENERATION_KEY)["values"] != COUNTS:
            return cells
        sizes = source.obs_columns(["library_size"])["library_size"]
        return log_values(cells, sizes.to_numpy()[:n_cells])


def _unfinished(made: CellGenerator, folder: Path, *, restart: bool) -> tuple[int, int]:
    """Return the cells and values that an earlier attempt at the same request completed, and cut off the rest."""
    # What finished cells must have in common with a request to belong to it.
    wanted = plain_json(made.provenance() | {"batch_size": made.batch_size})
    parts = _parts_so_far(folder)
    n_cells = parts[-1]["cells"]
    is_same = n_cells > 0 and _read_request(folder) == wanted
    if n_cells and not restart and not is_same:
        raise ConfigurationError(
            f"{folder} holds {n_cells:,} unfinished cells of another request or model; finish "
            f"that one first, add --overwrite to start again, or choose another name"
        )
    whole = [parts[0]]
    if is_same:
        for before, part in itertools.pairwise(parts):
            if part.get("crc32") != _checksum(made, folder, before, part):
                break
            whole.append(part)
        if damaged := n_cells - whole[-1]["cells"]:
            logger.warning("%s damaged cells in %s are made again", f"{damaged:,}", folder)
    else:
        for path in (_part(folder, name) for name in _FILES):
            path.unlink(missing_ok=True)
        (folder / _PARTS).unlink(missing_ok=True)
        write_json(folder / "request.json", wanted)
    replace_file(folder / _PARTS, b"".join(map(to_line, whole[1:])))
    if n_cells := whole[-1]["cells"]:
        logger.info("resuming after %s finished cells", f"{n_cells:,}")
    return n_cells, whole[-1]["values"]


def _draw(made: CellGenerator, folder: Path, done: tuple[int, int], on_progress: Listener) -> int:
    """Append the cells that are missing beyond (cells, values); return the number of all values."""
    n_done, n_values = done
    with ExitStack() as stack:
        files = {}
        for name, size in _sizes(made, *done).items():
            files[name] = stack.enter_context(_open_own(_part(folder, name)))
            files[name].truncate(size)
            files[name].seek(size)
        finished = stack.enter_context(_open_own(folder / _PARTS))
        finished.seek(0, os.SEEK_END)
        sums = dict.fromkeys(files, 0)
        for block in made.blocks(start=n_done, on_progress=on_progress):
            rows = block.expression
            arrays = {
                "values": rows.data,
                "genes": rows.indices,
                "lengths": np.diff(rows.indptr),
                "codes": block.codes,
                "library_sizes": block.library_size,
            }
            for name, array in arrays.items():
                stretch = np.ascontiguousarray(array, dtype=_FILES[name]).tobytes()
                sums[name] = zlib.crc32(stretch, sums[name])
                files[name].write(stretch)
            n_cells, n_values = block.cells.stop, n_values + rows.nnz
            if n_cells - n_done >= _PART_CELLS or n_cells == made.request.n_cells:
                for file in files.values():
                    _flush(file)
                finished.write(to_line({"cells": n_cells, "values": n_values, "crc32": sums}))
                _flush(finished)
                n_done, sums = n_cells, dict.fromkeys(files, 0)
    return n_values


def _open_own(path: Path) -> IO[bytes]:
    """Open a file for writing where it is, made if absent: never through a link, or under a second name."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise MachineError(
            f"{path}: is a link to a file elsewhere; remove the folder {path.parent}"
        )
    return os.fdopen(descriptor, "r+b")


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _checksum(
    made: CellGenerator, folder: Path, before: dict[str, Any], part: dict[str, Any]
) -> dict[str, int] | None:
    """Return the checksums of the bytes of a part; None if they cannot be read."""
    starts, ends = (_sizes(made, one["cells"], one["values"]) for one in (before, part))
    sums = {}
    for name in _FILES:
        try:
            with _part(folder, name).open("rb") as file:
                if os.fstat(file.fileno()).st_size < ends[name]:
                    return None
                file.seek(starts[name])
                sums[name] = zlib.crc32(file.read(ends[name] - starts[name]))
        except OSError:
            return None
    return sums


def _sizes(made: CellGenerator, n_cells: int, n_values: int) -> dict[str, int]:
    """Bytes of each partial file at this progress."""
    n_codes = n_cells * len(made.model.config.phenotypes)
    numbers = {"values": n_values, "genes": n_values, "lengths": n_cells, "codes": n_codes}
    numbers["library_sizes"] = n_cells
    return {name: numbers[name] * kind.itemsize for name, kind in _FILES.items()}


def _assemble(
    made: CellGenerator, folder: Path, n_values: int, path: Path, on_progress: Listener
) -> None:
    """Assemble the .h5ad from the parts: AnnData writes tables without cells, to which these are appended."""
    from anndata import AnnData  # 400 ms
    from anndata.io import sparse_dataset, write_elem

    n_cells, n_genes = made.request.n_cells, made.model.config.n_genes
    phenotypes = made.model.config.phenotypes
    columns: dict[str, Any] = {
        name: pd.Categorical.from_codes([], pd.Index(list(values), dtype=object))
        for name, values in phenotypes.items()
    }
    columns["synthetic"] = np.zeros(0, dtype=bool)
    if made.has_library_size:
        columns["library_size"] = np.zeros(0, dtype=_FLOAT)
    no_names = pd.Index([], dtype=object)
    tables = AnnData(
        obs=pd.DataFrame(index=no_names),
        var=gene_table(made.model.panel),
        uns={GENERATION_KEY: made.provenance()},
    )
    write_whole(tables, path)
    pieces = {"chunks": (min(max(n_cells, 1), _CHUNK),), "compression": "gzip"}
    with h5py.File(path, "r+") as file:
        write_elem(
            file,
            "obs",
            pd.DataFrame(columns, index=no_names),
            dataset_kwargs=pieces | {"maxshape": (None,)},
        )
        obs = file["obs"]
        stored = [obs["_index"], *(obs[name]["codes"] for name in phenotypes)]
        stored += [obs[name] for name in columns if name not in phenotypes]
        for column in stored:
            column.resize((n_cells,))
        write_elem(
            file,
            "X",
            empty_rows(n_genes, n_values),
            dataset_kwargs={"chunks": (min(max(n_values, 1), _CHUNK),), "compression": "gzip"},
        )
        matrix = sparse_dataset(file["X"])
        done = 0
        for first in range(0, n_cells, _PART_CELLS):
            end = min(first + _PART_CELLS, n_cells)
            ends = np.cumsum(_read_part(folder, "lengths", first, end), dtype=np.int64)
            span = done, done + int(ends[-1])
            rows = (
                _read_part(folder, "values", *span),
                _read_part(folder, "genes", *span),
                np.concatenate(([0], ends)),
            )
            matrix.append(sparse.csr_matrix(rows, shape=(end - first, n_genes)))
            done = span[1]
            codes = _read_part(folder, "codes", first * len(phenotypes), end * len(phenotypes))
            cells: list[Any] = [made.cell_names(range(first, end))]
            cells += [codes[slot :: len(phenotypes)] for slot in range(len(phenotypes))]
            cells += [True]
            if made.has_library_size:
                cells += [_read_part(folder, "library_sizes", first, end)]
            for column, values in zip(stored, cells, strict=True):
                column[first:end] = values
            if n_values > _MANY_VALUES:  # else it takes no time
                on_progress(ProgressEvent("writing values", done, n_values))


def _read_part(folder: Path, name: str, first: int, end: int) -> NDArray[Any]:
    kind = _FILES[name]
    path = _part(folder, name)
    return np.fromfile(path, kind, count=end - first, offset=first * kind.itemsize)


def _part(folder: Path, name: str) -> Path:
    return folder / f"{name}.{_FILES[name].kind}32"


def _parts_so_far(folder: Path) -> list[dict[str, Any]]:
    """Return what ``parts.jsonl`` says of the finished parts, behind one of no cells; they are not checked."""
    parts: list[dict[str, Any]] = [{"cells": 0, "values": 0}]
    with suppress(OSError):
        for line in file_bytes(folder / _PARTS).splitlines(keepends=True):
            part = parse_object(line) or {}
            cells, values = part.get("cells"), part.get("values")
            is_whole = line.endswith(b"\n") and isinstance(cells, int) and isinstance(values, int)
            if not is_whole or cells <= parts[-1]["cells"] or values < parts[-1]["values"]:
                break
            parts.append(part)
    return parts


def _read_request(folder: Path) -> dict[str, Any] | None:
    try:
        return parse_object(file_bytes(folder / "request.json"))
    except OSError:
        return None
