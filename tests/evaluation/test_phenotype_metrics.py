"""Phenotype scores against hand-written cases and scikit-learn."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from core.errors import DataError
from core.evaluation.phenotype_metrics import score_phenotype

VALUES = ["lung", "blood", "liver"]


def test_hand_written_case():
    scores = score_phenotype([0, 0, 0, 1, -1], [0, 0, 1, 1, 0], VALUES)
    assert scores.n_cells == 4
    assert scores.accuracy == 3 / 4
    assert scores.balanced_accuracy == (2 / 3 + 1) / 2
    assert scores.macro_f1 == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert scores.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
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
    assert (scores.confusion == expected).all()
    assert np.mean([one.f1 for one in scores.per_class()]) == pytest.approx(scores.macro_f1)


def test_value_predicted_but_never_true_does_not_enter_macro_f1():
    scores = score_phenotype([0, 0, 1, 1], [0, 0, 1, 2], VALUES)
    assert scores.macro_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert [one.value for one in scores.per_class()] == ["lung", "blood"]


def test_missing_prediction_is_an_error_outside_the_confusion_matrix():
    scores = score_phenotype([0, 0], [0, -1], VALUES)
    assert scores.accuracy == 0.5
    assert scores.n_unpredicted == 1
    assert scores.confusion.sum() == 1
    assert scores.per_class()[0].recall == 0.5


@pytest.mark.parametrize("codes", [[], [-1, -1]])
def test_no_labelled_cell_gives_nan_and_null_in_json(codes):
    scores = score_phenotype(codes, codes, VALUES)
    assert scores.n_cells == 0
    assert math.isnan(scores.macro_f1)
    record = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert record["accuracy"] is None
    assert record["confusion"] == [[0] * 3] * 3


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        ([0, 1], [0], "2 true and 1 predicted"),
        ([0, 3], [0, 0], "true phenotype code 3 has no value"),
        ([0, 0], [0, -2], "predicted phenotype code -2 has no value"),
        ([0.5], [0], "must be one row of integers"),
        ([[0]], [[0]], "must be one row of integers"),
    ],
)
def test_wrong_codes_are_refused(true, predicted, message):
    with pytest.raises(DataError, match=message):
        score_phenotype(true, predicted, VALUES)
