import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cells.phenotypes import (
    MISSING,
    Labels,
    PhenotypeColumn,
    age_sort_key,
    code_phenotype,
    group_ages,
    label_token,
    load_vocabulary,
    match_label,
    nearest,
    parse_years,
    read_labels,
    requested_phenotypes,
    vocabulary_entry,
)
from core.errors import DataError

from .examples import settings

SEX = PhenotypeColumn("sex", "sex", explicit=False)


def labels_of(values):
    labels = read_labels(pd.DataFrame({"sex": values}), SEX, where="f")
    assert labels is not None
    return labels


def test_labels_that_say_nothing_are_missing_and_counted_by_what_they_say():
    labels = labels_of(["male", "unknown", "na", None, np.nan, "Unknown", "female", " male "])
    assert labels.values == ("female", "male")
    assert labels.codes.tolist() == [1, MISSING, MISSING, MISSING, MISSING, MISSING, 0, 1]
    assert labels.missing == {"unknown": 1, "na": 1, "nan": 2, "Unknown": 1}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.Categorical(["b", "a"], categories=["a", "b", "unused"]), ("a", "b")),
        ([True, False], ("False", "True")),
        ([2.0, 1.0], ("1", "2")),
        (np.array([2, 1]), ("1", "2")),
        (pd.array(["b", None], dtype="string"), ("b",)),
        (pd.Categorical(["b", None]), ("b",)),
    ],
)
def test_any_kind_of_column_gives_text_labels(values, expected):
    assert labels_of(values).values == expected


@given(st.lists(st.sampled_from(["a", "b", "unknown", "", "c"]), min_size=1, max_size=30))
def test_codes_give_the_labels_back(values):
    labels = labels_of(values)
    back = [labels.values[code] if code >= 0 else None for code in labels.codes]
    assert back == [value if value in {"a", "b", "c"} else None for value in values]


def test_an_absent_column_is_none_by_default_and_an_error_if_named():
    obs = pd.DataFrame({"treatment": ["a"], "celltype": ["b"]})
    assert read_labels(obs, SEX, where="f") is None
    named = PhenotypeColumn("cell_type", "cell_type", explicit=True)
    with pytest.raises(DataError, match=r"f: data\.phenotypes\.cell_type .*'celltype'\?"):
        read_labels(obs, named, where="f")


def test_a_column_of_measurements_is_refused():
    obs = pd.DataFrame({"sex": np.random.default_rng(0).random(500)})
    with pytest.raises(DataError, match="500 different numbers"):
        read_labels(obs, SEX, where="f")


def test_the_standard_five_come_first_and_false_leaves_one_out():
    data = settings("f", phenotypes={"treatment": "drug", "tissue": False, "age": "years"})
    assert [(one.name, one.column, one.explicit) for one in requested_phenotypes(data)] == [
        ("sex", "sex", False),
        ("cell_type", "cell_type", False),
        ("age", "years", True),
        ("disease", "disease", False),
        ("treatment", "drug", True),
    ]


def test_a_label_is_matched_by_text_then_token_then_case():
    values = ["T cell", "t cell", "CD4-positive, alpha-beta T cell"]
    assert match_label("T cell", values) == "T cell"
    assert match_label("[T_cell]", values) == "T cell"
    assert match_label("[CD4-positive,_alpha-beta_T_cell]", values) == values[2]
    assert match_label("T CELL", values) is None  # two values differ by case only
    assert match_label("cd4-POSITIVE, alpha-beta t cell", values) == values[2]
    assert label_token("T cell") == "[T_cell]"


def test_nearest_labels_are_found_by_spelling_and_by_part():
    values = ["regulatory T cell", "B cell", "monocyte", "macrophage"]
    assert nearest("monocytes", values)[0] == "monocyte"
    assert "regulatory T cell" in nearest("T cell", values)


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


def coded_labels(values, codes, missing=None):
    return Labels(np.array(codes, dtype=np.int32), tuple(values), missing or {})


def test_values_are_learnt_from_training_cells_in_sorted_order_across_files():
    files = [
        coded_labels(["b", "c"], [0, 1, -1], {"na": 1}),
        None,
        coded_labels(["a", "b"], [0, 1]),
    ]
    training = np.array([True, False, True, True, True, True])
    result = code_phenotype(files, [3, 1, 2], training)
    assert result.values == ["a", "b"]
    assert result.codes.tolist() == [1, MISSING, MISSING, MISSING, 0, 1]
    assert result.unmapped == {"c": 1}
    assert result.missing == {"(no such column)": 1, "na": 1}


def test_ages_are_in_numeric_order():
    ages = coded_labels(["100", "20", "3"], [0, 1, 2])
    assert code_phenotype([ages], [3], None, ages=True).values == ["3", "20", "100"]


def test_a_given_vocabulary_keeps_its_order_and_takes_the_spelling_of_the_cells():
    files = [coded_labels(["B cell", "T cell", "odd"], [0, 1, 2, 1])]
    given = ["[T_cell]", "[mast_cell]", "[B_cell]", "[NO_CELL_TYPE]"]
    result = code_phenotype(files, [4], None, given=given)
    assert result.values == ["T cell", "mast cell", "B cell"]
    assert result.codes.tolist() == [2, 0, MISSING, 0]
    assert result.unmapped == {"odd": 1}


def test_given_ages_are_grouped_as_the_cells_are():
    given = ["[57-year-old_human_stage]", "[37-year-old_human_stage]", "[38-year-old_human_stage]"]
    files = [coded_labels(["30-39", "50-59"], [0, 1])]
    result = code_phenotype(files, [2], None, given=given, ages=True, decades=True)
    assert result.values == ["50-59", "30-39"]
    assert result.codes.tolist() == [1, 0]


def test_a_vocabulary_is_found_by_phenotype_or_by_column():
    age = PhenotypeColumn("age", "development_stage", explicit=False)
    assert vocabulary_entry({"development_stage": ["x"]}, age) == ["x"]
    assert vocabulary_entry({"age": ["y"], "development_stage": ["x"]}, age) == ["y"]
    assert vocabulary_entry({}, age) is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", "a vocabulary has the form"),
        ('{"sex": "male"}', "a vocabulary has the form"),
        ('{"sex": ["male", 1]}', "a vocabulary has the form"),
        ('{"sex": ["male", "male"]}', "lists 'male' more than once"),
    ],
)
def test_a_faulty_vocabulary_file_is_refused(tmp_path, text, complaint):
    path = tmp_path / "vocabulary.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"vocabulary\.json: .*{complaint}"):
        load_vocabulary(path)


def test_a_missing_vocabulary_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json: no such file; data\.vocabulary"):
        load_vocabulary(tmp_path / "absent.json")


def test_the_originals_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "tokens.json"
    record = {"cell_type": ["[T_cell]", "[B_cell]"], "sex": ["[female]", "[male]"]}
    path.write_text(json.dumps(record))
    assert load_vocabulary(path) == record
