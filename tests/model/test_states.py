"""Latent cell states: found where they were planted, derived from the whole cell, drawn as often as they occur."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from core.encoding.batches import BatchEncoder
from core.encoding.masking import Show
from core.encoding.values import ValueEncoder, ValueTable
from core.errors import ConfigurationError
from core.generation.cell_generator import sample_cells
from core.generation.partial_cells import shown_phenotypes
from core.generation.plan import CellPlan, plan_for
from core.inference.edited_cells import edit_bins
from core.model.batch_tensors import BatchTensors
from core.model.log_linear_fit import find_states, fit_log_linear
from tests.model.examples import make_cell_model, make_network

N_GENES, N_BINS = 12, 4
#: Values of the bins, the same for all genes.
VALUES = np.array([-1.0, 0.0, 1.0, 2.0])


def planted(n_cells=1200, seed=0):
    """Cells of two types, each with two hidden kinds: (bins, codes of type, hidden kind)."""
    rng = np.random.default_rng(seed)
    types, kinds = rng.integers(0, 2, n_cells), (rng.random(n_cells) < 0.3).astype(int)
    centre = np.zeros((n_cells, N_GENES))
    centre[:, :4] += 2.5 * types[:, None]
    # The kinds of type 0 differ in genes 4 to 7, those of type 1 in genes 8 to 11.
    for one, genes in ((0, slice(4, 8)), (1, slice(8, 12))):
        centre[types == one, genes] += 2.5 * kinds[types == one, None]
    level = centre + rng.normal(0, 0.5, centre.shape)
    bins = np.clip(np.rint(level), 0, N_BINS - 1).astype(np.uint8)
    return bins, types.astype(np.int32)[:, None], kinds


def test_states_are_the_kinds_that_were_planted():
    bins, codes, kinds = planted()
    scores = find_states(bins, np.tile(VALUES, (N_GENES, 1)), codes, 4, seed=0)
    assert scores.table.shape == (N_GENES, N_BINS, 4)
    assert adjusted_rand_score(2 * codes[:, 0] + kinds, scores.states(bins)) > 0.95


def test_few_cells_have_one_state_for_each_kind():
    bins, codes, _ = planted(30)
    scores = find_states(bins, np.tile(VALUES, (N_GENES, 1)), codes, 8, seed=0)
    assert len(scores.offset) == 2
    assert adjusted_rand_score(codes[:, 0], scores.states(bins)) > 0.9


def fitted(n_states, seed=0):
    """A log-linear part without gene pairs, fitted to planted cells."""
    bins, codes, kinds = planted(seed=seed)
    model = make_cell_model(
        "binned", n_genes=N_GENES, phenotypes={"cell_type": ["a", "b"]}, layers=0, log_linear=True,
        log_linear_rank=0, cell_states=n_states, randomise=False,
    )  # fmt: skip
    values = ValueEncoder("binned", np.array([0.5, 1.5, 2.5], np.float32))
    table = ValueTable.fit(values, sparse.csr_matrix(bins.astype(np.float32)))
    fit_log_linear(model.network.log_linear, model.config, table, bins, codes, seed=0)
    return model, bins, codes, kinds


@pytest.fixture(scope="module")
def with_states():
    return fitted(4)


def ask(model, bins, codes, mask):
    encoder = BatchEncoder(
        model.config.tokens, ValueEncoder("binned", np.array([0.5, 1.5, 2.5], np.float32)),
        max_length=model.config.longest_sequence,
    )  # fmt: skip
    states = np.full(codes.shape, Show.VALUE, np.int8)
    return BatchTensors.from_arrays(encoder.ranked(bins.astype(np.float32), codes, states, mask))


def test_while_training_half_of_the_cells_show_the_state_of_all_their_genes(with_states):
    model, bins, codes, _ = with_states
    log_linear = model.network.log_linear
    scores = find_states(bins, log_linear.bin_values.numpy(), codes, 4, seed=0)
    some = np.arange(400)
    mask = np.random.default_rng(0).random((400, N_GENES)) < 0.6
    batch = ask(model, bins[some], codes[some], mask)
    torch.manual_seed(0)
    log_linear.train()
    try:
        found = shown_states(log_linear, batch)
    finally:
        log_linear.eval()
    is_shown = ~found[:, 0].bool()
    assert 0.4 < is_shown.float().mean() < 0.6
    wanted = torch.from_numpy(scores.states(bins[some]))
    assert torch.equal(found.argmax(dim=1)[is_shown] - 1, wanted[is_shown])
    assert shown_states(log_linear, batch)[:, 0].all()  # not in evaluation


def shown_states(log_linear, batch):
    """What the class table is multiplied by, but for the phenotypes."""
    kept = []
    whole = log_linear._genes
    log_linear._genes = lambda batch, seen, shown: kept.append(shown) or whole(batch, seen, shown)
    try:
        with torch.no_grad():
            log_linear(batch)
    finally:
        del log_linear._genes
    return kept[0][:, log_linear.n_phenotypes_shown :]


def correlation_within(cells, codes, genes):
    """Mean correlation between some genes of the cells of a type."""
    matrix = np.corrcoef(cells[codes[:, 0] == 0][:, genes].T)
    return matrix[np.triu_indices(len(genes), 1)].mean()


def test_cells_are_drawn_in_states_and_so_their_genes_vary_together(with_states):
    genes = np.arange(4, 8)
    found = {}
    for name, (model, _, codes, kinds) in (("with", with_states), ("without", fitted(0))):
        with torch.no_grad():  # a state shown counts fully until the last gene
            model.network.log_linear.class_scale[-1].bias.fill_(20.0)
        wanted = codes[:600]
        plan = CellPlan.draw(3, range(600), plan_for(model, model.generate), needs_normal=False)
        cells = sample_cells(model, wanted, model.generate, plan)
        found[name] = correlation_within(cells, wanted, genes)
        if name == "with":
            fraction = (cells[wanted[:, 0] == 0][:, genes].mean(axis=1) > 1.25).mean()
            assert fraction == pytest.approx(kinds[codes[:, 0] == 0].mean(), abs=0.06)
    real = correlation_within(with_states[1], with_states[2], genes)
    assert real > 0.7
    assert found["with"] > 0.8 * real
    assert abs(found["without"]) < 0.1


def test_states_fit_how_many_genes_a_cell_is_to_express(with_states):
    model, bins, codes, kinds = with_states
    log_linear = model.network.log_linear
    states = find_states(bins, log_linear.bin_values.numpy(), codes, 4, seed=0).states(bins)
    own = codes[:, 0] == 0
    n_on = (bins > 0).sum(axis=1)
    rich = np.bincount(states[own & (kinds == 1)]).argmax()
    assert n_on[own & (kinds == 1)].mean() > n_on[own & (kinds == 0)].mean() + 3
    chance = torch.linspace(0.01, 0.99, 50)
    shares = []
    for wanted in (n_on[own & (kinds == 0)].mean(), n_on[own & (kinds == 1)].mean()):
        shown = shown_phenotypes(
            model, np.zeros((50, 1), np.int32), torch.device("cpu"), uniform=chance,
            n_expressed=torch.full((50,), float(wanted)),
        )  # fmt: skip
        states_of = shown[:, log_linear.n_phenotypes_shown + 1 :].argmax(dim=1)
        shares.append((states_of == rich).float().mean().item())
    assert shares[0] < 0.3 < 0.7 < shares[1]


def test_real_cells_that_are_edited_are_given_none(with_states, monkeypatch):
    model, bins, codes, _ = with_states
    monkeypatch.setattr(model.network.log_linear, "draw_states", None)
    edited = edit_bins(
        model, bins[:50], codes[:50], 1 - codes[:50], settings=model.generate, seed=0
    )
    changed = (edited != bins[:50]).mean(axis=0)
    assert changed[:4].min() > 0.3  # what separates the types


def test_cells_of_the_expressed_layout_have_none():
    with pytest.raises(ConfigurationError, match=r"model\.cell_states derives"):
        make_network(layout="expressed", log_linear=True, cell_states=3)
