"""Rates of masking, counted over many tokens, and what is never masked."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.encoding.masking import Show, draw_masked_counts, draw_phenotype_states, draw_subsets


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.5, 1.0])
def test_a_fixed_rate_masks_that_fraction_of_genes(rate):
    rng = np.random.default_rng(0)
    counts = np.concatenate([draw_masked_counts(np.full(8, 101), rate, rng) for _ in range(1000)])
    assert counts.mean() / 101 == pytest.approx(rate, abs=2e-3)
    assert np.ptp(counts) <= 1


def test_a_fixed_rate_keeps_equal_cells_equal():
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert len(set(draw_masked_counts(np.full(16, 37), 0.15, rng).tolist())) == 1


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_a_uniform_rate_is_stratified_over_the_batch(seed, n_cells):
    """Shares in (0, 1]; one cell in each of the n equal parts of the interval."""
    n_genes = 100_000
    counts = draw_masked_counts(np.full(n_cells, n_genes), "uniform", np.random.default_rng(seed))
    assert counts.min() >= 1
    assert counts.max() <= n_genes
    parts = np.ceil(counts / n_genes * n_cells - 1e-9)
    assert sorted(parts.tolist()) == list(range(1, n_cells + 1))


def test_a_uniform_rate_does_not_follow_the_place_in_the_batch():
    rng = np.random.default_rng(0)
    counts = np.stack([draw_masked_counts(np.full(4, 1000), "uniform", rng) for _ in range(2000)])
    np.testing.assert_allclose(counts.mean(axis=0) / 1000, 0.5, atol=0.03)


@pytest.mark.parametrize("rate", [0.3, 1.0, "uniform"])
def test_no_cell_masks_more_genes_than_it_has(rate):
    available = np.array([0, 1, 2, 50])
    for seed in range(50):
        counts = draw_masked_counts(available, rate, np.random.default_rng(seed))
        assert (counts <= available).all()
        assert counts[0] == 0


def test_every_gene_is_masked_equally_often_and_in_the_requested_number():
    rng = np.random.default_rng(0)
    n_masked = rng.integers(0, 21, 10_000)
    mask = draw_subsets(np.full(10_000, 20), n_masked, rng).reshape(10_000, 20)
    np.testing.assert_array_equal(mask.sum(axis=1), n_masked)
    np.testing.assert_allclose(mask.mean(axis=0), mask.mean(), atol=0.015)


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 400))
def test_subsets_of_any_sizes_have_exactly_their_size(seed, n_sets, most):
    rng = np.random.default_rng(seed)
    available = rng.integers(0, most, n_sets)
    n_chosen = rng.integers(0, available + 1)
    chosen = draw_subsets(available, n_chosen, rng)
    assert len(chosen) == available.sum()
    parts = np.split(chosen, np.cumsum(available)[:-1])
    assert [int(part.sum()) for part in parts] == n_chosen.tolist()


@pytest.mark.parametrize("n_chosen", [1, 2, 3, 4])
def test_every_subset_is_as_likely_as_any_other(n_chosen):
    """All 5 over k subsets, not only single places; chi-squared below its 99.99 % quantile."""
    rng = np.random.default_rng(n_chosen)
    chosen = draw_subsets(np.full(20_000, 5), np.full(20_000, n_chosen), rng).reshape(-1, 5)
    _, counts = np.unique(chosen @ (1 << np.arange(5)), return_counts=True)
    expected = 20_000 / math.comb(5, n_chosen)
    assert len(counts) == math.comb(5, n_chosen)
    assert ((counts - expected) ** 2 / expected).sum() < 34


def test_places_of_large_sets_are_chosen_independently_of_their_neighbours():
    rng = np.random.default_rng(0)
    chosen = draw_subsets(np.full(400, 3000), np.full(400, 1000), rng).reshape(400, 3000)
    np.testing.assert_allclose(chosen.mean(axis=0), 1 / 3, atol=0.12)
    together = (chosen[:, :-1] & chosen[:, 1:]).mean()
    assert together == pytest.approx(1000 / 3000 * 999 / 2999, abs=0.001)


def test_phenotype_states_have_their_proportions():
    codes = np.zeros((40_000, 3), dtype=np.int32)
    states = draw_phenotype_states(
        codes, mask=0.5, drop=0.2, unspecified=0.1, rng=np.random.default_rng(0)
    )
    fraction = [np.mean(states == show) for show in Show]
    expected = {
        Show.VALUE: 0.5 * 0.9,
        Show.MASKED: 0.5 * 0.8,
        Show.NOT_SPECIFIED: 0.5 * 0.1,
        Show.DROPPED: 0.5 * 0.2,
    }
    np.testing.assert_allclose(fraction, [expected[show] for show in Show], atol=0.005)


def test_phenotypes_are_masked_independently_of_each_other():
    codes = np.zeros((40_000, 2), dtype=np.int32)
    states = draw_phenotype_states(
        codes, mask=0.5, drop=0.0, unspecified=0.0, rng=np.random.default_rng(0)
    )
    assert np.mean((states == Show.MASKED).all(axis=1)) == pytest.approx(0.25, abs=0.01)


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_missing_label_is_always_shown_as_not_specified(seed, mask, drop, unspecified):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (20, 3))
    states = draw_phenotype_states(codes, mask=mask, drop=drop, unspecified=unspecified, rng=rng)
    assert (states[codes < 0] == Show.NOT_SPECIFIED).all()


@pytest.mark.parametrize(
    ("rates", "only"),
    [
        ({"mask": 1.0, "drop": 0.0, "unspecified": 1.0}, Show.MASKED),
        ({"mask": 1.0, "drop": 1.0, "unspecified": 0.0}, Show.DROPPED),
        ({"mask": 0.0, "drop": 1.0, "unspecified": 0.0}, Show.VALUE),
        ({"mask": 0.0, "drop": 0.0, "unspecified": 1.0}, Show.NOT_SPECIFIED),
    ],
)
def test_certain_rates_leave_nothing_to_chance(rates, only):
    codes = np.zeros((50, 2), dtype=np.int32)
    states = draw_phenotype_states(codes, rng=np.random.default_rng(0), **rates)
    assert (states == only).all()
