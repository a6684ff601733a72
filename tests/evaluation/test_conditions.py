"""Other phenotypes given, and the conditions side by side."""

import numpy as np
import pytest

from core.evaluation import conditions
from core.evaluation.conditions import evaluate_conditions
from core.evaluation.predict import predict_given_others, predict_phenotypes
from core.random_streams import Stream, generator

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_a_phenotype_is_asked_with_the_others_in_sight_and_itself_hidden(
    tiny_store, rows, models, layout, monkeypatch
):
    model = models(layout=layout)
    told = predict_given_others(model, tiny_store, rows)
    assert list(told) == list(tiny_store.phenotypes)
    other = np.array(tiny_store.phenotype_codes)
    other[:, 1] = (other[:, 1] + 1) % len(tiny_store.phenotypes["tissue"])
    monkeypatch.setattr(tiny_store, "phenotype_codes", other)
    changed = predict_given_others(model, tiny_store, rows)
    np.testing.assert_array_equal(changed["tissue"], told["tissue"])
    for name in ("sex", "cell_type", "age", "disease"):
        assert np.abs(changed[name] - told[name]).max() > 1e-6, name


def test_unknown_labels_are_shown_as_not_specified(tiny_store, rows, models, monkeypatch):
    """Nothing known of a cell: the answers still come, and are not those of hidden phenotypes."""
    model = models()
    blind = np.full_like(np.asarray(tiny_store.phenotype_codes), -1)
    monkeypatch.setattr(tiny_store, "phenotype_codes", blind)
    told = predict_given_others(model, tiny_store, rows, batch_size=7)
    hidden = predict_phenotypes(model, tiny_store, rows)
    for name, values in tiny_store.phenotypes.items():
        assert told[name].shape == (len(rows), len(values))
        assert np.abs(told[name] - hidden[name]).max() > 1e-6


def test_all_conditions_are_scored_on_one_sample(tiny_store, rows, models, monkeypatch):
    monkeypatch.setattr(conditions, "MAX_CONDITION_CELLS", 30)
    model = models()
    hidden = predict_phenotypes(model, tiny_store, rows)
    one, two = (evaluate_conditions(model, tiny_store, rows, hidden, seed=2) for _ in range(2))
    assert one == two
    assert one.phenotypes["cells"] == one.genes["cells"] == 30
    names = ["hidden", "given", "masked_0.15", "masked_0.5", "masked_0.9"]
    for of_phenotype in one.phenotypes["phenotypes"].values():
        assert list(of_phenotype) == names
        assert {figures["n_cells"] for figures in of_phenotype.values()} == {30}
        assert "confusion" not in of_phenotype["hidden"]
    rng = generator(2, Stream.CONDITION_CELLS)
    chosen = np.sort(rng.choice(len(rows), 30, replace=False))
    truth = np.asarray(tiny_store.phenotype_codes[rows[chosen], 0])
    accuracy = (hidden["sex"][chosen].argmax(axis=1) == truth).mean()
    assert one.phenotypes["phenotypes"]["sex"]["hidden"]["accuracy"] == pytest.approx(accuracy)
    assert [rate["rate"] for rate in one.genes["rates"]] == [0.15, 0.5, 0.9]


def test_phenotypes_without_labels_are_left_out(tiny_store, rows, models, monkeypatch):
    model = models()
    codes = np.array(tiny_store.phenotype_codes)
    codes[:, 3] = -1
    monkeypatch.setattr(tiny_store, "phenotype_codes", codes)
    hidden = predict_phenotypes(model, tiny_store, rows)
    found = evaluate_conditions(model, tiny_store, rows, hidden)
    assert list(found.phenotypes["phenotypes"]) == ["sex", "tissue", "cell_type", "disease"]
