"""Calibration against figures worked out by hand, and against labels drawn from the probabilities."""

import math

import numpy as np
import pytest

from core.evaluation.calibration import calibrate


def test_a_small_case_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.85, 0.15], [0.4, 0.6], [0.5, 0.5]])
    found = calibrate(probabilities, [0, 1, 1, -1])
    assert [(one.low, one.high, one.n_cells) for one in found.curve] == [
        (0.5, 0.6, 1),
        (0.8, 0.9, 2),
    ]
    assert found.curve[1].confidence == pytest.approx(0.875)
    assert found.curve[1].accuracy == 0.5
    assert found.error == pytest.approx((0.4 + 2 * 0.375) / 3)
    assert found.overconfidence == pytest.approx((0.9 + 0.85 + 0.6) / 3 - 2 / 3)


def test_probabilities_that_mean_what_they_say_have_no_error():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5, 0.5, 0.5], size=40_000)
    truth = (rng.random((40_000, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    found = calibrate(probabilities, truth)
    assert found.error < 0.01
    sharpened = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    assert calibrate(sharpened, truth).error > 0.1
    assert calibrate(sharpened, truth).overconfidence > 0.1


def test_a_certain_model_lies_in_the_last_bin():
    found = calibrate(np.array([[1.0, 0.0], [1.0, 0.0]]), [0, 1])
    (only,) = found.curve
    assert (only.low, only.high, only.accuracy, found.error) == (0.9, 1.0, 0.5, 0.5)


def test_without_labels_there_is_no_calibration():
    found = calibrate(np.full((3, 2), 0.5), [-1, -1, -1])
    assert math.isnan(found.error)
    assert found.curve == ()
