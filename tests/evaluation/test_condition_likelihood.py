"""Likelihood from the class alone: against probabilities written out, and of models that know them."""

import numpy as np
import pytest
import torch
from scipy import sparse

from core.evaluation.condition_likelihood import class_marginal_nll, condition_likelihood
from tests.model.examples import N_GENES, make_cell_model


def test_class_marginals_are_those_of_the_class_smoothed_by_all_cells():
    training = np.array([[0, 1], [0, 1], [1, 1], [2, 0]], np.uint8)
    classes = np.array([0, 0, 1, -1])
    nll = class_marginal_nll(
        np.array([[0, 1], [2, 0]], np.uint8), np.array([0, 1]), training, classes, 3
    )
    overall = np.array([[2, 1, 1], [1, 3, 0]]) + 1 / 3
    overall /= 5
    expected = [
        [(2 + overall[0, 0]) / 3, (2 + overall[1, 1]) / 3],
        [(0 + overall[0, 2]) / 2, (0 + overall[1, 0]) / 2],
    ]
    np.testing.assert_allclose(nll, -np.log(expected))
    totals = [
        np.exp(
            -class_marginal_nll(np.array([[b, b]], np.uint8), np.array([0]), training, classes, 3)
        )
        for b in range(3)
    ]
    np.testing.assert_allclose(sum(totals), 1)


def some_cells(seed=0, n=90):
    rng = np.random.default_rng(seed)
    values = rng.choice([0.0, 0.6, 1.5, 2.5], size=(n, N_GENES)).astype(np.float32)
    codes = np.stack([rng.integers(0, 2, n), rng.integers(0, 3, n)], axis=1).astype(np.int32)
    return sparse.csr_matrix(values), codes, codes[:, 0].astype(np.int64)


def judge(model, **changes):
    real, codes, classes = some_cells()
    training, _, training_classes = some_cells(1, 200)
    asked = {"slots": [0], "genes": np.arange(N_GENES)} | changes
    return condition_likelihood(model, real, codes, classes, training, training_classes, **asked)


@pytest.mark.parametrize("kind", ["binned", "binary"])
def test_a_model_without_an_opinion_costs_the_log_of_its_bins(kind):
    model = make_cell_model(kind)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.zero_()
    found = judge(model)
    assert found.n_cells == 90
    assert found.model == pytest.approx(np.log(model.config.n_bins), rel=1e-5)
    difference = found.model - found.class_marginals
    assert found.interval[0] < difference < found.interval[1]
    few = judge(model, genes=np.array([1, 3]))
    assert few.class_marginals != found.class_marginals


def test_only_the_phenotypes_of_the_class_are_shown():
    model = make_cell_model()
    real, codes, classes = some_cells()
    training, _, training_classes = some_cells(1, 200)
    others = codes.copy()
    others[:, 1] = (others[:, 1] + 1) % 3
    ask = {"slots": [0], "genes": np.arange(N_GENES)}
    one, two = (
        condition_likelihood(model, real, c, classes, training, training_classes, **ask)
        for c in (codes, others)
    )
    assert one == two
    flipped = codes.copy()
    flipped[:, 0] = 1 - flipped[:, 0]
    three = condition_likelihood(model, real, flipped, classes, training, training_classes, **ask)
    assert three.model != one.model


@pytest.mark.parametrize(
    "model", [make_cell_model("continuous"), make_cell_model(layout="expressed")]
)
def test_models_with_another_kind_of_answer_are_left_out(model):
    assert judge(model) is None


def test_classes_without_training_cells_are_left_out():
    real, codes, classes = some_cells()
    training, _, training_classes = some_cells(1, 200)
    training_classes[:] = 0
    ask = {"slots": [0], "genes": np.arange(N_GENES)}
    found = condition_likelihood(
        make_cell_model(), real, codes, classes, training, training_classes, **ask
    )
    assert found.n_cells == (classes == 0).sum()
    nothing = np.full(200, -1)
    assert (
        condition_likelihood(make_cell_model(), real, codes, classes, training, nothing, **ask)
        is None
    )


def test_the_sentence_names_the_better_one_only_if_they_are_apart():
    found = judge(make_cell_model())
    assert found.sentence().startswith(
        f"With every gene hidden an unseen cell costs the model {found.model:.3f}"
    )
    for bounds, end in (
        ((-0.2, -0.1), "the model better for sure."),
        ((0.1, 0.2), "class marginals better for sure."),
        ((-0.1, 0.1), "not separated."),
    ):
        one = type(found)(10, 1.0, 1.0, bounds)
        assert one.sentence().endswith(end)
