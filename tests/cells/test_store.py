import json

import numpy as np
import pytest

from core.cells.genes import GenePanel
from core.cells.prepare import prepare_store
from core.cells.prepare.report import store_key
from core.cells.store import Store
from core.errors import ConfigurationError, DataError

from .examples import log_normalised, make_adata, make_counts, settings, write


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    adata = make_adata()
    x = adata.X.toarray()
    x[3, 5], x[3, 6], x[40, 2] = 65_534, 65_535, 1_000_000
    adata.X = x
    adata.var["feature_name"] = [f"GENE{number}" for number in range(40)]
    return prepare_store(settings(write(adata, folder)), folder / "store")


def counts_of(store):
    counts = make_counts()
    counts[3, 5], counts[3, 6], counts[40, 2] = 65_534, 65_535, 1_000_000
    return counts[store.origins[:, 1]]


def test_counts_are_lossless_however_large(store):
    stored = store.read_stored(np.arange(store.n_cells))
    dense = np.zeros((60, 40))
    cell = np.repeat(np.arange(60), np.diff(stored.indptr))
    dense[cell, stored.genes] = stored.values
    assert np.array_equal(dense, counts_of(store))
    assert np.array_equal(stored.totals, counts_of(store).sum(1))


def test_reading_gives_log_normalised_values_in_the_order_asked_for(store):
    panel = store.panel(15)
    rows = np.array([59, 0, 17, 17, 3])
    matrix = store.read(rows, panel)
    columns = [store.genes.index_of(gene) for gene in panel.ids]
    expected = log_normalised(counts_of(store))[rows][:, columns]
    assert matrix.shape == (5, 15)
    assert matrix.dtype == np.float32
    assert matrix.has_canonical_format
    assert (matrix.data > 0).all()
    np.testing.assert_allclose(matrix.toarray(), expected, rtol=2e-6, atol=1e-7)


def test_no_rows_give_an_empty_matrix(store):
    assert store.read(np.array([], dtype=np.int64), store.panel(4)).shape == (0, 4)


def test_the_splits_part_the_cells(store):
    rows = [store.rows(split) for split in ("train", "validation", "test")]
    assert all((np.diff(part) > 0).all() for part in rows)
    assert sorted(np.concatenate(rows).tolist()) == list(range(60))


def test_a_panel_is_the_most_variable_genes_in_order(store):
    assert store.panel(6).ids == tuple(store.genes.ids[column] for column in store.hvg_order[:6])
    assert len(store.panel(1000)) == 40


def test_included_genes_take_the_places_of_the_least_variable(store):
    last = store.genes.ids[store.hvg_order[-1]]
    before = store.genes.symbols[store.hvg_order[-2]]
    panel = store.panel(6, include=[last, before, before])
    assert panel.ids[:4] == store.panel(4).ids
    assert panel.ids[4:] == (store.genes.ids[store.hvg_order[-2]], last)


def test_an_unknown_included_gene_is_answered_with_the_nearest(store):
    with pytest.raises(DataError, match=r"data\.include_genes names 'GENE99'.*did you mean GENE"):
        store.panel(6, include=["GENE99"])
    with pytest.raises(ConfigurationError, match=r"3 genes but data\.genes = 2"):
        store.panel(2, include=["GENE1", "GENE2", "GENE3"])


def test_genes_of_a_foreign_panel_read_as_zero_and_are_listed(store, caplog):
    known = store.genes.ids[7]
    panel = GenePanel(("ENSG99999999999", known), ("NEW", "GENE7"))
    with caplog.at_level("WARNING"):
        dense = store.read(np.arange(60), panel).toarray()
        store.read(np.arange(3), panel)
    assert store.missing_genes(panel) == ["ENSG99999999999"]
    assert not dense[:, 0].any()
    assert dense[:, 1].any()
    assert len(caplog.records) == 1


def test_a_panel_that_shares_no_gene_is_refused(store):
    with pytest.raises(DataError, match="none of the model's 1 genes"):
        store.read(np.arange(2), GenePanel(("XIST",), ("XIST",)))


def test_anndata_carries_labels_split_and_origin(store):
    rows = store.rows("test")
    adata = store.to_anndata(rows, store.panel(5))
    original = make_adata().obs.iloc[store.origins[rows, 1]]
    assert adata.shape == (len(rows), 5)
    assert adata.obs["cell_type"].tolist() == original["cell_type"].tolist()
    assert adata.obs["tfx_donor"].tolist() == original["donor_id"].tolist()
    assert set(adata.obs["tfx_split"]) == {"test"}
    assert adata.var["gene_symbol"].tolist() == list(store.panel(5).symbols)


def test_anndata_of_any_subset_has_the_cells_asked_for(store):
    rows = np.array([7, 0, 31])
    adata = store.to_anndata(rows, store.panel(5))
    assert adata.obs_names.tolist() == [f"0-{row}" for row in store.origins[rows, 1]]
    assert (adata.obs["tfx_row"] == store.origins[rows, 1]).all()
    assert (store.read(rows, store.panel(5)) != adata.X).nnz == 0
    female = store.select("sex=female", split="train")
    for cells in ("sex=female,split=train", store.where("sex=female,split=train")):
        assert store.to_anndata(cells).obs["tfx_row"].tolist() == store.origins[female, 1].tolist()
    assert store.to_anndata().n_obs == 60


def test_anndata_holds_lossless_counts_where_asked_for(store):
    rows = np.array([59, 3, 11, 3])
    adata = store.to_anndata(rows, values="counts")
    assert adata.X.dtype == np.float32
    assert np.array_equal(adata.X.toarray(), counts_of(store)[rows])
    assert adata.uns["tfx"]["values"] == "counts"
    panel = store.panel(4)
    columns = [store.genes.index_of(gene) for gene in panel.ids]
    some = store.to_anndata(rows, panel, values="counts").X
    assert np.array_equal(some.toarray(), counts_of(store)[rows][:, columns])


def test_counts_beyond_float32_are_not_rounded(store, tmp_path):
    folder = copy_of(store, tmp_path / "copy")
    _forget_checksums(folder)
    large = np.load(folder / "large_values.npy")
    np.save(folder / "large_values.npy", np.where(large == 1_000_000, 2**24 + 1, large))
    counts = Store.open(folder).read_counts(np.arange(60), store.genes)
    assert counts.dtype == np.float64
    assert counts.max() == 2**24 + 1


def _forget_checksums(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"checksums": {}}))
    (folder / "manifest.sha256").unlink()


def test_anndata_of_no_cells_and_of_repeated_cells(store, tmp_path):
    for values in ("log1p", "counts"):
        empty = store.to_anndata(np.array([], dtype=np.int64), store.panel(5), values=values)
        assert empty.shape == (0, 5)
        assert empty.obs["sex"].cat.categories.tolist() == store.phenotypes["sex"]
    twice = store.to_anndata(np.array([4, 9, 4, 4]), store.panel(5))
    first, second = (f"0-{store.origins[row, 1]}" for row in (4, 9))
    assert twice.obs_names.tolist() == [first, second, f"{first}-1", f"{first}-2"]
    twice.write_h5ad(tmp_path / "twice.h5ad")


def test_counts_of_a_store_of_log_values_are_refused(tmp_path):
    adata = make_adata()
    adata.X = log_normalised(adata.X.toarray()).astype(np.float32)
    store = prepare_store(settings(write(adata, tmp_path)), tmp_path / "store")
    with pytest.raises(DataError, match="holds log values, which do not give counts back"):
        store.to_anndata(np.arange(3), values="counts")
    assert store.to_anndata(np.arange(3)).n_obs == 3


def test_the_table_of_phenotypes_is_categorical_with_every_value(store):
    table = store.phenotype_table()
    original = make_adata().obs.iloc[store.origins[:, 1]]
    assert table.columns.tolist() == list(store.phenotypes)
    assert table.index.tolist() == list(range(60))
    assert table["tissue"].tolist() == original["tissue"].tolist()
    some = store.phenotype_table(np.array([9, 2]))
    assert some.index.tolist() == [9, 2]
    assert some["tissue"].tolist() == original["tissue"].iloc[[9, 2]].tolist()
    assert some["tissue"].cat.categories.tolist() == store.phenotypes["tissue"]


def test_missing_labels_are_missing_in_the_table(tmp_path):
    adata = make_adata()
    adata.obs["sex"] = np.where(np.arange(60) < 20, "unknown", adata.obs["sex"])
    store = prepare_store(settings(write(adata, tmp_path)), tmp_path / "store")
    assert (store.phenotype_table()["sex"].isna() == (store.origins[:, 1] < 20)).all()


def test_the_arrays_are_views_of_the_files_that_nobody_can_write_to(store):
    assert store.indptr.shape == (61,)
    assert store.columns.shape == store.values.shape == (store.indptr[-1],)
    for name, array in (("genes", store.columns), ("values", store.values)):
        assert np.array_equal(array, np.load(store.path / f"{name}.npy"))
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_another_choice_of_cells_needs_no_other_store():
    one, two = (settings("builtin:pbmc68k", where=where) for where in ([], ["sex=female"]))
    assert store_key(one) == store_key(two)


def copy_of(store, folder):
    folder.mkdir()
    for path in store.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"not a store \(no manifest\.json\)"):
        Store.open(tmp_path)
    with pytest.raises(DataError, match="not a store"):
        Store.open(tmp_path / "absent")


@pytest.mark.parametrize("version", [0, 99, "two", None])
def test_a_store_of_another_format_is_refused(store, tmp_path, version):
    folder = copy_of(store, tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": version}))
    with pytest.raises(DataError, match=f"store format {version!r}, this tfx reads 1 and 2"):
        Store.open(folder)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "values.npy").unlink(), r"values\.npy is missing"),
        (lambda folder: (folder / "values.npy").write_bytes(b"x"), r"values\.npy: cannot be read"),
        (lambda folder: np.save(folder / "totals.npy", np.zeros(3)), r"totals\.npy: damaged store"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "damaged manifest"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"format_version": 1}'),
            r"damaged manifest \(key: Field required\)",
        ),
    ],
)
def test_a_damaged_store_is_refused(store, tmp_path, damage, complaint):
    folder = copy_of(store, tmp_path / "copy")
    damage(folder)
    with pytest.raises(DataError, match=complaint):
        Store.open(folder)
