"""A forecast of a run: sizes, operations, memory, time, files. Nothing is written.

Parameters and activation memory are counted on a network without data. Time is measured on a few
steps of the real network; if one cell alone takes too long or too much memory, time is computed
from the operations.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch

from core.encoding.loader import READY_BATCHES
from core.encoding.sampler import POOL_CELLS
from core.encoding.values import QUANTILES, ValueEncoder
from core.files import free_space
from core.model.attention import AttentionRoute
from core.model.batch_tensors import BatchTensors
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.model.reference import SIZE_QUANTILES
from core.presets.schema import Preset
from core.training.flops import EncoderFlops, device_peak
from core.training.machine import Machine, set_up_speed
from core.training.profiling import StepProfile, activation_bytes, example_batch, profile_step
from core.training.run_setup import check_feasible, check_preset, make_config
from core.training.run_size import CellOutline, RunSize
from core.training.virtual_ranks import virtual_ranks_of_process

#: A step of one cell that would take more seconds is not measured.
_MAX_CELL_SECONDS = 5.0
#: Fraction of the peak that a computed time assumes: measured on large models, a CPU's in
#: benchmarks/engine.md; a GPU's is our goal.
_ASSUMED_UTILISATION = {"cpu": 0.7, "cuda": 0.35, "mps": 0.35}
#: Fraction of the free memory that steps for measuring may take.
_MEASURING_FRACTION = 0.7
#: Memory of Python, torch and scanpy once imported.
_PROGRAMS = 0.6e9
#: Cells that show how much memory a batch takes.
_FEW_CELLS = 16
#: Bytes that a cell of a pool takes per value.
_VALUE_BYTES = 8
#: A line of metrics.jsonl.
_LINE_BYTES = 450
#: From this fraction of what is free on, memory or disk is tight.
_TIGHT = 0.7
#: Percent of the processors that other programs may take without a note.
_BUSY = 20.0


@dataclass(frozen=True)
class RunForecast:
    """The forecast; sizes in bytes, times in seconds, of one process unless it says otherwise."""

    #: Embeddings, encoder layers, heads, log-linear part.
    parameters: dict[str, int]
    #: Of training, validation, a step, an epoch.
    cells: dict[str, float]
    #: Of the panel, a sequence, a step; and the number of steps.
    tokens: dict[str, float]
    #: Floating-point ones, forward and backward: per token, step, epoch, run.
    operations: dict[str, float]
    #: Device, precision, attention route and why, processes.
    machine: dict[str, Any]
    #: Part -> bytes at the peak of a step.
    memory: dict[str, float]
    #: Of the device; of the machine, divided by the processes that share it.
    memory_available: float
    #: Of memory and disk.
    verdict: Literal["ok", "tight", "too much"]
    #: Of a step, an evaluation, an epoch, the run; of preparing cells that are not prepared.
    seconds: dict[str, float]
    #: Whether times were measured, and how they were found, in words.
    timed: bool
    timing: str
    #: What will be written -> bytes.
    files: dict[str, float]
    #: Of the run folder's disk.
    disk_free: float
    #: Assumptions and advice, a sentence each.
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values."""
        return asdict(self)


def forecast_run(
    preset: Preset, cells: CellOutline, folder: Path, *, processes: int = 1, done: int = 0
) -> RunForecast:
    """Forecast the run of a preset in ``folder``, which need not exist.

    ``processes`` train together, on devices like this process' (CPUs: on this machine); ``done``
    steps are behind the run.

    Raises
    ------
    ConfigurationError, MachineError
        The preset cannot run, as `tfx train` would say.
    """
    check_preset(preset)
    machine, route = check_feasible(preset, processes=processes)
    set_up_speed(machine)
    run = _Run(preset, cells, machine, processes, done)
    size, operations = run.size, run.operations()
    peak = device_peak(torch.device(machine.device), machine.precision)
    memory = run.fixed_memory()
    available = _available_memory(machine, processes)

    part_cells = max(size.cells / run.n_virtual_ranks / preset.train.micro_batches, 1.0)
    per_cell = activation_bytes(preset, run.config, machine, route, size.lengths, part_cells)
    per_cell /= part_cells
    fitting = (_MEASURING_FRACTION * available - sum(memory.values())) / per_cell
    others = _taken_by_others(machine)
    profile = None
    if fitting >= 1 and not _is_slow(machine, operations["step"] / size.cells, peak):
        with _one_thread() if others > _BUSY else contextlib.nullcontext():
            profile = run.profile(route, max_cells=int(min(part_cells, fitting)))
    if profile is not None and profile.peak_bytes is not None:
        per_cell = profile.peak_bytes
    memory["activations"] = per_cell * part_cells

    cost = _Cost.of(machine, profile, operations["step"] / size.cells, peak)
    files = run.files()
    disk = float(free_space(folder)[1])
    used = max(sum(memory.values()) / available, sum(files.values()) / disk)
    notes = [*cells.assumptions, *run.machine_notes(others, is_timed=profile is not None)]
    notes += run.memory_advice(memory, available, part_cells)
    if sum(files.values()) >= _TIGHT * disk and preset.train.keep_checkpoints > 1:
        notes.append("--set train.keep_checkpoints=1 writes less")
    return RunForecast(
        parameters=run.outline.parts,
        cells={
            "training": cells.n_training,
            "validation": cells.n_validation,
            "step": size.cells,
            "epoch": size.cells * size.per_epoch,
        },
        tokens={
            "genes": cells.n_genes,
            "sequence": size.length,
            "longest": size.longest,
            "attended": size.attended_length,
            "step": size.tokens,
            "steps_per_epoch": size.per_epoch,
            "steps": size.total,
            "steps_done": done,
            "epochs": size.total / size.per_epoch,
        },
        operations=operations,
        machine={
            "device": machine.device,
            "name": machine.device_name,
            "precision": machine.precision if machine.precision != "no" else "fp32",
            "attention": route.name,
            "reason": route.reason,
            "processes": processes,
            "peak": peak,
        },
        memory=memory,
        memory_available=available,
        verdict="ok" if used < _TIGHT else "tight" if used < 1 else "too much",
        seconds=run.seconds(cost),
        timed=profile is not None,
        timing=cost.how,
        files=files,
        disk_free=disk,
        notes=tuple(notes),
    )


class _Run:
    """What is counted of the run without computing anything."""

    def __init__(
        self, preset: Preset, cells: CellOutline, machine: Machine, processes: int, done: int
    ) -> None:
        self.preset, self.train, self.cells = preset, preset.train, cells
        self.machine, self.processes = machine, processes
        n_edges = preset.encoding.bins - 1 if preset.encoding.kind == "binned" else 1
        edges = np.linspace(0.1, 9.0, n_edges, dtype=np.float32)
        values = ValueEncoder(preset.encoding.kind, edges)
        self.config = make_config(preset, cells.phenotypes, n_genes=cells.n_genes, values=values)
        _, self.n_virtual_ranks = virtual_ranks_of_process(
            self.train.virtual_ranks, index=0, count=processes
        )
        self.size = RunSize.of(self.train, self.config, cells, n_virtual_ranks=self.n_virtual_ranks)
        self.outline = _NetworkOutline.of(self.config)
        self.steps = max(self.size.total - done, 0)
        #: Remaining steps that train the log-linear part alone.
        self.log_linear_steps = 0
        if self.outline.has_both:
            of_run = min(self.train.log_linear_steps, self.size.total - 1)
            self.log_linear_steps = max(of_run - done, 0)

    def operations(self) -> dict[str, float]:
        token = self.outline.flops.per_token(self.size.attended_length)
        step = token * self.size.tokens
        return {
            "token": token,
            "step": step,
            "epoch": step * self.size.per_epoch,
            "run": step * (self.steps - self.log_linear_steps),
        }

    def fixed_memory(self) -> dict[str, float]:
        """Bytes of what does not depend on the number of cells that are computed at a time."""
        outline, size = self.outline, self.size
        memory = {
            "weights": 4.0 * sum(outline.parts.values()),
            "fitted tables": 4.0 * outline.tables if self.config.log_linear else 0.0,
            "gradients": 4.0 * outline.trained,
            "gradients on their way": 4.0 * outline.trained if self.processes > 1 else 0.0,
            "AdamW": 8.0 * outline.trained,
            "average": 4.0 * outline.trained if self.train.ema else 0.0,
        }
        if self.machine.device == "cpu":  # else they take the host's memory
            masking = self.preset.training_masking
            few = example_batch(self.config, masking, size.lengths, _FEW_CELLS)
            n_bytes = BatchTensors.on_host(few).nbytes
            ahead = READY_BATCHES * size.cells / self.processes * n_bytes / _FEW_CELLS
            own_ranks = max(self.n_virtual_ranks // self.processes, 1)
            pool = own_ranks * POOL_CELLS * min(size.length, self.config.n_genes) * _VALUE_BYTES
            memory |= {"cells read ahead": ahead + pool, "programs": _PROGRAMS}
        return {name: value for name, value in memory.items() if value}

    def profile(self, route: AttentionRoute, *, max_cells: int) -> StepProfile | None:
        try:
            return profile_step(
                self.preset,
                self.config,
                self.machine,
                route,
                self.size.lengths,
                max_cells=max(max_cells, 1),
            )
        except torch.OutOfMemoryError:  # a GPU's kernels took more than was counted
            return None

    def seconds(self, cost: "_Cost") -> dict[str, float]:
        seconds: dict[str, float] = {}
        if self.cells.prepare_seconds:
            seconds["preparing the cells"] = self.cells.prepare_seconds
        if cost.cell is None:
            return seconds
        # CPU processes share the processors that were measured.
        own_cells = self.size.cells / (self.processes if self.machine.device == "cuda" else 1)
        step = own_cells * cost.cell + cost.optimiser
        log_linear = own_cells * cost.log_linear_cell + cost.optimiser
        # Every validation cell is scored twice: for its genes, and for its phenotypes.
        n_scored = 2 * min(self.cells.n_validation, self.train.eval_cells)
        evaluation = n_scored * cost.scored_cell
        seconds["step"] = step
        if self.log_linear_steps:
            seconds["step of the log-linear part alone"] = log_linear
        seconds["evaluation"] = evaluation
        seconds["epoch"] = (step + evaluation / self.train.eval_steps) * self.size.per_epoch
        seconds["run"] = (
            step * (self.steps - self.log_linear_steps)
            + log_linear * self.log_linear_steps
            + evaluation * math.ceil(self.steps / self.train.eval_steps)
        )
        return seconds

    def files(self) -> dict[str, float]:
        train, config, outline = self.train, self.config, self.outline
        saved = 4.0 * (sum(outline.parts.values()) + outline.tables)
        checkpoint = saved + 8.0 * outline.trained + (4.0 * outline.trained if train.ema else 0.0)
        n_kept = min(train.keep_checkpoints + 1, math.ceil(self.steps / train.save_steps))
        sizes = config.phenotype_sizes
        # Per gene: mean and detection rate of each phenotype value; count, mean, quantiles of each bin.
        per_gene = 8.0 * sum(sizes) + (8.0 + 4.0 * (QUANTILES + 1)) * config.n_bins
        # Genes per cell of the combinations of phenotypes, at most one combination per cell.
        combinations = min(self.cells.n_training, math.prod(size + 1 for size in sizes))
        per_combination = 8.0 * SIZE_QUANTILES + 4.0 * len(sizes) + 8.0
        reference = per_gene * config.n_genes + per_combination * combinations
        files = {
            "store": float(self.cells.store_bytes),
            f"checkpoints ({n_kept} and the one being written)": (n_kept + 1) * checkpoint,
            "model folder": saved + reference,
            "metrics and events": _LINE_BYTES * self.steps / train.log_steps,
        }
        return {name: value for name, value in files.items() if value}

    def machine_notes(self, others: float, *, is_timed: bool) -> Iterator[str]:
        if others > _BUSY and is_timed:
            yield (
                f"other programs take {others:.0f} % of the processors at the moment: times are those "
                f"of one thread; beside such programs a run of several is slower, alone it is quicker"
            )
        if self.machine.device == "cuda" and self.train.compile:
            yield "train.compile makes steps quicker than these, after a minute of compiling"

    def memory_advice(
        self, memory: dict[str, float], available: float, part_cells: float
    ) -> Iterator[str]:
        if sum(memory.values()) < _TIGHT * available:
            return
        room = _TIGHT * available - (sum(memory.values()) - memory["activations"])
        factor = 2 ** math.ceil(math.log2(memory["activations"] / room)) if room > 0 else math.inf
        if factor <= part_cells:
            parts = int(factor) * self.train.micro_batches
            yield f"--set train.micro_batches={parts} computes the same steps in less memory"
        else:
            yield (
                "a smaller model (model.layers, model.hidden_size), or fewer genes (data.genes, "
                "encoding.max_length), takes less memory"
            )


@dataclass(frozen=True)
class _NetworkOutline:
    """The network, counted in parameters."""

    parts: dict[str, int]
    flops: EncoderFlops
    #: Parameters that training changes.
    trained: int
    #: Numbers fitted before training (the log-linear part's), which are saved too.
    tables: int
    #: Whether there is an encoder and a log-linear part.
    has_both: bool

    @classmethod
    def of(cls, config: TfxConfig) -> "_NetworkOutline":
        with torch.device("meta"):
            network = TfxModel(config)
            network.start()  # which freezes some

        def count(module: torch.nn.Module) -> int:
            return sum(p.numel() for p in module.parameters())

        encoder, log_linear = network.encoder_part, network.log_linear
        parts = {}
        if encoder is not None:
            parts = {
                "embeddings": count(encoder.embedding),
                "encoder layers": count(encoder.encoder),
            }
            parts["heads"] = count(encoder) - sum(parts.values())
        if log_linear is not None:
            parts["log_linear"] = count(log_linear)
        return cls(
            parts={name: number for name, number in parts.items() if number},
            flops=EncoderFlops.of(network),
            trained=sum(p.numel() for p in network.parameters() if p.requires_grad),
            tables=sum(b.numel() for b in network.buffers()),
            has_both=encoder is not None and log_linear is not None,
        )


@dataclass(frozen=True)
class _Cost:
    """Seconds as in `StepProfile`, measured or computed; None if neither is possible."""

    how: str
    cell: float | None = None
    scored_cell: float = 0.0
    log_linear_cell: float = 0.0
    optimiser: float = 0.0

    @classmethod
    def of(
        cls,
        machine: Machine,
        profile: StepProfile | None,
        cell_operations: float,
        peak: float | None,
    ) -> "_Cost":
        if profile is not None:
            return cls(
                f"measured on steps of {profile.n_cells:,} made-up "
                f"cell{'s' * (profile.n_cells != 1)}; right within a factor of two",
                profile.cell,
                profile.scored_cell,
                profile.log_linear_cell,
                profile.optimiser,
            )
        if peak is None:
            return cls("unknown: no step could be done here, and the device's peak is not known")
        utilisation = _ASSUMED_UTILISATION[machine.device]
        cell = cell_operations / (utilisation * peak)
        return cls(
            f"computed at {utilisation:.0%} of the peak of {peak / 1e12:.3g} TFLOP/s; right within a "
            f"factor of two",
            cell,
            cell / 3,
            cell,
        )


# ----------------------------------------------------------------------------- of this machine


def _available_memory(machine: Machine, processes: int) -> float:
    if machine.device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available) / processes


def _is_slow(machine: Machine, cell_operations: float, peak: float | None) -> bool:
    """Return whether even a step of one cell takes long."""
    if peak is None:
        return False
    return cell_operations / (_ASSUMED_UTILISATION[machine.device] * peak) > _MAX_CELL_SECONDS


def _taken_by_others(machine: Machine) -> float:
    """Return the percentage of the processors that other programs take, if the run computes on them."""
    return psutil.cpu_percent(interval=0.3) if machine.device == "cpu" else 0.0


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: several that wait for each other measure only the other programs."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
