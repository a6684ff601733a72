"""Profiles of generated cells: bounded, plain, and right where the answer is known."""

import json

import numpy as np
import pytest
from scipy import sparse

from core.cells.genes import GenePanel
from core.generation.profile import MAX_GENES, MAX_POINTS, principal_plane, profile_cells


def panel_of(n_genes):
    names = tuple(f"G{gene}" for gene in range(n_genes))
    return GenePanel(names, names)


def cells_of(n_cells, n_genes, *, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    dense = rng.exponential(scale, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.5)
    return sparse.csr_matrix(dense.astype(np.float32))


def test_a_profile_is_bounded_plain_json_whatever_the_cells():
    real, generated = cells_of(510, 2100), cells_of(520, 2100, seed=1)
    profile = profile_cells(generated, real, panel_of(2100))
    text = json.dumps(profile, allow_nan=False)
    assert len(text) < 400_000
    assert {len(part) for part in profile["genes"].values()} == {MAX_GENES}
    for side in ("real", "generated"):
        assert len(profile["detected_genes"][side]) == MAX_POINTS
        assert np.array(profile["embedding"][side]).shape == (MAX_POINTS, 2)
    assert all(len(gene["real_values"]) == 200 for gene in profile["top_genes"])


def test_means_detected_genes_and_differences_are_those_of_the_cells():
    real = sparse.csr_matrix(np.array([[1, 0, 3], [3, 0, 0], [2, 0, 0.0]], np.float32))
    generated = sparse.csr_matrix(np.array([[2, 0, 0], [2, 4, 0.0]], np.float32))
    profile = profile_cells(generated, real, panel_of(3))
    assert profile["genes"] == {
        "names": ["G0", "G1", "G2"],
        "real_mean": [2, 0, 1],
        "generated_mean": [2, 2, 0],
    }
    assert profile["detected_genes"] == {"real": [2, 1, 1], "generated": [1, 2]}
    first = profile["top_genes"][0]
    assert (first["gene"], first["difference"]) == ("G1", 2)
    assert (first["real_values"], first["generated_values"]) == ([0, 0, 0], [0, 4])


def test_without_real_cells_the_real_side_is_null():
    profile = profile_cells(cells_of(4, 6), None, panel_of(6))
    assert profile["genes"]["real_mean"] is None
    assert profile["detected_genes"]["real"] is None
    assert (profile["embedding"], profile["fidelity"], profile["top_genes"]) == (None, None, [])
    assert len(profile["detected_genes"]["generated"]) == 4


def test_the_plane_is_that_of_the_real_cells_and_shared():
    rng = np.random.default_rng(0)
    axis = np.array([3, 4, 0, 0]) / 5
    real = sparse.csr_matrix(10 + rng.normal(size=(300, 1)) * 5 * axis)
    generated = sparse.csr_matrix(10 + np.array([[5.0], [-5.0]]) * axis + np.array([0, 0, 0, 9]))
    n_fitted, at_real, at_generated, explained = principal_plane(real, generated)
    assert n_fitted == 300
    assert explained[0] == pytest.approx(1.0)
    assert at_real[:, 0].std() == pytest.approx(real.toarray()[:, 0].std() / 0.6)
    assert np.abs(at_real[:, 1]).max() < 1e-6
    assert abs(at_generated[0, 0] - at_generated[1, 0]) == pytest.approx(10)


def test_the_axes_are_those_of_a_singular_value_decomposition():
    real, generated = cells_of(40, 9), cells_of(30, 9, seed=1)
    _, at_real, at_generated, explained = principal_plane(real, generated)
    dense = real.toarray() - real.toarray().mean(axis=0)
    _, strength, axes = np.linalg.svd(dense, full_matrices=False)
    np.testing.assert_allclose(explained, strength[:2] ** 2 / (strength**2).sum(), rtol=1e-5)
    for cells, found in ((real, at_real), (generated, at_generated)):
        expected = (cells.toarray() - real.toarray().mean(axis=0)) @ axes[:2].T
        np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)


def test_one_real_cell_spans_no_plane_and_is_drawn_all_the_same():
    real = sparse.csr_matrix(np.array([[1.0, 2.0]]))
    profile = profile_cells(real.copy(), real, panel_of(2))
    assert profile["embedding"]["real"] == [[0, 0]]
    assert profile["embedding"]["explained"] == [0, 0]
