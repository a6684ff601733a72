"""Which cells train, validate and test: by donor where donors are known, else stratified.

Labels are read only so that the splits hold a like mixture of them; how well a model does on a
split is never looked at. All arrays are over cells, (cells,), in the order of the files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.phenotypes import count_codes
from core.cells.store import SPLITS

Codes = NDArray[np.signedinteger]
TRAIN, VALIDATION, TEST = range(len(SPLITS))
#: How far a donor may carry a held-out split past its fraction (relative to that fraction).
_OVERSHOOT = 0.25
#: Random deals of donors among which the best balanced is taken.
_DRAWS = 500
#: Multiply-adds of the search: about 2 s. Larger tables get fewer draws, and need fewer: the more
#: donors, the closer any deal comes to the whole.
_WORK = 2**31
#: Cells counted at a time: copies of them all would be the largest memory of `tfx prepare`.
_BLOCK_CELLS = 2**20
#: Numbers held at once by a block of draws, 64 MB of float64.
_BLOCK_VALUES = 2**23
#: What a split that misses its fraction by its whole size costs, in the unit of the phenotypes'
#: distance: a split a quarter too large weighs as 5 % of its cells with other labels.
_FRACTION_WEIGHT = 0.2
#: What it costs, in the same unit, if training loses all values of a phenotype that have one donor
#: each. A part, not a number: of a phenotype that is nearly the donor itself any deal loses many.
_ALONE_WEIGHT = 0.1
#: How the donor split is made, for the store's report.
DONOR_SEARCH = (
    f"of up to {_DRAWS} seeded random deals of whole donors, the one whose held-out splits are "
    f"nearest to all cells in phenotypes and to their shares; labels serve to balance only, no "
    f"result of a model is looked at"
)


@dataclass(frozen=True)
class SplitPlan:
    """The split of every cell."""

    #: (cells,): `TRAIN`, `VALIDATION` or `TEST`.
    codes: NDArray[np.int8]
    #: "donor", "stratified", "files", or "none" if no cell is held out; for the report.
    method: str
    #: Sentences the user should read.
    notices: list[str] = field(default_factory=list)


def split_by_donor(
    donors: Codes,
    fractions: Mapping[int, float],
    rng: np.random.Generator,
    *,
    phenotypes: Sequence[Codes] = (),
) -> NDArray[np.int8] | None:
    """Divide whole donors among splits, so that each split has the mixture of phenotypes of the whole.

    Given (cells,) donor codes, the fraction of each held-out split, and (cells,) codes of each
    phenotype, -1 unknown, returns (cells,) split codes, near the fractions; None if there are fewer
    donors than splits. Every split has a donor; cells of unknown donor train.

    Of 500 random deals that come near the fractions (fewer only if donors x phenotype values are
    many millions) the best is taken: first, training loses the fewest phenotype values that more
    than one donor has; then the worst held-out split is nearest to the whole, counting the mean
    over phenotypes of the total-variation distance, the relative error of its fraction, and the part
    that training loses of each phenotype's values that a single donor has. What training still
    lacks of the former is moved there as far as every split keeps a donor.
    """
    cell_donor, n_donors = _close_ranks(donors)
    if n_donors < len(fractions) + 1:
        return None
    sizes = _count(cell_donor)
    table = _LabelTable.count(cell_donor, n_donors, phenotypes)
    splits = np.array(list(fractions), dtype=np.int8)
    targets = np.array(list(fractions.values())) * len(donors)
    work = (table.by_donor.nnz + 8 * n_donors) * len(splits)
    n_draws = int(np.clip(_WORK // work, 16, _DRAWS))
    per_block = int(np.clip(_BLOCK_VALUES // max(n_donors, len(table.whole)), 1, n_draws))
    best_score: tuple[float, float] | None = None
    for first in range(0, n_draws, per_block):
        deals = _deal(sizes, targets, min(per_block, n_draws - first), rng)
        lost, distance = _judge(deals, sizes, targets, table)
        chosen = int(np.lexsort((distance, lost))[0])
        score = (float(lost[chosen]), float(distance[chosen]))
        if best_score is None or score < best_score:
            best_score, best = score, deals[chosen].copy()
    _return_lost_values(best, sizes, table)
    # Two training entries at the end: index -1 is the unknown donor.
    split_of = np.append(np.append(splits, TRAIN)[best], TRAIN).astype(np.int8)
    codes: NDArray[np.int8] = split_of[cell_donor]
    return codes


def phenotype_distances(
    codes: NDArray[np.int8], phenotypes: Sequence[Codes]
) -> dict[int, list[float]]:
    """Measure how far the mixture of phenotypes of each split with cells is from that of all cells.

    Of (cells,) split codes and codes of each phenotype, the total-variation distance of each phenotype,
    in [0, 1]: the part of the split's cells that would need another label. 1 if the split has no known
    label; 0 if no cell has one.
    """
    return {
        split: [_total_variation(labels, codes == split) for labels in phenotypes]
        for split in (TRAIN, VALIDATION, TEST)
        if (codes == split).any()
    }


def _total_variation(labels: Codes, inside: NDArray[np.bool_]) -> float:
    whole = _count(labels)
    part = count_codes(labels[inside], len(whole))
    if not whole.any():
        return 0.0
    if not part.any():
        return 1.0
    return float(np.abs(part / part.sum() - whole / whole.sum()).sum() / 2)


def _close_ranks(codes: Codes) -> tuple[Codes, int]:
    """Renumber codes so that each below their number occurs; -1 stays. Return both."""
    occurs = _count(codes) > 0
    place = np.append(np.cumsum(occurs) - 1, -1)  # index -1 is the unknown code
    return place.astype(codes.dtype)[codes], int(occurs.sum())


def _count(codes: Codes) -> NDArray[np.int64]:
    """Cells of each code; unknown ones left out."""
    return count_codes(codes, int(codes.max(initial=-1)) + 1)


@dataclass(frozen=True)
class _LabelTable:
    """Cells per donor and phenotype value, the values of all phenotypes one below the other."""

    #: (values, donors), cells; known donors only.
    by_donor: sparse.csr_matrix
    #: (values,), cells of all donors, the unknown one included; 1 or more.
    whole: NDArray[np.int64]
    #: (phenotypes,), first value of each phenotype; those of fewer than two values are left out.
    starts: NDArray[np.int64]
    #: (values,), phenotype of each value.
    phenotype: NDArray[np.int64]
    #: (values,), whether more than one donor has the value.
    shared: NDArray[np.bool_]

    @classmethod
    def count(cls, donors: Codes, n_donors: int, phenotypes: Sequence[Codes]) -> "_LabelTable":
        parts: list[sparse.csr_matrix] = []
        for labels in phenotypes:
            codes, n_codes = _close_ranks(labels)
            if n_codes < 2:
                continue
            total = sparse.csr_matrix((n_codes, n_donors + 1))
            for first in range(0, len(codes), _BLOCK_CELLS):
                row, column = codes[first:][:_BLOCK_CELLS], donors[first:][:_BLOCK_CELLS]
                known = row >= 0
                # The unknown donor is the last column.
                column = np.where(column < 0, n_donors, column)[known]
                cells = (np.ones(len(column)), (row[known], column))
                block = sparse.coo_matrix(cells, shape=(n_codes, n_donors + 1))
                total = sparse.csr_matrix(total + block.tocsr())
            parts.append(total)
        n_values = np.array([part.shape[0] for part in parts], dtype=np.int64)
        empty = sparse.csr_matrix((0, n_donors + 1))
        counts = sparse.vstack([empty, *parts], format="csr")
        return cls(
            by_donor=counts[:, :n_donors],
            whole=np.asarray(counts.sum(axis=1), dtype=np.int64).ravel(),
            starts=np.concatenate(([0], np.cumsum(n_values)))[:-1].astype(np.int64),
            phenotype=np.repeat(np.arange(len(parts)), n_values),
            shared=np.diff(counts.indptr) > 1,
        )

    def sum_phenotypes(self, of_values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum (values, draws) over the values of each phenotype: (phenotypes, draws)."""
        if not len(self.starts):
            return np.zeros((0, of_values.shape[1]))
        return np.add.reduceat(of_values, self.starts, axis=0)


def _deal(
    sizes: NDArray[np.int64], targets: NDArray[np.float64], n_draws: int, rng: np.random.Generator
) -> NDArray[np.int8]:
    """Deal donors of (donors,) cells in random order to (held-out splits,) targets, many times at once.

    Returns (draws, donors), index of the held-out split, or their number for training. Every split
    has a donor.
    """
    n_donors, n_splits = len(sizes), len(targets)
    order = np.argsort(rng.random((n_draws, n_donors)), axis=1)
    deals = np.full((n_draws, n_donors), n_splits, dtype=np.int8)
    draws = np.arange(n_draws)
    cells = np.zeros((n_splits, n_draws))
    n_free = np.full(n_draws, n_donors)
    n_empty = np.full(n_draws, n_splits)
    for donor in order.T:
        if (cells >= targets[:, None]).all():
            break
        size = sizes[donor]
        undealt = np.ones(n_draws, dtype=bool)
        for split, target in enumerate(targets):
            fits = (cells[split] < target) & (cells[split] + size <= (1 + _OVERSHOOT) * target)
            first = cells[split] == 0
            # The splits still without a donor, and training, need one each.
            takes = undealt & fits & (n_free - 1 > n_empty - first)
            deals[draws[takes], donor[takes]] = split
            cells[split, takes] += size[takes]
            n_free[takes] -= 1
            n_empty[takes & first] -= 1
            undealt &= ~takes
    for split in range(n_splits):
        # Every donor is larger than the target: any may be it, `_judge` knows the sizes.
        for draw in np.flatnonzero(cells[split] == 0):
            free = order[draw][deals[draw, order[draw]] == n_splits]
            deals[draw, free[0]] = split
    return deals


def _judge(
    deals: NDArray[np.int8],
    sizes: NDArray[np.int64],
    targets: NDArray[np.float64],
    table: _LabelTable,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(draws,) shared values that training lacks, and (draws,) distance from the whole."""
    n_phenotypes = max(len(table.starts), 1)
    whole = table.whole[:, None]
    expected = whole / table.sum_phenotypes(whole.astype(np.float64))[table.phenotype]
    trained = np.broadcast_to(whole, (len(whole), len(deals))).astype(np.float64)
    worst = np.zeros(len(deals))
    for split, target in enumerate(targets):
        members = np.ascontiguousarray((deals == split).T, dtype=np.float64)
        held_out = table.by_donor @ members
        trained -= held_out
        known = table.sum_phenotypes(held_out)
        part = held_out / np.maximum(known, 1)[table.phenotype]
        distances = table.sum_phenotypes(np.abs(part - expected)) / 2
        distances[known == 0] = 1
        off = np.abs((sizes @ members) / target - 1)
        worst = np.maximum(worst, distances.sum(axis=0) / n_phenotypes + _FRACTION_WEIGHT * off)
    lacking = (trained == 0).astype(np.float64)
    alone = (~table.shared[:, None]).astype(np.float64)
    lost_alone = table.sum_phenotypes(lacking * alone) / np.maximum(table.sum_phenotypes(alone), 1)
    lost_shared = (lacking * table.shared[:, None]).sum(axis=0)
    return lost_shared, worst + _ALONE_WEIGHT * lost_alone.sum(axis=0)


def _return_lost_values(
    deal: NDArray[np.int8], sizes: NDArray[np.int64], table: _LabelTable
) -> None:
    """Move to training, in place, a donor of each shared value that training lacks.

    The smallest donor goes, and none that is the last of its split.
    """
    training = int(deal.max())
    trained = table.whole - np.asarray(table.by_donor @ (deal != training).astype(np.float64))
    for value in np.flatnonzero((trained == 0) & table.shared):
        holders = table.by_donor[int(value), :].indices
        if (deal[holders] == training).any():
            continue  # came with a donor moved before
        spare = [donor for donor in holders if np.count_nonzero(deal == deal[donor]) > 1]
        if spare:
            deal[min(spare, key=lambda donor: (sizes[donor], donor))] = training


def split_stratified(
    phenotypes: Sequence[Codes],
    n_cells: int,
    fractions: Mapping[int, float],
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    """Divide single cells among splits so that each holds the same mixture of phenotypes.

    Given (cells,) codes of each phenotype and the fraction of each held-out split, returns (cells,)
    split codes. Every label that occurs stays in training.

    Cells are sorted by their phenotypes, the finest first, and every k-th is held out: groups of
    equal cells get their fraction, groups too small for it have one in common with their neighbours.
    """
    finest_first = sorted(phenotypes, key=lambda codes: -len(np.unique(codes)))
    shuffled = rng.permutation(n_cells)
    keys = [codes[shuffled] for codes in reversed(finest_first)]
    remaining = shuffled[np.lexsort(keys)] if keys else shuffled
    codes = np.full(n_cells, TRAIN, dtype=np.int8)
    left = 1.0
    for split, fraction in fractions.items():
        steps = np.arange(len(remaining) + 1) * (fraction / left)
        held_out = np.diff(np.floor(steps + rng.random())) > 0  # every k-th
        codes[remaining[held_out]] = split
        remaining = remaining[~held_out]
        left -= fraction
    for labels in phenotypes:
        for label in np.setdiff1d(labels[labels >= 0], labels[codes == TRAIN]):
            codes[np.flatnonzero(labels == label)[0]] = TRAIN
    return codes
