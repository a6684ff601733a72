import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx_cli.curve_text import curve_text


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
