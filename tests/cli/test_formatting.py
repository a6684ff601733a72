import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx_cli.formatting import ago, curve_text, date, metric_value, short_count


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (50_440, "50.4k"), (85_054_464, "85.1M"), (-2500, "-2.5k"),
     (999_900, "1M"), (3e15, "3e+03T")],
)  # fmt: skip
def test_counts_are_told_in_three_digits(value, text):
    assert short_count(value) == text


def test_a_moment_is_told_in_local_time_or_as_how_long_ago():
    assert ago(100.0, now=112.0) == "12 s ago"
    assert ago(None, now=1.0) == ""
    moment = time.mktime((2026, 1, 31, 12, 0, 5, 0, 0, -1))
    assert date(moment) == "2026-01-31 12:00:05"
    assert (date(None), date(1e300)) == ("", "")


def test_metrics_are_told_in_their_own_format():
    assert metric_value("loss", 1.23456) == "1.2346"
    assert metric_value("cells_per_second", 12345.6) == "12,346"
    assert metric_value("wait", 0.0123) == "1.2%"
    assert metric_value("acc/sex", 0.5) == "0.500"
    assert metric_value("new", 123456.0) == "1.235e+05"
    assert metric_value("loss", None) == ""
    assert metric_value("loss", "odd") == "odd"


# -- curves
def test_a_rising_curve_rises():
    assert curve_text([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"


def test_a_constant_is_flat_and_a_single_value_is_a_block():
    assert curve_text([2.0, 2.0, 2.0]) == "▁▁▁"
    assert curve_text([7.0]) == "▁"


def test_what_is_not_finite_is_a_gap_and_sets_no_scale():
    assert curve_text([0.0, None, math.inf, math.nan, 7.0]) == "▁   █"


@pytest.mark.parametrize("values", [[], [None], [math.nan, math.inf]])
def test_no_values_are_no_curve(values):
    assert curve_text(values) == ""


def test_many_values_are_averaged_in_equal_groups():
    assert curve_text([0, 0, 4, 6, 10, 10], width=3) == "▁▅█"  # 0, 5, 10: round half to even


@given(st.lists(st.none() | st.floats(), max_size=200), st.integers(1, 70))
def test_a_curve_is_never_wider_than_asked_and_has_its_lowest_and_highest(values, width):
    drawn = curve_text(values, width=width)
    assert len(drawn) <= width
    assert set(drawn) <= set(" ▁▂▃▄▅▆▇█")
    if drawn:
        assert "▁" in drawn
        assert len(drawn) == min(width, len(values))
