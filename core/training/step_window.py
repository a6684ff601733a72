"""Averages over the steps between two lines of metrics."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from core.training.train_step import StepFigures

__all__ = ["StepSize", "StepWindow"]


@dataclass(frozen=True)
class StepSize:
    """How much a step was, over all processes.

    Attributes
    ----------
    n_cells, n_tokens
        Of the step.
    squared_lengths
        Sum over cells of the square of their tokens.
    """

    n_cells: float = 0.0
    n_tokens: float = 0.0
    squared_lengths: float = 0.0


@dataclass
class _Sums:
    n_steps: int = 0
    loss: float = 0.0
    gene_loss: float = 0.0
    phenotype_loss: float = 0.0
    cls_loss: float = 0.0
    gradient_norm: float = 0.0


class StepWindow:
    """Collects steps; `close` gives their averages and begins anew."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._sums = _Sums()
        self._began = time.perf_counter()
        self._sizes: list[StepSize] = []
        self._waited = 0.0

    def state(self) -> dict[str, Any]:
        """Return the sums so far, for a checkpoint: plain numbers."""
        return asdict(self._sums)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; speeds are of the steps since."""
        self._reset()
        self._sums = _Sums(**state)

    def add_size(self, size: StepSize, *, waited_seconds: float) -> None:
        """Take the size of a step, and how long it waited for its cells."""
        self._sizes.append(size)
        self._waited += waited_seconds

    def add(self, figures: StepFigures) -> None:
        """Take what a step came to."""
        sums = self._sums
        sums.n_steps += 1
        sums.loss += figures.loss
        sums.gene_loss += figures.gene_loss
        sums.phenotype_loss += figures.phenotype_loss
        sums.cls_loss += figures.cls_loss
        sums.gradient_norm += figures.gradient_norm

    def close(self) -> "WindowFigures":
        """Return the figures of the window and begin a new one."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        sums, sizes = self._sums, self._sizes
        n = max(sums.n_steps, 1)
        n_tokens = sum(size.n_tokens for size in sizes)
        figures = WindowFigures(
            metrics={
                "loss": sums.loss / n,
                "loss/genes": sums.gene_loss / n,
                "loss/phenotypes": sums.phenotype_loss / n,
                **({"loss/cls": sums.cls_loss / n} if sums.cls_loss else {}),
                "grad_norm": sums.gradient_norm / n,
                "cells_per_second": sum(size.n_cells for size in sizes) / seconds,
                "tokens_per_second": n_tokens / seconds,
                "wait": self._waited / seconds,
            },
            seconds_per_step=seconds / max(len(sizes), 1),
            attended_length=sum(size.squared_lengths for size in sizes) / max(n_tokens, 1.0),
        )
        self._reset()
        return figures


@dataclass(frozen=True)
class WindowFigures:
    """Averages over a window.

    Attributes
    ----------
    metrics
        By name.
    seconds_per_step
        Time on the wall.
    attended_length
        Tokens that a token attends to, on average over tokens.
    """

    metrics: dict[str, float]
    seconds_per_step: float
    attended_length: float
