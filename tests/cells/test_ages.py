"""Ages in every spelling that people and the stage ontologies use."""

import re

import pytest

from core.cells.ages import age_key, age_sort_key, column_unit, group_ages, is_prenatal, parse_age


@pytest.mark.parametrize(
    ("label", "years"),
    [
        ("73-year-old stage", 73),
        ("73-year-old human stage", 73),
        ("73-year-old_human_stage", 73),
        ("73", 73),
        ("73.0", 73),
        ("41 years", 41),
        ("41 years and 3 months", 41),
        ("73 Y.O.", 73),
        ("~45", 45),
        ("aged 65 years", 65),
        ("6-month-old stage", 0.5),
        ("18m", 1.5),
        ("9-week-old stage", pytest.approx(0.1725, abs=1e-3)),
        ("Week 9", pytest.approx(0.1725, abs=1e-3)),
        ("P7", pytest.approx(0.0192, abs=1e-3)),
        ("newborn", 0),
    ],
)
def test_a_single_age_is_read_in_years(label, years):
    age = parse_age(label)
    assert (age.low, age.high, age.middle) == (years, years, years)


@pytest.mark.parametrize(
    ("label", "decade"),
    [
        ("fifth decade stage", 40),
        ("2nd decade", 10),
        ("30s", 30),
        ("mid-30s", 30),
        ("60–69 years", 60),
        ("60 to 69 yo", 60),
        ("[60, 70)", 60),
        ("child stage (1-4 yo)", 0),
        ("newborn stage (0-28 days)", 0),
        ("under-1-year-old stage", 0),
        ("1-23 months", 0),
        ("80 year-old and over human stage", 80),
        ("90+", 90),
        ("≥ 80 years", 80),
        ("130 months", 10),
        # several decades
        ("60-79 year-old stage", None),
        ("20-39", None),
        ("(60, 70]", None),
        ("65+", None),
        ("under 20", None),
        ("juvenile stage (5-14 yo)", None),
    ],
)
def test_a_range_is_in_the_decade_that_holds_it(label, decade):
    assert parse_age(label).decade == decade


@pytest.mark.parametrize(
    "label",
    ["adult stage", "999", "1,5 years", "79-70", "60s-70s", "Oct-19", "post-embryonic stage"],
)
def test_other_labels_give_no_age(label):
    assert parse_age(label) is None
    assert not is_prenatal(label)


@pytest.mark.parametrize(
    "label",
    [
        "10th week post-fertilization stage", "E12.5", "embryonic", "Carnegie stage 20", "CS20",
        "12 PCW", "pcw12", "GW 20", "8 weeks gestation", "fetal stage", "Theiler stage 22",
        "third LMP month stage", "14 dpf",
    ],
)  # fmt: skip
def test_stages_before_birth_are_no_ages(label):
    assert is_prenatal(label)
    assert parse_age(label) is None


def test_human_ages_are_grouped_by_decade_and_other_stages_kept():
    labels = ["73-year-old stage", "79", "6-month-old stage", "adult stage", "fifth decade stage"]
    assert group_ages(labels) == ["70-79", "70-79", "0-9", "adult stage", "40-49"]


@pytest.mark.parametrize(
    ("labels", "unit"), [(["9-week-old stage", "P7", "3m"], "y"), (["8", "12"], "w")]
)
def test_ages_of_weeks_are_not_grouped(labels, unit):
    assert group_ages(labels, unit) == labels


def test_the_column_gives_the_unit_of_plain_numbers():
    assert [column_unit(name) for name in ("age_weeks", "Age (days)", "ageMonths", "age")] == [
        "w", "d", "m", "y",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("8 weeks", "8-week-old mouse stage"),
        ("17th week post-fertilization stage", "17th_week post-fertilization human stage"),
        ("60-79", "60-79 year-old stage"),
        ("25-year-old stage", "25"),
    ],
)
def test_two_spellings_of_one_age_have_one_key(first, second):
    assert age_key(first) == age_key(second)


def test_ages_sort_by_number_not_by_letter():
    assert sorted(["100", "20", "3"], key=age_sort_key) == ["3", "20", "100"]
    assert sorted(["100-109", "adult", "0-9", "20-29"], key=age_sort_key) == [
        "0-9", "20-29", "100-109", "adult",
    ]  # fmt: skip


@pytest.mark.parametrize("ontology", ["HsapDv", "MmusDv"])
def test_every_stage_with_a_number_is_an_age_or_before_birth(ontology):
    versions = pytest.importorskip("cellxgene_ontology_guide.supported_versions")
    names = [term["label"] for term in versions.CXGSchema().ontology(ontology).values()]
    numbered = [name for name in names if re.search(r"\d|decade|newborn", name)]
    assert len(numbered) > 100
    assert [one for one in numbered if parse_age(one) is None and not is_prenatal(one)] == []
