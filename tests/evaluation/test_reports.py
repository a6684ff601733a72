"""Reports on disk: strict JSON, a readable page, a picture per phenotype, whole files only."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.evaluation import reports
from core.evaluation.phenotype_metrics import score_phenotype
from core.evaluation.report_pictures import confusion_png
from core.evaluation.reports import write_evaluation_report

PNG = b"\x89PNG\r\n\x1a\n"


def example():
    scores = score_phenotype([0, 0, 1, 1], [0, 1, 1, 1], ["lung", "blood"])
    return {
        "title": "Evaluation of base",
        "facts": {"cells": np.int64(4), "split": "test", "share": np.float32(0.5)},
        "phenotypes": {
            "tissue": {"model": scores.to_dict(), "majority": scores},
            "my treatment/dose": {"model": scores.to_dict()},
            "empty": {"model": score_phenotype([], [], ["x"]).to_dict()},
            "none": {},
        },
        "genes": {"mask_accuracy": math.nan},
        "fidelity": {
            "gene_mean_r": 0.98765,
            "top_genes": [
                {"gene": "XIST", "real_mean": 1.0, "generated_mean": 0.5, "difference": -0.5}
            ],
        },
        "notes": ["Simulated cells."],
        "extra": (1, Path("a") / "b"),
    }


def test_all_files_are_written_and_nothing_else(tmp_path):
    written = write_evaluation_report(tmp_path / "new" / "report", example())
    names = {path.name for path in (tmp_path / "new" / "report").iterdir()}
    assert names == {path.name for path in written}
    assert names == {
        "report.html", "report.json", "report.md", "confusion_tissue.png", "confusion_my_treatment_dose.png",
        "confusion_tissue.csv", "confusion_my_treatment_dose.csv",
    }  # fmt: skip


def test_json_is_strict_and_versioned(tmp_path):
    write_evaluation_report(tmp_path, example())

    def refuse(constant):
        raise AssertionError(constant)

    record = json.loads((tmp_path / "report.json").read_text("utf-8"), parse_constant=refuse)
    assert record["schema"] == "tfx.eval/2"
    assert record["genes"]["mask_accuracy"] is None
    assert record["phenotypes"]["tissue"]["majority"]["accuracy"] == 0.75
    assert record["facts"] == {"cells": 4, "split": "test", "share": 0.5}
    assert record["extra"][0] == 1


def test_page_holds_the_figures(tmp_path):
    write_evaluation_report(tmp_path, example())
    page = (tmp_path / "report.md").read_text("utf-8")
    assert page.startswith("# Evaluation of base\n")
    assert "| tissue | model | 0.750 | 0.750 | 0.733 | - | 4 |" in page
    assert "![Confusion matrix of tissue](confusion_tissue.png)" in page
    assert "| mask accuracy | - |" in page
    assert "| gene mean r | 0.988 |" in page
    assert "| XIST | 1.000 | 0.500 | -0.500 |" in page
    assert "- Simulated cells." in page


def test_the_confusion_table_holds_every_value(tmp_path):
    scores = score_phenotype([0, 0, 2], [0, 1, 2], ["T cell, naive", "B", 'the "rest"'])
    write_evaluation_report(tmp_path, {"phenotypes": {"type": {"model": scores}}})
    text = (tmp_path / "confusion_type.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(text.splitlines()))
    assert rows == [
        ["true \\ predicted", "T cell, naive", "B", 'the "rest"'],
        ["T cell, naive", "1", "1", "0"],
        ["B", "0", "0", "0"],
        ['the "rest"', "0", "0", "1"],
    ]


def test_page_of_an_empty_report_is_a_heading(tmp_path):
    write_evaluation_report(tmp_path, {})
    assert (tmp_path / "report.md").read_text() == "# Evaluation\n"


def test_a_bar_in_a_label_does_not_break_the_table(tmp_path):
    scores = score_phenotype([0], [0], ["x"]).to_dict()
    write_evaluation_report(tmp_path, {"phenotypes": {"a|b": {"model": scores}}})
    assert "| a\\|b | model |" in (tmp_path / "report.md").read_text()


def test_a_second_report_replaces_the_first(tmp_path):
    write_evaluation_report(tmp_path, {"title": "first"})
    write_evaluation_report(tmp_path, {"title": "second"})
    assert json.loads((tmp_path / "report.json").read_text())["title"] == "second"


def test_phenotypes_with_equal_file_names_get_different_pictures(tmp_path):
    scores = score_phenotype([0], [0], ["x"]).to_dict()
    phenotypes = {name: {"model": scores} for name in ("a b", "a/b", "A_b")}
    written = write_evaluation_report(tmp_path, {"phenotypes": phenotypes})
    assert len({path.name.casefold() for path in written}) == 9


def test_a_failed_write_leaves_the_old_report_and_no_fragment(tmp_path, monkeypatch):
    write_evaluation_report(tmp_path, {"title": "old"})

    def fail(self, target):
        message = "disk is full"
        raise OSError(message)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_evaluation_report(tmp_path, {"title": "new"})
    assert json.loads((tmp_path / "report.json").read_text())["title"] == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json", "report.md"}


@pytest.mark.parametrize("n_values", [1, 2, 15, 40, 120])
def test_picture_is_a_png_that_grows_with_the_classes(n_values):
    rng = np.random.default_rng(0)
    names = [f"CD4-positive, alpha-beta memory T cell number {code}" for code in range(n_values)]
    picture = confusion_png(rng.integers(0, 9, (n_values, n_values)), names, title="cell_type")
    assert picture.startswith(PNG)
    width, height = Image.open(io.BytesIO(picture)).size
    assert min(width, height) > 400
    assert max(width, height) < 4000


def test_values_that_never_occur_are_left_out_of_the_picture():
    few = confusion_png([[3, 1], [0, 2]], ["a", "b"], title="t")
    padded = np.zeros((50, 50), dtype=int)
    padded[:2, :2] = [[3, 1], [0, 2]]
    names = ["a", "b", *(f"unused {code}" for code in range(48))]
    assert confusion_png(padded, names, title="t") == few


def test_dollar_and_underscore_in_labels_are_drawn_as_they_are():
    assert confusion_png([[1]], ["cost_$x^{$"], title="a_$b^{$").startswith(PNG)


def test_schema():
    assert reports.REPORT_SCHEMA == "tfx.eval/2"
