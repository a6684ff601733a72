import pytest

from core.cells.ages import age_sort_key, group_ages, parse_years


@pytest.mark.parametrize(
    ("label", "years"),
    [
        ("73-year-old stage", 73),
        ("73-year-old human stage", 73),
        ("73-year-old_human_stage", 73),
        ("73", 73),
        ("73.0", 73),
        ("41 years", 41),
        ("80 year-old and over human stage", 80),
        ("fifth decade stage", 40),
        ("6-month-old stage", 0.5),
        ("9-week-old stage", pytest.approx(0.1725, abs=1e-3)),
        ("10th week post-fertilization stage", None),
        ("adult stage", None),
        ("30-39", None),
        ("999", None),
    ],
)
def test_years_are_read_from_the_usual_spellings(label, years):
    assert parse_years(label) == years


def test_human_ages_are_grouped_by_decade_and_other_stages_kept():
    labels = ["73-year-old stage", "79", "6-month-old stage", "adult stage", "fifth decade stage"]
    assert group_ages(labels) == ["70-79", "70-79", "0-9", "adult stage", "40-49"]


def test_a_column_of_weeks_is_not_grouped():
    assert group_ages(["9-week-old stage", "4-week-old stage"]) == [
        "9-week-old stage",
        "4-week-old stage",
    ]


def test_ages_sort_by_number_not_by_letter():
    assert sorted(["100", "20", "3"], key=age_sort_key) == ["3", "20", "100"]
    assert sorted(["100-109", "adult", "0-9", "20-29"], key=age_sort_key) == [
        "0-9", "20-29", "100-109", "adult",
    ]  # fmt: skip
