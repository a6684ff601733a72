"""Preparing in pieces: by several processes, after a kill at any moment, beside another process."""

import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from core.cells.prepare import pipeline, prepare_store
from core.cells.prepare.buckets import sums_of_training_cells
from core.errors import DataError, MachineError
from tests.cells.examples import log_normalised, make_adata, make_obs, settings, write

#: Small enough that the files of these tests make a dozen parts and eight buckets.
PART_VALUES = 1_000


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(pipeline, "PART_VALUES", PART_VALUES)


def write_shards(folder, n_files=3, n_cells=120):
    return [
        write(make_adata(n_cells, seed=number), folder, f"shard_{number}.h5ad")
        for number in range(n_files)
    ]


def spoil(file, value, row=100):
    adata = anndata.read_h5ad(file)
    dense = adata.X.toarray()
    dense[row, 7] = value
    adata.X = sparse.csr_matrix(dense)
    adata.write_h5ad(file)


def digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_cells_of_all_files_are_mixed(tmp_path):
    store = prepare_store(settings(write_shards(tmp_path)), tmp_path / "store")
    # 60 of 360 cells, 20 of each file expected; 6 standard deviations leave room.
    for first in range(0, 360, 60):
        of_files = np.bincount(store.origins[first : first + 60, 0], minlength=3)
        assert (np.abs(of_files - 20) < 6 * np.sqrt(60 * 2 / 9)).all()
    assert (np.diff(store.origins[store.origins[:, 0] == 0, 1]) < 0).mean() > 0.3


def test_genes_are_ranked_over_the_training_cells_of_all_pieces(tmp_path, monkeypatch):
    files = write_shards(tmp_path)
    spoil(files[0], 65_535, row=5)
    spoil(files[1], 1_000_000)
    merged = []

    def keep(notes):
        merged.append(sums_of_training_cells(notes))
        assert len(notes) > 4
        return merged[0]

    monkeypatch.setattr(pipeline, "sums_of_training_cells", keep)
    store = prepare_store(settings(files), tmp_path / "store")
    counts = np.concatenate([anndata.read_h5ad(file).X.toarray() for file in files])
    cell = store.origins[:, 0] * 120 + store.origins[:, 1]
    training = counts[cell[store.split_codes == 0]].astype(np.float64)
    assert 0 < len(training) < len(counts)
    assert training.max() == 1_000_000
    assert merged[0].n_cells == len(training)
    np.testing.assert_array_equal(merged[0].sums, training.sum(axis=0))
    np.testing.assert_array_equal(merged[0].squares, (training**2).sum(axis=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = sc.pp.highly_variable_genes(
            anndata.AnnData(training), flavor="seurat_v3", n_top_genes=10, inplace=False
        )["variances_norm"].to_numpy()
    order = np.load(store.path / "gene_order.npy")
    np.testing.assert_allclose(scores[order], np.sort(scores)[::-1], rtol=1e-6)


@pytest.mark.parametrize("log", [False, True])
def test_pieces_and_processes_change_no_byte(tmp_path, monkeypatch, log):
    shards = [make_adata(120, seed=number) for number in range(2)]
    for shard in shards if log else ():
        shard.X = log_normalised(shard.X.toarray(), total=2_000).astype(np.float32)
    files = [write(shard, tmp_path, f"{number}.h5ad") for number, shard in enumerate(shards)]
    prepare_store(settings(files), tmp_path / "alone", workers=1)
    prepare_store(settings(files), tmp_path / "together", workers=2)
    monkeypatch.setattr(pipeline, "PART_VALUES", 10**6)
    prepare_store(settings(files), tmp_path / "whole")
    assert digest(tmp_path / "alone") == digest(tmp_path / "together") == digest(tmp_path / "whole")


@pytest.mark.parametrize("stage", ["reading cells", "writing cells", "ranking genes", "checksums"])
def test_a_stopped_preparation_goes_on_and_ends_in_the_same_store(tmp_path, stage):
    data = settings(write_shards(tmp_path))
    prepare_store(data, tmp_path / "whole")

    def interrupt(event):
        if event.stage == stage and event.done > event.total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_store(data, tmp_path / "store", on_progress=interrupt)
    assert not (tmp_path / "store").exists()
    parts = {
        path.name: path.stat().st_mtime_ns
        for path in (tmp_path / "store.preparing" / "parts").glob("*.part")
    }
    assert parts
    events = []
    seen = {}

    def listen(event):
        events.append(event)
        if event.stage == "writing cells":
            folder = tmp_path / "store.preparing" / "parts"
            seen.update({path.name: path.stat().st_mtime_ns for path in folder.glob("*.part")})

    prepare_store(data, tmp_path / "store", on_progress=listen)
    assert any("pieces exist already" in event.message for event in events)
    assert {name: seen[name] for name in parts} == parts  # none was written again
    assert digest(tmp_path / "store") == digest(tmp_path / "whole")
    assert not (tmp_path / "store.preparing").exists()


def test_a_damaged_file_among_good_ones_is_named_and_the_others_are_kept(tmp_path):
    files = write_shards(tmp_path, n_cells=600)
    whole = Path(files[1]).read_bytes()
    spoil(files[1], -1, row=17)  # not sampled
    with pytest.raises(DataError, match=r"shard_1\.h5ad: X holds -1 .* is kept"):
        prepare_store(settings(files), tmp_path / "store")
    kept = list((tmp_path / "store.preparing" / "parts").glob("*.part"))
    assert kept
    Path(files[1]).write_bytes(whole)
    store = prepare_store(settings(files), tmp_path / "store")
    assert store.n_cells == 1_800
    assert not (tmp_path / "store.preparing").exists()


def test_all_damaged_files_are_named_at_once_and_nothing_useless_is_left(tmp_path):
    files = write_shards(tmp_path, n_files=2, n_cells=600)
    for file in files:
        spoil(file, 0.5, row=17)
    with pytest.raises(DataError, match=r"shard_0\.h5ad.*shard_1\.h5ad"):
        prepare_store(settings(files), tmp_path / "store")
    assert not (tmp_path / "store.preparing").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "zeros"])
def test_every_changed_piece_of_an_unfinished_store_is_made_again(tmp_path, damage, caplog):
    data = settings(write_shards(tmp_path, 1, n_cells=50))
    prepare_store(data, tmp_path / "whole")

    def interrupt(event):
        if event.stage == "checksums":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_store(data, tmp_path / "store", on_progress=interrupt)
    unfinished, kept = tmp_path / "store.preparing", tmp_path / "kept"
    unfinished.rename(kept)
    files = [path for path in kept.rglob("*") if path.is_file() and path.name != "lock"]
    kinds = {path.name if path.suffix == ".npy" else path.suffix: path for path in sorted(files)}
    assert {".part", ".note", "genes.npy", "indptr.npy", "phenotypes.npy"} <= set(kinds)
    if damage != "flip":
        kinds = {name: kinds[name] for name in (".part", ".note", "values.npy")}
    # Bytes of headers, of values, and the last one.
    for path, place in zip(kinds.values(), itertools.cycle((0.5, 2, -1))):
        shutil.copytree(kept, unfinished)
        content = bytearray(path.read_bytes())
        at = int(place * len(content)) if isinstance(place, float) else place % len(content)
        if damage == "flip":
            content[at] ^= 1
        elif damage == "cut":
            del content[at:]
        else:
            content[at:] = bytes(len(content) - at)
        (unfinished / path.relative_to(kept)).write_bytes(content)
        caplog.clear()
        prepare_store(data, tmp_path / "store")
        assert digest(tmp_path / "store") == digest(tmp_path / "whole"), (path, place)
        assert ("is made again" in caplog.text) == (path.suffix == ".part")
        shutil.rmtree(tmp_path / "store")


@pytest.mark.parametrize("stage", ["reading cells", "writing cells"])
def test_a_disk_that_fills_half_way_is_told_and_the_work_goes_on_later(
    tmp_path, monkeypatch, stage
):
    data = settings(write_shards(tmp_path))
    prepare_store(data, tmp_path / "whole")
    left = 5
    real = {"fsync": os.fsync, "pwrite": os.pwrite}
    name = "fsync" if stage == "reading cells" else "pwrite"

    def full(*arguments):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        return real[name](*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(MachineError, match=r"No space left on device.*to continue"):
            prepare_store(data, tmp_path / "store")
    prepare_store(data, tmp_path / "store")
    assert digest(tmp_path / "store") == digest(tmp_path / "whole")


def test_a_second_process_waits_and_finds_the_store_made(tmp_path):
    data = settings(write_shards(tmp_path))
    holds, go_on = threading.Event(), threading.Event()
    messages = []

    def first(event):
        if event.stage == "writing cells":
            holds.set()
            assert go_on.wait(30)

    def second(event):
        messages.append(event.message)
        if "another process" in event.message:
            go_on.set()

    thread = threading.Thread(
        target=prepare_store, args=(data, tmp_path / "store"), kwargs={"on_progress": first}
    )
    thread.start()
    assert holds.wait(30)
    store = prepare_store(data, tmp_path / "store", on_progress=second)
    thread.join()
    assert store.n_cells == 360
    assert [message for message in messages if message] == [messages[0]]  # it made none itself


KILLED = """
import sys
from pathlib import Path
from core.cells.prepare import pipeline
from core.presets.schema import DataSettings
pipeline.PART_VALUES = {part_values}
data = DataSettings.model_validate({{"files": sys.argv[2:]}})
pipeline.prepare_store(
    data, Path(sys.argv[1]), workers=2, on_progress=lambda event: print(event.stage, flush=True)
)
"""


@pytest.mark.slow
def test_kill_9_in_each_stage_always_ends_in_the_same_store(tmp_path):
    data = settings(write_shards(tmp_path, n_files=4, n_cells=400))
    stages = []
    prepare_store(data, tmp_path / "whole", on_progress=lambda event: stages.append(event.stage))
    expected = digest(tmp_path / "whole")

    def kill(name, stage, number, delay):
        """Prepare with two workers; kill all shortly after the n-th event of a stage."""
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED.format(part_values=PART_VALUES), tmp_path / name, *data.files],
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        for line in process.stdout:
            number -= line.strip() == stage
            if number == 0:
                time.sleep(delay)
                os.killpg(process.pid, signal.SIGKILL)
                break
        process.stdout.close()
        process.wait()

    chance = random.Random(0)
    trial = 0
    for stage in ("reading cells", "writing cells", "checksums"):
        kill(
            f"store{trial}", stage, chance.randint(1, stages.count(stage)), chance.uniform(0, 0.05)
        )
        if (tmp_path / f"store{trial}").exists():  # it ended before it was killed
            assert digest(tmp_path / f"store{trial}") == expected
            assert not (tmp_path / f"store{trial}.preparing").exists()
            trial += 1
    prepare_store(data, tmp_path / f"store{trial}")
    assert digest(tmp_path / f"store{trial}") == expected


def test_seventy_thousand_genes_take_a_wider_index(tmp_path):
    n_genes = 70_000
    rng = np.random.default_rng(0)
    dense = rng.integers(1, 10, (60, n_genes)) * (rng.random((60, n_genes)) < 0.002)
    counts = sparse.csr_matrix(dense.astype(np.float32))
    adata = anndata.AnnData(
        sparse.csr_matrix(counts, dtype=np.float32),
        obs=make_obs(60),
        var=pd.DataFrame(index=[f"ENSG{number:011d}" for number in range(n_genes)]),
    )
    store = prepare_store(settings(write(adata, tmp_path)), tmp_path / "store")
    assert store.columns.dtype == np.int32
    assert len(store.genes) == n_genes
    rows = np.lexsort((store.origins[:, 1],))
    assert (store.read_counts(rows, store.genes) != adata.X).nnz == 0
