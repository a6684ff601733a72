"""Two genes alone: the right ones are found, and scored on cells that chose nothing."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LinearRegression

from core.evaluation.two_genes import _two_genes, tell_by_two_genes


def cells(n_cells, seed):
    """Gene 4 marks value 1 and gene 9 value 0, each seen in 80 % of its cells; the rest is noise."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2, n_cells)
    x = rng.exponential(size=(n_cells, 30)) * (rng.random((n_cells, 30)) < 0.5)
    x[:, 4] = 2 * codes * (rng.random(n_cells) < 0.8)
    x[:, 9] = 2 * (1 - codes) * (rng.random(n_cells) < 0.8)
    return sparse.csr_matrix(x.astype(np.float32)), codes


def test_the_genes_that_tell_are_found():
    train_x, train = cells(500, 0)
    test_x, test = cells(400, 1)
    told = tell_by_two_genes(train_x, train, test_x, test, 2)
    assert set(told.genes) == {4, 9}
    # Each value is missed where its own marker is: 20 % of the cells, half of them by luck.
    assert told.accuracy == pytest.approx(0.9, abs=0.12)
    assert told.accuracy > 0.78
    assert told.to_dict(tuple(f"G{i}" for i in range(30)))["genes"] in (["G4", "G9"], ["G9", "G4"])


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


def test_missing_labels_are_left_out():
    train_x, train = cells(500, 0)
    test_x, test = cells(400, 1)
    part = np.where(np.arange(400) < 100, test, -1)
    told = tell_by_two_genes(train_x, train, test_x, part, 2)
    assert told == tell_by_two_genes(train_x, train, test_x[:100], test[:100], 2)


@pytest.mark.parametrize("codes", [[0, 1, 2], [1, 1, 1], [-1, -1, -1]])
def test_only_phenotypes_of_two_values_are_asked(codes):
    x, _ = cells(3, 0)
    assert tell_by_two_genes(x, np.array(codes), x, np.array(codes), 3) is None


def test_genes_that_do_not_vary_tell_nothing():
    x = sparse.csr_matrix(np.tile([1.0, 0.0, 2.0], (6, 1)))
    codes = np.array([0, 1, 0, 1, 0, 1])
    assert tell_by_two_genes(x, codes, x, codes, 2) is None


def test_one_scored_value_tells_nothing():
    train_x, train = cells(100, 0)
    for test in (np.full(100, -1), np.full(100, 1)):
        assert tell_by_two_genes(train_x, train, train_x, test, 2) is None
