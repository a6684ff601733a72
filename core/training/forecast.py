"""A forecast of a run: sizes, operations, memory, time, files. Nothing is written.

Parameters and activation memory are counted on a network without data. Time is measured on a few
steps of the real network; if one cell alone takes too long or too much memory, time is computed
from the operations.
"""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import nn

from core.cells.one_vs_rest import values_of_one
from core.cells.store import Store
from core.encoding.loader import READY_BATCHES
from core.encoding.panel_cells import PanelReader
from core.encoding.sampler import POOL_CELLS, BlockSampler
from core.encoding.values import QUANTILES
from core.errors import ConfigurationError
from core.files import free_space
from core.model.batch_tensors import BatchTensors
from core.model.cell_model import TfxModel
from core.model.reference import SIZE_QUANTILES
from core.presets.schema import Preset
from core.random_streams import sample_rows
from core.training.machine import (
    EncoderFlops,
    Machine,
    device_peak,
    mean_attended_length,
    set_up_speed,
)
from core.training.profiling import (
    StepProfile,
    activation_bytes,
    example_batch,
    example_values,
    profile_step,
)
from core.training.run_setup import check_feasible, check_preset, make_config
from core.training.state import total_steps
from core.training.threads import threads_restored, use_threads
from core.training.virtual_ranks import RunCells, cells_per_virtual_rank, virtual_ranks_of_process

#: Cells whose genes are counted.
_COUNTED_CELLS = 5_000
#: Cells that are dealt to steps to count the steps; more cells make proportionally more steps.
_DEALT_CELLS = 100_000
#: A step of one cell that would take more seconds is not measured.
_MAX_CELL_SECONDS = 5.0
#: Fraction of the peak that a computed time assumes: measured on large models, a CPU's in
#: benchmarks/engine.md; a GPU's is our goal.
_ASSUMED_UTILISATION = {"cpu": 0.7, "cuda": 0.35}
#: Fraction of the free memory that steps for measuring may take.
_MEASURING_FRACTION = 0.7
#: Memory of Python, torch and scanpy once imported.
_PROGRAMS = 0.6e9
#: Cells that show how much memory a batch takes.
_FEW_CELLS = 16
#: Of a value of a pool's cell; of a line of metrics.jsonl.
_VALUE_BYTES, _LINE_BYTES = 8, 450
#: From this fraction of what is free on, memory or disk is tight.
_TIGHT = 0.7
#: Percent of the processors that other programs may take without a note.
_BUSY = 20.0


@dataclass(frozen=True)
class CellOutline:
    """What is known of the cells that a run will learn from."""

    #: In words: where this is known from.
    source: str
    n_training: int
    n_validation: int
    #: Genes of the panel.
    n_genes: int
    #: Name -> values.
    phenotypes: dict[str, list[str]]
    #: (some cells,), expressed genes of the panel.
    genes_per_cell: NDArray[np.int64]
    #: Of the store that is yet to be made, and of making it; 0 if it exists.
    store_bytes: int = 0
    prepare_seconds: float = 0.0
    #: What is not known and was assumed, a sentence each.
    assumptions: tuple[str, ...] = ()


def outline_of_store(preset: Preset, store: Store) -> CellOutline:
    """Outline the cells of a store, as `tfx train` would take them."""
    cells = RunCells.of(preset, store)
    store, training = cells.store, cells.training
    some = sample_rows(training, _COUNTED_CELLS, np.random.default_rng(0))
    return CellOutline(
        source=f"store {store.path}",
        n_training=len(training),
        n_validation=len(cells.validation),
        n_genes=len(cells.panel),
        phenotypes={name: list(values) for name, values in store.phenotypes.items()},
        genes_per_cell=PanelReader(store, cells.panel).count_values(some),
    )


def outline_of_facts(preset: Preset, facts: dict[str, Any]) -> CellOutline:
    """Outline cells that are not prepared, from the facts of `core.cells.checks.check.check_data`.

    ConfigurationError if the files' tables do not contain the number of cells.
    """
    split, estimate = facts.get("split"), facts.get("estimate")
    if split is None or estimate is None or not facts.get("genes"):
        raise ConfigurationError(
            "the cells cannot be counted without reading them; see 'tfx check', or prepare them first by 'tfx prepare'"
        )
    n_genes = min(preset.data.genes, int(facts["genes"]))
    per_cell = estimate["n_values"] / max(facts["cells"], 1)
    assumptions = ["the cells are not prepared yet: sizes are those of the files' tables"]
    if preset.encoding.layout == "expressed":
        assumptions.append(
            "every cell is assumed to express the average number of genes of the panel, by the "
            "density of all genes; the most variable genes are often denser"
        )
        per_cell *= n_genes / int(facts["genes"])
    if preset.data.where:
        assumptions.append("data.where is not applied yet: every cell is counted")
    phenotypes = {name: list(found["labels"]) for name, found in facts["phenotypes"].items()}
    positive = preset.classification.positive
    if preset.classified is not None and positive is not None:
        phenotypes[preset.classified] = values_of_one(positive)
    return CellOutline(
        source=f"{len(facts['files'])} file{'s' * (len(facts['files']) != 1)}",
        n_training=int(split["train"]),
        n_validation=int(split["validation"]),
        n_genes=n_genes,
        phenotypes=phenotypes,
        genes_per_cell=np.array([max(round(per_cell), 1)]),
        store_bytes=int(estimate["store_bytes"]),
        prepare_seconds=float(estimate["seconds"]),
        assumptions=tuple(assumptions),
    )


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


def forecast_run(
    preset: Preset, cells: CellOutline, folder: Path, *, processes: int = 1, done: int = 0
) -> RunForecast:
    """Forecast the run of a preset in ``folder``, which need not exist.

    ``processes`` train together, on devices like this process' (CPUs: on this machine); ``done``
    steps are behind the run. ConfigurationError or MachineError if the preset cannot run.
    """
    check_preset(preset)
    machine, route = check_feasible(preset, processes=processes)
    set_up_speed(machine)
    run = _Run(preset, cells, machine, processes, done)
    operations = run.operations()
    peak = device_peak(torch.device(machine.device), machine.precision)
    memory = run.fixed_memory()
    available = _available_memory(machine, processes)

    part_cells = max(run.step_cells / run.n_virtual_ranks / preset.train.micro_batches, 1.0)
    per_cell = activation_bytes(preset, run.config, machine, route, run.lengths, part_cells)
    per_cell /= part_cells
    fitting = (_MEASURING_FRACTION * available - sum(memory.values())) / per_cell
    timing = "unknown: no step could be done here, and the device's peak is not known"
    computed: StepProfile | None = None
    if peak is not None:
        utilisation = _ASSUMED_UTILISATION[machine.device]
        cell = operations["step"] / run.step_cells / (utilisation * peak)
        computed = StepProfile(n_cells=0, cell=cell, scored_cell=cell / 3, log_linear_cell=cell)
        timing = (
            f"computed at {utilisation:.0%} of the peak of {peak / 1e12:.3g} TFLOP/s; right within a "
            f"factor of two"
        )
    others = psutil.cpu_percent(interval=0.3) if machine.device == "cpu" else 0.0
    measured = None
    if fitting >= 1 and (computed is None or computed.cell <= _MAX_CELL_SECONDS):
        # Out of memory: a GPU's kernels took more than was counted.
        with contextlib.suppress(torch.OutOfMemoryError), threads_restored():
            # Threads that wait for each other would measure only the other programs.
            if isinstance(preset.train.threads, int) or others > _BUSY:
                use_threads(1 if preset.train.threads == "auto" else preset.train.threads)
            max_cells = max(int(min(part_cells, fitting)), 1)
            measured = profile_step(
                preset, run.config, machine, route, run.lengths, max_cells=max_cells
            )
    if measured is not None:
        per_cell = per_cell if measured.peak_bytes is None else measured.peak_bytes
        n, s = measured.n_cells, "s" * (measured.n_cells != 1)
        timing = f"measured on steps of {n:,} made-up cell{s}; right within a factor of two"
    memory["activations"] = per_cell * part_cells

    files = run.files()
    disk = float(free_space(folder)[1])
    used = max(sum(memory.values()) / available, sum(files.values()) / disk)
    notes = [*cells.assumptions]
    if others > _BUSY and measured is not None and preset.train.threads == "auto":
        notes.append(
            f"other programs take {others:.0f} % of the processors at the moment: times are those "
            f"of one thread; beside such programs a run of several is slower, alone it is quicker"
        )
    if machine.device == "cuda" and preset.train.compile:
        notes.append("train.compile makes steps quicker than these, after a minute of compiling")
    if sum(memory.values()) >= _TIGHT * available:
        notes.append(_memory_advice(memory, available, part_cells, preset.train.micro_batches))
    if sum(files.values()) >= _TIGHT * disk and preset.train.keep_checkpoints > 1:
        notes.append("--set train.keep_checkpoints=1 writes less")
    return RunForecast(
        parameters=run.parameters,
        cells={
            "training": cells.n_training,
            "validation": cells.n_validation,
            "step": run.step_cells,
            "epoch": run.step_cells * run.per_epoch,
        },
        tokens={
            "genes": cells.n_genes,
            "sequence": run.length,
            "longest": int(run.lengths.max()),
            "attended": run.attended_length,
            "step": run.step_cells * run.length,
            "steps_per_epoch": run.per_epoch,
            "steps": run.total,
            "steps_done": done,
            "epochs": run.total / run.per_epoch,
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
        seconds=run.seconds(measured or computed),
        timed=measured is not None,
        timing=timing,
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
        values = example_values(preset.encoding.kind, preset.encoding.bins)
        self.config = make_config(preset, cells.phenotypes, n_genes=cells.n_genes, values=values)
        _, self.n_virtual_ranks = virtual_ranks_of_process(
            self.train.virtual_ranks, index=0, count=processes
        )
        self._count_steps()
        with torch.device("meta"):
            self.network = TfxModel(self.config)
            self.network.start()  # which freezes some
        self._count_parameters()
        self.steps = max(self.total - done, 0)
        #: Evaluations: every `train.eval_steps`, and one before the first step.
        self.n_evaluations = math.ceil(self.steps / self.train.eval_steps) + (done == 0)
        #: Remaining steps that train the log-linear part alone.
        self.log_linear_steps = 0
        if self.network.encoder_part is not None and self.network.log_linear is not None:
            of_run = min(self.train.log_linear_steps, self.total - 1)
            self.log_linear_steps = max(of_run - done, 0)

    def _count_steps(self) -> None:
        """Let the sampler of the run deal cells to steps."""
        config, train = self.config, self.train
        special = config.tokens.header_length + 1
        is_ranked = config.layout == "ranked"
        genes = np.array([config.n_genes])
        if not is_ranked:
            genes = np.minimum(self.cells.genes_per_cell, config.longest_sequence - special)
        #: (some cells,), tokens of each.
        self.lengths = genes.astype(np.int64) + special
        read = np.minimum(genes, config.context_genes or config.n_genes) + special
        #: Of these the tokens that attention reads.
        self.read_length = float(read.mean())
        self.length = float(self.lengths.mean())
        #: L̄ of `core.training.machine`.
        self.attended_length = mean_attended_length(read)
        n_dealt = min(self.cells.n_training, _DEALT_CELLS)
        batch_size, budget = cells_per_virtual_rank(
            train, self.n_virtual_ranks, length=int(self.lengths.max()) if is_ranked else None
        )
        sampler = BlockSampler(
            np.arange(n_dealt),
            seed=train.seed,
            batch_size=batch_size,
            lengths=None if budget is None else np.resize(self.lengths, n_dealt),
            tokens_per_batch=budget,
            virtual_ranks=self.n_virtual_ranks,
        )
        #: Cells of a step, over all processes, on average.
        per_cell = 1.0 if budget is None else self.length
        self.step_cells = self.n_virtual_ranks * sampler.quota / per_cell

        def steps_of(epoch: int) -> int:
            return round(sampler.steps(epoch) * self.cells.n_training / n_dealt)

        self.per_epoch = steps_of(0)
        self.total = total_steps(steps_of, max_steps=train.max_steps, epochs=train.epochs)

    def _count_parameters(self) -> None:
        def count(module: nn.Module | None) -> int:
            return 0 if module is None else sum(p.numel() for p in module.parameters())

        encoder = self.network.encoder_part
        parts = {}
        if encoder is not None:
            parts["embeddings"] = count(encoder.embedding)
            parts["encoder layers"] = count(encoder.encoder)
            parts["heads"] = count(encoder) - sum(parts.values())
        parts["log_linear"] = count(self.network.log_linear)
        parts["library_size"] = count(self.network.library_size)
        self.parameters = {name: number for name, number in parts.items() if number}
        self.n_trained = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        #: Numbers fitted before training (the log-linear part's), which are saved too.
        self.n_fitted = sum(b.numel() for b in self.network.buffers())

    def operations(self) -> dict[str, float]:
        token = EncoderFlops.of(self.network).per_token(self.attended_length)
        step = token * self.step_cells * self.read_length
        return {
            "token": token,
            "step": step,
            "epoch": step * self.per_epoch,
            "run": step * (self.steps - self.log_linear_steps),
        }

    def fixed_memory(self) -> dict[str, float]:
        """Bytes of what does not depend on the number of cells that are computed at a time."""
        trained = 4.0 * self.n_trained
        memory = {
            "weights": 4.0 * sum(self.parameters.values()),
            "fitted tables": 4.0 * self.n_fitted if self.config.log_linear else 0.0,
            "gradients": trained,
            "gradients on their way": trained if self.processes > 1 else 0.0,
            "AdamW": 2 * trained,
            "average": trained if self.train.ema else 0.0,
        }
        if self.machine.device == "cpu":  # else they take the host's memory
            masking = self.preset.training_masking
            few = example_batch(self.config, masking, self.lengths, _FEW_CELLS)
            n_bytes = BatchTensors.on_host(few).nbytes
            ahead = READY_BATCHES * self.step_cells / self.processes * n_bytes / _FEW_CELLS
            own_ranks = max(self.n_virtual_ranks // self.processes, 1)
            pool = own_ranks * POOL_CELLS * min(self.length, self.config.n_genes) * _VALUE_BYTES
            memory |= {"cells read ahead": ahead + pool, "programs": _PROGRAMS}
        return {name: value for name, value in memory.items() if value}

    def seconds(self, profile: StepProfile | None) -> dict[str, float]:
        seconds: dict[str, float] = {}
        if self.cells.prepare_seconds:
            seconds["preparing the cells"] = self.cells.prepare_seconds
        if profile is None:
            return seconds
        # CPU processes share the processors that were measured.
        own_cells = self.step_cells / (self.processes if self.machine.device == "cuda" else 1)
        step = own_cells * profile.cell + profile.optimiser
        log_linear = own_cells * profile.log_linear_cell + profile.optimiser
        # Every validation cell is scored twice: for its genes, and for its phenotypes.
        n_scored = 2 * min(self.cells.n_validation, self.train.eval_cells)
        evaluation = n_scored * profile.scored_cell
        seconds["step"] = step
        if self.log_linear_steps:
            seconds["step of the log-linear part alone"] = log_linear
        seconds["evaluation"] = evaluation
        seconds["epoch"] = (step + evaluation / self.train.eval_steps) * self.per_epoch
        seconds["run"] = (
            step * (self.steps - self.log_linear_steps)
            + log_linear * self.log_linear_steps
            + evaluation * self.n_evaluations
        )
        return seconds

    def files(self) -> dict[str, float]:
        train, config = self.train, self.config
        saved = 4.0 * (sum(self.parameters.values()) + self.n_fitted)
        checkpoint = saved + (12.0 if train.ema else 8.0) * self.n_trained
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


def _memory_advice(
    memory: dict[str, float], available: float, part_cells: float, n_parts: int
) -> str:
    room = _TIGHT * available - (sum(memory.values()) - memory["activations"])
    factor = 2 ** math.ceil(math.log2(memory["activations"] / room)) if room > 0 else math.inf
    if factor <= part_cells:
        n_parts *= int(factor)
        return f"--set train.micro_batches={n_parts} computes the same steps in less memory"
    return (
        "a smaller model (model.layers, model.hidden_size), or fewer genes (data.genes, "
        "encoding.max_length), takes less memory"
    )


def _available_memory(machine: Machine, processes: int) -> float:
    if machine.device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available) / processes
