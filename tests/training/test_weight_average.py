"""The running average against its formula, and weights that are swapped and come back."""

import torch
from torch import nn

from core.training.weight_average import WeightAverage


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
