"""Temperatures and thresholds: known answers, plain definitions, and what must not be trusted."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigurationError
from core.evaluation.calibration import fit_calibration, fit_temperature, score_confidence
from core.evaluation.metrics import calibrate
from core.model.calibration import LEAST_CELLS, PhenotypeCalibration, temper, unsure_rules


def cells_of(n_cells, n_values=3, *, scale=2.0, seed=0):
    """Return true codes, and the probabilities they were drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=(n_cells, n_values))
    probability = temper(np.exp(logits), 1.0)
    truth = (probability.cumsum(axis=1) < rng.random((n_cells, 1))).sum(axis=1)
    return truth, probability


def fit(truth, probability, donors=None):
    return fit_calibration({"sex": truth}, {"sex": probability}, donors, seed=0)["sex"]


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_spoilt_the_probabilities_is_found(true_temperature):
    truth, probability = cells_of(4000)
    spoilt = temper(probability, 1 / true_temperature)
    assert fit_temperature(truth, spoilt) == pytest.approx(true_temperature, rel=0.06)
    known = fit(truth, spoilt.astype(np.float32))
    mended = temper(spoilt, known.temperature)
    assert calibrate(mended, truth).ece < 0.02
    assert (mended.argmax(axis=1) == probability.argmax(axis=1)).all()


@given(st.floats(0.1, 10), st.integers(0, 1000))
def test_a_temperature_and_its_inverse_change_nothing(temperature, seed):
    _, probability = cells_of(7, seed=seed)
    there_and_back = temper(temper(probability, temperature), 1 / temperature)
    np.testing.assert_allclose(there_and_back, probability, atol=1e-9)


def test_cells_that_are_all_right_do_not_make_the_model_certain():
    truth = np.arange(200) % 2
    probability = np.where(truth[:, None] == [0, 1], 0.8, 0.2)
    tempered = temper(probability, fit_temperature(truth, probability))
    assert tempered.max() == pytest.approx(1 - 1 / 202, abs=1e-3)


@given(st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]), st.integers(0, 50))
def test_cells_at_the_threshold_and_above_are_right_as_often_as_requested(at, seed):
    truth, probability = cells_of(300, seed=seed)
    known = fit(truth, probability)
    below = known.threshold(at)
    tempered = temper(probability, known.temperature)
    confidence, is_right = tempered.max(axis=1), tempered.argmax(axis=1) == truth
    if math.isinf(below):
        assert at > is_right.mean()
    else:
        assert is_right[confidence >= below].mean() >= at - 1e-6
        lower = [one for one in known.probabilities if one < below]
        assert all(is_right[confidence >= one].mean() < at for one in lower)
    assert known.threshold(0.0) == 0.0


def test_a_phenotype_that_no_gene_shows_is_always_unsure_and_the_reason_says_so():
    rng = np.random.default_rng(0)
    donors = np.repeat(np.arange(6), 50)
    truth = (donors % 2).astype(np.int64)
    noise = rng.uniform(0.2, 0.8, len(truth))
    known = fit(truth, np.column_stack([noise, 1 - noise]), donors)
    assert (known.n_cells, known.n_donors) == (300, 6)
    assert known.is_at_chance
    rule = unsure_rules({"sex": known}, ["sex"])["sex"]
    assert rule.is_always
    assert "sex: always unsure, because on the 300 validation cells of 6 donors" in rule.reason
    assert "no better than the most common value (accuracy" in rule.reason
    # Half of the donors are predicted rightly, all of their cells: chance, though not over cells.
    of_donor = np.where((donors < 3)[:, None], truth[:, None] == [0, 1], truth[:, None] == [1, 0])
    assert fit(truth, np.where(of_donor, 0.9, 0.1), donors).is_at_chance
    of_all = np.where(truth[:, None] == [0, 1], 0.9, 0.1)
    assert unsure_rules({"sex": fit(truth, of_all, donors)}, ["sex"])["sex"].below == 0.0


def test_one_value_or_few_cells_or_no_sure_cell_are_said():
    truth, probability = cells_of(LEAST_CELLS - 1)
    few = fit(np.append(truth, -1), np.append(probability, probability[:1], axis=0))
    assert few.temperature == 1.0
    rule = unsure_rules({"sex": few}, ["sex"])["sex"]
    assert rule.below == 0.5
    assert "only 49 validation cells have a label (50 are needed)" in rule.reason
    _, probability = cells_of(100)
    one = unsure_rules({"sex": fit(np.zeros(100, np.int64), probability)}, ["sex"])["sex"]
    assert one.is_always
    assert "have the same value" in one.reason
    truth, probability = cells_of(4000, scale=0.4)
    never = unsure_rules({"sex": fit(truth, probability)}, ["sex"], at=1.0)["sex"]
    assert "no probability from which 100 % of the 4,000 validation cells are right" in never.reason


def test_requests_that_contradict_each_other_or_the_model_are_refused():
    known = {"sex": PhenotypeCalibration()}
    with pytest.raises(ConfigurationError, match="not both"):
        unsure_rules(known, known, at=0.9, below=0.5)
    with pytest.raises(ConfigurationError, match="needs a calibrated model"):
        unsure_rules({}, ["sex"], at=0.9)
    assert unsure_rules({}, ["sex"])["sex"].below == 0.5
    assert unsure_rules({"sex": fit(*cells_of(100))}, ["sex"], below=0.7)["sex"].below == 0.7


def test_other_cells_are_scored_before_and_after():
    truth, probability = cells_of(4000)
    spoilt = temper(probability, 0.4)
    known = fit(truth[:2000], spoilt[:2000])
    rule = unsure_rules({"sex": known}, ["sex"], at=0.9)["sex"]
    after = temper(spoilt[2000:], known.temperature)
    given, plain = (np.append(one, [[1, 0, 0]], axis=0) for one in (after, spoilt[2000:]))
    scores = score_confidence(
        np.append(truth[2000:], -1),
        given,
        plain,
        given.max(axis=1) >= rule.below,
        temperature=known.temperature,
        rule=rule,
    )
    before = calibrate(spoilt[2000:], truth[2000:])
    assert scores.uncalibrated.ece == pytest.approx(before.ece, abs=1e-9)
    assert calibrate(after, truth[2000:]).ece < before.ece / 3
    is_kept = after.max(axis=1) >= rule.below
    assert scores.n_unsure == (~is_kept).sum() > 0
    assert scores.kept_accuracy == (after.argmax(axis=1) == truth[2000:])[is_kept].mean()
    assert scores.kept_accuracy == pytest.approx(0.9, abs=0.03)
