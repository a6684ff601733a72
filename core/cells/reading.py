"""Opening what a preset or a command line names as cells, and its state.

Each kind of file is recognised by its content, never by its name.
"""

import warnings
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core.cells.file_patterns import BUILTIN_PREFIX
from core.cells.opening import check_path, open_hdf5, oversize
from core.cells.sources import AnnDataSource, CellSource
from core.cells.stored_source import StoredSource
from core.errors import DataError
from core.wording import first_line

if TYPE_CHECKING:
    from anndata import AnnData

Kind = Literal["builtin", "h5ad", "zarr"]
#: Files of which a zarr store has at least one.
_ZARR_FILES = ("zarr.json", ".zgroup", ".zmetadata")
#: Files that describe an array (the first also describes groups).
_ZARR_ARRAYS = {"zarr.json", ".zarray"}


def open_source(spec: str | Path) -> CellSource:
    """Open cells: an .h5ad file, a .zarr store, or a built-in dataset ("builtin:NAME").

    DataError if there is nothing, or what there is cannot be read or holds no cells.
    """
    match kind_of(spec):
        case "builtin":
            return AnnDataSource(load_whole(str(spec)), str(spec))
        case "zarr":
            return _open_zarr(Path(spec))
        case "h5ad":
            return _open_h5ad(Path(spec))


def kind_of(spec: str | Path) -> Kind:
    """Recognise a container; DataError if there is nothing, or a folder without cells."""
    if str(spec).startswith(BUILTIN_PREFIX):
        return "builtin"
    path = Path(spec)
    check_path(path)
    if is_zarr(path):
        return "zarr"
    if path.is_dir():
        raise DataError(
            f"{path}: a folder, not an h5ad file; name the files in it ('{path}/*.h5ad')"
        )
    return "h5ad"


def is_zarr(path: Path) -> bool:
    """Whether a path is the folder of a zarr store."""
    return any((path / name).is_file() for name in _ZARR_FILES)


def load_whole(spec: str) -> "AnnData":
    """Load all that a source holds into memory."""
    import anndata

    kind = kind_of(spec)
    if kind == "builtin":
        from core.cells.builtin import load_builtin

        return load_builtin(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on old layouts and repeated names
        return anndata.read_zarr(spec) if kind == "zarr" else anndata.read_h5ad(spec)


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
    try:
        if "obs" not in file or "var" not in file:
            raise DataError(
                f"{path}: an HDF5 file but not an h5ad (no obs and var); write it with AnnData"
            )
        return StoredSource(
            file, str(path), close=file.close, read_old=partial(read_old_tables, path)
        )
    except BaseException:
        file.close()
        raise


def _open_zarr(path: Path) -> CellSource:
    import zarr

    files = list(_files_of(path))
    n_bytes = sum(file.stat().st_size for file in files)
    folders = [file.parent.relative_to(path) for file in files if file.name in _ZARR_ARRAYS]
    try:
        store = zarr.open_group(path, mode="r")
        has_tables = "obs" in store and "var" in store
        # One after the other: zarr logs tracebacks of what fails beside another failure.
        members = [store[str(one)] for one in folders if one.parts and str(one) in store]
    except Exception as error:
        raise DataError(
            f"{path}: damaged zarr store ({first_line(error)}); copy it again"
        ) from error
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
        return "+".join(f"{name}-{version_of(name)}" for name in ("transformerics", "scanpy"))
    path = Path(spec)
    check_path(path)
    states = [file.stat() for file in _files_of(path)] if path.is_dir() else [path.stat()]
    n_bytes = sum(state.st_size for state in states)
    return f"{n_bytes}-{max((state.st_mtime_ns for state in states), default=0)}"


def version_of(distribution: str) -> str:
    """Version of an installed distribution, or "unknown"."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"
