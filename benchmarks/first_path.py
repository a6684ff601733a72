"""The main job from cells to generated cells, timed and scored: one table for all datasets.

    python benchmarks/first_path.py                     the two presets
    python benchmarks/first_path.py a.h5ad b.h5ad       and these files, with the base preset
    python benchmarks/first_path.py --quick --json      fewer steps; last line one JSON object

For each dataset: prepare, train, eval on the test split (model, logistic regression, majority class
on the same cells and genes), 500 generated cells beside as many held-out ones. Everything is written
to a temporary folder. Accuracies are of cells whose donors the model has never seen, where donors
are known.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import tempfile
import time
from pathlib import Path

from tfx_cli.app import run as tfx

METHODS = ("model", "logistic_regression", "majority")


def call(*arguments: str) -> dict:
    """Run a tfx command and return its JSON and its seconds."""
    out = io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stdout(out):
        code = tfx([*arguments, "--json"])
    if code:
        message = f"tfx {' '.join(arguments)} ended with {code}"
        raise SystemExit(message)
    return {**json.loads(out.getvalue()), "seconds": time.perf_counter() - began}


def measure(name: str, preset: Path, settings: list[str]) -> dict:
    """Take one dataset through the whole path."""
    sets = [part for setting in settings for part in ("--set", setting)]
    trained = call("train", str(preset), "--run", name, *sets)
    evaluated = call("eval", f"runs/{name}")
    generated = call("generate", "--run", f"runs/{name}", "-n", "500", "-o", f"{name}.h5ad")
    return {
        "dataset": name,
        "simulated": evaluated["facts"]["simulated"],
        "split": evaluated["facts"]["split_by"],
        "test_cells": evaluated["facts"]["n_cells"],
        "genes": evaluated["facts"]["n_genes"],
        "train_seconds": round(trained["seconds"]),
        "generate_seconds": round(generated["seconds"], 1),
        "phenotypes": {
            phenotype: {
                method: [scores[method]["accuracy"], scores[method]["macro_f1"]]
                for method in METHODS
            }
            for phenotype, scores in evaluated["phenotypes"].items()
        },
        "masked_genes": evaluated["genes"],
        "generated": {
            key: generated["fidelity"][key]
            for key in (
                "gene_mean_r", "detection_mae", "correlation_r", "genes_per_cell_real_mean",
                "genes_per_cell_real_sd", "genes_per_cell_generated_mean",
                "genes_per_cell_generated_sd",
            )
        },
    }  # fmt: skip


def show(results: list[dict]) -> None:
    """Print the tables as Markdown."""
    print("| dataset | phenotype | model | logistic regression | majority |")
    print("|---|---|---|---|---|")
    for result in results:
        label = result["dataset"] + (" (simulated)" if result["simulated"] else "")
        for phenotype, scores in result["phenotypes"].items():
            cells = " | ".join(f"{scores[m][0]:.3f} / {scores[m][1]:.3f}" for m in METHODS)
            print(f"| {label} | {phenotype} | {cells} |")
    print("\n| dataset | test cells | genes | split | training, s | 500 cells, s | gene means r | "
          "detection MAE | gene-gene r | genes per cell, real | generated |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for r in results:
        g = r["generated"]
        print(
            f"| {r['dataset']} | {r['test_cells']} | {r['genes']} | {r['split']} | "
            f"{r['train_seconds']} | {r['generate_seconds']} | {g['gene_mean_r']:.3f} | "
            f"{g['detection_mae']:.3f} | {g['correlation_r']:.3f} | "
            f"{g['genes_per_cell_real_mean']:.1f} (sd {g['genes_per_cell_real_sd']:.1f}) | "
            f"{g['genes_per_cell_generated_mean']:.1f} (sd {g['genes_per_cell_generated_sd']:.1f}) |"
        )


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help=".h5ad files beside the presets")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    presets = Path(__file__).parents[1] / "presets"
    files = [path.resolve() for path in arguments.files]
    quick = ["train.max_steps=200"] if arguments.quick else []
    results = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        jobs = [(name, presets / f"{name}.toml", quick) for name in ("base", "pbmc68k")]
        jobs += [
            (path.stem, presets / "base.toml", [f"data.files={json.dumps(str(path))}", *quick])
            for path in files
        ]
        results += [measure(*job) for job in jobs]
    import torch

    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    show(results)
    if arguments.json:
        print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()
