"""Years off: what values of age stand for, and the mean difference."""

import pytest

from core.evaluation.age_error import mean_years_off, years_of


@pytest.mark.parametrize(
    ("label", "years"),
    [
        ("70-79", 75.0), ("0-9", 5.0), ("60 - 69", 65.0), ("73-year-old stage", 73.0),
        ("41", 41.0), ("fifth decade human stage", 45.0), ("adult", None), ("79-70", None),
        ("2020-3000", None),
    ],
)  # fmt: skip
def test_what_a_value_stands_for(label, years):
    assert years_of(label) == years


def test_the_mean_is_over_cells_with_an_age():
    values = ["20-29", "30-39", "60-69"]
    assert mean_years_off([0, 1, 2, -1], [1, 1, 0, 0], values) == pytest.approx(50 / 3)


def test_an_answer_without_an_age_counts_as_the_furthest():
    values = ["20-29", "30-39", "60-69", "adult"]
    assert mean_years_off([1], [3], values) == 30
    assert mean_years_off([1], [-1], values) == 30
    assert mean_years_off([3, 1], [0, 0], values) == 10


def test_values_without_an_order_have_no_error():
    assert mean_years_off([0, 1], [1, 0], ["young", "old"]) is None
    assert mean_years_off([0, 1], [1, 0], ["20-29", "old"]) is None
    assert mean_years_off([-1], [0], ["20-29", "30-39"]) is None
