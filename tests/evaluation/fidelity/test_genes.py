"""Gene measures against plain numpy and hand-written cases."""

import math

import numpy as np
import pytest

from core.evaluation.fidelity.genes import (
    correlation_agreement,
    correlation_genes,
    detected_genes,
    fold_change_agreement,
    fold_changes,
    marginal_agreement,
    within_class_correlations,
)


def cells_of_two_classes(seed, n_cells=600, n_genes=40):
    """Classes that differ in the first genes; the others share a hidden activity."""
    rng = np.random.default_rng(seed)
    classes = np.arange(n_cells) % 2
    activity = rng.standard_normal((n_cells, 1)) * np.linspace(-1, 1, n_genes)
    values = activity + rng.standard_normal((n_cells, n_genes))
    values[:, :12] += classes[:, None] * np.linspace(3, 1, 12)
    return np.maximum(values, 0), classes


def test_marginals_of_a_hand_written_case():
    real = np.array([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    generated = np.array([[2.0, 1.0, 0.0], [2.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    r, dropout = marginal_agreement(real, generated)
    assert r == pytest.approx(np.corrcoef([2, 0, 1], [2, 1 / 3, 0])[0, 1])
    assert dropout == pytest.approx((0 + 1 / 3 + 1 / 2) / 3)
    assert detected_genes(generated).tolist() == [2, 1, 1]


def test_correlations_of_one_class_equal_numpys():
    cells, _ = cells_of_two_classes(0)
    found = within_class_correlations(cells, np.zeros(len(cells), dtype=int))
    assert found == pytest.approx(np.corrcoef(cells.T)[np.triu_indices(40, 1)])


def test_what_sets_classes_apart_is_no_correlation_within_them():
    rng = np.random.default_rng(0)
    classes = np.arange(4000) % 2
    cells = rng.standard_normal((4000, 2)) + 5 * classes[:, None]
    assert np.corrcoef(cells.T)[0, 1] > 0.8
    assert abs(within_class_correlations(cells, classes)[0]) < 0.05


def test_real_halves_agree_and_shuffled_genes_do_not():
    real, classes = cells_of_two_classes(0)
    other, _ = cells_of_two_classes(1)
    rng = np.random.default_rng(2)
    shuffled = np.column_stack([rng.permutation(column) for column in other.T])
    first, second, third = (within_class_correlations(x, classes) for x in (real, other, shuffled))
    r, slope = correlation_agreement(first, second)
    assert r > 0.5
    assert slope == pytest.approx(1.0, abs=0.15)
    _, lost = correlation_agreement(first, third)
    assert lost < 0.5


def test_agreement_is_undefined_without_correlations():
    assert all(math.isnan(x) for x in correlation_agreement(np.zeros(5), np.ones(5)))


def test_genes_on_nearly_everywhere_are_not_correlated():
    rng = np.random.default_rng(0)
    cells = rng.exponential(size=(200, 130)) * (rng.random((200, 130)) < 0.5)
    cells[:, 3] = 1 + 9 * rng.random(200)
    chosen = correlation_genes(cells)
    assert len(chosen) == 100
    assert 3 not in chosen
    assert chosen[0] == np.argmax(np.delete(cells, 3, axis=1).var(axis=0)) + (
        np.argmax(np.delete(cells, 3, axis=1).var(axis=0)) >= 3
    )


def test_fold_changes_equal_means_of_class_and_rest():
    cells, classes = cells_of_two_classes(0)
    found = fold_changes(cells, classes, 3)
    expected = cells[classes == 1].mean(axis=0) - cells[classes == 0].mean(axis=0)
    assert found[1] == pytest.approx(expected)
    assert found[0] == pytest.approx(-expected)
    assert np.isnan(found[2]).all()


def test_attenuated_differences_have_a_small_slope():
    cells, classes = cells_of_two_classes(0)
    other, _ = cells_of_two_classes(1)
    chosen_by = fold_changes(cells_of_two_classes(2)[0], classes, 2)
    real, generated = (fold_changes(x, classes, 2) for x in (cells, other))
    slope, overlap = fold_change_agreement(chosen_by, real, generated)
    assert slope == pytest.approx(1.0, abs=0.1)
    assert overlap > 0.6
    half, _ = fold_change_agreement(chosen_by, real, 0.5 * generated)
    assert half == pytest.approx(0.5 * slope)


def test_fold_changes_without_a_class_on_both_sides_are_undefined():
    nothing = np.full((2, 40), np.nan)
    assert all(math.isnan(x) for x in fold_change_agreement(nothing, nothing, nothing))
