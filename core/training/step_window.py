"""Averages over the steps between two lines of metrics."""

import time

from core.model.losses import LossParts

__all__ = ["StepWindow"]


class StepWindow:
    """Collects steps; `close` gives their averages and begins anew."""

    def __init__(self) -> None:
        self.seconds_per_step = 0.0
        self._reset()

    def _reset(self) -> None:
        self.began = time.perf_counter()
        self.parts: list[LossParts] = []
        self.norms: list[float] = []
        self.n_tokens = 0
        self.n_cells = 0
        self.waited_seconds = 0.0

    def add(
        self, parts: LossParts, norm: float, *, n_tokens: int, n_cells: int, waited_seconds: float
    ) -> None:
        """Take the loss and gradient norm of a step, its size, and the wait for its data."""
        self.parts.append(
            LossParts(parts.total.detach(), parts.genes.detach(), parts.phenotypes.detach())
        )
        self.norms.append(norm)
        self.n_tokens += n_tokens
        self.n_cells += n_cells
        self.waited_seconds += waited_seconds

    def close(self) -> dict[str, float]:
        """Return the figures of the window and begin a new one."""
        n = len(self.parts)
        seconds = max(time.perf_counter() - self.began, 1e-9)
        self.seconds_per_step = seconds / n
        figures = {
            "loss": sum(p.total.item() for p in self.parts) / n,
            "loss/genes": sum(p.genes.item() for p in self.parts) / n,
            "loss/phenotypes": sum(p.phenotypes.item() for p in self.parts) / n,
            "grad_norm": sum(self.norms) / n,
            "cells_per_second": self.n_cells / seconds,
            "tokens_per_second": self.n_tokens / seconds,
            "wait": self.waited_seconds / seconds,
        }
        self._reset()
        return figures
