"""Genes of real cells set to other values, and the genes and phenotypes that respond in the model.

The genes that are set become known first, and every other gene is redrawn once, in a random order of each cell's
own, by two models of the cell (`core.inference.edited_cells`): one sees the cell as it is, the other the genes
that are set and those redrawn so far. A gene keeps its quantile, so that it moves only where the model's
distribution of it does. The phenotypes of a cell are shown meanwhile, and predicted again from all its genes
afterwards.

Control perturbations set genes of about the same detection rate and mean in the same way. What they do on average is
the systematic part of a response, which is taken off before a test (`core.interactions.responses`).

Redrawing everything, instead of a few sweeps over responding genes with the rest as it is, moves the genes of a programme by as
much as cells with and without the gene differ; sweeps move them by a third to a half of it (docs/perturb.md).

Shapes: B cells, G genes of the model, k genes that are set at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_filter import CellFilter
from core.cells.genes import GenePanel
from core.cells.store import Store
from core.encoding.panel_cells import PanelCells
from core.errors import ConfigurationError, DataError
from core.evaluation.predict import (
    Probabilities,
    batch_cells,
    join_probabilities,
    phenotype_probabilities,
    predict,
)
from core.inference.edited_cells import check_can_edit, edit_bins, values_of_bins
from core.interactions.cells import LEAST_EXPRESSING, ContextCells, FloatArray, Integers
from core.interactions.effects import bins_of, check_can_perturb
from core.interactions.request import gene_indices
from core.interactions.statistics import matching_distance
from core.model.folder import CellModel
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator

#: Cells that are redrawn at once.
_BLOCK = 128
#: Control perturbations, and the cells of each.
CONTROLS, _CONTROL_CELLS = 6, 48
#: Genes of nearest detection rate and mean that controls are drawn from.
_NEAREST = 24
#: Fraction of the training cells that express a gene whose bins an over-expressed gene has at least.
_HIGHEST = 0.05
#: Log-odds are those of probabilities that are this far from 0 and 1.
_LEAST_PROBABILITY = 1e-3
#: Steps of a redrawing, and parts of the panel after which the log-linear part sees the genes so far: more of them
#: change no result that we measured (benchmarks/interactions.md).
STEPS, _GENE_STEPS = 8, 32


@dataclass(frozen=True)
class Change:
    """What is done to cells; the genes of all three are set at once."""

    knock_out: Sequence[str] = ()
    over_express: Sequence[str] = ()
    #: Gene -> bin.
    set_gene: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SetGenes:
    """Genes of the model that are set: (k,) places, and the bins that they get."""

    genes: Integers
    bins: Integers
    #: What is done, as in "IL1B knocked out".
    text: str
    #: Symbols, joined by "+".
    label: str


@dataclass(frozen=True)
class PerturbedCells:
    """Cells before and after, (B, G) log1p counts per 10,000; and what the model predicts of both."""

    #: (B,), places among the cells of the context; (B, k), the genes that were set.
    at: Integers
    genes: Integers
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    #: Phenotype -> (B, values) probabilities, all phenotypes hidden.
    predicted_before: Probabilities
    predicted_after: Probabilities

    @property
    def shift(self) -> FloatArray:
        """(B, G) change of each gene."""
        return (self.after - self.before).astype(np.float64)

    @property
    def mean_response(self) -> FloatArray:
        """(G,) mean change, NaN of the genes that were set."""
        mean = self.shift.mean(axis=0)
        mean[np.unique(self.genes)] = np.nan
        return mean

    def probability_shift(self, name: str) -> FloatArray:
        """(values,) mean change of the probabilities of a phenotype."""
        change = self.predicted_after[name] - self.predicted_before[name]
        return change.mean(axis=0, dtype=np.float64)

    def log_odds_shift(self, name: str) -> FloatArray:
        """(B, values) change of the log-odds of each value of a phenotype."""
        return _log_odds(self.predicted_after[name]) - _log_odds(self.predicted_before[name])

    def take(self, some: NDArray[np.bool_]) -> "PerturbedCells":
        """Return some of the cells."""
        return PerturbedCells(
            self.at[some],
            self.genes[some],
            self.before[some],
            self.after[some],
            *(
                {name: one[some] for name, one in predicted.items()}
                for predicted in (self.predicted_before, self.predicted_after)
            ),
        )


def _log_odds(probability: NDArray[np.float32]) -> FloatArray:
    inside = probability.astype(np.float64) * (1 - 2 * _LEAST_PROBABILITY) + _LEAST_PROBABILITY
    found: FloatArray = np.log(inside) - np.log1p(-inside)
    return found


# ---------------------------------------------------------------------------------------- requests
def check_model(model: CellModel) -> None:
    """Raise ConfigurationError for a model whose cells cannot be perturbed."""
    check_can_perturb(model)
    check_can_edit(model)


def genes_to_set(
    model: CellModel, store: Store | None, change: Change, cells: ContextCells
) -> SetGenes:
    """Find the genes and bins of a change.

    ConfigurationError for an unknown gene, one that is named twice, or a bin that the model lacks; DataError for a
    gene that the cells lack, or that has its value already in nearly all of them.
    """
    panel, n_bins = model.panel, model.config.n_bins
    genes, bins, texts = [], [], []
    options = (
        ("--knock-out", dict.fromkeys(change.knock_out, 0)),
        ("--over-express", dict.fromkeys(change.over_express, -1)),
        ("--set-gene", change.set_gene),
    )
    for option, wanted in options:
        for name, of_option in wanted.items():
            gene = int(gene_indices(panel, store, [name], option)[0])
            symbol, new = panel.symbols[gene], of_option
            if gene in genes:
                raise ConfigurationError(f"{option} {name}: this gene is set already; name it once")
            if option == "--over-express":
                new = highest_bin(model, gene)
                texts.append(f"{symbol} over-expressed (bin {new})")
            elif option == "--knock-out":
                texts.append(f"{symbol} knocked out")
            elif not 0 <= new < n_bins:
                raise ConfigurationError(
                    f"{option} {name}={new}: the bins of this model are 0 (not expressed) to {n_bins - 1}"
                )
            else:
                texts.append(f"{symbol} set to bin {new}")
            if cells.missing[gene]:
                raise DataError(
                    f"{option} {name}: the file has no gene {symbol}; choose a gene that it has"
                )
            genes.append(gene)
            bins.append(new)
    if not genes:
        raise ConfigurationError("name what to change, as in --knock-out IL1B")
    found = SetGenes(
        np.array(genes, dtype=np.int64),
        np.array(bins, dtype=np.int64),
        ", ".join(texts),
        "+".join(panel.symbols[gene] for gene in genes),
    )
    _check_changes(panel, cells, bins_of(model, cells), found)
    return found


def _check_changes(
    panel: GenePanel, cells: ContextCells, bins: NDArray[np.uint8], wanted: SetGenes
) -> None:
    """Refuse a gene that only few cells have another value of."""
    for gene, new in zip(wanted.genes.tolist(), wanted.bins.tolist(), strict=True):
        n = int((bins[:, gene] != new).sum())
        if n >= LEAST_EXPRESSING:
            continue
        state = f"has bin {new} already in all but {n:,} of {len(cells):,} cells"
        if new == 0:
            state = f"is expressed in {n:,} of {len(cells):,} cells"
        if new == 0 and n == 0:
            state = f"is not expressed in any of {len(cells):,} cells"
        raise DataError(
            f"{cells.name}: {panel.symbols[gene]} {state}, and a perturbation needs "
            f"{LEAST_EXPRESSING} cells that it changes; choose another gene, or a wider --where"
        )


def highest_bin(model: CellModel, gene: int) -> int:
    """Return the highest bin that a twentieth of the training cells that express a gene reach."""
    counts = model.reference.bin_counts[gene].astype(np.float64)
    expressing = counts[1:].sum()
    if expressing == 0:
        raise DataError(
            f"{model.panel.symbols[gene]} is not expressed in any training cell: the model knows nothing of "
            f"what it does; choose another gene"
        )
    reached = np.cumsum(counts[::-1])[::-1] >= _HIGHEST * expressing
    return max(int(np.flatnonzero(reached)[-1]), 1)


# ------------------------------------------------------------------------------------------- cells
def sample_cells(cells: ContextCells, among: Integers, n: int, seed: int) -> Integers:
    """Choose ``n`` of some cells, as evenly over donors as these have them, in ascending order.

    The same seed prefers the same cells, whichever there are.
    """
    if len(among) <= n:
        return among
    priority = generator(seed, Stream.PERTURBED_CELLS).permutation(len(cells))
    ordered = among[np.argsort(priority[among])]
    donors = cells.donors[ordered]
    order = np.argsort(donors, kind="stable")
    _, first, counts = np.unique(donors[order], return_index=True, return_counts=True)
    turn = np.empty(len(ordered), dtype=np.int64)
    turn[order] = np.arange(len(ordered)) - np.repeat(first, counts)
    return np.sort(ordered[np.argsort(turn, kind="stable")[:n]])


def perturb(
    model: CellModel,
    cells: ContextCells,
    at: Integers,
    genes: Integers,
    bins: Integers,
    *,
    steps: int = STEPS,
    seed: int = 0,
    stage: str = "perturbing cells",
    on_progress: Listener = ignore_progress,
) -> PerturbedCells:
    """Set (B, k) ``genes`` to ``bins`` in the cells ``at`` (B,) of a context, and redraw the others.

    A cell may come more than once. The same seed, cell and genes give the same result, whatever the other cells.
    """
    known = cells.take(at)
    old = known.expression.toarray()
    old_bins = bins_of(model, known).astype(np.int64)
    gene_steps = min(_GENE_STEPS, model.generate.gene_steps)
    settings = model.generate.model_copy(update={"steps": steps, "gene_steps": gene_steps})
    new = np.empty_like(old)
    on_progress(ProgressEvent(stage, 0, len(at)))
    for first in range(0, len(at), _BLOCK):
        rows = slice(first, first + _BLOCK)
        sizes = known.library_size[rows]
        new_bins = edit_bins(
            model,
            old_bins[rows],
            known.codes[rows],
            known.codes[rows],
            settings=settings,
            seed=seed,
            numbers=at[rows].tolist(),
            clamped=(genes[rows], bins[rows]),
            present=~cells.missing,
            library_size=sizes if sizes.any() else None,
        )
        rng = generator(seed, first, Stream.PERTURBED_VALUES)
        drawn = values_of_bins(model, new_bins, sizes, how="sample", rng=rng)
        set_values = np.take_along_axis(drawn, genes[rows], axis=1)
        set_values[bins[rows] == 0] = 0  # a faint value may be of bin 0, too
        np.put_along_axis(drawn, genes[rows], set_values, axis=1)
        new[rows] = np.where((new_bins != old_bins[rows]) & ~cells.missing, drawn, old[rows])
        on_progress(ProgressEvent(stage, min(rows.stop, len(at)), len(at)))
    return PerturbedCells(
        at,
        genes,
        old,
        new,
        predict_hidden(model, old, known.library_size, cells.missing),
        predict_hidden(model, new, known.library_size, cells.missing),
    )


def predict_hidden(
    model: CellModel,
    values: NDArray[np.float32],
    library_size: NDArray[np.float32],
    missing: NDArray[np.bool_],
) -> Probabilities:
    """Phenotype -> (B, values) probabilities of cells of (B, G) values, all phenotypes hidden."""
    names, size = list(model.config.phenotypes), batch_cells(model)
    if not names:
        return {}
    rng = generator(0, Stream.QUERY_GENES)
    batches = (
        model.batches.visible(
            PanelCells.of(
                sparse.csr_matrix(values[first : first + size]), library_size[first : first + size]
            ),
            np.zeros((len(values[first : first + size]), len(names)), dtype=np.int32),
            names,
            rng,
            missing=missing,
        )
        for first in range(0, len(values), size)
    )
    return join_probabilities(
        model, (phenotype_probabilities(model, one) for one in predict(model, batches))
    )


def changed_cells(bins: NDArray[np.uint8], wanted: SetGenes) -> Integers:
    """Return the cells that have another bin of a gene that is set."""
    return np.flatnonzero((bins[:, wanted.genes] != wanted.bins).any(axis=1))


def control_perturbations(
    model: CellModel, cells: ContextCells, bins: NDArray[np.uint8], wanted: SetGenes, *, seed: int
) -> list[tuple[Integers, Integers]]:
    """Return the genes, and their bins, of control perturbations: of about the same detection rate and mean.

    They are drawn from the nearest, so that they are not all of one programme. There are fewer than
    `CONTROLS` where few genes are expressed.
    """
    candidates = np.flatnonzero((bins > 0).sum(axis=0) >= LEAST_EXPRESSING)
    candidates = candidates[~np.isin(candidates, wanted.genes)]
    distance = matching_distance(cells.expression)
    rng = generator(seed, Stream.PERTURBED_CELLS)
    near = []
    for gene in wanted.genes.tolist():
        nearest = candidates[np.argsort(distance[gene, candidates], kind="stable")[:_NEAREST]]
        near.append(rng.permutation(nearest))
    sets = np.stack(near)[:, :CONTROLS].T  # (controls, k)
    return [_control(model, wanted, one) for one in sets if len(set(one)) == len(one)]


def _control(model: CellModel, wanted: SetGenes, genes: Integers) -> tuple[Integers, Integers]:
    is_highest = [
        bool(new) and new == highest_bin(model, gene)
        for gene, new in zip(wanted.genes.tolist(), wanted.bins.tolist(), strict=True)
    ]
    bins = [
        highest_bin(model, gene) if highest else new
        for gene, new, highest in zip(genes.tolist(), wanted.bins.tolist(), is_highest, strict=True)
    ]
    return genes.astype(np.int64), np.array(bins, dtype=np.int64)


def perturb_controls(
    model: CellModel,
    cells: ContextCells,
    bins: NDArray[np.uint8],
    controls: Sequence[tuple[Integers, Integers]],
    *,
    steps: int,
    seed: int,
    on_progress: Listener = ignore_progress,
) -> list[PerturbedCells]:
    """Perturb some of the cells that each control changes; one that changes too few is left out."""
    at, genes, new, place = [], [], [], []
    for number, (of_control, to) in enumerate(controls):
        changes = np.flatnonzero((bins[:, of_control] != to).any(axis=1))
        if len(changes) < LEAST_EXPRESSING:
            continue
        some = sample_cells(cells, changes, _CONTROL_CELLS, seed)
        at.append(some)
        genes.append(np.tile(of_control, (len(some), 1)))
        new.append(np.tile(to, (len(some), 1)))
        place.append(np.full(len(some), number))
    if not at:
        return []
    found = perturb(
        model, cells, np.concatenate(at), np.concatenate(genes), np.concatenate(new),
        steps=steps, seed=seed, stage="perturbing control genes", on_progress=on_progress,
    )  # fmt: skip
    number_of = np.concatenate(place)
    return [found.take(number_of == number) for number in np.unique(number_of)]


@dataclass(frozen=True)
class PerturbRequest:
    """What to do, in which cells; the defaults are those of the command."""

    change: Change
    where: CellFilter = field(default_factory=CellFilter)
    #: Cells of the context that are perturbed, at most.
    n_cells: int = 500
    steps: int = STEPS
    seed: int = 0
