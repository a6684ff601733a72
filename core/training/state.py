"""What training changes and a checkpoint holds: weights, optimiser, average, progress, cursor."""

import logging
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from core.encoding.sampler import Cursor
from core.errors import DataError
from core.model.cell_model import TfxModel
from core.renamed import current_progress
from core.training.machine import Machine
from core.training.optimiser import (
    ENCODER,
    WeightAverage,
    learning_rate_factor,
    make_optimiser,
    total_steps,
)
from core.training.processes import Processes, load_optimiser, load_weights, whole, whole_weights
from core.training.run_setup import RunSetup
from core.training.step import StepWindow

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run is; part of a checkpoint, by these names."""

    step: int = 0
    #: Step of the last evaluation that was finished.
    evaluated: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    #: Evaluations since the best one.
    without_gain: int = 0
    #: Whether training ended early, for lack of gain.
    has_ended: bool = False


class TrainingState:
    """The state of one process' part of a run, from its first step to its last."""

    def __init__(self, setup: RunSetup, processes: Processes, window: StepWindow) -> None:
        settings = self.settings = setup.preset.train
        model = self.model = setup.model.network
        self.source, self.processes, self.window = setup.source, processes, window
        self.source.n_parts = settings.micro_batches
        self.progress = Progress()
        #: Of the next step's cells.
        self.cursor = self.source.sampler.start
        self.total = total_steps(
            self.source.sampler.steps, max_steps=settings.max_steps, epochs=settings.epochs
        )
        has_both = model.log_linear is not None and model.encoder_part is not None
        #: The first steps, which train the log-linear part alone.
        self.log_linear_steps = min(settings.log_linear_steps, self.total - 1) if has_both else 0
        optimiser = make_optimiser(model, settings)
        self._peak_rates = [float(group["lr"]) for group in optimiser.param_groups]
        self._weight_decays = [float(group["weight_decay"]) for group in optimiser.param_groups]
        if settings.compile:
            _compile(model, setup.machine)
        #: What to call in a step, and accelerate's optimiser.
        self.network, self.optimiser = processes.accelerator.prepare(model, optimiser)
        #: The network itself, whatever shares it among the processes.
        self.own_network: TfxModel = processes.accelerator.unwrap_model(self.network)
        self.average = WeightAverage(self.own_network, settings.ema) if settings.ema else None

    @property
    def is_over(self) -> bool:
        """Whether there is no further step."""
        return self.progress.step >= self.total or self.progress.has_ended

    def begin_step(self) -> float:
        """Set what the next step trains, and how fast; return the first group's learning rate.

        The encoder's schedule begins when it joins, after ``train.log_linear_steps``.
        """
        step = self.progress.step
        self.model.log_linear_only = step < self.log_linear_steps
        for group, peak in zip(self.optimiser.param_groups, self._peak_rates, strict=True):
            late = self.log_linear_steps if group["part"] == ENCODER else 0
            group["lr"] = peak * learning_rate_factor(
                max(step - late, 0),
                total=self.total - late,
                warmup_ratio=self.settings.warmup_ratio,
                schedule=self.settings.schedule,
            )
        return float(self.optimiser.param_groups[0]["lr"])

    def end_step(self, following: Cursor) -> None:
        """Count a step whose cells end before the cursor ``following``."""
        if self.average is not None:
            self.average.update(self.progress.step)
        self.progress.step += 1
        self.cursor = following

    def averaged(self) -> AbstractContextManager[None]:
        """Let the network have the averaged weights, if there are any, while the block runs."""
        return nullcontext() if self.average is None else self.average.in_place()

    def to_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return whole weights and state; all processes call it."""
        scaler = self.processes.accelerator.scaler
        state = {
            "optimiser": whole(self.optimiser.state_dict()),
            "progress": asdict(self.progress),
            "cursor": self.cursor.to_json(),
            "window": self.window.state(),
            "micro_batches": self.source.n_parts,
            "average": None if self.average is None else whole(self.average.state()),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        return whole_weights(self.own_network), state

    def restore(self, path: Path, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Continue from a checkpoint's content; DataError if it is of an older tfx or another model."""
        if "progress" not in state:
            message = f"{path} was written by an older tfx, whose order of cells was another; train the preset anew"
            raise DataError(message)
        try:
            load_weights(self.own_network, weights)
        except RuntimeError as error:
            message = f"{path}: the checkpoint does not fit the preset's model; resume with the run's own config.toml"
            raise DataError(message) from error
        load_optimiser(self.optimiser, state["optimiser"])
        # The preset's decay holds, which may have been changed; the optimiser remembers the old.
        for group, decay in zip(self.optimiser.param_groups, self._weight_decays, strict=True):
            group["weight_decay"] = decay
        scaler = self.processes.accelerator.scaler
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        progress = self.progress = Progress(**current_progress(state["progress"]))
        patience = self.settings.patience  # may have been changed
        progress.has_ended = patience is not None and progress.without_gain >= patience
        self.window.load(state["window"])
        self.source.n_parts = max(self.source.n_parts, int(state["micro_batches"]))
        if self.average is not None and state["average"]:
            self.average.load(state["average"])
        self.cursor = self.source.sampler.resume(Cursor.from_json(state["cursor"]))


def _compile(network: TfxModel, machine: Machine) -> None:
    """Compile the encoder's layers in place; on a CPU it gains nothing (measured: 2 %)."""
    if machine.device != "cuda":
        logger.info("train.compile is for CUDA: layers are not compiled on %s", machine.device)
        return
    for layer in network.encoder_part.encoder.layers if network.encoder_part is not None else ():
        layer.compile(dynamic=network.config.layout == "expressed")
