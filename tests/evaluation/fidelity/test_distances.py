"""Distances between cells: floors of real halves, collapse and copies caught, order of no matter."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from core.evaluation.fidelity.distances import (
    covered,
    find_copies,
    fit_components,
    gaussian_kernel,
    median_squared_distance,
    mmd2,
    mmd2_of_splits,
    nearest_distances,
    recalled,
    squared_distances,
)


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


def test_order_of_cells_does_not_matter():
    real, generated = points(60, 0), points(60, 1)
    order = np.random.default_rng(3).permutation(60)
    median = median_squared_distance(real)
    assert median_squared_distance(real[order]) == pytest.approx(median)
    assert mmd2_between(real[order], generated[order[::-1]], median) == pytest.approx(
        mmd2_between(real, generated, median)
    )


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
