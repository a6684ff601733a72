"""Every command reads cells from zarr, MuData, SOMA and 10x as from .h5ad, with equal results."""

import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.io import mmwrite

from core.cells.builtin import load_builtin
from core.cells.store import Store

CONTAINERS = ("cells.zarr", "cells.h5mu", "soma://cells.soma")
#: Of 10x: counts, without labels.
UNLABELLED = ("filtered_feature_bc_matrix", "tenx.h5")


@pytest.fixture(scope="module")
def containers(tmp_path_factory):
    """Return a folder with the same cells in every container."""
    mudata, soma = pytest.importorskip("mudata"), pytest.importorskip("tiledbsoma.io")
    folder = tmp_path_factory.mktemp("containers")
    cells = load_builtin("builtin:atlas?cells=120&seed=7")[:60].copy()
    cells.write_h5ad(folder / "own.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the version of zarr will change
        cells.write_zarr(folder / "cells.zarr")
    few = cells.copy()
    few.obs = cells.obs[["donor_id", "sex"]]
    proteins = anndata.AnnData(np.ones((60, 2), np.float32), obs=cells.obs[[]])
    both = mudata.MuData({"rna": few, "prot": proteins})
    for name in cells.obs.columns.difference(few.obs.columns):
        both.obs[name] = cells.obs[name]
    both.write(folder / "cells.h5mu")
    soma.from_anndata(str(folder / "cells.soma"), cells, measurement_name="RNA")
    tenx = folder / "filtered_feature_bc_matrix"
    tenx.mkdir()
    genes = pd.DataFrame(
        {"id": cells.var_names, "symbol": cells.var_names, "type": "Gene Expression"}
    )
    plain = {"header": False, "index": False, "sep": "\t"}
    genes.to_csv(tenx / "features.tsv", **plain)
    pd.Series(cells.obs_names).to_csv(tenx / "barcodes.tsv", **plain)
    mmwrite(tenx / "matrix.mtx", cells.X.T.astype(int))
    with h5py.File(folder / "tenx.h5", "w") as file:
        group = file.create_group("matrix")
        matrix = sparse.csc_matrix(cells.X.T.astype(np.int32))
        for name in ("data", "indices", "indptr", "shape"):
            group[name] = getattr(matrix, name)
        group["barcodes"] = cells.obs_names.to_numpy().astype("S")
        names = {"id": "id", "name": "symbol", "feature_type": "type"}
        for name, column in names.items():
            group[f"features/{name}"] = genes[column].to_numpy().astype("S")
        group["features/genome"] = np.full(cells.n_vars, b"GRCh38")
    return folder


@pytest.fixture
def same_cells(containers, tmp_path):
    for path in containers.iterdir():
        (tmp_path / path.name).symlink_to(path, target_is_directory=path.is_dir())
    return containers


@pytest.fixture
def run_tfx(tfx, same_cells, tiny_run):
    """Run a command line that must succeed."""

    def invoke(*arguments):
        result = tfx("-q", *arguments)
        assert result.code == 0, result.stderr
        return result

    return invoke


def test_predictions_and_embeddings_are_those_of_the_h5ad(run_tfx, tmp_path):
    tables, copies = [], []
    for file in ("own.h5ad", *CONTAINERS, *UNLABELLED):
        run_tfx("predict", file, "-o", "out.csv", "--overwrite")
        tables.append((tmp_path / "out.csv").read_text())
        run_tfx("embed", file, "-o", "out.h5ad", "--genes", "--overwrite")
        copies.append(anndata.read_h5ad(tmp_path / "out.h5ad"))
    assert tables == tables[:1] * len(tables)
    own, *others = copies
    for file, other in zip((*CONTAINERS, *UNLABELLED), others, strict=True):
        np.testing.assert_array_equal(own.obsm["X_tfx"], other.obsm["X_tfx"])
        np.testing.assert_array_equal(own.varm["X_tfx"], other.varm["X_tfx"])
        np.testing.assert_array_equal(own.X.toarray(), other.X.toarray())
        for name in own.obs.columns if file in CONTAINERS else ():
            assert own.obs[name].astype(str).tolist() == other.obs[name].astype(str).tolist()


def test_checks_changed_cells_and_presets_are_those_of_the_h5ad(run_tfx, tmp_path):
    found = []
    for file in ("own.h5ad", *CONTAINERS):
        check = run_tfx("check", file, "--json").json
        rows = [row for row in check["rows"] if row["family"] != "cost"]
        edit = run_tfx("generate", "--from", file, "--set", "sex=male", "--run", "tiny", "--json",
                       "--overwrite").json  # fmt: skip
        run_tfx("init", file, "-o", "preset.toml")
        preset = (tmp_path / "preset.toml").read_text()
        (tmp_path / "preset.toml").unlink()
        texts = [str(rows), str(edit["genes"]), preset]
        found.append([text.replace(file, "FILE") for text in texts])
    assert found == found[:1] * len(found)


def test_cells_of_10x_are_changed_as_far_as_they_are_known(run_tfx):
    found = [run_tfx("generate", "--from", file, "--set", "sex=male", "--run", "tiny", "--json",
                     "--overwrite").json["genes"] for file in UNLABELLED]  # fmt: skip
    assert found[0] == found[1]


def test_scores_and_stores_are_those_of_the_h5ad(run_tfx, tmp_path):
    found = []
    for number, file in enumerate(("own.h5ad", *CONTAINERS)):
        scores = run_tfx("eval", "tiny", file, "--baselines", "none", "--json").json["phenotypes"]
        run_tfx("prepare", file, "-o", f"store-{number}", "--set", "data.genes=40")
        store = Store.open(tmp_path / f"store-{number}")
        cells = store.read(np.arange(store.n_cells), store.panel(40)).toarray()
        # The order of cells depends on the name of their source.
        found.append((scores, store.phenotypes, sorted(map(tuple, cells))))
    assert found == found[:1] * len(found)
    filtered = run_tfx("check", "soma://cells.soma?obs_filter=sex == 'male'", "--json").json
    males = (anndata.read_h5ad("own.h5ad").obs["sex"] == "male").sum()
    assert filtered["facts"]["cells"] == males


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["check", "soma://gone.soma"], 4, "no SOMA experiment"),
        (["predict", "soma://cells.soma?filter=x", "-o", "a.csv"], 2, "unknown option 'filter=x'"),
        (["predict", "cells.soma", "-o", "a.csv"], 4, "soma://cells.soma"),
        *(
            (arguments, code, "obs has no columns (files of 10x have none): add labels in scanpy")
            for arguments, code in (
                (["eval", "tiny", "filtered_feature_bc_matrix"], 4),
                (["predict", "tenx.h5", "-o", "a.csv", "--label", "tissue"], 4),
                (["check", "tenx.h5"], 0),
            )
        ),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tfx, same_cells, tiny_run, arguments, code, words):
    result = tfx("-q", *arguments)
    assert (result.code, result.stderr.count("\n")) == (code, 1) or arguments[0] == "check"
    assert words in result.stderr + result.stdout
