"""What probabilities are worth on donors that no part of the fit has seen, before and after calibration.

    python benchmarks/calibration.py onek1k_blood.h5ad covid_blood.h5ad:disease_severity
    python benchmarks/calibration.py --seeds 1 --steps 300 onek1k_blood.h5ad

Each file is trained with log_linear.toml as an encoder alone that reads library sizes (`SETTINGS`), on two CPU cores in
minutes; a seed is another split of donors and another model. Temperatures and
thresholds come from validation donors, as `tfx train` fits them; the table is about the test donors of all seeds
together. ":column" adds a phenotype of that obs column. Before: temperature 1, unsure below 0.5.
"""

import argparse
import contextlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from commands import call

from core.evaluation.metrics import calibrate
from core.evaluation.predict import predict_phenotypes
from core.generation.comparison import find_training_store
from core.model.calibration import UnsureRule, unsure_rules
from core.model.folder import CellModel

SETTINGS = {
    "data.genes": 128,
    "data.split.validation": 0.15,
    "data.split.test": 0.3,
    "model.log_linear": "false",
    "model.cell_summary": "false",
    "model.library_size": "true",
    "model.norm": "pre",
    "model.initial_weights": "fan_in",
    "train.learning_rate": 2e-3,
    "train.log_linear_steps": 0,
    "train.eval_cells": 1000,
}
#: Of high confidence, as users read it.
LOW, HIGH = 0.95, 0.99


def predict_test_cells(name: str, settings: dict[str, object]) -> dict[str, list]:
    """Train a run; phenotype -> [true codes, and probabilities and rule before and after]."""
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    call("train", str(Path(__file__).with_name("log_linear.toml")), "--run", name, *sets)
    model = CellModel.load(Path("runs") / name / "model")
    store = find_training_store(model)
    rows = store.rows("test")
    before = predict_phenotypes(replace(model, calibration={}), store, rows)
    after = predict_phenotypes(model, store, rows)
    rules = unsure_rules(model.calibration, model.config.predicted)
    return {
        one: [
            store.phenotype_codes[rows, slot],
            (before[one], UnsureRule(0.5)),
            (after[one], rules[one]),
        ]
        for one, slot in model.config.predicted.items()
    }


def row_of(parts: list[list]) -> list[str]:
    """Return the figures of one phenotype, over the test cells of all seeds: before, after."""
    sides = []
    for which in (1, 2):
        confidence, is_right, is_kept, errors = [], [], [], []
        for part in parts:
            truth, (probabilities, rule) = part[0], part[which]
            known = truth >= 0
            top = probabilities[known].max(axis=1)
            confidence.append(top)
            is_right.append(probabilities[known].argmax(axis=1) == truth[known])
            is_kept.append(top >= rule.below)
            errors.append(calibrate(probabilities, truth).ece)
        top, right, kept = map(np.concatenate, (confidence, is_right, is_kept))
        high = (top >= LOW) & (top < HIGH)
        sides.append(
            [
                f"{np.mean(errors):.3f}",
                f"{right[high].mean():.3f} ({high.sum():,})" if high.any() else "- (0)",
                f"{(~kept).mean():.1%}",
                f"{right[kept].mean():.3f}" if kept.any() else "-",
            ]
        )
    always = sum(part[2][1].is_always for part in parts)
    first, second = sides
    pairs = [f"{one} -> {two}" for one, two in zip(first, second, strict=True)]
    return [f"{len(right):,}", f"{right.mean():.3f}", *pairs, f"{always} of {len(parts)}"]


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help=".h5ad files, each with ':column' if wanted")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    common = SETTINGS | {
        "train.max_steps": arguments.steps,
        "train.eval_steps": arguments.steps,
        "train.save_steps": arguments.steps,
    }
    results: dict[str, dict[str, list]] = {}
    given = [
        (Path(path).resolve(), column)
        for path, _, column in (one.partition(":") for one in arguments.files)
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for path, column in given:
            settings = {"data.files": json.dumps(str(path)), **common}
            if column:
                settings[f"data.phenotypes.{column}"] = column
            for seed in range(arguments.seeds):
                seeds = {"train.seed": seed, "data.split.seed": seed}
                found = predict_test_cells(f"{path.stem}-{seed}", settings | seeds)
                for phenotype, part in found.items():
                    of_file = results.setdefault(path.stem, {})
                    of_file.setdefault(phenotype, []).append(part)
    print(
        f"\n| file | phenotype | test cells | accuracy | ECE | accuracy at {LOW}-{HIGH} (cells) | unsure | "
        "accuracy of the rest | always unsure |"
    )
    print("|---" * 9 + "|")
    for file, phenotypes in results.items():
        for phenotype, parts in phenotypes.items():
            print(f"| {file} | {phenotype} | {' | '.join(row_of(parts))} |")


if __name__ == "__main__":
    main()
