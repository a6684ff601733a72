"""What to find: the genes, contexts and measures of a request, checked against a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from core.cells.cell_filter import CellFilter
from core.cells.genes import GenePanel
from core.cells.spelling import match_label, suggest
from core.cells.store import Store
from core.errors import ConfigurationError
from core.interactions.baselines import QUICK_MEASURES
from core.interactions.cells import Integers
from core.interactions.effects import MOST_PASSES
from core.interactions.known_edges import KnownEdges
from core.model.folder import CellModel

#: Measures that an output can have as weights: those that rank pairs by what links them.
CHOICES = ("model", "model_directed", *(name for name in QUICK_MEASURES if name != "detection"))


@dataclass(frozen=True)
class Request:
    """What to find; the defaults are those of the command."""

    where: CellFilter = field(default_factory=CellFilter)
    #: Phenotype, and its two values.
    contrast: tuple[str, str, str] | None = None
    #: Names of genes: both ends of every edge, or sources alone; empty: all genes of the model.
    genes: Sequence[str] = ()
    regulators: Sequence[str] = ()
    #: "auto", or one of `CHOICES`.
    weight: str = "auto"
    measures: Sequence[str] = QUICK_MEASURES
    #: Reference networks that every measure is compared with.
    known: Sequence[KnownEdges] = ()
    #: Relative error of the effects at which passes end, and passes at most.
    error: float = 0.1
    most_passes: int = MOST_PASSES
    #: Fraction of genes that are masked in a pass; None: as the model was trained.
    masked: float | None = None
    seed: int = 0


def chosen_genes(
    model: CellModel, store: Store | None, request: Request
) -> tuple[Integers, Integers]:
    """Return the sources and the targets of a request, as places in the model's panel."""
    every = np.arange(len(model.panel))
    if request.genes:
        chosen = gene_indices(model.panel, store, request.genes, "--genes")
        if len(chosen) < 2:
            raise ConfigurationError("--genes: give two genes at least, as in --genes SPI1,CD14")
        return chosen, chosen
    if request.regulators:
        known = [name for name in request.regulators if model.panel.index_of(name) is not None]
        if not known:
            gene_indices(model.panel, store, request.regulators, "--regulators")
        return gene_indices(model.panel, store, known, "--regulators"), every
    return every, every


def gene_indices(
    panel: GenePanel, store: Store | None, names: Sequence[str], option: str
) -> Integers:
    """Return the places of named genes; ConfigurationError for one that the model lacks."""
    found = []
    for name in names:
        index = panel.index_of(name)
        if index is None:
            raise ConfigurationError(f"{option}: {_unknown_gene(panel, store, name)}")
        found.append(index)
    return np.array(list(dict.fromkeys(found)), dtype=np.int64)


def _unknown_gene(panel: GenePanel, store: Store | None, name: str) -> str:
    text = f"the model does not know the gene '{name}'"
    stored = None if store is None else store.genes.index_of(name)
    if store is not None and stored is not None:
        rank = int(np.flatnonzero(store.hvg_order == stored)[0]) + 1
        return (
            f"{text}: by variability it is number {rank:,}, and the model has {len(panel):,} genes; train "
            f"with data.include_genes = ['{name}'], or a larger data.genes"
        )
    near = panel.nearest(name)
    return f"{text}; " + (
        f"did you mean {' or '.join(near)}?" if near else "choose one of its panel"
    )


def checked_contrast(model: CellModel, contrast: tuple[str, str, str]) -> tuple[str, str, str]:
    """Return a contrast in the spelling of the model, which must know both values."""
    name, *values = contrast
    text = f"--contrast {name}={','.join(values)}"
    phenotypes = model.config.phenotypes
    if name not in phenotypes:
        raise ConfigurationError(
            f"{text}: the model has no phenotype '{name}'; {suggest(name, phenotypes)}"
        )
    known = [match_label(value, phenotypes[name]) for value in values]
    for value, match in zip(values, known, strict=True):
        if match is None:
            raise ConfigurationError(
                f"{text}: the model knows no {name} '{value}'; {suggest(value, phenotypes[name])}"
            )
    first, second = map(str, known)
    if first == second:
        raise ConfigurationError(f"{text}: both values are '{first}'; give two different ones")
    return name, first, second
