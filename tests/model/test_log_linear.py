"""The log-linear part: its start at the class log-odds, and its fits against references."""

import copy
import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from core.encoding.batches import BatchEncoder
from core.encoding.masking import Show
from core.encoding.values import ValueEncoder, ValueTable
from core.errors import ConfigurationError
from core.model.batch_tensors import BatchTensors
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.model.log_linear_fit import fit_log_linear
from core.model.phenotype_fit import _choose

from .examples import make_batch, make_network, value_encoder

N_CELLS, N_GENES = 4000, 3
PHENOTYPES = {"sex": ["female", "male"], "tissue": ["lung", "blood", "liver"]}
EDGES = np.array([0.5, 1.5], dtype=np.float32)


def simulate(kind):
    """Draw cells of known additive log-odds; genes independent given the phenotypes."""
    rng = np.random.default_rng(0)
    n_bins = 2 if kind == "binary" else 3
    codes = np.stack([rng.integers(0, 2, N_CELLS), rng.integers(0, 3, N_CELLS)], axis=1)
    level = rng.normal(0, 0.7, (N_GENES, n_bins))
    of_sex = rng.normal(0, 0.8, (2, N_GENES, n_bins))
    of_tissue = rng.normal(0, 0.8, (3, N_GENES, n_bins))
    logits = level + of_sex[codes[:, 0]] + of_tissue[codes[:, 1]]
    noisy = logits + rng.gumbel(size=logits.shape)
    bins = noisy.argmax(axis=-1).astype(np.uint8)
    return bins, codes.astype(np.int32)


@functools.cache
def fitted(kind):
    """Return a network fitted to the simulated cells, for reading only, and what made it."""
    return fit(kind)


def fit(kind):
    bins, codes = simulate(kind)
    n_bins = int(bins.max()) + 1
    config = TfxConfig(
        phenotype_names=list(PHENOTYPES), phenotype_values=list(PHENOTYPES.values()),
        n_genes=N_GENES, n_bins=n_bins, kind=kind, hidden_size=8, heads=2, log_linear=True,
        layers=1, intermediate_size=16, longest_sequence=N_GENES + 5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TfxModel(config)
        network.start()
    values = ValueEncoder(kind, EDGES[: n_bins - 1])
    table = ValueTable.fit(values, sparse.csr_matrix(bins.astype(np.float32)))
    fit_log_linear(network.log_linear, config, table, bins, codes, seed=0)
    return network.eval(), BatchEncoder(config.tokens, values, max_length=N_GENES + 5), bins, codes


def ask_all_genes(network, encoder, codes, states):
    """Return (cells, genes, outputs) logits with every gene masked."""
    n_cells = len(codes)
    arrays = encoder.ranked(
        np.zeros((n_cells, N_GENES), np.float32), codes, states, np.ones((n_cells, N_GENES), bool)
    )
    with torch.no_grad():
        output = network(BatchTensors.from_arrays(arrays))
    return output.gene_logits.view(n_cells, N_GENES, -1)


ALL_CODES = np.array([[s, t] for s in range(2) for t in range(3)], dtype=np.int32)


@pytest.mark.parametrize("kind", ["binned", "binary"])
def test_it_starts_as_the_fitted_class_log_odds_when_all_genes_are_masked(kind):
    network, encoder, _, _ = fitted(kind)
    states = np.full(ALL_CODES.shape, Show.VALUE, np.int8)
    logits = ask_all_genes(network, encoder, ALL_CODES, states)
    log_linear = network.log_linear
    shown = torch.zeros(6, 7)  # [NO_SEX] 0, female 1, male 2, [NO_TISSUE] 3, lung 4, ...
    for row, (sex, tissue) in enumerate(ALL_CODES.tolist()):
        shown[row, 1 + sex] = 1
        shown[row, 4 + tissue] = 1
    wanted = log_linear.gene_prior + shown @ log_linear.class_table
    torch.testing.assert_close(logits.flatten(1), wanted)


@pytest.mark.parametrize("state", [Show.MASKED, Show.NOT_SPECIFIED])
def test_a_phenotype_not_shown_counts_as_not_specified(state):
    network, encoder, _, _ = fitted("binned")
    states = np.array([[Show.VALUE, state]] * 6, dtype=np.int8)
    logits = ask_all_genes(network, encoder, ALL_CODES, states)
    log_linear = network.log_linear
    wanted = (
        log_linear.gene_prior
        + log_linear.class_table[1 + ALL_CODES[:, 0]]
        + (log_linear.class_table[3])
    )
    torch.testing.assert_close(logits.flatten(1), wanted)


def brute_force(bins, codes, n_bins):
    """Fit each gene's additive multinomial by Newton-like full-batch steps: (6, genes, bins)."""
    design = np.zeros((len(codes), 5))
    design[np.arange(len(codes)), codes[:, 0]] = 1
    design[np.arange(len(codes)), 2 + codes[:, 1]] = 1
    combinations = np.zeros((6, 5))
    for row, (sex, tissue) in enumerate(ALL_CODES.tolist()):
        combinations[row, [sex, 2 + tissue]] = 1
    predictions = []
    for gene in range(bins.shape[1]):
        target = np.eye(n_bins)[bins[:, gene]]
        weights = np.zeros((5, n_bins))
        for _ in range(600):
            logits = design @ weights
            probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            weights += 2.0 * design.T @ (target - probability) / len(codes)
        logits = combinations @ weights
        predictions.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    return np.stack(predictions, axis=1)


@pytest.mark.parametrize("kind", ["binned", "binary"])
def test_the_class_log_odds_are_the_additive_multinomial_fit(kind):
    """Probabilities of every combination within 0.04 of a full-batch fit of the same model."""
    network, encoder, bins, codes = fitted(kind)
    states = np.full(ALL_CODES.shape, Show.VALUE, np.int8)
    logits = ask_all_genes(network, encoder, ALL_CODES, states)
    if kind == "binary":
        logits = torch.cat([torch.zeros_like(logits), logits], dim=-1)
    found = torch.softmax(logits, dim=-1).numpy()
    wanted = brute_force(bins, codes, found.shape[-1])
    np.testing.assert_allclose(found, wanted, atol=0.04)
    marginal = np.stack([(bins == b).mean(axis=0) for b in range(found.shape[-1])], axis=-1)
    assert np.abs(wanted - marginal).max() > 0.2, "the classes must differ for this to be a test"


def test_with_nothing_specified_the_prediction_is_the_marginal():
    network, encoder, bins, _ = fitted("binned")
    states = np.full((1, 2), Show.NOT_SPECIFIED, np.int8)
    logits = ask_all_genes(network, encoder, ALL_CODES[:1], states)[0]
    marginal = np.stack([(bins == b).mean(axis=0) for b in range(3)], axis=-1)
    np.testing.assert_allclose(torch.softmax(logits, -1).numpy(), marginal, atol=0.04)


@pytest.mark.parametrize("kind", ["binned", "binary"])
@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_the_encoder_contributes_exactly_nothing_at_the_start(kind, layout):
    network = make_network(kind, layout, log_linear=True, randomise=False)
    batch = make_batch(network.config, phenotypes=0.8)
    with torch.no_grad():
        route = network.attention_route()
        hidden = network.encoder_part.encode(batch, route)
        genes, phenotypes, _ = network.encoder_part(batch, route)
    assert hidden.abs().max() > 0
    assert genes.abs().max() == 0
    assert phenotypes.abs().max() == 0


def ask_phenotypes(network, encoder, bins, codes, *, hidden):
    """Return one array of probabilities per phenotype, all phenotypes masked."""
    representative = np.array([0.0, 1.0, 2.0], dtype=np.float32)[bins]
    states = np.full(codes.shape, Show.MASKED, np.int8)
    mask = np.full(bins.shape, hidden)
    batch = BatchTensors.from_arrays(encoder.ranked(representative, codes, states, mask))
    with torch.no_grad():
        logits = network(batch).phenotype_logits
    return [
        network.phenotype_probabilities(logits[batch.phenotype_slot == slot], slot).numpy()
        for slot in range(codes.shape[1])
    ]


def test_phenotypes_start_at_their_frequencies_when_all_genes_are_masked():
    network, encoder, bins, codes = fitted("binned")
    found = ask_phenotypes(network, encoder, bins[:1], codes[:1], hidden=True)
    for slot, size in enumerate([2, 3]):
        counts = np.bincount(codes[:, slot], minlength=size) + 1
        np.testing.assert_allclose(found[slot][0], counts / counts.sum(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["binned", "binary"])
def test_without_the_correction_phenotypes_start_at_logistic_regression(kind):
    """That of scikit-learn, on standardised bin values, with the penalty that the fit states."""
    network, encoder, bins, codes = fitted(kind)
    network = copy.deepcopy(network)
    torch.nn.init.zeros_(network.log_linear.phenotype_correction[-1].weight)
    torch.nn.init.zeros_(network.log_linear.phenotype_correction[-1].bias)
    found = ask_phenotypes(network, encoder, bins[:200], codes[:200], hidden=False)
    values = network.log_linear.bin_values.numpy()[np.arange(N_GENES), bins]
    for slot in range(2):
        penalty, weights, sharpness = _choose(values, codes[:, slot], None, 0)
        fit = LogisticRegression(C=penalty, class_weight=weights, max_iter=300)
        fit.fit(values, codes[:, slot])
        scores = fit.decision_function(values[:200])
        if scores.ndim == 1:
            scores = np.stack([-scores, scores], axis=1) / 2
        expected = softmax(sharpness * scores, axis=1)
        np.testing.assert_allclose(found[slot], expected, atol=1e-3)


def test_the_correction_lowers_the_loss_of_the_regression_below_it():
    network, encoder, bins, codes = fitted("binned")
    without = copy.deepcopy(network)
    torch.nn.init.zeros_(without.log_linear.phenotype_correction[-1].weight)
    torch.nn.init.zeros_(without.log_linear.phenotype_correction[-1].bias)
    losses = []
    for model in (network, without):
        found = ask_phenotypes(model, encoder, bins, codes, hidden=False)
        losses.append(
            sum(
                -np.log(found[slot][np.arange(len(codes)), codes[:, slot]]).mean()
                for slot in range(2)
            )
        )
    assert losses[0] < losses[1]


def test_the_linear_scores_read_standardised_values():
    network, _, bins, _ = fitted("binned")
    standard = network.log_linear.bin_values.numpy()
    of_cells = standard[np.arange(N_GENES), bins]
    np.testing.assert_allclose(of_cells.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(of_cells.std(axis=0), 1, atol=1e-4)


def test_the_frozen_tables_are_saved_but_not_trained():
    network, *_ = fitted("binned")
    frozen = {"log_linear.class_table", "log_linear.gene_prior", "log_linear.score_weight"}
    assert frozen <= set(network.state_dict())
    assert not frozen & {name for name, _ in network.named_parameters()}


def test_fitting_is_a_function_of_the_seed():
    one, two = fitted("binned")[0].log_linear.class_table, fit("binned")[0].log_linear.class_table
    assert torch.equal(one, two)


def test_genes_affect_each_other_within_a_cell_only():
    """The couplings, once learnt, use the visible genes of the same cell and no other's."""
    network = make_network(log_linear=True, layers=0)
    batch = make_batch(network.config, genes=0.5)
    with torch.no_grad():
        before = network(batch).gene_logits
        value = batch.value.clone()
        start, end = batch.cu_seqlens[2].item(), batch.cu_seqlens[3].item()
        visible = (batch.token_id >= network.config.tokens.first_gene) & (batch.value > 1)
        visible[:start] = False
        visible[end:] = False
        value[visible] = network.config.tokens.first_bin + 2
        batch = replace(batch, value=value)
        after = network(batch).gene_logits
    others = batch.gene_cell != 2
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[~others], after[~others])


def test_a_class_table_that_would_rival_the_network_is_an_error(monkeypatch):
    monkeypatch.setattr("core.model.log_linear_fit.MAX_CLASS_TABLE", 10)
    with pytest.raises(
        ConfigurationError, match=r"lower data\.genes or set model\.log_linear = false"
    ):
        fit("binned")


def test_without_gene_pairs_visible_genes_say_nothing_of_hidden_ones():
    network = make_network(log_linear=True, log_linear_rank=0, layers=0)
    assert not any("couplings" in name or "effects" in name for name in network.state_dict())
    config = network.config
    encoder = BatchEncoder(config.tokens, value_encoder(config), max_length=config.longest_sequence)
    mask = np.ones((2, config.n_genes), bool)
    mask[:, : config.n_genes // 2] = False
    states = np.full((2, len(config.phenotype_sizes)), Show.VALUE, np.int8)
    codes = np.array([[0] * states.shape[1], [1] * states.shape[1]], np.int32)
    logits_of = []
    for level in (0.0, 3.0):
        arrays = encoder.ranked(np.full(mask.shape, level, np.float32), codes, states, mask)
        with torch.no_grad():
            logits_of.append(network(BatchTensors.from_arrays(arrays)).gene_logits.view(2, -1))
    torch.testing.assert_close(logits_of[0], logits_of[1], rtol=0, atol=0)
    assert not torch.allclose(logits_of[0][0], logits_of[0][1])  # the class has an effect
