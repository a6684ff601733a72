"""Measures of generated cells against sklearn's and numpy's own, and on cells of known kind."""

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from core.evaluation.fidelity.measures import (
    ClassClassifier,
    correlation_agreement,
    correlation_genes,
    covered,
    detected_genes,
    find_copies,
    fit_components,
    fold_change_agreement,
    fold_changes,
    gaussian_kernel,
    macro_f1,
    marginal_agreement,
    median_squared_distance,
    mmd2,
    mmd2_of_splits,
    nearest_distances,
    probability_generated,
    recalled,
    squared_distances,
    weighted_auc,
    within_class_correlations,
)


# ------------------------------------------------------------------------------------- classifiers
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


# --------------------------------------------------------------------------------------- distances
def points(n, seed, *, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, 5)) + shift


def mmd2_between(real, generated, median):
    ones = [np.ones((1, len(side))) for side in (real, generated)]
    kernels = [
        gaussian_kernel(squared_distances(a, b), median)
        for a, b in ((real, real), (generated, generated), (real, generated))
    ]
    return mmd2(*kernels, *ones)[0]


def test_mmd_equals_the_sum_over_pairs():
    real, generated = points(7, 0), points(9, 1, shift=0.5)
    median = median_squared_distance(real)

    def kernel(x, y):
        squares = ((x - y) ** 2).sum()
        return np.mean([np.exp(-squares / (f * median)) for f in (0.25, 0.5, 1, 2, 4)])

    def mean(left, right, *, different):
        values = [
            kernel(x, y)
            for i, x in enumerate(left)
            for j, y in enumerate(right)
            if not (different and i == j)
        ]
        return np.mean(values)

    expected = (
        mean(real, real, different=True)
        + mean(generated, generated, different=True)
        - 2 * mean(real, generated, different=False)
    )
    assert mmd2_between(real, generated, median) == pytest.approx(expected)


def test_weights_are_cells_taken_several_times_without_pairs_of_themselves():
    real, generated = points(6, 0), points(5, 1)
    median = median_squared_distance(real)
    chosen = np.array([0, 1, 3, 4, 5])
    weights = np.zeros((1, 6))
    weights[0, chosen] = 1
    kernels = [
        gaussian_kernel(squared_distances(a, b), median)
        for a, b in ((real, real), (generated, generated), (real, generated))
    ]
    found = mmd2(*kernels, weights, np.ones((1, 5)))[0]
    assert found == pytest.approx(mmd2_between(real[chosen], generated, median))


def test_real_halves_stay_within_their_splits_and_shifted_cells_do_not():
    real, other = points(200, 0), points(200, 1)
    median = median_squared_distance(real)
    drawn = mmd2_of_splits(np.concatenate([real, other]), median, np.random.default_rng(0))
    assert abs(drawn.mean()) < drawn.std()
    limit = np.percentile(drawn, 95)
    assert mmd2_between(real, other, median) <= limit
    assert mmd2_between(real, points(200, 2, shift=0.5), median) > 3 * limit


def test_collapsed_points_are_recalled_nowhere_and_cover_little():
    real = points(200, 0)
    good, collapsed = points(200, 1), 0.01 * points(200, 2)
    within = squared_distances(real, real)
    for generated, low, high in ((good, 0.8, 1.0), (collapsed, 0.0, 0.1)):
        between = squared_distances(real, generated)
        assert low <= recalled(squared_distances(generated, generated), between).mean() <= high
        assert low <= covered(within, between).mean() <= high


def test_recall_and_coverage_equal_their_definition():
    real, generated = points(40, 0), points(30, 1)
    between = np.linalg.norm(real[:, None] - generated, axis=2)

    def reach(cells):
        found = NearestNeighbors(n_neighbors=6).fit(cells).kneighbors(cells)[0]
        return found[:, 5]

    assert np.array_equal(
        recalled(squared_distances(generated, generated), between**2),
        (between <= reach(generated) + 1e-9).any(axis=1),
    )
    assert np.array_equal(
        covered(squared_distances(real, real), between**2),
        (between.min(axis=1) <= reach(real) + 1e-9),
    )


def test_nearest_distances_equal_sklearns():
    left, right = points(50, 0), points(70, 1)
    expected = NearestNeighbors(n_neighbors=1).fit(right).kneighbors(left)[0][:, 0]
    assert nearest_distances(left, right) == pytest.approx(expected)


def test_copies_are_found_and_empty_cells_are_none():
    rng = np.random.default_rng(0)
    training = rng.integers(0, 4, (100, 30)).astype(np.uint8)
    training[0] = 0
    generated = rng.integers(0, 4, (20, 30)).astype(np.uint8)
    generated[3], generated[7] = training[55], training[0]
    assert np.flatnonzero(find_copies(generated, training)).tolist() == [3]


def test_all_components_keep_the_distances():
    cells = points(20, 0)
    placed = fit_components(cells).transform(cells)
    assert squared_distances(placed, placed) == pytest.approx(
        squared_distances(cells, cells), abs=1e-9
    )
    assert placed.var(axis=0).argmax() == 0


# ------------------------------------------------------------------------------------------- genes
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
