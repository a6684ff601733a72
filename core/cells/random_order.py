"""The random order of a store's cells: every cell has a 64-bit key, and cells stand by their keys.

A cell's key depends on the seed, the name of its source and its row alone. So any range of rows can
be worked on by itself, in any process, and a source that is added or removed changes no other's keys.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUCKETS", "cell_keys", "fences"]

#: Equal ranges of keys that a part remembers the borders of; a power of two.
BUCKETS = 4_096


def cell_keys(seed: int, source: str, start: int, stop: int) -> NDArray[np.uint64]:
    """Keys of a source's rows [start, stop): SplitMix64 of the row, from a start of the source's own.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators (2014).
    """
    own = hashlib.sha256(f"{seed}\0{source}".encode()).digest()[:8]
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        state = np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state += np.uint64(int.from_bytes(own, "little"))
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def fences(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(BUCKETS + 1,) where each equal range of keys begins among ascending keys."""
    step = 2**64 // BUCKETS
    borders = np.arange(1, BUCKETS, dtype=np.uint64) * np.uint64(step)
    inner = np.searchsorted(keys, borders, side="left")
    return np.concatenate(([0], inner, [len(keys)])).astype(np.int64)
