"""Losses against written-out float64 references; weighting; the loss of a target."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.model.losses import (
    gaussian_cross_entropy,
    gaussian_targets,
    hurdle_regression,
    loss_kind,
    masked_loss,
    smoothed_cross_entropy,
)
from core.presets.schema import LossSettings

from .examples import make_batch, make_config, make_network

SEEDS = st.integers(0, 100_000)


def log_softmax(logits):
    """(M, C) float64, -inf allowed."""
    top = logits.max(axis=-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


def smoothed_reference(logits, targets, smoothing):
    """Cross-entropy with a target of 1 - s plus s / C over the C possible classes."""
    losses = []
    for row, target in zip(logits, targets, strict=True):
        possible = np.isfinite(row)
        wanted = possible * smoothing / possible.sum()
        wanted[target] += 1 - smoothing
        log_probability = log_softmax(row[None])[0]
        losses.append(-sum(w * p for w, p in zip(wanted, log_probability, strict=True) if w > 0))
    return np.array(losses)


def gaussian_reference(logits, targets, width):
    losses = []
    for row, target in zip(logits, targets, strict=True):
        wanted = np.exp(-((np.arange(len(row)) - target) ** 2) / (2 * width**2))
        wanted /= wanted.sum()
        losses.append(-(wanted * log_softmax(row[None])[0]).sum())
    return np.array(losses)


def hurdle_reference(outputs, targets):
    losses = []
    for (on_logit, mean, log_deviation), target in zip(outputs, targets, strict=True):
        on = 1 / (1 + np.exp(-on_logit))
        if target == 0:
            losses.append(-np.log(1 - on))
            continue
        deviation = np.exp(np.clip(log_deviation, -3, 2))
        log_density = -((target - mean) ** 2) / (2 * deviation**2) - np.log(
            deviation * np.sqrt(2 * np.pi)
        )
        losses.append(-np.log(on) - log_density)
    return np.array(losses)


def assert_close(found, wanted):
    np.testing.assert_allclose(found.double().numpy(), wanted, atol=2e-5, rtol=2e-5)


@given(SEEDS, st.sampled_from([0.0, 0.1, 0.5]), st.booleans())
def test_smoothed_cross_entropy_equals_its_reference(seed, smoothing, excluded):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (9, 6)).astype(np.float32)
    targets = rng.integers(0, 3, 9)
    if excluded:
        logits[:, 3:5] = -np.inf
    found = smoothed_cross_entropy(torch.tensor(logits), torch.tensor(targets), smoothing)
    assert_close(found, smoothed_reference(logits.astype(float), targets, smoothing))


def test_excluded_classes_leave_the_gradient_finite():
    logits = torch.tensor([[0.5, float("-inf"), 1.0]], requires_grad=True)
    smoothed_cross_entropy(logits, torch.tensor([2]), 0.2).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1] == 0


@given(SEEDS, st.sampled_from([0.3, 1.0, 2.5]))
def test_gaussian_cross_entropy_equals_its_reference(seed, width):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (9, 7)).astype(np.float32)
    targets = rng.integers(0, 7, 9)
    found = gaussian_cross_entropy(torch.tensor(logits), torch.tensor(targets), width)
    assert_close(found, gaussian_reference(logits.astype(float), targets, width))


def test_gaussian_targets_are_distributions_that_peak_at_their_bin():
    table = gaussian_targets(10, 1.0)
    torch.testing.assert_close(table.sum(-1), torch.ones(10))
    assert table.argmax(-1).tolist() == list(range(10))
    torch.testing.assert_close(table.flip(0, 1), table)


@pytest.mark.parametrize("target", [0, 4, 9])
def test_a_nearer_bin_costs_less_under_the_gaussian_loss(target):
    """The same confidence in bin j costs more the further j is from the truth; plain CE: equal."""
    sure = 4.0 * torch.eye(10)
    targets = torch.full((10,), target)
    cost = gaussian_cross_entropy(sure, targets, 1.0)
    distance = np.abs(np.arange(10) - target)
    # Far out the targets are all but zero, so equal but for rounding: compare where they matter.
    order = [int(np.flatnonzero(distance == d)[0]) for d in range(4) if (distance == d).any()]
    assert (cost[order].diff() > 1e-4).all()
    plain = smoothed_cross_entropy(sure, targets, 0.0)
    torch.testing.assert_close(plain[distance > 0], plain[distance > 0][:1].expand(9))


@given(SEEDS)
def test_the_hurdle_loss_equals_its_reference(seed):
    rng = np.random.default_rng(seed)
    outputs = rng.normal(0, 2, (12, 3)).astype(np.float32)
    outputs[0, 2], outputs[1, 2] = -7, 6  # beyond the bounds of the log standard deviation
    targets = (rng.uniform(0.1, 4, 12) * (rng.random(12) < 0.6)).astype(np.float32)
    found = hurdle_regression(torch.tensor(outputs), torch.tensor(targets))
    np.testing.assert_allclose(
        found.double().numpy(), hurdle_reference(outputs.astype(float), targets), rtol=2e-4
    )


@pytest.mark.parametrize(
    ("kind", "loss"),
    [("binary", "bce"), ("binned", "label_smoothing"), ("continuous", "regression")],
)
def test_auto_is_the_loss_of_the_encoding(kind, loss):
    assert loss_kind(LossSettings(), kind) == loss
    assert loss_kind(LossSettings(kind="gaussian"), kind) == "gaussian"


# ------------------------------------------------------------------------- the loss of a batch


def gene_reference(logits, batch, config, settings):
    """(M,) float64."""
    logits, targets = logits.double().numpy(), batch.gene_target.numpy()
    if config.head == "joint":
        return smoothed_reference(logits, targets, settings.smoothing)
    if config.kind == "binary":
        on = 1 / (1 + np.exp(-logits[:, 0]))
        return -np.where(targets > 0, np.log(on), np.log(1 - on))
    if config.kind == "continuous":
        return hurdle_reference(logits, targets)
    if settings.kind == "gaussian":
        return gaussian_reference(logits, targets, settings.gaussian_width)
    return smoothed_reference(logits, targets, settings.smoothing)


CASES = {
    "binary": ("binary", "split", {}),
    "binned": ("binned", "split", {"smoothing": 0.2}),
    "ordinal": ("binned", "split", {"kind": "gaussian", "gaussian_width": 0.7}),
    "continuous": ("continuous", "split", {}),
    "joint binned": ("binned", "joint", {"smoothing": 0.2}),
    "joint binary": ("binary", "joint", {"kind": "label_smoothing"}),
}


@pytest.mark.parametrize("weighting", ["mean", "rate"])
@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_loss_of_a_batch_is_its_references_mean(case, layout, weighting):
    kind, head, changes = case
    settings = LossSettings(
        weighting=weighting, phenotype_weight=0.7, phenotype_smoothing=0.05, **changes
    )
    network = make_network(kind, layout, head=head)
    config = network.config
    batch = make_batch(config)
    with torch.no_grad():
        output = network(batch)
        parts = masked_loss(output.gene_logits, output.phenotype_logits, batch, config, settings)
    losses = gene_reference(output.gene_logits, batch, config, settings)
    cell = batch.gene_cell.numpy()
    if weighting == "mean":
        genes = losses.mean()
    else:  # every cell's own mean
        genes = np.mean([losses[cell == c].mean() for c in np.unique(cell)])
    offset = np.array([0, 2])[batch.phenotype_slot.numpy()] + batch.phenotype_target.numpy()
    if head == "joint":
        offset = offset + config.n_bins
    smoothing = settings.smoothing if head == "joint" else 0.05
    phenotypes = smoothed_reference(
        output.phenotype_logits.double().numpy(), offset, smoothing
    ).mean()
    assert parts.genes.item() == pytest.approx(genes, rel=1e-4)
    assert parts.phenotypes.item() == pytest.approx(phenotypes, rel=1e-4)
    assert parts.total.item() == pytest.approx(genes + 0.7 * phenotypes, rel=1e-4)


def test_class_weights_weigh_each_target_by_its_value():
    network = make_network()
    config = network.config
    batch = make_batch(config, phenotypes=1.0)
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])
    with torch.no_grad():
        output = network(batch)
        parts = masked_loss(
            output.gene_logits, output.phenotype_logits, batch, config, LossSettings(), weights
        )
    logits = output.phenotype_logits.double().numpy()
    targets = np.array([0, 2])[batch.phenotype_slot.numpy()] + batch.phenotype_target.numpy()
    losses = smoothed_reference(logits, targets, 0.0)
    of_target = weights.double().numpy()[targets]
    wanted = (losses * of_target).sum() / of_target.sum()
    assert parts.phenotypes.item() == pytest.approx(wanted, rel=1e-5)


def test_rate_weighting_gives_a_cell_with_few_masks_the_weight_of_one_with_many():
    config = make_config()
    batch = make_batch(config)
    counts = np.bincount(batch.gene_cell.numpy(), minlength=5)
    assert len(set(counts.tolist())) > 1
    logits = torch.zeros(len(batch.gene), 4)
    logits[batch.gene_cell == 0, :] = torch.randn(4, generator=torch.Generator().manual_seed(0))
    nothing = replace(batch, phenotype_position=batch.phenotype_position[:0],
                      phenotype_slot=batch.phenotype_slot[:0],
                      phenotype_target=batch.phenotype_target[:0])  # fmt: skip
    settings = LossSettings(smoothing=0.0, weighting="rate")
    parts = masked_loss(logits, torch.zeros(0, 5), nothing, config, settings)
    first = smoothed_cross_entropy(
        logits[batch.gene_cell == 0], batch.gene_target[batch.gene_cell == 0], 0.0
    )
    wanted = (first.mean() + 4 * np.log(4)) / 5
    torch.testing.assert_close(parts.genes, wanted, atol=1e-6, rtol=0)


def test_rate_weighting_averages_over_the_cells_that_have_masked_genes():
    config = make_config(layout="expressed")
    batch = make_batch(config)
    kept = batch.gene_cell > 1  # as if cells 0 and 1 had been shown whole
    batch = replace(batch, gene_cell=batch.gene_cell[kept], gene=batch.gene[kept],
                    gene_target=batch.gene_target[kept],
                    gene_position=batch.gene_position[kept])  # fmt: skip
    logits = torch.zeros(len(batch.gene), 4)
    settings = LossSettings(smoothing=0.0, weighting="rate")
    phenotypes = torch.zeros(len(batch.phenotype_slot), 5)
    parts = masked_loss(logits, phenotypes, batch, config, settings)
    assert parts.genes.item() == pytest.approx(np.log(4))


@pytest.mark.parametrize("kind", ["binary", "binned", "continuous"])
def test_a_batch_with_nothing_masked_costs_nothing_and_has_a_gradient(kind):
    network = make_network(kind)
    batch = make_batch(network.config, genes=0.0, phenotypes=0.0)
    output = network(batch)
    parts = masked_loss(
        output.gene_logits, output.phenotype_logits, batch, network.config, LossSettings()
    )
    assert parts.total.item() == 0
    parts.total.backward()
