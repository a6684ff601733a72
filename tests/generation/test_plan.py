"""Which genes are drawn in which step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.generation.plan import CellPlan, plan_steps
from core.presets.schema import GenerateSettings


def plan(n_genes, *, fixed_rate=None, **settings):
    return plan_steps(GenerateSettings(**settings), n_genes, fixed_rate=fixed_rate)


@given(
    n_genes=st.integers(1, 80),
    steps=st.integers(1, 100),
    schedule=st.sampled_from(["linear", "cosine"]),
)
def test_every_gene_is_revealed_once(n_genes, steps, schedule):
    made = plan(n_genes, steps=steps, schedule=schedule)
    assert len(made.sizes) == min(steps, n_genes)
    assert sum(made.sizes) == n_genes
    assert min(made.sizes) >= 1
    cell = CellPlan.draw(3, range(5, 6), made, needs_normal=False).genes[0]
    assert sorted(cell) == list(range(n_genes))


def test_the_linear_schedule_is_even_and_the_cosine_schedule_starts_slowly():
    assert plan(100, steps=5).sizes == (20, 20, 20, 20, 20)
    assert plan(100, steps=5, schedule="cosine").sizes == (5, 14, 22, 28, 31)


@given(n_genes=st.integers(1, 60), rate=st.floats(0.01, 1.0), steps=st.integers(1, 40))
def test_gibbs_sweeps_draw_every_gene_anew_before_any_twice(n_genes, rate, steps):
    made = plan(n_genes, steps=steps, fixed_rate=rate)
    assert len(made.sizes) == steps + 1
    assert max(made.sizes[1:]) <= max(round(rate * n_genes), 1)
    cell = CellPlan.draw(0, range(1), made, needs_normal=False).genes[0]
    assert sorted(cell[:n_genes]) == list(range(n_genes))
    redrawn = np.bincount(cell[n_genes:], minlength=n_genes)
    assert redrawn.max() - redrawn.min() <= 1
    for end, again in zip(made.ends[1:], made.sizes[1:], strict=True):
        assert len(set(cell[end - again : end].tolist())) == again


@pytest.mark.parametrize("fixed_rate", [None, 0.3])
def test_the_chance_of_a_cell_depends_on_the_seed_and_its_number_alone(fixed_rate):
    steps = plan(6, steps=3, fixed_rate=fixed_rate)
    whole, part, other = (
        CellPlan.draw(seed, cells, steps, needs_normal=True)
        for seed, cells in ((1, range(10)), (1, range(4, 7)), (2, range(10)))
    )
    for name in ("genes", "uniform", "normal"):
        np.testing.assert_array_equal(getattr(whole, name)[4:7], getattr(part, name))
        assert (getattr(whole, name) != getattr(other, name)).any()


def test_no_two_cells_share_an_order():
    genes = CellPlan.draw(0, range(50), plan(20), needs_normal=False).genes
    assert len({tuple(row) for row in genes.tolist()}) == 50
