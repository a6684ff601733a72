"""Where the log-linear part's gene pairs begin: at the factor model of the correlations within classes."""

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn import functional

from core.encoding.batches import BatchEncoder
from core.encoding.masking import Show
from core.encoding.values import ValueEncoder, ValueTable
from core.generation.log_linear_state import LogLinearState
from core.model.batch_tensors import BatchTensors
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.model.log_linear_fit import fit_log_linear

N_GENES, N_CELLS = 16, 1500
EDGES = np.array([0.5, 1.5], dtype=np.float32)


def draw_bins(strength, seed):
    """Two classes of other levels; within each, two hidden activities move the genes."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(2, size=(N_CELLS, 1)).astype(np.int32)
    loadings = np.random.default_rng(9).standard_normal((2, N_GENES))
    activity = strength * rng.standard_normal((N_CELLS, 2)) @ loadings
    level = np.where(np.arange(N_GENES) % 2 == codes, 0.8, -0.2)
    values = activity + level + 0.7 * rng.standard_normal((N_CELLS, N_GENES))
    return np.digitize(values, [0.0, 1.0]).astype(np.uint8), codes


def fit(bins, codes, layout="ranked"):
    config = TfxConfig(
        phenotype_names=["cell_type"], phenotype_values=[["a", "b"]], n_genes=N_GENES, n_bins=3,
        kind="binned", hidden_size=8, heads=2, log_linear=True, layers=0, intermediate_size=16,
        longest_sequence=N_GENES + 5, log_linear_rank=8, layout=layout,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TfxModel(config)
        network.start()
    values = ValueEncoder("binned", EDGES)
    table = ValueTable.fit(values, sparse.csr_matrix(bins.astype(np.float32)))
    fit_log_linear(network.log_linear, config, table, bins, codes, unexpressed=0.5, seed=0)
    return network.eval(), BatchEncoder(config.tokens, values, max_length=N_GENES + 5)


def loss_of_hidden(network, encoder, bins, codes, fraction):
    """Mean negative log-likelihood of genes hidden at a rate, class shown, in nats."""
    rng = np.random.default_rng(3)
    hidden = rng.random(bins.shape) < fraction
    hidden[:, 0] = True
    states = np.full(codes.shape, Show.VALUE, np.int8)
    arrays = encoder.ranked(bins.astype(np.float32), codes, states, hidden)
    with torch.no_grad():
        logits = network(BatchTensors.from_arrays(arrays)).gene_logits
    target = torch.from_numpy(bins[hidden].astype(np.int64))
    return float(functional.cross_entropy(logits, target))


@pytest.fixture(scope="module")
def dependent():
    return fit(*draw_bins(0.8, 0))


def without_pairs(network):
    effects = network.log_linear.effects.weight
    kept = effects.detach().clone()
    with torch.no_grad():
        effects.zero_()
    return kept


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_visible_genes_predict_hidden_ones_before_any_training(dependent, fraction):
    network, encoder = dependent
    cells = draw_bins(0.8, 1)
    loss = loss_of_hidden(network, encoder, *cells, fraction)
    kept = without_pairs(network)
    classes_alone = loss_of_hidden(network, encoder, *cells, fraction)
    with torch.no_grad():
        network.log_linear.effects.weight.copy_(kept)
    assert loss < classes_alone - 0.05


def test_with_all_genes_hidden_it_is_the_class_log_odds(dependent):
    network, encoder = dependent
    cells = draw_bins(0.8, 1)
    loss = loss_of_hidden(network, encoder, *cells, 1.0)
    kept = without_pairs(network)
    assert loss_of_hidden(network, encoder, *cells, 1.0) == pytest.approx(loss, abs=1e-6)
    with torch.no_grad():
        network.log_linear.effects.weight.copy_(kept)


def test_genes_without_dependence_begin_without_pairs():
    network, _ = fit(*draw_bins(0.0, 0))
    assert not network.log_linear.effects.weight.any()


# ------------------------------------------------------------------------------- expressed layout
def loss_of_asked(network, bins, codes, seen):
    """Mean negative log-likelihood of masked genes, half of which are expressed, beside other expressed genes."""
    rng = np.random.default_rng(4)
    loss = []
    log_linear = network.log_linear
    for row, code in zip(bins[:300], codes[:300, 0], strict=True):
        on, off = np.flatnonzero(row), np.flatnonzero(row == 0)
        shown = torch.zeros(1, log_linear.n_shown)
        shown[0, 1 + code] = 1.0
        known = rng.permutation(on)[: round(seen * len(on))]
        hidden = np.setdiff1d(on, known)
        n = min(len(hidden), len(off))
        masked = np.concatenate([hidden[:n], rng.permutation(off)[:n]])
        if n == 0:
            continue
        with torch.no_grad():
            state = LogLinearState(log_linear, shown, n_expressed=torch.tensor([float(len(on))]))
            seen_bins = torch.from_numpy(row[known].astype(np.int64))[None]
            state.reveal(torch.from_numpy(known)[None], seen_bins)
            logits = state.logits(torch.from_numpy(masked)[None])[0].float()
        target = torch.from_numpy(row[masked].astype(np.int64))
        loss.append(float(functional.cross_entropy(logits, target)))
    return np.mean(loss)


@pytest.mark.parametrize("seen", [0.3, 0.5, 0.8])
def test_expressed_genes_predict_others_before_any_training(seen):
    network, _ = fit(*draw_bins(0.8, 0), layout="expressed")
    bins, codes = draw_bins(0.8, 1)
    loss = loss_of_asked(network, bins, codes, seen)
    without_pairs(network)
    assert loss < loss_of_asked(network, bins, codes, seen) - 0.03


def test_the_prior_is_that_of_masked_genes_of_which_half_are_not_expressed():
    bins, codes = draw_bins(0.0, 0)
    prior = fit(bins, codes, layout="expressed")[0].log_linear.gene_prior.view(N_GENES, 3)
    natural = fit(bins, codes)[0].log_linear.gene_prior.view(N_GENES, 3)
    on_of = [np.exp(torch.logsumexp(table[:, 1:], 1).numpy()) for table in (prior, natural)]
    odds = [
        on / np.exp(table[:, 0].numpy()) for on, table in zip(on_of, (prior, natural), strict=True)
    ]
    ratio = (bins == 0).sum() / (bins > 0).sum()
    np.testing.assert_allclose(odds[0] / odds[1], ratio, rtol=0.01)
