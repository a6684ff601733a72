"""`tfx eval --generated`: generated cells beside real ones and the classical generators."""

import functools
import html
import json
import shutil

import anndata as ad
import numpy as np
import pytest

from core.cells.builtin import load_builtin
from core.evaluation.fidelity import scvi_baseline
from core.evaluation.fidelity.class_baselines import REBALANCED_BY
from core.evaluation.fidelity.report import RULES
from core.generation import comparison
from core.inference import evaluate_generated as module
from core.model.folder import CellModel

KEY = "tfx_generation"


@pytest.fixture(scope="session")
def generated_cells(tiny_training, tmp_path_factory):
    """Return a file of cells of the tiny run."""
    from tfx_cli.app import run

    path = tmp_path_factory.mktemp("generated") / "generated.h5ad"
    folder = str(tiny_training[0] / "runs" / "tiny")
    assert run(["-q", "generate", "--run", folder, "-n", "400", "-o", str(path)]) == 0
    return path


@pytest.fixture
def made(tiny_run, generated_cells, tmp_path, monkeypatch):
    """Return the file in the folder of the test, beside the tiny run; judged quickly."""
    quick = functools.partial(module.evaluate_generated, n_seeds=1, n_trees=5, n_resamples=4)
    monkeypatch.setattr(module, "evaluate_generated", quick)
    # A first UMAP takes 20 s of compiling; that of the tests of the report is enough.
    monkeypatch.setattr("core.evaluation.fidelity.report.umap", lambda points: points[:, :2])
    return shutil.copy(generated_cells, tmp_path / "generated.h5ad")


def change(path, edit):
    cells = ad.read_h5ad(path)
    edit(cells)
    cells.write_h5ad(path)


def test_cells_are_judged_beside_the_reference_and_both_baselines(tfx, made, tiny_run):
    result = tfx("eval", "tiny", "--generated", "generated.h5ad", "--json")
    assert result.code == 0, result.stderr
    document = result.json
    assert document["schema"] == "tfx.fidelity/2"
    assert list(document["scores"]) == ["generated", "real", "copula", "independent", "training"]
    for method, measures in document["scores"].items():
        assert set(measures) == {rule.key for rule in RULES}
        assert set(document["marks"][method]) == set(measures)
        assert 0 <= measures["rf_auc"]["value"] <= 1
    assert document["scores"]["training"]["nn_ratio"]["value"] == 0
    assert list(document["rebalancing"]) == list(REBALANCED_BY)
    assert document["facts"]["n_cells_generated"] == 400
    assert "held-out donors" in document["facts"]["real_cells"]
    assert document["facts"]["classes"] == "cell_type"
    # A threshold that other real cells miss, too, decides nothing.
    met = [
        mark["met"] for mark in document["marks"]["generated"].values() if mark["met"] is not None
    ]
    assert 8 < len(met) <= 16
    assert document["verdict"][0].startswith(f"{sum(met)} of {len(met)} thresholds are met")
    assert any("simulated" in note for note in document["notes"])
    report = json.loads((tiny_run / "eval-generated" / "report.json").read_text())
    assert report["scores"] == document["scores"]
    page = (tiny_run / "eval-generated" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page
    assert "Rare classes filled up" in page
    for sentence in document["verdict"]:
        assert html.escape(sentence) in page


def test_the_table_marks_which_thresholds_are_met(tfx, made):
    result = tfx("eval", "tiny", "--generated", "generated.h5ad", "-o", "there")
    assert result.code == 0, result.stderr
    marks = {
        line.split("  ")[0]: line.endswith("NOT MET")
        for line in result.stdout.splitlines()
        if line.endswith((" met", " NOT MET"))
    }
    assert set(marks) <= {rule.title for rule in RULES}
    assert len(marks) > 8
    assert f"{len(marks) - sum(marks.values())} of {len(marks)} thresholds are met" in result.stdout
    assert "real (reference)" in result.stdout
    assert "independent" in result.stdout


def test_files_of_real_cells_stand_in_for_the_held_out_ones(tfx, made, monkeypatch):
    load_builtin("builtin:atlas?cells=400&seed=7").write_h5ad("real.h5ad")
    asked = ("eval", "tiny", "real.h5ad", "--generated", "generated.h5ad", "--json")
    document = tfx(*asked, "--classes", "cell_type,sex").json
    assert document["facts"]["real_cells"] == "400 cells of real.h5ad"
    assert document["facts"]["classes"] == "cell_type and sex"
    assert all("male" in name for name in document["class_cells"])
    # Without the store the baselines have nothing to learn from, and that is said.
    monkeypatch.setattr(comparison, "open_training_store", lambda model: None)
    document = tfx(*asked).json
    assert list(document["scores"]) == ["generated", "real"]
    assert document["marks"]["generated"]["copies"]["met"] is None
    assert document["scores"]["generated"]["copies"]["value"] is None
    assert any("no baselines" in note for note in document["notes"])


def test_only_real_cells_of_the_request_count(tfx, made):
    def ask(cells):
        cells.uns[KEY]["request"] = {"sex": "female"}

    change(made, ask)
    real = load_builtin("builtin:atlas?cells=400&seed=7")
    real.write_h5ad("real.h5ad")
    document = tfx("eval", "tiny", "real.h5ad", "--generated", "generated.h5ad", "--json").json
    assert document["facts"]["requested"] == "sex female"
    n_female = int((real.obs["sex"] == "female").sum())
    assert document["facts"]["real_cells"] == f"{n_female} cells of real.h5ad"


def test_counts_are_normalised_by_their_library_sizes(tfx, made):
    ask = ("generate", "--run", "tiny", "-n", "400", "-o", "counts.h5ad", "--decode", "counts")
    result = tfx(*ask, "--json")
    assert result.code == 0, result.stderr
    cells = ad.read_h5ad("counts.h5ad")
    assert (cells.X.data == cells.X.data.round()).all()
    assert result.json["fidelity"]["gene_mean_r"] > 0.9  # it speaks of log values
    counts = tfx("eval", "tiny", "--generated", "counts.h5ad", "--json", "-o", "a").json["scores"]
    values = tfx("eval", "tiny", "--generated", made.name, "--json", "-o", "b").json["scores"]
    for measure in ("gene_mean_r", "genes_mean", "dropout_mae"):
        both = [one["generated"][measure]["value"] for one in (counts, values)]
        assert both[0] == pytest.approx(both[1], abs=0.02)
    change("counts.h5ad", lambda cells: cells.obs.pop("library_size"))
    refused = tfx("eval", "tiny", "--generated", "counts.h5ad", "-o", "c")
    assert refused.code == 4
    assert "counts.h5ad holds counts, but lacks the obs['library_size']" in refused.stderr


def test_scvi_learns_from_the_counts_of_the_training_cells(tfx, made, tiny_run, monkeypatch):
    """The package itself is an extra; here something stands in its place that shows what it is given."""
    given = {}

    def repeats(counts, totals, classes, **others):
        given.update(counts=counts, totals=totals)
        values = np.log1p(counts.toarray() * 1e4 / totals[:, None]).astype(np.float32)

        def draw(wanted, rng):
            return values[[rng.choice(np.flatnonzero(classes == one)) for one in wanted]]

        return draw

    monkeypatch.setattr(module, "check_scvi", lambda: None)
    monkeypatch.setattr(module, "fit_scvi", repeats)
    ask = ("eval", "tiny", "--generated", "generated.h5ad", "--baselines", "all")
    result = tfx(*ask)
    assert result.code == 0, result.stderr
    assert "scVI" in result.stdout
    report = json.loads((tiny_run / "eval-generated" / "report.json").read_text())
    assert report["scores"]["scvi"]["nn_ratio"]["value"] == pytest.approx(0, abs=1e-4)
    model = CellModel.load(tiny_run / "model")
    store = comparison.open_training_store(model)
    counts = store.read_counts(store.rows("train"), model.panel).toarray()
    np.testing.assert_array_equal(
        np.sort(given["counts"].toarray(), axis=0), np.sort(counts, axis=0)
    )
    np.testing.assert_allclose(given["totals"], store.totals[store.rows("train")])


def test_scvi_that_is_not_installed_is_named(tfx, made, monkeypatch):
    monkeypatch.setattr(scvi_baseline, "find_spec", lambda name: None)
    result = tfx("eval", "tiny", "--generated", "generated.h5ad", "--baselines", "all")
    assert result.code == 3
    assert "scvi-tools is not installed: pip install 'transformerics[scvi]'" in result.stderr


def test_bin_numbers_are_not_held_against_real_values(tfx, made):
    ask = ("generate", "--run", "tiny", "-n", "20", "-o", "bins.h5ad", "--decode", "bins")
    result = tfx(*ask, "--plot", "bins.png", "--json")
    assert result.code == 0, result.stderr
    assert (result.json["fidelity"], result.json["markers"]) == (None, [])
    assert "bin numbers are not compared with real cells" in result.stderr
    assert "no picture is drawn: these are bins" in result.stderr


def test_unfit_requests_are_refused_in_one_sentence(tfx, made, tiny_run, tmp_path):
    def refused(*arguments):
        result = tfx("eval", "tiny", *arguments)
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert not (tiny_run / "eval-generated").exists()
        return result.code, result.stderr

    one = ("--generated", "generated.h5ad")
    for arguments, code, message in (
        ((*one, "--classes", "planet"), 2, "--classes planet: the model has no such phenotype"),
        ((*one, "--baselines", "none"), 2, "generated cells are always compared with baselines"),
        ((*one, "--label", "tissue=organ"), 2, "name files of real cells"),
        (("nowhere.h5ad", *one), 4, "nowhere.h5ad: no such file"),
    ):
        found = refused(*arguments)
        assert found[0] == code, found
        assert message in found[1]

    shutil.copy(made, tmp_path / "other.h5ad")
    for edit, message in (
        (lambda cells: cells.uns[KEY].update(values="bin numbers"), "holds bin numbers"),
        (lambda cells: cells.uns.pop(KEY), "has no provenance"),
    ):
        shutil.copy(tmp_path / "other.h5ad", made)
        change(made, edit)
        code, text = refused(*one)
        assert (code, message in text) == (4, True), text
    ad.read_h5ad(tmp_path / "other.h5ad")[:, :20].copy().write_h5ad(made)
    code, text = refused(*one)
    assert code == 4
    assert "its 20 genes are not the 32 of the model" in text
    ad.read_h5ad(tmp_path / "other.h5ad")[:15].copy().write_h5ad(made)
    code, text = refused(*one)
    assert code == 4
    assert "cells of each side can be matched by class" in text


def test_without_store_and_real_files_there_is_nothing_to_compare_with(tfx, made, monkeypatch):
    monkeypatch.setattr(comparison, "open_training_store", lambda model: None)
    result = tfx("eval", "tiny", "--generated", "generated.h5ad")
    assert result.code == 4
    assert "name files of real cells before --generated" in result.stderr
