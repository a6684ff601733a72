"""The held-out report: what is scored and compared, its notes, and its conditions."""

import copy

import numpy as np
import pytest
import torch

from core.cells.cell_filter import CellFilter
from core.errors import DataError
from core.evaluation import held_out, method_comparison
from core.evaluation.held_out import evaluate_conditions, evaluate_held_out
from core.evaluation.predict import predict_phenotypes
from core.presets.schema import LossSettings
from core.random_streams import Stream, generator
from tests.tiny_atlas import build_model, tiny_preset


@pytest.fixture(scope="module")
def model(tiny_store):
    preset = tiny_preset(model__layers=0, model__log_linear=True).preset
    return build_model(preset, tiny_store, name="tiny")


def with_codes(store, change, *, no_cells_in=()):
    """Return the store with other labels, or without the cells of a split."""
    codes = np.array(store.phenotype_codes)
    change(codes)
    changed = copy.copy(store)
    changed.phenotype_codes = codes
    changed.rows = lambda split: store.rows(split)[: 0 if split in no_cells_in else None]
    return changed


def score(model, store, split="test", **others):
    return evaluate_held_out(model, store, split, loss=LossSettings(), **others)[0]


def test_every_cell_of_the_split_is_scored_beside_baselines(model, tiny_store):
    report = score(model, tiny_store)
    n_cells = len(tiny_store.rows("test"))
    assert report.title == "tiny on test cells"
    assert report.facts.n_cells == n_cells
    assert report.facts.n_cells_of_baselines == len(tiny_store.rows("train"))
    assert report.facts.simulated
    for methods in report.phenotypes.values():
        assert {scores.n_cells for scores in methods.values()} == {n_cells}
    train, test = (np.asarray(tiny_store.phenotype_codes[tiny_store.rows(s)])[:, 0]
                   for s in ("train", "test"))  # fmt: skip
    common = np.bincount(train[train >= 0]).argmax()
    majority = report.phenotypes["sex"]["majority"].accuracy
    assert majority == pytest.approx((test == common).mean())


def test_a_sample_of_cells_is_the_same_every_time(model, tiny_store, monkeypatch):
    monkeypatch.setattr(method_comparison, "MAX_BASELINE_CELLS", 100)
    one, two = (score(model, tiny_store, max_cells=30, seed=1) for _ in range(2))
    assert one == two
    assert one.facts.n_cells == 30
    assert one.facts.n_cells_of_baselines == 100


def test_a_filter_chooses_the_cells_that_are_scored(model, tiny_store):
    where = CellFilter.parse("sex=female,tissue!=lung", where="--where")
    report = score(model, tiny_store, where=where)
    rows = tiny_store.select(where, split="test")
    assert 0 < len(rows) < len(tiny_store.rows("test"))
    assert report.facts.n_cells == len(rows)
    assert report.facts.where == "sex=female,tissue!=lung"
    assert report.title == "tiny on test cells where sex=female,tissue!=lung"
    confusion = np.array(report.phenotypes["sex"]["model"].confusion)
    assert confusion[0].sum() == len(rows)
    assert not confusion[1].any()
    assert report.facts.n_cells_of_baselines == len(tiny_store.rows("train"))
    assert score(model, tiny_store, where=CellFilter()).facts.where is None


def test_the_baselines_learn_from_the_cells_the_model_was_trained_on(model, tiny_store):
    trained = CellFilter.parse("sex=male", where="data.where")
    report = score(model, tiny_store, trained_where=trained)
    n_cells = len(tiny_store.select("sex=male", split="train"))
    assert report.facts.n_cells_of_baselines == n_cells
    assert report.facts.trained_where == "sex=male"
    assert report.facts.n_cells == len(tiny_store.rows("test"))


def test_a_filter_that_no_cell_of_the_split_matches_is_refused(model, tiny_store):
    where = CellFilter.parse("sex=female,sex=male", where="--where")
    n_cells = len(tiny_store.rows("test"))
    with pytest.raises(
        DataError,
        match=rf"no test cell matches --where sex=female,sex=male \(of {n_cells}, \d+ match "
        r"sex=female and \d+ match sex=male\); choose other cells",
    ):
        score(model, tiny_store, where=where)


def test_a_phenotype_without_labels_in_the_split_is_named_and_not_scored(model, tiny_store):
    def forget_age(codes):
        codes[tiny_store.rows("test"), 3] = -1

    report = score(model, with_codes(tiny_store, forget_age))
    assert list(report.phenotypes) == ["sex", "tissue", "cell_type", "disease"]
    assert "age: no test cell has a label; not scored" in report.notes


def test_missing_labels_are_not_scored(model, tiny_store):
    def forget_some(codes):
        codes[tiny_store.rows("test")[:20], 0] = -1

    report = score(model, with_codes(tiny_store, forget_some))
    n_known = len(tiny_store.rows("test")) - 20
    assert report.phenotypes["sex"]["model"].n_cells == n_known


def test_two_genes_predict_sex_and_the_report_notes_it(model, tiny_store):
    report = score(model, tiny_store)
    assert list(report.two_genes) == ["sex"]
    two = report.two_genes["sex"]
    notes = [note for note in report.notes if note.startswith(f"sex: {' and '.join(two.genes)}")]
    is_near = two.accuracy >= report.phenotypes["sex"]["model"].accuracy - 0.01
    assert bool(notes) == (is_near and two.balanced_accuracy >= 0.75)


def test_values_that_follow_donors_are_noted(model, tiny_store):
    donors = np.asarray(tiny_store.donors)[tiny_store.rows("test")]
    n_donors = len(np.unique(donors))
    notes = score(model, tiny_store).notes
    assert f"sex, age, disease: every donor has one value, so the sample is {n_donors} donors, not " \
        f"{len(donors)} cells" in notes  # fmt: skip
    store = with_codes(tiny_store, lambda codes: None)
    store.donors = store.donor_names = None
    report = score(model, store)
    assert any(note.startswith("donors are not known") for note in report.notes)
    assert report.phenotypes["sex"]["model"].intervals.resampled == "cells"


def test_a_phenotype_without_training_labels_has_no_baselines(model, tiny_store):
    def forget_training(codes):
        codes[tiny_store.rows("train"), 1] = -1

    report = score(model, with_codes(tiny_store, forget_training))
    assert list(report.phenotypes["tissue"]) == ["model"]
    assert any("are absent from training, so" in note for note in report.notes)


def test_a_model_that_knows_nothing_gets_notes(tiny_store):
    preset = tiny_preset(model__layers=0, model__log_linear=True).preset
    ignorant = build_model(preset, tiny_store, name="ignorant")
    ignorant.network.log_linear.score_weight.zero_()
    torch.nn.init.zeros_(ignorant.network.log_linear.phenotype_correction[-1].weight)
    notes = score(ignorant, tiny_store).notes
    assert any(note.startswith("cell_type: the model scores lower than logistic") for note in notes)
    assert "cell_type: the model is no better than always predicting the most common value" in notes


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_split_without_cells_is_refused_with_what_to_set(model, tiny_store, split):
    store = with_codes(tiny_store, lambda codes: None, no_cells_in=(split,))
    with pytest.raises(
        DataError, match=rf"the {split} split has no cells; set data\.split\.{split}"
    ):
        score(model, store, split)


# ------------------------------------------------------------------------------------- conditions
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_a_phenotype_is_predicted_with_the_others_visible_and_itself_masked(
    tiny_store, rows, models, layout, monkeypatch
):
    model = models(layout=layout)
    predicted = predict_phenotypes(model, tiny_store, rows, given_others=True)
    assert list(predicted) == list(tiny_store.phenotypes)
    other = np.array(tiny_store.phenotype_codes)
    other[:, 1] = (other[:, 1] + 1) % len(tiny_store.phenotypes["tissue"])
    monkeypatch.setattr(tiny_store, "phenotype_codes", other)
    changed = predict_phenotypes(model, tiny_store, rows, given_others=True)
    np.testing.assert_array_equal(changed["tissue"], predicted["tissue"])
    for name in ("sex", "cell_type", "age", "disease"):
        assert np.abs(changed[name] - predicted[name]).max() > 1e-6, name


@pytest.mark.usefixtures("one_thread")
def test_unknown_labels_are_shown_as_not_specified(
    tiny_store, rows, models, monkeypatch, small_batches
):
    """Nothing known of a cell: the predictions differ from those with masked phenotypes."""
    model = models()
    blind = np.full_like(np.asarray(tiny_store.phenotype_codes), -1)
    monkeypatch.setattr(tiny_store, "phenotype_codes", blind)
    small_batches(7)
    predicted = predict_phenotypes(model, tiny_store, rows, given_others=True)
    hidden = predict_phenotypes(model, tiny_store, rows)
    for name, values in tiny_store.phenotypes.items():
        assert predicted[name].shape == (len(rows), len(values))
        assert np.abs(predicted[name] - hidden[name]).max() > 1e-6


@pytest.mark.usefixtures("one_thread")
def test_all_conditions_are_scored_on_one_sample(tiny_store, rows, models, monkeypatch):
    monkeypatch.setattr(held_out, "MAX_CONDITION_CELLS", 30)
    model = models()
    hidden = predict_phenotypes(model, tiny_store, rows)
    one, two = (evaluate_conditions(model, tiny_store, rows, hidden, seed=2) for _ in range(2))
    assert one == two
    found, genes, gene_rows = one
    assert found.n_cells == genes.n_cells == 30
    names = ["hidden", "given", "masked_0.15", "masked_0.5", "masked_0.9"]
    for of_phenotype in found.phenotypes.values():
        assert list(of_phenotype) == names
        assert {scores.n_cells for scores in of_phenotype.values()} == {30}
        assert of_phenotype["hidden"].confusion is None
    rng = generator(2, Stream.CONDITION_CELLS)
    chosen = np.sort(rng.choice(len(rows), 30, replace=False))
    truth = np.asarray(tiny_store.phenotype_codes[rows[chosen], 0])
    accuracy = (hidden["sex"][chosen].argmax(axis=1) == truth).mean()
    assert found.phenotypes["sex"]["hidden"].accuracy == pytest.approx(accuracy)
    assert [one.mask_rate for one in genes.rates] == [0.15, 0.5, 0.9]
    assert {row.mask_rate for row in gene_rows} == {0.15, 0.5, 0.9}


@pytest.mark.usefixtures("one_thread")
def test_phenotypes_without_labels_are_left_out(tiny_store, rows, models, monkeypatch):
    model = models()
    codes = np.array(tiny_store.phenotype_codes)
    codes[:, 3] = -1
    monkeypatch.setattr(tiny_store, "phenotype_codes", codes)
    hidden = predict_phenotypes(model, tiny_store, rows)
    found, *_ = evaluate_conditions(model, tiny_store, rows, hidden)
    assert list(found.phenotypes) == ["sex", "tissue", "cell_type", "disease"]
