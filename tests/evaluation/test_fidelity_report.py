"""The report on generated cells as page, table and pictures, for odd names and few classes."""

import struct

import numpy as np
import pytest

from core.evaluation.fidelity_judge import LabelledCells
from core.evaluation.fidelity_pictures import fidelity_pictures, umap
from core.evaluation.fidelity_protocol import Measured, ProtocolResult
from core.evaluation.fidelity_report import fidelity_html, write_fidelity_report
from core.evaluation.fidelity_tables import fidelity_tables
from core.evaluation.fidelity_verdict import RULES, mark_methods, verdict
from core.files import plain_json

#: Of the generated cells, the floor and the copula; the floor is what thresholds are made from.
VALUES = {
    "rf_auc": (0.55, 0.50, 0.60), "mmd2": (0.001, 0.0, 0.001), "within_r": (0.30, 0.35, 0.31),
    "within_slope": (0.30, 0.37, 0.27), "gene_mean_r": (0.99, 0.99, 0.99),
    "dropout_mae": (0.02, 0.02, 0.02), "genes_mean": (60.0, 58.0, 59.0),
    "genes_sd": (20.0, 21.0, 12.0), "recall": (0.8, 0.8, 0.8), "coverage": (0.95, 0.98, 0.9),
    "condition_accuracy": (0.7, 0.69, 0.75), "nn_ratio": (1.0, 1.0, 1.2), "copies": (2.0, 0.0, 0.0),
    "fold_change_slope": (1.0, 1.0, 1.0), "fold_change_overlap": (0.7, 0.8, 0.8),
    "tstr_f1": (float("nan"), 0.6, 0.6),
}  # fmt: skip


@pytest.fixture
def result():
    def measured(value, lead=None):
        return Measured(value, 0.01, (value - 0.02, value + 0.02), lead)

    scores = {
        method: {
            key: measured(values[place], None if method == "copula" else (0.1, 0.05, 0.15))
            for key, values in VALUES.items()
        }
        for place, method in enumerate(("generated", "real", "copula"))
    }
    limits = {"mmd2": 0.003, "genes_mean": 58.0, "genes_sd": 21.0}
    return ProtocolResult(scores, limits, [120, 118], {0: 100, 1: 20}, {})


def test_thresholds_are_worked_out_from_the_floor(result):
    marks = mark_methods(result)
    won = {key: mark.won for key, mark in marks["generated"].items()}
    # r is at 0.8 of the floor but below the copula, the markers 0.70 < 0.72, two cells are copies.
    lost = {"within_r", "copies", "fold_change_overlap"}
    assert won == {
        key: None if key == "tstr_f1" else key not in lost for key in VALUES
    }  # fmt: skip
    assert marks["copula"]["within_r"].won is True
    assert marks["copula"]["nn_ratio"].won is False
    assert marks["copula"]["genes_sd"].won is False
    assert "0.280" in marks["generated"]["within_r"].threshold


def test_the_verdict_counts_what_is_lost_and_says_when_cells_are_few(result):
    sentences = verdict(result, mark_methods(result))
    assert sentences[0].startswith("12 of 15 thresholds are met; lost: ")
    for rule in RULES:
        assert (rule.title in sentences[0]) == (
            rule.key in ("within_r", "copies", "fold_change_overlap")
        )
    assert any("2.0 cells of a side are in every bin" in one for one in sentences)
    assert any("Only 118 cells" in one for one in sentences)
    surely = next(one for one in sentences if "surely better than the copula" in one)
    # What is higher by 0.1 with an interval above 0 is better, or worse where low values are good.
    assert "recall" in surely
    assert any(
        "copula of each class is surely better in: random-forest AUC" in s for s in sentences
    )


def report_of(result):
    marks = mark_methods(result)
    return plain_json(
        {
            "title": "Cells of <b>$x$</b>", "facts": {"files": "a<b>.h5ad"},
            "verdict": verdict(result, marks), "scores": result.scores, "marks": marks,
            "limits": result.limits, "class_cells": {"T <cell>": 100}, "notes": ["a < b"],
            "rebalancing": {},
        }
    )  # fmt: skip


def test_labels_are_text_whatever_they_hold_and_the_files_are_whole(result, tmp_path):
    report = report_of(result)
    page = fidelity_html(report, {"Here & there": b"\x89PNG"})
    assert "<b>" not in page
    assert "T &lt;cell&gt;" in page
    assert "Here &amp; there" in page
    written = write_fidelity_report(tmp_path / "new", report, {})
    assert [path.name for path in written] == ["report.html", "report.json"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "report.html", "report.json",
    ]  # fmt: skip


def test_the_tables_show_what_is_not_known_as_a_dash(result):
    table, *more = fidelity_tables(report_of(result), intervals=True)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["train on these (macro-F1 on real)"][-1] == "-"
    assert rows["copies of training cells"][-1] == "LOST"
    assert rows["MMD²"][0].startswith("0.0010 [")
    assert [one.title for one in more] == [
        "The same thresholds for the others", "Generated minus copula", "Matched cells",
    ]  # fmt: skip
    assert all(len(row) == len(one.header) for one in (table, *more) for row in one.rows)


@pytest.mark.parametrize("n_classes", [1, 3])
def test_pictures_are_drawn_for_one_class_and_several(n_classes):
    rng = np.random.default_rng(0)

    def cells(n):
        values = np.maximum(rng.standard_normal((n, 20)), 0).astype(np.float32)
        return LabelledCells(values, rng.integers(n_classes, size=n))

    names = [f"type ${number}$ " + "x" * 60 for number in range(n_classes)]
    symbols = [f"G${number}$" for number in range(20)]
    made = fidelity_pictures({"target": cells(90), "generated": cells(90)}, symbols, names)
    assert len(made) == 4
    for png in made.values():
        width, height = struct.unpack(">II", png[16:24])
        assert 300 < width < 4000
        assert 100 < height < 2000


def test_a_umap_keeps_groups_together_and_is_always_the_same():
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 30)
    points = 8.0 * np.eye(3)[group] @ rng.standard_normal((3, 10)) + rng.standard_normal((90, 10))
    at = umap(points)
    assert at.shape == (90, 2)
    np.testing.assert_array_equal(umap(points), at)
    distances = ((at[:, None] - at) ** 2).sum(axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (group[distances.argmin(axis=1)] == group).mean() > 0.95
    assert umap(points[:9]).shape == (9, 2)
