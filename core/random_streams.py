"""Every stream of random numbers by name: a generator is a function of a seed, of places, and of its stream.

The numbers are part of the product: another number changes runs, samples and reports of the same seed.
A new stream takes a number that is not used yet. Equal numbers are historical; such streams belong to
different commands or have other places in their key.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """What random numbers are drawn for."""

    SPLIT = 0
    VALIDATION_CELLS = 3
    FITTING_CELLS = 5
    BLOCK_ORDER = 11
    CELL_ORDER = 12
    BATCH = 13  # masks, and genes of cells that are too long
    EVALUATION_MASKS = 17
    VISIBLE_GENES = 19
    GENERATED_PHENOTYPES = 23
    DROPOUT = 29
    GENERATED_CELL = 29  # order of genes, and the draws
    DECODING = 31
    GENES_PER_CELL = 37
    EVALUATED_CELLS = 37
    EDITED_VALUES = 41
    QUERY_GENES = 43
    DENOISING_PASSES = 47
    BOOTSTRAP = 53
    CONDITION_CELLS = 59
    FIDELITY_CELLS = 59
    FIDELITY_RESAMPLES = 61
    HIDDEN_GENES = 61
    FIDELITY_HALVES = 67
    MASK_RATE_BATCH = 67
    FIDELITY_SAMPLE = 71
    EFFECTS_FIT = 71
    STATE_CELLS = 72
    STATE_EFFECTS_FIT = 73
    SCORE_CELLS = 73
    CORRECTION_FIT = 79
    SCORE_CHOICE = 83
    REBALANCING = 83
    BALANCED_EPOCH = 89
    SUMMARY_CELLS = 89
    LIKELIHOOD_RESAMPLES = 97
    INTERACTION_PASSES = 101
    INTERACTION_CELLS = 103
    INTERACTION_NULL = 107
    INTERACTION_HALVES = 109
    PERTURBED_CELLS = 113
    PERTURBED_VALUES = 127
    KNOWN_EDGES = 131


def generator(*key: int) -> np.random.Generator:
    """Return the generator of a key: the seed, a `Stream`, and places such as epoch and batch."""
    return np.random.default_rng(key)


def generator_at(draw: int, *key: int) -> np.random.Generator:
    """Return the generator of a key after so many uniform numbers were drawn."""
    return np.random.Generator(np.random.PCG64(key).advance(draw))


def torch_seed(*key: int) -> int:
    """Return the seed of torch's generator for a key."""
    words = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def splitmix64(start: int, first: int, stop: int) -> NDArray[np.uint64]:
    """Return numbers [first, stop) of the SplitMix64 sequence that begins at ``start``.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators (2014).
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        state = np.arange(first + 1, stop + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state += np.uint64(start)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def sample_rows(
    rows: NDArray[np.int64], most: int | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return ``most`` of the rows, drawn at random and ascending; all as they are if there are no more, or for None."""
    if most is None or len(rows) <= most:
        return rows
    return np.sort(rng.choice(rows, most, replace=False))
