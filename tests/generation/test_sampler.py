"""Iterative unmasking, held against models whose distribution is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from core.encoding.tokens import MASK
from core.generation.cell_generator import check_can_generate, sample_cells
from core.generation.partial_cells import draw_from_class_marginals
from core.generation.plan import CellPlan, plan_for
from core.presets.schema import GenerateSettings
from tests.model.examples import N_GENES, make_cell_model

from .examples import (
    FEMALE,
    LUNG,
    MARGINALS,
    known_model,
    set_class_effect,
    set_pairs,
    with_reference,
)

N_CELLS = 4000
#: Five standard errors of a frequency over N_CELLS cells.
CLOSE = 5 * 0.5 / np.sqrt(N_CELLS)


def sample(model, *, n_cells=N_CELLS, seed=0, codes=(0, 0), first=0, on_step=None, **settings):
    chosen = GenerateSettings(**settings)
    plan = CellPlan.draw(
        seed, range(first, first + n_cells), plan_for(model, chosen),
        needs_normal=model.config.kind == "continuous",
    )  # fmt: skip
    wanted = np.tile(np.array(codes, dtype=np.int32), (n_cells, 1))
    return sample_cells(model, wanted, chosen, plan, on_step=on_step or (lambda step: None))


def watch(model):
    """Record every batch the encoder is asked about, as it was then."""
    batches = []

    def record(encoder, args):
        batches.append(replace(args[0], value=args[0].value.clone()))

    model.network.encoder_part.register_forward_pre_hook(record)
    return batches


@pytest.mark.parametrize(
    "settings", [{"steps": 3}, {"steps": 7, "guidance": 1.5}, {"steps": 4, "method": "gibbs"}]
)
@pytest.mark.parametrize("kind", ["binned", "binary", "continuous"])
def test_a_cell_is_the_same_alone_and_among_others(kind, settings):
    model = make_cell_model(kind, log_linear=kind != "continuous")
    together = sample(model, n_cells=9, **settings)
    alone = np.concatenate([sample(model, n_cells=1, first=cell, **settings) for cell in range(9)])
    if kind == "continuous":
        np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 100])
def test_every_gene_is_revealed_exactly_once_and_then_left_alone(steps):
    model = make_cell_model()
    batches, heard = watch(model), []
    drawn = sample(model, n_cells=4, steps=steps, on_step=heard.append)
    n_steps = min(steps, N_GENES)
    assert len(batches) == n_steps
    assert heard == list(range(1, n_steps + 1))
    first = model.config.tokens.header_length
    asked = np.zeros((4, N_GENES), dtype=int)
    for batch in batches:
        values = batch.value.view(4, -1)[:, first : first + N_GENES].numpy()
        np.testing.assert_array_equal(values == MASK, asked == 0)
        known = values[asked == 1] - model.config.tokens.first_bin
        np.testing.assert_array_equal(known, drawn[asked == 1])
        assert (batch.value[batch.gene_position] == MASK).all()
        np.testing.assert_allclose(batch.mask_rate, 1 - asked.mean(axis=1), rtol=1e-6)
        np.add.at(asked, (batch.gene_cell.numpy(), batch.gene.numpy()), 1)
    np.testing.assert_array_equal(asked, 1)


def test_phenotypes_are_written_as_asked_and_missing_ones_as_not_specified():
    model = make_cell_model()
    batches = watch(model)
    sample(model, n_cells=2, codes=(1, -1), steps=1)
    tokens = model.config.tokens
    header = batches[0].value.view(2, -1)[:, 1:3]
    assert header.tolist() == [[int(tokens.not_specified[0]) + 2, int(tokens.not_specified[1])]] * 2


def test_dropout_is_off_while_sampling_and_no_global_chance_is_used():
    model = make_cell_model()
    model.network.train()
    before = torch.get_rng_state()
    one, two = sample(model, n_cells=5, steps=7), sample(model, n_cells=5, steps=7)
    np.testing.assert_array_equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("steps", [1, 3, N_GENES])
def test_independent_genes_come_with_their_marginal_frequencies(steps):
    drawn = sample(known_model(), steps=steps)
    found = np.stack([(drawn == number).mean(axis=0) for number in range(4)], axis=1)
    np.testing.assert_allclose(found, MARGINALS, atol=CLOSE)
    correlations = np.corrcoef(drawn.T) - np.eye(N_GENES)
    assert np.abs(correlations).max() < 5 / np.sqrt(N_CELLS)


def test_coupled_genes_correlate_with_the_sign_of_their_coupling():
    signs = [1, 1, -1, 0, 0, 0, 0]
    model = set_pairs(known_model(marginals=np.tile([[0.5, 0.2, 0.2, 0.1]], (N_GENES, 1))), signs)
    found = np.corrcoef((sample(model, steps=N_GENES) > 0).T)
    assert found[0, 1] > 0.2
    assert found[0, 2] < -0.2
    assert found[1, 2] < -0.2
    assert np.abs(found[3:, :3]).max() < 5 / np.sqrt(N_CELLS)


def test_the_log_linear_sees_every_gene_that_was_drawn_within_a_step_too():
    model = set_pairs(known_model(), [1, 1, -1, 0, 0, 0, 0])
    by_step, within = sample(model, steps=N_GENES), sample(model, steps=1)
    np.testing.assert_array_equal(by_step, within)


def test_genes_that_are_revealed_together_do_not_see_each_other():
    model = set_pairs(known_model(), [1, 1, -1, 0, 0, 0, 0])
    found = np.corrcoef((sample(model, steps=1, gene_steps=1) > 0).T) - np.eye(N_GENES)
    assert np.abs(found).max() < 5 / np.sqrt(N_CELLS)


def test_a_low_temperature_gives_the_most_likely_bins():
    drawn = sample(known_model(), n_cells=50, steps=3, temperature=0.01)
    np.testing.assert_array_equal(drawn, np.tile(MARGINALS.argmax(axis=1), (50, 1)))


def test_a_high_temperature_flattens():
    drawn = sample(known_model(), steps=1, temperature=1000.0)
    for number in range(4):
        np.testing.assert_allclose((drawn == number).mean(axis=0), 0.25, atol=CLOSE)


def odds_of_on(effect):
    """Probability that gene 0 is on if its expressed bins are raised by ``effect``."""
    on = MARGINALS[0, 1:].sum() * np.exp(effect)
    return on / (on + MARGINALS[0, 0])


@pytest.mark.parametrize("guidance", [0.0, 0.5, 2.0])
def test_guidance_multiplies_the_effect_of_the_condition(guidance):
    model = known_model()
    set_class_effect(model, FEMALE, 0, 0.5)
    set_class_effect(model, LUNG, 1, 0.0)
    settings = {"steps": 1, "gene_steps": 1, "guidance": guidance, "guidance_ramp": "none"}
    female = (sample(model, **settings)[:, 0] > 0).mean()
    male = (sample(model, codes=(1, 0), **settings)[:, 0] > 0).mean()
    assert female == pytest.approx(odds_of_on(0.5 * (1 + guidance)), abs=CLOSE)
    assert male == pytest.approx(odds_of_on(0.0), abs=CLOSE)


def test_late_guidance_grows_with_the_genes_revealed():
    model = known_model()
    for gene in range(N_GENES):
        set_class_effect(model, FEMALE, gene, 0.5)
    chosen = GenerateSettings(steps=1, guidance=2.0)
    plan = CellPlan.draw(0, range(N_CELLS), plan_for(model, chosen), needs_normal=False)
    drawn = sample_cells(model, np.zeros((N_CELLS, 2), np.int32), chosen, plan)
    on = (drawn > 0)[np.arange(N_CELLS)[:, None], plan.genes]  # in the order they were drawn
    marginal = 1 - MARGINALS[plan.genes, 0]
    odds = marginal / (1 - marginal)
    for place in range(N_GENES):
        revealed = place / N_GENES
        weight = 1 - 0.5 * revealed  # of the class table: the genes shown tell more and more
        raised = odds[:, place] * np.exp(0.5 * weight * (1 + 2.0 * revealed))
        expected = (raised / (1 + raised)).mean()
        assert on[:, place].mean() == pytest.approx(expected, abs=CLOSE)


def test_hardly_any_guidance_is_no_guidance():
    model = make_cell_model()
    plain = sample(model, n_cells=20, steps=7)
    np.testing.assert_array_equal(sample(model, n_cells=20, steps=7, guidance=1e-12), plain)
    plain = sample(model, steps=7)
    assert (sample(model, steps=7, guidance=5.0) != plain).any()


def test_no_guidance_asks_once_per_step_and_guidance_twice():
    model = make_cell_model()
    batches = watch(model)
    sample(model, n_cells=2, steps=3)
    assert len(batches) == 3
    sample(model, n_cells=2, steps=3, guidance=1.0)
    assert len(batches) == 9
    conditional, free = batches[3:5]
    assert (free.value.view(2, -1)[:, 1:3] == MASK).all()
    assert (conditional.value.view(2, -1)[:, 1:3] != MASK).all()
    conditional, free = batches[5:7]  # both branches see the genes drawn so far
    assert torch.equal(conditional.value.view(2, -1)[:, 3:], free.value.view(2, -1)[:, 3:])


def test_a_binary_model_draws_zeros_and_ones_of_known_frequency():
    drawn = sample(known_model("binary"), steps=3)
    assert set(np.unique(drawn)) == {0, 1}
    np.testing.assert_allclose(drawn.mean(axis=0), 1 - MARGINALS[:, 0], atol=CLOSE)


def test_a_joint_head_never_draws_a_phenotype_as_a_bin():
    drawn = sample(make_cell_model(head="joint"), n_cells=200, steps=3)
    assert ((drawn >= 0) & (drawn < 4)).all()


def test_a_continuous_model_draws_values_at_least_zero_of_known_mean():
    model = make_cell_model("continuous", layers=1)
    part = model.network.encoder_part
    with torch.no_grad():
        part.gene_output.weight.zero_()
        part.gene_output.bias.zero_()
        # on with probability 0.7; log1p values of mean 2 and standard deviation 0.3 where on
        part.gene_bias.weight.copy_(torch.tensor([np.log(0.7 / 0.3), 2.0, np.log(0.3)]).float())
    drawn = sample(model, steps=4)
    assert drawn.dtype == np.float32
    assert drawn.min() == 0
    on = drawn > 0
    np.testing.assert_allclose(on.mean(axis=0), 0.7, atol=CLOSE)
    for gene in range(N_GENES):
        assert drawn[on[:, gene], gene].mean() == pytest.approx(2.0, abs=0.04)
        assert drawn[on[:, gene], gene].std() == pytest.approx(0.3, abs=0.03)


def test_a_continuous_value_below_the_threshold_is_not_expressed():
    model = make_cell_model("continuous")
    drawn = sample(model, n_cells=300, steps=4)
    threshold = float(model.values.edges[0])
    assert ((drawn == 0) | (drawn >= threshold)).all()
    assert (drawn >= threshold).any()


def fixed_rate(model, rate=0.3):
    model.masking = model.masking.model_copy(update={"genes": rate})
    return model


def test_a_model_of_a_fixed_mask_rate_can_generate_with_a_sentence_on_what_it_costs():
    model = make_cell_model()
    assert check_can_generate(model, GenerateSettings()) == []
    (note,) = check_can_generate(fixed_rate(model), GenerateSettings())
    assert "fixed mask rate (0.3)" in note
    assert "Gibbs sweeps" in note
    assert "masking.genes = 'uniform'" in note
    (note,) = check_can_generate(model, GenerateSettings(method="unmask"))
    assert "unmasking it gives poor cells" in note


def test_gibbs_sweeps_hide_no_more_than_the_model_was_trained_on():
    model = fixed_rate(make_cell_model(), 0.3)  # 2 of 7 genes
    batches, heard = watch(model), []
    sample(model, n_cells=5, steps=8, on_step=heard.append)
    assert len(batches) == 8  # the start is drawn from marginals, without the encoder
    assert heard == list(range(1, 10))
    first = model.config.tokens.header_length
    asked = np.zeros((5, N_GENES), dtype=int)
    for batch in batches:
        is_hidden = (batch.value.view(5, -1)[:, first : first + N_GENES] == MASK).numpy()
        assert set(is_hidden.sum(axis=1)) <= {1, 2}
        assert set(zip(batch.gene_cell.tolist(), batch.gene.tolist(), strict=True)) == set(
            zip(*(where.tolist() for where in is_hidden.nonzero()), strict=True)
        )
        np.add.at(asked, (batch.gene_cell.numpy(), batch.gene.numpy()), 1)
    np.testing.assert_array_equal(asked, 2)  # two sweeps of four steps


def test_gibbs_sweeps_leave_independent_genes_at_their_marginals():
    drawn = sample(known_model(), method="gibbs", steps=20)
    found = np.stack([(drawn == number).mean(axis=0) for number in range(4)], axis=1)
    np.testing.assert_allclose(found, MARGINALS, atol=CLOSE)


def test_gibbs_sweeps_couple_genes_that_started_independent():
    marginals = np.tile([[0.5, 0.2, 0.2, 0.1]], (N_GENES, 1))
    model = fixed_rate(set_pairs(known_model(marginals=marginals), [1, 1, -1, 0, 0, 0, 0]))
    found = np.corrcoef((sample(model, steps=20) > 0).T)
    assert found[0, 1] > 0.2
    assert found[0, 2] < -0.2


@pytest.mark.parametrize("kind", ["binned", "binary", "continuous"])
def test_gibbs_sweeps_start_at_the_class_that_says_most(kind):
    """The tissue value liver has four training cells, the sex hundreds: liver speaks."""
    model = with_reference(make_cell_model(kind))
    old = model.reference
    detection = np.full((5, N_GENES), 0.9, np.float32)
    detection[4] = [1, 0, 0.5, 1, 0, 0.5, 1]
    counts = np.full((N_GENES, old.bin_counts.shape[1]), 10)
    model.reference = replace(
        old, detection=detection, means=2 * detection, bin_counts=counts,
        counts=np.array([600, 200, 150, 4000, 50]),
        combinations=np.array([[0, 0], [0, 1], [1, 1], [1, 2], [1, 0]], np.int32),
    )  # fmt: skip
    codes = np.tile(np.array([[-1, 2]], np.int32), (N_CELLS, 1))
    uniform = np.random.default_rng(0).random((N_CELLS, N_GENES), dtype=np.float32)
    drawn = draw_from_class_marginals(model, codes, uniform)
    np.testing.assert_allclose((drawn > 0).mean(axis=0), detection[4], atol=CLOSE)
    if kind == "binned":
        on = drawn[drawn > 0]
        np.testing.assert_allclose(np.bincount(on, minlength=4)[1:] / len(on), 1 / 3, atol=0.02)
    if kind == "continuous":
        assert set(np.unique(drawn[:, detection[4] > 0])) <= {0, 2}
    few = np.tile(np.array([[0, 1]], np.int32), (N_CELLS, 1))  # blood: 350 cells, female: 800
    np.testing.assert_allclose(
        (draw_from_class_marginals(model, few, uniform) > 0).mean(axis=0), 0.9, atol=CLOSE
    )
