"""Opening what a preset or a command line names as cells, and its state.

Each kind of file is recognised by its content, never by its name.
"""

import warnings
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core.cells.file_patterns import BUILTIN_PREFIX, SOMA_PREFIX
from core.cells.mudata_source import RnaSource
from core.cells.opening import check_path, open_hdf5, oversize
from core.cells.soma import SomaSource
from core.cells.sources import AnnDataSource, CellSource, in_one_sentence, to_anndata
from core.cells.stored_source import StoredSource
from core.cells.tenx import (
    is_tenx_file,
    matrices_in,
    read_matrix_folder,
    read_tenx_file,
    sample_files,
)
from core.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

Kind = Literal["builtin", "soma", "h5ad", "zarr", "h5mu", "10x", "mtx"]
#: Files of which a zarr store has at least one.
_ZARR_FILES = ("zarr.json", ".zgroup", ".zmetadata")
#: Files that describe an array (the first also describes groups).
_ZARR_ARRAYS = {"zarr.json", ".zarray"}
#: The release that last changed the cells of a built-in dataset: stores of later ones are the same.
_DATASETS_OF = "0.1.0"


def open_source(spec: str | Path) -> CellSource:
    """Open cells: files and folders as docs/formats.md lists them, "soma://PATH", or "builtin:NAME".

    DataError if there is nothing, or what there is cannot be read or holds no cells.
    """
    match kind_of(spec):
        case "builtin" | "10x" | "mtx":
            return AnnDataSource(load_whole(str(spec)), str(spec))
        case "soma":
            return SomaSource(str(spec))
        case "zarr":
            return _open_zarr(Path(spec))
        case "h5mu":
            return RnaSource(open_hdf5(Path(spec)), str(spec))
        case "h5ad":
            return _open_h5ad(Path(spec))


def kind_of(spec: str | Path) -> Kind:
    """Recognise a container; DataError if there is nothing, or nothing with cells."""
    if str(spec).startswith(BUILTIN_PREFIX):
        return "builtin"
    if str(spec).startswith(SOMA_PREFIX):
        return "soma"
    path = Path(spec)
    check_path(path)
    if is_zarr(path):
        return "zarr"
    if matrices_in(path):
        return "mtx"
    if (path / "__group").is_dir():
        raise DataError(
            f"{path}: a folder of TileDB; a SOMA experiment is named {SOMA_PREFIX}{path}"
        )
    if path.is_dir():
        raise DataError(
            f"{path}: a folder, not an h5ad file, zarr store or folder of matrix.mtx; name the files in it "
            f"('{path}/*.h5ad')"
        )
    with open_hdf5(path) as file:
        if "mod" in file:
            return "h5mu"
        if "obs" in file and "var" in file:
            return "h5ad"
        if is_tenx_file(file):
            return "10x"
    raise DataError(f"{path}: an HDF5 file but not an h5ad (no obs and var); write it with AnnData")


def is_zarr(path: Path) -> bool:
    """Whether a path is the folder of a zarr store."""
    return any((path / name).is_file() for name in _ZARR_FILES)


def load_whole(spec: str) -> "AnnData":
    """Load all that a source holds into memory."""
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on old layouts and repeated names
        match kind_of(spec):
            case "builtin":
                from core.cells.builtin import load_builtin

                return load_builtin(spec)
            case "soma":
                with closing(SomaSource(spec)) as experiment:
                    return to_anndata(experiment)
            case "h5mu":
                with closing(RnaSource(open_hdf5(Path(spec)), spec)) as source:
                    return source.to_memory()
            case "10x" | "mtx" as kind:
                read = read_tenx_file if kind == "10x" else read_matrix_folder
                what = f"{spec}: the files of 10x cannot be read"
                with in_one_sentence(what, "; copy them again"):
                    return read(Path(spec))
            case "zarr":
                return anndata.read_zarr(spec)
            case "h5ad":
                return anndata.read_h5ad(spec)


def read_old_tables(path: Path) -> "AnnData":
    """Read the tables of a layout from before anndata 0.7, whose categories are in uns."""
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on old layouts and repeated names
        if path.is_dir():
            return anndata.read_zarr(path)
        adata = anndata.read_h5ad(path, backed="r")  # its matrices are not read
        adata.file.close()
        return adata


def _open_h5ad(path: Path) -> CellSource:
    file = open_hdf5(path)
    return StoredSource(file, str(path), close=file.close, read_old=partial(read_old_tables, path))


def _open_zarr(path: Path) -> CellSource:
    import zarr

    files = list(_files_of(path))
    n_bytes = sum(file.stat().st_size for file in files)
    folders = [file.parent.relative_to(path) for file in files if file.name in _ZARR_ARRAYS]
    with in_one_sentence(f"{path}: damaged zarr store", "; copy it again"):
        store = zarr.open_group(path, mode="r")
        has_tables = "obs" in store and "var" in store
        # One after the other: zarr logs tracebacks of what fails beside another failure.
        members = [store[str(one)] for one in folders if one.parts and str(one) in store]
    if not has_tables:
        raise DataError(
            f"{path}: a zarr store but not of AnnData (no obs and var); write it with "
            f"adata.write_zarr"
        )
    for array in members:
        if not isinstance(array, zarr.Array):
            continue
        item_bytes = array.dtype.itemsize
        claimed = array.size * item_bytes
        fault = oversize(f"'{array.path}'", array.shape, item_bytes, claimed, n_bytes)
        if fault is not None:
            raise DataError(f"{path}: {fault}")
    return StoredSource(store, str(path), read_old=partial(read_old_tables, path))


def _files_of(folder: Path) -> Iterator[Path]:
    """Every file in a folder and below; DataError for a pipe or a device."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path
        elif not path.is_dir():
            check_path(path)


def fingerprint(spec: str) -> str:
    """State of a source: size and time of change of its files, a built-in dataset's version."""
    if spec.startswith(BUILTIN_PREFIX):
        return f"transformerics-{_DATASETS_OF}+scanpy-{version_of('scanpy')}"
    if spec.startswith(SOMA_PREFIX):
        with closing(SomaSource(spec)) as experiment:
            return experiment.state()
    path = Path(spec)
    check_path(path)
    if path.is_dir():
        states = [file.stat() for file in _files_of(path)]
    else:
        states = [one.stat() for one in (sample_files(path) or [path])]
    n_bytes = sum(state.st_size for state in states)
    return f"{n_bytes}-{max((state.st_mtime_ns for state in states), default=0)}"


def version_of(distribution: str) -> str:
    """Version of an installed distribution, or "unknown"."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"
