import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cells.phenotypes import (
    MISSING,
    PhenotypeColumn,
    label_token,
    match_label,
    nearest,
    read_labels,
    requested_phenotypes,
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
