"""Learning rates, lengths of runs, and the average of the weights."""

import pytest
import torch
from torch import nn

from core.training.state import WeightAverage, learning_rate_factor, total_steps


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


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))


def test_the_average_is_that_of_the_formula():
    network = make_network()
    average = WeightAverage(network, 0.9)
    wanted = network[0].weight.detach().double().clone()
    for step in range(30):
        with torch.no_grad():
            network[0].weight += torch.randn(2, 3)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * network[0].weight.detach().double()
    torch.testing.assert_close(average.state()["0.weight"].double(), wanted, atol=1e-5, rtol=1e-5)


def test_the_network_has_the_average_in_the_block_and_its_own_weights_after():
    network = make_network()
    average = WeightAverage(network, 0.9)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1.0
    after = {name: p.detach().clone() for name, p in network.named_parameters()}
    with average.in_place():
        assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert all(torch.equal(p, after[name]) for name, p in network.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in average.state().items())


def test_what_was_saved_comes_back():
    one, other = WeightAverage(make_network(), 0.9), WeightAverage(make_network(), 0.9)
    one.state()["0.weight"].add_(3.0)
    other.load({name: value.clone() for name, value in one.state().items()})
    assert all(torch.equal(value, one.state()[name]) for name, value in other.state().items())
