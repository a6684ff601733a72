"""What gene outputs mean: predictions, draws with the model's frequencies."""

import pytest
import torch

from core.model.losses import bin_logits, predict_genes, sample_genes

from .examples import make_config

N = 40_000


def chance(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "uniform": torch.rand(N, generator=generator),
        "normal": torch.randn(N, generator=generator),
    }


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_bins_are_drawn_as_often_as_their_probability(temperature):
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5])
    drawn = sample_genes(logits.expand(N, 4), make_config(), temperature=temperature, **chance())
    fraction = torch.bincount(drawn, minlength=4) / N
    wanted = torch.softmax(logits / temperature, dim=0)
    torch.testing.assert_close(fraction, wanted, atol=0.01, rtol=0)


def test_binary_genes_are_drawn_as_expressed_as_often_as_their_logit_implies():
    logits = torch.tensor([-1.2])
    drawn = sample_genes(logits.expand(N, 1), make_config("binary"), temperature=1.0, **chance())
    assert drawn.float().mean().item() == pytest.approx(torch.sigmoid(logits).item(), abs=0.01)


def test_a_joint_head_draws_bins_only():
    """Phenotype values share the softmax in training; no gene can become one."""
    logits = torch.tensor([0.0, 1.0, 0.0, 0.0, 50.0, 50.0, 50.0, 50.0, 50.0])
    config = make_config(head="joint")
    drawn = sample_genes(logits.expand(N, 9), config, temperature=1.0, **chance())
    wanted = torch.softmax(logits[:4], dim=0)
    torch.testing.assert_close(torch.bincount(drawn, minlength=4) / N, wanted, atol=0.01, rtol=0)
    assert bin_logits(logits[None], config).shape == (1, 4)


def test_continuous_genes_are_drawn_from_the_hurdle_and_the_gaussian():
    config = make_config("continuous")
    outputs = torch.tensor([0.4, 2.0, -1.5]).expand(N, 3)
    drawn = sample_genes(outputs, config, temperature=1.0, **chance())
    on = drawn > 0
    assert on.float().mean().item() == pytest.approx(torch.sigmoid(outputs[0, 0]).item(), abs=0.01)
    assert drawn[on].mean().item() == pytest.approx(2.0, abs=0.01)
    assert drawn[on].std().item() == pytest.approx(torch.exp(torch.tensor(-1.5)).item(), abs=0.01)


def test_continuous_draws_are_never_negative_and_never_wider_than_the_loss_allows():
    outputs = torch.tensor([9.0, 0.0, 50.0]).expand(N, 3)
    drawn = sample_genes(outputs, make_config("continuous"), temperature=1.0, **chance())
    assert drawn.min() >= 0
    assert drawn.max() < 6 * torch.exp(torch.tensor(2.0))


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_unit_interval_draw_possible_bins(uniform):
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]])
    drawn = sample_genes(
        logits, make_config(), temperature=1.0, uniform=torch.tensor([uniform]),
        normal=torch.zeros(1),
    )  # fmt: skip
    assert drawn.item() in (1, 2)


@pytest.mark.parametrize(
    ("kind", "outputs", "prediction"),
    [
        ("binned", [0.0, 0.0, 1.0, 0.0], 2),
        ("binary", [0.7], 1),
        ("binary", [-0.7], 0),
        ("continuous", [0.0, 3.0, 0.0], 1.5),
        ("continuous", [-2.0, 3.0, 0.0], 3 * 0.1192),
    ],
)
def test_the_most_likely_prediction(kind, outputs, prediction):
    logits, config = torch.tensor([outputs]), make_config(kind)
    assert predict_genes(logits, config).item() == pytest.approx(prediction, abs=1e-3)
