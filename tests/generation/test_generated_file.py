"""Cells on disk: the same as in memory, whole or absent, and resumed to the same bytes."""

import os
import random
import shutil
import tracemalloc
from collections import namedtuple

import anndata
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigurationError, MachineError
from core.generation import generated_file
from core.generation.cell_generator import CellGenerator, generate_cells
from core.generation.generated_file import partial_folder, read_first_cells, write_generated
from core.generation.request import GenerationRequest
from tests.model.examples import make_cell_model

from .examples import with_reference


def source_of(model=None, *, n_cells=30, batch_size=4, phenotypes=None, **others):
    model = with_reference(make_cell_model()) if model is None else model
    sampling = model.generate.model_copy(update=others.pop("settings", {}))
    request = GenerationRequest(phenotypes or {}, n_cells, settings=sampling, **others)
    return CellGenerator(model, request, batch_size=batch_size)


@pytest.fixture
def small_parts(monkeypatch):
    """Call a part done after eight cells."""
    monkeypatch.setattr(generated_file, "_PART_CELLS", 8)


class Stop:
    """A listener that presses Ctrl-C, or what else it is given, after some cells."""

    def __init__(self, n_cells, fault=KeyboardInterrupt):
        self.n_cells, self.fault = n_cells, fault

    def __call__(self, event):
        if event.stage == "generating cells" and event.done >= self.n_cells:
            raise self.fault


@pytest.mark.parametrize("phenotypes", [{}, {"sex": "male"}])
@pytest.mark.parametrize("unspecified", ["sample", "none"])
def test_the_file_holds_the_cells_that_memory_would(tmp_path, small_parts, phenotypes, unspecified):
    source = source_of(phenotypes=phenotypes, unspecified=unspecified)
    write_generated(source, tmp_path / "new" / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "new" / "cells.h5ad")
    cells, _ = generate_cells(source.model, source.request, batch_size=4)
    np.testing.assert_array_equal(read.X.toarray(), cells.X.toarray())
    assert read.X.dtype == np.float32
    pd.testing.assert_frame_equal(read.obs, cells.obs)
    pd.testing.assert_frame_equal(read.var, cells.var)
    facts = read.uns["tfx_generation"]
    assert facts["request"] == phenotypes
    assert list(facts["notes"]) == source.notes
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cells.h5ad"]
    first = read_first_cells(tmp_path / "new" / "cells.h5ad", 11)
    np.testing.assert_array_equal(first.toarray(), cells.X[:11].toarray())
    assert read_first_cells(tmp_path / "new" / "cells.h5ad", 99).shape == cells.shape


def test_a_model_without_phenotypes_and_cells_without_a_gene_can_be_written(tmp_path):
    model = make_cell_model("binary", phenotypes={}, layers=0, log_linear=True)
    model.network.log_linear.gene_prior.fill_(-100.0)
    model.network.log_linear.effects.weight.data.zero_()
    write_generated(source_of(model), tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert list(read.obs.columns) == ["synthetic"]
    assert (read.n_obs, read.X.nnz) == (30, 0)


@settings(max_examples=10)
@given(
    kind=st.sampled_from(["binned", "binary", "continuous"]),
    stops=st.lists(st.integers(1, 30), max_size=3),
)
def test_a_file_resumed_at_any_moment_is_the_same_file(tmp_path_factory, kind, stops):
    folder = tmp_path_factory.mktemp("resumed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generated_file, "_PART_CELLS", 8)
        model = with_reference(make_cell_model(kind))
        write_generated(source_of(model), folder / "whole.h5ad")
        for n_cells in stops:
            with pytest.raises(KeyboardInterrupt):
                write_generated(source_of(model), folder / "cells.h5ad", on_progress=Stop(n_cells))
            assert not (folder / "cells.h5ad").exists()
        write_generated(source_of(model), folder / "cells.h5ad")
    assert (folder / "cells.h5ad").read_bytes() == (folder / "whole.h5ad").read_bytes()
    assert {path.name for path in folder.iterdir()} == {"cells.h5ad", "whole.h5ad"}


def test_what_is_done_is_not_made_again_and_a_torn_end_is_cut_off(tmp_path, small_parts, caplog):
    output = tmp_path / "cells.h5ad"
    with pytest.raises(KeyboardInterrupt):
        write_generated(source_of(), output, on_progress=Stop(21))
    assert "16 finished cells stay in" in caplog.text
    with (partial_folder(output) / "values.f32").open("ab") as file:
        file.write(b"torn")
    heard = []
    write_generated(source_of(), output, on_progress=heard.append)
    assert min(event.done for event in heard if event.stage == "generating cells") > 16
    write_generated(source_of(), tmp_path / "whole.h5ad")
    assert output.read_bytes() == (tmp_path / "whole.h5ad").read_bytes()


def test_a_stop_before_the_first_part_leaves_nothing(tmp_path, small_parts):
    with pytest.raises(KeyboardInterrupt):
        write_generated(source_of(), tmp_path / "cells.h5ad", on_progress=Stop(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"phenotypes": {"sex": "male"}}, {"n_cells": 29}, {"settings": {"steps": 2}},
     {"model": with_reference(make_cell_model(seed=1))}],
)  # fmt: skip
def test_unfinished_cells_of_another_request_are_kept_unless_told_otherwise(
    tmp_path, small_parts, change
):
    output = tmp_path / "cells.h5ad"
    with pytest.raises(KeyboardInterrupt):
        write_generated(source_of(), output, on_progress=Stop(21))
    with pytest.raises(ConfigurationError, match="16 unfinished cells of another request or model"):
        write_generated(source_of(**change), output)
    assert (partial_folder(output) / "parts.jsonl").exists()
    write_generated(source_of(**change), output, restart=True)
    write_generated(source_of(**change), tmp_path / "other.h5ad")
    assert output.read_bytes() == (tmp_path / "other.h5ad").read_bytes()


@pytest.mark.parametrize("seed", range(8))
def test_damaged_parts_are_made_again(tmp_path, small_parts, seed):
    """Bytes are flipped, cut off or lost, anywhere in the folder but in the request."""
    output, rng = tmp_path / "cells.h5ad", random.Random(seed)
    with pytest.raises(KeyboardInterrupt):
        write_generated(source_of(), output, on_progress=Stop(29))
    files = sorted(partial_folder(output).glob("[!r]*.*"))
    assert len(files) == 6
    path = files[seed % 6]
    content = bytearray(path.read_bytes())
    if seed < 6:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content if seed < 6 else content[: rng.randrange(len(content))])
    write_generated(source_of(), output)
    write_generated(source_of(), tmp_path / "whole.h5ad")
    assert output.read_bytes() == (tmp_path / "whole.h5ad").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="links and owners as POSIX has them")
def test_a_link_in_the_partial_folder_is_not_followed(tmp_path, small_parts):
    output, other = tmp_path / "cells.h5ad", tmp_path / "theirs.txt"
    other.write_text("theirs")
    folder = partial_folder(output)
    folder.mkdir(mode=0o777)
    for name in ("assembled.h5ad", "values.f32", "parts.jsonl", "request.json"):
        (folder / name).symlink_to(other)
    write_generated(source_of(), output)
    assert other.read_text() == "theirs"
    assert not output.is_symlink()
    assert anndata.read_h5ad(output).n_obs == 30
    folder.symlink_to(tmp_path)
    with pytest.raises(MachineError, match="partial: is no folder"):
        write_generated(source_of(), output)
    folder.unlink()
    with pytest.raises(KeyboardInterrupt):
        write_generated(source_of(), output, on_progress=Stop(21))
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "values.f32").rename(tmp_path / "values")
    (folder / "values.f32").symlink_to(tmp_path / "values")
    with pytest.raises(MachineError, match=r"cells\.h5ad cannot be written"):
        write_generated(source_of(), output)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid(), reason="gives a folder away")
def test_the_partial_folder_of_another_user_is_not_used(tmp_path):
    folder = partial_folder(tmp_path / "cells.h5ad")
    folder.mkdir()
    os.chown(folder, 4711, -1)
    with pytest.raises(MachineError, match=r"belongs to another user \(4711\)"):
        write_generated(source_of(), tmp_path / "cells.h5ad")


def test_two_processes_do_not_write_the_same_file(tmp_path):
    output = tmp_path / "cells.h5ad"
    partial_folder(output).mkdir()
    with (
        FileLock(partial_folder(output) / ".lock"),
        pytest.raises(MachineError, match="another process is writing"),
    ):
        write_generated(source_of(), output)
    assert partial_folder(output).exists()


def test_a_fault_while_the_file_is_put_together_leaves_the_old_one_whole(
    tmp_path, monkeypatch, small_parts
):
    output = tmp_path / "cells.h5ad"
    output.write_bytes(b"the old file")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(generated_file, "empty_rows", fail)
        with pytest.raises(MachineError, match=r"No space left.*the same command resumes"):
            write_generated(source_of(), output)
    assert output.read_bytes() == b"the old file"
    write_generated(source_of(), output, on_progress=Stop(1))  # nothing is left to generate
    assert anndata.read_h5ad(output).n_obs == 30
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_a_disk_without_room_is_refused_before_the_first_cell(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**10, 10**10 - 3, 3))
    source = source_of(n_cells=500_000_000)
    with pytest.raises(MachineError, match=r"500,000,000 cells need about \d+.* 0\.0 GB free"):
        write_generated(source, tmp_path / "cells.h5ad")
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_cells(tmp_path):
    """What is held at once are a part's cells, whatever their number."""
    model = with_reference(make_cell_model(layers=0, log_linear=True))
    peaks = []
    for n_cells in (1_000, 5_000):
        source = source_of(model, n_cells=n_cells, batch_size=500, settings={"steps": 1})
        tracemalloc.start()
        write_generated(source, tmp_path / f"{n_cells}.h5ad")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Held whole, 4,000 cells more would take 4,000 x (name 64 + codes 8 + values 7 x 8) bytes.
    assert peaks[1] < 1.15 * peaks[0]
