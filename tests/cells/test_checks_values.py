"""Checks of files, matrices, genes, cells and cost."""

import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from core.cells.checks.value_rows import few_genes, looks_like_doublet
from core.cells.genes import GenePanel
from core.cells.prepare import prepare_store

from .check_reports import check, check_adata, only_row, rows_of
from .examples import ensembl, log_normalised, make_adata, make_counts, settings, write


def logged_adata(**others):
    adata = make_adata(**others)
    adata.X = sparse.csr_matrix(log_normalised(adata.X.toarray()).astype(np.float32))
    return adata


# -- files
def test_bad_files_are_named_and_the_others_are_still_checked(tmp_path):
    good = write(make_adata(), tmp_path, "good.h5ad")
    truncated = write(make_adata(), tmp_path, "truncated.h5ad")
    content = (tmp_path / "truncated.h5ad").read_bytes()
    (tmp_path / "truncated.h5ad").write_bytes(content[: len(content) // 2])
    text = tmp_path / "text.h5ad"
    text.write_text("cell,gene\n")
    empty = write(make_adata()[:0].copy(), tmp_path, "empty.h5ad")
    missing = str(tmp_path / "missing.h5ad")
    report = check([truncated, str(text), good, empty, missing, str(tmp_path / "none_*.h5ad")])
    failures = rows_of(report, "readable", "fail")
    assert {row.subject for row in failures} == {
        truncated,
        str(text),
        empty,
        missing,
        str(tmp_path / "none_*.h5ad"),
    }
    assert all(row.subject in row.finding and row.fix for row in failures)
    assert report.level == "fail"
    assert report.facts["cells"] == 60
    assert rows_of(report, "every value", "ok")
    assert rows_of(report, "rare labels")


def test_a_shard_that_braces_name_may_be_missing(tmp_path):
    for number in (0, 2):
        write(make_adata(), tmp_path, f"cells_{number}.h5ad")
    report = check(str(tmp_path / "cells_{0..2}.h5ad"))
    (row,) = report.of_level("fail")
    assert row.subject == str(tmp_path / "cells_1.h5ad")
    assert report.facts["cells"] == 120


def test_a_file_damaged_in_its_values_fails_and_the_others_are_read(tmp_path):
    good = write(make_adata(), tmp_path, "good.h5ad")
    path = tmp_path / "bad.h5ad"
    make_adata(n_cells=2_000, n_genes=200).write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        values = file["X/data"].id
        last = values.get_chunk_info(values.get_num_chunks() - 1)
        offset, size = last.byte_offset, last.size
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = bytes(size)
    path.write_bytes(content)
    report = check([good, str(path)])
    (row,) = report.of_level("fail")
    assert (row.check, row.subject) == ("values", str(path))
    assert "cannot be read" in row.finding


# -- matrices
def test_counts_are_recognised_and_every_value_is_read(tmp_path):
    report = check_adata(make_adata(), tmp_path)
    assert only_row(report, "values").finding == "X holds counts"
    assert only_row(report, "every value").finding.startswith("all values of 60 cells")
    assert report.facts["values"] == "counts"
    assert report.facts["files"][0]["values_read"] == np.count_nonzero(make_counts())


def test_counts_in_one_file_and_log_values_in_another_fail(tmp_path):
    counts = write(make_adata(), tmp_path, "counts.h5ad")
    logs = write(logged_adata(seed=1), tmp_path, "logs.h5ad")
    row = only_row(check([counts, logs]), "one kind")
    assert row.level == "fail"
    assert f"{counts} (X) holds counts but {logs} (X) holds log1p" in row.finding
    assert "data.matrix" in row.fix


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda counts: counts - counts.mean(axis=0), "scaled"),
        (lambda counts: np.log1p(counts) * np.linspace(0.8, 1.25, 40), "unknown scale"),
        (lambda counts: np.log1p(counts / (1 + np.arange(40))) * 3.1, "unknown scale"),
        (lambda counts: counts * 0, "only zeros"),
    ],
)
def test_an_unfit_matrix_fails_in_the_words_of_prepare(tmp_path, change, words):
    adata = make_adata()
    adata.X = change(adata.X.toarray()).astype(np.float32)
    report = check_adata(adata, tmp_path)
    row = only_row(report, "values")
    assert (row.level, row.family) == ("fail", "matrix")
    assert words in row.finding
    assert rows_of(report, "gene ids", "ok")


def test_a_late_fraction_among_counts_fails(tmp_path):
    adata = make_adata(n_cells=1_000)
    dense = adata.X.toarray()
    dense[910, 3] = 0.5  # not sampled
    adata.X = sparse.csr_matrix(dense)
    row = only_row(check_adata(adata, tmp_path), "every value")
    assert row.level == "fail"
    assert "at cell cell910 (row 910)" in row.finding


def test_counts_in_a_layer_of_another_name_are_pointed_at(tmp_path):
    adata = logged_adata()
    adata.layers["original"] = make_adata().X
    (row,) = rows_of(check_adata(adata, tmp_path), "values", "warn")
    assert "layers/original holds counts" in row.finding
    adata.layers["counts"] = adata.layers.pop("original")
    report = check_adata(adata, tmp_path)
    assert not rows_of(report, "values", "warn")
    assert report.facts["files"][0]["matrix"] == "layers/counts"


def test_a_ranking_that_needs_counts_fails_on_log_values(tmp_path):
    report = check_adata(logged_adata(), tmp_path, hvg="seurat_v3")
    assert only_row(report, "gene ranking").level == "fail"
    assert not rows_of(check_adata(logged_adata(), tmp_path), "gene ranking")


def test_counts_above_two_bytes_are_noted(tmp_path):
    adata = make_adata()
    assert not rows_of(check_adata(adata, tmp_path), "large counts")
    adata.X[0, 0] = 70_000
    row = only_row(check_adata(adata, tmp_path), "large counts")
    assert row.level == "ok"
    assert "70,000" in row.finding


def test_quick_looks_at_the_start_the_middle_and_the_end(tmp_path):
    adata = make_adata(n_cells=9_000, n_genes=10)
    file = write(adata, tmp_path)
    report = check(file, scope="quick")
    assert report.facts["files"][0]["cells_read"] == 3 * 2_048
    assert "6,144 of 9,000 cells were read" in only_row(report, "every value").finding
    adata.X[8_900, 0] = 0.5
    assert check(write(adata, tmp_path), scope="quick").level == "fail"


# -- genes
def renamed(adata, names):
    adata = adata.copy()
    adata.var_names = names
    return adata


def test_duplicated_genes_fail_as_in_prepare(tmp_path):
    adata = make_adata()
    adata.var["ensembl"] = ensembl(39) + ensembl(1)
    row = only_row(check_adata(adata, tmp_path, gene_ids="ensembl"), "gene ids")
    assert row.level == "fail"
    assert "occur more than once (ENSG00000000000)" in row.finding


def test_dropped_versions_of_ensembl_ids_are_reported(tmp_path):
    versioned = renamed(make_adata(), [f"{gene}.{n}" for n, gene in enumerate(ensembl(40))])
    assert "versions dropped" in only_row(check_adata(versioned, tmp_path), "gene ids").finding
    plain = only_row(check_adata(make_adata(), tmp_path), "gene ids").finding
    assert plain == f"Ensembl ids: {', '.join(ensembl(3))}, ..."


def test_files_that_share_few_genes_are_warned_of_and_none_fail(tmp_path):
    first = write(make_adata(), tmp_path, "first.h5ad")

    def second(n_shared):
        genes = ensembl(40, first=40 - n_shared)
        return write(renamed(make_adata(seed=1), genes), tmp_path, "second.h5ad")

    ample = only_row(check([first, second(30)]), "gene overlap")
    assert (ample.level, ample.finding.split()[0]) == ("ok", "30")
    few = rows_of(check([first, second(10)]), "gene overlap")
    assert [row.level for row in few] == ["warn", "warn"]
    assert "10 of its 40 genes (25 %)" in few[0].finding
    none = only_row(check([first, second(0)]), "gene overlap")
    assert none.level == "fail"
    union = check([first, second(10)], join="union")
    assert [row.level for row in rows_of(union, "gene overlap")] == ["ok"]


def test_genes_in_another_order_are_joined_by_id(tmp_path):
    first = write(make_adata(), tmp_path, "first.h5ad")
    second = write(make_adata(seed=1)[:, ::-1].copy(), tmp_path, "second.h5ad")
    row = only_row(check([first, second]), "gene order")
    assert row.level == "ok"
    assert second in row.finding


def test_genes_without_counts_are_warned_of_where_they_fill_the_panel(tmp_path):
    assert (
        "each of 40 genes" in only_row(check_adata(make_adata(), tmp_path), "empty genes").finding
    )
    adata = make_adata()
    adata.X = sparse.csr_matrix(adata.X.toarray() * (np.arange(40) < 30))
    full = only_row(check_adata(adata, tmp_path), "empty genes")
    assert (full.level, full.finding.split(" are ")[0]) == ("warn", "10 of 40 genes")
    assert only_row(check_adata(adata, tmp_path, genes=20), "empty genes").level == "ok"


def test_more_genes_than_two_bytes_can_number_are_noted(tmp_path):
    adata = make_adata(n_cells=6)
    many = sparse.hstack([adata.X, sparse.csr_matrix((6, 69_960), dtype=np.float32)], format="csr")
    wide = AnnData(many, obs=adata.obs, var=pd.DataFrame(index=ensembl(70_000)))
    row = only_row(check_adata(wide, tmp_path, split={"by": "cells"}), "wide index")
    assert (row.level, "70,000" in row.finding) == ("ok", True)


def test_an_included_gene_must_exist(tmp_path):
    row = only_row(
        check_adata(make_adata(), tmp_path, include_genes=["GENE1", "GENEX"]), "included genes"
    )
    assert row.level == "fail"
    assert "'GENEX'" in row.finding


@pytest.mark.parametrize(
    ("n_shared", "level"), [(40, "ok"), (36, "ok"), (30, "warn"), (20, "warn"), (19, "fail")]
)
def test_the_fraction_of_a_models_genes_decides(tmp_path, n_shared, level):
    genes = tuple(ensembl(40, first=40 - n_shared))
    row = only_row(
        check_adata(make_adata(), tmp_path, model_genes=GenePanel(genes, genes)), "model genes"
    )
    assert row.level == level


def test_a_models_genes_are_found_by_symbol_where_ids_differ(tmp_path):
    symbols = tuple(f"GENE{number}" for number in range(40))
    panel = GenePanel(symbols, symbols)
    assert (
        only_row(check_adata(make_adata(), tmp_path, model_genes=panel), "model genes").level
        == "ok"
    )


# -- cells
def test_empty_cells_are_counted(tmp_path):
    adata = make_adata()
    assert only_row(check_adata(adata, tmp_path), "empty cells").level == "ok"
    dense = adata.X.toarray()
    dense[:3] = 0
    adata.X = sparse.csr_matrix(dense)
    row = only_row(check_adata(adata, tmp_path), "empty cells")
    assert row.level == "warn"
    assert "3 of 60 cells (5.0 %)" in row.finding


def test_cells_of_few_genes_are_below_a_fifth_of_the_median_or_200():
    genes = np.array([0, 10, 100, 100, 100, 100, 19, 20], dtype=np.int32)
    poor, limit = few_genes(genes)
    assert limit == 20
    assert np.flatnonzero(poor).tolist() == [1, 6]
    assert few_genes(np.full(10, 5_000, dtype=np.int32))[1] == 200


def test_cells_of_few_genes_are_warned_of_when_they_are_many(tmp_path):
    counts = np.ones((100, 60), dtype=np.float32)
    adata = make_adata(n_cells=100, n_genes=60)
    for n_thin, level in ((4, "ok"), (10, "warn")):
        spoilt = counts.copy()
        spoilt[:n_thin, 5:] = 0
        adata.X = sparse.csr_matrix(spoilt)
        assert only_row(check_adata(adata, tmp_path), "few genes").level == level


def test_doublets_have_more_counts_and_genes_than_their_donor():
    rng = np.random.default_rng(0)
    totals = rng.lognormal(7, 0.1, 400).astype(np.float32)
    genes = (totals**0.8).astype(np.int32)
    donors = np.repeat([0, 1], 200)
    totals[donors == 1] *= 4  # a donor of larger libraries is not a doublet
    genes[donors == 1] *= 3
    totals[:10] *= 3
    genes[:10] *= 3
    totals[20:30] *= 3  # many counts, yet few genes
    found = looks_like_doublet(totals, genes, donors)
    assert np.flatnonzero(found).tolist() == list(range(10))
    assert not looks_like_doublet(
        np.zeros(3, np.float32), np.zeros(3, np.int32), np.zeros(3, int)
    ).any()
    totals[:200] = genes[:200] = 0
    assert not looks_like_doublet(totals, genes, 1 - donors).any()  # a donor of empty cells alone


def test_small_groups_are_compared_with_the_whole_file():
    totals = np.full(300, 1_000, dtype=np.float32)
    genes = np.full(300, 400, dtype=np.int32)
    donors = np.zeros(300, dtype=int)
    donors[:10], donors[10:20] = 1, -1
    totals[:10], genes[:10] = 9_000, 2_000
    assert np.flatnonzero(looks_like_doublet(totals, genes, donors)).tolist() == list(range(10))


def test_doublet_like_cells_are_warned_of_when_they_are_many(tmp_path):
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, size=(200, 400)) * (rng.random((200, 400)) < 0.2)
    adata = make_adata(n_cells=200, n_genes=400, n_donors=4)
    for n_deep, level in ((0, "ok"), (12, "warn")):
        deep = counts.copy()
        deep[:n_deep] += rng.poisson(4, size=(n_deep, 400))
        adata.X = sparse.csr_matrix(deep.astype(np.float32))
        assert only_row(check_adata(adata, tmp_path), "doublet-like cells").level == level
    logs = only_row(check_adata(logged_adata(), tmp_path), "doublet-like cells")
    assert "not checked" in logs.finding


# -- cost
def test_the_store_is_estimated_from_its_values(tmp_path):
    report = check_adata(make_adata(), tmp_path)
    estimate = report.facts["estimate"]
    n_values = np.count_nonzero(make_counts())
    assert estimate["n_values"] == n_values
    assert estimate["store_bytes"] == 4 * n_values + 60 * (33 + 4 * 5)
    assert estimate["is_measured"]
    assert (
        check_adata(logged_adata(), tmp_path).facts["estimate"]["store_bytes"]
        == 6 * n_values + 60 * 53
    )


def test_the_estimate_is_near_the_size_of_the_store(tmp_path):
    file = write(make_adata(n_cells=2_000, n_genes=500), tmp_path)
    prepare_store(settings(file), tmp_path / "store")
    actual = sum(path.stat().st_size for path in (tmp_path / "store").glob("*.npy"))
    assert check(file).facts["estimate"]["store_bytes"] == pytest.approx(actual, rel=0.1)


def test_a_full_disk_fails(tmp_path, monkeypatch):
    file = write(make_adata(), tmp_path)
    assert only_row(check(file, store=str(tmp_path / "a" / "b")), "disk").level == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1_000))
    row = only_row(check(file, store=str(tmp_path / "a" / "b")), "disk")
    assert row.level == "fail"
    assert "1 kB free" in row.finding
