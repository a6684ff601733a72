"""The baselines: right predictions on separable cells, and the awkward label sets."""

import logging

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.preprocessing import StandardScaler

from core.evaluation import baselines
from core.evaluation.baselines import (
    ALL_BASELINES,
    _two_genes,
    predict_by_baseline,
    score_two_genes,
)
from core.evaluation.metrics import score_phenotype

VALUES = ["a", "b", "c"]
FITTED = [method for method in ALL_BASELINES if method != "majority"]


def baseline(method, train_x, train, test_x, test, *, seed=0):
    predicted = predict_by_baseline(method, train_x, train, test_x, len(VALUES), seed=seed)
    return score_phenotype(test, predicted.argmax(axis=1), VALUES)


def cells(n_cells, seed=0, *, signal=5.0, n_genes=30):
    """Sparse log-like values whose first three genes tell three values apart."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, n_cells)
    values = rng.exponential(size=(n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.4)
    values[np.arange(n_cells), codes] += signal
    return sparse.csr_matrix(values.astype(np.float32)), codes


def test_majority_predicts_the_most_frequent_training_value():
    nothing = sparse.csr_matrix((6, 2), dtype=np.float32)
    train = np.array([0, 1, 1, -1, -1, -1])
    scores = baseline("majority", nothing, train, nothing[:5], [0, 1, 1, 1, -1])
    assert scores.accuracy == 3 / 4
    assert np.array(scores.confusion)[:, 1].sum() == scores.n_cells == 4


@pytest.mark.parametrize("method", FITTED)
def test_every_baseline_separates_separable_values(method):
    train_x, train = cells(400)
    test_x, test = cells(200, seed=1)
    scores = baseline(method, train_x, train, test_x, test)
    # A cell detects each gene that is not its own by 0.4: presence alone is right in 65 %.
    assert scores.accuracy > (0.55 if method == "marginal" else 0.97)
    assert scores.n_cells == 200


@pytest.mark.parametrize("method", ALL_BASELINES)
def test_every_baseline_gives_probabilities_of_all_values_and_none_of_unseen_ones(method):
    train_x, train = cells(200)
    predicted = predict_by_baseline(method, train_x, np.minimum(train, 1), train_x[:50], 4, seed=0)
    assert predicted.shape == (50, 4)
    np.testing.assert_allclose(predicted.sum(axis=1), 1, rtol=1e-6)
    assert not predicted[:, 2:].any()
    assert predicted.min() >= 0


@pytest.mark.parametrize("method", ALL_BASELINES)
def test_every_baseline_predicts_the_same_every_time(method, monkeypatch):
    for name, (fit, _) in baselines._FITS.items():
        monkeypatch.setitem(baselines._FITS, name, (fit, 100))
    train_x, train = cells(300, signal=0.7)
    one, two = (predict_by_baseline(method, train_x, train, train_x, 3, seed=3) for _ in range(2))
    assert (one == two).all()


def test_gene_marginals_agree_with_bayes_rule_written_out():
    train_x, train = cells(200, signal=0.5)
    test_x, _ = cells(40, seed=1, signal=0.5)
    predicted = predict_by_baseline("marginal", train_x, train, test_x, 3, seed=0)
    on, test_on = train_x.toarray() > 0, test_x.toarray() > 0
    log = np.zeros((40, 3))
    for code in range(3):
        own = on[train == code]
        share = (own.sum(axis=0) + 1) / (len(own) + 2)
        log[:, code] = np.log((train == code).mean())
        log[:, code] += np.where(test_on, np.log(share), np.log(1 - share)).sum(axis=1)
    expected = np.exp(log - log.max(axis=1, keepdims=True))
    np.testing.assert_allclose(predicted, expected / expected.sum(axis=1, keepdims=True), rtol=1e-6)


def test_neighbours_agree_with_plain_distances_where_all_components_are_kept():
    """Without dropped components the distances are those between log values."""
    train_x, train = cells(120, signal=0.7)
    test_x, _ = cells(30, seed=1, signal=0.7)
    predicted = predict_by_baseline("nearest_neighbours", train_x, train, test_x, 3, seed=0)
    distance = ((test_x.toarray()[:, None] - train_x.toarray()[None]) ** 2).sum(axis=-1)
    nearest = np.argsort(distance, axis=1)[:, :15]
    expected = np.stack([(train[nearest] == code).mean(axis=1) for code in range(3)], axis=1)
    np.testing.assert_allclose(predicted, expected)


def test_neighbours_are_sought_in_components_of_wide_matrices():
    train_x, train = cells(300, n_genes=200)
    test_x, test = cells(100, seed=1, n_genes=200)
    assert baseline("nearest_neighbours", train_x, train, test_x, test).accuracy > 0.9


def test_boosting_takes_the_genes_that_vary_most(monkeypatch):
    train_x, train = cells(300)
    test_x, test = cells(100, seed=1)
    monkeypatch.setattr(baselines, "BOOSTED_GENES", 3)  # those that tell the values apart
    assert baseline("gradient_boosting", train_x, train, test_x, test).accuracy > 0.9
    monkeypatch.setattr(baselines, "BOOSTED_GENES", 1)
    assert baseline("gradient_boosting", train_x, train, test_x, test).accuracy < 0.9


def test_logistic_regression_agrees_with_a_plain_scikit_learn_fit():
    train_x, train = cells(300, signal=0.7)
    test_x, test = cells(300, seed=1, signal=0.7)
    scores = baseline("logistic_regression", train_x, train, test_x, test)
    scaler = StandardScaler().fit(train_x.toarray())
    model = LogisticRegression(
        C=baselines.PENALTY, class_weight="balanced", max_iter=5000, tol=1e-8
    ).fit(scaler.transform(train_x.toarray()), train)
    expected = (model.predict(scaler.transform(test_x.toarray())) == test).mean()
    assert scores.accuracy == pytest.approx(expected, abs=0.011)


def test_sparse_and_dense_routes_agree(monkeypatch):
    train_x, train = cells(300, signal=0.7)
    test_x, test = cells(300, seed=1, signal=0.7)
    dense = baseline("logistic_regression", train_x, train, test_x, test)
    monkeypatch.setattr(baselines, "DENSE_ENTRIES", 0)
    lean = baseline("logistic_regression", train_x, train, test_x, test)
    assert lean.accuracy == pytest.approx(dense.accuracy, abs=0.011)


def test_missing_labels_are_neither_trained_on_nor_scored():
    train_x, train = cells(300)
    test_x, test = cells(100, seed=1)
    wrong = train.copy()
    wrong[:150] = -1
    hidden = test.copy()
    hidden[:40] = -1
    scores = baseline("logistic_regression", train_x, wrong, test_x, hidden)
    kept = baseline("logistic_regression", train_x[150:], train[150:], test_x[40:], test[40:])
    assert scores.n_cells == 60
    assert scores.confusion == kept.confusion


@pytest.mark.parametrize("method", FITTED)
def test_one_training_value_is_predicted_for_every_cell(method):
    train_x, _ = cells(50)
    test_x, test = cells(50, seed=1)
    scores = baseline(method, train_x, np.full(50, 2), test_x, test)
    assert scores.accuracy == (test == 2).mean()


def test_values_absent_from_training_or_test_are_handled():
    train_x, train = cells(300)
    test_x, test = cells(100, seed=1)
    unseen = baseline("logistic_regression", train_x[train < 2], train[train < 2], test_x, test)
    assert np.array(unseen.confusion)[:, 2].sum() == 0
    untested = baseline("logistic_regression", train_x, train, test_x[test < 2], test[test < 2])
    assert untested.accuracy > 0.95


def test_constant_genes_do_no_harm():
    train_x, train = cells(200)
    test_x, test = cells(100, seed=1)
    pad = sparse.csr_matrix(np.tile([0.0, 3.0], (200, 1)))
    scores = baseline(
        "logistic_regression",
        sparse.csr_matrix(sparse.hstack([train_x, pad])),
        train,
        sparse.csr_matrix(sparse.hstack([test_x, pad[:100]])),
        test,
    )
    assert scores.accuracy > 0.95


def test_large_training_sets_are_sampled_with_the_seed(monkeypatch):
    monkeypatch.setitem(baselines._FITS, "logistic_regression", (baselines.logistic_regression, 60))
    train_x, train = cells(500, signal=0.7)
    test_x, test = cells(300, seed=1, signal=0.7)

    def confusion(seed):
        return baseline("logistic_regression", train_x, train, test_x, test, seed=seed).confusion

    assert confusion(0) == confusion(0)
    assert confusion(0) != confusion(1)


def test_a_fit_that_does_not_converge_is_logged_and_warns_nobody(monkeypatch, caplog):
    monkeypatch.setattr(baselines, "_MAX_ITERATIONS", 1)
    train_x, train = cells(100)
    with caplog.at_level(logging.WARNING):
        baseline("logistic_regression", train_x, train, train_x, train)
    assert "did not converge" in caplog.text


SYMBOLS = tuple(f"G{i}" for i in range(30))


def marked_cells(n_cells, seed):
    """Gene 4 marks value 1 and gene 9 value 0, each seen in 80 % of its cells; the rest is noise."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2, n_cells)
    x = rng.exponential(size=(n_cells, 30)) * (rng.random((n_cells, 30)) < 0.5)
    x[:, 4] = 2 * codes * (rng.random(n_cells) < 0.8)
    x[:, 9] = 2 * (1 - codes) * (rng.random(n_cells) < 0.8)
    return sparse.csr_matrix(x.astype(np.float32)), codes


def test_the_marker_genes_are_found():
    train_x, train = marked_cells(500, 0)
    test_x, test = marked_cells(400, 1)
    scores = score_two_genes(train_x, train, test_x, test, SYMBOLS)
    assert set(scores.genes) == {"G4", "G9"}
    # Each value is missed where its own marker is: 20 % of the cells, half of them by luck.
    assert scores.accuracy == pytest.approx(0.9, abs=0.12)
    assert scores.accuracy > 0.78


def test_selection_is_that_of_plain_regressions():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 12)) + 1
    x[:, 5] = x[:, 2] + 0.1 * rng.normal(size=200)  # a copy that adds nothing to the second
    y = x[:, 2] + 0.5 * x[:, 7] + 0.3 * rng.normal(size=200)
    first, second = _two_genes(sparse.csr_matrix(x), y - y.mean())

    def explained(columns):
        return LinearRegression().fit(x[:, columns], y).score(x[:, columns], y)

    assert first == max(range(12), key=lambda gene: explained([gene]))
    others = [gene for gene in range(12) if gene != first]
    assert second == max(others, key=lambda gene: explained([first, gene]))


def test_two_genes_leave_missing_labels_out():
    train_x, train = marked_cells(500, 0)
    test_x, test = marked_cells(400, 1)
    part = np.where(np.arange(400) < 100, test, -1)
    scores = score_two_genes(train_x, train, test_x, part, SYMBOLS)
    assert scores == score_two_genes(train_x, train, test_x[:100], test[:100], SYMBOLS)


@pytest.mark.parametrize("codes", [[0, 1, 2], [1, 1, 1], [-1, -1, -1]])
def test_two_genes_are_for_phenotypes_of_two_values(codes):
    x, _ = marked_cells(3, 0)
    assert score_two_genes(x, np.array(codes), x, np.array(codes), SYMBOLS) is None


def test_genes_that_do_not_vary_are_not_chosen():
    x = sparse.csr_matrix(np.tile([1.0, 0.0, 2.0], (6, 1)))
    codes = np.array([0, 1, 0, 1, 0, 1])
    assert score_two_genes(x, codes, x, codes, SYMBOLS) is None


def test_two_genes_need_two_scored_values():
    train_x, train = marked_cells(100, 0)
    for test in (np.full(100, -1), np.full(100, 1)):
        assert score_two_genes(train_x, train, train_x, test, SYMBOLS) is None
