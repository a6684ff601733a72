"""Reports on disk: strict JSON that can be read back, a picture per phenotype, whole files only."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from core.evaluation.metrics import score_phenotype
from core.evaluation.report.pictures import confusion_figure, png_bytes
from core.evaluation.report.records import (
    EvaluationFacts,
    EvaluationReport,
    FidelityReport,
    MaskedGenes,
    read_evaluation,
    read_evaluation_file,
)
from core.evaluation.report.writing import write_evaluation

PNG = b"\x89PNG\r\n\x1a\n"
OLD_REPORT = Path(__file__).parents[2] / "training/releases/0.1.0/small/eval/report.json"


def example():
    scores = score_phenotype([0, 0, 1, 1], [0, 1, 1, 1], ["lung", "blood"])
    return EvaluationReport(
        title="Evaluation of base",
        facts=EvaluationFacts(n_cells=4, split="test"),
        phenotypes={
            "tissue": {"model": scores, "majority": scores},
            "my treatment/dose": {"model": scores},
            "empty": {"model": score_phenotype([], [], ["x"])},
            "none": {},
        },
        genes=MaskedGenes(0, math.nan, 0.5, 1.5),
        notes=("Simulated cells.",),
    )


def test_all_files_are_written_and_nothing_else(tmp_path):
    written = write_evaluation(tmp_path / "new" / "report", example())
    names = {path.name for path in (tmp_path / "new" / "report").iterdir()}
    assert names == {path.name for path in written}
    assert names == {
        "report.html", "report.json", "confusion_tissue.png", "confusion_tissue.pdf", "confusion_my_treatment_dose.png", "confusion_my_treatment_dose.pdf",
        "confusion_tissue.csv", "confusion_my_treatment_dose.csv",
    }  # fmt: skip


def test_json_is_strict_and_versioned(tmp_path):
    write_evaluation(tmp_path, example())

    def refuse(constant):
        raise AssertionError(constant)

    record = json.loads((tmp_path / "report.json").read_text("utf-8"), parse_constant=refuse)
    assert record["schema"] == "tfx.eval/3"
    assert record["genes"]["accuracy"] is None
    assert record["phenotypes"]["tissue"]["majority"]["accuracy"] == 0.75
    assert record["facts"]["n_cells"] == 4
    assert "where" not in record["facts"]
    assert "conditions" not in record


def test_a_report_is_read_as_it_was_written(tmp_path):
    write_evaluation(tmp_path, example())
    again = read_evaluation_file(tmp_path / "report.json")
    assert again.phenotypes["tissue"] == example().phenotypes["tissue"]
    assert (again.title, again.facts) == (example().title, example().facts)
    assert math.isnan(again.genes.accuracy)


def test_a_report_of_tfx_0_1_0_is_read_in_the_present_spelling():
    old, report = json.loads(OLD_REPORT.read_text()), read_evaluation_file(OLD_REPORT)
    facts = old["facts"]
    assert (report.facts.n_cells, report.facts.n_genes) == (facts["cells"], facts["genes"])
    assert report.facts.split_by == facts["split by"]
    assert report.facts.n_cells_of_baselines == facts["training cells of the baselines"]
    model, was = report.phenotypes["cell_type"]["model"], old["phenotypes"]["cell_type"]["model"]
    assert (model.accuracy, model.confusion) == (was["accuracy"], was["confusion"])
    assert model.calibration.ece == was["calibration"]["error"]
    assert model.calibration.curve[0].n_cells == was["calibration"]["curve"][0]["cells"]
    assert model.intervals.n_units == was["intervals"]["units"]
    masked = report.conditions.phenotypes["cell_type"]["masked_0.5"].intervals
    was = old["conditions"]["phenotypes"]["cell_type"]["masked_0.5"]["intervals"]
    assert list(masked.model_minus_method.accuracy) == was["lead of the model"]["accuracy"]
    assert report.genes.n_masked == old["genes"]["masked genes"]
    rate, was = report.gene_rates.rates[0], old["gene_rates"]["rates"][0]
    assert (rate.mask_rate, rate.n_masked) == (was["rate"], was["hidden_genes"])
    assert rate.marginal.mean_absolute_error == was["marginal"]["mean_off"]


@pytest.mark.parametrize("record", [{"phenotypes": 3}, {"phenotypes": {"sex": {"model": []}}}])
def test_what_is_no_report_is_a_value_error(record):
    with pytest.raises(ValueError, match="phenotypes"):
        read_evaluation(record)


@pytest.mark.parametrize("report", [EvaluationReport, FidelityReport])
def test_reports_have_a_json_schema(report):
    schema = TypeAdapter(report).json_schema()
    assert {"title", "facts", "notes"} <= set(schema["properties"])


def test_the_confusion_table_holds_every_value(tmp_path):
    scores = score_phenotype([0, 0, 2], [0, 1, 2], ["T cell, naive", "B", 'the "rest"'])
    write_evaluation(tmp_path, EvaluationReport(phenotypes={"type": {"model": scores}}))
    text = (tmp_path / "confusion_type.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(text.splitlines()))
    assert rows == [
        ["true \\ predicted", "T cell, naive", "B", 'the "rest"'],
        ["T cell, naive", "1", "1", "0"],
        ["B", "0", "0", "0"],
        ['the "rest"', "0", "0", "1"],
    ]


def test_a_second_report_replaces_the_first(tmp_path):
    write_evaluation(tmp_path, EvaluationReport("first"))
    write_evaluation(tmp_path, EvaluationReport("second"))
    assert json.loads((tmp_path / "report.json").read_text())["title"] == "second"


def test_phenotypes_with_equal_file_names_get_different_pictures(tmp_path):
    scores = score_phenotype([0], [0], ["x"])
    phenotypes = {name: {"model": scores} for name in ("a b", "a/b", "A_b")}
    written = write_evaluation(tmp_path, EvaluationReport(phenotypes=phenotypes))
    assert len({path.name.casefold() for path in written}) == 11


def test_a_failed_write_leaves_the_old_report_and_no_fragment(tmp_path, monkeypatch):
    write_evaluation(tmp_path, EvaluationReport("old"))

    def fail(self, target):
        message = "disk is full"
        raise OSError(message)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_evaluation(tmp_path, EvaluationReport("new"))
    assert json.loads((tmp_path / "report.json").read_text())["title"] == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json"}


@pytest.mark.parametrize("n_values", [1, 2, 15, 40, 120])
def test_picture_is_a_png_that_grows_with_the_classes(n_values):
    rng = np.random.default_rng(0)
    names = [f"CD4-positive, alpha-beta memory T cell number {code}" for code in range(n_values)]
    picture = png_bytes(
        confusion_figure(rng.integers(0, 9, (n_values, n_values)), names, title="cell_type")
    )
    assert picture.startswith(PNG)
    width, height = Image.open(io.BytesIO(picture)).size
    assert min(width, height) > 400
    assert max(width, height) < 4000


def test_values_that_never_occur_are_left_out_of_the_picture():
    few = png_bytes(confusion_figure([[3, 1], [0, 2]], ["a", "b"], title="t"))
    padded = np.zeros((50, 50), dtype=int)
    padded[:2, :2] = [[3, 1], [0, 2]]
    names = ["a", "b", *(f"unused {code}" for code in range(48))]
    assert png_bytes(confusion_figure(padded, names, title="t")) == few


def test_dollar_and_underscore_in_labels_are_drawn_as_they_are():
    assert png_bytes(confusion_figure([[1]], ["cost_$x^{$"], title="a_$b^{$")).startswith(PNG)
