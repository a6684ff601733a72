"""Which genes of a cell each step draws, and all its random numbers.

These are drawn before the first gene, cell by cell from (seed, number of the cell), so that a cell does
not depend on the batch it is in. Two plans:

- unmasking: all genes hidden, revealed in a random order of each cell's own, a few per step;
- Gibbs sweeps, for models trained at a fixed mask rate, which have never seen a mostly hidden cell: all
  genes visible from the first step on, then hidden and redrawn at the rate that the model knows.

Shapes: B cells, D draws per cell, of all steps one after another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from core.model.folder import CellModel
from core.presets.schema import GenerateSettings
from core.random_streams import Stream, generator


@dataclass(frozen=True)
class StepPlan:
    """How many of the panel's ``n_genes`` genes each step draws (``sizes``), the same for all cells.

    With Gibbs sweeps the first step draws all genes, and every other one hides those that it redraws.
    """

    n_genes: int
    sizes: tuple[int, ...]
    is_gibbs: bool = False

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """(steps,), draws done after each step."""
        return tuple(np.cumsum(self.sizes).tolist())


def plan_steps(settings: GenerateSettings, n_genes: int, *, fixed_rate: float | None) -> StepPlan:
    """Divide the genes of a panel among the steps: of Gibbs sweeps at ``fixed_rate``, or of unmasking."""
    if fixed_rate is not None:
        at_once = min(max(round(fixed_rate * n_genes), 1), n_genes)
        sweep = [len(part) for part in np.array_split(np.arange(n_genes), -(-n_genes // at_once))]
        again = [sweep[step % len(sweep)] for step in range(settings.steps)]
        return StepPlan(n_genes, (n_genes, *again), is_gibbs=True)
    steps = min(settings.steps, n_genes)
    fractions = np.arange(1, steps + 1) / steps
    if settings.schedule == "cosine":  # few at first, when little is known (MaskGIT)
        fractions = 1 - np.cos(0.5 * math.pi * fractions)
    # At least one gene per step: early steps of the cosine schedule would have none.
    ends = np.maximum(np.round(n_genes * fractions).astype(int), np.arange(1, steps + 1))
    return StepPlan(n_genes, tuple(np.diff(ends, prepend=0).tolist()))


def plan_for(model: CellModel, settings: GenerateSettings) -> StepPlan:
    """Divide the genes of a model among the steps of the settings."""
    return plan_steps(settings, model.config.n_genes, fixed_rate=fixed_rate_of(model, settings))


def fixed_rate_of(model: CellModel, settings: GenerateSettings) -> float | None:
    """Return the fraction redrawn per step of Gibbs sweeps, None for unmasking."""
    rate = model.masking.genes
    if model.config.layout == "expressed" or settings.method == "unmask":
        return None
    if rate == "uniform":
        return 0.15 if settings.method == "gibbs" else None
    return max(float(rate), 1e-9)


@dataclass(frozen=True)
class CellPlan:
    """All random numbers that go into B cells."""

    steps: StepPlan
    #: (B, D), the gene of each draw, at most once per step.
    genes: NDArray[np.int64]
    #: (B, D), uniform and standard normal, for the values; normal is (B, 0) where the model needs none.
    uniform: NDArray[np.float32]
    normal: NDArray[np.float32]
    #: (B,), uniform, for the latent cell states; None: the cells show none, as real cells do.
    state: NDArray[np.float32] | None

    @classmethod
    def draw(
        cls, seed: int, cells: Sequence[int], steps: StepPlan, *, needs_normal: bool
    ) -> "CellPlan":
        """Draw for the cells numbered ``cells``."""
        shape = (len(cells), steps.ends[-1])
        genes = np.empty(shape, dtype=np.int64)
        uniform = np.empty(shape, dtype=np.float32)
        normal = np.empty(shape if needs_normal else (len(cells), 0), dtype=np.float32)
        state = np.empty(len(cells), dtype=np.float32)
        n_again = sum(steps.sizes[1:]) if steps.is_gibbs else 0
        n_sweeps = -(-n_again // steps.n_genes)
        for place, cell in enumerate(cells):
            rng = generator(seed, cell, Stream.GENERATED_CELL)
            order = rng.permutation(steps.n_genes)
            # Whole sweeps: every gene is redrawn once before any is redrawn twice.
            sweeps = [rng.permutation(steps.n_genes) for _ in range(n_sweeps)]
            genes[place] = np.concatenate([order, *sweeps])[: shape[1]]
            uniform[place] = rng.random(shape[1], dtype=np.float32)
            if needs_normal:
                normal[place] = rng.standard_normal(shape[1], dtype=np.float32)
            state[place] = rng.random(dtype=np.float32)
        return cls(steps, genes, uniform, normal, state)
