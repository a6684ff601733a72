"""The log-linear part's running answer is the network's own, whatever was revealed and hidden before."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.encoding.masking import Show
from core.encoding.tokens import MASK
from core.generation.encoder_input import ExpressedInput
from core.generation.log_linear_state import LogLinearState, mask_rate
from core.generation.partial_cells import shown_phenotypes
from core.model.batch_tensors import BatchTensors
from tests.model.examples import N_GENES, make_cell_model


def network_logits(model, bins, codes, is_hidden):
    """(B, hidden genes, O) of the whole network, which is a log-linear part alone."""
    states = np.where(codes < 0, Show.NOT_SPECIFIED, Show.VALUE).astype(np.int8)
    values = np.array([0.1, 1, 2, 3], np.float32)[bins]
    arrays = model.batches.ranked(values, codes, states, is_hidden)
    with torch.inference_mode():
        logits = model.network(BatchTensors.from_arrays(arrays)).gene_logits
    return logits.view(len(bins), is_hidden[0].sum(), -1)


@pytest.mark.parametrize("kind", ["binned", "binary"])
@settings(max_examples=20)
@given(data=st.data())
def test_the_state_answers_as_the_network_does(kind, data):
    rank = data.draw(st.sampled_from([0, 5]))  # 0: class log-odds alone
    model = make_cell_model(kind, layers=0, log_linear=True, log_linear_rank=rank)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    n_cells = data.draw(st.integers(1, 4))
    codes = np.stack(
        [rng.integers(-1, size, n_cells) for size in model.config.phenotype_sizes], 1
    ).astype(np.int32)
    bins = rng.integers(0, 2 if kind == "binary" else 4, (n_cells, N_GENES))
    with torch.inference_mode():
        state = LogLinearState(
            model.network.log_linear, shown_phenotypes(model, codes, torch.device("cpu"))
        )
        order = np.stack([rng.permutation(N_GENES) for _ in range(n_cells)])
        known = 0
        for _ in range(data.draw(st.integers(1, 5))):
            upto = data.draw(st.integers(0, N_GENES))
            genes = torch.from_numpy(order[:, min(known, upto) : max(known, upto)])
            at = torch.from_numpy(bins).gather(1, genes)
            state.reveal(genes, at, sign=1 if upto > known else -1)
            known = upto
        is_hidden = np.ones(bins.shape, bool)
        np.put_along_axis(is_hidden, order[:, :known], values=False, axis=1)
        if known == N_GENES:
            return
        hidden = torch.from_numpy(np.nonzero(is_hidden)[1].reshape(n_cells, -1))
        found = state.logits(hidden)
        panel = torch.cat(list(state.panel_logits()), dim=1)
    of_panel = panel.gather(1, hidden.unsqueeze(-1).expand(-1, -1, panel.shape[-1]))
    torch.testing.assert_close(of_panel, found.float(), rtol=1e-4, atol=1e-4)
    expected = network_logits(model, bins, codes, is_hidden)
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)


def test_a_log_linear_without_phenotypes_has_a_state_too():
    model = make_cell_model(phenotypes={}, layers=0, log_linear=True)
    codes = np.zeros((2, 0), np.int32)
    is_hidden = np.ones((2, N_GENES), bool)
    with torch.inference_mode():
        state = LogLinearState(
            model.network.log_linear, shown_phenotypes(model, codes, torch.device("cpu"))
        )
        found = state.logits(torch.arange(N_GENES).expand(2, -1))
    expected = network_logits(model, np.zeros((2, N_GENES), int), codes, is_hidden)
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(data=st.data())
def test_in_the_expressed_layout_it_answers_as_the_network_does(data):
    rank = data.draw(st.sampled_from([0, 5]))
    model = make_cell_model(layout="expressed", layers=0, log_linear=True, log_linear_rank=rank)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    n_cells = data.draw(st.integers(1, 4))
    codes = np.stack(
        [rng.integers(-1, size, n_cells) for size in model.config.phenotype_sizes], 1
    ).astype(np.int32)
    bins = torch.from_numpy(rng.integers(0, 4, (n_cells, N_GENES)))
    order = torch.from_numpy(np.stack([rng.permutation(N_GENES) for _ in range(n_cells)]))
    n_known = data.draw(st.integers(0, N_GENES - 1))
    known, asked = order[:, :n_known], order[:, n_known:]
    whole = torch.from_numpy(rng.uniform(1, N_GENES, n_cells).astype(np.float32))
    value = torch.full((n_cells, N_GENES), MASK)
    value.scatter_(1, known, bins.gather(1, known) + model.config.tokens.first_bin)
    share = mask_rate((value > model.config.tokens.first_bin).sum(dim=1), whole)
    with torch.inference_mode():
        state = LogLinearState(
            model.network.log_linear, shown_phenotypes(model, codes, torch.device("cpu")),
            n_expressed=whole,
        )  # fmt: skip
        state.reveal(order, bins.gather(1, order))
        state.reveal(asked, bins.gather(1, asked), sign=-1)
        found = state.logits(asked)
        batch = ExpressedInput(model, codes, order, expressed_fraction=0.5).query(
            asked, value, torch.zeros(value.shape), share, with_phenotypes=True
        )
        expected = model.network(batch).gene_logits.view(*asked.shape, -1)
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)
