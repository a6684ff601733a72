"""Files that are not fit for tfx, each in its own way: the makers for `test_bad_input`."""

import h5py
import numpy as np
from scipy import sparse

from tests.cells.examples import ensembl, log_normalised, make_adata, make_counts, write


def with_matrix(folder, change, **others):
    adata = make_adata(**others)
    dense = adata.X.toarray()
    adata.X = change(dense)
    write(adata, folder)


def spoil(value):
    def change(dense):
        dense[30, 7] = value
        return sparse.csr_matrix(dense)

    return change


def missing(folder):
    pass


def not_an_h5ad(folder):
    (folder / "cells.h5ad").write_text("cell,gene,count\n")


def an_empty_file(folder):
    (folder / "cells.h5ad").touch()


def another_hdf5(folder):
    with h5py.File(folder / "cells.h5ad", "w") as file:
        file["numbers"] = np.arange(3)


def truncated(folder):
    write(make_adata(), folder)
    path = folder / "cells.h5ad"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_cells(folder):
    write(make_adata()[:0].copy(), folder)


def no_genes(folder):
    write(make_adata()[:, :0].copy(), folder)


def only_zeros(folder):
    with_matrix(folder, lambda dense: sparse.csr_matrix(dense * 0))


def negative(folder):
    with_matrix(folder, spoil(-3))


def not_a_number(folder):
    with_matrix(folder, spoil(np.nan))


def infinite(folder):
    with_matrix(folder, spoil(np.inf))


def a_fraction_among_counts(folder):
    """In a cell that is not sampled: every value is held to what the sample shows."""

    def change(dense):
        dense[17, 7] = 1.5
        return sparse.csr_matrix(dense)

    with_matrix(folder, change, n_cells=700)


def values_of_unknown_scale(folder):
    with_matrix(folder, lambda dense: np.log1p(dense) * np.linspace(0.8, 1.25, 40))


def counts_and_logs_in_one_matrix(folder):
    def change(dense):
        dense[20:] = np.log1p(dense[20:])
        return dense

    with_matrix(folder, change)


def tpm(folder):
    def change(dense):
        per_length = dense / np.linspace(0.3, 8, 40)
        return np.log1p(per_length / per_length.sum(axis=1, keepdims=True) * 1e6)

    with_matrix(folder, change)


def files_without_shared_genes(folder):
    adata = make_adata()
    write(adata, folder)
    adata.var_names = ensembl(40, first=1000)
    write(adata, folder, "more.h5ad")


def counts_and_log_values(folder):
    write(make_adata(), folder)
    adata = make_adata(seed=1)
    adata.X = log_normalised(make_counts(seed=1)).astype(np.float32)
    write(adata, folder, "more.h5ad")


def one_sex(folder):
    adata = make_adata()
    adata.obs["sex"] = "female"
    write(adata, folder)


def well_formed(folder):
    write(make_adata(), folder)


def vocabulary_of_nonsense(folder):
    well_formed(folder)
    (folder / "values.json").write_text('{"sex": "female"')
