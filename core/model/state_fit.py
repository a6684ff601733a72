"""Hidden states of training cells: groups within the kinds of cells that a phenotype tells apart.

Cells of one type are of several kinds that no label names: naive and memory, stressed or dividing.
Genes vary together because of them, in ways that a table of pairs, linear in the genes seen, follows
only in part. So the cells of each kind are grouped by k-means in the strongest components of their
genes, standardised within the kind: there, and not in what tells the kinds apart, lies what varies.
A cell's state is a sum over its genes: the log-likelihood of its kind, and nearness to the centre.

Shapes: C training cells, G genes, N bins, K states.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.random_streams import Stream, generator

__all__ = ["StateScores", "find_states"]

#: Cells beyond which a sample is grouped.
_MOST_CELLS = 20_000
#: Fewest cells of a state.
_FEWEST_CELLS = 20
#: Cells of all kinds that count for each kind's shares of bins.
_PSEUDO_CELLS = 5
#: Components of a kind's cells by which they are grouped.
_COMPONENTS = 10


@dataclass(frozen=True)
class StateScores:
    """How a cell's state is told: the state of the highest sum.

    Attributes
    ----------
    table
        (G, N, K), what each gene's bin adds.
    offset
        (K,), what the sums begin with.
    """

    table: NDArray[np.float32]
    offset: NDArray[np.float32]

    def states(self, bins: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(cells,), the state of each of (cells, G)."""
        scores = np.tile(self.offset.astype(np.float64), (len(bins), 1))
        for gene in range(bins.shape[1]):
            scores += self.table[gene, bins[:, gene]]
        return scores.argmax(axis=1)


def find_states(
    bins: NDArray[np.uint8],
    values: NDArray[np.floating],
    codes: NDArray[np.int32],
    n_states: int,
    *,
    seed: int,
) -> StateScores:
    """Group cells.

    Parameters
    ----------
    bins
        (C, G).
    values
        (G, N), a value for every bin of every gene.
    codes
        (C, phenotypes), -1 where missing.
    n_states
        At most so many, shared among the kinds by their numbers of cells; a state has 20 cells or more.
    seed
        Of the sample and of k-means.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    rng = generator(seed, Stream.STATE_CELLS)
    if len(bins) > _MOST_CELLS:
        rows = np.sort(rng.choice(len(bins), _MOST_CELLS, replace=False))
        bins, codes = bins[rows], codes[rows]
    n_genes, n_bins = values.shape
    cells = np.take_along_axis(values, bins.T.astype(np.int64), axis=1).T.astype(np.float64)
    kinds = _telling_phenotype(cells, codes)
    overall = np.stack([(bins == one).mean(axis=0) for one in range(n_bins)], axis=1)
    tables, offsets = [], []
    for kind in np.unique(kinds):
        own = np.flatnonzero(kinds == kind)
        counts = np.stack([(bins[own] == one).sum(axis=0) for one in range(n_bins)], axis=1)
        of_kind = np.log((counts + _PSEUDO_CELLS * overall + 1e-3) / (len(own) + _PSEUDO_CELLS))
        centre, spread = cells[own].mean(axis=0), cells[own].std(axis=0) + 1e-2
        standard = (cells[own] - centre) / spread
        n_groups = min(round(n_states * len(own) / len(bins)), len(own) // _FEWEST_CELLS)
        at_centre = np.zeros((1, n_genes))
        if n_groups > 1:
            n_components = min(_COMPONENTS, *standard.shape)
            components = PCA(n_components, random_state=seed).fit(standard)
            places = components.transform(standard)
            group = KMeans(n_groups, n_init=4, random_state=seed).fit_predict(places)
            large = np.flatnonzero(np.bincount(group) >= _FEWEST_CELLS)
            if len(large) > 1:
                at_centre = np.stack(
                    [places[group == one].mean(axis=0) @ components.components_ for one in large]
                )
        for place in at_centre:
            pull = place / spread
            tables.append(of_kind + (values - centre[:, None]) * pull[:, None])
            offsets.append(np.log(len(own) / len(bins)) - 0.5 * (place**2).sum())
    return StateScores(
        np.stack(tables[:n_states], axis=2).astype(np.float32),
        np.array(offsets[:n_states], dtype=np.float32),
    )


def _telling_phenotype(
    values: NDArray[np.floating], codes: NDArray[np.int32]
) -> NDArray[np.integer]:
    """(C,) codes of the phenotype between whose values the genes differ most."""
    best, most = np.zeros(len(values), dtype=np.int32), 0.0
    for column in codes.T:
        present, group = np.unique(column, return_inverse=True)
        if len(present) < 2:
            continue
        sizes = np.bincount(group)
        sums = np.zeros((len(present), values.shape[1]))
        np.add.at(sums, group, values)
        between = (sums**2 / sizes[:, None]).sum() - (values.sum(axis=0) ** 2).sum() / len(values)
        if between > most:
            best, most = column, float(between)
    return best
