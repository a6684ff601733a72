"""Which genes of the simulated atlas vary together, in which cells, and with which sign."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.cells.atlas.biology import Context, ProgrammeVariant, atlas_biology

#: Kinds of edges, by the contexts of their programme.
UNIVERSAL, CELL_TYPE, TISSUE_OR_DISEASE, OPPOSITE = (
    "universal",
    "one cell type",
    "tissue or disease",
    "opposite sign in two contexts",
)
KINDS = (UNIVERSAL, CELL_TYPE, TISSUE_OR_DISEASE, OPPOSITE)
#: Fraction of a context's cells in which an edge must be active to be one of that context.
_MOST_CELLS = 0.5


@dataclass(frozen=True)
class TrueEdges:
    """The edges that are active in a context, (genes, genes) each, symmetric."""

    #: 1 or -1 for an edge, 0 without.
    sign: NDArray[np.int8]
    #: Index into `KINDS`, -1 without an edge.
    kind: NDArray[np.int8]
    #: Pairs that vary together in some cells, but in fewer than half: neither edges nor free of one.
    is_partial: NDArray[np.bool_]

    def take(self, pairs: tuple[NDArray[np.intp], ...]) -> "TrueEdges":
        """Return the edges of some rows and columns (``np.ix_``)."""
        return TrueEdges(self.sign[pairs], self.kind[pairs], self.is_partial[pairs])


@dataclass(frozen=True)
class _Loadings:
    """A variant of a programme over the genes of a panel."""

    context: Context
    #: Index of all pairs of its genes, and the products of their loadings.
    pairs: tuple[NDArray[np.intp], ...]
    products: NDArray[np.float64]

    @classmethod
    def of(cls, variant: ProgrammeVariant, place: Mapping[str, int]) -> "_Loadings":
        known = [gene for gene in variant.loadings if gene in place]
        at = np.array([place[gene] for gene in known], dtype=np.intp)
        loading = np.array([variant.loadings[gene] for gene in known])
        return cls(variant.context, np.ix_(at, at), np.outer(loading, loading))


def true_edges(
    genes: Sequence[str], conditions: Sequence[Mapping[str, str]], counts: Sequence[int]
) -> TrueEdges:
    """Find the edges of a context among ``genes``; those that the atlas does not have are in none.

    ``conditions`` are the combinations of phenotypes that occur in the context, name -> value (sex, tissue,
    cell_type, disease), and ``counts`` their cells.
    """
    place = {gene: index for index, gene in enumerate(genes)}
    strength = np.zeros((len(genes), len(genes)))
    active = np.zeros_like(strength)
    kind = np.full(strength.shape, -1, dtype=np.int8)
    total = max(sum(counts), 1)
    for programme in atlas_biology().programmes:
        variants = [_Loadings.of(variant, place) for variant in programme.variants]
        for one in variants:
            kind[one.pairs] = np.maximum(kind[one.pairs], KINDS.index(_kind(one.context)))
        kind[_opposed(variants, len(genes))] = KINDS.index(OPPOSITE)
        for condition, n_cells in zip(conditions, counts, strict=True):
            found = next((one for one in variants if _matches(one.context, condition)), None)
            if found is not None:
                strength[found.pairs] += n_cells * found.products
                active[found.pairs] += n_cells
    sign = np.sign(strength) * (active >= _MOST_CELLS * total)
    np.fill_diagonal(sign, 0)
    kind[sign == 0] = -1
    return TrueEdges(sign.astype(np.int8), kind, (active > 0) & (sign == 0))


def true_responses(
    genes: Sequence[str],
    gene: str,
    conditions: Sequence[Mapping[str, str]],
    counts: Sequence[int],
    *,
    version: int = 1,
) -> TrueEdges:
    """Return what responds to a knock-out of one gene in a context: (1, genes) each, as `true_edges`.

    ``sign`` is that of the edge: a gene of sign 1 falls. In a programme with a regulator (version 2) the others
    respond to the regulator alone.
    """
    rows = np.ix_(np.array([genes.index(gene)]), np.arange(len(genes)))
    found = true_edges(genes, conditions, counts).take(rows)
    truth = atlas_biology(version)
    for programme in truth.programmes:
        members = {one for variant in programme.variants for one in variant.loadings}
        if gene in members and truth.regulators.get(programme.name, gene) != gene:
            nothing = np.zeros_like(found.sign)
            return TrueEdges(nothing, np.full_like(found.kind, -1), nothing.astype(bool))
    return found


def _matches(context: Context, condition: Mapping[str, str]) -> bool:
    return all(condition.get(name) in values for name, values in context.items())


def _kind(context: Context) -> str:
    if not context:
        return UNIVERSAL
    return CELL_TYPE if set(context) == {"cell_type"} else TISSUE_OR_DISEASE


def _opposed(variants: Sequence[_Loadings], n_genes: int) -> NDArray[np.bool_]:
    """(genes, genes), pairs whose sign differs between two variants."""
    signs = np.zeros((len(variants), n_genes, n_genes))
    for one, variant in zip(signs, variants, strict=True):
        one[variant.pairs] = np.sign(variant.products)
    return np.logical_and((signs > 0).any(axis=0), (signs < 0).any(axis=0))
