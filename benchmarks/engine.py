"""A training step on a CPU: tfx beside the originals' maths on transformers' plain modules.

    python benchmarks/engine.py                         all shapes, about half an hour
    python benchmarks/engine.py --quick --json          one round; last line one JSON object
    python benchmarks/engine.py --parity                also whether what makes it fast costs loss
    python benchmarks/engine.py --shapes ranked_520 --variants tfx tfx_sdpa

Encoder of 4 layers, width 256, 4 heads. Ranked: 520, 1,032 and 2,440 tokens, 8, 4 and 1 cells.
Expressed: 16 cells of log-normal length, which the baseline (`originals_engine`) pads. A step is
forward, backward, clipping, AdamW (fused), zero_grad and the loss as a number. One thread; variants
take turns, step by step; a step's time is the least CPU time that its process took in any round, which
other processes disturb little. bf16 is autocast over fp32 weights. Peak memory is of a process of its
own per variant. The peak of the machine is that of a large matrix product in the same process.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from engine_cells import (
    LOSS,
    N_SPECIAL,
    WHOLE_GENOME,
    Size,
    draw_lengths,
    make_batch,
    make_network,
    read_share,
    reading_whole_last_layer,
)
from originals_engine import make_original, padded_inputs

from core.encoding.cell_batch import CellBatch
from core.model.batch_tensors import BatchTensors
from core.model.losses import masked_loss
from core.presets.schema import TrainSettings
from core.training.state import make_optimiser

SIZE = Size(layers=4, width=256, heads=4)
TRAIN = TrainSettings(max_steps=1, learning_rate=1e-4, weight_decay=0.01)


@dataclass(frozen=True)
class Shape:
    """Cells of a step, and the fraction of a round that is enough."""

    layout: str
    n_genes: int
    #: Tokens of each cell, for each of the batches that are gone through.
    batches: list[list[int]]
    rounds: int


def _shapes(*, quick: bool) -> dict[str, Shape]:
    rng = np.random.default_rng(0)
    ragged = [draw_lengths(rng, 16).tolist() for _ in range(1 if quick else 3)]
    lengths = {520: 8, 1032: 4, 2440: 1}
    return {
        **{
            f"ranked_{length}": Shape(
                "ranked", length - N_SPECIAL, [[length] * n_cells], rounds=1 if quick else 6
            )
            for length, n_cells in lengths.items()
        },
        "expressed": Shape("expressed", WHOLE_GENOME, ragged, rounds=1 if quick else 4),
    }


@dataclass(frozen=True)
class Variant:
    """A model and how it computes: tfx in fp32, without dropout, unless it says otherwise."""

    label: str
    #: The originals' maths, instead of tfx.
    original: bool = False
    dropout: float = 0.0
    bf16: bool = False
    attention: str = "auto"
    by_default: bool = True
    #: Compute every position of the last layer, not only those that are read.
    whole: bool = False


def _original(label: str, **how: object) -> Variant:
    return Variant(label, original=True, **{"dropout": 0.1, "attention": "eager", **how})


BASELINE = "originals"
VARIANTS = {
    BASELINE: _original("(i) the originals' maths"),
    "originals_no_dropout": _original("(i) without dropout", dropout=0.0),
    "originals_bf16": _original("(i) in bf16", bf16=True),
    "originals_sdpa": _original(
        "(i) without dropout, sdpa", dropout=0.0, attention="sdpa", by_default=False
    ),
    "tfx": Variant("tfx"),
    "tfx_whole": Variant("tfx, last layer in full", whole=True),
    "tfx_dropout": Variant("tfx, hidden dropout 0.1", dropout=0.1),
    "tfx_bf16": Variant("tfx, bf16", bf16=True),
    "tfx_bf16_dropout": Variant("tfx, bf16, hidden dropout 0.1", bf16=True, dropout=0.1),
    "tfx_sdpa": Variant("tfx, route sdpa", attention="sdpa", by_default=False),
    "tfx_bf16_sdpa": Variant(
        "tfx, bf16, route sdpa", bf16=True, attention="sdpa", by_default=False
    ),
    "tfx_eager": Variant("tfx, route eager", attention="eager", by_default=False),
}

#: Figure -> (shape, variant, must, stretch): how many times the rate of (i).
GOALS = {
    "ranked 520, fp32": ("ranked_520", "tfx", 1.7, None),
    "ranked 1,032, fp32": ("ranked_1032", "tfx", 2.2, None),
    "ranked 2,440, fp32": ("ranked_2440", "tfx", 2.6, None),
    "expressed, fp32": ("expressed", "tfx", 4.5, None),
    "ranked 520, bf16": ("ranked_520", "tfx_bf16", 3.3, 4.0),
    "ranked 1,032, bf16": ("ranked_1032", "tfx_bf16", 4.0, 5.0),
    "ranked 2,440, bf16": ("ranked_2440", "tfx_bf16", 4.0, 6.0),
    "expressed, bf16": ("expressed", "tfx_bf16", 8.0, 11.0),
}
#: Least fraction of the fp32 matmul peak.
PEAK_GOAL = 0.75


# ----------------------------------------------------------------------------------- one step


def make_step(variant: Variant, shape: Shape) -> tuple[Callable[[int], float], list[CellBatch]]:
    """Make a variant ready: a function that trains on batch i and returns the loss; the batches."""
    longest = max(max(lengths) for lengths in shape.batches)
    network = make_network(
        SIZE, shape.layout, shape.n_genes,
        longest=longest, dropout=variant.dropout, attention=variant.attention
        if not variant.original else "auto",
    )  # fmt: skip
    config = network.config
    arrays = [make_batch(config, lengths, seed) for seed, lengths in enumerate(shape.batches)]
    if variant.original:
        model = make_original(config, dropout=variant.dropout, attention=variant.attention)
        padded = [padded_inputs(batch, config) for batch in arrays]
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=TRAIN.learning_rate, weight_decay=TRAIN.weight_decay, fused=True
        )

        def loss_of(number: int) -> torch.Tensor:
            return model(padded[number])
    else:
        model = network
        if variant.whole:
            encoder = network.encoder_part.encoder
            encoder.forward = reading_whole_last_layer(encoder.forward)
        packed = [BatchTensors.from_arrays(batch) for batch in arrays]
        optimiser = make_optimiser(network, TRAIN)

        def loss_of(number: int) -> torch.Tensor:
            batch = packed[number]
            output = network(batch)
            return masked_loss(
                output.gene_logits, output.phenotype_logits, batch, config, LOSS
            ).total

    def step(number: int) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16) if variant.bf16 else nullcontext():
            loss = loss_of(number)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TRAIN.gradient_clip)
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step, arrays


class MatrixProduct:
    """The machine's peak: the best rate of a large matrix product so far."""

    def __init__(self, dtype: torch.dtype, n: int) -> None:
        self.n, self.best = n, 0.0
        self.a, self.b = (torch.randn(n, n).to(dtype) for _ in range(2))
        self.out = torch.empty_like(self.a)

    def measure(self) -> None:
        began = time.process_time()
        torch.mm(self.a, self.b, out=self.out)
        self.best = max(self.best, 2 * self.n**3 / (time.process_time() - began))


def measure_shape(
    name: str, shape: Shape, variants: Sequence[str], peaks: dict[bool, MatrixProduct]
) -> dict:
    """Time all variants, taking turns; figures by variant."""
    steps = {}
    for variant in variants:
        steps[variant], arrays = make_step(VARIANTS[variant], shape)
    cpu = {variant: np.full((shape.rounds, len(arrays)), np.inf) for variant in variants}
    wall = {variant: np.full_like(cpu[variant], np.inf) for variant in variants}
    losses = {}
    for turn in range(-1, shape.rounds):  # the first is for warming up
        for number in range(len(arrays)):
            for variant in variants:
                began, began_wall = time.process_time(), time.perf_counter()
                losses[variant] = steps[variant](number)
                if turn >= 0:
                    cpu[variant][turn, number] = time.process_time() - began
                    wall[variant][turn, number] = time.perf_counter() - began_wall
        for peak in peaks.values():
            peak.measure()
        print(f"{name}: round {turn + 1} of {shape.rounds}", file=sys.stderr)
    lengths = np.concatenate(shape.batches)
    share = float(
        np.average([read_share(a) for a in arrays], weights=[len(a.token_id) for a in arrays])
    )
    flops = {
        "model": SIZE.flops_per_token(lengths) * lengths.sum(),
        "computed": SIZE.flops_per_token(lengths, read_share=share) * lengths.sum(),
    }
    figures = {}
    for variant in variants:
        assert np.isfinite(losses[variant]), f"{variant}: the loss is not finite"
        seconds = float(cpu[variant].min(axis=0).sum())
        peak = peaks[VARIANTS[variant].bf16].best
        figures[variant] = {
            "cpu_seconds": seconds / len(arrays),
            "wall_seconds": float(np.median(wall[variant], axis=0).sum()) / len(arrays),
            "cells_per_cpu_second": len(lengths) / seconds,
            "loss": losses[variant],
            "peak_share": flops["model"] / seconds / peak,
        }
        if not VARIANTS[variant].original:
            kind = "model" if VARIANTS[variant].whole else "computed"
            figures[variant]["peak_share_computed"] = flops[kind] / seconds / peak
    padded = sum(max(cells) * len(cells) for cells in shape.batches)
    return {
        "variants": figures,
        "real_tokens": float(lengths.sum() / padded),
        "read_share": share,
        "tokens_per_step": float(lengths.sum() / len(arrays)),
    }


# ------------------------------------------------------------------------------------- memory


def measure_memory(variant: str, shape: Shape) -> dict:
    """Peak memory of this process over two rounds of steps of one variant; MiB."""

    def peak() -> float:
        if Path("/proc/self/status").exists():  # Linux' ru_maxrss begins with the parent's
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes

    torch.set_num_threads(1)
    before = peak()
    step, arrays = make_step(VARIANTS[variant], shape)
    for _ in range(2):
        for number in range(len(arrays)):
            step(number)
    return {"imports_mib": before, "peak_mib": peak()}


def memory_of(variant: str, shape: str, *, quick: bool) -> dict:
    """The same of a process of its own."""
    command = [sys.executable, __file__, "--memory-of", variant, "--shapes", shape]
    done = subprocess.run(command + ["--quick"] * quick, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# -------------------------------------------------------------------------------------- tables


def describe_machine() -> dict:
    """What the figures depend on."""
    found = torch.cpu.get_capabilities()
    features = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "features": [name for name in features if found.get(name)],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load_average": round(os.getloadavg()[0], 2),
    }


def show(results: dict) -> None:
    """Print one table per shape as Markdown."""
    for name, shape in results["shapes"].items():
        figures = shape["variants"]
        print(f"\n### {name}: {shape['tokens_per_step']:,.0f} tokens a step, "
              f"{shape['real_tokens']:.0%} of the padded ones, {shape['read_share']:.1%} read\n")  # fmt: skip
        print("| | cells per CPU s | x (i) | x (i) without dropout | x (i) in bf16 | x (i), wall "
              "median | fraction of peak | the same, without what is left out | peak MiB |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|")
        for variant, found in figures.items():
            ratios = [
                ratio(figures, variant, base)
                for base in (BASELINE, "originals_no_dropout", "originals_bf16")
            ]
            ratios.append(ratio(figures, variant, BASELINE, key="wall_seconds"))
            computed = found.get("peak_share_computed")
            memory = found.get("peak_mib")
            columns = [
                VARIANTS[variant].label,
                f"{found['cells_per_cpu_second']:.2f}",
                *("" if value is None else f"{value:.2f}" for value in ratios),
                f"{found['peak_share']:.0%}",
                "" if computed is None else f"{computed:.0%}",
                "" if memory is None else f"{memory:,.0f}",
            ]
            print(f"| {' | '.join(columns)} |")


def ratio(figures: dict, variant: str, base: str, *, key: str = "cpu_seconds") -> float | None:
    """How many times the rate of ``base``; None if that was not measured."""
    return figures[base][key] / figures[variant][key] if base in figures else None


def judge(results: dict) -> list[dict]:
    """Put the goals beside what was measured."""
    rows = []
    shapes = results["shapes"]
    for figure, (shape, variant, must, stretch) in GOALS.items():
        figures = shapes.get(shape, {"variants": {}})["variants"]
        if variant in figures and BASELINE in figures:
            found = ratio(figures, variant, BASELINE)
            rows.append({"figure": figure, "must": must, "stretch": stretch, "found": found})
    for shape, found in shapes.items():
        if "tfx_whole" in found["variants"]:
            share = found["variants"]["tfx_whole"]["peak_share_computed"]
            figure = f"{shape}, fp32, last layer in full: fraction of the matmul peak"
            rows.append({"figure": figure, "must": PEAK_GOAL, "stretch": None, "found": share})
    for row in rows:
        row["verdict"] = "met" if row["found"] >= row["must"] else "missed"
        if row["stretch"] is not None and row["found"] >= row["stretch"]:
            row["verdict"] = "met, stretch too"
    return rows


def show_goals(rows: list[dict]) -> None:
    """Print the goals as Markdown."""
    print("\n| figure | must | stretch | measured | |")
    print("|---|---|---|---|---|")
    for row in rows:
        stretch = "" if row["stretch"] is None else f"{row['stretch']:.2f}"
        print(f"| {row['figure']} | {row['must']:.2f} | {stretch} | {row['found']:.2f} | "
              f"{row['verdict']} |")  # fmt: skip


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, memory not measured")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument(
        "--parity", action="store_true", help="train small models to compare losses"
    )
    parser.add_argument("--only-parity", action="store_true", help="no times")
    parser.add_argument("--shapes", nargs="*", choices=_shapes(quick=True), help="default: all")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, help="default: the usual ones")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shapes = _shapes(quick=arguments.quick)
    chosen = arguments.shapes or list(shapes)
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.memory_of, shapes[chosen[0]])))
        return
    wanted = arguments.variants or [name for name, v in VARIANTS.items() if v.by_default]
    variants = list(dict.fromkeys([BASELINE, *wanted]))
    results: dict = {"machine": describe_machine(), "shapes": {}}
    print(", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not arguments.only_parity:
        peaks = {
            False: MatrixProduct(torch.float32, 2048),
            True: MatrixProduct(torch.bfloat16, 4096),
        }
        for name in chosen:
            results["shapes"][name] = measure_shape(name, shapes[name], variants, peaks)
            for variant in [] if arguments.quick else variants:
                memory = memory_of(variant, name, quick=arguments.quick)
                results["shapes"][name]["variants"][variant] |= memory
        results["peak_gflops"] = {
            "fp32": peaks[False].best / 1e9, "bf16": peaks[True].best / 1e9,
        }  # fmt: skip
        print("peak of a matrix product, one thread: "
              f"fp32 {results['peak_gflops']['fp32']:.0f} GFLOP/s, "
              f"bf16 {results['peak_gflops']['bf16']:.0f}")  # fmt: skip
        show(results)
        results["goals"] = judge(results)
        show_goals(results["goals"])
    if arguments.parity or arguments.only_parity:
        import engine_parity

        results["parity"] = engine_parity.measure(quick=arguments.quick)
        engine_parity.show(results["parity"])
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
