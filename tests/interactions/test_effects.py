"""Effects in models whose conditionals are written by hand, and against a plain computation of the formula."""

import numpy as np
import pytest
import torch

from core.errors import ConfigurationError
from core.interactions.effects import GeneLevels, check_can_perturb, estimate_effects
from core.model.batch_tensors import BatchTensors
from tests.generation.examples import known_model, set_pairs
from tests.interactions.examples import make_cells
from tests.model.examples import N_GENES, make_cell_model

GENES = np.arange(N_GENES)


def some_cells(n_cells=200, seed=0):
    """Make cells whose values fall into all four bins, without dependence."""
    return make_cells(np.random.default_rng(seed).choice([0.0, 1.0, 2.0, 3.0], (n_cells, N_GENES)))


def test_genes_of_an_independent_model_have_no_effects():
    effects = estimate_effects(known_model(), some_cells(), GENES, GENES, most_passes=10)
    assert np.isnan(np.diag(effects.weight)).all()
    np.testing.assert_allclose(effects.weight[~np.eye(N_GENES, dtype=bool)], 0, atol=1e-6)


def test_an_effect_has_a_direction_and_a_sign():
    """Only gene 0 is read, and only genes 1 and 2 respond to it."""
    model = set_pairs(known_model(), [0] * N_GENES)
    log_linear = model.network.log_linear
    with torch.no_grad():
        log_linear.couplings.weight.view(N_GENES, 4, -1)[0, 1:, 0] = 1.0
        effects = log_linear.effects.weight.view(N_GENES, 4, -1)
        effects[1, 1:, 0], effects[2, 1:, 0] = 2.0, -2.0
    weight = estimate_effects(model, some_cells(), GENES, GENES).weight
    assert weight[0, 1] > 0.01
    assert weight[0, 2] < -0.01
    weight[0, 1:3] = 0
    np.testing.assert_allclose(np.nan_to_num(weight), 0, atol=1e-6)


@pytest.mark.parametrize("kind", ["binned", "binary"])
@pytest.mark.parametrize("changes", [{}, {"log_linear": True}, {"library_size": True}])
def test_an_effect_is_the_formula_of_the_module(kind, changes):
    """One source and target, everything else masked: every pass of a cell is the same."""
    model = make_cell_model(kind, phenotypes={}, **changes)
    model.network.eval()
    rng = np.random.default_rng(3)
    values = rng.choice([0.0, 1.0, 2.0, 3.0], (60, N_GENES)).astype(np.float32)
    cells = make_cells(
        values, codes=np.zeros((60, 0)), library_size=np.full(60, 30_000, np.float32)
    )
    found = estimate_effects(model, cells, GENES[2:3], GENES, masked=1.0, most_passes=2).weight

    bins = model.values.encode(values)
    n_bins = model.config.n_bins
    fraction = np.stack([(bins == one).mean(axis=0) for one in range(n_bins)], axis=1)
    score = np.cumsum(fraction, axis=1) - 0.5 * fraction
    score -= (fraction * score).sum(axis=1, keepdims=True)
    score /= np.sqrt((fraction * score**2).sum(axis=1, keepdims=True))
    levels = [[0], [1]]
    if n_bins > 2:  # the halves of the expressed values
        middle = np.cumsum(fraction[2, 1:]) - 0.5 * fraction[2, 1:]
        is_upper = middle >= 0.5 * fraction[2, 1:].sum()
        levels = [[0], list(1 + np.flatnonzero(~is_upper)), list(1 + np.flatnonzero(is_upper))]
    expected = np.zeros(N_GENES)
    for group in levels:
        of_group = fraction[2, group]
        middle = group[int(np.searchsorted(np.cumsum(of_group), 0.5 * of_group.sum()))]
        mask = np.ones((1, N_GENES), bool)
        mask[0, 2] = False
        shown = np.zeros((1, N_GENES), np.float32)
        shown[0, 2] = [0.0, 1.0, 2.0, 3.0][middle]
        batch = model.batches.ranked(
            shown, np.zeros((1, 0), np.int32), np.zeros((1, 0), np.int8), mask,
            np.full(1, 30_000, np.float32),
        )  # fmt: skip
        with torch.no_grad():
            logits = model.network(BatchTensors.from_arrays(batch)).gene_logits.double().numpy()
        if n_bins == 2:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        weight = (of_group * score[2, group]).sum()
        others = np.delete(GENES, 2)
        probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        expected[others] += weight * (probability * score[others]).sum(axis=1)
    np.testing.assert_allclose(np.delete(found[0], 2), np.delete(expected, 2), atol=1e-5)


def test_the_parts_of_a_model_add_up_and_passes_end_at_the_error():
    both = make_cell_model(log_linear=True, randomise=False)
    set_pairs(both, [1, 1, -1, 0, 0, 0, 0])
    with torch.no_grad():  # the encoder adds nothing
        for parameter in both.network.encoder_part.parameters():
            parameter.zero_()
    cells = some_cells()
    effects = estimate_effects(both, cells, GENES, GENES, error=0.3, seed=1)
    np.testing.assert_allclose(effects.weight, effects.log_linear, atol=1e-6)
    assert effects.relative_error <= 0.3
    finer = estimate_effects(both, cells, GENES, GENES, error=0.03, seed=1)
    assert finer.n_passes > effects.n_passes
    assert finer.relative_error <= 0.03
    # The error is honest: another seed differs by about as much as it says.
    other = estimate_effects(both, cells, GENES, GENES, error=0.3, seed=2)
    off = np.sqrt(np.nanmean((other.weight - finer.weight) ** 2) / np.nanmean(finer.weight**2))
    assert off < 2 * 0.3
    np.testing.assert_allclose(effects.of_halves.mean(axis=0), effects.weight, rtol=0.5, atol=0.2)


def test_levels_are_not_expressed_and_halves_of_the_expressed_values():
    bins = np.array([[0] * 5 + [1, 1, 2, 3, 3], [0] * 8 + [2, 2], [1] * 10]).T.astype(np.uint8)
    levels = GeneLevels.of(bins, 4)
    assert levels.bin[0].tolist() == [0, 1, 3]
    assert levels.bin[1, :2].tolist() == [0, 2]
    np.testing.assert_allclose(levels.weight.sum(axis=1), 0, atol=1e-12)
    assert (levels.weight[2] == 0).all()  # never varies
    np.testing.assert_allclose((levels.fraction * levels.score**2).sum(axis=1), [1, 1, 0])


@pytest.mark.parametrize("layout_and_kind", [("expressed", "binned"), ("ranked", "continuous")])
def test_a_model_that_cannot_be_perturbed_is_refused(layout_and_kind):
    layout, kind = layout_and_kind
    with pytest.raises(ConfigurationError, match=r"sees every gene of a cell, in bins"):
        check_can_perturb(make_cell_model(kind, layout))
