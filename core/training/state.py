"""What training changes and a checkpoint holds: weights, optimiser, average, progress, cursor.

With it AdamW over groups of parameters, the learning rate over a run, and the average of the weights.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.encoding.sampler import Cursor
from core.errors import DataError
from core.model.cell_model import TfxModel
from core.presets.schema import TrainSettings
from core.renamed import current_progress
from core.training.processes import load_optimiser, load_weights, whole, whole_weights
from core.training.run_setup import RunSetup
from core.training.step import StepRecorder

logger = logging.getLogger(__name__)

#: Which part of the model a group of parameters belongs to: ``group["part"]``.
ENCODER, LOG_LINEAR, LIBRARY_SIZE = "encoder", "log_linear", "library_size"


@dataclass
class Progress:
    """How far a run is; part of a checkpoint, by these names."""

    step: int = 0
    #: Step of the last evaluation that was finished; -1: none, not even that before the first step.
    evaluated: int = -1
    #: Score and loss of the best evaluation; a lower loss decides where scores are equal.
    best_score: float = -math.inf
    best_loss: float = math.inf
    best_step: int = 0
    #: What the best step is chosen by; runs of an older tfx keep to the loss.
    chosen_by: Literal["score", "loss"] = "score"
    best_metrics: dict[str, float] = field(default_factory=dict)
    #: Evaluations since the best one.
    without_gain: int = 0
    #: Whether training ended early, for lack of gain.
    has_ended: bool = False
    #: Whether the encoder of the best evaluation had not learnt anything yet.
    encoder_is_untrained: bool = False

    def rank(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """Return by what validation metrics are compared: the higher is better."""
        score = metrics.get("score", 0.0) if self.chosen_by == "score" else 0.0
        return score, -metrics["loss"]

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether validation metrics are better than all before; not without a finite loss."""
        best = (self.best_score if self.chosen_by == "score" else 0.0, -self.best_loss)
        return math.isfinite(metrics["loss"]) and self.rank(metrics) > best


class TrainingState:
    """The state of one process' part of a run, from its first step to its last."""

    def __init__(self, setup: RunSetup, recorder: StepRecorder) -> None:
        processes = self.processes = setup.processes
        settings = self.settings = setup.preset.train
        model = self.model = setup.model.network
        self.source, self.threads, self.recorder = setup.source, setup.threads, recorder
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
            if setup.machine.device == "cuda":
                for layer in (
                    [] if model.encoder_part is None else model.encoder_part.encoder.layers
                ):
                    layer.compile(dynamic=model.config.layout == "expressed")
            else:  # it gains nothing there (measured on a CPU: 2 %)
                device = setup.machine.device
                logger.info("train.compile is for CUDA: layers are not compiled on %s", device)
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
            "window": self.recorder.state(),
            "micro_batches": self.source.n_parts,
            "threads": self.threads.n_threads,
            "average": None if self.average is None else whole(self.average.state()),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        return whole_weights(self.own_network), state

    def restore(self, path: Path, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Continue from a checkpoint's content; DataError if it is of an older tfx or another model."""
        if "progress" not in state:
            raise DataError(
                f"{path} was written by an older tfx, whose order of cells was another; train the preset anew"
            )
        try:
            load_weights(self.own_network, weights)
        except RuntimeError as error:
            raise DataError(
                f"{path}: the checkpoint does not fit the preset's model; resume with the run's own config.toml"
            ) from error
        load_optimiser(self.optimiser, state["optimiser"])
        # The preset's decay holds, which may have been changed; the optimiser remembers the old.
        for group, decay in zip(self.optimiser.param_groups, self._weight_decays, strict=True):
            group["weight_decay"] = decay
        scaler = self.processes.accelerator.scaler
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        kept = {"chosen_by": "loss", **current_progress(state["progress"])}
        progress = self.progress = Progress(**kept)
        patience = self.settings.patience  # may have been changed
        progress.has_ended = patience is not None and progress.without_gain >= patience
        self.recorder.load(state["window"])
        self.source.n_parts = max(self.source.n_parts, int(state["micro_batches"]))
        if threads := state.get("threads"):  # a checkpoint of an older tfx has none
            self.threads.restore(int(threads))
        if self.average is not None and state["average"]:
            self.average.load(state["average"])
        self.cursor = self.source.sampler.resume(Cursor.from_json(state["cursor"]))


def is_untrained(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights of a network have an encoder whose outputs are still at zero, where they began."""
    outputs = [
        tensor
        for name, tensor in weights.items()
        if name.startswith("encoder_part.")
        and name.endswith("_output.weight")
        and name.count(".") == 2
    ]
    return bool(outputs) and not any(tensor.any() for tensor in outputs)


def make_optimiser(network: TfxModel, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW over groups: encoder matrices with decay, the rest without, the model's other parts.

    Biases, norms and embeddings are not decayed: decay would pull rare genes' embeddings to zero
    between their few updates. The log-linear part is a regression, which needs a larger step and
    more decay.
    """
    log_linear = [] if network.log_linear is None else list(network.log_linear.parameters())
    library_size = [] if network.library_size is None else list(network.library_size.parameters())
    own = {id(parameter) for parameter in (*log_linear, *library_size)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in own or not parameter.requires_grad:
                continue
            is_matrix = isinstance(module, nn.Linear) and name == "weight"
            (decayed if is_matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "part": ENCODER, "weight_decay": settings.weight_decay},
        {"params": plain, "part": ENCODER, "weight_decay": 0.0},
        {
            "params": [parameter for parameter in log_linear if parameter.requires_grad],
            "part": LOG_LINEAR,
            "lr": settings.log_linear_learning_rate,
            "weight_decay": settings.log_linear_weight_decay,
        },
        {
            "params": [parameter for parameter in library_size if parameter.requires_grad],
            "part": LIBRARY_SIZE,
            "weight_decay": settings.weight_decay,
        },
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=settings.learning_rate, fused=True
    )


def learning_rate_factor(
    step: int, *, total: int, warmup_ratio: float, schedule: Literal["linear", "cosine"]
) -> float:
    """Return the factor of the learning rate at ``step`` (0-based): linear warm-up, then decay to zero."""
    warmup = round(total * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return max(1.0 - progress, 0.0)


def total_steps(
    steps_of: Callable[[int], int], *, max_steps: int | None, epochs: float | None
) -> int:
    """Return the steps of a run; ten epochs if a preset gives neither steps nor epochs.

    ``steps_of`` returns the steps of an epoch, counted from 0; a part of an epoch is rounded up.
    """
    if max_steps is not None:
        return max_steps
    whole, part = divmod(epochs if epochs is not None else 10.0, 1.0)
    steps = sum(steps_of(epoch) for epoch in range(int(whole)))
    if part:
        steps += math.ceil(part * steps_of(int(whole)))
    return max(steps, 1)


class WeightAverage:
    """The exponential moving average (EMA) of a network's trained parameters.

    Young averages forget faster, min(decay, (1 + t) / (10 + t)) at step t, so that the initial
    weights do not linger. Not `torch.optim.swa_utils.AveragedModel`, which holds a second network.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self._average.values()),
            [p.detach() for p in self._parameters.values()],
            1.0 - decay,
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network have the averaged weights while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self._average[name])
            self._average[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """Return the averages by the parameters' names."""
        return dict(self._average)

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for name, average in self._average.items():
            average.copy_(state[name])
