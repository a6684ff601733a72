"""A training step on a GPU: routes, model FLOP utilisation, memory, and waiting for cells.

    bash benchmarks/gpu.sh                                      the tests that need a GPU, then this
    python benchmarks/engine_gpu.py --out FOLDER                engine_gpu.json and engine_gpu.md there
    python benchmarks/engine_gpu.py --device cpu --quick        does it run at all: tiny, no figures

Encoder of 12 layers, width 768, 12 heads, bf16 autocast, fused AdamW, no dropout. Ranked: 1,024
tokens x 128 cells, 2,440 x 53. Expressed: as many cells of log-normal length (mean 500) as 131,072
tokens hold, packed. Batches lie on the device, but for the loader's own figure. Times are medians of
whole steps, the device waited for. MFU is 6 P + 12 layers width mean L operations a token over the peak
of the datasheet, or of a matrix product where `core.training.machine` does not know the device;
"computed" counts without what the last layer leaves out. Baseline for ragged cells: the originals'
maths, padded, by the fastest attention that transformers has without a package (sdpa). Ends with 3
where there is no such device.
"""

import argparse
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import engine_loader
import engine_routes
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
)
from originals_engine import make_original, padded_inputs

from core.model.batch_tensors import BatchTensors
from core.model.cell_model import TfxModel
from core.model.losses import masked_loss
from core.presets.schema import TrainSettings
from core.training.machine import peak_flops
from core.training.state import make_optimiser

TOKENS = 131_072
TRAIN = TrainSettings(max_steps=1, learning_rate=1e-4, weight_decay=0.01)


class Bench:
    """The device, the sizes, and what was found."""

    def __init__(self, device: torch.device, *, quick: bool) -> None:
        self.device, self.quick = device, quick
        rng = np.random.default_rng(0)
        if quick:
            self.size = Size(layers=2, width=32, heads=2)
            self.n_genes, self.tokens, self.n_steps = 8_000, 4_096, 2
            self.shapes = {"L = 64": [64] * 4, "expressed": draw_lengths(rng, 6).tolist()}
        else:
            self.size = Size(layers=12, width=768, heads=12)
            self.n_genes, self.tokens, self.n_steps = WHOLE_GENOME, TOKENS, 10
            lengths = draw_lengths(rng, 1_000)
            packed = lengths[np.cumsum(lengths) <= TOKENS]
            self.shapes = {
                "L = 1,024": [1024] * (TOKENS // 1024),
                "L = 2,440": [2440] * (TOKENS // 2440),
                "expressed": packed.tolist(),
            }

    def layout(self, shape: str) -> tuple[str, int]:
        """Layout and number of genes of a shape."""
        if shape == "expressed":
            return "expressed", self.n_genes
        return "ranked", self.shapes[shape][0] - N_SPECIAL

    def network(self, shape: str, **changes: object) -> TfxModel:
        """Make the model of a shape on the device."""
        layout, n_genes = self.layout(shape)
        longest = max(self.shapes[shape])
        return make_network(self.size, layout, n_genes, longest=longest, **changes).to(self.device)

    def autocast(self):
        """Compute in bf16."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def finish(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Give memory back, and count its peak from here."""
        gc.collect()
        torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        """Most memory that tensors took since `forget`."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) / 2**30

    # ------------------------------------------------------------------------------ figures

    def peak(self) -> dict:
        """Peak by the datasheet, and of a large matrix product."""
        n = 512 if self.quick else 8192
        a, b = (torch.randn(n, n, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        seconds = engine_routes.seconds_of(lambda: a @ b, self.device, 20)
        name = device_name(self.device)
        listed = peak_flops(name, "bf16")
        measured = 2 * n**3 / seconds
        return {"datasheet": listed, "measured": measured, "used": listed or measured}

    def trainer(self, model: torch.nn.Module, optimiser: torch.optim.Optimizer):
        """Return a function that does a step, given one that computes the loss."""

        def step(loss_of: Callable[[], torch.Tensor]) -> torch.Tensor:
            with self.autocast():
                loss = loss_of()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), TRAIN.gradient_clip)
            optimiser.step()
            optimiser.zero_grad()
            return loss.detach()

        return step

    def tfx_step(self, network: TfxModel) -> Callable[[BatchTensors], torch.Tensor]:
        """Return a function that trains on a batch."""
        step = self.trainer(network, make_optimiser(network, TRAIN))

        def loss_of(batch: BatchTensors) -> torch.Tensor:
            output = network(batch)
            return masked_loss(
                output.gene_logits, output.phenotype_logits, batch, network.config, LOSS
            ).total

        return lambda batch: step(lambda: loss_of(batch))

    def fitting(self, shape: str, time_cells: Callable[[list[int]], dict]) -> dict:
        """Time the cells of a shape, half as many while memory runs out."""
        lengths = self.shapes[shape]
        while True:
            self.forget()
            try:
                return {"cells": len(lengths)} | time_cells(lengths)
            except torch.OutOfMemoryError:
                if len(lengths) == 1:
                    raise
            lengths = lengths[: len(lengths) // 2]

    def time_tfx(self, shape: str, peak: float, *, compiled: bool) -> dict:
        """Steps of tfx on one batch."""

        def time_cells(cells: list[int]) -> dict:
            network = self.network(shape)
            arrays = make_batch(network.config, cells, seed=0)
            batch = BatchTensors.from_arrays(arrays, self.device)
            if compiled:
                for layer in network.encoder_part.encoder.layers:
                    layer.compile(dynamic=shape == "expressed")  # as training does
            step = self.tfx_step(network)
            began = time.perf_counter()
            losses = [step(batch).item()]
            start_up = time.perf_counter() - began
            seconds = engine_routes.seconds_of(
                lambda: losses.append(step(batch)), self.device, self.n_steps
            )
            assert np.isfinite([losses[0], losses[-1].item()]).all(), "the loss is not finite"
            lengths = np.asarray(cells)
            flops = {
                "mfu": self.size.flops_per_token(lengths),
                "mfu_computed": self.size.flops_per_token(lengths, read_share=read_share(arrays)),
            }
            n_tokens = int(lengths.sum())
            return {
                "route": network._route.name,
                "seconds": seconds,
                "cells_per_second": len(lengths) / seconds,
                "tokens_per_second": n_tokens / seconds,
                **{name: count * n_tokens / seconds / peak for name, count in flops.items()},
                "peak_gib": self.peak_gib(),
                "first_step_seconds": start_up,
            }

        return self.fitting(shape, time_cells)

    def time_original(self, shape: str, *, attention: str, dropout: float) -> dict:
        """Steps of the originals' maths on padded cells."""
        config = self.network(shape).config

        def time_cells(cells: list[int]) -> dict:
            model = make_original(config, dropout=dropout, attention=attention).to(self.device)
            arrays = make_batch(config, cells, seed=0)
            inputs = {k: v.to(self.device) for k, v in padded_inputs(arrays, config).items()}
            optimiser = torch.optim.AdamW(model.parameters(), lr=TRAIN.learning_rate, fused=True)
            step = self.trainer(model, optimiser)
            seconds = engine_routes.seconds_of(
                lambda: step(lambda: model(inputs)), self.device, max(self.n_steps // 2, 1)
            )
            return {
                "seconds": seconds,
                "cells_per_second": len(cells) / seconds,
                "peak_gib": self.peak_gib(),
            }

        return self.fitting(shape, time_cells)

    def route_losses(self) -> dict[str, float]:
        """Loss of one model, one batch, by route."""
        losses = {}
        for name in engine_routes.ROUTES:
            if not isinstance(engine_routes.route_of(name, self.device, torch.bfloat16), str):
                network = make_network(
                    Size(2, 128, 4), "expressed", 8_000, longest=1024, attention=name
                ).to(self.device)
                arrays = make_batch(network.config, [300, 64, 1000, 500], seed=0)
                batch = BatchTensors.from_arrays(arrays, self.device)
                with torch.no_grad(), self.autocast():
                    output = network(batch)
                losses[name] = masked_loss(
                    output.gene_logits, output.phenotype_logits, batch, network.config, LOSS
                ).total.item()
        return losses

    def loader(self) -> dict:
        """Steps on what the loader gives."""
        self.forget()
        layout, n_genes = "expressed", self.n_genes
        network = make_network(self.size, layout, n_genes, longest=1024).to(self.device)
        on_device = self.device.type == "cuda"
        n_cells = 300 if self.quick else 20_000
        source = engine_loader.make_source(
            network.config, n_cells, self.tokens, on_device=on_device
        )
        step = self.tfx_step(network)
        n_steps = self.n_steps if self.quick else 40
        return engine_loader.measure_wait(step, source, self.device, n_steps)


def device_name(device: torch.device) -> str:
    """Name of the device as its maker writes it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()


def measure(bench: Bench, *, seconds: float) -> dict:
    """Measure everything; what fails is printed and the rest continues, begun within so many seconds."""
    results: dict = {"machine": describe(bench.device), "errors": {}}
    started = time.perf_counter()

    def note(name: str, work: Callable[[], object]) -> object:
        began = time.perf_counter()
        found = None
        if began - started > seconds:
            results["errors"][name] = "left out, no time was left"
            return found
        try:
            found = work()
        except Exception as error:  # noqa: BLE001 (one kernel must not cost the other figures)
            results["errors"][name] = f"{type(error).__name__}: {error}"
        print(f"{name}: {time.perf_counter() - began:.1f} s"
              f"{' FAILED: ' + results['errors'][name] if name in results['errors'] else ''}",
              file=sys.stderr, flush=True)  # fmt: skip
        return found

    results["peak"] = note("peak", bench.peak)
    peak = results["peak"]["used"]
    results["routes"] = note(
        "routes", lambda: engine_routes.compare(bench.device, quick=bench.quick)
    )
    results["route_losses"] = note("route losses", bench.route_losses)
    heads = bench.size.heads
    results["route_times"] = note(
        "route times",
        lambda: engine_routes.time_routes(
            bench.shapes, bench.device, heads=heads, width=bench.size.width // heads,
            repeats=bench.n_steps,
        ),
    )  # fmt: skip
    results["steps"], results["originals"] = {}, {}
    for shape in bench.shapes:
        for compiled in (False, True):
            name = f"{shape}, {'compiled' if compiled else 'eager'} layers"
            found = note(name, lambda s=shape, c=compiled: bench.time_tfx(s, peak, compiled=c))
            results["steps"][name] = found
    results["loader"] = note("loader", bench.loader)
    for shape in bench.shapes:
        for attention, dropout in (("sdpa", 0.0), ("eager", 0.1)):
            name = f"{shape}, {attention}, dropout {dropout:g}"
            results["originals"][name] = note(
                f"originals: {name}",
                lambda s=shape, a=attention, d=dropout: bench.time_original(
                    s, attention=a, dropout=d
                ),
            )
    return results


def describe(device: torch.device) -> dict:
    """What the figures depend on."""
    facts = {
        "device": device_name(device),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["memory_gib"] = round(properties.total_memory / 2**30, 1)
        facts["capability"] = f"{properties.major}.{properties.minor}"
    return facts


def main() -> int:
    """Read the command line and measure; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    parser.add_argument("--out", type=Path, help="folder for engine_gpu.json and engine_gpu.md")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--seconds", type=float, default=330, help="begin no figure after these")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"engine_gpu needs a CUDA device, and torch {torch.__version__} sees none here; "
              "try --device cpu --quick to see whether the script runs", file=sys.stderr)  # fmt: skip
        return 3
    from engine_gpu_tables import tables

    results = measure(Bench(device, quick=arguments.quick), seconds=arguments.seconds)
    text = tables(results)
    print(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "engine_gpu.json").write_text(json.dumps(results, indent=1) + "\n")
        (arguments.out / "engine_gpu.md").write_text(text + "\n")
    if arguments.json:
        print(json.dumps(results))
    wrong = [row for row in results["routes"] or [] if row.get("right") is False]
    return 1 if results["errors"] or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
