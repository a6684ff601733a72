"""`tfx predict` and `tfx embed` on a file that the model has never seen."""

import json
import re
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from core.cells.builtin import load_builtin
from core.inference.annotate import note_on_embedding
from core.model.folder import CellModel

REPOSITORY = Path(__file__).parents[2]
NEW = "builtin:atlas?cells=300&seed=5"


@pytest.fixture(scope="session")
def new_cells(tmp_path_factory):
    """Return a file of other cells of the atlas, with a column of labels in another spelling."""
    cells = load_builtin(NEW)
    cells.obs["organ"] = [str(label).upper() for label in cells.obs["tissue"]]
    cells.obs.loc[cells.obs_names[:7], "organ"] = "moon rock"
    path = tmp_path_factory.mktemp("new") / "new.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture
def setting(tiny_run, new_cells, tmp_path):
    """Return a folder with the tiny run's model alone, and the new file."""
    shutil.move(tiny_run / "model", tmp_path / "model")
    shutil.rmtree(tmp_path / "runs")
    shutil.copy(new_cells, tmp_path / "new.h5ad")
    return tmp_path


# ------------------------------------------------------------------------------------ predict
def test_every_phenotype_gets_label_probability_and_flag(tfx, setting):
    result = tfx("predict", "new.h5ad", "-o", "out/labelled.h5ad", "--run", "model", "--json")
    assert result.code == 0, result.stderr
    document = result.json
    assert (document["schema"], document["cells"]) == ("tfx.predict/1", 300)
    before, after = ad.read_h5ad(setting / "new.h5ad"), ad.read_h5ad(setting / "out/labelled.h5ad")
    for name in ("sex", "tissue", "cell_type", "age", "disease"):
        assert after.obs[f"tfx_{name}"].dtype == "category"
        probability = after.obs[f"tfx_{name}_probability"]
        assert probability.between(0, 1).all()
        assert after.obs[f"tfx_{name}_unsure"].tolist() == (probability < 0.5).tolist()
        assert sum(document["phenotypes"][name]["cells"].values()) == 300
        assert (f"tfx_{name}_expected_years" in after.obs) == (name == "age")
    assert after.obs["tfx_age_expected_years"].between(5, 95).all()
    # What was there is as it was.
    pd.testing.assert_frame_equal(after.obs[list(before.obs)], before.obs)
    assert (after.X != before.X).nnz == 0
    assert after.uns["tfx_prediction"]["genes_missing"] == 0
    assert set(before.uns) < set(after.uns)
    # The tiny model knows sex from its two genes, on cells of other donors.
    assert (after.obs["tfx_sex"].astype(str) == after.obs["sex"].astype(str)).mean() > 0.9


def test_predictions_are_unsure_by_the_calibration_and_a_line_says_why(tfx, setting):
    known = {"n_cells": 100, "n_donors": 4, "accuracy": 0.8, "accuracy_low": 0.7, "majority": 0.6}
    curve = {"probabilities": [0.0, 0.9, 0.99], "kept_accuracies": [0.8, 0.9, 0.96]}
    record = json.loads((setting / "model" / "tfx.json").read_text())
    record["calibration"] = {
        "sex": known | {"temperature": 2.0} | curve,
        "age": known | {"majority": 0.8},
    }
    (setting / "model" / "tfx.json").write_text(json.dumps(record))
    command = ["predict", "new.h5ad", "--run", "model"]
    result = tfx(*command, "-o", "one.h5ad", "--json")
    assert result.code == 0, result.stderr
    assert result.json["calibrated"]
    of_phenotypes = result.json["phenotypes"]
    assert of_phenotypes["sex"]["unsure_below"] == 0.99
    assert of_phenotypes["age"]["unsure_below"] is None
    assert of_phenotypes["age"]["unsure"] == 300
    one = ad.read_h5ad(setting / "one.h5ad")
    assert one.obs["tfx_age_unsure"].all()
    probability = one.obs["tfx_sex_probability"]
    assert one.obs["tfx_sex_unsure"].tolist() == (probability < 0.99).tolist()
    assert json.loads(one.uns["tfx_prediction"]["unsure_below"])["sex"] == 0.99
    result = tfx(*command, "-o", "two.h5ad", "--unsure-at", 0.9)
    text = " ".join(result.stdout.split())
    assert (
        "- age: always unsure, because on the 100 validation cells of 4 donors the model is" in text
    )
    two = ad.read_h5ad(setting / "two.h5ad")
    assert two.obs["tfx_sex_unsure"].tolist() == (probability < 0.9).tolist()
    result = tfx(*command, "-o", "three.csv", "--unsure-below", 0.2)
    assert "always unsure" not in result.stdout
    assert pd.read_csv(setting / "three.csv")["tfx_age_unsure"].mean() < 0.9
    # A folder of an older tfx predicts as it did, and says so only where it decides.
    del record["calibration"]
    (setting / "model" / "tfx.json").write_text(json.dumps(record))
    result = tfx(*command, "-o", "old.h5ad")
    assert "of this model are not calibrated" in result.stdout
    old = ad.read_h5ad(setting / "old.h5ad").obs["tfx_sex_probability"]
    squares = probability**2, (1 - probability) ** 2  # that was at temperature 2
    np.testing.assert_allclose(old, squares[0] / sum(squares), atol=1e-4)
    result = tfx(*command, "-o", "older.h5ad", "--unsure-at", 0.9)
    assert result.code == 2
    assert "--unsure-at needs a calibrated model" in result.stderr
    assert not (setting / "older.h5ad").exists()


def test_the_same_cells_get_the_same_labels_whatever_the_file(tfx, setting):
    cells = ad.read_h5ad(setting / "new.h5ad")
    counts = sparse.csr_matrix(cells.X)
    sc.pp.normalize_total(cells, target_sum=1e6)
    sc.pp.log1p(cells)
    cells = cells[:, np.random.default_rng(0).permutation(cells.n_vars)].copy()
    cells.write_h5ad(setting / "logged.h5ad")
    assert counts.shape == cells.shape
    tables = []
    for name in ("new", "logged"):
        result = tfx("-q", "predict", f"{name}.h5ad", "-o", f"{name}.csv", "--run", "model")
        assert result.code == 0, result.stderr
        tables.append(pd.read_csv(setting / f"{name}.csv", index_col="cell"))
    assert list(tables[0].index) == list(cells.obs_names)
    for column in tables[0].columns:
        if column.endswith("_probability"):
            np.testing.assert_allclose(tables[0][column], tables[1][column], atol=2e-3)


def test_a_hint_is_read_in_another_spelling_and_what_is_unknown_is_told(tfx, setting):
    result = tfx(
        "predict", "new.h5ad", "-o", "out.h5ad", "--run", "model", "--label", "tissue=organ",
        "--json",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    assert result.json["given"] == ["tissue"]
    assert "tissue" not in result.json["phenotypes"]
    assert "--label tissue: the model does not know 'moon rock' (7)" in result.stderr
    assert json.loads(ad.read_h5ad(setting / "out.h5ad").uns["tfx_prediction"]["given"]) == {
        "tissue": "organ"
    }


def test_a_file_without_some_genes_is_labelled_and_they_are_counted(tfx, setting):
    cells = ad.read_h5ad(setting / "new.h5ad")
    genes = json.loads((setting / "model" / "genes.json").read_text())["ids"]
    cells[:, ~cells.var_names.isin(genes[:4])].copy().write_h5ad(setting / "fewer.h5ad")
    result = tfx("predict", "fewer.h5ad", "-o", "out.h5ad", "--run", "model", "--json")
    assert result.code == 0, result.stderr
    assert result.json["genes_missing"] == 4
    assert "fewer.h5ad lacks 4 of the model's" in result.stderr


def test_columns_that_are_there_are_not_overwritten(tfx, setting):
    assert tfx("-q", "predict", "new.h5ad", "-o", "one.h5ad", "--run", "model").code == 0
    result = tfx("-q", "predict", "one.h5ad", "-o", "two.h5ad", "--run", "model")
    assert result.code == 2
    assert "one.h5ad has obs/tfx_sex" in result.stderr
    assert "choose another --prefix" in result.stderr
    again = tfx(
        "-q", "predict", "one.h5ad", "-o", "two.h5ad", "--run", "model", "--prefix", "again_"
    )
    assert again.code == 0, again.stderr
    assert {"tfx_sex", "again_sex"} <= set(ad.read_h5ad(setting / "two.h5ad").obs)


@pytest.mark.usefixtures("drawn_figures")
def test_the_majority_of_neighbours_or_of_a_cluster_is_a_column(tfx, setting):
    result = tfx(
        "predict", "new.h5ad", "-o", "out.h5ad", "--run", "model", "--majority", "neighbours", "--plot",
        "dots.svg", "--markers", "XIST,RPS4Y1", "--unsure-below", "0.2", "--json",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    cells = ad.read_h5ad(setting / "out.h5ad").obs
    known = cells["tfx_cell_type_majority"] != "unknown"
    assert 0.2 < known.mean() < 1
    assert "tfx_sex_majority" not in cells  # a donor's, not a cell's
    counts = result.json["phenotypes"]["cell_type"]["majority"]
    assert counts["unknown"] == (~known).sum()
    assert sum(counts.values()) == 300
    drawing = (setting / "dots.svg").read_text()
    assert ">XIST</text>" in drawing
    assert ">macrophage</text>" in drawing

    result = tfx("predict", "new.h5ad", "-o", "o.csv", "--run", "model", "--majority", "tissue")
    assert "by majority" in result.stdout
    table = pd.read_csv(setting / "o.csv", index_col="cell")
    per_cluster = table.groupby(cells["tissue"].astype(str))["tfx_cell_type_majority"]
    assert (per_cluster.nunique() == 1).all()


# -------------------------------------------------------------------------------------- embed
def test_embeddings_are_ready_for_scanpy(tfx, setting):
    result = tfx(
        "embed", "new.h5ad", "-o", "out.h5ad", "--run", "model", "--genes", "--denoise", "smooth",
        "--json",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    assert (result.json["key"], result.json["width"]) == ("X_tfx", 32)
    before, after = ad.read_h5ad(setting / "new.h5ad"), ad.read_h5ad(setting / "out.h5ad")
    assert after.obsm["X_tfx"].shape == (300, 32)
    assert np.isfinite(after.obsm["X_tfx"]).all()
    assert len(np.unique(after.obsm["X_tfx"][:, 0])) > 100
    assert (after.X != before.X).nnz == 0
    genes = json.loads((setting / "model" / "genes.json").read_text())["ids"]
    known = after.var_names.isin(genes)
    assert np.isfinite(after.varm["X_tfx"][known]).all()
    assert np.isnan(after.varm["X_tfx"][~known]).all()
    # No layer: the genes that the model does not know would look like zeros.
    assert not after.layers
    smooth = after.obsm["smooth"]
    assert smooth.shape == (300, known.sum())
    assert list(after.var["smooth_known"]) == list(known)
    assert f"obsm['smooth'] (300 x {known.sum()})" in result.stderr
    # Expected values follow the genes: by gene, their means are those of the real cells.
    sc.pp.normalize_total(before, target_sum=1e4)
    sc.pp.log1p(before)
    real = np.asarray(before.X.mean(axis=0)).ravel()[known]
    expected = smooth.mean(axis=0)
    assert np.corrcoef(real, expected)[0, 1] > 0.9
    sc.pp.neighbors(after, use_rep="X_tfx", n_neighbors=5, method="gauss")  # umap compiles
    assert after.obsp["connectivities"].shape == (300, 300)


def test_an_embedding_that_is_there_is_not_overwritten(tfx, setting):
    cells = ad.read_h5ad(setting / "new.h5ad")
    cells.obsm["X_pca"] = np.zeros((300, 2), dtype=np.float32)
    cells.write_h5ad(setting / "new.h5ad")
    result = tfx("-q", "embed", "new.h5ad", "-o", "out.h5ad", "--run", "model", "--key", "X_pca")
    assert (result.code, result.stdout) == (2, ""), result.stderr
    assert "has obsm/X_pca already; choose another --key" in result.stderr
    assert not (setting / "out.h5ad").exists()


def test_a_cls_that_was_never_asked_is_told(tfx, setting):
    ask = ("embed", "new.h5ad", "--run", "model")
    said = "[CLS] of this model was not trained to summarise the cell"
    assert said in tfx(*ask, "-o", "cls.h5ad").stderr
    assert said not in tfx(*ask, "-o", "mean.h5ad", "--from", "mean").stderr
    config = CellModel.load(Path("model")).config
    for key in ("cell_summary", "cls_reconstruction", "cls_contrast"):
        asked = type(config)(**{**config.to_diff_dict(), key: True})
        assert note_on_embedding(asked, "cls") is None


def test_builtin_cells_can_be_embedded(tfx, setting):
    result = tfx("-q", "embed", NEW, "-o", "out.h5ad", "--run", "model", "--from", "cell_type")
    assert result.code == 0, result.stderr
    assert ad.read_h5ad(setting / "out.h5ad").obsm["X_tfx"].shape == (300, 32)


# -------------------------------------------------------------------------------- in Python
def test_the_example_of_the_docs_gives_what_the_commands_write(tfx, setting):
    page = (REPOSITORY / "docs" / "annotate.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    (setting / "runs" / "base").mkdir(parents=True)
    (setting / "runs" / "base" / "model").symlink_to(setting / "model")
    found = {}
    exec(code, found)
    adata = found["adata"]
    arguments = ["--run", "model", "--label", "tissue"]
    assert tfx("-q", "predict", "new.h5ad", "-o", "one.h5ad", *arguments).code == 0
    assert tfx("-q", "embed", "one.h5ad", "-o", "two.h5ad", "--run", "model").code == 0
    written = ad.read_h5ad(setting / "two.h5ad")
    pd.testing.assert_frame_equal(adata.obs, written.obs, check_categorical=True)
    np.testing.assert_array_equal(adata.obsm["X_tfx"], written.obsm["X_tfx"])
