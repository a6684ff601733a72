"""Nulls that are nulls, q-values, stability, and the evidence of other donors."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from core.interactions.statistics import (
    Evidence,
    contrast_p_values,
    held_out_evidence,
    matched_p_values,
    q_values,
    stability,
    standardised_correlations,
    top_pairs,
)
from tests.interactions.examples import make_cells

GENES = np.arange(12)
FREE = ~np.eye(12, dtype=bool)


def draw(seed, *, n_cells=400, link=0.0, n_donors=5):
    """Make cells of donors that differ much, with genes 0 and 1 linked within donors."""
    rng = np.random.default_rng(seed)
    donors = np.arange(n_cells) % n_donors
    z = rng.standard_normal((n_cells, 12))
    z[:, 1] = np.sqrt(1 - link**2) * z[:, 1] + link * z[:, 0]
    z += rng.standard_normal((n_donors, 12))[donors]
    return make_cells(np.maximum(z, 0), donors=donors)


def test_p_is_uniform_without_any_link_though_donors_differ():
    p = np.concatenate(
        [
            Evidence.of(draw(seed), GENES, GENES).p_values(np.ones((12, 12)), is_signed=True)[FREE]
            for seed in range(4)
        ]
    )
    assert 0.03 < (p < 0.05).mean() < 0.08
    assert 0.4 < p.mean() < 0.6


def test_a_link_is_found_in_its_direction_alone():
    evidence = Evidence.of(draw(0, link=0.5), GENES, GENES)
    weight = np.full((12, 12), 0.1)
    assert evidence.p_values(weight, is_signed=True)[0, 1] < 1e-3
    assert evidence.p_values(-weight, is_signed=True)[0, 1] > 0.99
    assert evidence.p_values(-weight, is_signed=False)[1, 0] < 1e-3
    q = q_values(evidence.p_values(weight, is_signed=True))
    assert np.argwhere(q < 0.05).tolist() == [[0, 1], [1, 0]]
    assert np.isnan(np.diag(q)).all()


def test_cells_of_one_donor_and_class_alone_say_nothing():
    """Every cell is its own donor: there is nothing to exchange."""
    cells = draw(0, link=0.9, n_cells=30, n_donors=30)
    p = Evidence.of(cells, GENES, GENES).p_values(np.ones((12, 12)), is_signed=True)
    assert (p[FREE] > 0.4).all()


def test_q_values_are_those_of_benjamini_and_hochberg():
    p = np.random.default_rng(0).random(50) ** 3
    np.testing.assert_allclose(q_values(p), false_discovery_control(p))
    with_gap = np.insert(p, 7, np.nan)
    np.testing.assert_allclose(np.delete(q_values(with_gap), 7), false_discovery_control(p))


def test_a_weight_is_unusual_only_beside_targets_of_its_own_kind():
    rng = np.random.default_rng(0)
    chance = np.linspace(0.05, 0.9, 60)
    cells = make_cells((rng.random((300, 60)) < chance) * 2.0)
    targets = np.arange(60)
    weight = chance * (1 + 0.1 * rng.standard_normal((60, 60)))  # large where expression is high
    weight[3, 10] += 0.8
    p = matched_p_values(weight, cells, targets)
    assert p[3, 10] < 0.01
    assert np.median(p[:, 55:]) > 0.1
    np.fill_diagonal(weight, np.nan)
    assert np.isnan(np.diag(matched_p_values(weight, cells, targets))).all()


def test_stability_is_the_overlap_of_the_strongest_pairs():
    weight = np.arange(16.0).reshape(4, 4)
    weight[0, 0] = np.nan
    assert top_pairs(-weight, 3).tolist() == [15, 14, 13]
    assert stability(np.stack([weight, weight]), 5) == 1
    assert stability(np.stack([weight, weight.T]), 5) == pytest.approx(3 / 7)


def test_other_donors_hold_evidence_for_true_pairs_and_none_for_random_ones():
    other = standardised_correlations(draw(1, link=0.6), GENES, GENES)
    true = np.zeros((12, 12))
    true[0, 1] = true[1, 0] = 1
    assert held_out_evidence(true, other) > 10
    rng = np.random.default_rng(0)
    none = standardised_correlations(draw(2), GENES, GENES)
    chosen = [held_out_evidence(rng.random((12, 12)), none) for _ in range(30)]
    assert abs(np.mean(chosen)) < 0.3


def test_a_difference_between_contexts_is_found_and_equal_contexts_differ_in_nothing():
    linked, other = draw(0, link=0.7, n_donors=8), draw(1, link=-0.7, n_donors=8)
    weight = np.full((12, 12), 0.5)
    p = contrast_p_values(linked, other, weight, GENES, GENES)
    assert p[0, 1] < 0.01
    assert contrast_p_values(linked, other, -weight, GENES, GENES)[0, 1] > 0.9
    same = contrast_p_values(linked, draw(2, link=0.7, n_donors=8), weight, GENES, GENES)
    assert q_values(same)[FREE].min() > 0.05
