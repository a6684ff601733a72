"""`import transformerics as tfx`: quick to import, and the commands as functions."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import transformerics as tfx
from core.cells.builtin import load_builtin
from core.errors import ConfigurationError
from core.evaluation.calibration import fit_calibration
from core.evaluation.predict import predict_phenotypes
from core.generation.comparison import find_training_store
from core.model.calibration import temper, unsure_rules
from tests.tiny_atlas import tiny_preset


def run_python(code, folder):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_import_loads_nothing_heavy_and_lists_the_public_names(tmp_path):
    code = (
        "import sys, transformerics as tfx; print(*dir(tfx)); "
        "print({'torch', 'anndata', 'pandas', 'numpy'} & set(sys.modules))"
    )
    done = run_python(code, tmp_path)
    names, loaded = done.stdout.splitlines()
    assert names.split() == sorted(tfx.__all__)
    assert loaded == "set()"
    for name in tfx.__all__:
        assert callable(getattr(tfx, name))
        assert getattr(tfx, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'plot'"):
        tfx.plot  # noqa: B018


@pytest.mark.parametrize("name", ["core", "presets"])
def test_a_folder_of_the_user_that_hides_a_package_is_named_and_the_recipe_helps(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    done = run_python("import transformerics", tmp_path)
    assert f"finds the package '{name}' of transformerics at {tmp_path / name}" in done.stderr
    recipe = "import os, sys; sys.path.sort(key=lambda place: place in ('', os.getcwd())); "
    done = run_python(recipe + "import transformerics as tfx; tfx.Store", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train the tiny preset by the function."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "tiny.toml").write_text(tiny_preset(masking__genes="uniform").to_toml())
    model = tfx.train(
        folder / "tiny.toml", folder / "run", {"train.max_steps": 2, "train.eval_cells": 1000}
    )
    assert model.provenance["step"] == 2
    return folder / "run"


@pytest.fixture
def new_cells():
    return load_builtin("builtin:atlas?cells=60&seed=5")


def test_a_model_is_described_in_a_few_lines(run):
    text = repr(tfx.CellModel.load(run / "model"))
    assert len(text.splitlines()) <= 10
    for words in ("CellModel", "genes", "sex (2)", "layout", "weights", "(simulated)"):
        assert words in text


def test_a_trained_model_is_calibrated_on_its_validation_cells(run, new_cells):
    model = tfx.CellModel.load(run / "model")
    store = find_training_store(model)
    rows = store.rows("validation")
    plain = replace(model, calibration={})
    probabilities = predict_phenotypes(plain, store, rows)
    truth = {
        name: store.phenotype_codes[rows, slot] for name, slot in model.config.predicted.items()
    }
    known = fit_calibration(truth, probabilities, store.donors[rows], seed=0)
    assert known == model.calibration
    assert len({one.temperature for one in known.values()}) == 5
    calibrated = predict_phenotypes(model, store, rows)["tissue"]
    wanted = temper(probabilities["tissue"], known["tissue"].temperature)
    np.testing.assert_allclose(calibrated, wanted, atol=1e-6)
    labelled = tfx.predict(model, new_cells, unsure_at=0.6)
    rules = unsure_rules(known, known, at=0.6)
    for name, rule in rules.items():
        is_unsure = labelled.obs[f"tfx_{name}_probability"] < rule.below
        assert labelled.obs[f"tfx_{name}_unsure"].tolist() == is_unsure.tolist()
    with pytest.raises(ConfigurationError, match="needs a calibrated model"):
        tfx.predict(plain, new_cells, unsure_at=0.6)


def test_cells_are_labelled_and_embedded_and_the_argument_stays_as_it_was(run, new_cells, tmp_path):
    columns = list(new_cells.obs)
    labelled = tfx.predict(run, new_cells, given=["tissue"])
    assert list(new_cells.obs) == columns
    assert {"tfx_sex", "tfx_sex_probability", "tfx_sex_unsure"} <= set(labelled.obs)
    assert "tfx_tissue" not in labelled.obs
    embedded = tfx.embed(run / "model", labelled, place="mean")
    assert embedded.obsm["X_tfx"].shape == (60, 32)
    new_cells.write_h5ad(tmp_path / "new.h5ad")
    from_file = tfx.embed(run, tmp_path / "new.h5ad", place="mean")
    np.testing.assert_array_equal(from_file.obsm["X_tfx"], embedded.obsm["X_tfx"])
    backed = ad.read_h5ad(tmp_path / "new.h5ad", backed="r")
    assert tfx.predict(run, backed).n_obs == 60


def test_cells_are_generated_and_edited(run, new_cells):
    model = tfx.CellModel.load(run / "model")
    cells = tfx.generate(model, {"sex": "female"}, 5, steps=2, decode="mean", seed=3)
    assert cells.n_obs == 5
    assert (cells.obs["sex"] == "female").all()
    assert cells.uns["tfx_generation"]["decode"] == "mean"
    with pytest.raises(ConfigurationError, match="steps must be at least 1"):
        tfx.generate(model, steps=0)
    edited = tfx.edit(model, new_cells, {"sex": "female"}, steps=2)
    assert edited.layers["before"].shape == edited.X.shape
    assert (edited.obs["sex"] == "female").all()


def test_a_run_is_scored_on_held_out_cells(run):
    report = tfx.evaluate(run, baselines=(), max_cells=20)
    assert 0 <= report.phenotypes["cell_type"]["model"].accuracy <= 1


def test_interactions_are_a_table_whatever_the_cells_are(run, tmp_path):
    panel = tfx.CellModel.load(run / "model").panel
    cells = load_builtin("builtin:atlas?cells=200&seed=5")
    common = [gene for gene in panel.symbols if (cells[:, gene].X > 0).sum() >= 10][:3]
    table = tfx.interactions(run, cells, genes=common, error=1.0)
    assert len(table) == 6
    assert {"source", "target", "weight", "q", "pearson"} <= set(table)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = tfx.interactions(run, tmp_path / "cells.h5ad", genes=common, error=1.0)
    np.testing.assert_array_equal(again["weight"], table["weight"])
    of_store = tfx.interactions(run, where="split=train", genes=common, error=1.0, seed=1)
    assert set(of_store["context"]) == {"split=train"}


def test_perturbed_cells_and_screens_are_those_of_the_command(run):
    cells = load_builtin("builtin:atlas?cells=200&seed=5")
    panel = tfx.CellModel.load(run / "model").panel
    gene = next(gene for gene in panel.symbols if (cells[:, gene].X > 0).sum() >= 20)
    found = tfx.perturb(run, cells, knock_out=[gene], n_cells=60)
    assert found.n_obs == 120
    assert found.obs["target_gene"].value_counts().to_dict() == {"non-targeting": 60, gene: 60}
    assert (found[found.obs["target_gene"] == gene, gene].X.toarray() == 0).all()
    assert {"shift", "q", "correlation", "other_perturbations"} <= set(found.var)
    assert set(found.uns["tfx_phenotype_shifts"]["phenotype"]) >= {"sex"}
    table = tfx.screen(run, cells, phenotype="sex", value="male")
    assert {"gene", "shift", "alone", "q"} <= set(table)
