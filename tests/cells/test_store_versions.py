"""Stores of every released format still open, and hold what was put into them.

``stores/format_N/`` is a store as that format's first release wrote it; its ``expected.json`` says,
cell by cell in the store's order, what the files it was prepared from held.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from core.cells.integrity import verify_store
from core.cells.store import Store
from core.errors import DataError

from .examples import log_normalised

STORES = sorted((Path(__file__).parent / "stores").glob("format_*"))


def test_there_are_old_stores_to_read():
    assert STORES


@pytest.fixture(params=STORES, ids=lambda folder: folder.name)
def folder(request):
    return request.param


@pytest.fixture
def expected(folder):
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def store(folder):
    return Store.open(folder)


def test_the_folder_is_named_for_its_format(store, folder):
    assert folder.name == f"format_{store.manifest.format_version}"


def test_expression_is_that_of_the_files(store, expected):
    counts = np.array(expected["counts"])
    every = np.arange(store.n_cells)
    assert np.array_equal(store.read_counts(every, store.genes).toarray(), counts)
    some = every[::-3]
    np.testing.assert_allclose(
        store.read(some, store.genes).toarray(), log_normalised(counts)[some], rtol=2e-6
    )
    assert store.totals.tolist() == counts.sum(axis=1).tolist()


def test_labels_are_those_of_the_files(store, expected):
    table = store.phenotype_table()
    assert table.columns.tolist() == list(expected["phenotypes"])
    for name, labels in expected["phenotypes"].items():
        assert [None if label != label else label for label in table[name]] == labels


def test_cells_genes_and_splits_stand_where_they_stood(store, expected):
    assert store.origins.tolist() == expected["origins"]
    assert store.split_codes.tolist() == expected["splits"]
    assert store.hvg_order.tolist() == expected["hvg_order"]


def test_filters_and_subsets_work_on_old_stores(store, expected):
    name, labels = next(iter(expected["phenotypes"].items()))
    value = next(label for label in labels if label is not None)
    rows = store.select(f"{name}={value}")
    assert rows.tolist() == [row for row, label in enumerate(labels) if label == value]
    adata = store.to_anndata(rows, values="counts")
    assert np.array_equal(adata.X.toarray(), np.array(expected["counts"])[rows])


def test_checksums_of_a_released_store_hold(folder, store):
    if store.manifest.format_version == 1:
        with pytest.raises(DataError, match="no checksums"):
            verify_store(folder)
    else:
        assert verify_store(folder) > 10
