"""Copies of cells: found by a hash, whatever the order of genes and files, and never by chance."""

import math
from itertools import combinations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from core.cells.cell_copies import find_copies, gene_keys, hash_cells, least_evidence
from core.cells.prepare import prepare_store
from core.errors import DataError

from .check_reports import check, only_row
from .examples import make_adata, make_counts, settings, write


def copies_of(counts, columns=None, *, is_counts=True, secondary=None):
    columns = np.arange(counts.shape[1]) if columns is None else columns
    matrix = sparse.csr_matrix(counts.astype(np.float32))
    hashed = hash_cells(matrix, gene_keys(columns.astype(np.int32)), is_counts=is_counts)
    return find_copies([(np.arange(len(counts)), *hashed)], len(counts), secondary=secondary)


@pytest.mark.parametrize("is_counts", [True, False])
def test_equal_cells_are_found_as_by_comparing_all_pairs(is_counts):
    rng = np.random.default_rng(1)
    cells = make_counts(80, 200)[rng.integers(0, 80, 200)]
    cells[5, 3] += 1
    values = cells if is_counts else np.log1p(cells)
    found = copies_of(values, is_counts=is_counts)
    equal = [(a, b) for a, b in combinations(range(200), 2) if (cells[a] == cells[b]).all()]
    first = {b: a for a, b in reversed(equal)}
    assert dict(zip(found.copies.tolist(), found.originals.tolist(), strict=True)) == first


def test_genes_may_come_in_another_order_and_those_left_out_do_not_count():
    counts, rng = make_counts(20, 60), np.random.default_rng(0)
    order = rng.permutation(60)
    one = sparse.csr_matrix(counts)
    more = np.hstack((rng.poisson(3, (20, 5)), counts[:, order]))
    columns = np.concatenate((np.full(5, -1), order)).astype(np.int32)
    expected = hash_cells(one, gene_keys(np.arange(60, dtype=np.int32)), is_counts=True)
    found = hash_cells(
        sparse.csr_matrix(more.astype(np.float32)), gene_keys(columns), is_counts=True
    )
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_original_is_the_first_primary_cell():
    counts = np.tile(make_counts(1, 60), (4, 1))
    assert copies_of(counts).originals.tolist() == [0, 0, 0]
    found = copies_of(counts, secondary=np.array([True, True, False, False]))
    assert (found.copies.tolist(), set(found.originals.tolist())) == ([0, 1, 3], {2})


def test_cells_of_few_counts_are_not_taken_for_copies():
    rng = np.random.default_rng(0)
    profile = rng.dirichlet(np.full(200, 0.2))
    counts = rng.multinomial(rng.integers(1, 12, 3_000), profile)
    assert len(np.unique(counts, axis=0)) < 3_000  # equal by chance
    assert not len(copies_of(counts).copies)


def test_the_evidence_of_a_cell_bounds_the_probability_of_its_counts():
    """Against the exact multinomial probability under the cell's own profile, the largest there is."""
    counts = np.random.default_rng(0).poisson(2.0, (50, 30))
    _, evidence = hash_cells(
        sparse.csr_matrix(counts.astype(np.float32)),
        gene_keys(np.arange(30, dtype=np.int32)),
        is_counts=True,
    )
    for cell, nats in zip(counts, evidence.tolist(), strict=True):
        n = int(cell.sum())
        exact = math.lgamma(n + 1) + sum(
            x * math.log(x / n) - math.lgamma(x + 1) for x in cell.tolist() if x
        )
        assert exact <= math.log(1.1 * math.sqrt(2 * math.pi * n)) - nats
    assert least_evidence(10**6) < least_evidence(10**8) < 64


def with_copies(folder, *, donors="E", n=30):
    """Two files; the second repeats cells of the first, its genes in another order."""
    first, second = make_adata(n_genes=60), make_adata(60, 60, seed=5)
    repeated = first[:n].copy()
    repeated.obs["donor_id"] = [f"{donors}{name}" for name in repeated.obs["donor_id"]]
    second.obs["donor_id"] = [f"F{name}" for name in second.obs["donor_id"]]
    repeated.obs_names = [f"again-{name}" for name in repeated.obs_names]
    joined = ad.concat([repeated, second], merge="same")[:, ::-1].copy()
    joined.obs["is_primary_data"] = [False] * n + [True] * len(second)
    return [write(first, folder, "a.h5ad"), write(joined, folder, "b.h5ad")]


def test_copies_in_another_split_are_a_failure_of_check_and_prepare(tmp_path):
    files = with_copies(tmp_path)
    row = only_row(check(files), "copies")
    assert row.level == "fail"
    assert "30 of 150 cells (20 %) are copies" in row.finding
    assert f"30 in {files[1]} of {files[0]}" in row.finding
    assert "data.drop_duplicates = true" in row.fix
    with pytest.raises(DataError, match=r"30 of 150 cells .* are in another split"):
        prepare_store(settings(files), tmp_path / "store")
    assert not list(tmp_path.glob("store*"))
    marked = only_row(check(files), "primary data")
    assert (marked.level, marked.finding.split()[0]) == ("warn", "30")


def test_copies_in_one_split_are_a_warning(tmp_path):
    files = with_copies(tmp_path, donors="")
    assert only_row(check(files), "copies").level == "warn"
    store = prepare_store(settings(files), tmp_path / "store")
    assert store.n_cells == 150
    assert any("they count twice" in text for text in store.report["notices"])


def test_copies_are_dropped_and_the_others_are_as_without_them(tmp_path):
    files = with_copies(tmp_path)
    assert only_row(check(files, drop_duplicates=True), "copies").level == "ok"
    store = prepare_store(settings(files, drop_duplicates=True), tmp_path / "store")
    assert store.n_cells == 120
    rows = {(source, row) for source, row in store.origins.tolist()}
    assert rows == {(0, row) for row in range(60)} | {(1, row) for row in range(30, 90)}
    used = {store.donor_names[code] for code in np.unique(store.donors)}
    assert not any(name.startswith("E") for name in used)
    second = ad.read_h5ad(files[1])[30:].copy()
    alone = [files[0], write(second, tmp_path, "c.h5ad")]
    expected = prepare_store(settings(alone), tmp_path / "alone")
    for one, other in ((store, expected), (expected, store)):
        assert one.phenotypes == other.phenotypes
    assert store.report["split"]["cells"] == expected.report["split"]["cells"]

    def by_place(made, shift):
        order = np.lexsort((made.origins[:, 1] - shift * made.origins[:, 0], made.origins[:, 0]))
        return made.read_counts(order, made.genes).toarray(), made.split_codes[order]

    for one, other in zip(by_place(store, 30), by_place(expected, 0), strict=True):
        np.testing.assert_array_equal(one, other)


def test_files_without_copies_say_so(tmp_path):
    row = only_row(check(write(make_adata(n_genes=200), tmp_path)), "copies")
    assert (row.level, row.finding) == ("ok", "no two cells have the same counts")
