"""Everything that determines the simulated cells except the random numbers.

The biology is one fixed world: it does not depend on the seed of a data set, so that cells drawn
with different seeds differ only in donors and noise. Which gene marks which cell type is real and
common knowledge (PanglaoDB, the single-cell section of the Human Protein Atlas, Tabula Sapiens);
the sizes of all effects were drawn once. Genes called ``SIM...`` have no biological counterpart.

genes.csv has the log rate of each gene before any effect (natural log of relative expression; 0
gives about two counts at the median library size) and the gamma shape of its negative-binomial
counts (variance = mean + mean^2 / shape). effects.csv has what is added to log rates where a cell
matches a context, programmes.csv which genes vary together, composition.csv the cell types of each
tissue; pairs that are not listed do not exist.

Version 2 of the world adds directed regulation: regulators.csv names one gene of some programmes, whose own noise
passes to the other genes of its programme, as their loadings say, and not the other way round. Version 1 is the default.
"""

import csv
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files

from core.errors import ConfigurationError

_SCHEMA = "tfx.atlas-truth/1"

NORMAL = "normal"
#: An interferon-driven state, named with the Mondo label that CELLxGENE uses.
FLARE = "systemic lupus erythematosus"
#: A fibrotic state of many organs.
FIBROTIC = "systemic scleroderma"

#: Fraction of donors per disease; both diseases are more frequent in women, as in reality.
_DISEASE_WEIGHTS = {NORMAL: 0.5, FLARE: 0.25, FIBROTIC: 0.25}
_SEX_WEIGHTS = {
    NORMAL: {"female": 0.46, "male": 0.54},
    FLARE: {"female": 0.65, "male": 0.35},
    FIBROTIC: {"female": 0.6, "male": 0.4},
}
#: Uberon names, as CELLxGENE writes them -> fraction of cells.
_TISSUE_WEIGHTS = {
    "lung": 0.22,
    "blood": 0.24,
    "liver": 0.13,
    "heart": 0.12,
    "kidney": 0.11,
    "small intestine": 0.1,
    "skin of body": 0.08,
}
#: Library size of a cell type relative to the median; 1 if not listed.
_LIBRARY_SIZE_FACTORS = {
    "CD4-positive, alpha-beta T cell": 0.8,
    "CD8-positive, alpha-beta T cell": 0.8,
    "natural killer cell": 0.78,
    "B cell": 0.85,
    "plasma cell": 1.15,
    "macrophage": 1.4,
    "mast cell": 0.9,
    "fibroblast": 1.1,
    "pulmonary alveolar type 2 cell": 1.3,
    "hepatocyte": 1.45,
    "cardiac muscle cell": 1.4,
    "epithelial cell of proximal tubule": 1.25,
    "enterocyte": 1.2,
    "keratinocyte": 1.25,
}
#: Combinations that exist in the simulated world and are left out of the data set on purpose.
_LEFT_OUT = (
    {"sex": "female", "tissue": "lung", "disease": FIBROTIC},
    {"tissue": "kidney", "cell_type": "plasma cell"},
    {"tissue": "liver", "cell_type": "classical monocyte", "disease": FLARE},
    {"sex": "male", "tissue": "skin of body", "disease": FLARE},
)
#: The noise model.
_PARAMETERS = {
    # library size over all genes of the atlas: median, log sd between cells and between donors
    "median_counts": 2500.0,
    "depth_sd": 0.38,
    "donor_depth_sd": 0.12,
    # log sd of a donor's deviation in each gene
    "donor_gene_sd": 0.16,
    # fraction of a cell's counts that are ambient RNA of its sample: beta distribution
    "ambient_mean": 0.05,
    "ambient_concentration": 25.0,
    # severity of a disease: gamma with mean 1 and this shape (small: some patients barely show it)
    "severity_shape": 5.5,
    # donors' ages, years, both included
    "age_min": 20.0,
    "age_max": 84.0,
}

#: Phenotype -> the values for which something holds; a phenotype that is absent may have any value.
Context = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Effect:
    """A shift of log rates in the cells of a context."""

    name: str
    context: Context
    #: Gene -> shift of its log rate.
    shifts: dict[str, float]
    #: "one"; "severity", the donor's (mean 1); or "decades", the donor's age in decades from 50.
    scaled_by: str


@dataclass(frozen=True)
class ProgrammeVariant:
    """The form of a programme in one context: gene -> loading on the latent activity."""

    context: Context
    loadings: dict[str, float]


@dataclass(frozen=True)
class Programme:
    """Genes driven by one latent activity per cell, standard normal and independent of the others.

    A cell follows the first variant whose context it matches, else none. No gene is in two
    programmes, so that two genes of a variant correlate with the sign of the product of their
    loadings.
    """

    name: str
    variants: tuple[ProgrammeVariant, ...]


@dataclass(frozen=True)
class Donor:
    """A simulated person; ``severity`` is the strength of the disease (unused when normal)."""

    donor_id: str
    sex: str
    age: int
    disease: str
    severity: float
    tissues: tuple[str, ...]


@dataclass(frozen=True)
class AtlasTruth:
    """The truth of the atlas; as JSON it is in ``uns["tfx_truth"]`` of the data set."""

    #: In the order of columns.
    genes: tuple[str, ...]
    base: tuple[float, ...]
    shape: tuple[float, ...]
    effects: tuple[Effect, ...]
    programmes: tuple[Programme, ...]
    #: Tissue -> cell type -> fraction.
    composition: dict[str, dict[str, float]]
    disease_weights: dict[str, float]
    sex_weights: dict[str, dict[str, float]]
    tissue_weights: dict[str, float]
    depth_factors: dict[str, float]
    parameters: dict[str, float]
    left_out: tuple[dict[str, str], ...]
    #: Donors of the data set; empty for the biology alone.
    donors: tuple[Donor, ...] = ()
    #: Programme -> the gene whose own noise passes to the others; empty in version 1.
    regulators: dict[str, str] = field(default_factory=dict)

    def values(self, phenotype: str) -> tuple[str, ...]:
        """Return the values of sex, tissue, cell_type or disease in the simulated world."""
        values: dict[str, Iterable[str]] = {
            "sex": next(iter(self.sex_weights.values())),
            "tissue": self.composition,
            "cell_type": dict.fromkeys(itertools.chain(*self.composition.values())),
            "disease": self.disease_weights,
        }
        return tuple(values[phenotype])

    def is_left_out(self, combination: Mapping[str, str]) -> bool:
        """Whether a combination of all phenotypes is left out of the data set on purpose."""
        return any(left_out.items() <= combination.items() for left_out in self.left_out)

    def to_json(self) -> str:
        """Write the truth as JSON."""
        record = {"schema": _SCHEMA, "simulated": True, **asdict(self)}
        if not self.regulators:
            del record["regulators"]  # version 1, as before
        return json.dumps(record, separators=(",", ":"), allow_nan=False)


@cache
def atlas_biology(version: int = 1) -> AtlasTruth:
    """Return the fixed world of the simulated atlas, without donors, in version 1 or 2."""
    if version not in (1, 2):
        raise ConfigurationError(
            f"the simulated atlas has the versions 1 and 2, not {version}; change 'version'"
        )
    genes = _read("genes.csv")
    effects = itertools.groupby(
        _read("effects.csv"), key=lambda row: (row["effect"], row["context"], row["scaled_by"])
    )
    programmes = itertools.groupby(_read("programmes.csv"), key=lambda row: row["programme"])
    composition: dict[str, dict[str, float]] = {}
    for row in _read("composition.csv"):
        composition.setdefault(row["tissue"], {})[row["cell_type"]] = float(row["fraction"])
    return AtlasTruth(
        genes=tuple(row["gene"] for row in genes),
        base=tuple(float(row["log_rate"]) for row in genes),
        shape=tuple(float(row["shape"]) for row in genes),
        effects=tuple(
            Effect(name, _context(context), _numbers(rows, "log_shift"), scaled_by)
            for (name, context, scaled_by), rows in effects
        ),
        programmes=tuple(
            Programme(
                name,
                tuple(
                    ProgrammeVariant(_context(context), _numbers(variant, "loading"))
                    for context, variant in itertools.groupby(rows, key=lambda row: row["context"])
                ),
            )
            for name, rows in programmes
        ),
        composition=composition,
        disease_weights=_DISEASE_WEIGHTS,
        sex_weights=_SEX_WEIGHTS,
        tissue_weights=_TISSUE_WEIGHTS,
        depth_factors=_LIBRARY_SIZE_FACTORS,
        parameters=_PARAMETERS,
        left_out=_LEFT_OUT,
        regulators={
            row["programme"]: row["gene"] for row in _read("regulators.csv") if version == 2
        },
    )


def _read(name: str) -> list[dict[str, str]]:
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _context(text: str) -> Context:
    """Read ``disease=normal; cell_type=fibroblast|pericyte``; nothing is every cell."""
    parts = [part.partition("=") for part in text.split("; ") if part]
    return {phenotype: tuple(values.split("|")) for phenotype, _, values in parts}


def _numbers(rows: Iterable[dict[str, str]], column: str) -> dict[str, float]:
    return {row["gene"]: float(row[column]) for row in rows}
