"""The classical baselines: right answers on separable cells, and the awkward label sets."""

import logging

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from core.errors import DataError
from core.evaluation import baselines
from core.evaluation.baselines import logistic_regression_baseline, majority_baseline

VALUES = ["a", "b", "c"]


def cells(n_cells, seed=0, *, signal=5.0, n_genes=30):
    """Sparse log-like values whose first three genes tell three values apart."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, n_cells)
    values = rng.exponential(size=(n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.4)
    values[np.arange(n_cells), codes] += signal
    return sparse.csr_matrix(values.astype(np.float32)), codes


def test_majority_predicts_the_most_frequent_training_value():
    scores = majority_baseline([0, 1, 1, -1, -1, -1], [0, 1, 1, 1, -1], VALUES)
    assert scores.accuracy == 3 / 4
    assert scores.confusion[:, 1].sum() == scores.n_cells == 4


def test_logistic_regression_tells_separable_values_apart():
    train_x, train = cells(400)
    test_x, test = cells(200, seed=1)
    scores = logistic_regression_baseline(train_x, train, test_x, test, VALUES, seed=0)
    assert scores.accuracy > 0.97
    assert scores.n_cells == 200


def test_logistic_regression_agrees_with_a_plain_scikit_learn_fit():
    train_x, train = cells(300, signal=0.7)
    test_x, test = cells(300, seed=1, signal=0.7)
    scores = logistic_regression_baseline(train_x, train, test_x, test, VALUES, seed=0)
    scaler = StandardScaler().fit(train_x.toarray())
    model = LogisticRegression(
        C=baselines._PENALTY, class_weight="balanced", max_iter=5000, tol=1e-8
    ).fit(scaler.transform(train_x.toarray()), train)
    expected = (model.predict(scaler.transform(test_x.toarray())) == test).mean()
    assert scores.accuracy == pytest.approx(expected, abs=0.011)


def test_sparse_and_dense_routes_agree(monkeypatch):
    train_x, train = cells(300, signal=0.7)
    test_x, test = cells(300, seed=1, signal=0.7)
    dense = logistic_regression_baseline(train_x, train, test_x, test, VALUES, seed=0)
    monkeypatch.setattr(baselines, "_DENSE_ENTRIES", 0)
    lean = logistic_regression_baseline(train_x, train, test_x, test, VALUES, seed=0)
    assert lean.accuracy == pytest.approx(dense.accuracy, abs=0.011)


def test_missing_labels_are_neither_trained_on_nor_scored():
    train_x, train = cells(300)
    test_x, test = cells(100, seed=1)
    wrong = train.copy()
    wrong[:150] = -1
    hidden = test.copy()
    hidden[:40] = -1
    scores = logistic_regression_baseline(train_x, wrong, test_x, hidden, VALUES, seed=0)
    kept = logistic_regression_baseline(
        train_x[150:], train[150:], test_x[40:], test[40:], VALUES, seed=0
    )
    assert scores.n_cells == 60
    assert (scores.confusion == kept.confusion).all()


def test_one_training_value_falls_back_to_the_majority():
    train_x, _ = cells(50)
    test_x, test = cells(50, seed=1)
    scores = logistic_regression_baseline(train_x, np.full(50, 2), test_x, test, VALUES, seed=0)
    assert scores.accuracy == (test == 2).mean()


def test_values_absent_from_training_or_test_are_handled():
    train_x, train = cells(300)
    test_x, test = cells(100, seed=1)
    unseen = logistic_regression_baseline(
        train_x[train < 2], train[train < 2], test_x, test, VALUES, seed=0
    )
    assert unseen.confusion[:, 2].sum() == 0
    untested = logistic_regression_baseline(
        train_x, train, test_x[test < 2], test[test < 2], VALUES, seed=0
    )
    assert untested.accuracy > 0.95
    assert len(untested.per_class()) == 2


def test_test_without_labels_gives_empty_scores():
    train_x, train = cells(60)
    scores = logistic_regression_baseline(train_x, train, train_x, np.full(60, -1), VALUES, seed=0)
    assert scores.n_cells == 0


def test_constant_genes_do_no_harm():
    train_x, train = cells(200)
    test_x, test = cells(100, seed=1)
    pad = sparse.csr_matrix(np.tile([0.0, 3.0], (200, 1)))
    scores = logistic_regression_baseline(
        sparse.csr_matrix(sparse.hstack([train_x, pad])),
        train,
        sparse.csr_matrix(sparse.hstack([test_x, pad[:100]])),
        test,
        VALUES,
        seed=0,
    )
    assert scores.accuracy > 0.95


def test_large_training_sets_are_sampled_with_the_seed():
    train_x, train = cells(500, signal=0.7)
    test_x, test = cells(300, seed=1, signal=0.7)

    def confusion(seed):
        return logistic_regression_baseline(
            train_x, train, test_x, test, VALUES, seed=seed, max_train_cells=60
        ).confusion

    assert (confusion(0) == confusion(0)).all()
    assert (confusion(0) != confusion(1)).any()


def test_a_fit_that_does_not_converge_is_logged_and_warns_nobody(monkeypatch, caplog):
    monkeypatch.setattr(baselines, "_MAX_ITERATIONS", 1)
    train_x, train = cells(100)
    with caplog.at_level(logging.WARNING):
        logistic_regression_baseline(train_x, train, train_x, train, VALUES, seed=0)
    assert "did not converge" in caplog.text


def test_inputs_that_cannot_be_scored_are_refused():
    train_x, train = cells(20)
    with pytest.raises(DataError, match="no training cell has a value"):
        majority_baseline([-1, -1], [0], VALUES)
    with pytest.raises(DataError, match="no training cell has a value"):
        logistic_regression_baseline(train_x, np.full(20, -1), train_x, train, VALUES, seed=0)
    with pytest.raises(DataError, match="30 genes and test cells 29"):
        logistic_regression_baseline(train_x, train, train_x[:, :29], train, VALUES, seed=0)
