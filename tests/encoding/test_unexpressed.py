"""Unexpressed genes: never expressed, never twice, every one as likely as the next."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from core.encoding.batches import Lookup, draw_unexpressed
from core.encoding.panel_cells import PanelCells


def draw(dense, wanted, seed=0):
    cells = PanelCells.of(sparse.csr_matrix(dense.astype(np.float32)))
    lookup = Lookup(cells.n_columns + 1)
    rng = np.random.default_rng(seed)
    genes, n_drawn = draw_unexpressed(cells, np.asarray(wanted), lookup, rng)
    return np.split(genes, np.cumsum(n_drawn)[:-1])


@given(st.integers(0, 1000), st.floats(0, 1), st.integers(1, 40), st.integers(1, 300))
def test_as_many_as_wanted_or_as_there_are_all_distinct_and_unexpressed(
    seed, fraction, n_cells, n_genes
):
    rng = np.random.default_rng(seed)
    dense = rng.random((n_cells, n_genes)) < fraction
    wanted = rng.integers(0, n_genes + 1, n_cells)
    for cell, genes in enumerate(draw(dense, wanted, seed)):
        assert len(set(genes.tolist())) == len(genes)
        assert not dense[cell, genes].any()
        assert len(genes) == min(wanted[cell], (~dense[cell]).sum())


@pytest.mark.parametrize(
    ("n_genes", "n_expressed", "wanted"),
    [
        pytest.param(60, 6, 5, id="many are free"),
        pytest.param(60, 48, 6, id="half of the free ones"),
        pytest.param(20, 17, 2, id="listed"),
    ],
)
def test_every_unexpressed_gene_is_as_likely_as_the_next(n_genes, n_expressed, wanted):
    dense = np.zeros((4000, n_genes), dtype=bool)
    dense[:, 3 : 3 + n_expressed] = True
    genes = np.concatenate(draw(dense, np.full(4000, wanted)))
    counts = np.bincount(genes, minlength=n_genes)
    n_free = n_genes - n_expressed
    expected = 4000 * wanted / n_free
    assert counts[3 : 3 + n_expressed].sum() == 0
    free = np.delete(counts, np.arange(3, 3 + n_expressed))
    np.testing.assert_allclose(free, expected, atol=5 * np.sqrt(expected))
