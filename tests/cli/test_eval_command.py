"""`tfx eval` through its entry point."""

import importlib.util
import io
import json
import shutil
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.cli.conftest import run_in
from tests.cli.refusals import refused
from tfx_cli.eval_command import confusion_text

SCORES = {
    "accuracy", "balanced_accuracy", "macro_f1", "n_cells", "values", "confusion", "top3_accuracy",
    "calibration", "donors", "intervals",
}  # fmt: skip


def repoint(run, **changes):
    """Change what the model says of its origin, which no checksum covers."""
    path = run / "model" / "tfx.json"
    record = json.loads(path.read_text())
    record["provenance"] |= changes
    path.write_text(json.dumps(record))


def test_what_the_calibration_is_worth_on_test_cells_is_in_the_report(tfx, tiny_run):
    path = tiny_run / "model" / "tfx.json"
    record = json.loads(path.read_text())
    known = {"n_cells": 100, "accuracy": 0.8, "accuracy_low": 0.7, "majority": 0.6}
    curve = {"probabilities": [0.0, 0.9, 0.99], "kept_accuracies": [0.8, 0.9, 0.96]}
    record["calibration"] = {
        "sex": known | {"temperature": 2.0} | curve,
        "age": known | {"majority": 0.8},
    }
    path.write_text(json.dumps(record))
    result = tfx("eval", "--unsure-at", "0.85", "--baselines", "none", "--json")
    assert result.code == 0, result.stderr
    sex, age, tissue = (result.json["phenotypes"][one]["model"] for one in ("sex", "age", "tissue"))
    assert sex["confidence"]["unsure_below"] == 0.9
    assert sex["confidence"]["uncalibrated"]["ece"] != sex["calibration"]["ece"]
    assert age["confidence"]["n_unsure"] == age["n_cells"]
    assert age["confidence"]["unsure_below"] is None
    assert "confidence" not in tissue
    assert any("age: always unsure" in note for note in result.json["notes"])
    assert "Reliability before and after" in (tiny_run / "eval/report.html").read_text()


@pytest.fixture(scope="module")
def evaluated(tiny_training, tmp_path_factory):
    """Evaluate a copy of the tiny run twice: its folder, what is printed as JSON, and for people."""
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(tiny_training[0] / "runs", folder / "runs")
    results = [run_in(folder, "eval", *arguments) for arguments in (["--json"], ["runs/tiny"])]
    for result in results:
        assert result.code == 0, result.stderr
    return folder / "runs" / "tiny", *results


def test_the_newest_run_is_scored_on_test_cells_beside_baselines(evaluated):
    document = evaluated[1].json
    assert document["schema"] == "tfx.eval/3"
    facts = document["facts"]
    assert (facts["split"], facts["model"], facts["simulated"]) == ("test", "tiny", True)
    assert facts["split_by"] == "donor"
    assert list(document["phenotypes"]) == ["sex", "tissue", "cell_type", "age", "disease"]
    for methods in document["phenotypes"].values():
        assert list(methods) == ["model", "logistic_regression", "marginal", "majority"]
        for scores in methods.values():
            few = {"top3_accuracy"} if len(scores["values"]) <= 3 else set()
            assert set(scores) >= SCORES - few
            assert 0 <= scores["accuracy"] <= 1
        confusion = methods["model"]["confusion"]
        assert sum(map(sum, confusion)) == methods["model"]["n_cells"] == facts["n_cells"]
    assert document["phenotypes"]["sex"]["model"]["accuracy"] > 0.9
    assert "mae_years" in document["phenotypes"]["age"]["majority"]
    assert "mae_years" not in document["phenotypes"]["sex"]["model"]
    if importlib.util.find_spec("cellxgene_ontology_guide"):  # the extra `ontology`
        near = document["phenotypes"]["tissue"]["majority"]["ontology"]
        assert 0 < near["related"] <= 1 <= near["mean_distance"]
        assert near["n_cells"] == facts["n_cells"]
        assert "ontology" not in document["phenotypes"]["sex"]["model"]
    assert document["conditions"]["n_cells"] == facts["n_cells"]
    assert list(document["conditions"]["phenotypes"]["tissue"]) == [
        "hidden", "given", "masked_0.15", "masked_0.5", "masked_0.9",
    ]  # fmt: skip
    assert [one["mask_rate"] for one in document["gene_rates"]["rates"]] == [0.15, 0.5, 0.9]
    assert document["genes"]["n_masked"] > 0
    assert 0 <= document["genes"]["accuracy"] <= 1


def test_the_report_is_in_the_folder_of_the_run_and_always_the_same(evaluated):
    run, first, result = evaluated
    folder = run / "eval"
    assert {path.suffix for path in folder.iterdir()} == {".html", ".json", ".png", ".pdf", ".csv"}
    assert "\x1b" not in result.stdout
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    genes = (folder / "genes.csv").read_text().splitlines()
    assert (
        genes[0]
        == "gene,symbol,mask_rate,n_masked,nll,marginal_nll,gain,accuracy,mean_absolute_error"
    )
    assert len(genes) > 32
    page = (folder / "report.html").read_text()
    assert "<h3>Accuracy by true bin</h3>" in page
    assert "<h3>Worst predicted genes, at a mask rate of 50 %</h3>" in page
    report = json.loads((folder / "report.json").read_text())
    assert report == first.json
    assert result.stdout.splitlines()[0] == (
        f"tiny on test cells: {report['facts']['n_cells']} cells, {report['facts']['n_genes']} genes, "
        f"simulated (split by donor)"
    )
    for words in (
        "accuracy / macro-F1", "cell_type", "logistic regression", "masked genes ",
        "Calibration and donors", "overconfidence", "Other conditions", "50 % masked",
        "Masked genes by mask rate", "best predicted: ", "age: predictions (columns) in per cent",
    ):  # fmt: skip
        assert words in result.stdout
    assert "report: runs/tiny/eval/report.html, runs/tiny/eval/report.json and" in result.stderr
    assert "report:" not in result.stdout


def test_another_split_sample_and_folder_can_be_asked_for(tfx, tiny_run, tmp_path):
    result = tfx(
        "-q", "eval", "tiny", "--split", "validation", "--max-cells", 20, "-o", "here", "--json"
    )
    assert (result.code, result.stderr) == (0, "")
    assert result.json["facts"]["split"] == "validation"
    assert result.json["facts"]["n_cells"] == 20
    assert (tmp_path / "here" / "report.html").is_file()
    assert not (tiny_run / "eval").exists()


def test_only_the_cells_that_match_are_scored(tfx, tiny_run, evaluated):
    every = evaluated[1].json
    where = ("--where", "sex=female,tissue=lung,liver", "--where", "split=test")
    result = tfx("eval", *where, "--json")
    assert result.code == 0, result.stderr
    facts = result.json["facts"]
    assert facts["where"] == "sex=female,tissue=lung,liver,split=test"
    assert 0 < facts["n_cells"] < every["facts"]["n_cells"]
    assert "where" not in every["facts"]
    tissues = result.json["phenotypes"]["tissue"]["model"]
    found = {v for v, row in zip(tissues["values"], tissues["confusion"], strict=True) if sum(row)}
    assert found <= {"lung", "liver"}
    page = (tiny_run / "eval" / "report.html").read_text()
    assert "<dt>where</dt><dd>sex=female,tissue=lung,liver,split=test</dd>" in page


def test_more_baselines_or_none_can_be_requested(tfx, tiny_run):
    learned = ["logistic_regression", "gradient_boosting", "nearest_neighbours"]
    for baselines, methods in (("none", []), ("all", [*learned, "marginal", "majority"])):
        result = tfx("eval", "--baselines", baselines)
        assert result.code == 0, result.stderr
        assert ("logistic regression" in result.stdout) == bool(methods)
        report = json.loads((tiny_run / "eval" / "report.json").read_text())
        for of_phenotype in report["phenotypes"].values():
            assert list(of_phenotype) == ["model", *methods]
        said = ", ".join(method.replace("_", " ") for method in methods) or "none"
        assert report["facts"]["baselines"] == said


def test_by_default_the_cells_are_those_the_model_was_trained_for(tfx, tiny_run):
    config = tiny_run / "config.toml"
    text = config.read_text()
    assert text.count("where = []") == 1
    config.write_text(text.replace("where = []", 'where = ["sex=male"]'))
    quick = ("eval", "--baselines", "none", "--json")
    facts = tfx(*quick).json["facts"]
    assert (facts["where"], facts["trained_where"]) == ("sex=male", "sex=male")
    facts = tfx(*quick, "--where", "sex=female").json["facts"]
    assert (facts["where"], facts["trained_where"]) == ("sex=female", "sex=male")


def test_a_model_that_loses_to_logistic_regression_says_so(evaluated):
    document = evaluated[1].json
    for name, methods in document["phenotypes"].items():
        lost = any(
            round(methods["model"][score], 3) < round(methods["logistic_regression"][score], 3)
            for score in ("accuracy", "macro_f1")
        )
        said = any(
            note.startswith(f"{name}: the model scores lower than logistic")
            for note in document["notes"]
        )
        assert lost == said, name


def test_a_model_without_phenotypes_is_scored_on_genes_alone(tfx, tiny_preset_file):
    names = ("sex", "tissue", "cell_type", "age", "disease")
    off = [f"data.phenotypes.{name}=false" for name in names]
    sets = [part for one in off for part in ("--set", one)]
    text = "\n".join(
        line for line in tiny_preset_file.read_text().splitlines() if not line.startswith("store =")
    )
    tiny_preset_file.write_text(text)
    trained = tfx("train", tiny_preset_file, "--steps", 1, *sets, "--run", "genes")
    assert trained.code == 0, trained.stderr
    result = tfx("eval", "genes")
    assert result.code == 0, result.stderr
    assert "macro-F1" not in result.stdout
    assert "Masked genes by mask rate" in result.stdout


# ------------------------------------------------------------------------------------ refusals
def test_a_split_without_cells_is_refused(tfx, tiny_preset_file, tmp_path):
    text = tiny_preset_file.read_text().splitlines()
    tiny_preset_file.write_text(
        "\n".join(line for line in text if not line.startswith("store ="))
        .replace("cells=600", "cells=250")
        .replace("[encoding]", "[data.split]\ntest = 0.0\n[encoding]")
    )
    trained = tfx("train", tiny_preset_file, "--steps", 1)
    assert trained.code == 0, trained.stderr
    refused(tfx("-q", "eval"), 4, "the test split has no cells; set data.split.test above 0")
    assert not (tmp_path / "runs" / "tiny" / "eval").exists()


def test_a_model_whose_store_was_prepared_again_cannot_be_scored(tfx, tiny_run):
    repoint(tiny_run, store_key="another")
    words = "was prepared again after runs/tiny/model began"
    refused(tfx("-q", "eval"), 4, words, "--store")


@pytest.mark.parametrize("options", [[], ["--cross-validate", "donors"]])
def test_a_model_without_its_run_cannot_be_scored_on_the_cells_of_the_run(
    tfx, tiny_run, tmp_path, options
):
    shutil.copytree(tiny_run / "model", tmp_path / "alone" / "model")
    refused(
        tfx("-q", "eval", "alone/model", *options), 2, "alone is no run; name the folder of the run"
    )
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["model"]


# -- the confusion matrix in the terminal
def drawn(matrix, values, *, colour=False):
    console = Console(
        file=io.StringIO(), width=100, force_terminal=colour,
        color_system="truecolor" if colour else None,
    )  # fmt: skip
    for part in confusion_text("tissue", SimpleNamespace(confusion=matrix, values=values)):
        console.print(part)
    return console.file.getvalue()


def test_rows_are_per_cent_of_the_true_values_cells():
    text = drawn([[3, 1, 0], [0, 8, 0], [0, 0, 0]], ["lung", "blood", "unseen"])
    title, head, _, *rows = [line.split() for line in text.splitlines()]
    assert " ".join(title) == "tissue: predictions (columns) in per cent of the true value's cells"
    assert head == ["true", "value", "cells", "a", "b"]
    assert rows == [["a", "lung", "4", "75", "25"], ["b", "blood", "8", ".", "100"]]


def test_a_value_that_is_predicted_and_never_true_has_an_empty_row():
    rows = drawn([[3, 1], [0, 0]], ["lung", "blood"]).splitlines()
    assert rows[-1].split() == ["b", "blood", "0"]


def test_colour_grows_with_the_fraction_and_only_in_a_terminal():
    matrix, values = [[1, 9], [0, 2]], ["a", "b"]
    assert "\x1b" not in drawn(matrix, values)
    text = drawn(matrix, values, colour=True)
    assert "48;2;254;232;56" in text  # 100 %: the light end of cividis
    assert "48;2;25;52;86" in text  # 10 %


def test_many_values_and_perfect_predictions_are_not_drawn():
    nine = [[1] * 9 for _ in range(9)]
    assert drawn(nine, [str(i) for i in range(9)]) == ""
    assert drawn([[5, 0], [0, 5]], ["a", "b"]) == ""
    assert drawn([[0, 0], [0, 0]], ["a", "b"]) == ""


def test_long_names_are_cut():
    name = "CD4-positive, alpha-beta memory T cell"
    assert f"a {name[:23]}…" in drawn([[1, 1], [0, 1]], [name, "b"])
