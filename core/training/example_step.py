"""A few training steps on made-up cells: how long a cell takes on this machine."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from core.model.attention import AttentionRoute
from core.model.batch_tensors import BatchTensors
from core.model.cell_model import TfxModel
from core.model.cell_objectives import cell_loss
from core.model.configuration import TfxConfig
from core.model.losses import masked_loss
from core.presets.schema import Preset
from core.training.classification import choose_trainable
from core.training.example_cells import example_batch
from core.training.machine import DTYPES, Machine
from core.training.optimiser import make_optimiser

__all__ = ["ExampleTimes", "time_example"]

#: Tokens of the first cells that are tried, at least one cell.
_FIRST_TOKENS = 1024
#: Seconds that a larger batch may take, and that a figure is measured for.
_LARGER_SECONDS, _PATIENCE = 1.5, 1.5
_MOST_TIMES = 5


@dataclass(frozen=True)
class ExampleTimes:
    """How long cells took; of several tries the shortest, since other programs only slow them.

    Attributes
    ----------
    n_cells
        Computed at a time.
    cell
        Seconds of a cell, forward and backward.
    scored_cell
        Seconds of a cell, forward alone.
    log_linear_cell
        Seconds of a cell while the log-linear part is trained alone; 0 where it never is.
    optimiser
        Seconds of an update.
    peak_bytes
        Memory of a GPU that a cell took at the peak, weights and gradients not counted; None elsewhere.
    """

    n_cells: int
    cell: float
    scored_cell: float
    log_linear_cell: float
    optimiser: float
    peak_bytes: float | None


def time_example(
    preset: Preset,
    config: TfxConfig,
    machine: Machine,
    route: AttentionRoute,
    lengths: NDArray[np.int64],
    *,
    most_cells: int,
) -> ExampleTimes:
    """Let the real model do steps: first on few cells, then on as many as time and memory allow.

    Parameters
    ----------
    preset, config, machine, route
        Of the run.
    lengths
        (some cells,), tokens of its cells.
    most_cells
        That are computed at a time in the run, or fit into memory.
    """
    device = torch.device(machine.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TfxModel(config)
        network.start()
        choose_trainable(network, preset)
        network._route = route  # resolved already: it need not say so again
        network.to(device).train()
        first = int(np.clip(_FIRST_TOKENS // lengths.mean(), 1, most_cells))
        step = _ExampleStep(network, preset, machine, lengths, first)
        seconds, peak = step.seconds(backward=True)
        larger = min(most_cells, int(first * _LARGER_SECONDS / seconds))
        if larger >= 2 * first:
            step = _ExampleStep(network, preset, machine, lengths, larger)
            seconds, peak = step.seconds(backward=True)
        scored, _ = step.seconds(backward=False)
        optimiser = make_optimiser(network, preset.train)
        updated = _shortest(lambda: _finish(optimiser.step, device))
        log_linear = 0.0
        both = network.log_linear is not None and network.encoder_part is not None
        if both and preset.train.log_linear_steps:
            network.log_linear_only = True
            log_linear, _ = step.seconds(backward=True)
    n_cells = step.n_cells
    return ExampleTimes(
        n_cells=n_cells,
        cell=seconds / n_cells,
        scored_cell=scored / n_cells,
        log_linear_cell=log_linear / n_cells,
        optimiser=updated,
        peak_bytes=None if peak is None else peak / n_cells,
    )


class _ExampleStep:
    """Forward and backward of some example cells."""

    def __init__(
        self,
        network: TfxModel,
        preset: Preset,
        machine: Machine,
        lengths: NDArray[np.int64],
        n_cells: int,
    ) -> None:
        self.network, self.preset, self.machine = network, preset, machine
        self.n_cells, self.device = n_cells, torch.device(machine.device)
        arrays = example_batch(network.config, preset.training_masking, lengths, n_cells)
        self.batch = BatchTensors.from_arrays(arrays, self.device)

    def seconds(self, *, backward: bool) -> tuple[float, float | None]:
        """Return the time of a step without the optimiser's part, and a GPU's bytes at its peak."""

        def once() -> None:
            if backward:
                self._loss().backward()  # type: ignore[no-untyped-call]
            else:
                with torch.inference_mode():
                    self._loss()

        if self.device.type != "cuda":
            return _shortest(lambda: _finish(once, self.device)), None
        once()  # gradients are there from now on
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds = _shortest(lambda: _finish(once, self.device))
        return seconds, float(torch.cuda.max_memory_allocated() - before)

    def _loss(self) -> torch.Tensor:
        machine = self.machine
        with torch.autocast(
            machine.device, dtype=DTYPES[machine.precision], enabled=machine.precision != "no"
        ):
            output = self.network(self.batch)
        config, settings = self.network.config, self.preset.loss
        parts = masked_loss(
            output.gene_logits, output.phenotype_logits, self.batch, config, settings
        )
        return parts.total + cell_loss(output.cells, self.batch, config, settings)


def _finish(work: Callable[[], object], device: torch.device) -> None:
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _shortest(work: Callable[[], object]) -> float:
    """Return the shortest of several tries, after one that warms up."""
    work()
    end = time.perf_counter() + _PATIENCE
    found = math.inf
    for _ in range(_MOST_TIMES):
        began = time.perf_counter()
        work()
        found = min(found, time.perf_counter() - began)
        if time.perf_counter() > end:
            break
    return found
