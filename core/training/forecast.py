"""What a run will be, before it is one: sizes, operations, memory, time, files.

Parameters are counted on a model without memory. Memory and time are measured: the real model does a
few steps on a few made-up cells of the right lengths, and what they take is scaled to the cells of a
step. Nothing is written.
"""

import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from core.encoding.loader import READY_BATCHES
from core.encoding.sampler import POOL_CELLS
from core.encoding.values import ValueEncoder
from core.model.attention import resolve_attention
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.presets.schema import Preset
from core.training.batch_source import cells_per_lane
from core.training.cell_outline import CellOutline
from core.training.example_step import ExampleFigures, measure_example
from core.training.flops import EncoderFlops, mean_attended_length
from core.training.lanes import lanes_of_process
from core.training.machine import DTYPES, Machine, choose_machine
from core.training.matmul_peak import device_peak
from core.training.setup import check_preset, make_config

__all__ = ["RunForecast", "forecast_run"]

#: Tokens of the cells that are measured, at least one cell.
_MEASURED_TOKENS = 1024
#: Above so many seconds that these would take at the device's peak, nothing is measured.
_PATIENCE = 10.0
#: Share of the peak that a computed time assumes.
_ASSUMED_SHARE = 0.4
#: Memory of Python, torch and scanpy once imported.
_PROGRAMS = 0.6e9
#: Bytes that a batch made ahead takes per token, and a cell of a pool per value.
_TOKEN_BYTES, _VALUE_BYTES = 24, 8
#: A line of metrics.jsonl.
_LINE_BYTES = 450
_TIGHT = 0.7
_UNMEASURED = (
    "a step of the real model takes too long or too much memory here to be measured: activations are "
    "not counted, and times are computed at 40 % of the device's peak"
)


@dataclass(frozen=True)
class RunForecast:
    """The forecast; sizes in bytes, times in seconds, of one process unless it says otherwise.

    Attributes
    ----------
    parameters
        Part -> how many: embeddings, encoder layers, heads, skeleton.
    cells, tokens
        Counts: of the panel, of a sequence, of a step, of an epoch, of the run.
    operations
        Floating-point ones, forward and backward: per token, step, epoch, run.
    machine
        Device, precision, attention route and why, processes.
    memory
        Part -> bytes at the peak of a step.
    memory_available
        Of the device.
    verdict
        Of memory and disk: "ok", "tight" or "too much".
    seconds
        Of a step, an evaluation, an epoch, the run.
    timed
        Whether times were measured, rather than computed from operations.
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
        That will train together, on devices like this process'.
    done
        Steps that the run has done already.

    Raises
    ------
    ConfigurationError, MachineError
        The preset cannot run, as `tfx train` would say.
    """
    check_preset(preset)
    _, n_lanes = lanes_of_process(preset.train.lanes, index=0, count=processes)
    cells_per_lane(preset.train, n_lanes)
    machine = choose_machine(preset.train)
    route = resolve_attention(
        preset.model.attention,
        device=torch.device(machine.device),
        dtype=DTYPES[machine.precision],
        dropout=preset.model.attention_dropout,
        ragged=preset.encoding.layout == "expressed",
    )
    config = _make_config(preset, cells)
    with torch.device("meta"):
        outline = TfxModel(config)
    parameters = _count_parameters(outline)
    size = _StepSize.of(preset, config, cells, processes)
    layers = [] if outline.encoder_part is None else list(outline.encoder_part.encoder.layers)
    flops = EncoderFlops(
        sum(p.numel() for layer in layers for p in layer.parameters()), len(layers),
        config.hidden_size,
    )  # fmt: skip
    per_token = flops.per_token(size.attended_length)
    steps = max(size.total - done, 0)
    skeleton_only = min(preset.train.skeleton_steps, size.total - 1) if _has_both(outline) else 0
    skeleton_steps = max(skeleton_only - done, 0)
    operations = {
        "token": per_token,
        "step": per_token * size.tokens,
        "epoch": per_token * size.tokens * size.per_epoch,
        "run": per_token * size.tokens * (steps - skeleton_steps),
    }
    n_parameters = sum(parameters.values())
    memory = _fixed_memory(preset, n_parameters, size, config)
    available = _available_memory(machine)
    if sum(memory.values()) > available:
        measured = None
    else:
        measured = _measure(preset, config, machine, size, operations["step"])
    own_cells = size.cells / n_lanes / preset.train.micro_batches  # at one time
    if measured is not None:
        memory["activations"] = measured.bytes_per_cell * own_cells
    used = sum(memory.values())
    seconds = _seconds(
        preset, machine, size, measured, operations,
        processes=processes, steps=steps, skeleton_steps=skeleton_steps,
        n_scored=min(cells.n_validation, preset.train.eval_cells),
    )  # fmt: skip
    files = _files(preset, cells, n_parameters, steps)
    disk = _free_disk(folder)
    verdict = _verdict(used / available, sum(files.values()) / disk)
    return RunForecast(
        parameters=parameters,
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
        },
        memory=memory,
        memory_available=available,
        verdict=verdict,
        seconds=seconds,
        timed=measured is not None,
        files=files,
        disk_free=disk,
        notes=(
            *cells.assumptions,
            *(() if measured is not None else (_UNMEASURED,)),
            *_advice(preset, used / available, sum(files.values()) / disk, own_cells),
        ),
    )  # fmt: skip


def _make_config(preset: Preset, cells: CellOutline) -> TfxConfig:
    n_edges = preset.encoding.bins - 1 if preset.encoding.kind == "binned" else 1
    edges = np.linspace(0.1, 9.0, n_edges, dtype=np.float32)
    values = ValueEncoder(preset.encoding.kind, edges)
    return make_config(preset, cells.phenotypes, n_genes=cells.n_genes, values=values)


def _has_both(outline: TfxModel) -> bool:
    return outline.skeleton is not None and outline.encoder_part is not None


def _count_parameters(outline: TfxModel) -> dict[str, int]:
    def count(modules: Iterable[torch.nn.Module | None]) -> int:
        return sum(p.numel() for m in modules if m is not None for p in m.parameters())

    part = outline.encoder_part
    embeddings = count([part.embedding]) if part is not None else 0
    layers = count([part.encoder]) if part is not None else 0
    found = {
        "embeddings": embeddings,
        "encoder layers": layers,
        "heads": count([part]) - embeddings - layers,
        # What is fitted before training is buffers, which are saved but not trained.
        "skeleton": count([outline.skeleton])
        + sum(b.numel() for b in (outline.skeleton.buffers() if outline.skeleton else [])),
    }
    return {name: number for name, number in found.items() if number}


@dataclass(frozen=True)
class _StepSize:
    """Cells and tokens of a step over all processes, and steps."""

    cells: float
    tokens: float
    length: float
    longest: int
    attended_length: float
    lengths: NDArray[np.int64]
    per_epoch: int
    total: int

    @classmethod
    def of(
        cls, preset: Preset, config: TfxConfig, cells: CellOutline, processes: int
    ) -> "_StepSize":
        tokens = config.tokens
        special = tokens.header_length + 1
        room = config.longest_sequence - special
        ranked = preset.encoding.layout == "ranked"
        genes = np.array([cells.n_genes]) if ranked else np.minimum(cells.genes_per_cell, room)
        lengths = genes.astype(np.int64) + special
        length, longest = float(lengths.mean()), int(lengths.max())
        train = preset.train
        lanes = train.lanes or processes
        if train.tokens_per_batch is None:
            n_cells = float(train.batch_size)
        elif ranked:
            n_cells = float(lanes * (train.tokens_per_batch // lanes // longest))
        else:
            n_cells = lanes * (train.tokens_per_batch // lanes - longest + 1) / length
        n_cells = max(n_cells, 1.0)
        per_epoch = max(int(cells.n_training // n_cells), 1)
        total = train.max_steps
        if total is None:
            total = max(
                math.ceil((train.epochs if train.epochs is not None else 10) * per_epoch), 1
            )
        return cls(
            cells=n_cells, tokens=n_cells * length, length=length, longest=longest,
            attended_length=mean_attended_length(lengths.tolist()), lengths=lengths,
            per_epoch=per_epoch, total=total,
        )  # fmt: skip


# ------------------------------------------------------------------------------------- memory


def _fixed_memory(
    preset: Preset, n_parameters: int, size: _StepSize, config: TfxConfig
) -> dict[str, float]:
    """Bytes of what does not depend on the cells of a step."""
    lanes = preset.train.lanes or 1
    ahead = READY_BATCHES * size.tokens * _TOKEN_BYTES
    pool = lanes * POOL_CELLS * min(size.length, config.n_genes) * _VALUE_BYTES
    memory = {
        "weights": 4.0 * n_parameters,
        "gradients": 4.0 * n_parameters,
        "AdamW": 8.0 * n_parameters,
        "average": 4.0 * n_parameters if preset.train.ema else 0.0,
    }
    if choose_machine(preset.train).device == "cpu":  # else they take the host's memory
        memory |= {"cells read ahead": ahead + pool, "programs": _PROGRAMS}
    return {name: value for name, value in memory.items() if value}


def _available_memory(machine: Machine) -> float:
    if machine.device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


def _measure(
    preset: Preset, config: TfxConfig, machine: Machine, size: _StepSize, step_operations: float
) -> ExampleFigures | None:
    n_cells = int(np.clip(_MEASURED_TOKENS // size.length, 1, max(size.cells, 1)))
    peak = device_peak(torch.device(machine.device), machine.precision)
    if peak is not None and step_operations * n_cells / size.cells / peak > _PATIENCE:
        return None
    return measure_example(preset, config, machine, size.lengths, n_cells)


# --------------------------------------------------------------------------------- time, files


def _seconds(
    preset: Preset,
    machine: Machine,
    size: _StepSize,
    measured: ExampleFigures | None,
    operations: dict[str, float],
    *,
    processes: int,
    steps: int,
    skeleton_steps: int,
    n_scored: int,
) -> dict[str, float]:
    if measured is None:
        peak = device_peak(torch.device(machine.device), machine.precision)
        if peak is None:
            return {}
        step = skeleton = operations["step"] / (peak * _ASSUMED_SHARE * processes)
        # Forward alone is a third; every validation cell is asked twice.
        evaluation = 2 * n_scored * operations["step"] / size.cells / 3 / (peak * _ASSUMED_SHARE)
    else:
        own = size.cells / processes
        step = own * measured.seconds_per_cell + measured.seconds_optimiser
        skeleton = own * measured.seconds_skeleton + measured.seconds_optimiser
        evaluation = 2 * n_scored * measured.seconds_per_scored_cell
    n_evaluations = math.ceil(steps / preset.train.eval_steps)
    return {
        "step": step,
        **({"step of the skeleton alone": skeleton} if skeleton_steps else {}),
        "evaluation": evaluation,
        "epoch": step * size.per_epoch,
        "run": step * (steps - skeleton_steps)
        + skeleton * skeleton_steps
        + evaluation * n_evaluations,
    }


def _files(preset: Preset, cells: CellOutline, n_parameters: int, steps: int) -> dict[str, float]:
    train = preset.train
    checkpoint = (12.0 + (4.0 if train.ema else 0.0)) * n_parameters
    n_kept = min(train.keep_checkpoints + 1, math.ceil(steps / train.save_steps))
    files = {
        "store": float(cells.store_bytes),
        f"checkpoints ({n_kept} and the one being written)": (n_kept + 1) * checkpoint,
        "model folder": 4.0 * n_parameters,
        "metrics and events": _LINE_BYTES * steps / train.log_steps,
    }
    return {name: value for name, value in files.items() if value}


def _free_disk(folder: Path) -> float:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)


def _verdict(memory_share: float, disk_share: float) -> Literal["ok", "tight", "too much"]:
    worst = max(memory_share, disk_share)
    return "ok" if worst < _TIGHT else "tight" if worst < 1 else "too much"


def _advice(
    preset: Preset, memory_share: float, disk_share: float, own_cells: float
) -> Iterable[str]:
    if memory_share >= _TIGHT:
        parts = (
            2 ** max(math.ceil(math.log2(memory_share / _TIGHT)), 1) * preset.train.micro_batches
        )
        yield (
            f"--set train.micro_batches={parts} computes the same steps in less memory"
            if own_cells >= 2
            else "a smaller model (model.layers, model.hidden_size), or fewer genes (data.genes, "
            "encoding.max_length), takes less memory"
        )
    if disk_share >= _TIGHT:
        yield "--set train.keep_checkpoints=1 writes less"
