"""Likelihood from the class alone: against probabilities written out, and of models that know them."""

import numpy as np
import pytest
import torch
from scipy import sparse

from core.evaluation.fidelity.class_baselines import class_marginal_nll, condition_likelihood
from core.evaluation.method_comparison import KnownCells
from core.evaluation.report.records import ConditionLikelihood, Difference
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
    return KnownCells(sparse.csr_matrix(values), codes), codes[:, 0].astype(np.int64)


def judge(model, **changes):
    options = {"slots": [0], "genes": np.arange(N_GENES)} | changes
    return condition_likelihood(model, *some_cells(), *some_cells(1, 200), **options)


@pytest.mark.parametrize("kind", ["binned", "binary"])
def test_a_model_of_zeros_costs_the_log_of_its_bins(kind):
    model = make_cell_model(kind)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.zero_()
    found = judge(model)
    assert found.n_cells == 90
    assert found.model == pytest.approx(np.log(model.config.n_bins), rel=1e-5)
    difference = found.model - found.class_marginals
    assert found.model_minus_class_marginals.interval[0] < difference
    assert difference < found.model_minus_class_marginals.interval[1]
    few = judge(model, genes=np.array([1, 3]))
    assert few.class_marginals != found.class_marginals


def test_only_the_phenotypes_of_the_class_are_shown():
    model = make_cell_model()
    real, classes = some_cells()
    options = {"slots": [0], "genes": np.arange(N_GENES)}

    def of_codes(codes):
        cells = KnownCells(real.expression, codes)
        return condition_likelihood(model, cells, classes, *some_cells(1, 200), **options)

    others, flipped = real.codes.copy(), real.codes.copy()
    others[:, 1] = (others[:, 1] + 1) % 3
    flipped[:, 0] = 1 - flipped[:, 0]
    one = of_codes(real.codes)
    assert of_codes(others) == one
    assert of_codes(flipped).model != one.model


@pytest.mark.parametrize(
    "model", [make_cell_model("continuous"), make_cell_model(layout="expressed")]
)
def test_models_that_predict_something_else_are_left_out(model):
    assert judge(model) is None


def test_classes_without_training_cells_are_left_out():
    real, classes = some_cells()
    training, _ = some_cells(1, 200)
    options = {"slots": [0], "genes": np.arange(N_GENES)}
    model = make_cell_model()
    zeros, nothing = np.zeros(200, np.int64), np.full(200, -1)
    found = condition_likelihood(model, real, classes, training, zeros, **options)
    assert found.n_cells == (classes == 0).sum()
    assert condition_likelihood(model, real, classes, training, nothing, **options) is None


def test_the_sentence_names_the_better_one_only_if_they_are_apart():
    for marginals, bounds, end in (
        (1.2, (-0.2, -0.1), "the model is better."),
        (0.9, (0.1, 0.2), "the class marginals are better."),
        (0.9, (-0.1, 0.1), "neither is better."),
        (1.0001, (-0.0002, -0.0001), "neither is better."),  # 1.000 against 1.000 is a tie
    ):
        sentence = ConditionLikelihood(10, 1.0, marginals, Difference(0.0, bounds)).sentence()
        assert "is 1.000 nats per gene by the model" in sentence
        assert sentence.endswith(end)
