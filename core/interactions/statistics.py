"""Nulls, q-values, stability, and what held-out donors say of a network.

Whether gene j follows gene i in the cells of a context is measured by the rank correlation within strata (donor
and class), library size removed. Its null: the cells of a stratum exchange their targets, which keeps every
gene's distribution in every donor and class and breaks what links two genes. Correlations are divided by their
standard deviation under the null, and p is the fraction of permuted ones, of all pairs together, that are as
large *in the direction of the weight*: a weight of the wrong sign has a p near 1.

The second null compares a weight with the weights that targets of about the same detection rate and mean have from
the same source. A gene that is expressed much has large weights with everything: this null sees that. Either
null alone calls too many edges (benchmarks/interactions.md): the ambient RNA of a sample links genes within donor and class, and
weights have heavier tails than a normal distribution. So q is that of the larger of both p-values.

Shapes: S sources, T targets, G genes, D donors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.interactions.baselines import library_size_removed, ranks
from core.interactions.cells import ContextCells, FloatArray, Integers
from core.random_streams import Stream, generator

#: Permuted statistics that p-values are counted in, and permutations at most and at least; groups of pairs.
_NULL_SIZE, _MOST_PERMUTATIONS, _LEAST_PERMUTATIONS, _NULL_GROUPS = 2_000_000, 200, 20, 6
#: Targets of about the same detection rate and mean that a weight is compared with.
_MATCHED = 40
#: A normal distribution's standard deviation over its median absolute deviation.
_DEVIATION_OF_MAD = 1.4826
#: Fraction of all pairs, those of largest weight, whose evidence in held-out donors is compared.
TOP_FRACTION = 0.01
#: Permutations of donors between the two sides of a contrast.
_CONTRAST_PERMUTATIONS = 100


@dataclass(frozen=True)
class Evidence:
    """Standardised rank correlations within donor and class in some cells, and their null."""

    #: (S, T), standard normal under the null, about; NaN on a gene itself.
    z: FloatArray
    #: (S, T), which null a pair has: those of pairs that as few cells express together.
    group: Integers
    #: Absolute permuted values of each group, ascending.
    nulls: tuple[FloatArray, ...]

    @classmethod
    def of(
        cls, cells: ContextCells, sources: Integers, targets: Integers, *, seed: int = 0
    ) -> "Evidence":
        """Correlate and permute the cells of a context."""
        strata = cells.strata
        x, y, deviation = _ranks_and_deviation(cells, sources, targets)
        group = _groups_of_pairs(cells, sources, targets)
        members = [np.flatnonzero(group.ravel() == one) for one in range(_NULL_GROUPS)]
        n = int(np.clip(_NULL_SIZE // group.size, _LEAST_PERMUTATIONS, _MOST_PERMUTATIONS))
        rng = generator(seed, Stream.INTERACTION_NULL)
        order = np.argsort(strata, kind="stable")
        drawn: list[list[FloatArray]] = [[] for _ in members]
        for _ in range(n):
            shuffled = np.lexsort((rng.random(len(strata)), strata))
            permuted = np.empty_like(y)
            permuted[order] = y[shuffled]
            null = np.abs(_standardised(x.T @ permuted, deviation)).ravel()
            for of_group, at in zip(drawn, members, strict=True):
                of_group.append(null[at].astype(np.float32))
        z = standardised_correlations(cells, sources, targets)
        nulls = tuple(np.sort(np.concatenate(one)).astype(np.float64) for one in drawn)
        return cls(z, group, nulls)

    def p_values(self, weight: FloatArray, *, is_signed: bool) -> FloatArray:
        """(S, T) p-values of weights: one-sided in their direction, two-sided if they have none."""
        p = np.full(self.z.shape, np.nan)
        for one, null in enumerate(self.nulls):
            at = (self.group == one) & ~np.isnan(self.z)
            beyond = 1.0 * (len(null) - np.searchsorted(null, np.abs(self.z[at])))
            if is_signed:
                # Permuted statistics are symmetric: half of those beyond |z| are beyond z.
                is_against = np.where(weight[at] < 0, self.z[at] > 0, self.z[at] < 0)
                beyond = np.where(is_against, len(null) - beyond / 2, beyond / 2)
            p[at] = (1 + beyond) / (1 + len(null))
        return p


def _groups_of_pairs(cells: ContextCells, sources: Integers, targets: Integers) -> Integers:
    """(S, T), quantile of the number of cells that would express both genes by chance.

    Statistics of rare genes have heavier tails than a normal distribution's.
    """
    rate = np.asarray((cells.expression > 0).mean(axis=0)).ravel()
    both = np.outer(rate[sources], rate[targets])
    edges = np.quantile(both, np.linspace(0, 1, _NULL_GROUPS + 1)[1:-1])
    return np.searchsorted(edges, both).astype(np.int64)


def standardised_correlations(
    cells: ContextCells, sources: Integers, targets: Integers
) -> FloatArray:
    """(S, T) rank correlations within donor and class over their standard deviation under permutation."""
    x, y, deviation = _ranks_and_deviation(cells, sources, targets)
    return np.where(_itself(sources, targets), np.nan, _standardised(x.T @ y, deviation))


def _ranks_and_deviation(
    cells: ContextCells, sources: Integers, targets: Integers
) -> tuple[FloatArray, FloatArray, FloatArray]:
    residual = residual_ranks(cells)
    x, y = residual[:, sources], residual[:, targets]
    return x, y, _permutation_deviation(x, y, cells.strata)


def residual_ranks(cells: ContextCells) -> FloatArray:
    """(cells, G) ranks, less the means of donor and class and what library size explains."""
    values = ranks(cells.expression.toarray())
    return library_size_removed(values / len(values), cells, cells.strata)


def _itself(sources: Integers, targets: Integers) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = sources[:, None] == targets
    return found


def _permutation_deviation(x: FloatArray, y: FloatArray, strata: Integers) -> FloatArray:
    """(S, T), standard deviation of the sum of products when targets are permuted within strata."""
    counts = np.bincount(strata)
    squares_x, squares_y = np.zeros((len(counts), x.shape[1])), np.zeros((len(counts), y.shape[1]))
    np.add.at(squares_x, strata, x**2)
    np.add.at(squares_y, strata, y**2)
    free = counts > 1
    found: FloatArray = np.sqrt((squares_x[free] / (counts[free] - 1)[:, None]).T @ squares_y[free])
    return found


def _standardised(sums: FloatArray, deviation: FloatArray) -> FloatArray:
    return np.divide(sums, deviation, out=np.zeros_like(sums), where=deviation > 1e-9)


def matched_p_values(weight: FloatArray, cells: ContextCells, targets: Integers) -> FloatArray:
    """(S, T) two-sided p-values of weights among those of matched targets, normal with robust moments."""
    from scipy.stats import norm  # 200 ms

    distance = matching_distance(cells.expression[:, targets])
    near = np.argsort(distance, axis=1, kind="stable")[
        :, : _MATCHED + 1
    ]  # the target is one of them
    p = np.full(weight.shape, np.nan)
    for target, matched in enumerate(near):
        others = weight[:, matched[matched != target]]
        middle = np.nanmedian(others, axis=1)
        spread = _DEVIATION_OF_MAD * np.nanmedian(np.abs(others - middle[:, None]), axis=1)
        distance_of = np.abs(weight[:, target] - middle)
        p[:, target] = 2 * norm.sf(distance_of / np.maximum(spread, 1e-12))
    return np.where(np.isnan(weight), np.nan, p)


def matching_distance(values: sparse.csr_matrix) -> FloatArray:
    """(G, G) distance of the genes of (cells, G) values in the ranks of their detection rates and means."""
    detection = np.asarray((values > 0).mean(axis=0)).ravel()
    mean = np.asarray(values.mean(axis=0)).ravel()
    place = np.column_stack([ranks(one[:, None])[:, 0] for one in (detection, mean)])
    distance: FloatArray = np.abs(place[:, None] - place[None]).sum(axis=2)
    return distance


def q_values(p: FloatArray) -> FloatArray:
    """Adjust p-values (Benjamini and Hochberg 1995); NaN stays."""
    flat = p.ravel()
    known = np.flatnonzero(~np.isnan(flat))
    order = known[np.argsort(flat[known], kind="stable")]
    scaled = flat[order] * len(order) / np.arange(1, len(order) + 1)
    q = np.full(flat.shape, np.nan)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q.reshape(p.shape)


def top_pairs(weight: FloatArray, n: int) -> Integers:
    """Return the flat places of the ``n`` pairs of largest absolute weight, the largest first."""
    size = np.nan_to_num(np.abs(weight), nan=-1.0).ravel()
    order = np.argsort(-size, kind="stable")[:n]
    return order[size[order] >= 0]


def stability(halves: FloatArray, n: int) -> float:
    """Jaccard index of the ``n`` largest weights of two halves, (2, S, T)."""
    first, second = (set(top_pairs(one, n).tolist()) for one in halves)
    return len(first & second) / max(len(first | second), 1)


def held_out_evidence(weight: FloatArray, z: FloatArray) -> float:
    """Return how much evidence other donors hold for the pairs of largest weight: mean z^2 - 1.

    ``z`` are `standardised_correlations` of their cells. It is 0 for pairs without any association.
    """
    of_top = z.ravel()[top_pairs(np.where(np.isnan(z), np.nan, weight), _n_top(z))]
    return float(np.mean(of_top**2) - 1)


def evidence_margin(z: FloatArray) -> float:
    """Return the difference of two measures' evidence that chance makes rarely: two standard deviations.

    z^2 has the variance 2 without an association, and a pair counts twice, once in each direction.
    """
    return 2 * float(np.sqrt(2 / (_n_top(z) / 2)))


def _n_top(z: FloatArray) -> int:
    return max(int(TOP_FRACTION * np.count_nonzero(~np.isnan(z))), 10)


@dataclass(frozen=True)
class _DonorProducts:
    """Sums of products and squares of residual ranks of each donor: (D, S, T), (D, S), (D, T)."""

    products: FloatArray
    squares_x: FloatArray
    squares_y: FloatArray

    @classmethod
    def of(cls, cells: ContextCells, sources: Integers, targets: Integers) -> "_DonorProducts":
        residual = residual_ranks(cells)
        units = np.unique(cells.donors, return_inverse=True)[1].ravel()
        if cells.n_donors == 0:
            units = cells.halves
        x, y = residual[:, sources], residual[:, targets]
        groups = [units == unit for unit in range(int(units.max()) + 1)]
        return cls(
            np.stack([x[one].T @ y[one] for one in groups]),
            np.stack([(x[one] ** 2).sum(axis=0) for one in groups]),
            np.stack([(y[one] ** 2).sum(axis=0) for one in groups]),
        )

    def correlation(self, donors: NDArray[np.bool_]) -> FloatArray:
        squares = self.squares_x[donors].sum(axis=0)[:, None] * self.squares_y[donors].sum(axis=0)
        return _standardised(np.tensordot(donors.astype(float), self.products, 1), np.sqrt(squares))


def contrast_p_values(
    first: ContextCells,
    second: ContextCells,
    difference: FloatArray,
    sources: Integers,
    targets: Integers,
    *,
    seed: int = 0,
) -> FloatArray:
    """(S, T) p-values of differences of weights between two contexts, in their direction.

    The statistic is the difference of the rank correlations, each over its standard deviation when donors are
    dealt anew to the two sides; p is counted in those of all pairs together.
    """
    sides = [_DonorProducts.of(one, sources, targets) for one in (first, second)]
    joint = _DonorProducts(
        np.concatenate([one.products for one in sides]),
        np.concatenate([one.squares_x for one in sides]),
        np.concatenate([one.squares_y for one in sides]),
    )
    n_first, n = len(sides[0].products), len(joint.products)
    rng = generator(seed, Stream.INTERACTION_NULL, 1)

    def gap(is_first: NDArray[np.bool_]) -> FloatArray:
        return joint.correlation(is_first) - joint.correlation(~is_first)

    observed = gap(np.arange(n) < n_first)
    null = np.stack(
        [gap(rng.permutation(n) < n_first) for _ in range(_CONTRAST_PERMUTATIONS)]
    ).astype(np.float32)
    deviation = null.std(axis=0).astype(np.float64)
    itself = _itself(sources, targets)
    scaled = np.where(itself, np.nan, _standardised(observed, deviation))
    group = _groups_of_pairs(replace(first, expression=stacked([first, second])), sources, targets)
    null = np.abs(null / np.maximum(deviation, 1e-9))
    nulls = tuple(
        np.sort(null[:, (group == one) & ~itself].ravel()).astype(np.float64)
        for one in range(_NULL_GROUPS)
    )
    return Evidence(scaled, group, nulls).p_values(difference, is_signed=True)


def stacked(contexts: Sequence[ContextCells]) -> sparse.csr_matrix:
    """Return the (cells, G) values of all contexts together."""
    return sparse.csr_matrix(sparse.vstack([one.expression for one in contexts]))
