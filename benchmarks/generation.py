"""Generated cells against real ones, the Gaussian copula and independent genes, by the whole protocol.

    python benchmarks/generation.py                          pbmc68k and the simulated atlas
    python benchmarks/generation.py a.h5ad:cell_type,sex     and these files; ":NAMES" makes the classes
    python benchmarks/generation.py --only log-linear encoder  some of the models
    python benchmarks/generation.py --quick --json           one division of the real cells, fewer steps;
                                                             last line one JSON object
    python benchmarks/generation.py --both-genes-per-cell    each model's cells once more, with genes per cell not drawn
    python benchmarks/generation.py --seeds 3 --folder runs  each model from three seeds, kept in a folder: the
                                                             same command goes on where it was stopped, and
                                                             several at a time with other --only share the work

Seven models, the same number of steps at the same batch size: the log-linear part alone, with hidden states, with
the encoder on top of it, and encoders trained at a variable and at a fixed mask rate, with tokens alone to tell them the phenotypes
or with class log-odds beside them (a log-linear part without gene pairs). Donors never cross the split where they
are known; pbmc68k is split by cells. Every figure is what `tfx eval --generated` reports (docs/fidelity.md).
The baselines and the floor are scored anew beside every model, on the same real cells. Of several
training seeds the table gives the mean, and below it the range.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from commands import call

#: What the keys below change.
PRESET = Path(__file__).with_name("log_linear.toml")
#: Model -> preset keys that make it.
MODELS: dict[str, dict[str, object]] = {
    "log-linear": {"model.log_linear": True, "model.layers": 0},
    "log-linear + states": {
        "model.log_linear": True, "model.cell_states": 64, "model.layers": 0,
    },
    "log-linear + encoder": {"model.log_linear": True, "model.layers": 2},
    "plain, variable rate": {"model.log_linear": False, "model.layers": 2},
    "plain, fixed rate": {
        "model.log_linear": False, "model.layers": 2, "masking.genes": 0.15, "loss.weighting": "mean",
    },
    "log-odds, variable rate": {
        "model.log_linear": True, "model.log_linear_rank": 0, "model.layers": 2, "train.log_linear_steps": 0,
    },
    "log-odds, fixed rate": {
        "model.log_linear": True, "model.log_linear_rank": 0, "model.layers": 2, "train.log_linear_steps": 0,
        "masking.genes": 0.15, "loss.weighting": "mean",
    },
}  # fmt: skip
#: What `--both-genes-per-cell` calls cells whose number of expressed genes is not drawn first.
FREE = ", genes per cell not drawn"
#: What all have in common.
COMMON: dict[str, object] = {
    "encoding.kind": "binned", "encoding.bins": 10, "encoding.edges": "gene_quantile",
    "encoding.threshold": 0.0, "masking.genes": "uniform", "masking.phenotypes": 0.5,
    "model.hidden_size": 64, "model.heads": 4, "loss.smoothing": 0.0, "loss.weighting": "rate",
    "train.eval_cells": 400, "generate.steps": 64,
}  # fmt: skip
#: Dataset -> files, classes and keys of its own.
DATASETS: dict[str, dict[str, object]] = {
    "pbmc68k": {
        "data.files": "builtin:pbmc68k", "data.phenotypes.cell_type": "bulk_labels",
        "data.split.by": "cells", "data.split.test": 0.4, "train.log_linear_weight_decay": 1.0,
        "model.log_linear_rank": 24,
    },
    "atlas": {
        "data.files": "builtin:atlas", "data.phenotypes.age": False, "data.split.test": 0.2,
        "model.log_linear_rank": 48,
    },
}  # fmt: skip
STANDARD = ("sex", "tissue", "cell_type", "age", "disease")
FILE_KEYS: dict[str, object] = {"data.split.test": 0.2, "model.log_linear_rank": 64}
#: Column -> measure and digits.
COLUMNS = {
    "RF AUC": ("rf_auc", 3), "MMD²": ("mmd2", 4), "within r": ("within_r", 3),
    "slope": ("within_slope", 3), "mean r": ("gene_mean_r", 3), "dropout": ("dropout_mae", 3),
    "recall": ("recall", 2), "coverage": ("coverage", 2), "as requested": ("condition_accuracy", 3),
    "NN ratio": ("nn_ratio", 2), "copies": ("copies", 1), "logFC slope": ("fold_change_slope", 2),
    "markers": ("fold_change_overlap", 2), "TSTR F1": ("tstr_f1", 3),
}  # fmt: skip
#: Options that all figures of a folder share.
SAME_IN_A_FOLDER = ("genes", "steps", "cells", "quick", "divisions", "batch_size", "scvi")
#: Columns whose range over training seeds is given.
RANGES = ("RF AUC", "MMD²", "within r", "slope", "coverage", "as requested", "TSTR F1")


def measure(
    run: str, model: str, settings: dict[str, object], classes: str, options: argparse.Namespace
) -> dict[str, dict]:
    """Train one model, generate and judge, once, or with genes per cell drawn and not: name -> figures.

    What a folder holds already is not done again.
    """
    import torch

    variants = {"sample": model, "none": model + FREE}
    if not options.both_genes_per_cell:
        del variants["none"]
    found = {}
    for drawn, name in variants.items():
        written = Path(f"{run}-{drawn}.json")
        if not written.exists():
            n_threads = torch.get_num_threads()
            trained = train(run, settings)
            cells = f"{run}-{drawn}.h5ad"
            made = call(
                "generate", "--run", f"runs/{run}", "-n", str(options.cells), "-o", cells,
                "--genes-per-cell", drawn, "--overwrite",
            )  # fmt: skip
            began = time.perf_counter()
            report = judge(run, cells, classes, options)
            torch.set_num_threads(n_threads)  # judging runs numba, which changes their number
            figures = {
                "train_seconds": round(trained),
                "generate_seconds": round(made["seconds"]),
                "judge_seconds": round(time.perf_counter() - began),
                "report": report,
            }
            partial = written.with_suffix(".partial")
            partial.write_text(json.dumps(figures), encoding="utf-8")
            partial.rename(written)
        found[name] = json.loads(written.read_text(encoding="utf-8"))
        print(f"{run}, {name}: {found[name]['report']['verdict'][0]}", flush=True)
    return found


def train(run: str, settings: dict[str, object]) -> float:
    """Train, go on with, or find trained; return the seconds of the last sitting."""
    folder = Path("runs") / run
    status = folder / "status.json"

    def read_status() -> dict:
        return json.loads(status.read_text(encoding="utf-8"))

    if not status.exists() or read_status()["state"] != "finished":
        sets = [part for key, value in settings.items() for part in ("--set", _setting(key, value))]
        begun = (folder / "config.toml").exists()
        call("train", *([str(folder)] if begun else [str(PRESET), "--run", run, *sets]))
    return read_status()["heartbeat"] - read_status()["started"]


def judge(run: str, cells: str, classes: str, options: argparse.Namespace) -> dict:
    """Judge as `tfx eval --generated` does, with fewer divisions of the real cells if quick."""
    from core.evaluation.report.records import report_record
    from core.generation.comparison import open_training_store
    from core.inference.evaluate_generated import evaluate_generated
    from core.model.folder import CellModel

    model = CellModel.load(Path("runs") / run / "model")
    report, _ = evaluate_generated(
        model,
        [cells],
        store=open_training_store(model),
        classes=classes.split(",") if classes else (),
        n_seeds=options.divisions or (1 if options.quick else 3),
        with_scvi=options.scvi,
    )
    return report_record(report)


def _setting(key: str, value: object) -> str:
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def show(dataset: str, models: dict[str, list[dict]]) -> None:
    """Print the table of a dataset as Markdown: all baselines beside the models."""
    any_report = next(iter(models.values()))[0]["report"]
    facts = any_report["facts"]
    matched = facts["matched_cells_per_side"]
    print(f"\n**{dataset}**: {facts['n_genes']} genes, {facts['training_cells']} training cells, "
          f"{facts['real_cells']}, {matched} matched by {facts['classes']}\n")  # fmt: skip
    print(f"| method | {' | '.join(COLUMNS)} | genes per cell (sd) | met |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    beside = {"real (reference)": "real", "training cells": "training", "copula": "copula",
              "independent genes": "independent", "scVI": "scvi"}  # fmt: skip
    for name, key in beside.items():
        if key in any_report["scores"]:
            print(_row(name, [any_report], key))
    for name, seeds in models.items():
        print(_row(name, [one["report"] for one in seeds], "generated"))
    if max(len(seeds) for seeds in models.values()) > 1:
        _show_ranges(models)
    limits = any_report["limits"]
    print(f"\nReal cells: {limits['genes_mean']:.1f} ({limits['genes_sd']:.1f}) genes per cell; 95 % "
          f"of real splits have MMD² up to {limits['mmd2']:.4f}.")  # fmt: skip
    for name, seeds in models.items():
        one = seeds[0]
        seconds = f"{one['train_seconds']} s training, {one['generate_seconds']} s generating"
        print(f"\n{name} ({seconds}): {' '.join(one['report']['verdict'])}")


def _row(name: str, reports: list[dict], method: str) -> str:
    """Write a row of the table: means over training seeds, bold where most seeds miss a threshold."""
    cells = []
    for key, digits in COLUMNS.values():
        value = _mean(reports, method, key)
        text = "-" if value is None else f"{value:.{digits}f}"
        lost = [report["marks"][method][key]["met"] is False for report in reports]
        is_lost = method == "generated" and statistics.mean(lost) > 0.5
        cells.append(f"**{text}**" if is_lost else text)
    mean, sd = _mean(reports, method, "genes_mean"), _mean(reports, method, "genes_sd")
    marks = [report["marks"][method].values() for report in reports]
    n_won = statistics.mean(sum(mark["met"] is True for mark in of_one) for of_one in marks)
    n_told = sum(mark["met"] is not None for mark in marks[0])
    return f"| {name} | {' | '.join(cells)} | {mean:.1f} ({sd:.1f}) | {n_won:.3g} of {n_told} |"


def _mean(reports: list[dict], method: str, key: str) -> float | None:
    values = [report["scores"][method][key]["value"] for report in reports]
    return None if None in values else statistics.mean(values)


def _show_ranges(models: dict[str, list[dict]]) -> None:
    """Print from where to where the training seeds of each model go."""
    print(f"\n| over training seeds | {' | '.join(RANGES)} |")
    print("|---" * (len(RANGES) + 1) + "|")
    for name, seeds in models.items():
        cells = []
        for column in RANGES:
            key, digits = COLUMNS[column]
            values = [one["report"]["scores"]["generated"][key]["value"] for one in seeds]
            is_known = None not in values
            cells.append(
                f"{min(values):.{digits}f} to {max(values):.{digits}f}" if is_known else "-"
            )
        print(f"| {name} ({len(seeds)}) | {' | '.join(cells)} |")


@contextlib.contextmanager
def working_folder(kept: Path | None, request: dict[str, object]) -> Iterator[None]:
    """Work in a folder that is kept, for what it was made for alone, or in one that is not."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = kept or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "request.json"
        if not file.exists():
            file.write_text(json.dumps(request), encoding="utf-8")
        if (before := json.loads(file.read_text(encoding="utf-8"))) != request:
            message = f"{folder} holds figures of {before}, not of {request}; give another --folder"
            raise SystemExit(message)
        with contextlib.chdir(folder):
            yield


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help=".h5ad files, each with ':classes' if wanted")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--no-builtin", action="store_true", help="the files alone")
    parser.add_argument("--builtin", nargs="+", choices=list(DATASETS), default=list(DATASETS))
    parser.add_argument("--genes", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6000, help="training steps of every model")
    parser.add_argument("--cells", type=int, default=2500, help="generated by each model")
    parser.add_argument("--quick", action="store_true", help="a fifth of the steps, one division")
    parser.add_argument("--divisions", type=int, help="of the real cells; default 3, 1 if quick")
    parser.add_argument("--seeds", type=int, default=1, help="training seeds of every model")
    parser.add_argument("--batch-size", type=int, default=64, help="cells of a step")
    parser.add_argument("--folder", type=Path, help="keeps all; the same command goes on there")
    parser.add_argument(
        "--both-genes-per-cell", action="store_true", help="also with genes per cell not drawn"
    )
    parser.add_argument("--scvi", action="store_true", help="scVI beside them (extra scvi)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    steps = options.steps // 5 if options.quick else options.steps
    jobs = [] if options.no_builtin else [(name, DATASETS[name], "") for name in options.builtin]
    for given in options.files:
        path, _, classes = given.partition(":")
        # What is requested of the model makes the classes, as the baselines are.
        others = {f"data.phenotypes.{one}": False for one in STANDARD if one not in classes}
        files = {"data.files": str(Path(path).resolve())} | (others if classes else {})
        jobs.append((Path(path).stem, FILE_KEYS | files, classes))
    results: dict[str, dict[str, list[dict]]] = {}
    request = {key: value for key, value in vars(options).items() if key in SAME_IN_A_FOLDER}
    with working_folder(options.folder, request):
        for seed in range(options.seeds):
            for name, keys, classes in jobs:
                for model in options.only:
                    settings = COMMON | keys | {
                        "data.genes": options.genes, "train.max_steps": steps, "train.seed": seed,
                        "train.batch_size": options.batch_size,
                        "train.eval_steps": max(steps // 4, 1),
                        "train.save_steps": max(steps // 10, 1) if options.folder else steps,
                    } | MODELS[model]  # fmt: skip
                    if model == "log-linear + encoder":
                        settings["train.log_linear_steps"] = steps * 2 // 3
                    run = re.sub(r"[ ,+]+", "-", f"{name}-{model}-{seed}")
                    figures = measure(run, model, settings, classes, options)
                    for shown, one in figures.items():
                        results.setdefault(name, {}).setdefault(shown, []).append(one)
    import torch

    print(f"\n{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; {steps} steps "
          f"of {options.batch_size} cells, training seeds: {options.seeds}")  # fmt: skip
    for name, models in results.items():
        show(name, models)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
