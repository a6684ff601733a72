"""The learning rate over a run: linear warm-up, then linear or cosine decay to zero."""

import math
from collections.abc import Callable
from typing import Literal

__all__ = ["learning_rate_factor", "total_steps"]


def learning_rate_factor(
    step: int, *, total: int, warmup_ratio: float, schedule: Literal["linear", "cosine"]
) -> float:
    """Return what the learning rate is multiplied by at ``step`` (0-based) of ``total``."""
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
    """Return the steps of a run; ten epochs where a preset gives neither steps nor epochs.

    Parameters
    ----------
    steps_of
        Steps of an epoch, counted from 0; they may differ.
    max_steps, epochs
        Of the preset; a part of an epoch is rounded up to whole steps.
    """
    if max_steps is not None:
        return max_steps
    whole, part = divmod(epochs if epochs is not None else 10.0, 1.0)
    steps = sum(steps_of(epoch) for epoch in range(int(whole)))
    if part:
        steps += math.ceil(part * steps_of(int(whole)))
    return max(steps, 1)
