"""AdamW over groups of parameters, the learning rate over a run, and an average of the weights."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from core.model.cell_model import TfxModel
from core.presets.schema import TrainSettings

#: Which part of the model a group of parameters belongs to: ``group["part"]``.
ENCODER, LOG_LINEAR = "encoder", "log_linear"


def make_optimiser(network: TfxModel, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW over three groups: encoder matrices with decay, the rest without, the log-linear part.

    Biases, norms and embeddings are not decayed: decay would pull rare genes' embeddings to zero
    between their few updates. The log-linear part is a regression, which needs a larger step and
    more decay.
    """
    log_linear = [] if network.log_linear is None else list(network.log_linear.parameters())
    own = {id(parameter) for parameter in log_linear}
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
