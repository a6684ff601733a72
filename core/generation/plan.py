"""Which genes of a cell are drawn in which step, and all the chance that goes into them.

Everything is drawn before the first gene, cell by cell from (seed, number of the cell), so that a cell
does not depend on the batch it is in. Two plans:

- unmasking: all genes hidden, revealed in a random order, a few per step; with remasking, every step
  also hides some of those revealed and draws them anew (ReMDM, arXiv 2503.00307);
- Gibbs sweeps, for models trained at a fixed mask rate: all genes visible from the first step on,
  then hidden and drawn anew at the rate that the model knows.

Shapes: B cells, D draws per cell, of all steps one after another.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from core.presets.schema import GenerateSettings
from core.random_streams import Stream, generator

__all__ = ["CellPlan", "StepPlan", "plan_steps"]


@dataclass(frozen=True)
class StepPlan:
    """How many genes every step draws, the same for all cells.

    Attributes
    ----------
    n_new, n_again
        (steps,), genes drawn for the first time, and genes that are hidden and drawn anew.
    fixed_rate
        For Gibbs sweeps: the share drawn anew per step. The first step then draws all genes.
    """

    n_genes: int
    n_new: tuple[int, ...]
    n_again: tuple[int, ...]
    fixed_rate: float | None = None

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """(steps,), draws done after each step."""
        return tuple(np.cumsum(np.add(self.n_new, self.n_again)).tolist())

    @property
    def n_draws(self) -> int:
        """Draws per cell."""
        return self.ends[-1]


def plan_steps(settings: GenerateSettings, n_genes: int, *, fixed_rate: float | None) -> StepPlan:
    """Divide the genes of a panel among the steps.

    Parameters
    ----------
    settings
        Steps (at most one per gene), schedule, remasking.
    n_genes
        Size of the panel.
    fixed_rate
        The mask rate of Gibbs sweeps; None for unmasking.
    """
    if fixed_rate is not None:
        at_once = min(max(round(fixed_rate * n_genes), 1), n_genes)
        sweep = [len(part) for part in np.array_split(np.arange(n_genes), -(-n_genes // at_once))]
        again = [sweep[step % len(sweep)] for step in range(settings.steps)]
        return StepPlan(n_genes, (n_genes, *[0] * len(again)), (0, *again), fixed_rate)
    steps = min(settings.steps, n_genes)
    shares = np.arange(1, steps + 1) / steps
    if settings.schedule == "cosine":  # few at first, when little is known (MaskGIT)
        shares = 1 - np.cos(0.5 * math.pi * shares)
    ends = np.round(n_genes * shares).astype(int)
    # At least one gene per step: early steps of the cosine schedule would have none.
    ends = np.maximum(ends, np.arange(1, steps + 1))
    new = np.diff(np.concatenate([[0], ends]))
    known = ends - new
    again = np.round(settings.remask * known).astype(int)
    return StepPlan(n_genes, tuple(new.tolist()), tuple(again.tolist()))


@dataclass(frozen=True)
class CellPlan:
    """All the chance that goes into B cells.

    Attributes
    ----------
    steps
        How many draws each step makes.
    genes
        (B, D), the gene of each draw; within a step none comes twice.
    uniform, normal
        (B, D), for the value of each draw; normal is (B, 0) where the model needs none.
    state
        (B,), uniform, for the latent cell state of each cell; None: they show none, as real cells do.
    """

    steps: StepPlan
    genes: NDArray[np.int64]
    uniform: NDArray[np.float32]
    normal: NDArray[np.float32]
    state: NDArray[np.float32] | None

    @classmethod
    def draw(cls, seed: int, cells: range, steps: StepPlan, *, needs_normal: bool) -> "CellPlan":
        """Draw for the cells numbered ``cells``."""
        shape = (len(cells), steps.n_draws)
        genes = np.empty(shape, dtype=np.int64)
        uniform = np.empty(shape, dtype=np.float32)
        normal = np.empty(shape if needs_normal else (len(cells), 0), dtype=np.float32)
        state = np.empty(len(cells), dtype=np.float32)
        for place, cell in enumerate(cells):
            rng = generator(seed, cell, Stream.GENERATED_CELL)
            genes[place] = _genes_of_cell(steps, rng)
            uniform[place] = rng.random(steps.n_draws, dtype=np.float32)
            if needs_normal:
                normal[place] = rng.standard_normal(steps.n_draws, dtype=np.float32)
            state[place] = rng.random(dtype=np.float32)
        return cls(steps, genes, uniform, normal, state)


def _genes_of_cell(steps: StepPlan, rng: np.random.Generator) -> NDArray[np.int64]:
    order = rng.permutation(steps.n_genes)
    if not any(steps.n_again):
        return order
    if steps.fixed_rate is None:
        parts, known = [], 0
        for new, again in zip(steps.n_new, steps.n_again, strict=True):
            parts += [rng.permutation(order[:known])[:again], order[known : known + new]]
            known += new
        return np.concatenate(parts)
    # Whole sweeps: every gene is drawn anew once before any is drawn twice.
    n_again = sum(steps.n_again)
    sweeps = [rng.permutation(steps.n_genes) for _ in range(-(-n_again // steps.n_genes))]
    return np.concatenate([order, np.concatenate(sweeps)[:n_again]])
