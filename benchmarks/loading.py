"""Loading: cells per second from disk to train-ready tokens, tfx beside the originals and its peers.

    python benchmarks/loading.py                          5 shards of 10,000 cells, some minutes
    python benchmarks/loading.py --quick --json           2 of 2,000; last line one JSON object
    python benchmarks/loading.py --peers-python PYTHON    annbatch too, by a Python >= 3.12 that has it

Shards of 58,604 genes (`simulated_shards`), cells sorted by type, gzipped; batches of 128 cells, at
most 10,000 tokens, the originals' longest, which cuts none; ten bins; one process each, one after the
other, from a warm page cache. Train-ready is what the originals make: value ids, gene ids, mask, padded to int64; or the same packed, which is
what tfx trains on. Where a peer gives CSR rows, tfx's own encoder makes them train-ready. CPU time is
that of all threads. Memory is the highest anonymous memory (pages of files are the system's to take
back). Also: how mixed batches are, and how much faster the loader is than the model of base.toml.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parents[1]))  # the peers' Python has no tfx installed
from core.cells.store import Store
from core.encoding.batches import BatchEncoder
from core.encoding.cell_batch import CellBatch
from core.encoding.loader import BatchLoader, BatchSource
from core.encoding.panel_cells import PanelCells, PanelReader
from core.encoding.sampler import BlockSampler
from core.encoding.tokens import TokenSpace
from core.encoding.values import ValueEncoder
from core.presets.schema import MaskingSettings

N_GENES = 58_604  # as `simulated_shards`, which the measured processes do without
BATCH = 128
#: PerturbGene's longest setting.
MAX_LENGTH = 10_000
SHORT = 2_048
EDGES = np.linspace(0.1, 9, 9, dtype=np.float32)
PHENOTYPES = {
    "sex": ["female", "male"],
    "tissue": ["blood", "lung", "spleen"],
    "cell_type": [f"type {number:02d}" for number in range(30)],
}
NOTHING_HIDDEN = MaskingSettings(genes=0.0, phenotypes=0.0, unspecified=0.0, unexpressed=0.0)
#: Cells of a shard that the originals' way encodes; the reading counts in proportion.
ORIGINALS_CELLS = 1_024
WAYS = {
    "originals": "the originals: AnnData views, strings, lists",
    "dataloader": "torch DataLoader over backed AnnData",
    "annloader": "AnnLoader, backed",
    "scdataset": "scDataset, blocks of 64, backed",
    "annbatch_float32": "annbatch, float32, blocks of 64",
    "annbatch_uint8": "annbatch, uint8 bins, blocks of 64",
    "tfx_float32": "tfx, float32 store",
    "tfx_counts": "tfx, counts, lossless store",
    "tfx_masked": "tfx, counts, with masks and unexpressed genes",
    "tfx_short": "tfx, counts, at most 2,048 tokens: a random choice of genes",
}


class BinnedEncoder(BatchEncoder):
    """The encoder for cells that are stored as bins already."""

    def _without_bin_0(self, cells: PanelCells, *_: object) -> PanelCells:
        return cells

    def _values(self, cells: PanelCells, *_: object) -> tuple[np.ndarray, None]:
        return np.add(cells.values, self.tokens.first_bin, dtype=self.tokens.value_type), None


def make_encoder(
    n_genes: int, *, kind: type[BatchEncoder] = BatchEncoder, longest: int = MAX_LENGTH
) -> BatchEncoder:
    """Make the encoder that all ways but the originals' share."""
    tokens = TokenSpace(PHENOTYPES, n_genes, len(EDGES) + 1, layout="expressed")
    return kind(tokens, ValueEncoder("binned", EDGES), max_length=longest)


def pad(batch: CellBatch) -> dict[str, np.ndarray]:
    """Pad a packed batch to int64, as the originals do."""
    bounds = batch.cu_seqlens.tolist()
    shape = (batch.n_cells, batch.max_length)
    padded = {"values": np.zeros(shape, np.int64), "genes": np.zeros(shape, np.int64)}
    for name, tokens in (("values", batch.value), ("genes", batch.token_id)):
        rows = padded[name]
        for row, (start, end) in enumerate(itertools.pairwise(bounds)):
            rows[row, : end - start] = tokens[start:end]
    mask = np.arange(shape[1]) < np.diff(batch.cu_seqlens)[:, None]
    return {**padded, "mask": mask.astype(np.int64)}


# ------------------------------------------------------------------------------------ the ways


def tfx_batches(
    store: Path, masking: MaskingSettings = NOTHING_HIDDEN, *, longest: int = MAX_LENGTH
) -> Iterator[CellBatch]:
    """Yield batches of the real loader, thread and all."""
    opened = Store.open(store)
    reader = PanelReader(opened, opened.panel(len(opened.genes)))
    encoder = make_encoder(len(opened.genes), longest=longest)
    sampler = BlockSampler(opened.rows("train"), seed=0, batch_size=BATCH)
    source = BatchSource(reader, encoder, sampler, masking)
    with BatchLoader(source, sampler.start) as loader:
        while True:
            yield loader.next().batch


def encode_rows(encoder: BatchEncoder, matrix: sparse.csr_matrix, codes: np.ndarray) -> CellBatch:
    """Make (cells, genes) of a peer train-ready by tfx's own encoder."""
    return encoder.masked(matrix, codes, NOTHING_HIDDEN, np.random.default_rng(0))


def codes_of(obs) -> np.ndarray:
    """(cells, phenotypes) codes of an obs table."""
    columns = [
        np.searchsorted(values, np.asarray(obs[name]).astype(str))
        for name, values in PHENOTYPES.items()
    ]
    return np.stack(columns, axis=1).astype(np.int32)


def peer_batches(way: str, folder: Path) -> Iterator[CellBatch]:
    """Yield batches of a peer that reads the shards."""
    import anndata
    from anndata.experimental import AnnCollection, AnnLoader

    files = sorted(folder.glob("log_*.h5ad"))
    shards = [anndata.read_h5ad(path, backed="r") for path in files]
    encoder = make_encoder(shards[0].n_vars)
    # From tables in memory: what is measured is how expression is read.
    codes = np.concatenate([codes_of(shard.obs) for shard in shards])
    if way == "dataloader":
        from torch.utils.data import DataLoader, Dataset

        ends = np.cumsum([shard.n_obs for shard in shards])

        class Cells(Dataset):
            def __len__(self) -> int:
                return int(ends[-1])

            def __getitem__(self, cell: int) -> tuple[int, sparse.csr_matrix]:
                shard = int(np.searchsorted(ends, cell, side="right"))
                return cell, shards[shard].X[cell - int(ends[shard]) + shards[shard].n_obs]

        def join(items: list) -> tuple[np.ndarray, sparse.csr_matrix]:
            cells, rows = zip(*items, strict=True)
            return np.array(cells), sparse.vstack([sparse.csr_matrix(row) for row in rows], "csr")

        for cells, matrix in DataLoader(Cells(), BATCH, shuffle=True, collate_fn=join):
            yield encode_rows(encoder, matrix, codes[cells])
        return
    collection = AnnCollection(shards, join_vars="inner", index_unique="-", label="shard")
    if way == "annloader":
        indices = {name: number for number, name in enumerate(collection.obs_names)}
        loader = AnnLoader(collection, batch_size=BATCH, shuffle=True, use_default_converter=False)
        for view in loader:
            cells = np.array([indices[name] for name in view.obs_names])
            yield encode_rows(encoder, sparse.csr_matrix(view.X), codes[cells])
        return
    from scdataset import BlockShuffling, MultiIndexable, scDataset

    class Rows:
        """A CSR matrix that says its length, as scDataset asks."""

        def __init__(self, matrix: sparse.csr_matrix) -> None:
            self.matrix = matrix

        def __len__(self) -> int:
            return self.matrix.shape[0]

        def __getitem__(self, rows: np.ndarray) -> "Rows":
            return Rows(self.matrix[rows])

    def fetch(data: AnnCollection, indices: np.ndarray) -> MultiIndexable:
        matrix = sparse.csr_matrix(data[indices].X)
        return MultiIndexable(X=Rows(matrix), codes=codes[indices])

    for batch in scDataset(
        collection,
        BlockShuffling(block_size=64),
        batch_size=BATCH,
        fetch_factor=64,
        fetch_callback=fetch,
        seed=0,
    ):
        yield encode_rows(encoder, batch["X"].matrix, batch["codes"])


def build_annbatch(way: str, folder: Path) -> None:
    """Write annbatch's own shuffled collection of the shards."""
    import anndata
    from annbatch import DatasetCollection

    def load(path: object) -> anndata.AnnData:
        data = anndata.read_h5ad(path)
        if way == "annbatch_uint8":
            data.X.data = np.searchsorted(EDGES, data.X.data, side="right").astype(np.uint8)
        data.obs = data.obs[["sex", "tissue", "cell_type"]]
        return data

    if not (folder / f"{way}.zarr").exists():
        files = [str(path) for path in sorted(folder.glob("log_*.h5ad"))]
        DatasetCollection(folder / f"{way}.zarr", mode="a").add_adatas(
            files, load_adata=load, shuffle=True
        )


def annbatch_batches(way: str, folder: Path) -> Iterator[CellBatch]:
    """Yield batches of annbatch from its collection."""
    import zarr
    from annbatch import DatasetCollection, Loader

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    loader = Loader(
        chunk_size=64, preload_nchunks=128, batch_size=BATCH, shuffle=True, preload_to_gpu=False,
    ).use_collection(DatasetCollection(folder / f"{way}.zarr", mode="r"))  # fmt: skip
    as_bins = way == "annbatch_uint8"
    encoder = make_encoder(N_GENES, kind=BinnedEncoder if as_bins else BatchEncoder)
    for batch in loader:
        cells = PanelCells.of(batch["X"])
        if as_bins:
            cells = replace(cells, values=batch["X"].data)
        yield encode_rows(encoder, cells, codes_of(batch["obs"]))


def batches_of(way: str, folder: Path) -> Iterator[CellBatch]:
    """Yield the batches of a way, epoch after epoch."""
    if way == "tfx_masked":
        yield from tfx_batches(folder / "store_counts", MaskingSettings())
    elif way == "tfx_short":
        yield from tfx_batches(folder / "store_counts", longest=SHORT)
    elif way.startswith("tfx"):
        yield from tfx_batches(folder / f"store_{way.removeprefix('tfx_')}")
    else:
        make = annbatch_batches if way.startswith("annbatch") else peer_batches
        while True:
            yield from make(way, folder)


# --------------------------------------------------------------------------------- measurements


class PeakMemory:
    """The highest anonymous memory of this process, looked at every 20 ms."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.peak = max(self.peak, int(line.split()[1]) * 1024)

    def close(self) -> int:
        self._done.set()
        self._thread.join()
        return self.peak


def measure_originals(folder: Path) -> dict:
    """Read one shard whole, encode some of its cells; count the reading in proportion."""
    import originals_loader
    from anndata import read_h5ad

    shard = folder / "log_0.h5ad"
    memory = PeakMemory()
    began, cpu = time.perf_counter(), time.process_time()
    n_shard = read_h5ad(shard).n_obs
    read = time.perf_counter() - began, time.process_time() - cpu
    loader = originals_loader.batches(
        shard, PHENOTYPES, EDGES, batch_size=BATCH, max_length=MAX_LENGTH
    )
    next(loader)  # reads the shard again
    rounds = []
    for _ in range(3):
        began, cpu, n_cells = time.perf_counter(), time.process_time(), 0
        for batch in itertools.islice(loader, ORIGINALS_CELLS // BATCH // 3 + 1):
            n_cells += len(batch["values"])
        encode = time.perf_counter() - began, time.process_time() - cpu
        wall, used = (read[i] / n_shard + encode[i] / n_cells for i in (0, 1))
        rounds.append((1 / wall, used * 1e3))
    return summary(rounds, memory.close())


def measure(way: str, folder: Path, form: str, *, seconds: float, rounds: int) -> dict:
    """Time a way: cells per second and CPU milliseconds per cell, round by round."""
    finish: Callable = pad if form == "padded" else (lambda batch: batch)
    memory = PeakMemory()
    batches = batches_of(way, folder)
    slow = way in ("dataloader", "annloader")
    n_warm = 1 if slow else 3 * 8_192 // BATCH
    began = time.perf_counter()
    for batch in itertools.islice(batches, n_warm):
        finish(batch)
        if time.perf_counter() - began > 20:
            break
    found, n_tokens, n_total = [], 0, 0
    for _ in range(rounds):
        began, cpu, n_cells = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < seconds:
            batch = next(batches)
            finish(batch)
            n_cells += batch.n_cells
            n_tokens += len(batch.token_id)
        wall, used = time.perf_counter() - began, time.process_time() - cpu
        found.append((n_cells / wall, used / n_cells * 1e3))
        n_total += n_cells
    batches.close()
    return summary(found, memory.close()) | {"tokens_per_cell": n_tokens / n_total}


def summary(rounds: list[tuple[float, float]], peak: int) -> dict:
    """Medians over rounds, and all of them."""
    rates, cpu = (np.array(column) for column in zip(*rounds, strict=True))
    return {
        "cells_per_second": float(np.median(rates)),
        "cpu_ms_per_cell": float(np.median(cpu)),
        "rounds": [round(float(rate)) for rate in rates],
        "anonymous_mb": peak / 2**20,
    }


def entropy(codes: np.ndarray) -> float:
    """Bits."""
    share = np.bincount(codes) / len(codes)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def measure_mixing(folder: Path, n_batches: int = 300) -> dict:
    """Mean entropy of cell type and shard within a batch, tfx beside exact random sampling."""
    store = Store.open(folder / "store_counts")
    rows = store.rows("train")
    kind = list(store.phenotypes).index("cell_type")
    labels = {
        "cell_type": np.asarray(store.phenotype_codes[:, kind]),
        "shard": np.asarray(store.origins[:, 0]),
    }
    sampler = BlockSampler(rows, seed=0, batch_size=BATCH)
    rng = np.random.default_rng(0)
    cursor, ours, exact = sampler.start, [], []
    for _ in range(n_batches):
        ours.append(sampler.batch_rows(cursor))
        exact.append(rng.choice(rows, BATCH, replace=False))
        cursor = sampler.advance(cursor)
    return {
        name: {
            "tfx": float(np.mean([entropy(codes[batch]) for batch in ours])),
            "random": float(np.mean([entropy(codes[batch]) for batch in exact])),
        }
        for name, codes in labels.items()
    }


def measure_base(folder: Path, *, quick: bool) -> dict:
    """Cells per second of the loader alone and of training, for presets/base.toml."""
    import torch

    from core.cells.prepare import ensure_store
    from core.presets.loading import resolve_preset
    from core.runlog import RunReader
    from core.training.engine import train
    from core.training.run_setup import build_model
    from core.training.virtual_ranks import RunCells, make_batch_source

    steps = 30 if quick else 120
    preset = Path(__file__).parents[1] / "presets" / "base.toml"
    options = {
        "train.max_steps": 2 * steps, "train.log_linear_steps": steps, "train.eval_steps": 10**6,
        "train.eval_cells": 32, "train.save_steps": 10**6, "train.log_steps": steps,
    }  # fmt: skip
    resolved = resolve_preset(preset, options=options)
    store = ensure_store(resolved.preset.data, "base", root=folder)
    train(resolved, store, folder / "run")
    first, second = RunReader(folder / "run").metrics("train")[:2]
    torch.set_num_threads(1)
    cells = RunCells.of(resolved.preset, store)
    model = build_model(resolved.preset, cells, name="base")
    source = make_batch_source(resolved.preset, cells, model)
    with BatchLoader(source, source.sampler.start) as loader:
        for _ in range(100):
            loader.next()
        began, n_cells = time.perf_counter(), 0
        while time.perf_counter() - began < 3:
            n_cells += loader.next().batch.n_cells
        rate = n_cells / (time.perf_counter() - began)
    fastest = max(first["cells_per_second"], second["cells_per_second"])
    return {
        "loader_cells_per_second": rate,
        "log_linear_cells_per_second": first["cells_per_second"],
        "model_cells_per_second": second["cells_per_second"],
        "wait_share": second["wait"],
        "ratio": rate / fastest,
    }


# --------------------------------------------------------------------------------- the whole run


def build(folder: Path, *, n_shards: int, cells_per_shard: int) -> None:
    """Write the shards and prepare both stores."""
    from simulated_shards import write_shards

    from core.cells.prepare import prepare_store
    from core.presets.schema import DataSettings

    write_shards(folder, n_shards=n_shards, cells_per_shard=cells_per_shard)
    for files, name in (("counts", "counts"), ("log", "float32")):
        data = DataSettings.model_validate(
            {
                "files": [str(path) for path in sorted(folder.glob(f"{files}_*.h5ad"))],
                "hvg": "none",  # all genes in the order of the files, as peers hand them out
                "split": {"by": "cells", "validation": 0.05, "test": 0.05},
            }
        )
        prepare_store(data, folder / f"store_{name}")


def disk_bytes(way: str, folder: Path) -> int:
    """Bytes on disk of what a way reads."""
    places = {"tfx_float32": ["store_float32"], "annbatch_float32": [f"{way}.zarr"],
              "annbatch_uint8": [f"{way}.zarr"]}  # fmt: skip
    names = places.get(way, ["store_counts"] if way.startswith("tfx") else ["log_*.h5ad"])
    paths = [path for name in names for path in folder.glob(name)]
    files = [f for path in paths for f in ([path] if path.is_file() else path.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


def run_way(python: str, way: str, form: str, folder: Path, seconds: float, rounds: int) -> dict:
    """Measure one way in a process of its own."""
    steps = [["--way", way, "--form", form, "--seconds", str(seconds), "--rounds", str(rounds)]]
    if way.startswith("annbatch"):
        steps.insert(0, ["--build", way])
    for options in steps:
        command = [python, __file__, *options, "--folder", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            return {"error": lines[-1] if lines else f"ended with {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def show(results: dict, n_cells: int, disk: dict[str, int]) -> None:
    """Print the table as Markdown."""
    base = results["originals"]["packed"]["cells_per_second"]
    print("| way | packed: cells/s | x originals | CPU ms/cell | padded int64: cells/s | x originals "
          "| CPU ms/cell | anonymous MB | disk B/cell |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for way, forms in results.items():
        columns = []
        for form in ("packed", "padded"):
            figures = forms.get(form)
            if figures is None:
                columns += ["", "", ""]
            elif "error" in figures:
                columns += ["not available", "", ""]
            else:
                rate = figures["cells_per_second"]
                columns += [
                    f"{rate:,.0f}",
                    f"{rate / base:.1f}",
                    f"{figures['cpu_ms_per_cell']:.4f}",
                ]
        peaks = [f["anonymous_mb"] for f in forms.values() if "anonymous_mb" in f]
        memory = f"{max(peaks):.0f}" if peaks else ""
        size = f"{disk[way] / n_cells:,.0f}" if disk[way] else ""
        print(f"| {WAYS[way]} | {' | '.join(columns)} | {memory} | {size} |")
    for way, forms in results.items():
        for figures in forms.values():
            if "error" in figures:
                print(f"\n{WAYS[way]}: {figures['error']}")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 shards of 2,000 cells, one round")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument(
        "--folder", type=Path, help="keep shards and stores here, or use those there"
    )
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS), help="default: all")
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has annbatch")
    parser.add_argument("--build", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--form", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build_annbatch(arguments.build, arguments.folder)
        return
    if arguments.way:
        figures = (
            measure_originals(arguments.folder)
            if arguments.way == "originals"
            else measure(
                arguments.way, arguments.folder, arguments.form,
                seconds=arguments.seconds, rounds=arguments.rounds,
            )
        )  # fmt: skip
        print(json.dumps(figures))
        return
    n_shards, cells_per_shard = (2, 2_000) if arguments.quick else (5, 10_000)
    seconds, rounds = (1.0, 1) if arguments.quick else (3.0, 5)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)).resolve()
        if not (folder / "store_float32").exists():
            build(folder, n_shards=n_shards, cells_per_shard=cells_per_shard)
        n_cells = Store.open(folder / "store_counts").n_cells
        results: dict[str, dict] = {}
        for way in dict.fromkeys(["originals", *arguments.ways]):
            python = arguments.peers_python if way.startswith("annbatch") else sys.executable
            forms = ["packed"] if way in ("originals", "tfx_masked", "tfx_short") else [
                "packed", "padded"
            ]  # fmt: skip
            results[way] = {
                form: run_way(python, way, form, folder, seconds, rounds) for form in forms
            }
        disk = {way: disk_bytes(way, folder) for way in results}
        mixing = measure_mixing(folder)
        base = measure_base(Path(scratch), quick=arguments.quick)
    print(f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, "
          f"{n_cells:,} cells of 58,604 genes\n")  # fmt: skip
    show(results, n_cells, disk)
    print("\n| entropy within a batch, bits | tfx | exact random sampling | difference |")
    print("|---|---|---|---|")
    for name, found in mixing.items():
        print(f"| {name} | {found['tfx']:.4f} | {found['random']:.4f} | "
              f"{found['tfx'] / found['random'] - 1:+.2%} |")  # fmt: skip
    print(f"\nbase.toml: the loader alone gives {base['loader_cells_per_second']:,.0f} cells/s, "
          f"{base['ratio']:.0f} times what training consumes "
          f"({base['log_linear_cells_per_second']:,.0f} log-linear part, {base['model_cells_per_second']:,.0f} "
          f"with encoder); training waited {base['wait_share']:.2%} of its time")  # fmt: skip
    if arguments.json:
        print(json.dumps({"ways": results, "disk_bytes": disk, "mixing": mixing, "base": base}))


if __name__ == "__main__":
    main()
