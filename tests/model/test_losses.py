"""Losses against written-out float64 references; weighting; the loss of a target."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.encoding.tokens import MASK
from core.model.losses import (
    ClsOutputs,
    LossCounts,
    bin_logits,
    cell_loss,
    gaussian_cross_entropy,
    gaussian_targets,
    hurdle_regression,
    loss_kind,
    masked_loss,
    outputs_with_cls,
    predict_genes,
    sample_genes,
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


BOTH = {"cls_reconstruction": True, "cls_contrast": True, "dropout": 0.0}


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_cls_of_every_cell_joins_the_output_positions(layout):
    batch = make_batch(make_network(layout=layout).config)
    outputs, former, at_cls = outputs_with_cls(batch)
    assert torch.equal(outputs.position[former], batch.output_position)
    assert torch.equal(outputs.position[at_cls], batch.cu_seqlens[:-1].long())
    assert torch.equal(outputs.position, outputs.position.sort().values)
    assert len(outputs.position) == len(batch.output_position) + batch.n_cells
    assert outputs.bounds.cu_queries.tolist() == outputs.bounds.queries.tolist()
    cells = np.searchsorted(batch.token_bounds, outputs.position.numpy(), side="right") - 1
    assert np.bincount(cells).tolist() == np.diff(outputs.bounds.queries).tolist()


@pytest.mark.parametrize("head", ["split", "joint"])
@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_predictions_are_the_same_with_heads_of_cls_and_without(layout, head):
    network = make_network(layout=layout, head=head, **BOTH)
    plain = make_network(layout=layout, head=head, dropout=0.0)
    plain.load_state_dict(
        {name: w for name, w in network.state_dict().items() if "cell_heads" not in name}
    )
    batch = make_batch(network.config)
    learning, without = network.train()(batch), plain.train()(batch)
    torch.testing.assert_close(learning.gene_logits, without.gene_logits)
    torch.testing.assert_close(learning.phenotype_logits, without.phenotype_logits)
    assert learning.cells is not None
    assert without.cells is None
    assert network.eval()(batch).cells is None, "heads of [CLS] are for training"


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_reconstruction_predicts_all_genes_of_a_cell_from_cls_alone(layout):
    network = make_network(layout=layout, **(BOTH | {"cls_contrast": False}))
    config = network.config
    batch = make_batch(config)
    output = network.train()(batch)
    settings = LossSettings(cls_reconstruction=0.5, smoothing=0.1)
    loss = cell_loss(output.cells, batch, config, settings)
    cls = network.cell_embeddings(batch).detach()
    decoder = network.encoder_part.cell_heads.decoder
    logits = decoder(cls).detach().double().numpy().reshape(batch.n_cells, config.n_genes, -1)
    first = config.tokens.first_gene
    losses = []
    for cell in range(batch.n_cells):
        span = slice(batch.token_bounds[cell], batch.token_bounds[cell + 1])
        identity, value = batch.token_id[span].numpy(), batch.value[span].numpy()
        targets = {
            int(g): int(v) - config.tokens.first_bin
            for g, v in zip(identity - first, value, strict=True)
            if g >= 0 and v != MASK
        }
        own = batch.gene_cell.numpy() == cell
        targets |= dict(zip(batch.gene[own].tolist(), batch.gene_target[own].tolist(), strict=True))
        genes, truth = np.array(list(targets)), np.array(list(targets.values()))
        assert len(genes) == (identity >= first).sum()
        losses.append(smoothed_reference(logits[cell, genes], truth, 0.1).mean())
    assert loss.item() == pytest.approx(0.5 * np.mean(losses), rel=1e-5)


def test_contrast_is_info_nce_between_the_two_maskings_of_a_cell():
    rng = np.random.default_rng(0)
    projected = rng.normal(size=(6, 64))
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    alike = projected @ projected.T / 0.1
    losses = []
    for row in range(6):
        others = np.delete(np.arange(6), row)
        losses.append(np.log(np.exp(alike[row, others]).sum()) - alike[row, row ^ 1])
    states = ClsOutputs(None, torch.from_numpy(projected).float())
    config = make_network().config
    batch = make_batch(config, n_cells=6)
    loss = cell_loss(states, batch, config, LossSettings(cls_contrast=2.0))
    assert loss.item() == pytest.approx(2 * np.mean(losses), rel=1e-5)


def test_a_cell_without_another_costs_nothing_but_has_a_gradient():
    projected = torch.nn.functional.normalize(torch.randn(2, 64), dim=1).requires_grad_()
    config = make_network().config
    batch = make_batch(config, n_cells=2)
    loss = cell_loss(ClsOutputs(None, projected), batch, config, LossSettings(cls_contrast=1.0))
    loss.backward()
    assert loss.item() == 0
    assert not projected.grad.any()


def test_parts_of_a_step_add_up_to_it():
    network = make_network(**(BOTH | {"cls_contrast": False})).train()
    config = network.config
    batch = make_batch(config)
    settings = LossSettings(cls_reconstruction=1.0)
    loss = cell_loss(network(batch).cells, batch, config, settings)
    twice = LossCounts(0.0, 0.0, cells=2 * batch.n_cells)
    half = cell_loss(network(batch).cells, batch, config, settings, twice)
    assert 2 * half.item() == pytest.approx(loss.item(), rel=1e-6)


def test_masked_genes_outside_the_context_are_not_reconstructed():
    network = make_network(context_genes=2, **BOTH).train()
    batch = make_batch(network.config, n_cells=4, genes=0.6)
    at_gene = batch.token_id >= network.config.tokens.first_gene
    has_no_target = at_gene & (batch.value == MASK)
    has_no_target[batch.gene_position] = False
    assert 0 < has_no_target.sum() < (batch.value == MASK).sum()
    settings = LossSettings(cls_reconstruction=1.0)
    outputs = network(batch).cells
    one = cell_loss(outputs, batch, network.config, settings)
    genes = torch.where(has_no_target.unsqueeze(1), 7 * outputs.genes, outputs.genes)
    other = cell_loss(ClsOutputs(genes, outputs.projected), batch, network.config, settings)
    assert other.item() == one.item()


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_other_encodings_are_reconstructed_too(kind):
    network = make_network(kind, **BOTH).train()
    batch = make_batch(network.config, n_cells=4)
    settings = LossSettings(cls_reconstruction=1.0, cls_contrast=1.0)
    loss = cell_loss(network(batch).cells, batch, network.config, settings)
    loss.backward()
    assert torch.isfinite(loss)
    for head in (
        network.encoder_part.cell_heads.decoder,
        network.encoder_part.cell_heads.projector[0],
    ):
        assert head.weight.grad.abs().sum() > 0
