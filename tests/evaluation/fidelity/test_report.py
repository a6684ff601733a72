"""The report on generated cells as page, table and pictures, for odd names and few classes."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest

from core.evaluation.fidelity.measures import LabelledCells
from core.evaluation.fidelity.report import (
    RULES,
    fidelity_pictures,
    mark_methods,
    measure_table,
    more_tables,
    umap,
    verdict,
    write_fidelity_report,
)
from core.evaluation.report.records import Difference, FidelityFacts, FidelityReport, Measured

#: Of the generated cells, the reference (from which thresholds are made) and the copula.
VALUES = {
    "rf_auc": (0.55, 0.50, 0.60), "mmd2": (0.001, 0.0, 0.001), "within_r": (0.30, 0.35, 0.31),
    "within_slope": (0.30, 0.37, 0.27), "gene_mean_r": (0.99, 0.99, 0.99),
    "dropout_mae": (0.02, 0.02, 0.02), "genes_mean": (60.0, 58.0, 59.0),
    "genes_sd": (20.0, 21.0, 12.0), "recall": (0.8, 0.8, 0.8), "coverage": (0.95, 0.98, 0.9),
    "condition_accuracy": (0.7, 0.69, 0.75), "nn_ratio": (1.0, 1.0, 1.2), "copies": (2.0, 0.0, 0.0),
    "fold_change_slope": (1.0, 1.0, 1.0), "fold_change_overlap": (0.7, 0.8, 0.8),
    "tstr_f1": (float("nan"), 0.6, 0.6),
}  # fmt: skip


LIMITS = {"mmd2": 0.003, "genes_mean": 58.0, "genes_sd": 21.0}


@pytest.fixture
def scores():
    def measured(value, difference=None):
        return Measured(value, 0.01, (value - 0.02, value + 0.02), difference)

    return {
        method: {
            key: measured(
                values[place], None if method == "copula" else Difference(0.1, (0.05, 0.15))
            )
            for key, values in VALUES.items()
        }
        for place, method in enumerate(("generated", "real", "copula"))
    }


def test_thresholds_are_worked_out_from_the_reference(scores):
    marks = mark_methods(scores, LIMITS)
    met = {key: mark.met for key, mark in marks["generated"].items()}
    # r is at 0.8 of the reference but below the copula, the markers 0.70 < 0.72, two cells are copies.
    missed = {"within_r", "copies", "fold_change_overlap"}
    assert met == {key: None if key == "tstr_f1" else key not in missed for key in VALUES}
    assert marks["copula"]["within_r"].met is True
    assert marks["copula"]["nn_ratio"].met is False
    assert marks["copula"]["genes_sd"].met is False
    assert "0.280" in marks["generated"]["within_r"].threshold


def test_generated_cells_need_not_be_better_than_other_real_cells(scores):
    real = scores["real"]
    scores["real"] = real | {"mmd2": replace(real["mmd2"], value=0.02)}
    for value, met in ((0.015, True), (0.02, True), (0.025, False)):
        changed = scores["generated"]["mmd2"]
        scores["generated"] = scores["generated"] | {"mmd2": replace(changed, value=value)}
        mark = mark_methods(scores, LIMITS | {"mmd2": 0.01})["generated"]["mmd2"]
        assert (mark.met, mark.threshold) == (met, "<= 0.0200 (as other real cells)")
    scores["real"] = real | {"nn_ratio": replace(real["nn_ratio"], value=1.3)}
    mark = mark_methods(scores, LIMITS)["generated"]["nn_ratio"]
    assert mark.met is None  # other real cells are no measure of what is near
    assert mark.threshold == "real cells have 1.300, which is not 0.95 to 1.10"


@pytest.mark.parametrize(
    ("auc", "real", "words"),
    [
        (0.524, 0.42, "does not separate generated from real cells better than two halves"),
        (0.58, 0.45, "separates a few generated cells"),
        (0.75, 0.5, "separates many generated cells"),
        (0.95, 0.5, "separates nearly all generated cells"),
    ],
)
def test_the_verdict_on_the_forest_fits_its_number(scores, auc, real, words):
    for side, value in (("generated", auc), ("real", real)):
        scores[side] = scores[side] | {"rf_auc": replace(scores[side]["rf_auc"], value=value)}
    sentence = verdict(scores, mark_methods(scores, LIMITS), 500)[1]
    assert sentence == f"A random forest {words}" + sentence.partition(words)[2]
    assert f"AUC {auc:.3f}" in sentence


def test_the_verdict_counts_what_is_missed_and_warns_when_cells_are_few(scores):
    sentences = verdict(scores, mark_methods(scores, LIMITS), 118)
    assert sentences[0].startswith("12 of 15 thresholds are met; not met: ")
    for rule in RULES:
        assert (rule.title in sentences[0]) == (
            rule.key in ("within_r", "copies", "fold_change_overlap")
        )
    assert any("2.0 cells of a side equal a training cell" in one for one in sentences)
    assert any("Only 118 cells" in one for one in sentences)
    better = next(one for one in sentences if "clearly better than the copula" in one)
    # What is higher by 0.1 with an interval above 0 is better, or worse where low values are good.
    assert "coverage (0.950 against 0.900)" in better
    assert "recall" not in better  # 0.800 on both sides, as the reader sees it
    assert any(
        "copula of each class is clearly better in: random-forest AUC" in s for s in sentences
    )


def report_of(scores):
    marks = mark_methods(scores, LIMITS)
    return FidelityReport(
        title="Cells of <b>$x$</b>",
        facts=FidelityFacts(files="a<b>.h5ad"),
        verdict=tuple(verdict(scores, marks, 118)),
        scores=scores,
        marks=marks,
        limits=LIMITS,
        class_cells={"T <cell>": 100},
        notes=("a < b",),
    )


def test_labels_are_text_whatever_they_hold_and_the_files_are_whole(scores, tmp_path):
    report = report_of(scores)
    written = write_fidelity_report(tmp_path / "new", report, {"Here & there": b"\x89PNG"})
    page = written[0].read_text()
    assert "<b>" not in page
    assert "T &lt;cell&gt;" in page
    assert "Here &amp; there" in page
    assert [path.name for path in written] == ["report.html", "report.json"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "report.html", "report.json",
    ]  # fmt: skip
    record = json.loads(written[1].read_text())
    assert record["schema"] == "tfx.fidelity/2"
    assert record["marks"]["generated"]["tstr_f1"]["met"] is None
    assert record["scores"]["generated"]["tstr_f1"]["value"] is None


def test_the_tables_show_what_is_not_known_as_a_dash(scores):
    report = report_of(scores)
    table, more = measure_table(report, intervals=True), list(more_tables(report))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["train on these (macro-F1 on real)"][-1] == "-"
    assert rows["copies of training cells"][-1] == "NOT MET"
    assert rows["MMD²"][0].startswith("0.0010 [")
    assert [one.title for one in more] == [
        "The same thresholds for the other methods", "Generated minus copula", "Matched cells",
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
