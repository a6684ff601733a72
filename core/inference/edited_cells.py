"""A file of real cells with phenotypes set to other values, and genes that follow.

The output holds the model's genes that the file has: X the changed cells, ``layers["before"]`` the cells as
they were, both log1p counts per 10,000; obs as in the file, with the labels that were set. A gene whose bin
did not move keeps its value.

Genes are visited one after another, as in generation, by two models of the cell: one with the cell's own
phenotypes and its own genes so far, one with the phenotypes that are set and the changed genes so far. The
first gives the quantile of the cell's bin in its distribution; the second distribution, at the same
quantile, gives the changed bin. A gene whose distribution does not move keeps its bin, and a cell that has
the set phenotypes already does not change. (Abduction, action, prediction: Pearl's counterfactual, for an
autoregressive model.)

Shapes: B cells, G genes of the panel, n queried genes per cell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from core.cells.annotated_copy import write_whole
from core.cells.normalisation import count_scales, log_normalise
from core.encoding.values import CountLattice
from core.errors import ConfigurationError, MachineError
from core.evaluation.fidelity.measures import gene_means, pearson
from core.folders import writing_output
from core.generation.cell_generator import GENERATION_KEY, gene_table, model_facts
from core.generation.cell_sizes import lattice_counts
from core.generation.partial_cells import PartialCells
from core.generation.plan import CellPlan, StepPlan, plan_steps
from core.generation.request import FEW_CELLS, resolve_phenotypes
from core.inference.query_cells import (
    Hint,
    QueryCells,
    columns_by_phenotype,
    label_columns,
    read_hint,
)
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.model.losses import bin_logits
from core.presets.schema import GenerateSettings
from core.progress import Listener, ProgressEvent, ignore_progress
from core.random_streams import Stream, generator
from core.wording import cause

if TYPE_CHECKING:
    from anndata import AnnData

    from core.encoding.values import Decoding

_BLOCK = 256
#: Fewest cells of either side whose means are compared.
_LEAST_HALF = 10


@dataclass(frozen=True)
class GeneChange:
    """One gene: mean log1p values before and after, and the fraction of cells in which it moved."""

    gene: str
    before: float
    after: float
    change: float
    moved: float


@dataclass(frozen=True)
class EditedCells:
    """Changed cells.

    ``n_changed`` cells did not have the set values before; in these ``moved_per_cell`` genes moved on
    average. ``changes`` lists every gene, the largest absolute change of the mean first; ``notes`` are
    sentences that the user should read.
    """

    cells: "AnnData"
    n_changed: int
    moved_per_cell: float
    changes: tuple[GeneChange, ...]
    notes: list[str]
    #: (cells,), which did not have the set values; and the code of each cell's cell type, -1 where not known.
    is_changed: NDArray[np.bool_]
    cell_types: NDArray[np.int32]


@dataclass(frozen=True)
class RealChange:
    """Changed cells beside cells of the same file that really have the values, matched by cell type.

    ``real`` and ``model`` are (genes,) changes of the mean, taken from two halves of the cells before the
    change, so that no noise is common to both; ``r`` is their Pearson correlation. ``rows`` are the cells
    that have the values, one for each changed cell.
    """

    n_cells: int
    rows: NDArray[np.int64]
    real: NDArray[np.float64]
    model: NDArray[np.float64]
    r: float


def beside_real_change(edited: EditedCells) -> RealChange | None:
    """Compare the change with the cells of the file that have the values already; None if they are too few."""
    rng = np.random.default_rng(0)
    changed, partners = [], []
    treated = np.flatnonzero(~edited.is_changed)
    for code in np.unique(edited.cell_types[treated]):
        ours = np.flatnonzero(edited.is_changed & (edited.cell_types == code))
        theirs = treated[edited.cell_types[treated] == code]
        changed.append(ours)
        partners.append(rng.choice(theirs, len(ours)))
    rows = np.concatenate([np.empty(0, np.int64), *changed])
    beside = np.concatenate([np.empty(0, np.int64), *partners])
    n_treated = len(np.unique(beside))
    if min(len(rows) // 2, n_treated) < _LEAST_HALF:
        return None
    halves = rng.permutation(len(rows)) % 2 == 0
    before, after = edited.cells.layers["before"], edited.cells.X
    mean = {
        "treated": gene_means(before[beside]),
        "before": gene_means(before[rows[~halves]]),
        "own": gene_means(before[rows[halves]]),
        "after": gene_means(after[rows[halves]]),
    }
    real, model = mean["treated"] - mean["before"], mean["after"] - mean["own"]
    return RealChange(n_treated, beside, real, model, pearson(real, model))


def edit_cells(
    model: CellModel,
    query: QueryCells,
    values: Mapping[str, str],
    *,
    labels: Sequence[str] = (),
    settings: GenerateSettings,
    seed: int = 0,
    on_progress: Listener = ignore_progress,
) -> EditedCells:
    """Set phenotypes of the cells of a file: ``values`` is phenotype -> value.

    ``labels``, as "tissue=organ", name the obs columns of the cells' own phenotypes; `label_columns` are the
    default. ``settings`` are the steps, and whether moved bins become the mean of their values or one drawn from them.
    A model that cannot change cells, or knows no such phenotype or value, is a ConfigurationError; cells that
    do not fit the model, a DataError.
    """
    from anndata import AnnData  # 400 ms

    check_can_edit(model)
    wanted = resolve_phenotypes(model.config, values)
    hints, notes = _labels_of(
        model, query, wanted, columns_by_phenotype(labels, model.config.phenotypes)
    )
    codes = np.full((query.n_cells, len(model.config.phenotypes)), -1, dtype=np.int32)
    for hint in hints:
        codes[:, hint.slot] = hint.codes
    new_codes = codes.copy()
    for slot, code in wanted.items():
        new_codes[:, slot] = code
    differs = (codes != new_codes).any(axis=1)
    phenotypes = list(model.config.phenotypes.items())
    for slot, code in wanted.items():
        name, labels = phenotypes[slot]
        if code >= 0 and (n := model.reference.n_cells({slot: code})) < FEW_CELLS:
            notes.append(f"only {n:,} training cells have {name} = {labels[code]}")
    present = ~query.missing
    before, after, moved = [], [], np.zeros(len(present))
    how: Decoding = "mean" if settings.decode == "mean" else "sample"
    for first, expression, sizes in query.blocks(_BLOCK, sized=model.config.library_size):
        rows = slice(first, first + expression.shape[0])
        old = expression.toarray()
        bins = model.values.encode(old)
        new_bins = edit_bins(
            model,
            bins,
            codes[rows],
            new_codes[rows],
            settings=settings,
            seed=seed,
            first_cell=first,
            present=present,
            library_size=sizes if sizes.any() else None,
        )
        has_moved = (new_bins != bins) & present & differs[rows, None]
        rng = generator(seed, first, Stream.EDITED_VALUES)
        new = np.where(has_moved, values_of_bins(model, new_bins, sizes, how=how, rng=rng), old)
        moved += has_moved.sum(axis=0)
        before.append(sparse.csr_matrix(old[:, present]))
        after.append(sparse.csr_matrix(new[:, present]))
        on_progress(ProgressEvent("changing cells", rows.stop, query.n_cells))
    was, now = sparse.vstack(before, format="csr"), sparse.vstack(after, format="csr")
    obs = query.source.obs.copy()
    columns = {hint.slot: hint.column for hint in hints}
    for slot, code in wanted.items():
        name, labels = phenotypes[slot]
        # A phenotype without a column in the file gets a new one.
        label = pd.Categorical.from_codes([code] * query.n_cells, pd.Index(labels))
        obs[columns.get(slot, f"tfx_{name}")] = label.remove_unused_categories()
    obs["synthetic"] = differs
    var = gene_table(model.panel)[present]
    facts = {
        "synthetic": True,
        "edited_from": query.source.name,
        "set": dict(values),
        "values": "log1p of counts per 10,000; genes that did not move keep their value",
        "seed": seed,
        "steps": settings.steps,
        **model_facts(model),
        "notes": notes,
    }
    n_changed = int(differs.sum())
    return EditedCells(
        cells=AnnData(X=now, obs=obs, var=var, layers={"before": was}, uns={GENERATION_KEY: facts}),
        n_changed=n_changed,
        moved_per_cell=float(moved.sum() / max(n_changed, 1)),
        changes=_changes(list(var["gene_symbol"]), was, now, moved[present] / max(n_changed, 1)),
        notes=notes,
        is_changed=differs,
        cell_types=_cell_types(model, codes),
    )


def _cell_types(model: CellModel, codes: NDArray[np.int32]) -> NDArray[np.int32]:
    names = list(model.config.phenotypes)
    if "cell_type" not in names:
        return np.zeros(len(codes), np.int32)
    return codes[:, names.index("cell_type")]


def values_of_bins(
    model: CellModel,
    bins: NDArray[np.int64],
    sizes: NDArray[np.float32],
    *,
    how: "Decoding",
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Turn (B, G) bins into log1p counts per 10,000, of whole counts for a model that reads library sizes.

    ``sizes`` (B,) are these library sizes, 0 where not known.
    """
    drawn = model.table.decode(bins, how=how, rng=rng)
    if model.config.library_size and model.config.kind == "binned" and sizes.any():
        lattice = CountLattice.of(model.values, sizes)
        for cell in np.flatnonzero(sizes > 0).tolist():
            counts = lattice_counts(lattice, cell, bins[cell], drawn[cell], rng)
            drawn[cell] = log_normalise(counts, count_scales(sizes[cell]))
    return drawn


def write_edited(cells: "AnnData", path: Path) -> None:
    """Write an .h5ad file whole; if it cannot be written, an older one stays, and MachineError is raised."""
    try:
        with writing_output(path) as temporary:
            write_whole(cells, temporary, compression="gzip")
    except (OSError, RuntimeError) as error:  # of h5py
        raise MachineError(f"{path} cannot be written ({cause(error)}); make room") from error


def _labels_of(
    model: CellModel, query: QueryCells, wanted: Mapping[int, int], named: Mapping[str, str]
) -> tuple[list[Hint], list[str]]:
    """Read the file's labels of every phenotype of the model; the notes name missing ones."""
    hints, notes = [], []
    present = query.source.obs_columns([]).attrs["columns"]
    for slot, name in enumerate(model.config.phenotypes):
        if name not in named and not set(label_columns(model, name)) & set(present):
            state = "is taken for not specified before" if slot in wanted else "stays so"
            notes.append(f"the file has no labels of the {name} of its cells, which {state}")
            continue
        hint = read_hint(query.source, model, named.get(name, name))
        hints.append(hint)
        n_unknown = int((hint.codes < 0).sum())
        if n_unknown:
            notes.append(f"{name}: {n_unknown:,} cells have a label that the model does not know")
    return hints, notes


def _changes(
    genes: list[str], was: sparse.csr_matrix, now: sparse.csr_matrix, moved: NDArray[Any]
) -> tuple[GeneChange, ...]:
    before, after = gene_means(was), gene_means(now)
    change = after - before
    return tuple(
        GeneChange(genes[gene], *(float(column[gene]) for column in (before, after, change, moved)))
        for gene in np.argsort(-np.abs(change), kind="stable")
    )


def check_can_edit(model: CellModel) -> None:
    """Raise a `ConfigurationError` unless the model is of the ranked layout, with bins and a variable mask rate."""
    if model.config.layout != "ranked" or model.config.kind == "continuous":
        raise ConfigurationError(
            "cells are changed by models of the ranked layout with bins; train one with "
            "encoding.layout = 'ranked' and encoding.kind = 'binned'"
        )
    if model.masking.genes != "uniform":
        raise ConfigurationError(
            f"this model was trained with a fixed mask rate ({model.masking.genes}), and changing cells "
            f"needs one trained at all mask rates; train with masking.genes = 'uniform'"
        )


@torch.inference_mode()
def edit_bins(
    model: CellModel,
    bins: NDArray[np.integer],
    codes: NDArray[np.int32],
    new_codes: NDArray[np.int32],
    *,
    settings: GenerateSettings,
    seed: int,
    first_cell: int = 0,
    numbers: Sequence[int] | None = None,
    clamped: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    present: NDArray[np.bool_] | None = None,
    library_size: NDArray[np.float32] | None = None,
) -> NDArray[np.int64]:
    """Change the phenotypes of cells, or some of their genes, and the other genes with them.

    ``bins`` (B, G) are the cells as they are, ``codes`` and ``new_codes`` (B, phenotypes) their phenotypes
    as they are and as they are set, -1 where not specified. ``clamped`` are (B, k) genes that are set, which
    the cells have, and their (B, k) bins: they are the first that become known. Cell i of a seed, counted
    from ``first_cell`` or one of ``numbers`` (B,), is the same whatever the cells beside it. ``present`` (G,)
    are the genes that the cells have; the others stay hidden and 0. ``library_size`` (B,), None where not known,
    is for a model that reads it. Returns (B, G) bins.
    """
    is_free = np.ones(bins.shape, bool) if present is None else np.tile(present, (len(bins), 1))
    if clamped is not None:
        np.put_along_axis(is_free, clamped[0], values=False, axis=1)
    here = np.nonzero(is_free)[1].reshape(len(bins), -1)
    within = plan_steps(settings, here.shape[1], fixed_rate=None)
    cells = range(first_cell, first_cell + len(bins)) if numbers is None else numbers
    drawn = CellPlan.draw(seed, cells, within, needs_normal=False)
    steps = StepPlan(bins.shape[1], within.sizes)
    order = np.take_along_axis(here, drawn.genes, axis=1)
    plan = CellPlan(steps, order, drawn.uniform, drawn.normal, state=None)
    unguided = settings.model_copy(update={"guidance": 0.0})
    lattice = None
    if model.config.library_size and library_size is not None:
        lattice = CountLattice.of(model.values, library_size)
    before, after = (
        PartialCells(model, of, unguided, plan, None, lattice) for of in (codes, new_codes)
    )
    known = torch.from_numpy(bins.astype(np.int64))
    changed = torch.zeros_like(known)
    uniform = torch.from_numpy(plan.uniform)
    if clamped is not None:
        device = next(model.network.parameters()).device
        set_genes, set_bins = (torch.from_numpy(one) for one in clamped)
        before.reveal(set_genes.to(device), known.gather(1, set_genes).to(device))
        after.reveal(set_genes.to(device), set_bins.to(device))
        changed.scatter_(1, set_genes, set_bins)
    for step in range(len(steps.sizes)):
        pairs = zip(before.logits_of_step(step), after.logits_of_step(step), strict=True)
        for (genes, at, logits), (_, _, new_logits) in pairs:
            old = known.to(genes.device).gather(1, genes)
            quantile = _quantile_of(logits, old, uniform[:, at].to(genes.device), model.config)
            new = _bin_at(new_logits, quantile, model.config)
            before.reveal(genes, old)
            after.reveal(genes, new)
            changed.scatter_(1, genes.cpu(), new.cpu())
    return changed.numpy()


def _cumulative(logits: Tensor, config: TfxConfig) -> Tensor:
    """(B, n, bins) distribution function, its last entry exactly 1."""
    flat = bin_logits(logits.flatten(0, 1), config).double()
    cumulative = torch.softmax(flat, dim=-1).cumsum(-1)
    return (cumulative / cumulative[:, -1:]).view(*logits.shape[:2], -1)


def _quantile_of(logits: Tensor, bins: Tensor, uniform: Tensor, config: TfxConfig) -> Tensor:
    """(B, n) quantile of each bin in its distribution, drawn evenly within the bin."""
    cumulative = _cumulative(logits, config)
    above = cumulative.gather(-1, bins.unsqueeze(-1)).squeeze(-1)
    below = cumulative.gather(-1, (bins - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    below = torch.where(bins > 0, below, torch.zeros_like(below))
    return below + uniform.double().clamp(1e-6, 1 - 1e-6) * (above - below)


def _bin_at(logits: Tensor, quantile: Tensor, config: TfxConfig) -> Tensor:
    """(B, n) the bin at a quantile of the distribution."""
    cumulative = _cumulative(logits, config)
    return (quantile.unsqueeze(-1) >= cumulative[..., :-1]).sum(-1)
