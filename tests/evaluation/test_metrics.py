"""Scores of phenotypes against hand-written cases, plain definitions and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from core.cells.ontology import TermDistances
from core.evaluation.metrics import (
    calibrate,
    donor_accuracies,
    expected_years,
    mae_years,
    score_methods,
    score_phenotype,
    score_terms,
    top_accuracy,
    years_of,
)
from core.evaluation.report.records import OntologyScores

VALUES = ["lung", "blood", "liver"]


def test_hand_written_case():
    scores = score_phenotype([0, 0, 0, 1, -1], [0, 0, 1, 1, 0], VALUES)
    assert scores.n_cells == 4
    assert scores.accuracy == 3 / 4
    assert scores.balanced_accuracy == (2 / 3 + 1) / 2
    assert scores.macro_f1 == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert scores.confusion == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert scores.values == tuple(VALUES)


@given(st.integers(1, 60), st.integers(2, 7), st.integers(0, 10_000))
def test_scores_equal_those_of_scikit_learn(n_cells, n_values, seed):
    rng = np.random.default_rng(seed)
    true = rng.integers(-1, n_values, n_cells)
    predicted = rng.integers(0, n_values, n_cells)
    scores = score_phenotype(true, predicted, [f"v{code}" for code in range(n_values)])
    kept = true >= 0
    if not kept.any():
        assert math.isnan(scores.accuracy)
        return
    true, predicted = true[kept], predicted[kept]
    present = np.unique(true)
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(true, predicted))
    recall = metrics.recall_score(true, predicted, labels=present, average="macro", zero_division=0)
    assert scores.balanced_accuracy == pytest.approx(recall)
    f1 = metrics.f1_score(true, predicted, labels=present, average="macro", zero_division=0)
    assert scores.macro_f1 == pytest.approx(f1)
    expected = metrics.confusion_matrix(true, predicted, labels=range(n_values))
    assert (np.array(scores.confusion) == expected).all()


def test_missing_prediction_is_an_error_outside_the_confusion_matrix():
    scores = score_phenotype([0, 0], [0, -1], VALUES)
    assert scores.accuracy == 0.5
    assert scores.n_unpredicted == 1
    assert np.sum(scores.confusion) == 1
    assert scores.balanced_accuracy == 0.5


@pytest.mark.parametrize("codes", [[], [-1, -1]])
def test_no_labelled_cell_gives_nan(codes):
    scores = score_phenotype(codes, codes, VALUES)
    assert scores.n_cells == 0
    assert math.isnan(scores.accuracy)
    assert math.isnan(scores.macro_f1)
    assert scores.confusion == [[0] * 3] * 3


def test_a_small_case_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.85, 0.15], [0.4, 0.6], [0.5, 0.5]])
    found = calibrate(probabilities, [0, 1, 1, -1])
    assert [(one.low, one.high, one.n_cells) for one in found.curve] == [
        (0.5, 0.6, 1),
        (0.8, 0.9, 2),
    ]
    assert found.curve[1].confidence == pytest.approx(0.875)
    assert found.curve[1].accuracy == 0.5
    assert found.ece == pytest.approx((0.4 + 2 * 0.375) / 3)
    assert found.overconfidence == pytest.approx((0.9 + 0.85 + 0.6) / 3 - 2 / 3)


def test_probabilities_that_mean_what_they_say_have_no_error():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5, 0.5, 0.5], size=40_000)
    truth = (rng.random((40_000, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    found = calibrate(probabilities, truth)
    assert found.ece < 0.01
    sharpened = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    assert calibrate(sharpened, truth).ece > 0.1
    assert calibrate(sharpened, truth).overconfidence > 0.1


def test_a_certain_model_is_in_the_last_bin():
    found = calibrate(np.array([[1.0, 0.0], [1.0, 0.0]]), [0, 1])
    (only,) = found.curve
    assert (only.low, only.high, only.accuracy, found.ece) == (0.9, 1.0, 0.5, 0.5)


def test_without_labels_there_is_no_calibration():
    found = calibrate(np.full((3, 2), 0.5), [-1, -1, -1])
    assert math.isnan(found.ece)
    assert found.curve == ()


def test_each_donor_is_scored_on_its_own_labelled_cells():
    true = np.array([0] * 20 + [1] * 10 + [1] * 3 + [-1] * 30)
    predicted = np.array([0] * 15 + [1] * 5 + [1] * 10 + [0] * 3 + [0] * 30)
    donors = np.array([2] * 20 + [0] * 10 + [1] * 3 + [3] * 30)
    found = donor_accuracies(true, predicted, donors, ["a", "b", "c", "d"])
    assert [(one.donor, one.n_cells, one.accuracy) for one in found.each] == [
        ("c", 20, 0.75),
        ("a", 10, 1.0),
    ]
    # b has too few cells to be scored, d no labels
    assert (found.n_donors, found.n_scored) == (3, 2)
    assert (found.min, found.median, found.max) == (0.75, 0.875, 1.0)


def test_cells_of_no_known_donor_are_left_out():
    found = donor_accuracies(np.zeros(20, int), np.zeros(20, int), np.full(20, -1), ["a"])
    assert (found.n_donors, found.each) == (0, ())
    assert math.isnan(found.min)


@pytest.mark.parametrize(
    ("label", "years"),
    [
        ("70-79", 75.0), ("0-9", 5.0), ("60 - 69", 65.0), ("73-year-old stage", 73.0),
        ("41", 41.0), ("fifth decade human stage", 45.0), ("adult", None), ("79-70", None),
        ("2020-3000", None),
    ],
)  # fmt: skip
def test_the_age_of_a_value(label, years):
    assert years_of(label) == years


def test_the_error_of_an_expected_age_is_over_cells_with_an_age():
    values = ["20-29", "30-39", "60-69", "adult"]
    sure = np.eye(4)
    truth = np.array([0, 1, 2, 3, -1, 0])
    assert mae_years("age", values, truth, sure[[1, 1, 0, 0, 0, 3]]) == pytest.approx(50 / 3)
    # 25 and 65, equally likely, are 45; what is not an age has no part in it
    assert mae_years("age", values, np.array([1]), [[0.25, 0, 0.25, 0.5]]) == 10
    assert np.isnan(expected_years("age", values, sure[3:])).all()


@pytest.mark.parametrize(
    ("values", "truth"),
    [(["young", "old"], [0, 1]), (["20-29", "old"], [0, 1]), (["20-29", "30-39"], [-1, -1])],
)
def test_values_without_an_order_have_no_error(values, truth):
    assert mae_years("age", values, np.array(truth), np.eye(2)) is None


def test_predictions_near_the_label_in_the_ontology_count():
    steps = np.array([[0.0, 1, 5], [1, 0, 6], [5, 6, 0]])
    terms = TermDistances(np.array([True, True, False]), steps <= 1, steps)
    # true: two cells of the first term, one of the second, one that is no term, one missing
    found = score_terms([0, 0, 1, 2, -1], [1, 2, 1, 2, 0], terms)
    assert found == OntologyScores(related=2 / 3, mean_distance=2.0, n_cells=3)
    assert score_terms([2, -1], [2, 0], terms) is None


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.fixture
def predicted():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 200)
    logits = rng.normal(size=(200, 5))
    logits[np.arange(200), truth] += 1.5
    return truth, softmax(logits)


def test_top_accuracy_looks_at_the_most_probable(predicted):
    truth, probabilities = predicted
    expected = np.mean([t in np.argsort(p)[-3:] for t, p in zip(truth, probabilities, strict=True)])
    assert top_accuracy(probabilities, truth, 3) == pytest.approx(expected)
    assert top_accuracy(probabilities, truth, 1) == (probabilities.argmax(axis=1) == truth).mean()


def test_top_three_of_three_is_not_scored():
    assert top_accuracy(np.full((2, 3), 1 / 3), np.array([0, 1]), 3) is None
    assert top_accuracy(np.full((2, 4), 1 / 4), np.array([-1, -1]), 3) is None


def test_equal_probabilities_are_no_help():
    assert top_accuracy(np.full((1, 5), 0.2), np.array([4]), 3) == 0.0


def test_every_method_has_the_same_scores(predicted):
    truth, probabilities = predicted
    scores = score_methods(
        "cell_type",
        list("abcde"),
        truth,
        {"model": probabilities, "chance": np.full((200, 5), 0.2)},
        donors=np.arange(200) % 4,
        donor_names=["p", "q", "r", "s"],
        seed=0,
    )
    model, chance = scores.values()
    assert list(scores) == ["model", "chance"]
    assert len(model.donors.each) == model.donors.n_scored == 4
    assert (chance.donors.each, chance.donors.n_scored) == (None, 4)
    low, high = model.intervals.accuracy
    assert low <= model.accuracy <= high
    assert chance.intervals.model_minus_method.accuracy[0] > 0
    assert model.intervals.resampled == "donors"


@pytest.mark.parametrize("name", ["age", "donor_age", "development_stage", "stage", "tissue"])
def test_only_ages_are_in_years(name, predicted):
    truth, probabilities = predicted
    decades = ["20-29", "30-39", "40-49", "50-59", "60-69"]
    model = score_methods(name, decades, truth, {"model": probabilities}, seed=0)["model"]
    if name in ("stage", "tissue"):
        assert model.mae_years is None
    else:
        off = 10 * np.abs(truth - probabilities @ np.arange(5) / probabilities.sum(axis=1)).mean()
        assert model.mae_years == pytest.approx(off)
    assert model.donors is None
