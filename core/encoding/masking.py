"""Masking: what is hidden from the model, drawn for a whole batch at once.

Genes and phenotypes have separate probabilities. Drawing never looks at expression, so the mask
reveals nothing of a target (PolyGene's attention mask did that).
"""

from enum import IntEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


class Show(IntEnum):
    """How a phenotype slot appears in the input."""

    VALUE = 0
    MASKED = 1
    NOT_SPECIFIED = 2
    DROPPED = 3


def draw_masked_counts(
    n_available: NDArray[np.integer[Any]],
    rate: float | Literal["uniform"],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw how many of the (cells,) available genes of each cell are masked.

    A fixed rate masks exactly that fraction of each cell, rounded at random so that it holds on
    average. "uniform" draws a fraction in (0, 1] per cell, stratified over the batch (LLaDA, MDLM), so
    that every batch has all mask rates; it masks at least 1 gene where one is available.
    """
    n_cells = len(n_available)
    if rate == "uniform":
        rates = (rng.permutation(n_cells) + rng.random(n_cells)) / n_cells
        return np.minimum(np.ceil(rates * n_available), n_available).astype(np.int64)
    expected = float(rate) * n_available
    # One draw for the whole batch keeps cells of equal length rectangular.
    return np.floor(expected + rng.random()).astype(np.int64).clip(0, n_available)


def draw_subsets(
    n_available: NDArray[np.integer[Any]],
    n_chosen: NDArray[np.integer[Any]],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Choose ``n_chosen[i]`` of ``n_available[i]`` places, uniformly without replacement, for all i.

    Returns (sum of n_available,), the sets one after another, True where chosen.

    Every place of a set is taken with one probability, so that the expected number is the wanted one:
    whatever the number turns out to be, each subset of that size is equally likely. Then single places
    are taken or given back, uniformly, until the number is right. Of a set that is chosen for the most
    part the rest is chosen instead. Sorting random keys costs five times as much.
    """
    available = np.asarray(n_available, dtype=np.int64)
    chosen = np.asarray(n_chosen, dtype=np.int64)
    inverted = 2 * chosen > available
    wanted = np.where(inverted, available - chosen, chosen)
    if not wanted.any():
        return np.repeat(inverted, available)
    ends = np.cumsum(available)
    n_places = int(ends[-1])
    keys = rng.integers(0, 2**64 - 1, n_places // 8 + 1, dtype=np.uint64, endpoint=True)
    threshold = np.round(256 * wanted / np.maximum(available, 1)).astype(np.uint8)
    is_chosen: NDArray[np.bool_] = keys.view(np.uint8)[:n_places] < np.repeat(threshold, available)
    taken = np.flatnonzero(is_chosen)
    bounds = np.searchsorted(taken, ends)
    n_taken = bounds.copy()
    n_taken[1:] -= bounds[:-1]
    surplus = n_taken - wanted
    while surplus.any():
        sets = np.flatnonzero(surplus)
        tries = np.abs(surplus[sets])
        # Of a set with too many one of those taken; of one with too few any place.
        gives = surplus[sets] > 0
        one_of = np.where(gives, n_taken[sets], available[sets])
        first = np.where(gives, (bounds - n_taken)[sets], (ends - available)[sets])
        places = (rng.random(int(tries.sum())) * np.repeat(one_of, tries)).astype(np.int64)
        places += np.repeat(first, tries)
        is_given = np.repeat(gives, tries)
        places[is_given] = taken[places[is_given]]
        # Places drawn twice, or already in that state, change nothing: another round does the rest.
        changed = np.sort(places[is_chosen[places] == is_given])
        is_new = np.ones(len(changed), dtype=bool)
        np.not_equal(changed[1:], changed[:-1], out=is_new[1:])
        changed = changed[is_new]
        is_chosen[places] = ~is_given
        n_changed = np.bincount(np.searchsorted(ends, changed, side="right"), minlength=len(ends))
        surplus -= np.sign(surplus) * n_changed
    if inverted.any():
        is_chosen ^= np.repeat(inverted, available)
    return is_chosen


def draw_phenotype_states(
    codes: NDArray[np.integer[Any]],
    *,
    mask: float,
    drop: float,
    unspecified: float,
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    """Draw how each phenotype of each cell is shown: (cells, phenotypes) `Show` values.

    ``codes`` (cells, phenotypes) are -1 where the label is missing: always [NO_*]. ``mask`` is the
    probability of [MASK], the only state with a loss; ``drop`` the fraction of the masked ones that
    leave the input altogether (PerturbGene), without a loss; ``unspecified`` the probability that a
    known, unmasked value is written [NO_*], so that the model learns what "not specified" means even
    where every cell has a label.
    """
    states = np.full(codes.shape, Show.VALUE, dtype=np.int8)
    states[rng.random(codes.shape) < unspecified] = Show.NOT_SPECIFIED
    masked = rng.random(codes.shape) < mask
    states[masked] = Show.MASKED
    states[masked & (rng.random(codes.shape) < drop)] = Show.DROPPED
    states[codes < 0] = Show.NOT_SPECIFIED
    return states
