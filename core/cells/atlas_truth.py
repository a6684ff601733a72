"""What is true of the simulated atlas: effects, programmes, edges, left-out combinations.

`AtlasTruth` holds every number the simulation needs, so that a truth read back from a prepared
store can be sampled and scored against long after the tables have changed. It travels as JSON in
``adata.uns["tfx_truth"]``. Rates are natural logarithms of relative expression; an effect adds to
them where a cell meets its context.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from typing import Any, NamedTuple

from core.errors import DataError

__all__ = ["AtlasTruth", "Donor", "Edge", "Effect", "Programme", "ProgrammeVariant"]

_SCHEMA = "tfx.atlas-truth/1"

Context = Mapping[str, Sequence[str]]
"""Phenotype -> the values for which something holds; an absent phenotype may have any value."""


class Edge(NamedTuple):
    """Two genes that move together (+1) or against each other (-1) within a kind of cell."""

    gene_a: str
    gene_b: str
    sign: int
    context: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Effect:
    """A shift of log rates in the cells of a context.

    Attributes
    ----------
    name
        For readers: "marker: B cell", "tissue: lung", ...
    context
        Phenotype -> values; all must be met.
    shifts
        Gene -> shift of its log rate.
    scaled_by
        "one"; "severity", the donor's (mean 1); or "decades", the donor's age in decades from 50.
    """

    name: str
    context: dict[str, tuple[str, ...]]
    shifts: dict[str, float]
    scaled_by: str = "one"


@dataclass(frozen=True)
class ProgrammeVariant:
    """The form a programme takes in one context: gene -> loading on the hidden activity."""

    context: dict[str, tuple[str, ...]]
    loadings: dict[str, float]


@dataclass(frozen=True)
class Programme:
    """Genes driven by one hidden activity per cell, standard normal and independent of the others.

    A cell follows the first variant whose context it meets; elsewhere the programme is silent.
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
    """Everything that decides the simulated cells except the random numbers.

    Attributes
    ----------
    genes
        Column order of the atlas.
    base
        Log rate of each gene before any effect.
    shape
        Gamma shape of each gene's negative-binomial counts (variance = mean + mean^2 / shape).
    effects, programmes
        What shifts the rates and what correlates the genes.
    composition
        Tissue -> cell type -> share.
    disease_weights, sex_weights, tissue_weights
        The population: disease shares, sex shares per disease, tissue shares.
    depth_factors
        Cell type -> library size relative to ``parameters["median_counts"]``.
    parameters
        Named numbers of the noise model, explained where `atlas_biology` sets them.
    left_out
        Combinations that the data set lacks on purpose.
    donors
        The donors of the data set this truth came with; empty for the bare biology.
    """

    genes: tuple[str, ...]
    base: tuple[float, ...]
    shape: tuple[float, ...]
    effects: tuple[Effect, ...]
    programmes: tuple[Programme, ...]
    composition: dict[str, dict[str, float]]
    disease_weights: dict[str, float]
    sex_weights: dict[str, dict[str, float]]
    tissue_weights: dict[str, float]
    depth_factors: dict[str, float]
    parameters: dict[str, float]
    left_out: tuple[dict[str, str], ...]
    donors: tuple[Donor, ...] = ()

    def values(self, phenotype: str) -> tuple[str, ...]:
        """Return the values of sex, tissue, cell_type or disease in the simulated world."""
        if phenotype == "tissue":
            return tuple(self.composition)
        if phenotype == "cell_type":
            return tuple(dict.fromkeys(t for parts in self.composition.values() for t in parts))
        if phenotype == "disease":
            return tuple(self.disease_weights)
        if phenotype == "sex":
            return tuple(next(iter(self.sex_weights.values())))
        message = f"the simulated atlas has no phenotype {phenotype!r} with listed values"
        raise KeyError(message)

    def is_left_out(self, combination: Mapping[str, str]) -> bool:
        """Say whether a fully given combination of phenotypes is absent from the data on purpose."""
        return any(
            all(combination.get(phenotype) == value for phenotype, value in left_out.items())
            for left_out in self.left_out
        )

    def edges(self, context: Mapping[str, str] | None = None) -> list[Edge]:
        """List the true gene-gene edges of a kind of cell.

        Parameters
        ----------
        context
            Phenotype -> value, for example ``{"cell_type": "B cell", "tissue": "lung"}``; phenotypes
            may be left open, and None leaves all open.

        Returns
        -------
        Every edge that some cell of the context can have, with the phenotypes it depends on as the
        edge's own context. With phenotypes left open a pair may be listed with both signs, each in
        its own context; an edge whose own context is empty, or lies within the one asked for, holds
        in all of its cells. Correlations through depth, donors and spill-over are no edges.
        """
        found: list[Edge] = []
        asked = context or {}
        for programme in self.programmes:
            for variant in programme.variants:
                if not _can_meet(variant.context, asked):
                    continue
                found += [
                    Edge(gene_a, gene_b, 1 if load_a * load_b > 0 else -1, dict(variant.context))
                    for (gene_a, load_a), (gene_b, load_b) in combinations(
                        variant.loadings.items(), 2
                    )
                ]
                if _always_meets(variant.context, asked):
                    break  # no cell of the context reaches a later variant
        return found

    def programme_genes(self) -> frozenset[str]:
        """Return the genes of all programmes."""
        return frozenset(
            gene
            for programme in self.programmes
            for variant in programme.variants
            for gene in variant.loadings
        )

    def to_json(self) -> str:
        """Write the truth as JSON; `from_json` reads it back unchanged."""
        record = {"schema": _SCHEMA, "simulated": True, **asdict(self)}
        return json.dumps(record, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "AtlasTruth":
        """Read a truth written by `to_json`.

        Raises
        ------
        DataError
            The text is not JSON, is of another schema, or lacks a part.
        """
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            message = f"the simulated truth is not JSON ({error}); simulate the atlas again"
            raise DataError(message) from error
        schema = record.get("schema") if isinstance(record, dict) else None
        if schema != _SCHEMA:
            message = (
                f"the simulated truth has schema {schema!r}, this version reads {_SCHEMA!r}; "
                "simulate the atlas again"
            )
            raise DataError(message)
        try:
            return cls(**{field.name: _rebuild(field.name, record) for field in fields(cls)})
        except (KeyError, TypeError, AttributeError) as error:
            message = f"the simulated truth lacks or spoils {error}; simulate the atlas again"
            raise DataError(message) from error


def _can_meet(needed: Context, given: Mapping[str, str]) -> bool:
    """Say whether some cell of the given context meets the needed one."""
    return all(given.get(name) is None or given[name] in values for name, values in needed.items())


def _always_meets(needed: Context, given: Mapping[str, str]) -> bool:
    """Say whether every cell of the given context meets the needed one."""
    return all(given.get(name) in values for name, values in needed.items())


def _context(record: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(values) for name, values in record.items()}


def _rebuild(name: str, record: Mapping[str, Any]) -> Any:  # noqa: ANN401 (JSON is untyped)
    """Turn one part of the JSON record back into its dataclasses and tuples."""
    part = record[name]
    if name in {"genes", "base", "shape", "left_out"}:
        return tuple(part)
    if name == "effects":
        return tuple(Effect(**{**one, "context": _context(one["context"])}) for one in part)
    if name == "programmes":
        return tuple(
            Programme(
                one["name"],
                tuple(
                    ProgrammeVariant(_context(variant["context"]), dict(variant["loadings"]))
                    for variant in one["variants"]
                ),
            )
            for one in part
        )
    if name == "donors":
        return tuple(Donor(**{**one, "tissues": tuple(one["tissues"])}) for one in part)
    return part
