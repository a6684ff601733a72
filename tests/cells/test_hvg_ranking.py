"""The order of genes: scanpy's, however the cells are cut into chunks and dealt to processes."""

import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData, read_h5ad
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from core.cells.builtin import load_builtin
from core.cells.hvg_ranking import (
    CannotRankError,
    ClipLimits,
    MomentsPass,
    clip_limits,
    clipped_moments,
    moments,
    rank_by_dispersion,
    rank_in_passes,
    resolve_method,
)
from core.cells.store import StoredCells
from core.errors import DataError

from .examples import log_normalised, make_counts, real_file

COUNTS = make_counts(200, 120)
SCORE = {"seurat_v3": "variances_norm", "seurat": "dispersions_norm"}


def ranked_in_chunks(values, value_kind, rows=None, wanted="auto", seen=None):
    """Rank cells cut before the given rows; every partial sum crosses to another process."""
    values = sparse.csr_matrix(values)
    totals = np.asarray(values.sum(axis=1)).ravel().astype(np.float32)
    edges = [0, *(rows or []), values.shape[0]]

    def sum_over_cells(one_pass):
        total = None
        for first, last in pairwise(edges):
            chunk = values[first:last]
            cells = StoredCells(
                chunk.indptr.astype(np.int64), chunk.indices.astype(np.uint16), chunk.data,
                totals[first:last],
            )  # fmt: skip
            part = pickle.loads(pickle.dumps(one_pass)).sum_chunk(
                cells, value_kind, values.shape[1]
            )
            part = pickle.loads(pickle.dumps(part))
            total = part if total is None else total + part
        if seen is not None:
            seen.append(one_pass)
        return total

    return rank_in_passes(
        sum_over_cells, wanted=wanted, value_kind=value_kind, n_genes=values.shape[1]
    )


def scanpy_scores(values, flavor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = sc.pp.highly_variable_genes(
            AnnData(sparse.csr_matrix(values, dtype=np.float64)),
            flavor=flavor, n_top_genes=values.shape[1], inplace=False,
        )  # fmt: skip
    return table[SCORE[flavor]].to_numpy()


def assert_ordered_by(order, scores, tolerance=1e-6):
    """Scores fall along the order; only neighbours within the tolerance may have swapped."""
    assert sorted(order) == list(range(len(scores)))
    falling = np.where(np.isfinite(scores), scores, -np.inf)[order]
    lowest_so_far = np.minimum.accumulate(falling)
    with np.errstate(invalid="ignore"):  # -inf - -inf
        rise = (falling - lowest_so_far) / np.maximum(np.abs(falling), 1.0)
    assert np.nanmax(rise) <= tolerance


def dropout_counts(n_cells=1500, n_genes=900, seed=3):
    """Negative-binomial counts over four orders of magnitude, with dropout, outliers, empty genes."""
    rng = np.random.default_rng(seed)
    means = 10 ** rng.uniform(-3, 1.5, n_genes)
    means[::100] = 0
    dispersion = rng.gamma(2.0, 0.5, n_genes)
    rate = rng.gamma(1 / dispersion, dispersion * means, size=(n_cells, n_genes))
    counts = rng.poisson(rate * rng.lognormal(0, 0.4, (n_cells, 1)))
    counts[rng.random(counts.shape) < 0.3] = 0
    counts[rng.integers(n_cells, size=40), rng.integers(n_genes, size=40)] = 3_000
    counts[:, ::100] = 0
    return counts.astype(np.float32)


# --------------------------------------------------------------------------------- as scanpy does
def test_the_comparison_notices_a_wrong_rank():
    scores = scanpy_scores(COUNTS, "seurat_v3")
    right = np.argsort(-scores)
    assert_ordered_by(right, scores)
    for first, second in [(0, 1), (40, 41), (3, 90)]:
        wrong = right.copy()
        wrong[[first, second]] = wrong[[second, first]]
        with pytest.raises(AssertionError):
            assert_ordered_by(wrong, scores)


def test_counts_with_dropout_and_outliers_are_ranked_as_scanpy_does():
    counts = dropout_counts()
    sums = moments(*packed(counts), *counts.shape[::-1])
    assert clipped_moments(*packed(counts), clip_limits(sums)).n_values.sum() > 20
    order = ranked_in_chunks(counts, "counts", [100, 777]).order
    assert_ordered_by(order, scanpy_scores(counts, "seurat_v3"))
    unseen = np.flatnonzero(counts.sum(axis=0) == 0)
    assert len(unseen) >= 9
    assert order[-len(unseen) :].tolist() == unseen.tolist()
    logged = log_normalised(counts)
    for values, kind in ((counts, "counts"), (logged, "log1p")):
        order = ranked_in_chunks(values, kind, [64, 128], wanted="seurat").order
        assert_ordered_by(order, scanpy_scores(logged, "seurat"))


def test_real_log_values_are_ranked_as_scanpy_does():
    logged = load_builtin("builtin:pbmc68k").raw.X
    order = ranked_in_chunks(logged, "log1p", [256, 512]).order
    assert_ordered_by(order, scanpy_scores(logged, "seurat"))


@pytest.mark.parametrize("name", ["onek1k_blood.h5ad", "glioblastoma_treated.h5ad"])
def test_real_counts_are_ranked_as_scanpy_does(name):
    counts = read_h5ad(real_file(name)).X
    chunks = list(range(512, counts.shape[0], 512))
    for flavor, values in (("seurat_v3", counts), ("seurat", log_normalised(counts.toarray()))):
        order = ranked_in_chunks(counts, "counts", chunks, wanted=flavor).order
        assert_ordered_by(order, scanpy_scores(values, flavor))


def test_a_bin_of_one_gene_gives_it_a_score_of_one_as_in_scanpy():
    counts = np.hstack([make_counts(80, 30), np.full((80, 1), 5_000) + np.arange(80)[:, None]])
    scores = scanpy_scores(log_normalised(counts), "seurat")
    assert scores[-1] == 1.0
    assert_ordered_by(ranked_in_chunks(log_normalised(counts), "log1p").order, scores)


# -------------------------------------------------------------------------------- sums over cells
def packed(values):
    values = sparse.csr_matrix(values)
    return values.indices, values.data


def test_moments_are_those_of_the_dense_matrix():
    sums = moments(*packed(COUNTS), *COUNTS.shape[::-1])
    exact = COUNTS.astype(np.float64)
    assert sums.n_cells == 200
    np.testing.assert_array_equal(sums.sums, exact.sum(axis=0))
    np.testing.assert_array_equal(sums.squares, (exact**2).sum(axis=0))
    np.testing.assert_allclose(sums.variances, exact.var(axis=0, ddof=1), rtol=1e-12)


def test_a_gene_of_one_count_in_every_cell_does_not_vary():
    counts = np.full((700, 2), 7)
    counts[0, 1] = 8
    assert (moments(*packed(counts), 2, 700).variances > 0).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.float32])
def test_values_above_the_limits_are_summed_whatever_their_type(dtype):
    counts = dropout_counts(300, 200)
    limits = clip_limits(moments(*packed(counts), 200, 300))
    above = np.where(counts > limits.limits, counts, 0).astype(np.float64)
    assert above.any()
    clipped = clipped_moments(*packed(counts.astype(dtype)), limits)
    np.testing.assert_array_equal(clipped.n_values, (above > 0).sum(axis=0))
    np.testing.assert_array_equal(clipped.sums, above.sum(axis=0))
    np.testing.assert_array_equal(clipped.squares, (above**2).sum(axis=0))


def test_a_limit_beyond_the_type_of_the_counts_clips_nothing():
    counts = dropout_counts(300, 200)
    limits = clip_limits(moments(*packed(counts), 200, 300))
    limits.limits[:] = 1e7
    assert clipped_moments(*packed(counts.astype(np.uint16)), limits).n_values.sum() == 0


@given(cuts=st.sets(st.integers(0, 300), max_size=12), data=st.data())
def test_sums_of_counts_are_the_same_bytes_in_any_division_and_order(cuts, data):
    counts = dropout_counts(300, 60)
    whole = moments(*packed(counts), 60, 300)
    limits = clip_limits(whole)
    edges = [0, *sorted(cuts), 300]
    spans = data.draw(st.permutations(list(pairwise(edges))))
    parts = [moments(*packed(counts[a:b]), 60, b - a) for a, b in spans]
    clipped = [clipped_moments(*packed(counts[a:b]), limits) for a, b in spans]
    merged, above = sum(parts[1:], parts[0]), sum(clipped[1:], clipped[0])
    assert pickle.dumps(merged) == pickle.dumps(whole)
    assert pickle.dumps(above) == pickle.dumps(clipped_moments(*packed(counts), limits))


def test_cells_without_values_and_chunks_without_cells_count_as_they_should():
    counts = np.vstack([COUNTS[:100], np.zeros((5, 120)), COUNTS[100:]])
    for wanted in ("seurat_v3", "seurat"):
        order = ranked_in_chunks(counts, "counts", [0, 100, 105], wanted=wanted).order
        assert np.array_equal(order, ranked_in_chunks(counts, "counts", wanted=wanted).order)
    assert_ordered_by(
        ranked_in_chunks(counts, "counts", [100, 105]).order, scanpy_scores(counts, "seurat_v3")
    )


def test_values_of_both_kinds_reach_the_same_scale():
    counts = sparse.csr_matrix(COUNTS)
    logged = sparse.csr_matrix(log_normalised(COUNTS))
    totals = COUNTS.sum(axis=1)
    for values in ("normalised", "log1p"):
        of_counts, of_logs = (
            MomentsPass(values).sum_chunk(
                StoredCells(matrix.indptr, matrix.indices, matrix.data, totals), kind, 120
            )
            for matrix, kind in ((counts, "counts"), (logged, "log1p"))
        )
        np.testing.assert_allclose(of_counts.sums, of_logs.sums, rtol=1e-10)
        np.testing.assert_allclose(of_counts.squares, of_logs.squares, rtol=1e-10)


@pytest.mark.parametrize(("wanted", "n_passes"), [("seurat_v3", 2), ("seurat", 1), ("none", 0)])
def test_a_method_makes_its_passes(wanted, n_passes):
    seen = []
    ranked_in_chunks(COUNTS, "counts", wanted=wanted, seen=seen)
    assert len(seen) == n_passes
    assert [isinstance(one, ClipLimits) for one in seen] == [False, True][: len(seen)]


# ------------------------------------------------------------------------------ ties and failures
def test_genes_never_seen_come_last_in_the_order_of_the_columns():
    counts = np.insert(COUNTS, [0, 50], 0, axis=1)
    for wanted in ("seurat_v3", "seurat"):
        order = ranked_in_chunks(counts, "counts", wanted=wanted).order
        assert order[-2:].tolist() == [0, 51]
        assert sorted(order) == list(range(122))


def test_genes_of_equal_scores_keep_the_order_of_the_columns():
    order = ranked_in_chunks(np.hstack([COUNTS, COUNTS]), "counts").order
    place = np.empty(240, dtype=int)
    place[order] = np.arange(240)
    assert (place[120:] > place[:120]).all()
    assert (place[120:] == place[:120] + 1).mean() > 0.8


def test_none_keeps_the_order_of_the_columns():
    order = ranked_in_chunks(COUNTS, "counts", wanted="none").order
    assert order.tolist() == list(range(120))


def test_seurat_v3_on_log_values_is_refused():
    with pytest.raises(DataError, match=r"data\.hvg = 'seurat_v3' needs raw counts.*'seurat'"):
        resolve_method("seurat_v3", "log1p")


def test_a_failing_ranking_falls_back_with_a_notice_unless_it_was_asked_for():
    counts = np.array([[1, 0, 2], [0, 3, 1]], dtype=np.float32)
    ranking = ranked_in_chunks(counts, "counts")
    assert ranking.method == "variance"
    assert ranking.order.tolist() == [1, 0, 2]
    assert "seurat_v3 failed on 2 training cells x 3 genes" in ranking.notices[0]
    assert np.array_equal(ranked_in_chunks(counts, "counts", [1]).order, ranking.order)
    with pytest.raises(DataError, match=r"data\.hvg = 'seurat_v3' cannot rank these 2 training"):
        ranked_in_chunks(counts, "counts", wanted="seurat_v3")


def test_one_cell_cannot_be_ranked_but_has_an_order():
    for kind in ("counts", "log1p"):
        ranking = ranked_in_chunks(COUNTS[:1], kind)
        assert ranking.method == "variance"
        assert sorted(ranking.order) == list(range(120))


@pytest.mark.parametrize("n_genes", [10, 11, 12, 13])
def test_too_few_genes_for_loess_are_refused_in_one_line(n_genes):
    counts = make_counts(50, n_genes)
    with pytest.raises(CannotRankError, match=r"^[^\n]+$"):
        clip_limits(moments(*packed(counts), n_genes, 50))


def test_genes_that_never_vary_have_no_dispersion():
    with pytest.raises(CannotRankError, match="no gene has a finite score"):
        rank_by_dispersion(moments(*packed(np.ones((5, 4))), 4, 5))
