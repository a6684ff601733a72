"""A store whose bytes are not those that were prepared: refused by name, before its cells are used."""

import errno
import os
import shutil

import numpy as np
import pytest

from core.cells import integrity
from core.cells.integrity import BLOCKS_NAME, verify_store
from core.cells.prepare import prepare_store
from core.cells.store import Store
from core.encoding.panel_cells import PanelReader
from core.errors import DataError, MachineError

from .examples import make_adata, settings, write


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integrity, "BLOCK_VALUES", 100)
        patch.setattr("core.cells.prepare.pipeline.BLOCK_VALUES", 100)
        patch.setattr("core.cells.prepare.pipeline._SUMMED_BLOCKS", 3)
        return prepare_store(settings(write(make_adata(), folder)), folder / "store").path


@pytest.fixture
def folder(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "store")


@pytest.fixture
def is_large(monkeypatch):
    """Let every store count as a large one, of small blocks."""
    monkeypatch.setattr(integrity, "BLOCK_VALUES", 100)
    monkeypatch.setattr(integrity, "_SMALL_STORE", 0)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


NAMES = (
    *("indptr", "genes", "values", "totals", "phenotypes", "splits", "donors", "origins"),
    *("gene_order", "large_at", "large_values", "blocks"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_byte_of_any_file_is_refused_with_its_name(folder, name):
    flip(folder / f"{name}.npy", -1)
    with pytest.raises(DataError, match=rf"{name}\.npy: (damaged|cannot be read)"):
        Store.open(folder)
    with pytest.raises(DataError, match=rf"{name}\.npy changed"):
        verify_store(folder)
    (folder / f"{name}.npy").unlink()
    with pytest.raises(DataError, match=rf"{name}\.npy missing"):
        verify_store(folder)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by", [-1, 1], ids=["shorter", "longer"])
def test_a_file_of_another_size_is_refused_with_its_name(folder, is_large, name, by):
    path = folder / f"{name}.npy"
    os.truncate(path, path.stat().st_size + by)
    with pytest.raises(DataError, match=rf"{name}\.npy: (damaged|cannot be read)"):
        Store.open(folder)


def test_a_changed_manifest_is_refused(folder):
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("female", "femole", 1))
    with pytest.raises(DataError, match=r"manifest\.json: damaged, it is not as manifest\.sha256"):
        Store.open(folder)
    (folder / "manifest.sha256").unlink()  # a store of an earlier release has none
    assert "femole" in Store.open(folder).phenotypes["sex"]


@pytest.mark.parametrize("name", ["genes", "values"])
def test_of_a_large_store_a_block_is_compared_when_a_cell_of_it_is_read(folder, is_large, name):
    whole = Store.open(folder)
    item = getattr(whole, "columns" if name == "genes" else "values").itemsize
    flip(folder / f"{name}.npy", -2 * item)
    store = Store.open(folder)
    last_block = (store.manifest.n_values - 1) // 100 * 100
    before = np.flatnonzero(store.indptr[1:] <= last_block)
    after = np.setdiff1d(np.arange(store.n_cells), before)
    store.read(before, store.genes)
    for read in (store.read_stored, lambda rows: _take(store, rows)):
        with pytest.raises(DataError, match=rf"{name}\.npy: damaged from value {last_block:,} on"):
            read(after[:1])
    _take(store, before)


def _take(store, rows):
    reader = PanelReader(store, store.genes)
    pool, at = reader.pool(rows)
    return reader.take([(pool, at)])


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("phenotypes", lambda store: store.labels["sex"]),
        ("phenotypes", lambda store: store.phenotype_codes),
        ("splits", lambda store: store.rows("train")),
        ("donors", lambda store: store.donors),
        ("origins", lambda store: store.origins),
        ("totals", lambda store: store.totals),
        ("indptr", lambda store: store.read(np.arange(2), store.genes)),
        ("gene_order", lambda store: store.panel(3)),
    ],
)
def test_labels_of_a_large_store_are_compared_when_they_are_used(folder, is_large, name, use):
    flip(folder / f"{name}.npy", -1)
    store = Store.open(folder)
    with pytest.raises(DataError, match=rf"{name}\.npy: damaged, its bytes"):
        use(store)


def test_a_large_store_without_block_checksums_is_read(folder, is_large):
    text = (folder / "manifest.json").read_text()
    lines = [line for line in text.splitlines() if BLOCKS_NAME not in line]
    (folder / "manifest.json").write_text("\n".join(lines))
    (folder / "manifest.sha256").unlink()
    (folder / BLOCKS_NAME).unlink()
    assert Store.open(folder).read_stored(np.arange(60)).values.any()


def test_too_few_handles_are_no_damage(folder, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("core.cells.store.np.load", fail)
    with pytest.raises(MachineError, match=r"cannot be opened \(Too many open files\).*ulimit -n"):
        Store.open(folder)


def test_a_damaged_store_is_neither_used_nor_called_another_one(prepared, folder):
    data = settings(str(prepared.parent / "cells.h5ad"))
    os.truncate(folder / "values.npy", 500)
    with pytest.raises(DataError, match=r"values\.npy: cannot be read"):
        prepare_store(data, folder)
    again = prepare_store(data, folder, overwrite=True)
    assert {p.name: p.read_bytes() for p in again.path.glob("[!bm]*")} == {
        p.name: p.read_bytes() for p in prepared.glob("[!bm]*")
    }
