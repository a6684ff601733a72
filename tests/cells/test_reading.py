import errno
import fcntl
import json
import os
import tracemalloc
import zlib
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
from anndata import AnnData, read_h5ad
from scipy import sparse

from core.cells.annotated_copy import write_whole
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


def whole_of(source, matrix, rows=7):
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
    assert np.array_equal(whole_of(source, "X"), COUNTS[:, :25])
    assert np.array_equal(whole_of(source, "layers/counts"), COUNTS[:, :25] * 2)
    assert np.array_equal(whole_of(source, "raw"), COUNTS * 3)
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
    assert np.array_equal(whole_of(source, "X", rows=2), COUNTS)
    assert np.array_equal(whole_of(source, "X", rows=1_000), COUNTS)
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


def test_what_holds_no_cells_is_refused(tmp_path):
    refuse(tmp_path / "absent.h5ad", "no such file")
    refuse(tmp_path, "a folder, not an h5ad file")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = [1, 2]
    refuse(tmp_path / "other.h5", "not an h5ad")


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "cells.h5ad"
    write(make_adata(), tmp_path)
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half])
    refuse(path, f"truncated: {half:,} of its {len(content):,} bytes are there")


@pytest.mark.parametrize(
    ("beginning", "complaint"),
    [
        (b"", "it is empty"),
        (b"\x1f\x8b\x08", "it is compressed by gzip; unpack it first (gunzip cells.h5ad)"),
        (b"\x28\xb5\x2f\xfd", "it is compressed by zstd; unpack it first (unzstd cells.h5ad)"),
        (b"PK\x03\x04", "it is a zip archive"),
        (b"RDX3\n", "it is an R object"),
        (b"cell,gene,count", "it is text"),
        (b"\x00\x01\x02", "its content is not HDF5"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path, beginning, complaint):
    path = tmp_path / "cells.h5ad"
    path.write_bytes(beginning and beginning + bytes(100))
    refuse(path, f"not an h5ad file: {complaint}")


def test_the_content_decides_and_not_the_ending(tmp_path):
    with closing(open_source(write(make_adata(), tmp_path, "cells.csv"))) as source:
        assert source.n_cells == 60


@pytest.mark.skipif(not hasattr(fcntl, "flock"), reason="HDF5 locks by flock")
def test_a_file_open_elsewhere_for_writing_is_refused(tmp_path):
    path = Path(write(make_adata(), tmp_path))
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refuse(path, "another program has this file open for writing")
    open_source(path).close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_read_without(tmp_path, monkeypatch, number):
    path = write(make_adata(), tmp_path)
    whole = h5py.File

    def without_locks(*arguments, locking=None, **options):
        if locking is not False:
            raise OSError(number, f"Unable to open file (unable to lock file, errno = {number})")
        return whole(*arguments, locking=locking, **options)

    monkeypatch.setattr(h5py, "File", without_locks)
    with closing(open_source(path)) as source:
        assert np.array_equal(whole_of(source, "X"), COUNTS)


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "cells.h5ad")
    refuse(tmp_path / "cells.h5ad", "it is a pipe, a device or a socket")
    refuse(Path("/dev/zero"), "it is a pipe, a device or a socket")
    folder = tmp_path / "cells.zarr"
    write_whole(make_adata(), folder, to_zarr=True)
    os.mkfifo(folder / "obs" / "pipe")
    with pytest.raises(DataError, match="it is a pipe, a device or a socket"):
        open_source(folder)


def link_outside(file, folder):
    del file["obs/sex"]
    file["obs/sex"] = h5py.ExternalLink("other.h5ad", "/secret")


def link_to_a_link(file, folder):
    file["uns/other"] = h5py.ExternalLink("other.h5ad", "/")
    del file["obs/sex"]
    file["obs/sex"] = h5py.SoftLink("/uns/other/secret")


def store_outside(file, folder):
    (folder / "secret").write_bytes(bytes(60))
    attributes = dict(file["obs/sex/codes"].attrs)
    del file["obs/sex/codes"]
    outside = [(folder / "secret", 0, 60)]
    file["obs/sex"].create_dataset("codes", (60,), "i1", external=outside).attrs.update(attributes)


def map_outside(file, folder):
    layout = h5py.VirtualLayout((60,), "i1")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "secret", (60,))
    file.create_virtual_dataset("obs/secret", layout)


def claim_cells(file, folder):
    del file["obs/_index"]
    file.create_dataset("obs/_index", (10**9,), h5py.string_dtype(), chunks=(10**6,))


def claim_values(file, folder):
    del file["X/data"]
    file.create_dataset("X/data", (10**12,), "f4", chunks=(10**6,), compression="gzip")


def claim_a_dense_matrix(file, folder):
    del file["X"]
    file.create_dataset("X", (10**9, 10**6), "f4", chunks=(100, 100), compression="gzip")


def lengthen_labels(file, folder):
    del file["obs/sex/categories"]
    labels = np.array([b"female", b"male"], dtype=f"S{2 * 10**6}")
    file["obs/sex"].create_dataset("categories", data=labels, compression="gzip")


def repeat_a_label(file, folder):
    """Every item refers to one text of 8 kB."""
    del file["obs/sex/categories"], file["uns"]
    text = h5py.string_dtype()
    file["obs/sex"].create_dataset(
        "categories", (40_000,), text, chunks=(40_000,), compression="gzip"
    )
    labels = file["obs/sex/categories"]
    labels[0] = "female" * 1_400
    file.flush()
    one = labels.id.get_chunk_info(0)
    with Path(file.filename).open("rb") as stream:
        stream.seek(one.byte_offset)
        reference = zlib.decompress(stream.read(one.size))[:16]
    packed = zlib.compress(reference * 40_000)
    labels.id.write_direct_chunk((0,), packed)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (repeat_a_label, "the texts of 'obs/sex/categories' are longer than the file"),
        (link_outside, "'obs/sex' is a link to another file"),
        (link_to_a_link, "'uns/other' is a link to another file"),
        (store_outside, "the values of 'obs/sex/codes' are in another file"),
        (map_outside, "the values of 'obs/secret' are in another file"),
        (claim_cells, "'obs/_index' claims 1,000,000,000 values (8 GB), but"),
        (claim_values, "'X/data' claims 1,000,000,000,000 values (4 TB), but"),
        (claim_a_dense_matrix, "'X' claims 1,000,000,000 x 1,000,000 values"),
        (lengthen_labels, "'obs/sex/categories' has items of 2 MB each"),
    ],
)
def test_other_files_are_not_read_and_nothing_is_larger_than_the_file_can_hold(
    tmp_path, change, complaint
):
    adata = make_adata()
    adata.strings_to_categoricals()
    path = write(adata, tmp_path)
    with h5py.File(path, "r+") as file:
        change(file, tmp_path)
    tracemalloc.start()
    refuse(path, complaint)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_a_zarr_store_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "cells.zarr"
    write_whole(make_adata(), path, to_zarr=True)
    described = next(path.glob("X/data/*z*ar*"))
    record = json.loads(described.read_text())
    record["shape"] = [10**12]
    described.write_text(json.dumps(record))
    for listed in path.glob(".zmetadata"):  # the list of a store of format 2; of format 3:
        listed.unlink()
    for listed in path.glob("zarr.json"):
        record = json.loads(listed.read_text())
        record.pop("consolidated_metadata")
        listed.write_text(json.dumps(record))
    refuse(path, "'X/data' claims 1,000,000,000,000 values")


def test_a_large_constant_column_is_no_bomb(tmp_path):
    path = write(make_adata(), tmp_path)
    with h5py.File(path, "r+") as file:
        file.create_dataset("uns/zeros", data=np.zeros(10**7), chunks=(10**6,), compression="gzip")
    open_source(path).close()


def test_only_the_names_of_cells_are_read_for_their_names(tmp_path, monkeypatch):
    with closing(open_source(write(make_adata(), tmp_path))) as source:
        monkeypatch.setattr(StoredSource, "obs", None)
        assert source.obs_names[59] == "cell59"


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "cells.h5ad"
    write(make_adata(), tmp_path)

    def forbid(_path):
        raise PermissionError

    monkeypatch.setattr("core.cells.opening.open_file", forbid)
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
