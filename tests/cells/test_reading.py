import h5py
import numpy as np
import pytest
from anndata import AnnData, read_h5ad
from scipy import sparse

from core.cells.reading import fingerprint, open_source
from core.cells.sources import AnnDataSource
from core.cells.stored_source import StoredSource
from core.errors import DataError

from .examples import make_adata, make_counts, write

COUNTS = make_counts()
STORAGE = {
    "dense": np.asarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr array": sparse.csr_array,
    "int64": lambda counts: counts.astype(np.int64),
    "float64 csr": lambda counts: sparse.csr_matrix(counts.astype(np.float64)),
}


def with_every_matrix(store):
    """X, raw with more genes, and a layer, each with values of its own."""
    full = make_adata()
    full.X = store(COUNTS * 3)
    adata = full[:, :25].copy()
    adata.raw = full
    adata.X = store(COUNTS[:, :25])
    adata.layers["counts"] = store(COUNTS[:, :25] * 2)
    return adata


def whole(source, matrix, rows=7):
    return sparse.vstack(list(source.chunks(matrix, rows))).toarray()


@pytest.mark.parametrize("store", STORAGE.values(), ids=STORAGE)
@pytest.mark.parametrize("kind", ["file", "memory", "backed"])
def test_every_matrix_is_read_in_chunks_however_it_is_stored(tmp_path, store, kind):
    adata = with_every_matrix(store)
    path = write(adata, tmp_path)
    backed = read_h5ad(path, backed="r") if kind == "backed" else None
    source = {
        "file": lambda: open_source(path),
        "memory": lambda: AnnDataSource(adata, "cells"),
        "backed": lambda: AnnDataSource(backed, "cells"),
    }[kind]()
    assert source.matrices() == ["X", "layers/counts", "raw"]
    assert np.array_equal(whole(source, "X"), COUNTS[:, :25])
    assert np.array_equal(whole(source, "layers/counts"), COUNTS[:, :25] * 2)
    assert np.array_equal(whole(source, "raw"), COUNTS * 3)
    assert (len(source.var("X")), len(source.var("raw"))) == (25, 40)
    assert source.obs["sex"].tolist() == adata.obs["sex"].tolist()
    source.close()
    if backed is not None:
        backed.file.close()


@pytest.mark.parametrize("store", [sparse.csr_matrix, sparse.csc_matrix])
def test_compressed_values_are_read(tmp_path, store):
    adata = make_adata()
    adata.X = store(COUNTS)
    adata.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    source = open_source(tmp_path / "cells.h5ad")
    assert source.stored("X").in_pieces
    assert np.array_equal(whole(source, "X", rows=2), COUNTS)
    assert np.array_equal(whole(source, "X", rows=1_000), COUNTS)
    some = sparse.vstack(list(source.chunks("X", 4, start=3, stop=18))).toarray()
    assert np.array_equal(some, COUNTS[3:18])
    source.close()


def test_chunks_are_clean_float32_rows_in_order(tmp_path):
    untidy = sparse.csr_matrix(
        (np.array([1.0, 2, 0, 4]), np.array([2, 2, 0, 1]), np.array([0, 3, 4])), shape=(2, 3)
    )
    source = AnnDataSource(AnnData(untidy.copy()), "cells")
    chunks = list(source.chunks("X", 1))
    assert [chunk.shape for chunk in chunks] == [(1, 3), (1, 3)]
    assert chunks[0].dtype == np.float32
    assert (chunks[0].indices.tolist(), chunks[0].data.tolist()) == ([2], [3.0])


def test_reading_leaves_the_users_object_alone():
    adata = AnnData(sparse.csr_matrix(([0.0, 1.0], [1, 0], [0, 2]), shape=(1, 2), dtype=np.float32))
    list(AnnDataSource(adata, "cells").chunks("X", 10))
    assert adata.X.data.tolist() == [0.0, 1.0]
    assert adata.X.indices.tolist() == [1, 0]


def test_stop_ends_reading_early(tmp_path):
    source = open_source(write(make_adata(), tmp_path))
    assert [chunk.shape[0] for chunk in source.chunks("X", 4, stop=10)] == [4, 4, 2]
    source.close()


def test_a_file_without_x_has_its_other_matrices(tmp_path):
    adata = make_adata()
    adata.layers["counts"] = adata.X
    adata.X = None
    source = open_source(write(adata, tmp_path))
    assert source.matrices() == ["layers/counts"]
    source.close()


def test_simulated_cells_carry_their_truth(tmp_path):
    adata = make_adata()
    adata.uns["tfx_truth"] = '{"edges": []}'
    source = open_source(write(adata, tmp_path))
    assert source.uns("tfx_truth") == '{"edges": []}'
    source.close()
    assert AnnDataSource(make_adata(), "cells").uns("tfx_truth") is None


def test_a_changed_file_has_another_fingerprint(tmp_path):
    path = write(make_adata(), tmp_path)
    before = fingerprint(path)
    assert before == fingerprint(path)
    write(make_adata(61), tmp_path)
    assert before != fingerprint(path)


def refuse(path, complaint):
    with pytest.raises(DataError) as refusal:
        open_source(path)
    assert str(path) in str(refusal.value)
    assert complaint in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path):
    refuse(tmp_path / "absent.h5ad", "no such file")


def test_a_folder_is_refused(tmp_path):
    refuse(tmp_path, "a folder, not an h5ad file")


def test_a_text_file_is_refused(tmp_path):
    path = tmp_path / "cells.h5ad"
    path.write_text("cell,gene\n")
    refuse(path, "not an h5ad file")


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "cells.h5ad"
    path.touch()
    refuse(path, "not an h5ad file")


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "cells.h5ad"
    write(make_adata(), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refuse(path, "truncated")


def test_another_hdf5_file_is_refused(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["data"] = [1, 2]
    refuse(path, "not an h5ad")


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "cells.h5ad"
    write(make_adata(), tmp_path)

    def forbid(*_arguments, **_options):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.open", forbid)
    refuse(path, "no permission")


def lose_genes(file):
    del file["X/indices"]


def name_a_gene_beyond_var(file):
    file["X/indices"][10] = COUNTS.shape[1]


def name_a_negative_gene(file):
    file["X/indices"][10] = -1


def end_a_row_before_it_begins(file):
    file["X/indptr"][3] = file["X/indptr"][5] + 1


@pytest.mark.parametrize(
    "damage", [lose_genes, name_a_gene_beyond_var, name_a_negative_gene, end_a_row_before_it_begins]
)
def test_damage_inside_a_file_is_one_sentence(tmp_path, damage):
    adata = make_adata()
    adata.X = sparse.csr_matrix(COUNTS)
    path = write(adata, tmp_path)
    with h5py.File(path, "a") as file:
        damage(file)
    source = open_source(path)
    assert isinstance(source, StoredSource)
    with pytest.raises(DataError, match=r"cells\.h5ad: 'X' cannot be read"):
        list(source.chunks("X", 10))
    source.close()
