"""`tfx eval --cross-validate donors` through its entry point: few donors, from `tfx init` to the report."""

import json
import re
import shutil

import numpy as np
import pytest

from core.cells.store import Store
from core.model.folder import CellModel
from core.runlog import RunReader
from tests.cells.examples import make_adata, write
from tfx_cli import eval_command

#: Only to be quick; every other value is the draft's.
QUICK = ["--steps", "4", "--set", "model.layers=1", "--set", "data.genes=20"]
QUICK += ["--set", "model.log_linear=false", "--set", "model.cell_summary=false"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with a preset that `tfx init` wrote for three donors, and its run."""
    return tmp_path_factory.mktemp("few-donors")


@pytest.fixture
def few_donors(trained, tfx, tmp_path):
    """Return a folder like it, in which the test runs."""
    if not any(trained.iterdir()):
        adata = make_adata(n_cells=180, n_donors=3)
        adata.obs = adata.obs[["donor_id", "sex"]].assign(treatment=["ctrl", "drug"] * 90)
        adata.obs["donor_id"] = adata.obs["donor_id"].map({"D0": "a, b", "D1": "O'Neil", "D2": "c"})
        write(adata, tmp_path)
        result = tfx("init", "cells.h5ad", "-o", "few.toml", "--device", "cpu")
        assert result.code == 0, result.stderr
        assert "3 donors are too few to hold some out" in " ".join(result.stdout.split())
        result = tfx("train", "few.toml", *QUICK)
        assert result.code == 0, result.stderr
        assert "next: tfx eval runs/few --cross-validate donors" in result.stdout
        shutil.copytree(tmp_path, trained, dirs_exist_ok=True)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_every_cell_is_scored_by_a_model_without_its_donor(tfx, few_donors, monkeypatch):
    assert "tfx eval --cross-validate donors" in (few_donors / "few.toml").read_text()
    model = CellModel.load(few_donors / "runs/few/model")
    assert not model.calibration
    assert model.provenance["step"] == 4
    assert tfx("eval").code == 4, "there are no test cells"
    calls = []

    class Stop:
        """A signal that comes after some steps."""

        def __enter__(self):
            return lambda: calls.append(None) or ("SIGINT" if len(calls) > 12 else "")

        def __exit__(self, *_):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(eval_command, "stop_on_signals", Stop)
        result = tfx("eval", "--cross-validate", "donors")
    assert result.code == 75, result.stderr
    assert re.search(
        r"Stopped in model \d of 3, without donor .*the same command continues", result.stderr
    )
    assert not (few_donors / "runs/few/eval-cross-validation").exists()
    assert not CellModel.load(few_donors / "runs/few/model").calibration
    result = tfx("eval", "--cross-validate", "donors", "--json")
    assert result.code == 0, result.stderr
    assert "cross-validation: model 3 of 3, without donor c" in result.stderr
    report = result.json
    assert (report["facts"]["split"], report["facts"]["n_cells"]) == ("cross-validation", 180)
    treatment = report["phenotypes"]["treatment"]
    assert list(treatment) == ["model", "logistic_regression", "marginal", "majority"]
    assert treatment["model"]["n_cells"] == 180
    assert {one["donor"] for one in treatment["model"]["donors"]["each"]} == {"a, b", "O'Neil", "c"}
    assert treatment["model"]["intervals"]["resampled"] == "donors"
    assert report["genes"]["n_masked"] > 0
    assert (
        json.loads((few_donors / "runs/few/eval-cross-validation/report.json").read_text())
        == report
    )
    # The models saw other donors alone.
    (store,) = (few_donors / "stores").iterdir()
    store = Store.open(store)
    folders = sorted((few_donors / "runs/few/folds").iterdir())
    assert [RunReader(folder).status["state"] for folder in folders] == ["finished"] * 3
    assert [re.sub(r"^\d+-", "", one.name) for one in folders] == ["O_Neil", "a_b", "c"]
    wanted = []
    for folder, donor in zip(folders, store.donor_names, strict=True):
        fold = CellModel.load(folder / "model")
        others = store.labels["donor"] != donor
        assert fold.reference.counts.sum() == others.sum()
        where = fold.provenance["where"][-1]
        np.testing.assert_array_equal(store.where(where), others)
        wanted.append((~others).sum())
    assert sum(wanted) == 180
    # The model of the run has the weights it had, is calibrated, and its card has the scores.
    after = CellModel.load(few_donors / "runs/few/model")
    assert after.calibration["treatment"].n_cells == 180
    assert after.calibration["treatment"].n_donors == 3
    weights = after.network.state_dict()
    assert all((value == weights[name]).all() for name, value in model.network.state_dict().items())
    card = (few_donors / "runs/few/model/README.md").read_text()
    assert "180 cells, each predicted by a model that was trained without its donor" in card
    # The same command trains nothing again, and finds the same.
    again = tfx("eval", "runs/few", "--cross-validate", "donors", "--json")
    assert "model 1 of 3" not in again.stderr
    assert again.json == report


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split", "test"], "--split: cannot be used with --cross-validate"),
        (["--max-cells", "5"], "--max-cells: cannot be used with --cross-validate"),
        (["--where", "sex=male"], "--where: cannot be used with --cross-validate"),
    ],
)
def test_options_that_choose_other_cells_are_refused(tfx, few_donors, options, words):
    result = tfx("eval", "--cross-validate", "donors", *options)
    assert (result.code, words in result.stderr) == (2, True), result.stderr
