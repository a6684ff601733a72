"""The annotated copy of a file: what was there, with columns, arrays and facts added through AnnData.

The same layout is copied as bytes, so matrices are never read. Tables of a layout from before anndata
0.8 are written anew, because new columns do not fit into them.
"""

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from core.cells.opening import hdf5_file
from core.cells.reading import kind_of, load_whole, open_source, read_old_tables
from core.cells.sources import CellSource
from core.cells.stored_source import StoredSource
from core.errors import ConfigurationError
from core.folders import writing_output
from core.wording import naming_write_errors

if TYPE_CHECKING:
    import zarr
    from anndata import AnnData

#: Takes which cells, and their rows, block by block in the order of the file.
Write = Callable[[slice, NDArray[np.float32]], None]
#: Values, and rows, of a piece of a new array.
_PIECE_VALUES, _PIECE_ROWS = 2**18, 4_096


@contextmanager
def annotated_copy(source: str, target: Path) -> Iterator["AnnotatedCopy"]:
    """Copy cells into an .h5ad file or a .zarr store, by its ending, and give the copy.

    It appears under its name when it is complete; a MachineError if it cannot be written.
    """
    to_zarr = target.suffix == ".zarr"
    with naming_write_errors(str(target)), writing_output(target) as new:
        kind = kind_of(source)
        if kind == "soma":
            with closing(open_source(source)) as cells:
                _write_tables(cells, new, to_zarr=to_zarr)
        elif kind != ("zarr" if to_zarr else "h5ad"):
            write_whole(load_whole(source), new, to_zarr=to_zarr)
        elif to_zarr:
            shutil.copytree(source, new, copy_function=shutil.copyfile)
            for folder in (new, *(one for one in new.rglob("*") if one.is_dir())):
                folder.chmod(folder.stat().st_mode | 0o700)  # a folder of shared data
        else:
            shutil.copyfile(source, new)
        with _open_zarr(new) if to_zarr else hdf5_file(new, "r+") as root:
            copy = AnnotatedCopy(source, root)
            if kind == "soma":
                with closing(open_source(source)) as cells:
                    copy.add_matrices(cells)
            yield copy


def _write_tables(cells: CellSource, path: Path, *, to_zarr: bool) -> None:
    """Write obs and var of cells, which have a matrix other than raw."""
    from anndata import AnnData

    var = cells.var(next(name for name in cells.matrices() if name != "raw"))
    write_whole(AnnData(obs=cells.obs, var=var), path, to_zarr=to_zarr)


def write_whole(
    adata: "AnnData", path: Path, *, to_zarr: bool = False, compression: str | None = None
) -> None:
    """Write an AnnData object, text with missing values included."""
    import anndata

    with anndata.settings.override(allow_write_nullable_strings=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on what anndata will write in its next version
        if to_zarr:
            adata.write_zarr(path, convert_strings_to_categoricals=False)
        else:
            adata.write_h5ad(path, convert_strings_to_categoricals=False, compression=compression)


@contextmanager
def _open_zarr(path: Path) -> "Iterator[zarr.Group]":
    """Open a store for writing; a list of its members in one place is made anew at the end."""
    import zarr

    was_listed = zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on parts of the format that are not in its specification
        yield root
        if was_listed:
            zarr.consolidate_metadata(root.store)


class AnnotatedCopy:
    """The open copy of a file, to which columns, arrays and facts are added."""

    def __init__(self, source: str, root: Any) -> None:  # noqa: ANN401 (h5py.File or zarr.Group)
        self._source, self._root = source, root
        self._cells = self._read()
        if self._cells.obs_layout is None:
            self._renew_tables()
            self._cells = self._read()

    @property
    def n_genes(self) -> int:
        """Genes of X."""
        return len(self._cells.var("X"))

    def check_free(self, *names: str, remedy: str) -> None:
        """Check that the file has none of the names ("obs/tfx_sex"), or raise a ConfigurationError."""
        if taken := [name for name in names if name in self._root]:
            raise ConfigurationError(f"{self._source} has {', '.join(taken)} already; {remedy}")

    def add_obs(self, columns: Mapping[str, Any]) -> None:
        """Add columns to obs: categories or arrays."""
        assert self._cells.obs_layout is not None, "renewed"
        present, _ = self._cells.obs_layout
        self._add_columns("obs", columns, present)

    def add_var(self, columns: Mapping[str, Any]) -> None:
        """Add columns to var: categories or arrays."""
        present = list(map(str, self._root["var"].attrs.get("column-order", [])))
        self._add_columns("var", columns, present)

    def _add_columns(self, table: str, columns: Mapping[str, Any], present: Sequence[str]) -> None:
        group = self._root[table]
        for name, values in columns.items():
            is_category = isinstance(values, pd.Categorical)
            _write(group, name, values if is_category else np.asarray(values), {})
        group.attrs["column-order"] = [*present, *(name for name in columns if name not in present)]

    def add_array(self, name: str, shape: tuple[int, int]) -> Write:
        """Add a float32 array ("obsm/X_tfx"); return a function that writes some of its rows."""
        n_rows, width = shape
        group, key = self._place(name)
        pieces = self._pieces((min(max(n_rows, 1), _PIECE_ROWS), width))
        _write(group, key, np.empty((0, width), dtype=np.float32), pieces)
        array = group[key]
        array.resize(shape)
        return array.__setitem__

    def add_matrices(self, cells: CellSource) -> None:
        """Add all matrices of cells whose obs and var are there, a block of cells at a time."""
        for name in cells.matrices():
            is_raw = name == "raw"
            n_genes = len(cells.var(name))
            most = cells.n_cells * n_genes
            append = self._add_rows("raw/X" if is_raw else name, n_genes, most)
            for chunk in cells.chunks(name, _PIECE_ROWS):
                append(chunk)
            if is_raw:
                _write(self._root["raw"], "var", cells.var(name), {})
                self._root["raw"].attrs.update(
                    {"encoding-type": "raw", "encoding-version": "0.1.0"}
                )

    def _add_rows(
        self, name: str, n_genes: int, n_values: int
    ) -> Callable[[sparse.csr_matrix], None]:
        """Add a CSR matrix without rows, for at most ``n_values`` values; return the function that appends rows."""
        from anndata.io import sparse_dataset

        group, key = self._place(name)
        _write(group, key, empty_rows(n_genes, n_values), self._pieces((_PIECE_VALUES,)))
        append: Callable[[sparse.csr_matrix], None] = sparse_dataset(group[key]).append
        return append

    def add_facts(self, key: str, facts: Mapping[str, Any]) -> None:
        """Add a dictionary of plain values to uns; it replaces one of the same name."""
        group, key = self._place(f"uns/{key}")
        _write(group, key, dict(facts), {})

    def _read(self) -> StoredSource:
        read_old = partial(read_old_tables, Path(self._source))
        return StoredSource(self._root, self._source, read_old=read_old)

    def _renew_tables(self) -> None:
        """Write tables of an old layout as today's, and drop the categories that were in uns."""
        cells, root = self._cells, self._root
        if hasattr(root["obs"], "keys"):  # 0.7: a group; only its columns are of an older form
            _write(root, "obs", cells.obs, {})
            return
        old = cells.old_tables
        for name in ("obs", "var", "obsm", "varm"):
            if name in root and not hasattr(root[name], "keys"):
                table = getattr(old, name)
                _write(root, name, table if name in {"obs", "var"} else dict(table), {})
        for name in list(root["uns"]) if "uns" in root else []:
            if name.endswith("_categories") and name not in old.uns:
                del root["uns"][name]

    def _place(self, name: str) -> tuple[Any, str]:
        """Return the group of an element, made if it is missing, and the element's name in it."""
        folder, _, key = name.rpartition("/")
        if not folder:
            return self._root, key
        if folder not in self._root or not hasattr(self._root[folder], "keys"):  # absent, or None
            _write(self._root, folder, {}, {})
        return self._root[folder], key

    def _pieces(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """How an array is stored that grows along its first axis, in pieces of a shape."""
        if not isinstance(self._root, h5py.Group):
            return {"chunks": shape, "shards": None}
        grows = {"maxshape": (None, *shape[1:])} if len(shape) > 1 else {}  # AnnData's own for CSR
        return {"chunks": shape, "compression": "gzip", **grows}


def empty_rows(n_genes: int, n_values: int) -> sparse.csr_matrix:
    """Return (0, n_genes), to which rows of that many values are appended."""
    rows = sparse.csr_matrix(np.zeros((0, n_genes), dtype=np.float32))
    kind = np.int32 if n_values < np.iinfo(np.int32).max else np.int64  # one type: scipy mixes none
    rows.indices, rows.indptr = rows.indices.astype(kind), rows.indptr.astype(kind)
    return rows


def _write(group: Any, key: str, element: Any, pieces: Mapping[str, Any]) -> None:  # noqa: ANN401
    from anndata.io import write_elem

    write_elem(group, key, element, dataset_kwargs=pieces)
