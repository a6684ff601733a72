"""A classifier by the command line: fine-tuned from a run on new cells, evaluated, put to work."""

import json
import shutil

import anndata as ad
import pytest

from core.cells.builtin import load_builtin

CLASSIFY = """\
[data]
files = "labelled.h5ad"
[data.split]
by = "cells"
[model]
start_from = "runs/tiny"
log_linear = true
[classification]
column = "my labels"
given = ["sex"]
[train]
task = "classification"
max_steps = 10
eval_steps = 5
eval_cells = 40
save_steps = 5
device = "cpu"
precision = "fp32"
"""


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Return a file of other cells, of a part of the genes, with a column of labels of its own."""
    cells = load_builtin("builtin:atlas?cells=400&seed=5")
    tissues = cells.obs["tissue"].astype(str)
    cells.obs["my labels"] = ["fluid" if one == "blood" else one for one in tissues]
    cells.obs.loc[cells.obs_names[:9], "my labels"] = "unknown"
    path = tmp_path_factory.mktemp("labelled") / "labelled.h5ad"
    cells[:, [number % 4 > 0 for number in range(cells.n_vars)]].copy().write_h5ad(path)
    return path


@pytest.fixture
def setting(tfx, tiny_run, labelled, tmp_path):
    """Return a folder with the tiny run, the labelled file and a preset that classifies it."""
    shutil.copy(labelled, tmp_path / "labelled.h5ad")
    (tmp_path / "mine.toml").write_text(CLASSIFY, encoding="utf-8")
    return tmp_path


def test_a_run_becomes_a_classifier_of_a_column_of_new_cells(tfx, setting):
    forecast = tfx("train", "mine.toml", "--dry-run", "--json")
    assert forecast.code == 0, forecast.stderr
    trained = tfx("train", "mine.toml", "--json")
    assert trained.code == 0, trained.stderr
    of_labels = {"acc/my labels", "f1/my labels", "gain/my labels"}
    assert set(trained.json["validation"]) == {"loss", "loss/phenotypes", "score"} | of_labels
    assert "are not in the store, and are left out" in trained.stderr, "a quarter of the genes"
    config = (setting / "runs/mine/config.toml").read_text(encoding="utf-8")
    assert "hidden_size = 32  # model.start_from" in config
    more = tfx("train", "runs/mine", "--steps", 15, "--json")
    assert (more.code, more.json["steps"]) == (0, 15), more.stderr

    evaluated = tfx("eval", "runs/mine", "--json")
    assert evaluated.code == 0, evaluated.stderr
    methods = evaluated.json["phenotypes"]["my labels"]
    assert list(evaluated.json["phenotypes"]) == ["my labels"]
    assert set(methods) == {"model", "logistic_regression", "marginal", "majority"}
    assert "fluid" in methods["model"]["values"]
    assert (setting / "runs/mine/eval/report.html").is_file()
    again = tfx("eval", "runs/mine", "labelled.h5ad")
    assert again.code == 0, again.stderr
    assert "the model was trained on" in again.stdout

    told = tfx("predict", "labelled.h5ad", "-o", "told.h5ad", "--run", "runs/mine",
               "--label", "sex", "--json")  # fmt: skip
    assert told.code == 0, told.stderr
    assert list(told.json["phenotypes"]) == ["my labels"]
    obs = ad.read_h5ad(setting / "told.h5ad").obs
    assert obs["tfx_my labels_probability"].between(0, 1).all()
    assert [name for name in obs if name.startswith("tfx_")] == [
        "tfx_my labels", "tfx_my labels_probability", "tfx_my labels_unsure"
    ]  # fmt: skip
    assert tfx("embed", "labelled.h5ad", "-o", "x.h5ad", "--run", "runs/mine").code == 0

    for wrong, said in (
        (("predict", "labelled.h5ad", "-o", "n.h5ad", "--run", "runs/mine", "--label", "tissue"),
         "was not trained with tissue given"),
        (("generate", "--run", "runs/mine", "-n", 1, "-o", "n.h5ad"), "generates nothing"),
        (("embed", "labelled.h5ad", "-o", "n.h5ad", "--run", "runs/mine", "--denoise", "d"),
         "denoising needs a model of genes"),
        (("eval", "runs/mine", "labelled.h5ad", "--label", "tissue=tissue"),
         "the model does not know a phenotype 'tissue'"),
    ):  # fmt: skip
        refused = tfx(*wrong)
        assert refused.code == 2, refused.stderr
        assert said in refused.stderr
        assert not (setting / "n.h5ad").exists()


def test_one_value_against_the_rest_by_any_label_of_the_file(tfx, setting):
    trained = tfx("train", "mine.toml", "--set", "classification.positive=fluid", "--json")
    assert trained.code == 0, trained.stderr
    record = json.loads((setting / "runs/mine/model/config.json").read_text(encoding="utf-8"))
    assert (record["classified"], record["positive"]) == ("my labels", "fluid")
    scored = tfx("eval", "runs/mine", "labelled.h5ad", "--json").json["phenotypes"]["my labels"]
    assert scored["model"]["values"] == ["fluid", "not fluid"]
    assert scored["model"]["n_cells"] == 391, "all but those that are unknown"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.layers=5", "model.layers = 5 (1 there)"),
        ("classification.column=nothing", "which does not exist"),
        ("classification.positive=fluids", "did you mean 'fluid'"),
        ("model.start_from=nowhere", "is no folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run_begins(tfx, setting, change, said):
    refused = tfx("train", "mine.toml", "--set", change)
    assert refused.code in (2, 4)
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (setting / "runs/mine").exists()
