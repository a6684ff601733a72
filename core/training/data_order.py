"""The order of training cells: a function of (seed, step), so that resuming needs no state.

Every epoch is a new permutation; the cells left over from full batches sit that epoch out.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["BatchOrder"]


class BatchOrder:
    """Which cells form the batch of a step.

    Parameters
    ----------
    rows
        (cells,), training rows of the store.
    batch_size
        Cells per step; fewer cells than that form one batch of all.
    seed
        Of the permutations and of the masks.
    """

    def __init__(self, rows: NDArray[np.int64], *, batch_size: int, seed: int) -> None:
        self.rows = rows
        self.batch_size = min(batch_size, len(rows))
        self.seed = seed
        self.steps_per_epoch = max(len(rows) // self.batch_size, 1)
        self._permutation = lru_cache(maxsize=1)(self._permute)

    def _permute(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch, 11]).permutation(self.rows)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return the rows of the batch of a step (0-based), in the order they enter it."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._permutation(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def mask_generator(self, step: int) -> np.random.Generator:
        """Return the generator that masks the batch of a step."""
        return np.random.default_rng([self.seed, step, 13])
