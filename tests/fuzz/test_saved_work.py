"""Whatever is done to a store, a checkpoint or unfinished cells: read as written, or named in one error."""

import contextlib
import hashlib
import json
import shutil

import anndata
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.cells.store import Store
from core.errors import ConfigurationError, DataError
from core.generation.generated_file import partial_folder, write_generated
from core.training.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from tests.fuzz.damage import damaged_bytes, damaged_json
from tests.generation.test_generated_file import Stop, source_of


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def put(folder, files):
    for name, content in files.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            path.unlink(missing_ok=True)  # a store that is still mapped keeps its bytes
            path.write_bytes(content)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def damage(data, name, content):
    is_json = name.endswith(".json") and data.draw(st.booleans())
    return data.draw(damaged_json(content) if is_json else damaged_bytes(content))


# -- a store
def read_store(folder):
    store = Store.open(folder)
    rows = np.sort(np.concatenate([store.rows(split) for split in ("train", "validation", "test")]))
    panel = store.panel(20)
    cells = store.read(rows, panel)
    table = store.phenotype_table(rows)
    assert cells.shape == (len(rows), len(panel))
    return cells.toarray(), table, panel.ids, store.truth


@settings(max_examples=20)
@given(data=st.data())
def test_a_damaged_store_is_refused_or_read_as_it_was(tiny_store, place, data):
    folder = place / "store"
    folder.mkdir(exist_ok=True)
    files = files_of(tiny_store.path)
    name = data.draw(st.sampled_from(sorted(files)))
    put(folder, files | {name: damage(data, name, files[name])})
    with contextlib.suppress(DataError):
        values, table, ids, truth = read_store(folder)
        wanted = read_store(tiny_store.path)
        np.testing.assert_array_equal(values, wanted[0])
        assert table.equals(wanted[1])
        assert (ids, truth) == wanted[2:]


# -- a checkpoint
@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    weights = {"weight": torch.arange(6.0).reshape(2, 3)}
    state = {"random": torch.arange(4), "best_loss": 0.5, "metrics": {"acc": 0.5}}
    folder = tmp_path_factory.mktemp("checkpoints")
    return files_of(save_checkpoint(folder, step=3, weights=weights, state=state))


@given(data=st.data(), is_signed=st.booleans())
def test_a_damaged_checkpoint_is_passed_over_or_refused(checkpoint, place, data, is_signed):
    """A stranger may make the checksums right, too; nothing in the file is run as code."""
    folder = place / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True, exist_ok=True)
    name = data.draw(st.sampled_from(sorted(checkpoint)))
    files = checkpoint | {name: damage(data, name, checkpoint[name])}
    if is_signed and name != "complete.json":
        marker = json.loads(files["complete.json"])
        marker["sha256"][name] = hashlib.sha256(files[name]).hexdigest()
        files["complete.json"] = json.dumps(marker).encode()
    put(folder, files)
    path = latest_checkpoint(folder.parent)
    if path is None:
        return
    with contextlib.suppress(DataError):
        weights, state = load_checkpoint(path)
        if not is_signed:
            assert weights["weight"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
            assert state["metrics"] == {"acc": 0.5}


# -- unfinished cells
@settings(max_examples=8)
@given(data=st.data())
def test_damaged_unfinished_cells_are_refused_or_made_again(place, data):
    whole = place / "whole.h5ad"
    if not whole.exists():
        write_generated(source_of(), whole)
    output = place / "cells.h5ad"
    folder = partial_folder(output)
    shutil.rmtree(folder, ignore_errors=True)
    output.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.generation.generated_file._PART_CELLS", 7)
        with contextlib.suppress(KeyboardInterrupt):
            write_generated(source_of(), output, on_progress=Stop(21))
        files = files_of(folder)
        name = data.draw(st.sampled_from(sorted(set(files) - {".lock"})))
        put(folder, {name: damage(data, name, files[name])})
        with contextlib.suppress(DataError, ConfigurationError):
            write_generated(source_of(), output)
            made, wanted = anndata.read_h5ad(output), anndata.read_h5ad(whole)
            np.testing.assert_array_equal(made.X.toarray(), wanted.X.toarray())
            assert made.obs.equals(wanted.obs)
