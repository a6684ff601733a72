"""The network of a context: effects in the model, measures of the cells beside them, nulls, and a choice of weight."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import psutil

from core.cells.cell_filter import CellFilter, Condition
from core.cells.store import Store
from core.errors import DataError, MachineError
from core.interactions.baselines import (
    MEASURE_NAMES,
    QUICK_MEASURES,
    SIGNED_MEASURES,
    measure_association,
)
from core.interactions.cells import (
    LEAST_EXPRESSING,
    MAX_CELLS,
    ContextCells,
    FloatArray,
    Integers,
    Reader,
)
from core.interactions.effects import check_can_perturb, estimate_effects
from core.interactions.known_edges import score_known
from core.interactions.request import Request, checked_contrast, chosen_genes
from core.interactions.result import Interactions, Network, best_measure, n_strongest
from core.interactions.statistics import (
    Evidence,
    contrast_p_values,
    evidence_margin,
    held_out_evidence,
    matched_p_values,
    q_values,
    stability,
    stacked,
    standardised_correlations,
)
from core.interactions.truth import EdgeScore, edges_of_context, score_edges
from core.model.folder import CellModel
from core.progress import Listener, ignore_progress
from core.wording import listed, size

#: Bytes of all arrays per pair, about; fraction of the free memory that they may take.
_BYTES_PER_PAIR, _MEMORY = 500, 0.8


def find_interactions(
    model: CellModel,
    read: Reader,
    request: Request,
    *,
    store: Store | None = None,
    simulated: bool = False,
    on_progress: Listener = ignore_progress,
) -> Interactions:
    """Find the interactions of genes in the cells of a context, or of two contexts and their difference.

    ``read`` gives the cells of a filter (`core.interactions.cells`); ``store`` knows genes that the model lacks, for
    messages; ``simulated`` says that the cells are of the atlas, whose edges are known.

    Raises
    ------
    ConfigurationError
        The model's genes cannot be perturbed, or it lacks a gene, phenotype or value of the request.
    DataError
        A context has too few cells or donors, or a requested gene is expressed in too few cells.
    MachineError
        The pairs do not fit into the memory.
    """
    check_can_perturb(model)
    sources, targets = chosen_genes(model, store, request)
    _check_memory(len(sources), len(targets), len(model.panel))
    conditions: list[tuple[Condition, ...]] = [()]
    if request.contrast is not None:
        name, *values = checked_contrast(model, request.contrast)
        conditions = [(Condition(name, (value,)),) for value in values]
    contexts = [
        read(replace(request.where, conditions=(*request.where.conditions, *more)))
        for more in conditions
    ]
    everything = None
    if request.where or request.contrast is not None:
        everything = read(CellFilter())
    named = bool(request.genes), bool(request.regulators)
    sources, targets, notes = _expressed_genes(model, contexts, sources, targets, named)
    unknown = [name for name in request.regulators if model.panel.index_of(name) is None]
    if unknown:
        notes.append(
            f"{len(unknown):,} of {len(request.regulators):,} regulators are no genes of the model: "
            f"{listed(unknown)}"
        )
    networks = [
        _network(
            model, cells, everything, sources, targets, request, notes,
            simulated=simulated, on_progress=on_progress,
        )
        for cells in contexts
    ]  # fmt: skip
    difference = None
    if len(contexts) == 2:
        # The two sides of a difference have one measure: the default, unless both have another.
        if networks[0].chosen != networks[1].chosen:
            default = networks[0].default
            note = (
                f"the two contexts are compared by {MEASURE_NAMES[default]}: held-out donors prefer "
                f"{networks[0].chosen} in the first, and {networks[1].chosen} in the second"
            )
            networks = [
                _with_weight(replace(one, notes=(*one.notes, note)), cells, default, request.seed)
                for one, cells in zip(networks, contexts, strict=True)
            ]
        difference = _difference(contexts, networks, request)
    return Interactions(
        tuple(networks), difference, str(model.provenance.get("name", "model")), simulated
    )


def _check_memory(n_sources: int, n_targets: int, n_genes: int) -> None:
    needed = _BYTES_PER_PAIR * n_sources * n_targets + 8 * len(QUICK_MEASURES) * n_genes**2
    needed += 3 * 8 * MAX_CELLS * n_genes
    free = psutil.virtual_memory().available
    if needed > _MEMORY * free:
        raise MachineError(
            f"{n_sources:,} x {n_targets:,} pairs of genes need {size(needed)} of memory, and "
            f"{size(free)} are free; choose genes by --genes, or sources by --regulators"
        )


def _expressed_genes(
    model: CellModel,
    contexts: Sequence[ContextCells],
    sources: Integers,
    targets: Integers,
    named: tuple[bool, bool],
) -> tuple[Integers, Integers, list[str]]:
    """Leave out genes that too few cells of a context express; refuse those that the user named."""
    few = np.zeros(len(model.panel), dtype=bool)
    for cells in contexts:
        counts = np.asarray((cells.expression > 0).sum(axis=0)).ravel()
        is_few = (counts < LEAST_EXPRESSING) | cells.missing
        few |= is_few
        is_named = sources if any(named) else sources[:0]
        if named[0] and len(lost := is_named[is_few[is_named]]):
            gene = int(lost[0])
            how = "is not in the file" if cells.missing[gene] else "is never expressed"
            if counts[gene]:
                how = f"is expressed in {counts[gene]:,} cells"
            raise DataError(
                f"{cells.name}: {model.panel.symbols[gene]} {how}, and a network needs "
                f"{LEAST_EXPRESSING}; choose another gene, or a wider --where"
            )
    kept_sources, kept_targets = sources[~few[sources]], targets[~few[targets]]
    if len(kept_sources) == 0 or len(kept_targets) < 2:
        raise DataError(
            f"{contexts[0].name}: fewer than two genes are expressed in {LEAST_EXPRESSING} cells; choose a "
            f"wider --where"
        )
    notes = []
    lost = np.unique(np.concatenate([sources[few[sources]], targets[few[targets]]]))
    if len(lost):
        names = listed([model.panel.symbols[gene] for gene in lost.tolist()])
        notes.append(
            f"{len(lost):,} {'gene is' if len(lost) == 1 else 'genes are'} expressed in fewer than {LEAST_EXPRESSING} cells, and left out: {names}"
        )
    return kept_sources, kept_targets, notes


# ------------------------------------------------------------------------------------------ networks
def _network(
    model: CellModel,
    cells: ContextCells,
    everything: ContextCells | None,
    sources: Integers,
    targets: Integers,
    request: Request,
    notes: Sequence[str],
    *,
    simulated: bool,
    on_progress: Listener,
) -> Network:
    effects = estimate_effects(
        model, cells, sources, targets, error=request.error, masked=request.masked,
        most_passes=request.most_passes, seed=request.seed, on_progress=on_progress,
    )  # fmt: skip
    directed = effects.weight
    if np.array_equal(sources, targets):
        effects = effects.of_both_directions()
    itself = sources[:, None] == targets
    pairs = np.ix_(sources, targets)

    def of_cells(
        some: ContextCells, names: Sequence[str], others: ContextCells | None
    ) -> dict[str, FloatArray]:
        pooled = None if others is None else measure_association(others, ["pearson"])["pearson"]
        found = measure_association(some, names, everything=pooled, on_progress=on_progress)
        return {name: np.where(itself, np.nan, one[pairs]) for name, one in found.items()}

    measures = {"model": effects.weight, "model_error": effects.error, "model_directed": directed}
    if effects.log_linear is not None:
        measures["log_linear"] = effects.log_linear
        measures["encoder"] = effects.weight - effects.log_linear
    measures |= of_cells(cells, request.measures, everything)
    evidence: dict[str, float] = {}
    margin = 0.0
    sides = cells.two_sides()
    if sides is not None:
        other = standardised_correlations(sides[1], sources, targets)
        margin = evidence_margin(other)
        compared = {"model": effects.weight}
        names = [name for name in QUICK_MEASURES if name in measures]
        compared |= of_cells(sides[0], names, _without(everything, sides[1]))
        evidence = {name: held_out_evidence(one, other) for name, one in compared.items()}
    default = "model"
    if not model.network.has_couplings and "pearson_shrunken" in measures:
        default = "pearson_shrunken"
    chosen = best_measure(evidence, margin, default) if request.weight == "auto" else request.weight
    shown = {name: one for name, one in measures.items() if name != "model_error"}
    scores: list[EdgeScore] = []
    if simulated:
        truth = edges_of_context(model, cells).take(pairs)
        signed = {"log_linear", "encoder", *SIGNED_MEASURES}
        scores = score_edges(shown, truth, signed)
    untested = np.full(itself.shape, np.nan)
    network = Network(
        context=cells.name,
        n_cells=len(cells),
        n_donors=cells.n_donors,
        genes=model.panel,
        sources=sources,
        targets=targets,
        measures=measures,
        chosen=chosen,
        default=default,
        p=untested,
        p_matched=untested,
        q=untested,
        relative_error=effects.relative_error,
        n_passes=effects.n_passes,
        stability=stability(effects.of_halves, n_strongest(itself.size)),
        evidence=evidence,
        margin=margin,
        scores=tuple(scores),
        known=tuple(
            score_known(shown, one, sources, targets, seed=request.seed) for one in request.known
        ),
        notes=tuple(notes),
    )
    return _with_weight(network, cells, chosen, request.seed)


def _with_weight(network: Network, cells: ContextCells, chosen: str, seed: int) -> Network:
    """Take a measure as the weight, and test it."""
    weight = network.measures[chosen]
    evidence = Evidence.of(cells, network.sources, network.targets, seed=seed)
    p = evidence.p_values(weight, is_signed=chosen in SIGNED_MEASURES)
    p_matched = matched_p_values(weight, cells, network.targets)
    q = q_values(np.maximum(p, p_matched))
    return replace(network, chosen=chosen, p=p, p_matched=p_matched, q=q)


def _without(everything: ContextCells | None, left_out: ContextCells) -> ContextCells | None:
    """Return all cells but those of some donors; without donors, those that the model was trained on."""
    if everything is None:
        return None
    is_out = np.isin(everything.donors, left_out.donors[left_out.donors >= 0])
    return everything.take(~is_out if is_out.any() else ~everything.held_out)


def _difference(
    contexts: Sequence[ContextCells], networks: Sequence[Network], request: Request
) -> Network:
    first, second = networks
    measures: dict[str, Any] = {
        name: first.measures[name] - second.measures[name]
        for name in first.measures
        if name != "model_error"
    }
    measures["model_error"] = np.hypot(
        first.measures["model_error"], second.measures["model_error"]
    )
    weight = measures[first.chosen]
    p = contrast_p_values(
        contexts[0], contexts[1], weight, first.sources, first.targets, seed=request.seed
    )
    both = replace(contexts[0], expression=stacked(contexts))
    p_matched = matched_p_values(weight, both, first.targets)
    return replace(
        first,
        context=f"{first.context} - {second.context}",
        n_cells=first.n_cells + second.n_cells,
        n_donors=len(set(_donors(contexts[0])) | set(_donors(contexts[1]))),
        measures=measures,
        p=p,
        p_matched=p_matched,
        q=q_values(np.maximum(p, p_matched)),
        stability=float("nan"),
        evidence={},
        scores=(),
        known=(),
        notes=(),
    )


def _donors(cells: ContextCells) -> list[int]:
    return [donor for donor in np.unique(cells.donors).tolist() if donor >= 0]
