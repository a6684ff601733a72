"""Cells are the same in every container: 10x, MuData, SOMA, and HDF5 under other compressions."""

import gzip
import shutil
from contextlib import closing
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy import sparse
from scipy.io import mmwrite

from core.cells.annotated_copy import annotated_copy
from core.cells.file_patterns import expand_files, names_cells
from core.cells.reading import fingerprint, kind_of, load_whole, open_source
from core.errors import ConfigurationError, DataError, MachineError

from .examples import make_adata, make_counts, write


@pytest.fixture(scope="module")
def cells():
    """Counts in X and a layer, all genes in raw, labels of every type, some of them missing."""
    adata = make_adata(n_cells=50, n_genes=30)
    adata.obs["age_years"] = np.arange(50) % 7
    adata.obs["is_primary_data"] = np.arange(50) % 2 == 0
    adata.obs["score"] = np.linspace(0, 1, 50, dtype=np.float32)
    adata.obs["cell_type"] = pd.Categorical(adata.obs["cell_type"])
    adata.obs.loc[adata.obs_names[:3], "cell_type"] = np.nan
    raw = make_adata(n_cells=50, n_genes=34)
    raw.obs = adata.obs[[]]
    adata.raw = raw
    adata.layers["counts"] = adata.X.copy()
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray()).astype(np.float32))
    adata.uns["tfx_truth"] = "{}"
    adata.uns["log1p"] = {"base": 2.0}
    return adata


def assert_same_cells(source, adata, *, rows=slice(None)):
    """Compare a source with (the rows of) an AnnData object."""
    expected = adata[rows]
    assert source.n_cells == expected.n_obs
    assert list(source.obs_names) == list(expected.obs_names)
    table = source.obs_columns(set(expected.obs.columns))
    assert set(expected.obs.columns) <= set(table.attrs["columns"])
    for name in expected.obs.columns:
        for column in (table[name], source.obs[name]):
            mine = column.astype(object).where(column.notna(), None).tolist()
            own = expected.obs[name]
            assert mine == own.astype(object).where(own.notna(), None).tolist(), name
    matrices = {"X": expected.X, "layers/counts": expected.layers["counts"], "raw": expected.raw.X}
    assert source.matrices() == list(matrices)
    for name, matrix in matrices.items():
        var = adata.raw.var if name == "raw" else adata.var
        assert list(source.var(name).index) == list(var.index)
        assert source.var(name)["feature_name"].astype(str).tolist() == list(var["feature_name"])
        whole = sparse.vstack(list(source.chunks(name, 7)))
        np.testing.assert_array_equal(whole.toarray(), matrix.toarray())
        (part,) = source.chunks(name, 100, start=5, stop=9)
        np.testing.assert_array_equal(part.toarray(), matrix[5:9].toarray())
        assert source.stored(name).is_sparse
    assert source.uns("tfx_truth") == "{}"
    assert source.uns("log1p") == {"base": 2.0}
    assert source.uns("nothing") is None


# -------------------------------------------------------------------------------------------- SOMA
@pytest.fixture(scope="module")
def experiment(cells, tmp_path_factory):
    soma = pytest.importorskip("tiledbsoma.io")
    path = str(tmp_path_factory.mktemp("soma") / "cells.soma")
    soma.from_anndata(path, cells, measurement_name="RNA")
    return path


def test_a_soma_experiment_holds_the_cells_it_was_made_of(cells, experiment):
    with closing(open_source(f"soma://{experiment}")) as source:
        assert_same_cells(source, cells)
    assert load_whole(f"soma://{experiment}").raw.shape == (50, 34)


@pytest.mark.parametrize("name", ["copy.h5ad", "copy.zarr"])
def test_the_copy_of_a_soma_experiment_holds_its_cells(cells, experiment, tmp_path, name):
    with annotated_copy(f"soma://{experiment}", tmp_path / name) as copy:
        copy.add_obs({"mine": np.arange(50)})
    with closing(open_source(tmp_path / name)) as source:
        assert source.obs_columns(["mine"])["mine"].tolist() == list(range(50))
        source.uns = {"tfx_truth": "{}", "log1p": {"base": 2.0}}.get  # is not copied
        assert_same_cells(source, cells)
    whole = load_whole(str(tmp_path / name))
    np.testing.assert_array_equal(whole.raw.X.toarray(), cells.raw.X.toarray())


def test_a_filter_chooses_cells_of_a_soma_experiment(cells, experiment):
    spec = f"soma://{experiment}?obs_filter=tissue == 'lung' and is_primary_data == True"
    chosen = ((cells.obs["tissue"] == "lung") & cells.obs["is_primary_data"]).to_numpy()
    assert 8 < chosen.sum() < 20
    with closing(open_source(spec)) as source:
        assert_same_cells(source, cells, rows=chosen)
    assert fingerprint(spec) != fingerprint(f"soma://{experiment}")
    with closing(open_source(spec.replace(" ", "%20"))) as source:
        assert source.n_cells == chosen.sum()


def test_a_dense_soma_layer_and_other_names_are_read(tmp_path):
    """As in CELLxGENE Census: no names of cells, genes by feature_id, layers without "data"."""
    soma = pytest.importorskip("tiledbsoma.io")
    adata = make_adata(n_cells=20, n_genes=5)
    adata.X = adata.X.toarray()
    adata.var.index.name = adata.obs.index.name = None
    path = str(tmp_path / "dense")
    soma.from_anndata(
        path, adata, measurement_name="rna2", X_layer_name="raw", var_id_name="feature_id",
        obs_id_name="barcode",
    )  # fmt: skip
    with closing(open_source(f"soma://{path}?measurement=rna2&obs_filter=sex == 'male'")) as source:
        assert source.matrices() == ["layers/raw"]
        assert list(source.var("layers/raw").index) == list(adata.var_names)
        male = (adata.obs["sex"] == "male").to_numpy()
        found = sparse.vstack(list(source.chunks("layers/raw", 3))).toarray()
        np.testing.assert_array_equal(found, adata.X[male])
        assert list(source.obs_names) == [str(row) for row in np.flatnonzero(male)]


def test_a_changed_soma_experiment_has_another_fingerprint(cells, tmp_path):
    soma = pytest.importorskip("tiledbsoma.io")
    spec = f"soma://{tmp_path / 'cells'}"
    soma.from_anndata(str(tmp_path / "cells"), cells, measurement_name="RNA")
    before = fingerprint(spec)
    assert fingerprint(spec) == before
    import tiledbsoma

    with tiledbsoma.open(str(tmp_path / "cells")) as opened:
        obs = opened.obs.read().concat().to_pandas().drop(columns="soma_joinid")
    obs["age_years"] += 1
    with tiledbsoma.open(str(tmp_path / "cells"), "w") as opened:
        soma.update_obs(opened, obs)
    assert fingerprint(spec) != before


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("soma://{}?obs_filter=tissue ==", DataError, "'obs' cannot be read"),
        ("soma://{}?obs_filter=organ == 'lung'", DataError, "check obs_filter (organ == 'lung')"),
        ("soma://{}?measurement=ATAC", DataError, "one of RNA, raw"),
        ("soma://{}?filter=x", ConfigurationError, "unknown option 'filter=x'"),
        ("soma://{}/obs", DataError, "is a SOMADataFrame, not an experiment"),
        ("soma://{}-gone", DataError, "no SOMA experiment can be opened"),
        ("soma://", ConfigurationError, "give the path of an experiment"),
    ],
)
def test_a_soma_experiment_that_cannot_be_read_is_one_sentence(experiment, spec, error, words):
    with pytest.raises(error) as raised, closing(open_source(spec.format(experiment))) as source:
        _ = source.n_cells
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_soma_without_its_package_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tiledbsoma", None)
    with pytest.raises(MachineError, match=r"pip install 'transformerics\[soma\]'"):
        open_source(f"soma://{tmp_path}")


def test_a_soma_name_is_no_pattern():
    spec = "soma://s3://bucket/{a}?obs_filter=cell_type in ['B cell', 'T cell']"
    assert expand_files([spec, "builtin:atlas"]) == [spec, "builtin:atlas"]
    assert names_cells(spec)


# ------------------------------------------------------------------------------------------ MuData
@pytest.fixture(scope="module")
def mudata_file(cells, tmp_path_factory):
    """More cells in the file than in its RNA, in another order; two of its columns are its own."""
    mudata = pytest.importorskip("mudata")
    path = tmp_path_factory.mktemp("mudata") / "cells.h5mu"
    names = ["other", *cells.obs_names[::-1]]
    proteins = anndata.AnnData(np.ones((51, 2), np.float32), obs=pd.DataFrame(index=names))
    both = mudata.MuData({"prot": proteins, "rna": cells})
    both.obs["treatment"] = [f"T{name}" for name in both.obs_names]
    both.obs["donor_id"] = "not this one"
    both.write(path)
    return path


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_rna_of_a_mudata_file_is_read_with_the_columns_of_the_file(cells, mudata_file):
    assert kind_of(mudata_file) == "h5mu"
    with closing(open_source(mudata_file)) as source:
        assert_same_cells(source, cells)
        of_file = source.obs_columns(["treatment", "rna:sex"])
        assert list(of_file.columns) == ["treatment"]
        expected = [f"T{name}" for name in cells.obs_names]
        assert of_file["treatment"].tolist() == source.obs["treatment"].tolist() == expected
        assert of_file.attrs["columns"] == list(source.obs.columns)
    whole = load_whole(str(mudata_file))
    assert whole.obs["treatment"].tolist() == expected


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_mudata_file_without_rna_is_refused(tmp_path):
    mudata = pytest.importorskip("mudata")
    path = tmp_path / "cells.h5mu"
    mudata.MuData({"atac": make_adata(), "prot": make_adata()}).write(path)
    with pytest.raises(DataError, match=r"without the modality 'rna' \(it has atac, prot\)"):
        open_source(path)


# -------------------------------------------------------------------------------------------- 10x
def matrix_folder(folder, *, version, packed, prefix=""):
    """Write what Cell Ranger writes; the last feature is an antibody in version 3."""
    counts = make_counts(n_cells=12, n_genes=8)
    folder.mkdir(exist_ok=True)
    symbols = ["NA", "A", "A", *(f"G{number}" for number in range(3, 8))]
    kinds = ["Gene Expression"] * 7 + ["Antibody Capture"]
    features = pd.DataFrame({"id": [f"ENSG{n:011d}" for n in range(8)], "symbol": symbols})
    if version == 3:
        features["type"] = kinds
    name = "features" if version == 3 else "genes"
    barcodes = pd.Series([f"ACGT{number}-1" for number in range(12)])
    plain = {"header": False, "index": False, "sep": "\t"}
    features.to_csv(folder / f"{prefix}{name}.tsv", **plain)
    barcodes.to_csv(folder / f"{prefix}barcodes.tsv", **plain)
    mmwrite(folder / f"{prefix}matrix.mtx", sparse.coo_matrix(counts.T.astype(int)))
    for path in list(folder.glob(f"{prefix}*.[tm][st][vx]")) if packed else []:
        with path.open("rb") as plain_file, gzip.open(f"{path}.gz", "wb") as packed_file:
            shutil.copyfileobj(plain_file, packed_file)
        path.unlink()
    return counts, features, barcodes


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("version", [2, 3])
def test_a_folder_of_matrix_mtx_is_read_as_scanpy_reads_it(tmp_path, version, packed):
    folder = tmp_path / "filtered"
    counts, features, barcodes = matrix_folder(folder, version=version, packed=packed)
    assert kind_of(folder) == "mtx"
    assert names_cells(str(folder))
    with closing(open_source(folder)) as source:
        assert source.matrices() == ["X"]
        assert list(source.obs_names) == list(barcodes)
        np.testing.assert_array_equal(next(source.chunks("X", 99)).toarray(), counts)
        var = source.var("X")
        assert list(var.index) == list(features["symbol"])
        assert list(var["gene_ids"]) == list(features["id"])
        assert ("feature_types" in var) == (version == 3)
    if packed == (version == 3):  # the others scanpy does not read
        same = scanpy.read_10x_mtx(folder, make_unique=False, gex_only=False)
        assert same.obs_names.equals(source.obs_names)
        np.testing.assert_array_equal(same.X.toarray(), counts)
        assert list(same.var_names[1:]) == list(var.index[1:])  # scanpy reads NA as no name
        for name in var:
            assert list(same.var[name]) == list(var[name])


def test_several_samples_in_a_folder_are_named_by_their_matrices(tmp_path):
    for prefix in ("GSM1_", "GSM2_"):
        matrix_folder(tmp_path, version=3, packed=True, prefix=prefix)
    with pytest.raises(DataError, match="2 matrices"):
        open_source(tmp_path)
    matrix = tmp_path / "GSM2_matrix.mtx.gz"
    assert open_source(matrix).n_cells == 12
    before = fingerprint(str(matrix))
    with gzip.open(tmp_path / "GSM2_barcodes.tsv.gz", "wt") as barcodes:
        barcodes.writelines(f"T{number}\n" for number in range(12))
    assert fingerprint(str(matrix)) != before
    (tmp_path / "GSM2_features.tsv.gz").unlink()
    with pytest.raises(DataError, match=r"no GSM2_features\.tsv or GSM2_genes\.tsv"):
        open_source(matrix)
    with gzip.open(tmp_path / "GSM1_barcodes.tsv.gz", "wt") as barcodes:
        barcodes.write("one\n")
    with pytest.raises(DataError, match="not of one sample"):
        open_source(tmp_path / "GSM1_matrix.mtx.gz")
    (tmp_path / "GSM1_matrix.mtx.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match="cannot be read"):
        open_source(tmp_path / "GSM1_matrix.mtx.gz")


@pytest.mark.parametrize("version", [2, 3])
def test_a_10x_file_is_read_with_its_kinds_of_features(tmp_path, version):
    counts, features, barcodes = matrix_folder(tmp_path / "mtx", version=3, packed=False)
    matrix = sparse.csc_matrix(counts.T.astype(np.int32))
    path = tmp_path / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = matrix.shape
        group["barcodes"] = barcodes.to_numpy().astype("S")
        if version == 3:
            table = group.create_group("features")
            table["id"], table["name"] = (features[one].astype("S") for one in ("id", "symbol"))
            table["feature_type"] = features["type"].astype("S")
            table["genome"] = np.array([b"GRCh38"] * 8)
        else:
            group["genes"], group["gene_names"] = (
                features[one].astype("S") for one in ("id", "symbol")
            )
    assert kind_of(path) == "10x"
    with closing(open_source(path)) as source:
        np.testing.assert_array_equal(next(source.chunks("X", 99)).toarray(), counts)
        var = source.var("X")
        assert list(var.index) == list(features["symbol"])
        assert list(var["gene_ids"]) == list(features["id"])
        assert list(source.obs_names) == list(barcodes)
        if version == 3:
            assert list(var["feature_types"]) == list(features["type"])


# ------------------------------------------------------------------------------------ compression
def test_a_file_compressed_by_zstd_is_read_or_told_what_it_needs(tmp_path, monkeypatch):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    adata = make_adata()
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path, compression=hdf5plugin.FILTERS["zstd"])
    with closing(open_source(path)) as source:
        np.testing.assert_array_equal(next(source.chunks("X", 99)).toarray(), adata.X.toarray())
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: False)
    monkeypatch.setitem(__import__("sys").modules, "hdf5plugin", None)
    with pytest.raises(MachineError, match=r"compressed by zstd, .*pip install hdf5plugin"):
        open_source(path)


def test_a_packed_h5ad_is_to_be_unpacked(tmp_path):
    path = Path(write(make_adata(), tmp_path))
    packed = tmp_path / "cells.h5ad.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match=r"gunzip cells\.h5ad\.gz"):
        open_source(packed)
    assert names_cells(str(packed))
