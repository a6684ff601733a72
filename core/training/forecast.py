"""What a run will be, before it is one: sizes, operations, memory, time, files. Nothing is written.

Parameters and what the backward pass keeps are counted on a network without data. Time is measured:
the real network does a few steps on made-up cells of the lengths of the run's; where even one cell
takes too long or too much memory, it is computed from the operations.
"""

import contextlib
import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch

from core.encoding.loader import READY_BATCHES
from core.encoding.sampler import POOL_CELLS
from core.encoding.values import QUANTILES, ValueEncoder
from core.model.attention import AttentionRoute
from core.model.batch_tensors import HostBatch
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.model.reference import SIZE_QUANTILES
from core.presets.schema import Preset
from core.training.cell_outline import CellOutline
from core.training.example_cells import example_batch
from core.training.example_step import ExampleTimes, time_example
from core.training.feasibility import check_feasible
from core.training.flops import EncoderFlops
from core.training.kept_activations import kept_by_cells
from core.training.machine import Machine, set_up_speed
from core.training.matmul_peak import device_peak
from core.training.setup import check_preset, make_config
from core.training.step_size import RunSize
from core.training.virtual_ranks import virtual_ranks_of_process

__all__ = ["RunForecast", "forecast_run"]

#: Where a step of one cell would take so many seconds, none is done.
_PATIENCE = 5.0
#: Share of the peak that a computed time assumes: measured on large models, a CPU's in
#: benchmarks/engine.md; a GPU's is our goal.
_ASSUMED_SHARE = {"cpu": 0.7, "cuda": 0.35, "mps": 0.35}
#: Share of the free memory that steps for measuring may take.
_MEASURING_SHARE = 0.7
#: Memory of Python, torch and scanpy once imported.
_PROGRAMS = 0.6e9
#: Cells of which it is seen how much memory a batch takes.
_FEW_CELLS = 16
#: Bytes that a cell of a pool takes per value.
_VALUE_BYTES = 8
#: A line of metrics.jsonl.
_LINE_BYTES = 450
#: From this share of what is free on, memory or disk is tight.
_TIGHT = 0.7
#: Percent of the processors that others may take without a word.
_BUSY = 20.0


@dataclass(frozen=True)
class RunForecast:
    """The forecast; sizes in bytes, times in seconds, of one process unless it says otherwise.

    Attributes
    ----------
    parameters
        Part -> how many: embeddings, encoder layers, heads, log-linear part.
    cells, tokens
        Counts: of the panel, of a sequence, of a step, of an epoch, of the run.
    operations
        Floating-point ones, forward and backward: per token, step, epoch, run.
    machine
        Device, precision, attention route and why, processes.
    memory
        Part -> bytes at the peak of a step.
    memory_available
        Of the device; of the machine's, where processes share it, one's part.
    verdict
        Of memory and disk: "ok", "tight" or "too much".
    seconds
        Of a step, an evaluation, an epoch, the run; of preparing cells that are not prepared.
    timed
        Whether times were measured, rather than computed from operations.
    timing
        How, in words.
    files
        What will be written -> bytes.
    disk_free
        Where the run folder will lie.
    notes
        Assumptions and advice, a sentence each.
    """

    parameters: dict[str, int]
    cells: dict[str, float]
    tokens: dict[str, float]
    operations: dict[str, float]
    machine: dict[str, Any]
    memory: dict[str, float]
    memory_available: float
    verdict: Literal["ok", "tight", "too much"]
    seconds: dict[str, float]
    timed: bool
    timing: str
    files: dict[str, float]
    disk_free: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values."""
        return asdict(self)


# --------------------------------------------------------------------------------- the forecast


def forecast_run(
    preset: Preset,
    cells: CellOutline,
    folder: Path,
    *,
    processes: int = 1,
    done: int = 0,
) -> RunForecast:
    """Forecast a run.

    Parameters
    ----------
    preset
        Of the run.
    cells
        What it will learn from.
    folder
        The run folder; need not exist.
    processes
        That will train together, on devices like this process' (CPUs: on this machine).
    done
        Steps that the run has done already.

    Raises
    ------
    ConfigurationError, MachineError
        The preset cannot run, as `tfx train` would say.
    """
    check_preset(preset)
    machine, route = check_feasible(preset, processes=processes)
    set_up_speed(machine)
    config = _make_config(preset, cells)
    _, n_virtual_ranks = virtual_ranks_of_process(
        preset.train.virtual_ranks, index=0, count=processes
    )
    size = RunSize.of(
        preset.train, config, n_training=cells.n_training, genes_per_cell=cells.genes_per_cell,
        n_virtual_ranks=n_virtual_ranks,
    )  # fmt: skip
    outline = _Outline.of(config)
    steps = max(size.total - done, 0)
    log_linear_steps = _log_linear_steps(preset, outline, size.total, done)
    operations = _operations(config, outline, size, steps - log_linear_steps)

    part_cells = max(size.cells / n_virtual_ranks / preset.train.micro_batches, 1.0)  # at one time
    memory = _fixed_memory(preset, outline, size, config, machine, processes)
    available = _available_memory(machine, processes)
    peak = device_peak(torch.device(machine.device), machine.precision)
    kept = kept_by_cells(preset, config, machine, route, size.lengths, part_cells) / part_cells
    fitting = (_MEASURING_SHARE * available - sum(memory.values())) / kept
    others = _taken_by_others(machine)
    times = None
    if fitting >= 1 and not _takes_long(machine, size, operations, peak):
        with _one_thread() if others > _BUSY else contextlib.nullcontext():
            times = _time(preset, config, machine, route, size, int(min(part_cells, fitting)))
    if times is not None and times.peak_bytes is not None:
        kept = times.peak_bytes
    memory["activations"] = kept * part_cells

    cost = _Cost.measured(times) if times else _Cost.computed(machine, size, operations, peak)
    files = _files(preset, cells, config, outline, steps)
    disk = _free_disk(folder)
    shares = sum(memory.values()) / available, sum(files.values()) / disk
    return RunForecast(
        parameters=outline.parts,
        cells={
            "training": cells.n_training, "validation": cells.n_validation,
            "step": size.cells, "epoch": size.cells * size.per_epoch,
        },
        tokens={
            "genes": cells.n_genes, "sequence": size.length, "longest": size.longest,
            "attended": size.attended_length, "step": size.tokens,
            "steps_per_epoch": size.per_epoch, "steps": size.total, "steps_done": done,
            "epochs": size.total / size.per_epoch,
        },
        operations=operations,
        machine={
            "device": machine.device, "name": machine.device_name,
            "precision": machine.precision if machine.precision != "no" else "fp32",
            "attention": route.name, "reason": route.reason, "processes": processes,
            "peak": peak,
        },
        memory=memory,
        memory_available=available,
        verdict=_verdict(max(shares)),
        seconds=_seconds(
            preset, cells, size, cost,
            # CPU processes share the processors that were measured.
            own_cells=size.cells / (processes if machine.device == "cuda" else 1),
            steps=steps, log_linear_steps=log_linear_steps,
        ),
        timed=times is not None,
        timing=cost.how,
        files=files,
        disk_free=disk,
        notes=(
            *cells.assumptions,
            *_machine_notes(preset, machine, others, is_timed=times is not None),
            *_advice(preset, memory, available, part_cells, disk_share=shares[1]),
        ),
    )  # fmt: skip


def _make_config(preset: Preset, cells: CellOutline) -> TfxConfig:
    n_edges = preset.encoding.bins - 1 if preset.encoding.kind == "binned" else 1
    edges = np.linspace(0.1, 9.0, n_edges, dtype=np.float32)
    values = ValueEncoder(preset.encoding.kind, edges)
    return make_config(preset, cells.phenotypes, n_genes=cells.n_genes, values=values)


@dataclass(frozen=True)
class _Outline:
    """The network, counted.

    Attributes
    ----------
    parts
        Part -> parameters.
    layers
        Parameters of the encoder's layers: the P of the operations' formula.
    trained, tables
        Parameters that training changes; numbers fitted before it (the log-linear part's), which are saved
        too.
    has_both
        Whether there is an encoder and a log-linear part.
    """

    parts: dict[str, int]
    layers: int
    trained: int
    tables: int
    has_both: bool

    @classmethod
    def of(cls, config: TfxConfig) -> "_Outline":
        with torch.device("meta"):
            network = TfxModel(config)
            network.start()  # which sets some aside

        def count(*modules: torch.nn.Module | None) -> int:
            return sum(p.numel() for m in modules if m is not None for p in m.parameters())

        part, log_linear = network.encoder_part, network.log_linear
        embeddings = count(part.embedding) if part is not None else 0
        encoder = count(part.encoder) if part is not None else 0
        parts = {
            "embeddings": embeddings,
            "encoder layers": encoder,
            "heads": count(part) - embeddings - encoder,
            "log_linear": count(log_linear),
        }
        return cls(
            parts={name: number for name, number in parts.items() if number},
            layers=count(*part.encoder.layers) if part is not None else 0,
            trained=sum(p.numel() for p in network.parameters() if p.requires_grad),
            tables=sum(b.numel() for b in network.buffers()),
            has_both=part is not None and log_linear is not None,
        )

    @property
    def saved(self) -> int:
        """Numbers in a file of weights."""
        return sum(self.parts.values()) + self.tables


def _log_linear_steps(preset: Preset, outline: _Outline, total: int, done: int) -> int:
    """Return how many of the steps that are left train the log-linear part alone."""
    if not outline.has_both:
        return 0
    return max(min(preset.train.log_linear_steps, total - 1) - done, 0)


def _operations(
    config: TfxConfig, outline: _Outline, size: RunSize, encoder_steps: int
) -> dict[str, float]:
    flops = EncoderFlops(outline.layers, config.layers, config.hidden_size)
    token = flops.per_token(size.attended_length)
    step = token * size.tokens
    return {
        "token": token, "step": step, "epoch": step * size.per_epoch, "run": step * encoder_steps,
    }  # fmt: skip


# ------------------------------------------------------------------------------------- memory


def _fixed_memory(
    preset: Preset,
    outline: _Outline,
    size: RunSize,
    config: TfxConfig,
    machine: Machine,
    processes: int,
) -> dict[str, float]:
    """Bytes of what does not depend on how many cells are computed at a time."""
    virtual_ranks = max((preset.train.virtual_ranks or processes) // processes, 1)
    few = HostBatch.of(
        example_batch(config, preset.training_masking, size.lengths, _FEW_CELLS)
    ).tensors
    per_cell = sum(tensor.nbytes for tensor in few.values()) / _FEW_CELLS
    ahead = READY_BATCHES * size.cells / processes * per_cell
    pool = virtual_ranks * POOL_CELLS * min(size.length, config.n_genes) * _VALUE_BYTES
    memory = {
        "weights": 4.0 * sum(outline.parts.values()),
        "fitted tables": 4.0 * outline.tables if config.log_linear else 0.0,
        "gradients": 4.0 * outline.trained,
        "gradients on their way": 4.0 * outline.trained if processes > 1 else 0.0,
        "AdamW": 8.0 * outline.trained,
        "average": 4.0 * outline.trained if preset.train.ema else 0.0,
    }
    if machine.device == "cpu":  # else they take the host's memory
        memory |= {"cells read ahead": ahead + pool, "programs": _PROGRAMS}
    return {name: value for name, value in memory.items() if value}


def _available_memory(machine: Machine, processes: int) -> float:
    if machine.device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available) / processes


# --------------------------------------------------------------------------------- time, files


def _takes_long(
    machine: Machine, size: RunSize, operations: dict[str, float], peak: float | None
) -> bool:
    """Tell whether even a step of one cell does."""
    if peak is None:
        return False
    return operations["step"] / size.cells / (_ASSUMED_SHARE[machine.device] * peak) > _PATIENCE


def _taken_by_others(machine: Machine) -> float:
    """Return the percentage of the processors that other programs take, where we compute on them."""
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


def _time(
    preset: Preset,
    config: TfxConfig,
    machine: Machine,
    route: AttentionRoute,
    size: RunSize,
    most_cells: int,
) -> ExampleTimes | None:
    try:
        return time_example(
            preset, config, machine, route, size.lengths, most_cells=max(most_cells, 1)
        )
    except torch.OutOfMemoryError:  # a GPU's kernels took more than was counted
        return None


@dataclass(frozen=True)
class _Cost:
    """Seconds of a cell of a step, of one that is scored, of one for the log-linear part alone; of an update."""

    cell: float
    scored_cell: float
    log_linear_cell: float
    optimiser: float
    how: str

    @classmethod
    def measured(cls, times: ExampleTimes) -> "_Cost":
        cells = f"{times.n_cells:,} made-up cell{'s' * (times.n_cells != 1)}"
        return cls(
            times.cell, times.scored_cell, times.log_linear_cell, times.optimiser,
            f"measured on steps of {cells}; right within a factor of two",
        )  # fmt: skip

    @classmethod
    def computed(
        cls, machine: Machine, size: RunSize, operations: dict[str, float], peak: float | None
    ) -> "_Cost | _Unknown":
        if peak is None:
            return _Unknown()
        share = _ASSUMED_SHARE[machine.device]
        cell = operations["step"] / size.cells / (share * peak)
        return cls(
            cell, cell / 3, cell, 0.0,
            f"computed at {share:.0%} of the peak of {peak / 1e12:.3g} TFLOP/s; right within a "
            f"factor of two",
        )  # fmt: skip


@dataclass(frozen=True)
class _Unknown:
    """A device whose peak nobody knows, and on which no step was done."""

    how: str = "unknown: no step could be done here, and the device's peak is not known"


def _seconds(
    preset: Preset,
    cells: CellOutline,
    size: RunSize,
    cost: _Cost | _Unknown,
    *,
    own_cells: float,
    steps: int,
    log_linear_steps: int,
) -> dict[str, float]:
    seconds: dict[str, float] = {}
    if cells.prepare_seconds:
        seconds["preparing the cells"] = cells.prepare_seconds
    if isinstance(cost, _Unknown):
        return seconds
    every = preset.train.eval_steps
    step = own_cells * cost.cell + cost.optimiser
    log_linear = own_cells * cost.log_linear_cell + cost.optimiser
    # Every validation cell is asked twice: of its genes, and of its phenotypes.
    evaluation = 2 * min(cells.n_validation, preset.train.eval_cells) * cost.scored_cell
    seconds["step"] = step
    if log_linear_steps:
        seconds["step of the log-linear part alone"] = log_linear
    seconds["evaluation"] = evaluation
    seconds["epoch"] = (step + evaluation / every) * size.per_epoch
    seconds["run"] = (
        step * (steps - log_linear_steps)
        + log_linear * log_linear_steps
        + evaluation * math.ceil(steps / every)
    )
    return seconds


def _files(
    preset: Preset, cells: CellOutline, config: TfxConfig, outline: _Outline, steps: int
) -> dict[str, float]:
    train = preset.train
    moments = 8.0 * outline.trained + (4.0 * outline.trained if train.ema else 0.0)
    checkpoint = 4.0 * outline.saved + moments
    n_kept = min(train.keep_checkpoints + 1, math.ceil(steps / train.save_steps))
    # Gene by gene: means and shares of each phenotype value; count, mean and quantiles of each bin.
    per_gene = 8.0 * sum(config.phenotype_sizes) + (8.0 + 4.0 * (QUANTILES + 1)) * config.n_bins
    # Depths of the combinations of phenotypes, of which there are as many as cells at most.
    combinations = min(cells.n_training, math.prod(size + 1 for size in config.phenotype_sizes))
    per_combination = 8.0 * SIZE_QUANTILES + 4.0 * len(config.phenotype_sizes) + 8.0
    files = {
        "store": float(cells.store_bytes),
        f"checkpoints ({n_kept} and the one being written)": (n_kept + 1) * checkpoint,
        "model folder": 4.0 * outline.saved
        + per_gene * config.n_genes
        + per_combination * combinations,
        "metrics and events": _LINE_BYTES * steps / train.log_steps,
    }
    return {name: value for name, value in files.items() if value}


def _free_disk(folder: Path) -> float:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)


# --------------------------------------------------------------------------- verdict and advice


def _verdict(share: float) -> Literal["ok", "tight", "too much"]:
    return "ok" if share < _TIGHT else "tight" if share < 1 else "too much"


def _machine_notes(
    preset: Preset, machine: Machine, others: float, *, is_timed: bool
) -> Iterator[str]:
    if others > _BUSY and is_timed:
        yield (
            f"other programs take {others:.0f} % of the processors at the moment: times are those "
            f"of one thread; beside such programs a run of several is slower, alone it is quicker"
        )
    if machine.device == "cuda" and preset.train.compile:
        yield "train.compile makes steps quicker than these, after a minute of compiling"


def _advice(
    preset: Preset,
    memory: dict[str, float],
    available: float,
    part_cells: float,
    *,
    disk_share: float,
) -> Iterable[str]:
    if sum(memory.values()) >= _TIGHT * available:
        room = _TIGHT * available - (sum(memory.values()) - memory["activations"])
        factor = 2 ** math.ceil(math.log2(memory["activations"] / room)) if room > 0 else math.inf
        if factor <= part_cells:
            parts = int(factor) * preset.train.micro_batches
            yield f"--set train.micro_batches={parts} computes the same steps in less memory"
        else:
            yield (
                "a smaller model (model.layers, model.hidden_size), or fewer genes (data.genes, "
                "encoding.max_length), takes less memory"
            )
    if disk_share >= _TIGHT and preset.train.keep_checkpoints > 1:
        yield "--set train.keep_checkpoints=1 writes less"
