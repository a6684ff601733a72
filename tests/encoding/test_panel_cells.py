"""Cells over a panel as stored: the same cells that `Store.read` gives, in other clothes."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from core.cells.genes import GenePanel
from core.cells.prepare import prepare_store
from core.encoding.panel_cells import PanelReader
from core.presets.schema import DataSettings


def panel_of(store, kind):
    if kind == "every gene":
        return store.panel(len(store.genes))
    if kind == "some genes":
        return store.panel(50)
    if kind == "every gene in the store's order":
        return store.genes
    known = store.panel(30)
    return GenePanel(("ENSG99999999999", *known.ids), ("NEW", *known.symbols))


PANELS = ["every gene", "some genes", "a gene the store lacks", "every gene in the store's order"]


def dense(cells, store):
    levels = cells.values
    if cells.totals is not None:
        levels = cells.log_values
    found = np.zeros((cells.n_cells, cells.n_genes), dtype=np.float32)
    cell = np.repeat(np.arange(cells.n_cells), np.diff(cells.indptr))
    columns = cells.columns.astype(int)
    found[cell, columns if cells.panel_of is None else cells.panel_of[columns]] = levels
    assert store.value_kind == ("log1p" if cells.totals is None else "counts")
    return found


@pytest.mark.parametrize("kind", PANELS)
def test_cells_read_are_those_of_the_store(tiny_store, kind):
    panel = panel_of(tiny_store, kind)
    rows = np.array([5, 99, 0, 17, 17])
    cells = PanelReader(tiny_store, panel).read(rows)
    np.testing.assert_array_equal(dense(cells, tiny_store), tiny_store.read(rows, panel).toarray())
    if kind == "every gene in the store's order":
        assert cells.panel_of is None
        assert cells.column_of is None
        return
    assert cells.column_of.shape == (len(panel),)
    present = cells.column_of < cells.n_columns
    np.testing.assert_array_equal(
        cells.panel_of[cells.column_of[present]], np.arange(len(panel))[present]
    )
    assert present.sum() == len(panel) - (kind == PANELS[2])


@pytest.mark.parametrize("kind", PANELS)
def test_chosen_cells_of_several_reads_are_joined_in_their_order(tiny_store, kind):
    panel = panel_of(tiny_store, kind)
    reader = PanelReader(tiny_store, panel)
    (one, ones), (two, twos) = (reader.pool(rows) for rows in (np.arange(20), np.arange(50, 90, 4)))
    cells = reader.take([(one, ones[[7, 3]]), (two, twos[[0, 9, 4]])])
    wanted = tiny_store.read(np.array([7, 3, 50, 86, 66]), panel)
    np.testing.assert_array_equal(dense(cells, tiny_store), wanted.toarray())


@pytest.mark.parametrize("kind", PANELS)
def test_values_of_the_panel_are_counted_per_cell(tiny_store, kind):
    panel = panel_of(tiny_store, kind)
    rows = np.arange(0, 300, 3)
    counted = PanelReader(tiny_store, panel).count_values(rows)
    np.testing.assert_array_equal(counted, np.diff(tiny_store.read(rows, panel).indptr))


@pytest.mark.parametrize("n_genes", [3, 2])
def test_counts_above_16_bits_survive_being_taken(tmp_path, n_genes):
    counts = np.array([[1, 0, 70_000], [2, 65_535, 3], [65_534, 5, 0]] * 8, dtype=np.float32)
    data = anndata.AnnData(
        sparse.csr_matrix(counts),
        pd.DataFrame({"sex": ["female", "male"] * 12}, index=[str(i) for i in range(24)]),
        pd.DataFrame(index=["G1", "G2", "G3"]),
    )
    data.write_h5ad(tmp_path / "cells.h5ad")
    settings = DataSettings(
        files=[str(tmp_path / "cells.h5ad")], hvg="none", split={"by": "cells"}, age_groups="none"
    )
    store = prepare_store(settings, tmp_path / "store")
    reader = PanelReader(store, store.panel(n_genes))
    pool, places = reader.pool(np.arange(24))
    cells = reader.take([(pool, places[::-1])])
    wanted = store.read(np.arange(24)[::-1], store.panel(n_genes)).toarray()
    np.testing.assert_array_equal(dense(cells, store), wanted)
