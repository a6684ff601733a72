"""Classifiers as judges, against sklearn's own scores and cells of known kind."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from core.evaluation.fidelity.classifiers import (
    ClassClassifier,
    macro_f1,
    probability_generated,
    weighted_auc,
)


def correlated(n, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 1)) + 0.5 * rng.standard_normal((n, 8))


def test_real_cells_are_not_separated_from_real_cells_and_shuffled_ones_are():
    real = correlated(200, 0)
    rng = np.random.default_rng(2)
    shuffled = np.column_stack([rng.permutation(column) for column in correlated(200, 1).T])
    ones = np.ones((1, 200))
    for generated, low, high in ((correlated(200, 3), 0.35, 0.62), (shuffled, 0.85, 1.0)):
        probabilities = probability_generated(real, generated, seed=0, n_trees=60)
        assert low <= weighted_auc(*probabilities, ones, ones)[0] <= high


def test_area_equals_sklearns_with_ties_and_weights():
    rng = np.random.default_rng(0)
    real, generated = rng.integers(0, 6, 40) / 5, rng.integers(1, 7, 30) / 5
    weights = rng.integers(0, 3, (2, 70)).astype(float)
    truth = np.repeat([0, 1], [40, 30])
    expected = [
        roc_auc_score(truth, np.concatenate([real, generated]), sample_weight=w) for w in weights
    ]
    assert weighted_auc(real, generated, weights[:, :40], weights[:, 40:]) == pytest.approx(
        expected
    )


def test_macro_f1_equals_sklearns_over_classes_that_occur():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 4, 60), rng.integers(0, 6, 60)
    expected = f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)
    assert macro_f1(true, predicted, 6, np.ones((1, 60)))[0] == pytest.approx(expected)


def test_classes_are_predicted_and_a_single_class_needs_no_model():
    rng = np.random.default_rng(0)
    classes = np.repeat([2, 5], 100)
    cells = rng.standard_normal((200, 4)) + classes[:, None]
    cells[:, 3] = 1.0
    assert (ClassClassifier(cells, classes).predict(cells) == classes).mean() > 0.95
    assert ClassClassifier(cells[:100], classes[:100]).predict(cells[150:160]).tolist() == [2] * 10
