"""Cells of the expressed layout: only genes that are on are seen, all genes are asked about."""

import numpy as np
import pytest
import torch

from core.encoding.tokens import MASK
from core.errors import ConfigurationError
from core.generation.cell_generator import check_can_generate, sample_cells
from core.generation.encoder_input import ExpressedInput
from core.generation.plan import CellPlan, plan_for
from core.presets.schema import GenerateSettings
from tests.model.examples import N_GENES, make_cell_model

from .examples import MARGINALS, set_pairs, with_reference

#: Log-odds of being on, among masked genes of training, half of which are off.
ON_LOG_ODDS = np.array([2.0, -1.0, 0.0, 1.0, -2.0, 0.5, -0.5])


def expressed_model(kind="binned", **changes):
    return with_reference(make_cell_model(kind, layout="expressed", **changes))


def biased_model():
    """Make a model that knows of each gene how often it is on, and that its bins are alike."""
    model = expressed_model(layers=1, randomise=False)
    part = model.network.encoder_part
    with torch.no_grad():
        part.gene_output.weight.zero_()
        part.gene_output.bias.zero_()
        part.gene_bias.weight.zero_()
        part.gene_bias.weight[:, 0] = torch.from_numpy(np.log(3) - ON_LOG_ODDS).float()
    return model


def sample(model, *, n_cells=20, first=0, wanted=None, **settings):
    chosen = GenerateSettings(**{"steps": 3} | settings)
    plan = CellPlan.draw(
        0,
        range(first, first + n_cells),
        plan_for(model, chosen),
        needs_normal=model.config.kind == "continuous",
    )
    codes = np.zeros((n_cells, 2), np.int32)
    genes = None if wanted is None else np.full(n_cells, wanted, np.float32)
    return sample_cells(model, codes, chosen, plan, genes_per_cell=genes)


def known_model(marginals=MARGINALS):
    """Make a log-linear part that knows of each gene how often every bin is asked for in training."""
    model = expressed_model(layers=0, log_linear=True, log_linear_rank=4, randomise=False)
    with torch.no_grad():
        log = np.log(marginals)
        model.network.log_linear.gene_prior.copy_(torch.from_numpy(log.reshape(-1)).float())
    return model


def watch(model):
    batches = []
    model.network.encoder_part.register_forward_pre_hook(
        lambda encoder, args: batches.append(args[0])
    )
    return batches


def test_every_gene_is_asked_once_beside_those_that_are_on_so_far():
    model = expressed_model()
    batches = watch(model)
    drawn = sample(model, n_cells=4, steps=3)
    first_gene, first_bin = model.config.tokens.first_gene, model.config.tokens.first_bin
    asked = np.zeros((4, N_GENES), int)
    for batch in batches:
        for cell in range(4):
            at = slice(int(batch.token_bounds[cell]), int(batch.token_bounds[cell + 1]))
            genes, values = batch.token_id[at].numpy() - first_gene, batch.value[at].numpy()
            known = (genes >= 0) & (values != MASK)
            hidden = (genes >= 0) & (values == MASK)
            seen = {int(gene) for gene in genes[known]}
            assert seen == set(np.flatnonzero((asked[cell] > 0) & (drawn[cell] > 0)))
            assert (values[known] > first_bin).all()  # never a gene that is off
            asked[cell, genes[hidden]] += 1
    np.testing.assert_array_equal(asked, 1)


@pytest.mark.parametrize("kind", ["binned", "binary", "continuous"])
@pytest.mark.parametrize("settings", [{}, {"guidance": 1.0}, {"steps": 7}])
def test_a_cell_is_the_same_alone_and_among_others(kind, settings):
    model = expressed_model(kind, log_linear=kind != "continuous")
    if "guidance" in settings:
        settings = settings | {"guidance_ramp": "none"}
    together = sample(model, n_cells=6, **settings)
    alone = np.concatenate([sample(model, n_cells=1, first=cell, **settings) for cell in range(6)])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)
    assert (together >= 0).all()
    assert (together > 0).any()


@pytest.mark.parametrize("wanted", [2.0, 3.5, 5.0])
def test_as_many_genes_are_on_as_wanted_whatever_share_was_off_in_training(wanted):
    model = biased_model()
    drawn = sample(model, n_cells=2000, wanted=wanted, steps=1)
    assert (drawn > 0).sum(axis=1).mean() == pytest.approx(wanted, abs=0.25)
    odds = ON_LOG_ODDS + np.log(wanted / (N_GENES - wanted))
    found = (drawn > 0).mean(axis=0)
    assert np.corrcoef(found, 1 / (1 + np.exp(-odds)))[0, 1] > 0.98
    levels = np.bincount(drawn[drawn > 0], minlength=4)[1:]
    np.testing.assert_allclose(levels / levels.sum(), 1 / 3, atol=0.03)


def test_genes_that_are_on_move_the_others_by_their_votes():
    signs = [1, 1, -1, 0, 0, 0, 0]
    model = set_pairs(known_model(np.tile([[0.5, 0.2, 0.2, 0.1]], (N_GENES, 1))), signs)
    found = np.corrcoef((sample(model, n_cells=4000, steps=1) > 0).T)
    assert found[0, 1] > 0.1
    assert found[0, 2] < -0.1
    assert found[1, 2] < -0.1
    assert np.abs(found[3:, :3]).max() < 5 / np.sqrt(4000)


@pytest.mark.parametrize("steps", [1, 7])
def test_depth_is_met_whatever_the_genes_do(steps):
    for model in (known_model(), biased_model()):
        drawn = sample(model, n_cells=2000, wanted=4.0, steps=steps)
        assert (drawn > 0).sum(axis=1).mean() == pytest.approx(4.0, abs=0.3)


def test_without_a_depth_cells_are_as_deep_as_training_cells():
    model = biased_model()
    counts = model.reference.bin_counts
    expected = (counts[:, 1:].sum(axis=1) / counts.sum(axis=1)).sum()
    odds = ON_LOG_ODDS + np.log(expected / (N_GENES - expected))
    found = (sample(model, n_cells=4000, steps=2) > 0).mean(axis=0)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-odds)), atol=0.04)


def test_what_is_asked_at_once_shrinks_with_what_is_hidden():
    model = expressed_model()
    order = torch.arange(N_GENES).expand(1, -1)
    asks = ExpressedInput(model, np.zeros((1, 2), np.int32), order, expressed_fraction=0.25)
    room = model.config.longest_sequence - model.config.tokens.header_length - 1
    assert asks.most_queried(10_000) == room // 2
    assert asks.most_queried(0) == min(8, room // 2)


def test_a_short_sequence_holds_a_part_of_what_is_on():
    model = expressed_model(longest_sequence=9)  # the header, END and four genes
    batches = watch(model)
    drawn = sample(model, wanted=6, steps=2)
    assert max(np.diff(batch.token_bounds).max() for batch in batches) <= 9
    assert drawn.shape == (20, N_GENES)


def test_a_model_that_was_never_asked_about_genes_that_are_off_is_refused():
    model = expressed_model()
    assert check_can_generate(model, GenerateSettings()) == []
    model.masking = model.masking.model_copy(update={"unexpressed": 0.0})
    with pytest.raises(ConfigurationError, match="cannot predict which genes are expressed"):
        check_can_generate(model, GenerateSettings())


def test_a_fixed_mask_rate_is_said_to_cost():
    model = expressed_model()
    model.masking = model.masking.model_copy(update={"genes": 0.15})
    assert "unmasking it gives poor cells" in check_can_generate(model, GenerateSettings())[0]
