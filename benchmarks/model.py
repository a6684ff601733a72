"""What tfx's models are worth, file by file: masked genes, phenotypes and generated cells, beside baselines.

    python benchmarks/model.py                             the presets base and pbmc68k, three seeds
    python benchmarks/model.py a.h5ad b.h5ad:treatment     and these files, with the preset that 'tfx init' writes;
                                                           ":column" adds a phenotype of that obs column
    python benchmarks/model.py --folder figures --jobs 2   keep runs and figures; the same command continues there
    python benchmarks/model.py a.h5ad --no-presets --models init log-linear encoder attention
    python benchmarks/model.py --quick --json              300 steps, one seed; last line one JSON object

A seed is another split of donors (of cells, where donors are not known) and another model. All figures are of
test cells, which training never saw: 'tfx eval' scores them beside logistic regression on the same genes,
and the first seed's generated cells are scored by 'tfx eval --generated'. Mean, and standard deviation
over seeds in brackets.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from commands import call

from core.cells.ages import is_age_name
from core.cells.store import Store
from core.encoding.masking import Show
from core.evaluation.masked_evaluation import MASK_RATES, draw_static_mask
from core.evaluation.metrics import years_of_values
from core.evaluation.predict import predict
from core.model.folder import CellModel
from core.model.losses import bin_logits

PRESETS = Path(__file__).resolve().parents[1] / "presets"
#: A fifth of the donors is left for the test.
COMMON = {"data.split.validation": 0.1, "data.split.test": 0.2}
#: What is changed in the preset.
MODELS = {
    "init": {},
    "log-linear": {
        "model.encoder": "attention", "model.layers": 0, "model.log_linear_rank": 48,
    },
    "encoder": {"model.log_linear": "false"},
    "coupled": {"model.log_linear_rank": 48},
    # Some ten minutes of a core at 1,000 genes.
    "attention": {
        "model.encoder": "attention", "model.log_linear": "false", "model.norm": "pre",
        "model.initial_weights": "fan_in", "model.layers": 2, "model.hidden_size": 64, "model.heads": 4,
        "model.context_genes": 256, "model.cell_summary": "true",
        "train.max_steps": 1200, "train.learning_rate": 2e-3,
    },
}  # fmt: skip
PARTS = ("marginals", "class_log_odds_alone", "without_the_encoder", "whole")
METHODS = ("model", "logistic_regression", "majority")
GENERATED = {"rf_auc": "random-forest AUC", "within_r": "within-class r", "recall": "recall"}
TEST_CELLS = 1_500
QUICK = {"train.max_steps": 300, "train.log_linear_steps": 0, "train.eval_steps": 100}


def cell_losses(
    model: CellModel, store: Store, rows: np.ndarray, rate: float, show: Show
) -> np.ndarray:
    """(cells,) mean nats per masked gene, with phenotypes at ``show``."""

    def batches():
        for first in range(0, len(rows), 64):
            some = rows[first : first + 64]
            codes = np.asarray(store.phenotype_codes[some])
            states = np.where(codes < 0, Show.NOT_SPECIFIED, show).astype(np.int8)
            mask = draw_static_mask(some, len(model.panel), rate, seed=0)
            expression = store.read(some, model.panel).toarray()
            yield model.batches.ranked(expression, codes, states, mask, store.library_sizes(some))

    found = []
    for prediction in predict(model, batches()):
        logits = bin_logits(prediction.output.gene_logits, model.config)
        nll = torch.nn.functional.cross_entropy(
            logits, prediction.batch.gene_target, reduction="none"
        )
        cell = prediction.cells.gene_cell
        found.append(np.bincount(cell, nll.double().numpy()) / np.bincount(cell))
    return np.concatenate(found)


def ridge_age_error(model: CellModel, store: Store) -> float | None:
    """Mean absolute error in years of ridge regression on the model's genes; None without ages."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = list(model.config.phenotypes)
    slots = [slot for slot, name in enumerate(names) if is_age_name(name)]
    if not slots:
        return None
    values = model.config.phenotypes[names[slots[0]]]
    years = np.append(years_of_values(values), np.nan)  # -1 is the last: not known
    genes, ages = {}, {}
    for split in ("train", "test"):
        rows = store.rows(split)
        age = years[np.asarray(store.phenotype_codes[rows, slots[0]])]
        rows, ages[split] = rows[np.isfinite(age)], age[np.isfinite(age)]
        genes[split] = store.read(rows, model.panel).toarray()
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(1, 5, 9)))
    predicted = ridge.fit(genes["train"], ages["train"]).predict(genes["test"])
    return float(np.abs(predicted - ages["test"]).mean())


def measure(
    name: str,
    file: str | None,
    column: str,
    model_name: str,
    seed: int,
    further: dict,
    *,
    with_generated: bool = True,
) -> dict:
    """Take one file through training, evaluation and, for the first seed, generation."""
    run = f"{name}-{model_name}-{seed}"
    kept = Path(f"{run}.json")
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    keys = COMMON | MODELS[model_name] | {"train.seed": seed, "data.split.seed": seed} | further
    preset = PRESETS / f"{name}.toml"
    if file is not None:
        preset = Path(f"{run}.toml")
        preset.unlink(missing_ok=True)
        added = ["--set", f"data.phenotypes.{column}={column}"] if column else []
        call("init", file, "-o", str(preset), *added)
    sets = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    trained = call("train", str(preset), "--run", run, *sets)
    model = CellModel.load(Path("runs", run, "model"))
    store = Store.open(model.provenance["store"])
    rows = store.rows("test")
    if len(rows) > TEST_CELLS:
        rows = np.sort(np.random.default_rng(0).choice(rows, TEST_CELLS, replace=False))
    found = {
        "file": name,
        "model": model_name,
        "seed": seed,
        "genes": len(model.panel),
        "training_cells": len(store.rows("train")),
        "test_cells": len(store.rows("test")),
        "processor_seconds": trained["processor_seconds"],
        "shown": [float(cell_losses(model, store, rows, r, Show.VALUE).mean()) for r in MASK_RATES],
        "masked": [
            float(cell_losses(model, store, rows, r, Show.MASKED).mean()) for r in MASK_RATES
        ],
        "ridge_years": ridge_age_error(model, store),
    }
    evaluated = call("eval", f"runs/{run}")
    if evaluated.get("parts"):
        scores = evaluated["parts"]["scores"]
        found["parts"] = {part: scores[part]["nll"]["value"] for part in PARTS if part in scores}
    found["phenotypes"] = {
        phenotype: {
            method: {key: scores[method].get(key) for key in ("accuracy", "macro_f1", "mae_years")}
            for method in METHODS
            if method in scores
        }
        for phenotype, scores in evaluated["phenotypes"].items()
    }
    if seed == 0 and with_generated:
        cells = f"{run}.h5ad"
        call("generate", "--run", f"runs/{run}", "-n", "1000", "-o", cells)
        report = call("eval", f"runs/{run}", "--generated", cells)
        marks = report["marks"]["generated"]
        found["generated"] = {
            "met": sum(mark["met"] is True for mark in marks.values()),
            "of": len(marks),
            **{
                key: {
                    of: report["scores"][of][key]["value"]
                    for of in ("generated", "copula", "real")
                    if key in report["scores"].get(of, {})
                }
                for key in GENERATED
            },
        }
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def _mean(values: Sequence[float | None], *, digits: int = 3, sign: str = "") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ({statistics.stdev(known):.{digits}f})" if len(known) > 1 else ""
    return f"{statistics.mean(known):{sign}.{digits}f}{spread}"


def show(results: Sequence[dict]) -> None:
    """Print the tables as Markdown."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for one in sorted(results, key=lambda one: one["seed"]):
        groups.setdefault((one["file"], one["model"]), []).append(one)
    rates = " / ".join(f"{rate:g}" for rate in MASK_RATES)
    print(
        f"\n| file | model | genes | training cells | processor, s | shown: {rates} | masked: {rates} |"
    )
    print("|---|---|---|---|---|---|---|")
    for (file, model), seeds in groups.items():
        cells = [
            " / ".join(_mean([one[show][rate] for one in seeds]) for rate in range(len(MASK_RATES)))
            for show in ("shown", "masked")
        ]
        seconds = statistics.median(one["processor_seconds"] for one in seeds)
        print(
            f"| {file} | {model} | {seeds[0]['genes']:,} | {seeds[0]['training_cells']:,} | {seconds:.0f} | "
            f"{' | '.join(cells)} |"
        )
    print(
        "\n| file | model | marginals | class log-odds | without the encoder | whole | gained by the encoder |"
    )
    print("|---|---|---|---|---|---|---|")
    for (file, model), seeds in groups.items():
        parts = [one["parts"] for one in seeds if "parts" in one]
        if not parts:
            continue
        gains = [
            one["without_the_encoder"] - one["whole"]
            for one in parts
            if "without_the_encoder" in one
        ]
        cells = [_mean([one.get(part) for one in parts]) for part in PARTS]
        print(f"| {file} | {model} | {' | '.join(cells)} | {_mean(gains, sign='+')} |")
    print("\nAccuracy / macro-F1; of ages the mean absolute error in years, too.\n")
    print(
        "| file | model | phenotype | the model | logistic regression | most common | model - regression |"
    )
    print("|---|---|---|---|---|---|---|")
    for (file, model), seeds in groups.items():
        for phenotype in seeds[0]["phenotypes"]:
            print(
                f"| {file} | {model} | {phenotype} | {' | '.join(_phenotype(phenotype, seeds))} |"
            )
    print(
        "\n| file | model | thresholds | "
        + " | ".join(f"{title}: generated, copula, real" for title in GENERATED.values())
        + " |"
    )
    print("|---" * (3 + len(GENERATED)) + "|")
    for (file, model), seeds in groups.items():
        made = next((one["generated"] for one in seeds if "generated" in one), None)
        if made is None:
            continue
        cells = [
            ", ".join("-" if value is None else f"{value:.3f}" for value in made[key].values())
            for key in GENERATED
        ]
        print(f"| {file} | {model} | {made['met']} of {made['of']} | {' | '.join(cells)} |")


def _phenotype(phenotype: str, seeds: Sequence[dict]) -> Iterator[str]:
    """Give the model's score, those of the baselines, and the difference from logistic regression."""
    scores = [one["phenotypes"][phenotype] for one in seeds if phenotype in one["phenotypes"]]
    for method in METHODS:
        own = [of_seed[method] for of_seed in scores if method in of_seed]
        text = " / ".join(_mean([one[key] for one in own]) for key in ("accuracy", "macro_f1"))
        years = [one["mae_years"] for one in own]
        if any(years):
            text += f"; {_mean(years, digits=1)} years"
            if method == "logistic_regression":
                text += f"; ridge {_mean([one['ridge_years'] for one in seeds], digits=1)} years"
        yield text
    yield " / ".join(
        _mean([one["model"][key] - one["logistic_regression"][key] for one in scores], sign="+")
        for key in ("accuracy", "macro_f1")
    )


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="*", help=".h5ad files, each with ':column' if wanted")
    parser.add_argument("--no-presets", action="store_true", help="the files alone")
    parser.add_argument("--no-generated", action="store_true", help="generate no cells")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["init"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="models trained at the same time")
    parser.add_argument("--folder", type=Path, help="keeps everything")
    parser.add_argument("--quick", action="store_true", help="300 steps, one seed")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    chosen = parser.parse_args()
    jobs = [] if chosen.no_presets else [("base", None, ""), ("pbmc68k", None, "")]
    for given in chosen.files:
        path, _, column = given.partition(":")
        jobs.append((Path(path).stem, str(Path(path).resolve()), column))
    tasks = [
        (*job, model, seed, QUICK if chosen.quick else {})
        for seed in range(1 if chosen.quick else chosen.seeds)
        for model in chosen.models
        for job in jobs
    ]
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with (
            contextlib.chdir(folder),
            ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn")) as pool,
        ):
            generated = {"with_generated": not chosen.no_generated}
            waiting = {pool.submit(measure, *task, **generated): task for task in tasks}
            for done in as_completed(waiting):
                name, *_, model, seed, _ = waiting[done]
                results.append(done.result())
                print(
                    f"{name}, {model}, seed {seed}: done, {len(results)} of {len(tasks)}",
                    file=sys.stderr,
                )
    order = [job[0] for job in jobs]
    results.sort(key=lambda one: (order.index(one["file"]), chosen.models.index(one["model"])))
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    show(results)
    if chosen.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
