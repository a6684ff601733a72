"""What counts as a spike."""

import numpy as np
import pytest

from core.training.step import SpikeDetector


def losses(n=200, seed=0):
    """A loss that falls with the noise of batches."""
    rng = np.random.default_rng(seed)
    return (2.0 + np.exp(-np.arange(n) / 50) + rng.normal(0, 0.05, n)).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_noise_of_batches_is_no_spike(seed):
    detector = SpikeDetector()
    assert [x for x in losses(1000, seed) if detector.median_if_spike(x) is not None] == []


def test_a_leap_is_a_spike_and_is_not_learnt_from():
    detector = SpikeDetector()
    for loss in losses():
        detector.median_if_spike(loss)
    for _ in range(10):
        assert detector.median_if_spike(4.0) == pytest.approx(2.1, abs=0.1)
    assert detector.median_if_spike(2.05) is None


def test_early_losses_have_nothing_to_leap_from():
    detector = SpikeDetector()
    assert [detector.median_if_spike(x) for x in (1.0, 1.0, 50.0)] == [None] * 3


def test_a_level_that_stays_is_the_new_normal():
    detector = SpikeDetector()
    for loss in losses():
        detector.median_if_spike(loss)
    found = [detector.median_if_spike(6.0 + 0.01 * (i % 7)) is not None for i in range(60)]
    assert found[:25] == [True] * 25
    assert not any(found[25:])
