"""The short fidelity report against hand-written cases, plain numpy and known generators."""

import json
import math

import numpy as np
import pytest
from scipy import sparse

from core.cells.genes import GenePanel
from core.errors import DataError
from core.evaluation.fidelity.measures import compare_cells


def panel(n_genes):
    names = tuple(f"G{index}" for index in range(n_genes))
    return GenePanel(names, tuple(f"S{index}" for index in range(n_genes)))


def correlated_cells(n_cells, seed, *, n_genes=12):
    """Genes driven in two opposed groups by one hidden activity."""
    rng = np.random.default_rng(seed)
    activity = rng.standard_normal((n_cells, 1))
    sign = np.where(np.arange(n_genes) % 2, 1.0, -1.0)
    level = np.linspace(-0.4, 0.4, n_genes)
    values = np.maximum(level + activity * sign + 0.6 * rng.standard_normal((n_cells, n_genes)), 0)
    return sparse.csr_matrix(values)


def test_hand_written_case():
    real = sparse.csr_matrix([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    generated = sparse.csr_matrix([[2.0, 1.0, 0.0], [2.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    summary = compare_cells(real, generated, panel(3))
    assert (summary.n_real, summary.n_generated, summary.n_genes) == (2, 3, 3)
    assert summary.gene_mean_r == pytest.approx(np.corrcoef([2, 0, 1], [2, 1 / 3, 0])[0, 1])
    assert summary.detection_mae == pytest.approx((0 + 1 / 3 + 1 / 2) / 3)
    assert summary.genes_per_cell_real_mean == 1.5
    assert summary.genes_per_cell_real_sd == 0.5
    assert summary.genes_per_cell_generated_mean == pytest.approx(4 / 3)
    assert math.isnan(summary.correlation_r)
    assert [one.gene for one in summary.top_genes] == ["S0", "S2", "S1"]
    assert summary.furthest_genes[0].gene == "S2"
    assert summary.furthest_genes[0].difference == -1.0


def test_correlation_agreement_equals_plain_numpy():
    real, generated = correlated_cells(200, 0), correlated_cells(150, 1)
    summary = compare_cells(real, generated, panel(12))
    upper = np.triu_indices(12, 1)
    first, second = (np.corrcoef(x.toarray().T)[upper] for x in (real, generated))
    assert summary.n_correlation_genes == 12
    assert summary.correlation_r == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert summary.correlation_slope == pytest.approx((first * second).sum() / (first**2).sum())


def test_genes_on_in_nearly_all_cells_and_constant_genes_are_left_out_of_correlations():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(100, 8)) * (rng.random((100, 8)) < 0.5)
    values[:, 0] = 1.0 + rng.random(100)
    values[:, 1] = 0.0
    cells = sparse.csr_matrix(values)
    assert compare_cells(cells, cells, panel(8)).n_correlation_genes == 6


def test_collapsed_cells_are_seen():
    real = correlated_cells(300, 0)
    summary = compare_cells(real, sparse.csr_matrix(real.shape), panel(12))
    assert summary.genes_per_cell_generated_mean == 0.0
    assert math.isnan(summary.gene_mean_r)
    assert math.isnan(summary.correlation_r)
    assert json.loads(json.dumps(summary.to_dict(), allow_nan=False))["gene_mean_r"] is None


def test_explicit_zeros_count_as_not_detected():
    cells = sparse.csr_matrix([[1.0, 1.0], [1.0, 1.0]])
    cells.data[0] = 0.0
    assert compare_cells(cells, cells, panel(2)).genes_per_cell_real_mean == 1.5


def test_unfit_input_is_refused():
    cells = correlated_cells(5, 0)
    with pytest.raises(DataError, match="real cells have 12 genes, the panel 11"):
        compare_cells(cells, cells, panel(11))
    with pytest.raises(DataError, match="no generated cells"):
        compare_cells(cells, cells[:0], panel(12))
