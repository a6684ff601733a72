"""`tfx eval RUN FILES`: labelled files that the model has never seen."""

import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from core.cells.builtin import load_builtin
from tests.cli.conftest import run_in
from tests.cli.refusals import refused

NEW = "builtin:atlas?cells=200&seed=5"


@pytest.fixture(scope="session")
def new_cells(tmp_path_factory):
    """Return a file of other cells of the atlas: labels in another spelling, some unknown."""
    cells = load_builtin(NEW)
    cells.obs["organ"] = [str(label).upper() for label in cells.obs["tissue"]]
    cells.obs.loc[cells.obs_names[:7], "organ"] = "moon rock"
    cells.obs.loc[cells.obs_names[7:10], "organ"] = np.nan
    path = tmp_path_factory.mktemp("new") / "new.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture
def new(tiny_run, new_cells, tmp_path):
    """Return the new file in the folder of the test, beside the tiny run."""
    return shutil.copy(new_cells, tmp_path / "new.h5ad")


@pytest.fixture(scope="module")
def scored(tiny_training, new_cells, tmp_path_factory):
    """Evaluate the tiny run on the new file: the folder of the run and the report."""
    folder = tmp_path_factory.mktemp("scored")
    shutil.copytree(tiny_training[0] / "runs", folder / "runs")
    shutil.copy(new_cells, folder / "new.h5ad")
    result = run_in(folder, "eval", "tiny", "new.h5ad", "--json")
    assert result.code == 0, result.stderr
    return folder / "runs" / "tiny", result.json


def test_a_new_file_is_scored_beside_baselines_of_the_training_cells(scored):
    run, document = scored
    assert document["schema"] == "tfx.eval/3"
    facts = document["facts"]
    assert (facts["data"], facts["n_cells"], facts["n_genes_missing"]) == ("new.h5ad", 200, 0)
    assert facts["n_cells_of_baselines"] > 400
    assert list(document["phenotypes"]) == ["sex", "tissue", "cell_type", "age", "disease"]
    for methods in document["phenotypes"].values():
        assert list(methods) == ["model", "logistic_regression", "marginal", "majority"]
        assert {scores["n_cells"] for scores in methods.values()} == {200}
        assert methods["model"]["intervals"]["resampled"] == "donors"
    assert document["phenotypes"]["sex"]["model"]["accuracy"] > 0.9
    report = json.loads((run / "eval-new" / "report.json").read_text())
    assert report["phenotypes"] == document["phenotypes"]
    assert "conditions" not in report


def test_accuracy_is_that_of_the_labels_of_tfx_predict(tfx, new, scored, tmp_path):
    document = scored[1]
    predicted = tfx("predict", "new.h5ad", "-o", "labels.csv", "--run", "tiny")
    assert predicted.code == 0, predicted.stderr
    told = pd.read_csv(tmp_path / "labels.csv", index_col="cell")
    truth = ad.read_h5ad(new).obs
    for name, column in (("sex", "sex"), ("tissue", "tissue"), ("cell_type", "cell_type")):
        expected = (told[f"tfx_{name}"] == truth[column].astype(str)).mean()
        found = document["phenotypes"][name]["model"]["accuracy"]
        assert found == pytest.approx(expected), name


def test_labels_are_brought_to_the_models_words_and_unknown_ones_left_out(tfx, new, scored):
    ask = ("eval", "tiny", "new.h5ad", "--baselines", "none", "--json")
    result = tfx(*ask, "--label", "tissue=organ")
    assert result.code == 0, result.stderr
    tissue = result.json["phenotypes"]["tissue"]["model"]
    assert tissue["n_cells"] == 190
    assert (
        "tissue: 7 cells of new.h5ad have labels that the model does not know, and are not scored: "
        "'moon rock' (7)"
    ) in result.json["notes"]
    whole = np.array(scored[1]["phenotypes"]["tissue"]["model"]["confusion"])
    assert (np.array(tissue["confusion"]) <= whole).all()


def test_genes_that_the_file_lacks_are_masked_and_kept_from_the_baselines(tfx, new, tiny_run):
    panel = json.loads((tiny_run / "model" / "genes.json").read_text())["ids"]
    cells = ad.read_h5ad(new)
    lost = sorted({*panel[::4], "XIST"})
    cells[:, ~cells.var_names.isin(lost)].copy().write_h5ad("few.h5ad")
    result = tfx("eval", "tiny", "few.h5ad")
    assert result.code == 0, result.stderr
    report = json.loads((tiny_run / "eval-few" / "report.json").read_text())
    assert report["facts"]["n_genes_missing"] == len(lost)
    assert not set(report["two_genes"]["sex"]["genes"]) & set(lost)
    first = result.stdout.splitlines()[0]
    assert first == f"tiny on few.h5ad: 200 cells, {len(panel)} genes ({len(lost)} of them missing)"


def test_a_phenotype_without_a_column_is_named_and_not_scored(tfx, new):
    cells = ad.read_h5ad(new)
    del cells.obs["disease"]
    cells.obs["sex"] = "hermaphrodite"
    cells.write_h5ad("bare.h5ad")
    document = tfx("eval", "tiny", "bare.h5ad", "--baselines", "none", "--json").json
    assert list(document["phenotypes"]) == ["tissue", "cell_type", "age"]
    notes = document["notes"]
    assert "disease: bare.h5ad has no column 'disease'; not scored" in notes
    assert any(
        note.startswith("sex: not scored (bare.h5ad: the model knows none") for note in notes
    )


def test_several_files_are_scored_together(tfx, new, scored):
    cells = ad.read_h5ad(new)
    cells[:120].copy().write_h5ad("one.h5ad")
    cells[120:].copy().write_h5ad("two.h5ad")
    result = tfx("eval", "one.h5ad", "two.h5ad", "-o", "report", "--json")  # the newest run
    assert result.code == 0, result.stderr
    for name, methods in result.json["phenotypes"].items():
        for method, scores in methods.items():
            assert scores["confusion"] == scored[1]["phenotypes"][name][method]["confusion"]


def test_a_model_folder_alone_is_enough_and_has_no_baselines(tfx, new, tiny_run, tmp_path):
    shutil.move(tiny_run / "model", tmp_path / "elsewhere" / "model")
    shutil.rmtree(tiny_run)
    path = tmp_path / "elsewhere" / "model" / "tfx.json"
    record = json.loads(path.read_text())
    record["provenance"]["store"] = "gone"
    path.write_text(json.dumps(record))
    result = tfx("eval", "elsewhere/model", "new.h5ad", "--json")
    assert result.code == 0, result.stderr
    assert list(result.json["phenotypes"]["sex"]) == ["model"]
    assert any("are gone or changed, so there are no baselines" in n for n in result.json["notes"])
    assert (tmp_path / "elsewhere" / "eval-new" / "report.html").is_file()


def test_donors_that_were_trained_on_are_said(tfx, tiny_run):
    document = tfx(
        "eval", "tiny", "builtin:atlas?cells=600&seed=0", "--baselines", "none", "--json"
    ).json
    assert any(
        "have cells in training, so the scores may be too high" in note
        for note in document["notes"]
    )
    assert (tiny_run / "eval-atlas_cells_600_seed_0" / "report.json").is_file()


def test_a_sample_is_the_same_every_time(tfx, new):
    one, two = (tfx("eval", "tiny", "new.h5ad", "--max-cells", 50, "--baselines", "none", "--json")
                for _ in range(2))  # fmt: skip
    assert one.stdout == two.stdout
    assert one.json["facts"]["n_cells"] == 50


# ------------------------------------------------------------------------------------ refusals
def test_a_file_without_labels_is_refused(tfx, new, tiny_run):
    cells = ad.read_h5ad(new)
    cells.obs = cells.obs[[]]
    cells.write_h5ad("blank.h5ad")
    result = tfx("-q", "eval", "tiny", "blank.h5ad")
    refused(result, 4, "blank.h5ad: obs has no columns")
    assert not list(tiny_run.glob("eval*"))
