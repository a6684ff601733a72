"""How well phenotypes are told, beside logistic regression, over seeds and splits by donor.

    python benchmarks/phenotypes.py                               the bundled presets, five seeds
    python benchmarks/phenotypes.py a.h5ad b.h5ad:treatment       and these files; ":column" adds a
                                                                  phenotype of that obs column
    python benchmarks/phenotypes.py --seeds 2 --quick --json      last line one JSON object

A seed is another split of donors (of cells, where donors are not known) and another model; the model and
logistic regression see the same training cells and genes, all of them up to 1,000. Test cells are looked
at once, by `tfx eval`. Mean and standard deviation over seeds.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path

from first_path import call

METHODS = ("model", "logistic_regression", "majority")
#: What these files are trained with, beyond the base preset.
FILES = {"data.genes": 1000, "train.eval_steps": 200, "train.eval_cells": 400}


def measure(
    name: str, preset: Path, settings: dict[str, object], seeds: int
) -> dict[str, dict[str, list[list[float]]]]:
    """Phenotype -> method -> (accuracy, macro-F1) of each seed."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for seed in range(seeds):
        settings = settings | {"train.seed": seed, "data.split.seed": seed}
        sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        run = f"{name}-{seed}"
        call("train", str(preset), "--run", run, *sets)
        for phenotype, scores in call("eval", f"runs/{run}")["phenotypes"].items():
            for method in METHODS:
                figures = [scores[method]["accuracy"], scores[method]["macro_f1"]]
                found.setdefault(phenotype, {}).setdefault(method, []).append(figures)
        print(f"{name}: seed {seed + 1} of {seeds}", flush=True)
    show({name: found})  # what is known so far, should the rest be cut off
    return found


def show(results: dict[str, dict[str, dict[str, list[list[float]]]]]) -> None:
    """Print the table as Markdown."""
    print("\n| dataset | phenotype | model | logistic regression | majority | model - regression |")
    print("|---|---|---|---|---|---|")
    for dataset, phenotypes in results.items():
        for phenotype, methods in phenotypes.items():
            cells = [" / ".join(_over_seeds(methods[m], i) for i in (0, 1)) for m in METHODS]
            pairs = zip(methods["model"], methods["logistic_regression"], strict=True)
            lead = [[a - b for a, b in zip(ours, theirs, strict=True)] for ours, theirs in pairs]
            cells.append(" / ".join(_over_seeds(lead, i, sign="+") for i in (0, 1)))
            print(f"| {dataset} | {phenotype} | {' | '.join(cells)} |", flush=True)


def _over_seeds(figures: list[list[float]], which: int, *, sign: str = "") -> str:
    values = [one[which] for one in figures]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.3f} ({spread:.3f})"


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help=".h5ad files, each with ':column' if wanted")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    parser.add_argument("--no-presets", action="store_true", help="the files alone")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    presets = Path(__file__).parents[1] / "presets"
    quick = {"train.max_steps": 300, "train.log_linear_steps": 200} if arguments.quick else {}
    jobs = []
    if not arguments.no_presets:
        jobs += [(name, presets / f"{name}.toml", quick) for name in ("base", "pbmc68k")]
    for given in arguments.files:
        path, _, column = given.partition(":")
        settings = {"data.files": json.dumps(str(Path(path).resolve())), **FILES, **quick}
        if column:
            settings[f"data.phenotypes.{column}"] = column
        jobs.append((Path(path).stem, presets / "base.toml", settings))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        results = {
            name: measure(name, preset, settings, arguments.seeds)
            for name, preset, settings in jobs
        }
    import torch

    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
          f"{arguments.seeds} seeds")  # fmt: skip
    show(results)
    if arguments.json:
        print(json.dumps({"seeds": arguments.seeds, "results": results}))


if __name__ == "__main__":
    main()
