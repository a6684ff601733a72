import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cells import ontology
from core.cells.phenotypes import (
    MISSING,
    Labels,
    PhenotypeColumn,
    join_labels,
    read_labels,
    requested_phenotypes,
)
from core.cells.spelling import label_token, match_ages, match_label, nearest
from core.cells.vocabularies import code_phenotype, load_vocabulary, vocabulary_entry
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


# -- joining labels


DISEASE = PhenotypeColumn("disease", "disease", explicit=False)
DRUG = PhenotypeColumn("drug", "drug", explicit=True)


def joined(phenotype, *files, decades=False):
    """Return the texts of all cells of each file after joining, None where missing, and the files."""
    read = [
        read_labels(pd.DataFrame({phenotype.column: values}), phenotype, where="f")
        for values in files
    ]
    labels = join_labels(read, phenotype, decades=decades)
    texts = [[([*one.values, None])[code] for code in one.codes] for one in labels]
    return texts, labels


@pytest.mark.parametrize(
    ("phenotype", "values", "label"),
    [
        (DISEASE, ["none"] * 6 + ["COVID-19"] * 4, "none"),
        (DISEASE, ["None"] * 6 + ["none"] * 3 + ["COVID-19"] * 4, "None"),
        (DRUG, ["None"] + [f"drug {number // 2}" for number in range(200)], None),
        (DRUG, ["None"] * 2 + [f"drug {number // 2}" for number in range(200)], "None"),
        (DISEASE, ["none"] + ["normal"] * 60 + ["COVID-19"] * 40, None),
        (DISEASE, ["control"] + ["COVID-19"] * 99, "control"),
        (SEX, ["none"] * 6 + ["male"] * 4, None),
        (PhenotypeColumn("cell_type", "cell_type", explicit=True), ["None"] * 6 + ["T"], None),
    ],
)
def test_none_is_a_label_where_it_is_common_and_can_be_one(phenotype, values, label):
    texts, (labels,) = joined(phenotype, values)
    assert texts[0][0] == label
    assert (sum(labels.missing.values()) > 0) == (label is None)


def test_none_is_judged_on_all_files_together():
    texts, labels = joined(DISEASE, ["none", *["flu"] * 99], ["none"] * 60 + ["flu"] * 40)
    assert texts[0][0] == "none"
    assert [one.missing for one in labels] == [{}, {}]


@pytest.mark.parametrize(
    ("phenotype", "common", "rare"),
    [
        (DRUG, "na\u00efve", "nai\u0308ve"),
        (DRUG, "drug A", "drug\u00a0A"),
        (DRUG, "drug A", "drug  A"),
        (DRUG, "drug A", "drug_A"),
        (DRUG, "Crohn's", "Crohn\u2019s"),
        (DRUG, "60-79", "60\u201379"),
        (DRUG, "5 \u03bcM", "5 \u00b5M"),
        (DISEASE, "lung cancer", "Lung Cancer"),
        (SEX, "male", "M"),
        (SEX, "female", "Woman"),
    ],
)
def test_spellings_whose_meaning_cannot_differ_are_one_label(phenotype, common, rare):
    texts, labels = joined(phenotype, [common, common, "other"], [rare])
    assert texts == [[common, common, "other"], [common]]
    assert labels[1].joined == {common: {rare: 1}}
    assert labels[0].joined == {}


@pytest.mark.parametrize(
    ("first", "second"), [("KRAS", "Kras"), ("CD4+ T", "CD4- T"), ("m", "male"), ("IL-2", "IL 2")]
)
def test_spellings_of_a_users_phenotype_that_may_differ_in_meaning_are_left_apart(first, second):
    assert joined(DRUG, [first, second])[0] == [[first, second]]


def test_ages_of_all_files_are_grouped_together():
    age = PhenotypeColumn("age", "development_stage", explicit=False)
    texts, _ = joined(
        age, ["25", "60-79 year-old stage"], ["P7", "60-79", "60-79", "30s"], decades=True
    )
    assert texts == [["20-29", "60-79"], ["0-9", "60-79", "60-79", "30-39"]]
    assert joined(age, ["8 weeks", "8 weeks"], ["P7", "8-week-old stage"], decades=True)[0] == [
        ["8 weeks", "8 weeks"], ["P7", "8 weeks"],
    ]  # fmt: skip


CELL_TYPE = PhenotypeColumn("cell_type", "cell_type", explicit=False)


def test_ids_of_ontology_terms_meet_their_names(monkeypatch):
    pytest.importorskip("cellxgene_ontology_guide")
    texts, labels = joined(
        CELL_TYPE, ["B cell", "T cell"], ["CL:0000236", "cl_0000084", "CL:0000623"]
    )
    assert texts == [["B cell", "T cell"], ["B cell", "T cell", "natural killer cell"]]
    assert labels[1].joined["B cell"] == {"CL:0000236": 1}
    assert joined(CELL_TYPE, ["CL:0000236", "CL:0000084"])[0] == [["CL:0000236", "CL:0000084"]]
    age = PhenotypeColumn("age", "development_stage_ontology_term_id", explicit=True)
    ids = ["HsapDv:0000119", "HsapDv:0000237", "HsapDv:0000272"]
    assert joined(age, ids, ["3"], decades=True)[0][0] == ["20-29", "20-29", "60-79 year-old stage"]
    assert match_ages(ids, ["20-29", "60-79"]) == dict(
        zip(ids, ["20-29", "20-29", "60-79"], strict=True)
    )
    assert match_label("CL:0000236", ["T cell", "B cell"]) == "B cell"
    assert match_label("b cell", ["CL:0000084", "CL:0000236"]) == "CL:0000236"
    monkeypatch.setattr(ontology, "_terms", lambda name: {})  # the extra is not installed
    assert joined(CELL_TYPE, ["B cell"], ["CL:0000236"])[0] == [["B cell"], ["CL:0000236"]]
    assert match_label("CL:0000236", ["T cell", "B cell"]) is None


@pytest.mark.parametrize(
    ("label", "values", "value"),
    [
        ("M", ["female", "male"], "male"),
        ("Female", ["F", "M"], "F"),
        ("nai\u0308ve\u00a0B cell", ["na\u00efve B cell"], "na\u00efve B cell"),
    ],
)
def test_a_label_of_another_spelling_is_matched(label, values, value):
    assert match_label(label, values) == value


def test_an_age_is_matched_by_spelling_then_by_decade():
    values = ["20-29", "60-79", "17th week post-fertilization stage"]
    labels = ["25", "60-79 year-old stage", "17th week post-fertilization human stage", "35"]
    assert match_ages(labels, values) == dict(zip(labels, values, strict=False))
