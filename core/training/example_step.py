"""A few training steps on made-up cells: what a cell costs in memory and time on this machine."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from core.encoding.batches import BatchEncoder
from core.encoding.cell_batch import CellBatch
from core.encoding.values import ValueEncoder
from core.model.batch_tensors import BatchTensors
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.model.losses import masked_loss
from core.presets.schema import Preset
from core.training.machine import DTYPES, Machine
from core.training.optimiser import make_optimiser

__all__ = ["ExampleFigures", "measure_example"]

#: Seconds of a step that is not repeated.
_LONG = 1.0


@dataclass(frozen=True)
class ExampleFigures:
    """What a few cells took.

    Attributes
    ----------
    bytes_per_cell
        That the backward pass keeps, weights not counted.
    seconds_per_cell
        Forward and backward.
    seconds_per_scored_cell
        Forward alone.
    seconds_skeleton
        Per cell, while the skeleton is trained alone; 0 where it never is.
    seconds_optimiser
        Of an update.
    """

    bytes_per_cell: float
    seconds_per_cell: float
    seconds_per_scored_cell: float
    seconds_skeleton: float
    seconds_optimiser: float


def measure_example(
    preset: Preset,
    config: TfxConfig,
    machine: Machine,
    lengths: NDArray[np.int64],
    n_cells: int,
) -> ExampleFigures:
    """Let the real model do steps on a few cells.

    Parameters
    ----------
    preset, config, machine
        Of the run.
    lengths
        (some cells,), tokens of its cells.
    n_cells
        To compute.
    """
    device = torch.device(machine.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TfxModel(config)
        network.start()
        network.to(device).train()
        batch = BatchTensors.from_arrays(_example_batch(preset, config, lengths, n_cells), device)
        step = _ExampleStep(network, batch, preset, machine)
        began = time.perf_counter()
        n_bytes = step.saved_bytes()
        # The shortest of several, but where one takes long that is enough.
        times = 3 if time.perf_counter() - began < _LONG else 1
        optimiser = make_optimiser(network, preset.train)
        train = step.seconds(times, backward=True)
        scored = step.seconds(times, backward=False)
        updated = _shortest(lambda: _finish(optimiser.step, device), times)
        skeleton = 0.0
        both = network.skeleton is not None and network.encoder_part is not None
        if both and preset.train.skeleton_steps:
            network.skeleton_only = True
            skeleton = step.seconds(times, backward=True)
    return ExampleFigures(
        bytes_per_cell=n_bytes / n_cells,
        seconds_per_cell=train / n_cells,
        seconds_per_scored_cell=scored / n_cells,
        seconds_skeleton=skeleton / n_cells,
        seconds_optimiser=updated,
    )


def _example_batch(
    preset: Preset, config: TfxConfig, lengths: NDArray[np.int64], n_cells: int
) -> CellBatch:
    """Make cells up whose lengths are those at even shares of the real ones."""
    rng = np.random.default_rng(0)
    tokens = config.tokens
    shares = (np.arange(n_cells) + 0.5) / n_cells
    wanted = np.quantile(lengths, shares).round().astype(int)
    n_genes = np.clip(wanted - tokens.header_length - 1, 1, config.n_genes)
    columns = [np.sort(rng.choice(config.n_genes, count, replace=False)) for count in n_genes]
    indptr = np.concatenate([[0], np.cumsum(n_genes)])
    values = rng.uniform(0.2, 8.0, int(indptr[-1])).astype(np.float32)
    expression = sparse.csr_matrix(
        (values, np.concatenate(columns), indptr), shape=(n_cells, config.n_genes)
    )
    n_edges = config.n_bins - 1 if config.kind == "binned" else 1
    edges = np.linspace(0.1, 7.0, n_edges, dtype=np.float32)
    codes = [rng.integers(0, max(values, 1), n_cells) for values in config.phenotype_sizes]
    encoder = BatchEncoder(
        tokens, ValueEncoder(config.kind, edges), max_length=config.longest_sequence
    )
    joined = np.stack(codes, axis=1) if codes else np.zeros((n_cells, 0))
    return encoder.masked(expression, joined.astype(np.int32), preset.masking, rng)


class _ExampleStep:
    """A training step on example cells."""

    def __init__(
        self, network: TfxModel, batch: BatchTensors, preset: Preset, machine: Machine
    ) -> None:
        self.network, self.batch, self.preset, self.machine = network, batch, preset, machine
        self.device = torch.device(machine.device)

    def loss(self) -> torch.Tensor:
        machine = self.machine
        with torch.autocast(
            machine.device, dtype=DTYPES[machine.precision], enabled=machine.precision != "no"
        ):
            output = self.network(self.batch)
        loss: torch.Tensor = masked_loss(
            output.gene_logits, output.phenotype_logits, self.batch, self.network.config,
            self.preset.loss,
        ).total  # fmt: skip
        return loss

    def saved_bytes(self) -> int:
        """Bytes that the backward pass keeps, weights not counted."""
        weights = {p.untyped_storage().data_ptr() for p in self.network.parameters()}
        weights |= {b.untyped_storage().data_ptr() for b in self.network.buffers()}
        found: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self.loss().backward()  # type: ignore[no-untyped-call]
        return sum(found.values())

    def seconds(self, times: int, *, backward: bool) -> float:
        """Time of a step, without the optimiser's part."""

        def once() -> None:
            if backward:
                self.loss().backward()  # type: ignore[no-untyped-call]
            else:
                with torch.inference_mode():
                    self.loss()

        return _shortest(lambda: _finish(once, self.device), times)


def _finish(work: Callable[[], object], device: torch.device) -> None:
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _shortest(work: Callable[[], object], times: int) -> float:
    if times > 1:
        work()  # warms up
    found = math.inf
    for _ in range(times):
        began = time.perf_counter()
        work()
        found = min(found, time.perf_counter() - began)
    return found
