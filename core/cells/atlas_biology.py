"""From the tables of the simulated atlas to its numbers: `atlas_biology` builds the `AtlasTruth`.

The biology is one fixed world: it does not depend on the seed of a data set, so that cells drawn
with different seeds differ only in donors and noise. Levels are in relative expression; a level of
1 gives about two counts at the median depth.
"""

import itertools
import math
from functools import cache

import numpy as np

from core.cells import atlas_design as design
from core.cells import atlas_genes as genes
from core.cells.atlas_truth import AtlasTruth, Effect, Programme, ProgrammeVariant

__all__ = ["N_GENES", "atlas_biology"]

N_GENES = 720
_WORLD_SEED = 20_251

#: Median level and log-normal spread (natural log) of each kind of gene.
_HOUSEKEEPING = (11.0, 0.8)
_PROGRAMME = (1.05, 0.35)
_BACKGROUND = (0.05, 1.1)
_OFF = (0.02, 0.6)
_STRONG_MARKER = (2.2, 0.4)
_ABSENT = (0.004, 0.4)
#: Strong markers of types that live in one tissue: surfactant, albumin, myosin, keratin ... fill
#: such cells and the soup of their tissue; elsewhere they are absent.
_SPECIALISED_MARKER = (5.0, 0.4)
_WEAK_MARKER = (0.36, 0.5)
_LINEAGE = (0.5, 0.4)
_TISSUE = (0.9, 0.4)
_TISSUE_STATE = (1.0, 0.4)
_RESPONSE = (0.45, 0.3)
_AGE = (0.8, 0.5)
_ESCAPE = (0.4, 0.3)

_SEX_LEVELS = {"XIST": 7.0, "TSIX": 0.7, "RPS4Y1": 6.5, "DDX3Y": 3.0}
_OTHER_Y_LEVEL = 0.6
_SILENT = -7.0  # log shift that switches a gene off: a thousandth, as mismapped reads would give

#: The noise model.
_PARAMETERS: dict[str, float] = {
    # library size over all genes of the atlas: median, log sd between cells and between donors
    "median_counts": 2500.0,
    "depth_sd": 0.38,
    "donor_depth_sd": 0.12,
    # log sd of a donor's own level of each gene
    "donor_gene_sd": 0.16,
    # share of a cell's counts that come from the soup of its sample: beta distribution
    "ambient_mean": 0.05,
    "ambient_concentration": 25.0,
    # severity of a disease: gamma with mean 1 and this shape (small: some patients barely show it)
    "severity_shape": 5.5,
    # donors' ages, years, both included
    "age_min": 20.0,
    "age_max": 84.0,
}


def _split(names: str) -> list[str]:
    return names.split()


class _World:
    """The growing gene table: each gene's base level, and who draws levels for it."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(_WORLD_SEED)
        self.base: dict[str, float] = {}
        self.effects: list[Effect] = []

    def draw(self, level: tuple[float, float]) -> float:
        median, spread = level
        return median * math.exp(spread * self.rng.standard_normal())

    def add(self, names: "tuple[str, ...] | list[str]", level: tuple[float, float]) -> None:
        """Give genes a base level where they have none yet."""
        for name in names:
            if name not in self.base:
                self.base[name] = self.draw(level)

    def shift(
        self,
        name: str,
        context: dict[str, tuple[str, ...]],
        shifts: dict[str, float],
        scaled_by: str = "one",
    ) -> None:
        rounded = {gene: round(value, 4) for gene, value in shifts.items()}
        self.effects.append(Effect(name, context, rounded, scaled_by))

    def raise_to(self, targets: dict[str, float]) -> dict[str, float]:
        """Return shifts that lift genes from their base level to a target."""
        return {gene: math.log(target / self.base[gene]) for gene, target in targets.items()}


@cache
def atlas_biology() -> AtlasTruth:
    """Return the fixed world of the simulated atlas, without donors."""
    world = _World()
    _sex(world)
    world.add(genes.HOUSEKEEPING, _HOUSEKEEPING)
    world.add((*genes.INTERFERON_GENES, *genes.FIBROSIS_GENES), _RESPONSE)
    programmes = _programmes(world)
    _cell_types(world)
    _tissues(world)
    _programme_levels(world)
    _diseases(world)
    _ages(world)
    n_background = N_GENES - len(world.base)
    assert n_background > 0, "the tables name more genes than the atlas has"
    world.add([f"SIM{index:04d}" for index in range(1, n_background + 1)], _BACKGROUND)

    names = tuple(sorted(world.base))  # alphabetical: the order says nothing about function
    return AtlasTruth(
        genes=names,
        base=tuple(round(math.log(world.base[name]), 4) for name in names),
        shape=tuple(round(world.draw((4.0, 0.4)), 3) for _ in names),
        effects=tuple(world.effects),
        programmes=programmes,
        composition=design.COMPOSITION,
        disease_weights=design.DISEASE_WEIGHTS,
        sex_weights=design.SEX_WEIGHTS,
        tissue_weights=design.TISSUE_WEIGHTS,
        depth_factors=design.DEPTH_FACTORS,
        parameters=_PARAMETERS,
        left_out=design.LEFT_OUT,
    )


def _sex(world: _World) -> None:
    for gene in (*genes.FEMALE_GENES, *genes.MALE_GENES):
        world.base[gene] = _SEX_LEVELS.get(gene, world.draw((_OTHER_Y_LEVEL, 0.5)))
    world.add(genes.X_ESCAPE_GENES, _ESCAPE)
    world.shift(
        "sex: female",
        {"sex": ("female",)},
        {
            **dict.fromkeys(genes.MALE_GENES, _SILENT),
            **{gene: world.draw((0.35, 0.2)) for gene in genes.X_ESCAPE_GENES},
        },
    )
    world.shift("sex: male", {"sex": ("male",)}, dict.fromkeys(genes.FEMALE_GENES, _SILENT))


def _programmes(world: _World) -> tuple[Programme, ...]:
    """Draw loadings; a gene keeps the size of its loading in all variants of its programme.

    Genes of programmes that are not bound to a cell type get their level here; markers later.
    """
    programmes = []
    seen: set[str] = set()
    for name, tables in design.PROGRAMMES.items():
        sizes: dict[str, float] = {}
        variants = []
        for context, up, down in tables:
            if "cell_type" not in context or "switch" in name or "pair" in name:
                world.add([*_split(up), *_split(down)], _PROGRAMME)
            for gene in _split(up) + _split(down):
                sizes.setdefault(gene, round(world.rng.uniform(0.55, 0.85), 3))
            loadings = {gene: sizes[gene] for gene in _split(up)}
            loadings |= {gene: -sizes[gene] for gene in _split(down)}
            variants.append(ProgrammeVariant(context, loadings))
        assert seen.isdisjoint(sizes), f"{name} shares genes with another programme"
        seen |= set(sizes)
        programmes.append(Programme(name, tuple(variants)))
    return tuple(programmes)


def _cell_types(world: _World) -> None:
    """Markers of types and lineages; where both name a gene the higher level counts."""
    targets: dict[str, dict[str, float]] = {cell_type: {} for cell_type in genes.CELL_TYPES}

    def aim(cell_type: str, gene: str, level: float) -> None:
        targets[cell_type][gene] = max(level, targets[cell_type].get(gene, 0.0))

    for cell_type, (strong, weak) in genes.MARKERS.items():
        n_homes = sum(cell_type in parts for parts in design.COMPOSITION.values())
        kind = _SPECIALISED_MARKER if n_homes == 1 else _STRONG_MARKER
        for gene in _split(strong):
            aim(cell_type, gene, world.draw(kind))
        if n_homes == 1:
            world.add(_split(strong), _ABSENT)
        for gene in _split(weak):
            aim(cell_type, gene, world.draw(_WEAK_MARKER))
    for cell_types, names in genes.LINEAGES.values():
        for gene in _split(names):
            level = world.draw(_LINEAGE)
            for cell_type in cell_types:
                aim(cell_type, gene, level)
    for cell_type, wanted in targets.items():
        world.add(list(wanted), _OFF)
        shifts = {gene: shift for gene, shift in world.raise_to(wanted).items() if shift > 0}
        world.shift(f"marker: {cell_type}", {"cell_type": (cell_type,)}, shifts)


def _tissues(world: _World) -> None:
    for tissue, names in genes.TISSUE_GENES.items():
        world.add(_split(names), _OFF)
        targets = {gene: world.draw(_TISSUE) for gene in _split(names)}
        shifts = {gene: shift for gene, shift in world.raise_to(targets).items() if shift > 0}
        world.shift(f"tissue: {tissue}", {"tissue": (tissue,)}, shifts)
    for (tissue, cell_type), names in genes.TISSUE_STATES.items():
        world.add(_split(names), _OFF)
        targets = {gene: world.draw(_TISSUE_STATE) for gene in _split(names)}
        shifts = {gene: min(shift, 2.5) for gene, shift in world.raise_to(targets).items()}
        world.shift(
            f"state: {cell_type} in {tissue}",
            {"tissue": (tissue,), "cell_type": (cell_type,)},
            {gene: max(shift, 0.5) for gene, shift in shifts.items()},
        )


def _programme_levels(world: _World) -> None:
    """Lift the genes of a type's programme to where their correlation can be seen in that type."""
    for name, tables in design.PROGRAMMES.items():
        for context, up, down in tables:
            members = _split(up) + _split(down)
            world.add(members, _OFF)
            if "cell_type" not in context:
                continue
            for cell_type in context["cell_type"]:
                marked = {
                    gene: shift
                    for effect in world.effects
                    if effect.context == {"cell_type": (cell_type,)}
                    for gene, shift in effect.shifts.items()
                }
                floor = _PROGRAMME[0] * (0.35 if name == "cell cycle" else 1.0)
                lifts = {
                    gene: math.log(floor / world.base[gene]) - marked.get(gene, 0.0)
                    for gene in members
                }
                lifts = {gene: lift for gene, lift in lifts.items() if lift > 0}
                if lifts:
                    world.shift(f"level: {name}", {"cell_type": (cell_type,)}, lifts)


def _diseases(world: _World) -> None:
    world.shift(
        "disease: interferon response",
        {"disease": (design.FLARE,)},
        {gene: world.draw((1.3, 0.15)) for gene in genes.INTERFERON_GENES},
        "severity",
    )
    world.shift(
        "disease: fibrosis",
        {"disease": (design.FIBROTIC,)},
        {gene: world.draw((1.6, 0.15)) for gene in genes.FIBROSIS_GENES},
        "severity",
    )
    world.add(genes.FIBROSIS_STROMAL_GENES, _OFF)
    world.shift(
        "disease: fibrosis of the stroma",
        {
            "disease": (design.FIBROTIC,),
            "cell_type": ("fibroblast", "pericyte", "smooth muscle cell"),
        },
        {gene: world.draw((0.9, 0.3)) for gene in genes.FIBROSIS_STROMAL_GENES},
        "severity",
    )


def _ages(world: _World) -> None:
    world.add((*genes.AGE_UP, *genes.AGE_DOWN), _AGE)
    slopes = itertools.chain(
        ((gene, 1.0) for gene in genes.AGE_UP), ((gene, -1.0) for gene in genes.AGE_DOWN)
    )
    world.shift(
        "age", {}, {gene: sign * world.draw((0.18, 0.35)) for gene, sign in slopes}, "decades"
    )
