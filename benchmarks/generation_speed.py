"""How long a thousand cells take, by parts of the model and steps; and what a large file takes.

    python benchmarks/generation_speed.py             two minutes
    python benchmarks/generation_speed.py --quick     one
    python benchmarks/generation_speed.py --json      last line one JSON object

Times depend on sizes, not on what was learnt: the models are those of the preset base and of log_linear.toml beside this file, on
fewer cells of the atlas, fitted but not trained. Processor seconds beside seconds: on a busy machine the former tell more.
The share of equal cells compares batches of 128 and of 50: sums of another order may move a draw that
stood within rounding of a boundary.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from core.cells.prepare import prepare_store
from core.generation.cell_generator import generate_cells
from core.generation.request import GenerationRequest
from core.model.folder import CellModel
from core.presets.loading import resolve_preset
from core.training.run_setup import build_model
from core.training.virtual_ranks import RunCells

_HERE = Path(__file__).resolve().parent
BASE, LOG_LINEAR = _HERE.parent / "presets" / "base.toml", _HERE / "log_linear.toml"
_NO_ENCODER = {"model.layers": 0}
#: Name, preset, keys of the preset that differ, sampling settings that differ, cells.
CASES = (
    ("base", BASE, {}, {}, 1_000),
    ("base, 8 steps", BASE, {}, {"steps": 8}, 1_000),
    ("base, 720 genes", BASE, {"data.genes": 720}, {}, 1_000),
    ("base, guidance 1", BASE, {}, {"guidance": 1.0}, 1_000),
    ("log-linear part alone, gene by gene", LOG_LINEAR, _NO_ENCODER, {}, 1_000),
    ("log-linear part alone, 720 genes", LOG_LINEAR, _NO_ENCODER | {"data.genes": 720}, {}, 1_000),
    ("log-linear part and attention", LOG_LINEAR, {}, {}, 1_000),
    ("log-linear part and attention, 64 steps", LOG_LINEAR, {}, {"steps": 64}, 250),
    ("attention alone, 64 steps", LOG_LINEAR, {"model.log_linear": False}, {"steps": 64}, 250),
)
_LARGE = """
import resource, sys
from pathlib import Path
from core.generation.cell_generator import CellGenerator
from core.generation.generated_file import write_generated
from core.generation.request import GenerationRequest
from core.model.folder import CellModel
source = CellGenerator(CellModel.load(Path(sys.argv[1])), GenerationRequest({}, int(sys.argv[2])))
write_generated(source, Path(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def make_model(file: Path, changes: dict[str, object], folder: Path) -> CellModel:
    """Build the model of a preset, fitted to few cells; random weights where it would learn."""
    options = {"data.files": ["builtin:atlas?cells=2000&seed=0"], **changes}
    preset = resolve_preset(file, options=options).preset
    cells = RunCells.of(preset, prepare_store(preset.data, folder / "store"))
    model = build_model(preset, cells, name="speed")
    with torch.no_grad():  # a part that answers zero would cost as much, but hide differences
        for parameter in model.network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return model


def measure(model: CellModel, sampling: dict[str, object], n_cells: int) -> dict[str, float]:
    """Generate in memory; the first cells warm up."""
    settings = model.generate.model_copy(update=sampling)
    generate_cells(model, GenerationRequest({}, 4, settings=settings))
    began, before = time.perf_counter(), time.process_time()
    cells, _ = generate_cells(model, GenerationRequest({}, n_cells, settings=settings))
    seconds, processor = time.perf_counter() - began, time.process_time() - before
    few = GenerationRequest({}, min(n_cells, 250), settings=settings)
    other, _ = generate_cells(model, few, batch_size=50)
    unequal = np.asarray((cells.X[: few.n_cells] != other.X).sum(axis=1)).ravel() > 0
    scale = 1_000 / n_cells
    return {
        "genes": model.config.n_genes,
        "steps": min(settings.steps, model.config.n_genes),
        "seconds_per_1000_cells": round(seconds * scale, 2),
        "processor_seconds_per_1000_cells": round(processor * scale, 2),
        "equal_cells": round(1 - float(unequal.mean()), 4),
    }


def measure_file(model: CellModel, n_cells: int, folder: Path) -> dict[str, float]:
    """Write a large file in a process of its own, whose peak memory is told."""
    model.save(folder / "model")
    output = folder / f"{n_cells}.h5ad"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _LARGE, str(folder / "model"), str(n_cells), str(output)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return {
        "cells": n_cells,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_MB": round(float(done.stdout.split()[-1])),
        "file_MB": round(output.stat().st_size / 1e6, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer cells")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    share = 4 if arguments.quick else 1
    machine = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    print(machine)
    rows, files = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(
            "\n| model | genes | steps | s per 1,000 cells | processor s | equal cells |\n|---|---|---|---|---|---|"
        )
        for case, file, changes, sampling, n_cells in CASES:
            model = make_model(file, changes, folder)
            found = rows[case] = measure(model, sampling, n_cells // share)
            print(f"| {case} | {' | '.join(str(value) for value in found.values())} |", flush=True)
        model = make_model(LOG_LINEAR, _NO_ENCODER, folder)
        print("\n| cells in a file | s | peak memory, MB | file, MB |\n|---|---|---|---|")
        for n_cells in (10_000 // share, 100_000 // share):
            files.append(measure_file(model, n_cells, folder))
            print(f"| {' | '.join(f'{value:,}' for value in files[-1].values())} |", flush=True)
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f"\npeak memory of this process {peak} MB")
    if arguments.json:
        print(json.dumps({"machine": machine, "models": rows, "files": files}))


if __name__ == "__main__":
    main()
