"""Which cells train, validate and test: by donor where donors are known, else stratified."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from core.presets.schema import SplitSettings

__all__ = ["TEST", "TRAIN", "VALIDATION", "SplitPlan", "split_by_donor", "split_stratified"]

TRAIN, VALIDATION, TEST = 0, 1, 2
#: How far a donor may carry a held-out split past its share (as a part of that share).
_OVERSHOOT = 0.25


@dataclass(frozen=True)
class SplitPlan:
    """The split of every cell.

    Attributes
    ----------
    codes
        (cells,), int8: `TRAIN`, `VALIDATION` or `TEST`.
    method
        "donor", "stratified" or "files", for the report.
    notices
        Sentences the user should read.
    """

    codes: NDArray[np.int8]
    method: str
    notices: list[str] = field(default_factory=list)


def held_out_shares(settings: SplitSettings) -> dict[int, float]:
    """Shares of the splits that are dealt at all, test first."""
    shares = {TEST: settings.test, VALIDATION: settings.validation}
    return {split: share for split, share in shares.items() if share > 0}


def split_by_donor(
    donors: NDArray[np.int32], shares: Mapping[int, float], rng: np.random.Generator
) -> NDArray[np.int8] | None:
    """Deal whole donors to splits.

    Parameters
    ----------
    donors
        (cells,), donor codes; cells of unknown donor (-1) train.
    shares
        Split -> share of the cells, for the held-out splits.
    rng
        Source of the donors' order.

    Returns
    -------
    (cells,) split codes, near the shares; every split has a donor. None if there are fewer donors
    than splits.
    """
    sizes = np.bincount(donors[donors >= 0])
    order = [int(donor) for donor in rng.permutation(len(sizes)) if sizes[donor]]
    if len(order) < len(shares) + 1:
        return None
    split_of = np.full(len(sizes) + 1, TRAIN, dtype=np.int8)  # the last entry is donor -1
    waiting = len(shares)
    for split, share in shares.items():
        waiting -= 1
        target = share * len(donors)
        dealt = 0
        for donor in list(order):
            if dealt and dealt >= target:
                break
            if len(order) <= waiting + 1:  # the splits to come, and training, need one each
                break
            if dealt + sizes[donor] <= (1 + _OVERSHOOT) * target:
                split_of[donor] = split
                dealt += int(sizes[donor])
                order.remove(donor)
        if not dealt:  # every donor is larger than the share: the smallest comes nearest
            smallest = min(order, key=lambda donor: sizes[donor])
            split_of[smallest] = split
            order.remove(smallest)
    codes: NDArray[np.int8] = split_of[donors]
    return codes


def split_stratified(
    phenotypes: Sequence[NDArray[np.int32]],
    n_cells: int,
    shares: Mapping[int, float],
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    """Deal single cells to splits so that each holds the same mixture of phenotypes.

    Parameters
    ----------
    phenotypes
        Codes (cells,) of each phenotype.
    n_cells
        Number of cells.
    shares
        Split -> share of the cells, for the held-out splits.
    rng
        Source of the order within equal cells.

    Returns
    -------
    (cells,) split codes. Every label that occurs stays in training.

    Notes
    -----
    Cells are sorted by their phenotypes, the finest first, and every k-th is held out: groups of
    equal cells get their share, groups too small for it share one with their neighbours.
    """
    finest_first = sorted(phenotypes, key=lambda codes: -len(np.unique(codes)))
    shuffled = rng.permutation(n_cells)
    keys = [codes[shuffled] for codes in reversed(finest_first)]
    order = shuffled[np.lexsort(keys)] if keys else shuffled
    codes = np.full(n_cells, TRAIN, dtype=np.int8)
    remaining = order
    left = 1.0
    for split, share in shares.items():
        held_out = _every_kth(len(remaining), share / left, rng)
        codes[remaining[held_out]] = split
        remaining = remaining[~held_out]
        left -= share
    for labels in phenotypes:
        _keep_labels_in_training(codes, labels)
    return codes


def _every_kth(n: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    steps = np.floor(np.arange(n + 1) * share + rng.random())
    return np.diff(steps) > 0


def _keep_labels_in_training(codes: NDArray[np.int8], labels: NDArray[np.int32]) -> None:
    trained = set(np.unique(labels[codes == TRAIN]).tolist())
    for label in np.unique(labels[labels >= 0]).tolist():
        if label not in trained:
            codes[np.flatnonzero(labels == label)[0]] = TRAIN
