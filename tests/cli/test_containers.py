"""Every command reads cells from MuData, SOMA and 10x as from .h5ad, with equal results."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.io import mmwrite

from core.cells.builtin import load_builtin
from core.cells.store import Store

CONTAINERS = ("cells.h5mu", "soma://cells.soma")


@pytest.fixture(scope="module")
def containers(tmp_path_factory):
    """Return a folder with the same cells in every container."""
    mudata, soma = pytest.importorskip("mudata"), pytest.importorskip("tiledbsoma.io")
    folder = tmp_path_factory.mktemp("containers")
    cells = load_builtin("builtin:atlas?cells=120&seed=7")[:60].copy()
    cells.write_h5ad(folder / "own.h5ad")
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


@pytest.mark.parametrize("spec", [*CONTAINERS, "filtered_feature_bc_matrix"])
def test_predictions_and_embeddings_are_those_of_the_h5ad(run_tfx, tmp_path, spec):
    tables, copies = [], []
    for file in ("own.h5ad", spec):
        run_tfx("predict", file, "-o", "out.csv", "--overwrite")
        tables.append((tmp_path / "out.csv").read_text())
        run_tfx("embed", file, "-o", "out.h5ad", "--genes", "--overwrite")
        copies.append(anndata.read_h5ad(tmp_path / "out.h5ad"))
    assert tables[0] == tables[1]
    own, other = copies
    np.testing.assert_array_equal(own.obsm["X_tfx"], other.obsm["X_tfx"])
    np.testing.assert_array_equal(own.varm["X_tfx"], other.varm["X_tfx"])
    np.testing.assert_array_equal(own.X.toarray(), other.X.toarray())
    for name in own.obs.columns if spec in CONTAINERS else ():
        assert own.obs[name].astype(str).tolist() == other.obs[name].astype(str).tolist()


@pytest.mark.parametrize("spec", CONTAINERS)
def test_checks_changed_cells_and_presets_are_those_of_the_h5ad(run_tfx, tmp_path, spec):
    found = []
    for file in ("own.h5ad", spec):
        check = run_tfx("check", file, "--json").json
        rows = [row for row in check["rows"] if row["family"] != "cost"]
        edit = run_tfx("generate", "--from", file, "--set", "sex=male", "--run", "tiny", "--json",
                       "--overwrite").json  # fmt: skip
        run_tfx("init", file, "-o", "preset.toml")
        preset = (tmp_path / "preset.toml").read_text()
        (tmp_path / "preset.toml").unlink()
        texts = [str(rows), str(edit["genes"]), preset]
        found.append([text.replace(file, "FILE") for text in texts])
    assert found[0] == found[1]


def test_scores_and_stores_are_those_of_the_h5ad(run_tfx, tmp_path):
    found = []
    for number, file in enumerate(("own.h5ad", "soma://cells.soma")):
        scores = run_tfx("eval", "tiny", file, "--baselines", "none", "--json").json["phenotypes"]
        run_tfx("prepare", file, "-o", f"store-{number}", "--set", "data.genes=40")
        store = Store.open(tmp_path / f"store-{number}")
        cells = store.read(np.arange(store.n_cells), store.panel(40)).toarray()
        # The order of cells depends on the name of their source.
        found.append((scores, store.phenotypes, sorted(map(tuple, cells))))
    assert found[0] == found[1]
    filtered = run_tfx("check", "soma://cells.soma?obs_filter=sex == 'male'", "--json").json
    males = (anndata.read_h5ad("own.h5ad").obs["sex"] == "male").sum()
    assert filtered["facts"]["cells"] == males


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["check", "soma://gone.soma"], 4, "no SOMA experiment"),
        (["predict", "soma://cells.soma?filter=x", "-o", "a.csv"], 2, "unknown option 'filter=x'"),
        (["predict", "cells.soma", "-o", "a.csv"], 4, "soma://cells.soma"),
        (["eval", "tiny", "filtered_feature_bc_matrix"], 4, "files of 10x have none): add labels"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tfx, same_cells, tiny_run, arguments, code, words):
    result = tfx("-q", *arguments)
    assert (result.code, result.stderr.count("\n")) == (code, 1) or arguments[0] == "check"
    assert words in result.stderr + result.stdout
