"""The control tokens of a model folder, read without its weights."""

import json

import numpy as np
import pytest

from core.errors import DataError
from core.model.reference import ControlTokens
from tests.generation.examples import COMBINATIONS, COUNTS, with_reference
from tests.model.examples import make_cell_model


@pytest.fixture
def folder(tmp_path):
    with_reference(make_cell_model()).save(tmp_path / "model")
    return tmp_path / "model"


def test_they_are_those_that_the_model_was_saved_with(folder):
    model, tokens = with_reference(make_cell_model()), ControlTokens.read(folder)
    assert {name: list(values) for name, values in tokens.phenotypes.items()} == (
        model.config.phenotypes
    )
    assert tokens.generate["steps"] == model.generate.steps
    assert tokens.is_simulated == bool(model.provenance.get("simulated"))
    assert tokens.n_cells == COUNTS.sum()


def test_counts_are_those_of_the_combinations(folder):
    tokens = ControlTokens.read(folder)
    sexes, tissues = tokens.phenotypes["sex"], tokens.phenotypes["tissue"]
    for sex_code, sex in enumerate(sexes):
        for tissue_code, tissue in enumerate(tissues):
            expected = COUNTS[((sex_code, tissue_code) == COMBINATIONS).all(axis=1)].sum()
            assert tokens.count({"sex": sex, "tissue": tissue}) == expected
            assert tokens.counts_of("tissue", {"sex": sex})[tissue] == expected
    everything = {
        tissue: COUNTS[COMBINATIONS[:, 1] == code].sum() for code, tissue in enumerate(tissues)
    }
    assert tokens.counts_of("tissue") == everything


def remove(folder):
    (folder / "config.json").unlink()


def break_json(folder):
    (folder / "tfx.json").write_text("{")


def break_arrays(folder):
    (folder / "reference.safetensors").write_bytes(b"nothing")


def other_phenotypes(folder):
    record = json.loads((folder / "config.json").read_text())
    record["phenotype_names"], record["phenotype_values"] = ["sex"], [["female"]]
    (folder / "config.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "no model to generate with .config.json is missing."),
        (break_json, "cannot be read"),
        (break_arrays, "cannot be read"),
        (other_phenotypes, "do not fit each other"),
    ],
)
def test_a_damaged_folder_is_an_error_in_one_sentence(damage, message, folder):
    damage(folder)
    with pytest.raises(DataError, match=message):
        ControlTokens.read(folder)


def test_counts_take_no_profile(folder):
    assert ControlTokens.read(folder).reference.means.size == 0
    assert ControlTokens.read(folder).reference.counts.dtype == np.int64
