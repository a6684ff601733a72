"""The protocol on cells of known kind: real, independent, collapsed, copied, of the wrong class."""

import numpy as np
import pytest
from scipy import sparse

from core.cells.genes import GenePanel
from core.encoding.values import ValueTable, fit_value_encoder
from core.errors import DataError
from core.evaluation.fidelity.measures import LabelledCells
from core.evaluation.fidelity.protocol import METHODS, match_cells, run_protocol
from core.evaluation.fidelity.report import RULES, mark_methods, verdict
from core.presets.schema import EncodingSettings

N_GENES = 24


def draw_cells(n_cells, seed):
    """Three classes of known markers; genes of two programmes move together within each."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(3, size=n_cells)
    activity = rng.standard_normal((n_cells, 2)) @ np.repeat(np.eye(2), N_GENES // 2, axis=1)
    level = 1.5 * (np.arange(N_GENES) % 3 == classes[:, None])
    values = np.maximum(activity + level + 0.5 * rng.standard_normal((n_cells, N_GENES)), 0)
    return LabelledCells(values.astype(np.float32), classes.astype(np.int64))


@pytest.fixture(scope="module")
def judge():
    """Return a function: generated cells -> result of the protocol, small and quick."""
    training, real = draw_cells(900, 0), draw_cells(400, 1)
    settings = EncodingSettings(kind="binned", bins=10, edges="gene_quantile", threshold=0.0)
    names = tuple(f"G{number}" for number in range(N_GENES))
    panel = GenePanel(names, names)
    cells = sparse.csr_matrix(training.values)
    encoder = fit_value_encoder(settings, cells, panel)
    table = ValueTable.fit(encoder, cells)

    def run(generated, **options):
        settings = {"n_seeds": 1, "n_trees": 25, "n_resamples": 20, "training": training} | options
        return run_protocol(
            real, generated, settings.pop("training"), encoder, table, 3, **settings
        )

    run.training = training
    return run


def marks_of(result):
    marks = mark_methods(result.scores, result.limits)["generated"]
    return {key: mark.met for key, mark in marks.items()}


def sentences_of(result):
    marks = mark_methods(result.scores, result.limits)
    return verdict(result.scores, marks, min(result.n_cells))


def test_real_cells_meet_the_thresholds_and_independent_genes_do_not(judge):
    result = judge(draw_cells(600, 2))
    met = marks_of(result)
    assert sum(one is True for one in met.values()) >= len(RULES) - 2, met
    independent = mark_methods(result.scores, result.limits)["independent"]
    for key in ("rf_auc", "within_r", "within_slope"):
        assert independent[key].met is False
    difference = result.scores["generated"]["within_slope"].minus_copula
    assert difference is not None
    assert difference.interval[0] > 0
    assert any("better than the copula" in one for one in sentences_of(result))


def test_collapsed_cells_lose_what_collapse_costs(judge):
    good = draw_cells(600, 2)
    centres = np.stack([good.values[good.classes == code].mean(axis=0) for code in range(3)])
    rng = np.random.default_rng(3)
    noise = 0.02 * rng.standard_normal(good.values.shape)
    collapsed = LabelledCells(
        np.maximum(centres[good.classes] + noise, 0).astype(np.float32), good.classes
    )
    result = judge(collapsed)
    met = marks_of(result)
    for key in ("rf_auc", "mmd2", "recall", "coverage", "genes_sd"):
        assert met[key] is False, key
    sentences = sentences_of(result)
    assert any("nearly all generated cells" in one for one in sentences)
    assert any("copula of each class is clearly better" in one for one in sentences)


def test_copies_of_training_cells_are_caught(judge):
    result = judge(judge.training)
    met = marks_of(result)
    assert met["copies"] is False
    assert met["nn_ratio"] is False
    assert result.scores["generated"]["copies"].value > 50
    assert result.scores["real"]["copies"].value == 0
    assert any("equal a training cell" in one for one in sentences_of(result))


def test_cells_of_the_wrong_class_are_caught(judge):
    good = draw_cells(600, 2)
    result = judge(LabelledCells(good.values, (good.classes + 1) % 3))
    met = marks_of(result)
    assert met["condition_accuracy"] is False
    assert met["fold_change_slope"] is False
    assert met["tstr_f1"] is False


def test_without_training_cells_the_rest_is_still_measured(judge):
    result = judge(draw_cells(600, 2), training=None)
    assert set(result.scores) == {"generated", "real"}
    met = marks_of(result)
    assert [met[key] for key in ("condition_accuracy", "nn_ratio", "copies")] == [None] * 3
    assert met["rf_auc"] is True
    assert not any("copula" in one for one in sentences_of(result))


def test_baselines_learn_from_matching_training_cells_alone(judge):
    is_first = judge.training.classes == 0
    result = judge(draw_cells(900, 2), matching=is_first)
    assert list(result.class_cells) == [0]
    assert set(result.scores) == {"generated", "real", "copula", "independent", "training"}
    nothing = judge(draw_cells(600, 2), matching=np.zeros(900, dtype=bool))
    assert set(nothing.scores) == {"generated", "real"}


def test_another_generator_is_judged_as_the_baselines_are(judge):
    """One that draws real training cells of the class scores as these do, and copies."""
    training, classes_drawn = judge.training, []

    def draw(classes, rng):
        classes_drawn.append(classes)
        rows = [rng.choice(np.flatnonzero(training.classes == one)) for one in classes]
        return training.values[rows]

    result = judge(draw_cells(600, 2), others={"scvi": draw})
    assert list(result.scores) == list(METHODS)
    assert len(classes_drawn[0]) == result.n_cells[0]
    assert result.scores["scvi"]["copies"].value > 50
    assert result.scores["scvi"]["nn_ratio"].value == 0
    assert result.scores["scvi"]["rf_auc"].value == pytest.approx(0.5, abs=0.1)
    assert mark_methods(result.scores, result.limits)["scvi"]["copies"].met is False


def test_intervals_hold_the_estimate_and_the_same_seed_gives_the_same_scores(judge):
    cells = draw_cells(600, 2)
    first, second = judge(cells).scores, judge(cells).scores
    for method, measures in first.items():
        for measure, one in measures.items():
            assert one == second[method][measure]
            assert one.interval[0] <= one.value <= one.interval[1] or np.isnan(one.value)


def test_matched_sides_have_the_same_classes_and_share_no_donor():
    rng = np.random.default_rng(0)
    real, generated = rng.integers(4, size=500), rng.integers(3, size=300)
    donors = rng.integers(8, size=500)
    rows = match_cells(real, generated, rng, donors=donors)
    counts = [
        np.bincount(classes[chosen], minlength=4).tolist()
        for classes, chosen in (
            (real, rows.target), (real, rows.reference), (generated, rows.generated),
        )
    ]  # fmt: skip
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][3] == 0
    assert not set(donors[rows.target]) & set(donors[rows.reference])
    assert len(np.unique(rows.target)) == len(rows.target)


def test_at_most_this_many_cells_in_the_fractions_of_the_classes():
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1], [900, 300])
    rows = match_cells(classes, classes, rng, most=100)
    assert np.bincount(classes[rows.target]).tolist() == [75, 25]


def test_too_few_cells_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match=r"only 20 cells of each side can be.*generate more cells"):
        match_cells(np.zeros(200, dtype=int), np.zeros(20, dtype=int), rng)
    with pytest.raises(
        DataError, match=r"only 15 cells .*; the real cells are too few: name files"
    ):
        match_cells(np.zeros(30, dtype=int), np.zeros(900, dtype=int), rng)
