"""Draw counts of simulated cells from an `AtlasTruth`: who the cells are comes from `atlas`.

A cell's expected counts are its library size times a mixture of its own profile and the soup of
its sample; its own profile is the exponential of the summed effects, its donor's deviation and the
hidden activities of the programmes. Counts are negative binomial (gamma-Poisson). Everything is
elementwise numpy in blocks of fixed size, with no matrix product whose rounding would depend on
the number of threads: one seed gives the same bytes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.atlas_truth import AtlasTruth, Context

__all__ = ["PHENOTYPES", "CellTable", "sample_counts"]

#: The phenotypes with listed values, in the column order of a condition.
PHENOTYPES: tuple[str, ...] = ("sex", "tissue", "cell_type", "disease")

_BLOCK = 1024  # cells simulated at once: about 6 MB per temporary at 720 genes

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class CellTable:
    """Who the cells are.

    Attributes
    ----------
    conditions
        (cells, 4), codes of `PHENOTYPES` in the order of ``truth.values``.
    donors
        (cells,), index of the donor.
    ages, severities
        (donors,), years and strength of disease.
    """

    conditions: NDArray[np.int64]
    donors: NDArray[np.int64]
    ages: FloatArray
    severities: FloatArray


def sample_counts(
    truth: AtlasTruth, cells: CellTable, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Draw raw counts.

    Returns
    -------
    (cells, genes) float32 whole numbers in CSR form, sorted indices.
    """
    parameters = truth.parameters
    n_cells, n_donors, n_genes = len(cells.donors), len(cells.ages), len(truth.genes)
    deviation = parameters["donor_gene_sd"] * rng.standard_normal((n_donors, n_genes))
    donor_depth = parameters["donor_depth_sd"] * rng.standard_normal(n_donors)
    depth = _library_sizes(truth, cells, donor_depth, rng)
    concentration = parameters["ambient_concentration"]
    mean = parameters["ambient_mean"]
    soup_share = rng.beta(mean * concentration, (1.0 - mean) * concentration, n_cells)

    rates = _Rates(truth, cells.conditions)
    shape = np.asarray(truth.shape)
    decades = (cells.ages - 50.0) / 10.0
    blocks = []
    for start in range(0, n_cells, _BLOCK):
        block = slice(start, start + _BLOCK)
        donor = cells.donors[block]
        condition = rates.condition_of_cell[block]
        log_rate = rates.fixed[condition] + deviation[donor]
        log_rate += cells.severities[donor, None] * rates.severity[condition]
        log_rate += decades[donor, None] * rates.decades[condition]
        for columns, loadings in rates.loadings:
            activity = rng.standard_normal(len(donor))
            loading = loadings[condition]
            # minus half the variance: a programme leaves the mean expression as it is
            log_rate[:, columns] += activity[:, None] * loading - 0.5 * loading**2
        own = np.exp(log_rate)
        own /= own.sum(axis=1, keepdims=True)
        share = soup_share[block, None]
        expected = (1.0 - share) * own + share * rates.soup[rates.soup_of_condition[condition]]
        expected *= depth[block, None]
        expected *= rng.standard_gamma(np.broadcast_to(shape, expected.shape)) / shape
        blocks.append(sparse.csr_matrix(rng.poisson(expected).astype(np.float32)))
    counts = sparse.csr_matrix(sparse.vstack(blocks, format="csr", dtype=np.float32))
    counts.sort_indices()
    return counts


def _library_sizes(
    truth: AtlasTruth, cells: CellTable, donor_depth: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Draw each cell's expected total count: log-normal around its type's median."""
    factors = np.array([truth.depth_factors.get(t, 1.0) for t in truth.values("cell_type")])
    log_depth = np.log(truth.parameters["median_counts"] * factors[cells.conditions[:, 2]])
    log_depth += donor_depth[cells.donors]
    log_depth += truth.parameters["depth_sd"] * rng.standard_normal(len(cells.donors))
    depth: FloatArray = np.exp(log_depth)
    return depth


class _Rates:
    """The effects and loadings of each condition that occurs, as tables (conditions, genes)."""

    def __init__(self, truth: AtlasTruth, conditions: NDArray[np.int64]) -> None:
        self._truth = truth
        self._column = {gene: index for index, gene in enumerate(truth.genes)}
        occurring, inverse = np.unique(conditions, axis=0, return_inverse=True)
        self.condition_of_cell: NDArray[np.int64] = inverse.ravel()
        self.fixed, self.severity, self.decades = self._effect_tables(occurring)
        self.loadings = self._loading_tables(occurring)
        samples, of_condition = np.unique(occurring[:, [0, 1, 3]], axis=0, return_inverse=True)
        self.soup_of_condition: NDArray[np.int64] = of_condition.ravel()
        self.soup = np.stack([self._soup(*map(int, sample)) for sample in samples])

    def _meets(self, context: Context, conditions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(conditions,) whether each meets a context."""
        met = np.ones(len(conditions), dtype=bool)
        for phenotype, wanted in context.items():
            known = self._truth.values(phenotype)
            codes = [known.index(value) for value in wanted]
            met &= np.isin(conditions[:, PHENOTYPES.index(phenotype)], codes)
        return met

    def _effect_tables(
        self, conditions: NDArray[np.int64]
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        shape = (len(conditions), len(self._truth.genes))
        tables = {
            "one": np.tile(np.asarray(self._truth.base), (shape[0], 1)),
            "severity": np.zeros(shape),
            "decades": np.zeros(shape),
        }
        for effect in self._truth.effects:
            rows = np.flatnonzero(self._meets(effect.context, conditions))
            columns = np.array([self._column[gene] for gene in effect.shifts], dtype=np.int64)
            tables[effect.scaled_by][np.ix_(rows, columns)] += list(effect.shifts.values())
        return tables["one"], tables["severity"], tables["decades"]

    def _loading_tables(
        self, conditions: NDArray[np.int64]
    ) -> list[tuple[NDArray[np.int64], FloatArray]]:
        """One (columns, (conditions, columns) loadings) per programme."""
        tables = []
        for programme in self._truth.programmes:
            members = list(dict.fromkeys(g for v in programme.variants for g in v.loadings))
            loadings = np.zeros((len(conditions), len(members)))
            free = np.ones(len(conditions), dtype=bool)
            for variant in programme.variants:
                rows = self._meets(variant.context, conditions) & free
                loadings[rows] = [variant.loadings.get(gene, 0.0) for gene in members]
                free &= ~rows
            columns = np.array([self._column[gene] for gene in members], dtype=np.int64)
            tables.append((columns, loadings))
        return tables

    def _soup(self, sex: int, tissue: int, disease: int) -> FloatArray:
        """(genes,) shares: the average cell of a tissue, weighted by how much RNA each type has."""
        truth = self._truth
        cell_types = truth.values("cell_type")
        parts = truth.composition[truth.values("tissue")[tissue]]
        conditions = np.array([(sex, tissue, cell_types.index(name), disease) for name in parts])
        fixed, severity, _ = self._effect_tables(conditions)
        profiles = np.exp(fixed + severity)
        profiles /= profiles.sum(axis=1, keepdims=True)
        weights = np.array([parts[name] * truth.depth_factors.get(name, 1.0) for name in parts])
        soup: FloatArray = (profiles * (weights / weights.sum())[:, None]).sum(axis=0)
        return soup
