"""Requests: labels to codes, and the phenotypes that each generated cell gets."""

from dataclasses import replace

import numpy as np
import pytest

from core.errors import ConfigurationError
from core.generation.request import (
    MAX_CELLS,
    GenerationRequest,
    PhenotypeDraw,
    changed_settings,
    lacking_cells,
    resolve_phenotypes,
)
from core.presets.schema import GenerateSettings
from tests.model.examples import make_cell_model, make_config

from .examples import COMBINATIONS, COUNTS, with_reference

PHENOTYPES = {
    "sex": ["female", "male"],
    "cell_type": ["CD4-positive, alpha-beta T cell", "B cell", "b Cell line", "NK cell"],
}


@pytest.fixture
def model():
    return with_reference(make_cell_model())


def draw_codes(model, request):
    """Codes of all cells of a request, and what is said about it."""
    draw = PhenotypeDraw(model, request)
    return draw.codes(range(request.n_cells)), draw.notes


def ask(phenotypes, n_cells=10, **others):
    return GenerationRequest(phenotypes=phenotypes, n_cells=n_cells, **others)


@pytest.mark.parametrize(
    "spelling", ["NK cell", "nk cell", "NK_cell", "[NK_cell]", " [nk_CELL] ", "NK  cell"]
)
def test_a_label_is_matched_in_any_spelling(spelling):
    config = make_config(phenotypes=PHENOTYPES)
    assert resolve_phenotypes(config, {"cell_type": spelling, "sex": "Female"}) == {0: 0, 1: 3}


def test_the_same_text_wins_over_the_same_letters():
    config = make_config(phenotypes={"cell_type": ["B cell", "b cell"]})
    assert resolve_phenotypes(config, {"cell_type": "b cell"}) == {0: 1}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"tisue": "lung"}, r"no phenotype 'tisue'; did you mean 'tissue' or 'sex'\?"),
        ({"treatment": "x"}, r"no phenotype 'treatment'; it has sex, tissue"),
        ({"tissue": "lungs"}, r"knows no tissue 'lungs'; did you mean 'lung'\?"),
        ({"tissue": "brain"}, r"knows no tissue 'brain'; it has lung, blood, liver"),
        ({"tissue": "[NO_SEX]"}, r"knows no tissue '\[NO_SEX\]'"),
    ],
)
def test_what_the_model_does_not_know_is_refused_with_the_nearest(wanted, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve_phenotypes(make_config(), wanted)


@pytest.mark.parametrize("n_cells", [0, -5])
def test_no_cells_are_refused(n_cells):
    with pytest.raises(ConfigurationError, match=rf"cannot generate {n_cells} cells; request 1 or"):
        ask({}, n_cells)


def test_absurdly_many_cells_are_refused_with_the_disk_they_would_fill():
    with pytest.raises(ConfigurationError, match=r"about 4 TB of disk; request at most 1,000,0"):
        ask({}, 4 * MAX_CELLS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"temperature": 0.0}, "temperature must be greater than 0"),
        ({"guidance": float("inf")}, "guidance must be a finite number"),
        ({"steps": "3"}, "steps must be a whole number"),
        ({"decode": "raw"}, "decode must be 'sample', 'mean', 'bins' or 'counts'"),
    ],
)
def test_settings_are_held_to_the_bounds_of_the_preset_schema(change, words):
    with pytest.raises(ConfigurationError, match=words):
        changed_settings(GenerateSettings(), change)
    assert changed_settings(GenerateSettings(), {"temperature": 0.005}).temperature == 0.005


def test_everything_asked_for_is_what_every_cell_gets(model):
    codes, notes = draw_codes(model, ask({"sex": "female", "tissue": "blood"}))
    assert (codes == [0, 1]).all()
    assert codes.shape == (10, 2)
    assert notes == []


def test_open_phenotypes_are_drawn_as_often_as_training_cells_had_them(model):
    codes, notes = draw_codes(model, ask({}, 20_000))
    for combination, count in zip(COMBINATIONS, COUNTS, strict=True):
        found = (codes == combination).all(axis=1).mean()
        assert found == pytest.approx(count / COUNTS.sum(), abs=0.015)
    assert notes == []


def test_open_phenotypes_come_from_training_cells_that_match_the_request(model):
    codes, _ = draw_codes(model, ask({"sex": "female"}, 8000))
    assert (codes[:, 0] == 0).all()
    assert (codes[:, 1] == 0).mean() == pytest.approx(0.75, abs=0.02)  # 600 of 800; never liver
    assert set(codes[:, 1]) == {0, 1}


def test_a_missing_label_of_a_training_cell_is_written_as_missing(model):
    codes, _ = draw_codes(model, ask({"tissue": "lung"}, 4000))
    assert set(codes[:, 0]) == {0, -1}


def test_one_phenotype_can_be_left_not_specified_while_the_others_are_drawn(model):
    codes, notes = draw_codes(model, ask({"tissue": "[NO_TISSUE]"}, n_cells=200))
    assert (codes[:, 1] == -1).all()
    assert set(codes[:, 0]) == {-1, 0, 1}
    assert notes == []
    draw = PhenotypeDraw(model, ask({"sex": "female", "tissue": "[NO_TISSUE]"}))
    assert (draw.wanted, draw.n_training) == ({0: 0}, 800)


def test_none_leaves_open_phenotypes_unspecified(model):
    codes, notes = draw_codes(model, ask({"tissue": "lung"}, unspecified="none"))
    assert (codes == [-1, 0]).all()
    assert notes == []
    assert (draw_codes(model, ask({}, unspecified="none"))[0] == -1).all()


def test_a_combination_absent_from_training_is_composed_with_a_note(model):
    codes, notes = draw_codes(model, ask({"sex": "male", "tissue": "lung"}))
    assert (codes == [1, 0]).all()
    assert notes == [
        "no training cell has sex = male, tissue = lung: the model composes what it learnt of each "
        "value",
        "tissue = lung and sex = male never met in training: lung came with sex female",
    ]


def test_of_three_values_those_two_that_never_met_are_named():
    phenotypes = {
        "tissue": ["lung", "liver", "blood", "skin", "gut"],
        "cell_type": ["hepatocyte", "T cell"],
        "sex": ["female", "male"],
    }
    model = make_cell_model(phenotypes=phenotypes)
    old = model.reference
    model.reference = type(old)(
        np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [2, 1, 0], [3, 1, 0], [4, 1, 0]], np.int32),
        np.array([40, 10, 10, 30, 20, 5]), old.means, old.detection, old.bin_counts,
    )  # fmt: skip
    wanted = {"sex": "female", "tissue": "lung", "cell_type": "hepatocyte"}
    notes = draw_codes(model, ask(wanted))[1]
    assert notes[1:] == [
        "tissue = lung and cell_type = hepatocyte never met in training: lung came with cell_type "
        "T cell"
    ]
    wanted = {"tissue": "liver", "cell_type": "T cell"}
    assert draw_codes(model, ask(wanted))[1][1].endswith("liver came with cell_type hepatocyte")


def test_a_rare_combination_is_noted_with_its_number_of_cells(model):
    _, notes = draw_codes(model, ask({"tissue": "liver"}))
    assert notes == [
        "only 4 training cells have tissue = liver: the model composes what it learnt of each value"
    ]


def test_where_no_training_cell_matches_open_phenotypes_follow_the_commoner_values():
    phenotypes = {"sex": ["female", "male"], "tissue": ["lung", "blood"], "age": ["30-39", "40-49"]}
    model = make_cell_model(phenotypes=phenotypes)
    old = model.reference
    model.reference = type(old)(
        np.array([[0, 0, 0], [1, 1, 1]], dtype=np.int32), np.array([90, 10]),
        old.means, old.detection, old.bin_counts,
    )  # fmt: skip
    codes, notes = draw_codes(model, ask({"sex": "male", "tissue": "lung"}))
    assert (codes == [1, 0, 0]).all()  # male is rarer than lung: the age is that of lung cells
    assert notes[2] == "unspecified phenotypes come from training cells that match all but sex"


def test_the_phenotypes_of_a_cell_depend_on_the_seed_and_its_number_alone(model):
    few, many = (draw_codes(model, ask({}, n, seed=3))[0] for n in (5, 50))
    other, _ = draw_codes(model, ask({}, 50, seed=4))
    np.testing.assert_array_equal(few, many[:5])
    assert (many != other).any()


def test_the_phenotypes_of_a_part_are_those_within_the_whole(model):
    draw = PhenotypeDraw(model, ask({"sex": "female"}, 1000, seed=3))
    whole = draw.codes(range(1000))
    for part in (range(3), range(990, 1000), range(17, 400)):
        np.testing.assert_array_equal(draw.codes(part), whole[part.start : part.stop])


def test_a_change_keeps_what_was_drawn_and_new_combinations_are_noted(model):
    female = ask({"sex": "female"}, 200)
    before, _ = draw_codes(model, female)
    changed = replace(female, changes={"sex": "male"})
    after, notes = draw_codes(model, changed)
    assert (after[:, 0] == 1).all()
    np.testing.assert_array_equal(after[:, 1], before[:, 1])
    draw = PhenotypeDraw(model, changed)
    np.testing.assert_array_equal(draw.codes_before(range(200)), before)
    assert draw.wanted == {0: 1}
    # Of the female cells 600 of 800 are of the lung, and there is no male lung cell.
    assert notes == [
        "the change gives 75% of the cells phenotypes that no training cell has together: the model "
        "composes what it learnt of each value"
    ]


def test_balancing_fills_rare_values_up_to_the_commonest(model):
    """Training has lung 650, blood 350, liver 4."""
    assert lacking_cells(model, {}, "tissue") == {"lung": 0, "blood": 300, "liver": 646}
    codes, notes = draw_codes(model, ask({}, 20_000, balance="tissue"))
    found = np.bincount(codes[:, 1], minlength=3)
    np.testing.assert_allclose(found / 20_000, [0, 300 / 946, 646 / 946], atol=0.015)
    assert set(codes[codes[:, 1] == 2, 0]) == {1}  # all liver cells of training are male
    blood = codes[codes[:, 1] == 1, 0]
    assert (blood == 0).mean() == pytest.approx(200 / 350, abs=0.03)
    assert notes == ["few training cells: liver (4); cells that fill them up are guesswork"]
    none, _ = draw_codes(model, ask({}, 500, balance="tissue", unspecified="none"))
    assert (none[:, 0] == -1).all()
    assert set(none[:, 1]) == {1, 2}


def test_balancing_within_a_request_counts_the_cells_of_the_request(model):
    assert lacking_cells(model, {"sex": "male"}, "tissue") == {"lung": 0, "blood": 0, "liver": 146}
    codes, _ = draw_codes(model, ask({"sex": "male"}, 50, balance="tissue"))
    assert (codes == [1, 2]).all()


@pytest.mark.parametrize(
    ("wanted", "balance", "message"),
    [
        ({}, "tisue", "no phenotype 'tisue' to balance; did you mean 'tissue'"),
        ({"tissue": "lung"}, "tissue", "cannot be both requested and balanced"),
        ({"tissue": "lung", "sex": "female"}, "sex", "cannot be both"),
        ({"tissue": "lung"}, "sex", "nothing to fill up"),
    ],
)
def test_what_cannot_be_balanced_is_refused(model, wanted, balance, message):
    with pytest.raises(ConfigurationError, match=message):
        PhenotypeDraw(model, ask(wanted, balance=balance))


def test_a_model_without_phenotypes_has_nothing_to_draw():
    model = make_cell_model(phenotypes={})
    for unspecified in ("sample", "none"):
        codes, notes = draw_codes(model, ask({}, 4, unspecified=unspecified))
        assert codes.shape == (4, 0)
        assert notes == []
