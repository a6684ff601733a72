"""Where the skeleton's gene pairs begin: at the factor model of the correlations within classes."""

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn import functional

from core.encoding.batches import BatchEncoder
from core.encoding.masking import Show
from core.encoding.values import ValueEncoder, ValueTable
from core.model.batch_tensors import BatchTensors
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.model.skeleton_fit import fit_skeleton

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


def fit(bins, codes):
    config = TfxConfig(
        phenotype_names=["cell_type"], phenotype_values=[["a", "b"]], n_genes=N_GENES, n_bins=3,
        kind="binned", hidden_size=8, heads=2, skeleton=True, layers=0, intermediate_size=16,
        longest_sequence=N_GENES + 5, skeleton_rank=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TfxModel(config)
        network.start()
    values = ValueEncoder("binned", EDGES)
    table = ValueTable.fit(values, sparse.csr_matrix(bins.astype(np.float32)))
    fit_skeleton(network.skeleton, config, table, bins, codes, seed=0)
    return network.eval(), BatchEncoder(config.tokens, values, max_length=N_GENES + 5)


def loss_of_hidden(network, encoder, bins, codes, share):
    """Mean negative log-likelihood of genes hidden at a rate, class shown, in nats."""
    rng = np.random.default_rng(3)
    hidden = rng.random(bins.shape) < share
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
    effects = network.skeleton.effects.weight
    kept = effects.detach().clone()
    with torch.no_grad():
        effects.zero_()
    return kept


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_visible_genes_tell_hidden_ones_before_any_training(dependent, share):
    network, encoder = dependent
    cells = draw_bins(0.8, 1)
    loss = loss_of_hidden(network, encoder, *cells, share)
    kept = without_pairs(network)
    classes_alone = loss_of_hidden(network, encoder, *cells, share)
    with torch.no_grad():
        network.skeleton.effects.weight.copy_(kept)
    assert loss < classes_alone - 0.05


def test_with_all_genes_hidden_it_is_the_class_log_odds(dependent):
    network, encoder = dependent
    cells = draw_bins(0.8, 1)
    loss = loss_of_hidden(network, encoder, *cells, 1.0)
    kept = without_pairs(network)
    assert loss_of_hidden(network, encoder, *cells, 1.0) == pytest.approx(loss, abs=1e-6)
    with torch.no_grad():
        network.skeleton.effects.weight.copy_(kept)


def test_genes_without_dependence_begin_without_pairs():
    network, _ = fit(*draw_bins(0.0, 0))
    assert not network.skeleton.effects.weight.any()
