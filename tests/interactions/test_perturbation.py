"""What perturbed cells keep and what follows, the tests over donors and beside matched genes, and refusals."""

import numpy as np
import pytest
from scipy import stats

from core.errors import ConfigurationError, DataError
from core.interactions.effects import bins_of
from core.interactions.perturbation import (
    Change,
    PerturbRequest,
    check_model,
    genes_to_set,
    perturb,
    sample_cells,
)
from core.interactions.responses import donor_p_values, perturb_cells
from core.interactions.screen import screen_genes
from tests.generation.examples import known_model, set_pairs
from tests.interactions.examples import make_cells
from tests.model.examples import N_GENES, make_cell_model

EVEN = np.tile([[0.4, 0.2, 0.2, 0.2]], (N_GENES, 1))


def cells_of(n_cells=400, seed=0, **others):
    rng = np.random.default_rng(seed)
    return make_cells(rng.choice([0.0, 1.0, 2.0, 3.0], (n_cells, N_GENES)), **others)


def run(model, cells, n_cells=400, **change):
    return perturb_cells(
        model, lambda where: cells, PerturbRequest(Change(**change), n_cells=n_cells)
    )


def coupled():
    return set_pairs(known_model(marginals=EVEN), [1, 1, -1, 0, 0, 0, 0])


def test_coupled_genes_follow_with_their_signs_and_the_others_do_not_move():
    found = run(coupled(), cells_of(), knock_out=["GENE0"])
    assert (found.changed.after[:, 0] == 0).all()
    assert found.shift[1] < -0.1
    assert found.shift[2] > 0.1
    np.testing.assert_array_equal(found.changed.after[:, 3:], found.changed.before[:, 3:])
    assert np.isnan(found.q[0])
    assert np.nanmax(found.p_donors[1:3]) < 0.05
    assert (found.p_donors[3:] == 1).all()
    raised = run(coupled(), cells_of(), over_express=["GENE0"])
    assert raised.shift[1] > 0 > raised.shift[2]


def test_doses_are_ordered_and_several_genes_are_set_at_once():
    model, cells = coupled(), cells_of()
    at = np.arange(100)
    bins = [np.full((100, 1), dose) for dose in range(4)]
    means = [
        perturb(model, cells, at, np.zeros((100, 1), int), dose).after[:, 1].mean() for dose in bins
    ]
    assert means[0] < means[1]
    both = run(model, cells, knock_out=["GENE0"], set_gene={"GENE3": 2})
    np.testing.assert_array_equal(bins_of(model, cells.take(both.at))[:, 3].shape, (400,))
    after = model.values.encode(both.after.toarray())
    assert (after[:, 0] == 0).all()
    assert (after[:, 3] == 2).all()
    assert both.wanted.label == "GENE0+GENE3"


@pytest.mark.parametrize("kind", ["binned", "binary"])
def test_a_cell_that_has_the_set_value_stays_and_cells_do_not_depend_on_others(kind):
    model = make_cell_model(kind, log_linear=True)
    cells = cells_of(60)
    own = bins_of(model, cells).astype(np.int64)
    at = np.arange(60)
    same = perturb(model, cells, at, np.full((60, 1), 2), own[:, [2]])
    np.testing.assert_array_equal(same.after, same.before)
    every = perturb(model, cells, at, np.full((60, 1), 2), np.zeros((60, 1), int))
    some = perturb(model, cells, at[7:9], np.full((2, 1), 2), np.zeros((2, 1), int))
    np.testing.assert_array_equal(
        model.values.encode(some.after), model.values.encode(every.after[7:9])
    )


def test_p_over_donors_is_that_of_a_t_test_of_donor_means_however_many_cells_a_donor_has():
    rng = np.random.default_rng(0)
    donors = np.repeat([0, 1, 2, 3, 4], [5, 50, 20, 8, 2])
    values = rng.normal(0.3, 1, (len(donors), 3))
    means = np.stack([values[donors == one].mean(axis=0) for one in range(4)])  # 2 cells are few
    expected = stats.ttest_1samp(means, 0.1, axis=0).pvalue
    np.testing.assert_allclose(donor_p_values(values, donors, np.full(3, 0.1)), expected)
    assert np.isnan(donor_p_values(values, np.zeros(len(donors), int), np.zeros(3))).all()


def test_without_donors_q_is_of_the_matched_null_and_a_note_says_so():
    found = run(coupled(), cells_of(donors=np.full(400, -1)), knock_out=["GENE0"])
    assert np.isnan(found.p_donors).all()
    assert np.isfinite(found.q[1])
    assert "donors of the cells are not known" in found.notes[0]


def test_sampled_cells_are_spread_over_donors():
    cells = make_cells(np.ones((100, N_GENES)), donors=np.repeat([0, 1, 2], [90, 8, 2]))
    chosen = cells.donors[sample_cells(cells, np.arange(100), 12, 0)]
    assert np.bincount(chosen).tolist() == [5, 5, 2]


def test_a_screen_finds_no_effect_where_the_phenotype_does_not_depend_on_genes():
    found = screen_genes(
        known_model(), lambda where: cells_of(), ("sex", "Female"), PerturbRequest(Change())
    )
    assert found.value == "female"
    assert np.allclose(found.shift, 0, atol=1e-6)
    assert found.n_found == 0


def test_what_cannot_be_set_is_refused_in_one_sentence():
    model, cells = known_model(), make_cells(np.tile([0.0, 1, 2, 3, 1, 1, 1], (50, 1)))
    for change, error, words in (
        ({"knock_out": ["GENE0"]}, DataError, "GENE0 is not expressed in any of 50 cells"),
        ({"knock_out": ["GENE9"]}, ConfigurationError, "does not know the gene 'GENE9'"),
        ({"set_gene": {"GENE1": 4}}, ConfigurationError, "are 0 .not expressed. to 3"),
        ({"set_gene": {"GENE3": 3}}, DataError, "has bin 3 already in all but 0 of 50 cells"),
        ({}, ConfigurationError, "name what to change"),
    ):
        with pytest.raises(error, match=words):
            genes_to_set(model, None, Change(**change), cells)
    for wrong in (make_cell_model("continuous"), make_cell_model("binned", "expressed")):
        with pytest.raises(ConfigurationError, match="ranked"):
            check_model(wrong)
