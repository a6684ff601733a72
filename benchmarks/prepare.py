"""`tfx prepare` from 10,000 to 1,000,000 cells of 58,604 genes: time, memory, disk, and how they grow.

    python benchmarks/prepare.py                        10k, 100k and 1M cells
    python benchmarks/prepare.py --quick --json         10k and 50k; last line one JSON object
    python benchmarks/prepare.py --compression gzip     from compressed shards
    python benchmarks/prepare.py --pieces 33554432      pieces as large as of 2 million cells and more
    python benchmarks/prepare.py --thin                 8 and 16 million cells of 13 values: memory per cell

Ten different shards of 10,000 cells are simulated; larger data link each of them several times. Each
size runs in its own process tree. Memory is what the tree has of its own (anonymous; pages of files
are the system's to take back), sampled ten times a second. Where this user may make a memory control
group, the tree runs inside one of 2 GB, page cache included; elsewhere each process may have 2 GB of
data (RLIMIT_DATA). Baseline: the time anndata takes to write such shards onto the disk, under the same
limit. Afterwards one epoch of the store is streamed as packed, masked batches of the whole genome, under
the same limit.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from simulated_shards import N_GENES, simulate_shards, simulate_thin_shard

LIMIT = 2 * 2**30
DISTINCT = 10
SHARD_CELLS = 10_000
THIN_SHARD_CELLS = 1_000_000
THIN_VALUES = 13
#: `tfx` with pieces of another size: their size is memory, and grows up to 1.6 million cells.
OTHER_PIECES = """
import sys
from core.cells.prepare import pipeline
from tfx_cli.app import main
if __name__ == "__main__":
    pipeline.PART_VALUES = int(sys.argv.pop(1))
    main()
"""
#: Shards that anndata writes at most: more of them take as long each.
BASELINE_SHARDS = 30


class ControlGroup:
    """A memory control group of `LIMIT` bytes, if this user may make one."""

    def __init__(self) -> None:
        self.path = None
        for root, limit in (
            (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
            (Path("/sys/fs/cgroup"), "memory.max"),
        ):
            path = root / f"tfx-benchmark-{os.getpid()}"
            try:
                path.mkdir()
                (path / limit).write_text(str(LIMIT))
            except OSError:
                if path.exists():
                    path.rmdir()
                continue
            self.path = path
            return

    def enter(self) -> None:
        """Put this process, and so its children, under the limit."""
        if self.path is not None:
            (self.path / "cgroup.procs").write_text(str(os.getpid()))
        else:
            resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))

    def close(self) -> None:
        if self.path is not None:
            self.path.rmdir()

    def describe(self) -> str:
        return "2 GiB control group" if self.path else "2 GiB of data per process"


def anonymous_bytes(root: psutil.Process) -> int:
    """Memory of its own that a process tree has now."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return total * 1024


def watch(command: list[str], group: ControlGroup, folder: Path) -> dict:
    """Run a command under the limit; its seconds, CPU seconds, peak memory, and peak disk."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(command, preexec_fn=group.enter, stdout=subprocess.PIPE, text=True)
    root = psutil.Process(process.pid)
    peak, disk, samples = 0, 0, 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(root))
        if samples % 20 == 0:
            # Another process makes and removes the files that are counted here.
            sizes = subprocess.run(["du", "-sB1", folder], capture_output=True, check=False)
            disk = max(disk, int(sizes.stdout.split()[0]))
        samples += 1
        time.sleep(0.1)
    output = process.stdout.read()
    if process.returncode:
        message = f"{' '.join(command[:6])} ... ended with {process.returncode}"
        raise SystemExit(message)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        "peak_anonymous_mb": peak / 2**20,
        "peak_disk_bytes": disk,
        "output": output,
    }


def make_shards(folder: Path, n_files: int, compression: str | None) -> list[Path]:
    """Write the shards."""
    files = []
    for number, adata in enumerate(simulate_shards(min(n_files, DISTINCT), SHARD_CELLS)):
        path = folder / f"shard_{number}.h5ad"
        adata.write_h5ad(path, compression=compression)
        files.append(path)
    for number in range(DISTINCT, n_files):
        path = folder / f"shard_{number}.h5ad"
        path.hardlink_to(files[number % DISTINCT])
        files.append(path)
    return files


def make_thin_shards(folder: Path, n_files: int, compression: str | None) -> list[Path]:
    """Write one shard of many cells with few values, and link it."""
    files = [folder / f"shard_{number}.h5ad" for number in range(n_files)]
    shard = simulate_thin_shard(THIN_SHARD_CELLS, THIN_VALUES)
    shard.write_h5ad(files[0], compression=compression)
    for path in files[1:]:
        path.hardlink_to(files[0])
    return files


def write_by_anndata(shard: Path, n_files: int, folder: Path, compression: str) -> float:
    """Cells that anndata writes per second, one process, under the limit."""
    scratch = folder / "written"
    scratch.mkdir()
    script = Path(__file__).with_name("write_shards.py")
    n_files = min(n_files, BASELINE_SHARDS)
    command = [sys.executable, str(script), str(shard), str(scratch), str(n_files), compression]
    with contextlib.closing(ControlGroup()) as group:
        used = watch(command, group, scratch)
    shutil.rmtree(scratch)
    written = json.loads(used["output"])
    return n_files * written["cells"] / written["seconds"]


def stream(store: Path, group: ControlGroup, folder: Path) -> dict:
    """Read one epoch of a store, masked batches of 128 cells of at most 2,048 tokens."""
    script = Path(__file__).with_name("stream_store.py")
    used = watch([sys.executable, str(script), str(store)], group, folder)
    return json.loads(used["output"]) | {"peak_anonymous_mb": used["peak_anonymous_mb"]}


def measure(n_cells: int, files: list[Path], folder: Path, chosen: argparse.Namespace) -> dict:
    """Prepare `n_cells` under the limit, and verify what came out."""
    scratch = folder / "work"
    scratch.mkdir()
    store = scratch / "store"
    tfx = [sys.executable, "-m", "tfx_cli"]
    if chosen.pieces:
        tfx = [sys.executable, "-c", OTHER_PIECES, str(chosen.pieces)]
    command = [*tfx, "-q", "prepare", *map(str, files), "-o", str(store), "--json"]
    if chosen.workers:
        command += ["--workers", chosen.workers]
    with contextlib.closing(ControlGroup()) as group:
        used = watch(command, group, scratch)
        limit = group.describe()
    made = json.loads(used.pop("output"))
    assert made["cells"] == n_cells, made["cells"]
    size = sum(path.stat().st_size for path in store.iterdir())
    subprocess.run([*tfx, "-q", "prepare", str(store), "--verify"], check=True, stdout=sys.stderr)
    streamed = None
    if not chosen.thin:
        with contextlib.closing(ControlGroup()) as group:
            streamed = stream(store, group, scratch)
    shutil.rmtree(scratch)
    return {
        "cells": n_cells,
        **used,
        "cells_per_second": n_cells / used["seconds"],
        "store_bytes": size,
        "bytes_per_cell": size / n_cells,
        "limit": limit,
        "stream": streamed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="*", help="sizes, multiples of a shard's cells")
    parser.add_argument("--compression", choices=["none", "gzip", "lzf"], default="none")
    parser.add_argument("--workers", help="of tfx prepare; its own choice if left out")
    parser.add_argument("--pieces", type=int, help="values of a piece, at least")
    parser.add_argument(
        "--thin", action="store_true", help="shards of a million cells of 13 values"
    )
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder if left out")
    parser.add_argument("--quick", action="store_true", help="10,000 and 50,000 cells")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    chosen = parser.parse_args()
    sizes = chosen.cells or ([10_000, 50_000] if chosen.quick else [10_000, 100_000, 1_000_000])
    if chosen.thin and not chosen.cells:
        sizes = [8_000_000, 16_000_000]
    compression = None if chosen.compression == "none" else chosen.compression
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        shard_cells = THIN_SHARD_CELLS if chosen.thin else SHARD_CELLS
        n_files = max(sizes) // shard_cells
        if chosen.thin:
            files = make_thin_shards(folder, n_files, compression)
        else:
            files = make_shards(folder, n_files, compression)
        written = write_by_anndata(files[0], n_files, folder, chosen.compression)
        rows = [measure(size, files[: size // shard_cells], folder, chosen) for size in sizes]
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {N_GENES:,} genes"
    )
    print(f"shards: {chosen.compression} compression, {rows[0]['limit']}")
    print(f"anndata writes such shards at {written:,.0f} cells/s\n")
    print(
        "| cells | s | cells/s | x anndata's writing | CPU s | peak memory MB | store GB | peak disk GB | B/cell |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['cells']:,} | {row['seconds']:.1f} | {row['cells_per_second']:,.0f} "
            f"| {row['cells_per_second'] / written:.2f} | {row['cpu_seconds']:.1f} "
            f"| {row['peak_anonymous_mb']:.0f} | {row['store_bytes'] / 1e9:.2f} "
            f"| {row['peak_disk_bytes'] / 1e9:.2f} | {row['bytes_per_cell']:,.0f} |"
        )
    streamed = [row["stream"] for row in rows if row["stream"]]
    if streamed:
        print("\n| cells streamed | tokens/cell | cells/s | peak memory MB |\n|---|---|---|---|")
    for one in streamed:
        print(
            f"| {one['cells']:,} | {one['tokens_per_cell']:,.0f} | {one['cells_per_second']:,.0f} "
            f"| {one['peak_anonymous_mb']:.0f} |"
        )
    if len(rows) > 1:
        first, last = rows[-2:]
        more = last["cells"] - first["cells"]
        memory = (last["peak_anonymous_mb"] - first["peak_anonymous_mb"]) * 2**20 / more
        seconds = (last["seconds"] - first["seconds"]) / more
        print(
            f"\nper further cell: {seconds * 1e6:.0f} us, {memory:.0f} B of memory; so 50 million "
            f"cells: {50e6 * seconds / 3600:.1f} h, {50e6 * last['bytes_per_cell'] / 1e9:,.0f} GB of "
            f"store"
        )
    if chosen.json:
        print(json.dumps({"anndata_write_cells_per_second": written, "sizes": rows}))


if __name__ == "__main__":
    main()
