"""Draw counts of simulated cells whose donors and conditions `simulation` has chosen.

A cell's expected counts are its library size times a mixture of its own profile and the ambient RNA
of its sample. Its own profile is the exponential of the summed effects, its donor's deviation and
the latent activities of the programmes. Counts are negative binomial (gamma-Poisson). All
arithmetic is elementwise numpy in blocks of fixed size: the rounding of a matrix product would
depend on the number of threads, so that one seed would not give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.atlas.biology import AtlasTruth, Context

#: The phenotypes with listed values, in the column order of a condition.
PHENOTYPES = ("sex", "tissue", "cell_type", "disease")
_SEX, _TISSUE, _CELL_TYPE, _DISEASE = range(4)

#: Activity of a silenced programme, and own noise of a silenced regulator, in standard deviations.
_SILENT = -2.0
#: Log sd of a regulator's own noise (its loading), and how strongly it passes to others, over their loadings.
_OWN_NOISE, _PASSED = 0.8, 1.0
_BLOCK = 1024  # cells simulated at once: about 6 MB per temporary at 720 genes

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class CellTable:
    """Donor and condition of each cell."""

    #: (cells, 4), codes of `PHENOTYPES` in the order of ``truth.values``.
    conditions: NDArray[np.int64]
    #: (cells,), index of the donor.
    donors: NDArray[np.int64]
    #: (donors,), years, and strength of the disease.
    ages: FloatArray
    severities: FloatArray


def sample_counts(
    truth: AtlasTruth, cells: CellTable, rng: np.random.Generator, *, silenced: Sequence[str] = ()
) -> sparse.csr_matrix:
    """Draw raw counts: (cells, genes), float32 whole numbers in CSR form, sorted indices.

    ``silenced`` are genes that are knocked out: they are not transcribed, and their programmes are silent. In a
    programme with a regulator, the others are silent of the regulator's noise alone, and only if that is such a gene.
    """
    parameters = truth.parameters
    n_cells, n_donors, n_genes = len(cells.donors), len(cells.ages), len(truth.genes)
    deviation = parameters["donor_gene_sd"] * rng.standard_normal((n_donors, n_genes))
    donor_deviation = parameters["donor_depth_sd"] * rng.standard_normal(n_donors)
    library_size = _library_sizes(truth, cells, donor_deviation, rng)
    concentration = parameters["ambient_concentration"]
    mean = parameters["ambient_mean"]
    ambient_fraction = rng.beta(mean * concentration, (1.0 - mean) * concentration, n_cells)

    rates = _Rates(truth, cells.conditions)
    gone = [rates.column_of[gene] for gene in silenced]
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
        for programme, columns, loadings in rates.loadings:
            activity = rng.standard_normal(len(donor))
            loading = loadings[condition]
            at = np.flatnonzero(np.isin(columns, gone))
            if len(at) and programme not in truth.regulators:
                activity = _SILENT * np.sign(loading[:, at[0]])
            # minus half the variance: a programme leaves the mean expression as it is
            log_rate[:, columns] += activity[:, None] * loading - 0.5 * loading**2
            if programme in truth.regulators:
                noise = rng.standard_normal(len(donor))
                passed = rates.passed_noise(programme, columns, loading)
                if rates.column_of[truth.regulators[programme]] in gone:
                    noise = np.full(len(donor), _SILENT)
                log_rate[:, columns] += noise[:, None] * passed - 0.5 * passed**2
        log_rate[:, gone] = -np.inf
        own = np.exp(log_rate)
        own /= own.sum(axis=1, keepdims=True)
        fraction = ambient_fraction[block, None]
        ambient = rates.ambient[rates.sample_of_condition[condition]]
        expected = (1.0 - fraction) * own + fraction * ambient
        expected *= library_size[block, None]
        expected *= rng.standard_gamma(np.broadcast_to(shape, expected.shape)) / shape
        blocks.append(sparse.csr_matrix(rng.poisson(expected).astype(np.float32)))
    counts = sparse.csr_matrix(sparse.vstack(blocks, format="csr", dtype=np.float32))
    counts.sort_indices()
    return counts


def _library_sizes(
    truth: AtlasTruth, cells: CellTable, donor_deviation: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Draw each cell's expected total count: log-normal around the median of its type."""
    factors = np.array([truth.depth_factors.get(t, 1.0) for t in truth.values("cell_type")])
    of_cell = factors[cells.conditions[:, _CELL_TYPE]]
    log_size = np.log(truth.parameters["median_counts"] * of_cell)
    log_size += donor_deviation[cells.donors]
    log_size += truth.parameters["depth_sd"] * rng.standard_normal(len(cells.donors))
    size: FloatArray = np.exp(log_size)
    return size


class _Rates:
    """The effects and loadings of each condition that occurs, as (conditions, genes) tables."""

    def __init__(self, truth: AtlasTruth, conditions: NDArray[np.int64]) -> None:
        self._truth = truth
        self.column_of = {gene: index for index, gene in enumerate(truth.genes)}
        occurring, inverse = np.unique(conditions, axis=0, return_inverse=True)
        self.condition_of_cell: NDArray[np.int64] = inverse.ravel()
        self.fixed, self.severity, self.decades = self._effect_tables(occurring)
        self.loadings = self._loading_tables(occurring)
        samples, of_condition = np.unique(
            occurring[:, [_SEX, _TISSUE, _DISEASE]], axis=0, return_inverse=True
        )
        self.sample_of_condition: NDArray[np.int64] = of_condition.ravel()
        self.ambient = np.stack([self._ambient_profile(*map(int, sample)) for sample in samples])

    def _matches(self, context: Context, conditions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(conditions,) whether each matches a context."""
        matching = np.ones(len(conditions), dtype=bool)
        for phenotype, wanted in context.items():
            known = self._truth.values(phenotype)
            codes = [known.index(value) for value in wanted]
            matching &= np.isin(conditions[:, PHENOTYPES.index(phenotype)], codes)
        return matching

    def _columns(self, genes: dict[str, float]) -> NDArray[np.int64]:
        return np.array([self.column_of[gene] for gene in genes], dtype=np.int64)

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
            rows = np.flatnonzero(self._matches(effect.context, conditions))
            columns = self._columns(effect.shifts)
            tables[effect.scaled_by][np.ix_(rows, columns)] += list(effect.shifts.values())
        return tables["one"], tables["severity"], tables["decades"]

    def _loading_tables(
        self, conditions: NDArray[np.int64]
    ) -> list[tuple[str, NDArray[np.int64], FloatArray]]:
        """One (name, columns, (conditions, columns) loadings) per programme."""
        tables = []
        for programme in self._truth.programmes:
            genes = {gene: 0.0 for variant in programme.variants for gene in variant.loadings}
            loadings = np.zeros((len(conditions), len(genes)))
            free = np.ones(len(conditions), dtype=bool)
            for variant in programme.variants:
                rows = self._matches(variant.context, conditions) & free
                loadings[rows] = list((genes | variant.loadings).values())
                free &= ~rows
            tables.append((programme.name, self._columns(genes), loadings))
        return tables

    def passed_noise(
        self, programme: str, columns: NDArray[np.int64], loading: FloatArray
    ) -> FloatArray:
        """(cells, columns) loadings on the own noise of a programme's regulator, where that is in it."""
        is_regulator = columns == self.column_of[self._truth.regulators[programme]]
        sign = np.sign(loading[:, is_regulator])  # 0 where it has no part in the programme
        found: FloatArray = np.where(
            is_regulator, _OWN_NOISE * np.abs(sign), _PASSED * loading * sign
        )
        return found

    def _ambient_profile(self, sex: int, tissue: int, disease: int) -> FloatArray:
        """(genes,) fractions: the average cell of a tissue, types weighted by their RNA content."""
        truth = self._truth
        cell_types = truth.values("cell_type")
        parts = truth.composition[truth.values("tissue")[tissue]]
        conditions = np.array([(sex, tissue, cell_types.index(name), disease) for name in parts])
        fixed, severity, _ = self._effect_tables(conditions)
        profiles = np.exp(fixed + severity)
        profiles /= profiles.sum(axis=1, keepdims=True)
        weights = np.array([parts[name] * truth.depth_factors.get(name, 1.0) for name in parts])
        ambient: FloatArray = (profiles * (weights / weights.sum())[:, None]).sum(axis=0)
        return ambient
