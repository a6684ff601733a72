import warnings

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from core.cells.variable_genes import rank_genes, resolve_method
from core.errors import DataError

from .examples import log_normalised, make_counts

COUNTS = make_counts(200, 120)
LOGGED = log_normalised(COUNTS).astype(np.float32)


def ranked(counts, logged, wanted="auto"):
    return rank_genes(
        None if counts is None else sparse.csr_matrix(counts), lambda: sparse.csr_matrix(logged),
        wanted=wanted,
    )  # fmt: skip


def scanpy_table(values, flavor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sc.pp.highly_variable_genes(
            AnnData(sparse.csr_matrix(values)), flavor=flavor, n_top_genes=30, inplace=False
        )


def test_counts_are_ranked_as_scanpy_seurat_v3_does():
    ranking = ranked(COUNTS, LOGGED)
    ranks = scanpy_table(COUNTS, "seurat_v3")["highly_variable_rank"]
    expected = ranks.reset_index(drop=True).dropna().sort_values().index.tolist()
    assert ranking.method == "seurat_v3"
    assert ranking.order[:30].tolist() == expected


def test_log_values_are_ranked_as_scanpy_seurat_does():
    ranking = ranked(None, LOGGED)
    table = scanpy_table(LOGGED, "seurat").reset_index(drop=True)
    assert ranking.method == "seurat"
    assert set(ranking.order[:30]) == set(np.flatnonzero(table["highly_variable"]))
    scores = table["dispersions_norm"].to_numpy()[ranking.order]
    assert (np.diff(scores[~np.isnan(scores)]) <= 0).all()


def test_genes_never_seen_come_last_in_the_order_of_the_columns():
    counts = np.insert(COUNTS, [0, 50], 0, axis=1)
    order = ranked(counts, log_normalised(counts)).order
    assert order[-2:].tolist() == [0, 51]
    assert sorted(order) == list(range(122))


def test_none_keeps_the_order_of_the_columns():
    assert ranked(COUNTS, LOGGED, "none").order.tolist() == list(range(120))


def test_seurat_v3_on_log_values_is_refused():
    with pytest.raises(DataError, match=r"data\.hvg = 'seurat_v3' needs raw counts.*'seurat'"):
        resolve_method("seurat_v3", "log1p")


def test_a_failing_ranking_falls_back_with_a_notice_unless_it_was_asked_for():
    counts = np.array([[1, 0, 2], [0, 3, 1]], dtype=np.float32)
    ranking = ranked(counts, log_normalised(counts))
    assert ranking.method == "variance"
    assert ranking.order.tolist() == [1, 0, 2]
    assert "seurat_v3 failed on 2 training cells x 3 genes" in ranking.notices[0]
    with pytest.raises(DataError, match=r"data\.hvg = 'seurat_v3' cannot rank these 2 training"):
        ranked(counts, log_normalised(counts), "seurat_v3")
