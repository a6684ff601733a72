"""Learning rates and lengths of runs."""

import pytest

from core.training.schedule import learning_rate_factor, total_steps


def factors(total, warmup_ratio, schedule):
    return [
        learning_rate_factor(step, total=total, warmup_ratio=warmup_ratio, schedule=schedule)
        for step in range(total + 1)
    ]


def test_linear_rises_to_the_peak_and_falls_to_zero():
    wanted = [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert factors(8, 0.5, "linear") == pytest.approx(wanted)


def test_cosine_falls_slowly_at_both_ends():
    wanted = [0.5, 1.0, 1.0, 0.75, 0.25, 0.0]
    assert factors(5, 0.4, "cosine") == pytest.approx(wanted)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_without_warm_up_the_first_step_has_the_peak(schedule):
    assert factors(10, 0.0, schedule)[0] == 1.0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_no_step_of_a_run_is_lost_to_a_zero_rate(total, schedule):
    values = factors(total, 0.1, schedule)
    assert all(0 < value <= 1 for value in values[:total])
    assert max(values) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": 7, "epochs": None}, 7),
        ({"max_steps": None, "epochs": 2.0}, 20),
        ({"max_steps": None, "epochs": 0.25}, 3),
        ({"max_steps": None, "epochs": 0.001}, 1),
        ({"max_steps": None, "epochs": None}, 100),
    ],
)
def test_the_length_of_a_run_of_10_steps_per_epoch(settings, steps):
    assert total_steps(lambda _: 10, **settings) == steps


def test_epochs_of_different_lengths_add_up():
    lengths = [10, 7, 9]
    assert total_steps(lengths.__getitem__, max_steps=None, epochs=2.5) == 10 + 7 + 5
