"""Cells with a token changed: what must not move does not, what must move does."""

import numpy as np
import pytest

from core.errors import ConfigurationError
from core.inference.edited_cells import check_can_edit, edit_bins
from core.presets.schema import GenerateSettings
from tests.generation.examples import FEMALE, MARGINALS, known_model, set_class_effect, set_pairs
from tests.model.examples import N_GENES, make_cell_model

N_CELLS = 4000
CLOSE = 5 * 0.5 / np.sqrt(N_CELLS)


def cells_of(codes, n_cells=N_CELLS):
    return np.tile(np.array(codes, np.int32), (n_cells, 1))


def marginal_bins(marginals=MARGINALS, n_cells=N_CELLS, seed=1):
    uniform = np.random.default_rng(seed).random((n_cells, N_GENES, 1))
    return (uniform >= marginals.cumsum(axis=1)[:, :-1]).sum(axis=-1)


def edit(model, bins, codes, new_codes, **others):
    settings = GenerateSettings(steps=others.pop("steps", 4))
    return edit_bins(model, bins, codes, new_codes, settings=settings, seed=0, **others)


@pytest.mark.parametrize(
    "changes", [{}, {"log_linear": True}, {"log_linear": True, "layers": 0}, {"library_size": True}]
)
@pytest.mark.parametrize("kind", ["binned", "binary"])
def test_a_cell_that_has_what_is_set_already_comes_out_as_it_went_in(kind, changes):
    model = make_cell_model(kind, **changes)
    rng = np.random.default_rng(0)
    bins = rng.integers(0, model.config.n_bins, (40, N_GENES))
    codes = np.stack([rng.integers(-1, 2, 40), rng.integers(-1, 3, 40)], 1).astype(np.int32)
    sizes = rng.uniform(20_000, 40_000, 40).astype(np.float32)  # at which every bin is possible
    np.testing.assert_array_equal(edit(model, bins, codes, codes, library_size=sizes), bins)


def test_genes_that_the_token_does_not_touch_stay_and_those_it_raises_only_rise():
    model = known_model()
    set_class_effect(model, FEMALE, 0, 2.0)
    bins = marginal_bins()
    new = edit(model, bins, cells_of([1, 0]), cells_of([0, 0]))
    np.testing.assert_array_equal(new[:, 1:], bins[:, 1:])
    assert (new[:, 0] >= bins[:, 0]).all()
    assert (new[:, 0] > bins[:, 0]).any()
    back = edit(model, new, cells_of([0, 0]), cells_of([1, 0]))
    assert (back[:, 0] <= new[:, 0]).all()


def test_changed_cells_are_distributed_as_cells_of_the_set_phenotype():
    model = known_model()
    set_class_effect(model, FEMALE, 0, 2.0)
    new = edit(model, marginal_bins(), cells_of([1, 0]), cells_of([0, 0]), steps=N_GENES)
    # The class table weighs 1 with all hidden and 0.5 with all visible, evenly over the random order.
    expected = np.mean(
        [
            odds / (1 + odds)
            for odds in (0.3 / 0.7) * np.exp(2.0 * (1 - 0.5 * np.arange(N_GENES) / N_GENES))
        ]
    )
    assert (new[:, 0] > 0).mean() == pytest.approx(expected, abs=CLOSE)


def test_a_gene_coupled_to_one_that_rises_follows():
    marginals = np.tile([[0.5, 0.2, 0.2, 0.1]], (N_GENES, 1))
    model = set_pairs(known_model(marginals=marginals), [1, 1, -1, 0, 0, 0, 0])
    set_class_effect(model, FEMALE, 0, 3.0)
    bins = marginal_bins(marginals)
    change = edit(model, bins, cells_of([1, 0]), cells_of([0, 0])) - bins
    assert change[:, 0].mean() > 0.3
    assert change[:, 1].mean() > 0.02
    assert change[:, 2].mean() < -0.02
    np.testing.assert_array_equal(change[:, 3:], 0)


def test_a_cell_comes_out_the_same_alone_and_among_others():
    model = make_cell_model(log_linear=True)
    bins = marginal_bins(n_cells=9)
    together = edit(model, bins, cells_of([1, 0], 9), cells_of([0, 0], 9))
    for cell in range(9):
        row = slice(cell, cell + 1)
        alone = edit(model, bins[row], cells_of([1, 0], 1), cells_of([0, 0], 1), first_cell=cell)
        np.testing.assert_array_equal(alone, together[row])


def test_genes_that_a_file_lacks_stay_hidden_and_off():
    model = make_cell_model(log_linear=True)
    present = np.array([1, 1, 0, 1, 1, 0, 1], bool)
    bins = marginal_bins(n_cells=20)
    other = np.where(present, bins, 3)
    new, same = (
        edit(model, one, cells_of([1, 0], 20), cells_of([0, 0], 20), present=present)
        for one in (bins, other)
    )
    np.testing.assert_array_equal(new, same)
    assert (new[:, ~present] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("binned", "expressed"), "ranked layout"), (("continuous",), "with bins")],
)
def test_models_that_cannot_change_cells_are_refused(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        check_can_edit(make_cell_model(*arguments))
    fixed = make_cell_model()
    fixed.masking = fixed.masking.model_copy(update={"genes": 0.15})
    with pytest.raises(ConfigurationError, match="fixed mask rate"):
        check_can_edit(fixed)
