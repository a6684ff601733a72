import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from tfx_cli.dashboard.canvas import (
    BLANK,
    column_extremes,
    dots_to_codes,
    draw_line,
    draw_points,
    draw_range,
    moving_mean,
    nice_ticks,
    sample_line,
)
from tfx_cli.formatting import tick_labels

values = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf, 0.0]))
curves = st.lists(st.tuples(st.integers(0, 200), values), max_size=60).map(
    lambda points: (
        np.array(sorted(float(x) for x, _ in points)),
        np.array([y for _, y in points], dtype=float),
    )
)


@given(curves, st.integers(0, 100), st.integers(1, 100), st.integers(1, 40))
def test_extremes_equal_a_naive_loop(curve, start, length, n_columns):
    x, y = curve
    stop = start + length
    found = column_extremes(x, y, (start, stop), n_columns)
    edges = np.linspace(start, stop, n_columns + 1)
    for column in range(n_columns):
        is_last = column == n_columns - 1
        inside = [
            value
            for place, value in zip(x, y, strict=True)
            if edges[column] <= place
            and (place <= edges[column + 1] if is_last else place < edges[column + 1])
            and math.isfinite(value)
        ]
        if inside:
            assert (found.low[column], found.high[column]) == (min(inside), max(inside))
        else:
            assert math.isnan(found.low[column])
            assert math.isnan(found.high[column])


@given(curves, st.floats(0, 50))
def test_moving_mean_equals_a_naive_loop(curve, width):
    x, y = curve
    at = np.linspace(0, 200, 17)
    found = moving_mean(x, y, at, width)
    for place, mean in zip(at, found, strict=True):
        inside = [
            value
            for one, value in zip(x, y, strict=True)
            if place - width / 2 <= one <= place + width / 2 and math.isfinite(value)
        ]
        if inside:
            assert math.isclose(mean, sum(inside) / len(inside), rel_tol=1e-6, abs_tol=1e-4)
        else:
            assert math.isnan(mean)


@given(
    st.integers(1, 6).flatmap(
        lambda h: st.integers(1, 9).flatmap(
            lambda w: st.lists(
                st.lists(st.booleans(), min_size=2 * w, max_size=2 * w),
                min_size=4 * h,
                max_size=4 * h,
            )
        )
    )
)
def test_braille_decodes_back_to_its_dots(rows):
    dots = np.array(rows)
    # The dots of a braille pattern by its number in Unicode: 1 2 3 7 down the left, 4 5 6 8 right.
    bits = [[0, 3], [1, 4], [2, 5], [6, 7]]
    decoded = np.zeros_like(dots)
    for i, line in enumerate(dots_to_codes(dots)):
        for j, code in enumerate(line):
            for row in range(4):
                for column in range(2):
                    is_set = (int(code) - BLANK) >> bits[row][column] & 1
                    decoded[4 * i + row, 2 * j + column] = bool(is_set)
    assert (decoded == dots).all()


def test_a_range_fills_from_its_lowest_to_its_highest():
    columns = column_extremes(np.array([0.0, 0.1, 1.0]), np.array([0.0, 3.0, 1.0]), (0, 1), 2)
    dots = draw_range(columns, (0.0, 3.0), 4)
    assert dots.T.tolist() == [[True] * 4, [False, False, True, False]]


def test_a_line_is_joined_and_a_gap_is_not():
    heights = np.array([0.0, 3.0, np.nan, 3.0, 3.0])
    dots = draw_line(heights, (0.0, 3.0), 4)
    assert dots[:, 0].tolist() == [False, False, False, True]
    assert dots[:, 1].tolist() == [True, True, True, False]
    assert not dots[:, 2].any()
    assert dots[:, 3].tolist() == [True, False, False, False]


def test_sparse_points_are_joined_by_straight_lines_up_to_their_ends():
    x, y = np.array([10.0, 20.0]), np.array([1.0, 3.0])
    heights = sample_line(x, y, np.array([5.0, 10.0, 15.0, 20.0, 25.0]), 0.0)
    assert np.isnan(heights[[0, 4]]).all()
    assert heights[1:4].tolist() == [1.0, 2.0, 3.0]


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.05, 0.3]), st.booleans())
def test_many_points_are_averaged_by_columns(seed, fraction, with_gaps):
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0, 100, 2000))
    y = rng.normal(size=2000)
    if with_gaps:
        y[rng.random(2000) < 0.2] = rng.choice([np.nan, np.inf, -np.inf])
    at = np.linspace(0, 100, 50)
    found = sample_line(x, y, at, fraction * 100)
    edges = np.linspace(0, 100, 51)
    reach = round(fraction * 50 / 2)
    for column in range(50):
        low, high = edges[max(column - reach, 0)], edges[min(column + reach + 1, 50)]
        inside = y[(x >= low) & (x < high) & np.isfinite(y)]
        assert math.isclose(found[column], inside.mean(), abs_tol=1e-9)


def test_a_line_breaks_where_a_value_is_not_finite():
    x, y = np.array([0.0, 10.0, 20.0]), np.array([1.0, np.nan, 3.0])
    heights = sample_line(x, y, np.array([0.0, 5.0, 10.0, 15.0, 20.0]), 0.0)
    assert np.isnan(heights).tolist() == [False, True, True, True, False]


def test_points_outside_are_left_out():
    x = np.array([0.0, 1.0, 2.0, np.nan])
    dots = draw_points(x, np.array([0.0, 1.0, 9.0, 0.0]), (0, 1), (0, 1), (4, 2))
    assert dots.sum() == 2
    assert dots[3, 0]
    assert dots[0, 1]


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(1, 12))
def test_ticks_are_round_few_and_inside(low, span, n_most):
    ticks = nice_ticks(low, low + span, n_most)
    assert len(ticks) <= n_most
    slack = 1e-6 * max(abs(low), span)
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)


@given(st.floats(-1e9, 1e9), st.floats(-7, 9), st.integers(1, 12))
def test_labels_of_ticks_are_their_numbers_and_differ(low, power, n_most):
    ticks = nice_ticks(low, low + 10**power, n_most)
    if len(ticks) < 2 or 10**power < 1e-9 * abs(low):
        return
    units = {"k": "e3", "M": "e6", "G": "e9"}
    labels = tick_labels(ticks)
    read = [float(label[:-1] + units.get(label[-1], label[-1])) for label in labels]
    assert len(set(labels)) == len(ticks)
    np.testing.assert_allclose(read, ticks, atol=(ticks[1] - ticks[0]) / 100)


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([1.365, 1.37, 1.375], ["1.365", "1.370", "1.375"]),
        ([2e-5, 2.05e-5, 2.1e-5], ["2.00e-5", "2.05e-5", "2.10e-5"]),
        ([0, 10_000, 20_000], ["0", "10k", "20k"]),
        ([0, 0.5, 1], ["0", "0.5", "1.0"]),
        ([1_234_560, 1_234_580], ["1234560", "1234580"]),
    ],
)
def test_labels_have_the_digits_that_tell_them_apart(ticks, labels):
    assert tick_labels(ticks) == labels


def test_ticks_of_a_common_range():
    assert nice_ticks(0.0, 1.0, 6) == [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
    assert nice_ticks(1.0, 1.0, 5) == []
    assert nice_ticks(math.nan, 1.0, 5) == []
