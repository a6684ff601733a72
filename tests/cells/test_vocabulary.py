import json

import numpy as np
import pytest

from core.cells.phenotypes import MISSING, Labels, PhenotypeColumn
from core.cells.vocabulary import code_phenotype, load_vocabulary, vocabulary_entry
from core.errors import DataError


def labels(values, codes, missing=None):
    return Labels(np.array(codes, dtype=np.int32), tuple(values), missing or {})


def everywhere(n):
    return np.ones(n, dtype=bool)


def test_values_are_learnt_from_training_cells_in_sorted_order_across_files():
    files = [labels(["b", "c"], [0, 1, -1], {"na": 1}), None, labels(["a", "b"], [0, 1])]
    training = np.array([True, False, True, True, True, True])
    result = code_phenotype(files, [3, 1, 2], training)
    assert result.values == ["a", "b"]
    assert result.codes.tolist() == [1, MISSING, MISSING, MISSING, 0, 1]
    assert result.unmapped == {"c": 1}
    assert result.missing == {"(no such column)": 1, "na": 1}


def test_ages_are_in_numeric_order():
    ages = labels(["100", "20", "3"], [0, 1, 2])
    assert code_phenotype([ages], [3], everywhere(3), ages=True).values == ["3", "20", "100"]


def test_a_given_vocabulary_keeps_its_order_and_takes_the_spelling_of_the_cells():
    files = [labels(["B cell", "T cell", "odd"], [0, 1, 2, 1])]
    given = ["[T_cell]", "[mast_cell]", "[B_cell]", "[NO_CELL_TYPE]"]
    result = code_phenotype(files, [4], everywhere(4), given=given)
    assert result.values == ["T cell", "mast cell", "B cell"]
    assert result.codes.tolist() == [2, 0, MISSING, 0]
    assert result.unmapped == {"odd": 1}


def test_given_ages_are_grouped_as_the_cells_are():
    given = ["[57-year-old_human_stage]", "[37-year-old_human_stage]", "[38-year-old_human_stage]"]
    files = [labels(["30-39", "50-59"], [0, 1])]
    result = code_phenotype(files, [2], everywhere(2), given=given, ages=True, decades=True)
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
