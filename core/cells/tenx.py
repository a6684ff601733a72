"""Files of 10x Genomics: feature-barcode matrices in HDF5, and folders of ``matrix.mtx``.

They hold counts, barcodes and genes, and no labels. Both are read whole.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from core.errors import DataError

if TYPE_CHECKING:
    import h5py
    import pandas as pd
    from anndata import AnnData

_MATRIX, _PACKED = "matrix.mtx", ("", ".gz")
#: Columns of features.tsv of Cell Ranger 3 and later; genes.tsv of version 2 has the first two.
_COLUMNS = ("gene_ids", "gene_symbols", "feature_types")


def is_tenx_file(file: "h5py.File") -> bool:
    """Whether an open HDF5 file is 10x's: "matrix" (Cell Ranger 3 and later), or a group per genome (2)."""
    return any(
        {"barcodes", "data", "indices", "indptr"} <= set(group)
        for group in file.values()
        if hasattr(group, "keys")
    )


def read_tenx_file(path: Path) -> "AnnData":
    """Read a feature-barcode matrix: symbols as names, ``gene_ids`` and ``feature_types`` in var."""
    import scanpy  # 2 s

    return scanpy.read_10x_h5(path, gex_only=False)


def matrices_in(path: Path) -> list[Path]:
    """Return the files matrix.mtx (or PREFIX_matrix.mtx.gz) that a folder holds, or that a path is."""

    def candidates() -> Iterator[Path]:
        for suffix in _PACKED:
            yield from [path] if path.is_file() else sorted(path.glob(f"*{_MATRIX}{suffix}"))

    return [one for one in dict.fromkeys(candidates()) if _prefix(one) is not None]


def sample_files(matrix: Path) -> list[Path]:
    """Return the files of the sample of a matrix.mtx; none if a path is no such file."""
    prefix = _prefix(matrix)
    return (
        [] if prefix is None else [one for one in matrix.parent.glob(f"{prefix}*") if one.is_file()]
    )


def read_matrix_folder(path: Path) -> "AnnData":
    """Read the cells of a folder of matrix.mtx, genes.tsv or features.tsv, and barcodes.tsv, packed or not.

    A folder with the matrices of several samples is a DataError, unless ``path`` is one of the matrices.
    """
    import anndata
    import pandas as pd
    from scipy.io import mmread

    found = matrices_in(path)
    if len(found) > 1:
        raise DataError(
            f"{path}: {len(found)} matrices ({found[0].name}, {found[1].name}, ...); name one of them, or all "
            f"by a pattern such as '{path}/*{_MATRIX}*'"
        )
    matrix, prefix = found[0], _prefix(found[0])
    features = _table(matrix.parent, f"{prefix}features.tsv", f"{prefix}genes.tsv")
    barcodes = _table(matrix.parent, f"{prefix}barcodes.tsv")
    counts = sparse.csr_matrix(mmread(matrix).T, dtype=np.float32)
    if counts.shape != (len(barcodes), len(features)):
        raise DataError(
            f"{matrix}: {counts.shape[1]:,} x {counts.shape[0]:,} values for {len(features):,} genes and "
            f"{len(barcodes):,} barcodes; the files are not of one sample"
        )
    var = features.iloc[:, : len(_COLUMNS)].set_axis(
        list(_COLUMNS[: min(features.shape[1], len(_COLUMNS))]), axis=1
    )
    symbols = "gene_symbols" if "gene_symbols" in var else "gene_ids"
    var.index = pd.Index(var[symbols].to_numpy())
    var = var.drop(columns="gene_symbols", errors="ignore")
    obs = pd.DataFrame(index=pd.Index(barcodes[0].to_numpy()))
    return anndata.AnnData(counts, obs=obs, var=var)


def _prefix(matrix: Path) -> str | None:
    """Return what comes before "matrix.mtx" in the name of a file; None if it is no such file."""
    name = matrix.name.removesuffix(".gz")
    return name.removesuffix(_MATRIX) if name.endswith(_MATRIX) else None


def _table(folder: Path, *names: str) -> "pd.DataFrame":
    """Read the first of some tables that exists, packed or not."""
    import pandas as pd

    files = [folder / f"{name}{suffix}" for name in names for suffix in _PACKED]
    for file in files:
        if file.is_file():
            return pd.read_csv(
                file,
                sep="\t",
                header=None,
                dtype=str,
                keep_default_na=False,
                quoting=csv.QUOTE_NONE,
            )
    raise DataError(
        f"{folder}: there is no {' or '.join(names)} (packed by gzip or not) beside {_MATRIX}"
    )
