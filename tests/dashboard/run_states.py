"""Run folders in every state that a dashboard meets, written as training writes them."""

import math

import numpy as np
from safetensors.numpy import save_file

from core.files import write_json
from core.runlog.json_lines import to_line

NOW = 1_800_000_000.0
N_STEPS = 400
PRESET = """\
name = "{name}"  # name of the file

[data]
files = ["cells.h5ad"]  # mine.toml:2
genes = 32  # default

[train]
max_steps = 400  # --steps
learning_rate = 0.001  # mine.toml:7
"""


def loss(step):
    return 1.0 + 2.0 * math.exp(-step / 100) + 0.1 * math.sin(step * 1.7)


def train_line(step, **others):
    return {
        "step": step, "t": NOW - (N_STEPS - step), "split": "train", "loss": loss(step),
        "lr": 1e-3 * (1 - step / 500), "grad_norm": 0.5 + 0.1 * math.cos(step),
        "cells_per_second": 250.0, "tokens_per_second": 65_000.0, "mfu": 0.5, "wait": 0.01,
        **others,
    }  # fmt: skip


def validation_line(step):
    progress = 1 - math.exp(-step / 80)
    return {
        "step": step, "t": NOW - (N_STEPS - step) + 0.5, "split": "validation",
        "loss": 1.1 + 2.0 * math.exp(-step / 100), "acc/genes": 0.4 + 0.3 * progress,
        "acc/genes_baseline": 0.45, "acc/sex": 0.5 + 0.5 * progress, "acc/cell_type": 0.9 * progress,
        "acc/age": 0.2,
    }  # fmt: skip


def events(step):
    found = [{"event": "start", "t": NOW - N_STEPS, "total": N_STEPS}]
    for one in range(100, step + 1, 100):
        moment = NOW - (N_STEPS - one) + 1
        found.append({"event": "eval", "t": moment, "step": one, "loss": 1.5})
        found.append({"event": "checkpoint", "t": moment, "step": one, "path": f"step-{one:08d}"})
    return found


def write_lines(path, records):
    path.write_bytes(b"".join(map(to_line, records)))


def write_state(
    root, name="mine", *, state="running", step=300, age=2.0, gpu=True, evaluated=False, lines=None,
    **status,
):  # fmt: skip
    """Write a run that is at a step; ``age`` seconds have gone since its last heartbeat."""
    folder = root / name
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {
        "format": 1, "tfx": "0.1.0", "host": "node-7", "pid": 4321, "started": NOW - N_STEPS,
        "device": "cuda" if gpu else "cpu", "device_name": "NVIDIA H200" if gpu else "x86_64",
        "precision": "bf16" if gpu else "no", "processes": 1, "parameters": 1_234_567,
    })  # fmt: skip
    (folder / "config.toml").write_text(PRESET.format(name=name))
    write_json(folder / "status.json", {
        "state": state, "heartbeat": NOW - age, "started": NOW - N_STEPS, "host": "node-7",
        "pid": 4321, "step": step, "total": N_STEPS, "eta": float(N_STEPS - step), **status,
    })  # fmt: skip
    if lines is None:
        lines = [train_line(one) for one in range(5, step + 1, 5)]
        lines += [validation_line(one) for one in range(50, step + 1, 50)]
        lines.sort(key=lambda line: line["step"])
    write_lines(folder / "metrics.jsonl", lines)
    write_lines(folder / "events.jsonl", events(step))
    machine = {
        "t": NOW - age, "cpu_percent": 81.0, "process_memory": 3.2e9, "memory_available": 60e9,
        "disk_free": 900e9,
    }  # fmt: skip
    if gpu:
        machine["gpus"] = [{
            "index": 0, "name": "NVIDIA H200", "utilisation_percent": 93.0, "memory_used": 21e9,
            "memory_total": 150e9, "temperature": 61.0, "power": 540.0,
        }]  # fmt: skip
    write_lines(folder / "system-node-7.jsonl", [machine])
    (folder / "log.txt").write_text("2027-01-15 08:00:00 INFO attention: varlen\n")
    if evaluated:
        write_evaluation(folder)
    return folder


def write_evaluation(folder):
    matrix = [[45, 5, 0], [4, 40, 6], [0, 10, 30]]
    values = ["B cell", "T cell [naive]", "monocyte"]
    bins = [(0.55, 20, 0.5), (0.75, 40, 0.7), (0.95, 80, 0.97)]
    curve = [
        {"low": p - 0.05, "high": p + 0.05, "n_cells": n, "confidence": p, "accuracy": right}
        for p, n, right in bins
    ]
    cell_type = {
        "model": {
            "accuracy": 0.82,
            "macro_f1": 0.81,
            "confusion": matrix,
            "values": values,
            "calibration": {"ece": 0.03, "overconfidence": 0.01, "curve": curve},
        },
        "logistic_regression": {"accuracy": 0.85, "macro_f1": 0.84},
        "majority": {"accuracy": 0.36, "macro_f1": 0.18},
    }
    (folder / "eval").mkdir()
    facts = {
        "data": "cells.h5ad",
        "n_cells": 140,
        "n_genes": 32,
        "split": "test",
        "split_by": "donor",
        "step": 400,
    }
    whole, without = (
        {"nll": {"value": nll, "interval": [nll - 0.1, nll + 0.1]},
         "accuracy": {"cell_type": {"value": right, "interval": [right - 0.05, right + 0.05]}}}
        for nll, right in ((0.8, 0.82), (1.1, 0.7))
    )  # fmt: skip
    parts = {
        "n_cells": 140, "n_units": 3, "resampled": "donors",
        "scores": {"whole": whole, "without_the_encoder": without},
    }  # fmt: skip
    report = {"facts": facts, "phenotypes": {"cell_type": cell_type}, "parts": parts}
    write_json(folder / "eval" / "report.json", report)


def write_model(folder):
    """Write what the picker reads of a model folder."""
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    write_json(model / "config.json", {
        "phenotype_names": ["sex", "tissue", "cell_type"],
        "phenotype_values": [["female", "male"], ["blood", "lung"], ["B cell", "T cell [naive]"]],
    })  # fmt: skip
    generate = {"steps": 16, "temperature": 1.0, "guidance": 0.0}
    write_json(model / "tfx.json", {"generate": generate, "provenance": {"simulated": True}})
    combinations = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, -1, 0]], dtype=np.int32)
    save_file(
        {"combinations": combinations, "counts": np.array([500, 40, 300, 7])},
        model / "reference.safetensors",
    )
    return model


def write_results(folder):
    """Keep a network with its contrast, a knock-out and a screen, the oldest first, and a broken record."""
    genes = ["CCL4", "CXCL8", "IL1B", "GENE [old]"]
    weights = [[0.8 - 0.25 * abs(i - j) if i != j else None for j in range(4)] for i in range(4)]
    weights[3][:3] = [-0.3, -0.05, 0.0]
    edges = [
        {"source": genes[i], "target": genes[j], "weight": weights[i][j], "q": 0.001 * 9 ** (i + j)}
        for i, j in ((0, 1), (1, 2), (0, 2), (3, 0))
    ]
    heat = {"sources": genes, "targets": genes, "weights": weights}
    network = {
        "context": "cell_type=B cell", "cells": 700, "donors": 30, "measure": "Spearman within class",
        "is_baseline": True, "found": 3, "edges": edges, "heat_map": heat,
        "notes": ["the weights are spearman: held-out donors hold more evidence (9.4 against 8.9)"],
    }  # fmt: skip
    whole = network | {
        "context": "all cells",
        "measure": "the model's effects",
        "is_baseline": False,
    }
    rows = [{"gene": gene, "before": 1.5, "shift": 0.3 - 0.2 * n, "q": 0.02 * 9**n}
            for n, gene in enumerate(genes)]  # fmt: skip
    shifts = [
        {"phenotype": "sex", "value": "male", "before": 0.4, "after": 0.65, "q": 0.01},
        {"phenotype": "tissue", "value": "lung", "before": 0.2, "after": 0.1, "q": None},
    ]
    of_all = {"context": "all cells", "cells": 500, "donors": 30, "found": 1, "genes": rows}
    knock_out = of_all | {
        "perturbation": "IL1B knocked out",
        "is_screen": False,
        "phenotypes": shifts,
    }
    screen = of_all | {"perturbation": "knock-out of every gene: sex=male", "is_screen": True}
    results = [
        {"command": "perturb", "perturbation": screen}, {"command": "perturb", "perturbation": knock_out},
        {"command": "interactions", "networks": [network, whole], "simulated": True},
    ]  # fmt: skip
    (folder / "interactions").mkdir()
    for number, one in enumerate(results):
        record = {"t": NOW - 100 + number, "output": [f"result-{number}.csv"], **one}
        write_json(folder / "interactions" / f"{number}.json", record)
    (folder / "interactions" / "broken.json").write_text('{"command": "perturb", "t": [')


def pairs(profile, shift):
    """Return the pairs of a flip that moves one gene of a profile for certain, and one perhaps."""
    genes = profile["genes"]
    after = list(genes["generated_mean"])
    after[-2] -= shift
    after[3] += 0.04
    change = [new - old for old, new in zip(genes["generated_mean"], after, strict=True)]
    return {
        "names": genes["names"], "before_mean": genes["generated_mean"], "after_mean": after,
        "change": change, "floor": [0.05] * len(after), "cells": 200,
    }  # fmt: skip


def profile(shift=0.0):
    """Return a small profile as `tfx generate --serve` sends it."""
    names = [f"GENE{number}" for number in range(30)] + ["XIST", "HLA-A [old]"]
    real = [0.1 * number for number in range(len(names))]
    generated = [value + 0.05 * math.sin(value * 9) for value in real]
    generated[-2] += 0.8 - shift
    spiral = [[math.cos(t / 9) * t / 60, math.sin(t / 9) * t / 60] for t in range(60)]
    return {
        "genes": {"names": names, "real_mean": real, "generated_mean": generated},
        "detected_genes": {
            "real": [20 + (n * 7) % 11 for n in range(60)],
            "generated": [21 + (n * 5) % 9 for n in range(60)],
        },
        "embedding": {"method": "pca", "real": spiral, "generated": [[x, -y] for x, y in spiral]},
        "fidelity": {
            "gene_mean_r": 0.987, "detection_mae": 0.021, "correlation_r": 0.81,
            "genes_per_cell_real_mean": 25.0, "genes_per_cell_real_sd": 3.1,
            "genes_per_cell_generated_mean": 24.9, "genes_per_cell_generated_sd": 2.6,
        },
        "training_cells": 40, "real_cells": 60, "compared_with": "held-out",
        "notes": ["only few [NO_SEX] cells were seen"],
    }  # fmt: skip
