"""The screen: every gene is changed by itself, and ranked by its effect on a phenotype.

p over donors and beside matched genes are those of `core.interactions.responses`, of the change of the log-odds of one
value, less the median change over all genes.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from core.cells.cell_filter import CellFilter
from core.cells.spelling import match_label, suggest
from core.errors import ConfigurationError
from core.interactions.baselines import within
from core.interactions.cells import LEAST_EXPRESSING, ContextCells, Reader, group_codes
from core.interactions.effects import bins_of
from core.interactions.perturbation import (
    PerturbedCells,
    PerturbRequest,
    check_model,
    highest_bin,
    perturb,
    predict_hidden,
    sample_cells,
)
from core.interactions.responses import donor_p_values, larger_p
from core.interactions.result import FOUND
from core.interactions.statistics import matched_p_values, q_values
from core.model.folder import CellModel
from core.progress import Listener, ignore_progress

FloatArray = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Cells of each gene.
SCREEN_CELLS = 32


@dataclass(frozen=True)
class Screen:
    """The effect of every gene on the probability of one value of a phenotype; arrays are (genes,)."""

    cells: ContextCells
    phenotype: str
    value: str
    #: Knocked out, or over-expressed.
    is_knock_out: bool
    #: Places in the model's panel, the strongest effects first.
    genes: Integers
    n_cells: Integers
    n_donors: Integers
    #: Mean probability before, and its change; p are of the change of the log-odds.
    before: FloatArray
    shift: FloatArray
    p_donors: FloatArray
    p_matched: FloatArray
    q: FloatArray
    #: The shift when no other gene changes.
    alone: FloatArray
    #: Correlation of the gene with the value over all cells, within the other phenotypes; NaN where it cannot be had.
    correlation: FloatArray
    #: Genes that too few cells express.
    n_left_out: int
    notes: tuple[str, ...]

    @property
    def n_found(self) -> int:
        """Genes with q below `FOUND`."""
        return int((self.q < FOUND).sum())


def screen_genes(
    model: CellModel,
    read: Reader,
    target: tuple[str, str],
    request: PerturbRequest,
    *,
    over_express: bool = False,
    on_progress: Listener = ignore_progress,
) -> Screen:
    """Knock out (or over-express) every gene of the model by itself, and rank them by their effect on a phenotype.

    ``target`` is a phenotype and one of its values, as in ``("disease", "normal")``; of each gene at most
    `SCREEN_CELLS` cells that it changes are perturbed. ``request.change`` is not used. Raises as `perturb_cells`.
    """
    check_model(model)
    name, value, code = _checked_target(model, target)
    cells = read(request.where)
    bins = bins_of(model, cells)
    expressed = ((bins > 0).sum(axis=0) >= LEAST_EXPRESSING) & ~cells.missing
    genes = np.flatnonzero(expressed)
    new = np.array([highest_bin(model, gene) if over_express else 0 for gene in genes.tolist()])
    changes = [np.flatnonzero(bins[:, gene] != to) for gene, to in zip(genes, new, strict=True)]
    enough = np.array([len(one) >= LEAST_EXPRESSING for one in changes], dtype=bool)
    genes, new = genes[enough], new[enough]
    some = [
        sample_cells(cells, one, SCREEN_CELLS, request.seed)
        for one in changes
        if len(one) >= LEAST_EXPRESSING
    ]
    counts = np.array([len(one) for one in some])
    place = np.repeat(np.arange(len(genes)), counts)
    at = np.concatenate(some)
    found = perturb(
        model, cells, at, genes[place][:, None], new[place][:, None], steps=request.steps,
        seed=request.seed, stage="perturbing each gene", on_progress=on_progress,
    )  # fmt: skip
    shifts, donors = found.log_odds_shift(name)[:, code], cells.donors[at]
    mean = np.bincount(place, shifts) / counts
    usual = np.full(1, np.median(mean))  # what setting any gene does
    p_donors = np.array(
        [
            donor_p_values(shifts[place == one][:, None], donors[place == one], usual)[0]
            for one in range(len(genes))
        ]
    )
    every = np.full(len(model.panel), np.nan)
    every[genes] = mean
    p_matched = matched_p_values(every[None, genes], cells, genes)[0]
    only = _only_set(found, place, genes)
    predicted = predict_hidden(model, only, cells.library_size[at], cells.missing)
    alone = predicted[name][:, code] - found.predicted_before[name][:, code]
    before, after = (one[name][:, code] for one in (found.predicted_before, found.predicted_after))
    screen = Screen(
        cells=cells,
        phenotype=name,
        value=value,
        is_knock_out=not over_express,
        genes=genes,
        n_cells=counts,
        n_donors=np.array(
            [len(np.unique(donors[(place == one) & (donors >= 0)])) for one in range(len(genes))]
        ),
        before=np.bincount(place, before) / counts,
        shift=np.bincount(place, after - before) / counts,
        p_donors=p_donors,
        p_matched=p_matched,
        q=q_values(larger_p(p_donors, p_matched)),
        alone=np.bincount(place, alone) / counts,
        correlation=_correlation_with(model, read, name, code)[genes],
        n_left_out=len(model.panel) - len(genes),
        notes=(),
    )
    return _ordered(screen)


def _only_set(found: PerturbedCells, place: Integers, genes: Integers) -> NDArray[np.float32]:
    """(B, G) values in which nothing but the gene that is set has changed."""
    rows = np.arange(len(place))
    values = found.before.copy()
    values[rows, genes[place]] = found.after[rows, genes[place]]
    return values


def _checked_target(model: CellModel, target: tuple[str, str]) -> tuple[str, str, int]:
    name, value = target
    known = model.config.predicted
    text = f"--screen {name}={value}"
    if name not in known:
        raise ConfigurationError(
            f"{text}: the model has no phenotype '{name}'; {suggest(name, known)}"
        )
    values = model.config.phenotypes[name]
    found = match_label(value, values)
    if found is None:
        raise ConfigurationError(
            f"{text}: the model knows no {name} '{value}'; {suggest(value, values)}"
        )
    return name, str(found), list(values).index(str(found))


def _correlation_with(model: CellModel, read: Reader, name: str, code: int) -> FloatArray:
    """(G,) correlation of each gene with a value of a phenotype over all cells, within the other phenotypes."""
    cells = read(CellFilter())
    slot = list(model.config.phenotypes).index(name)
    known = cells.take(np.flatnonzero(cells.codes[:, slot] >= 0))
    rest = np.delete(known.codes, slot, axis=1)[:, ~np.delete(known.is_age, slot)]
    groups = group_codes(rest)
    label = within((known.codes[:, slot] == code)[:, None].astype(np.float64), groups)
    values = within(known.expression.toarray().astype(np.float64), groups)
    length = np.sqrt((values**2).sum(axis=0) * (label**2).sum())
    found: FloatArray = np.divide(
        (values * label).sum(axis=0),
        length,
        out=np.full(values.shape[1], np.nan),
        where=length > 1e-9,
    )
    return found


def _ordered(screen: Screen) -> Screen:
    order = np.lexsort((-np.abs(screen.shift), np.maximum(np.nan_to_num(screen.q, nan=1.0), 1e-6)))
    arrays = {
        one.name: getattr(screen, one.name)[order]
        for one in fields(screen)
        if isinstance(getattr(screen, one.name), np.ndarray)
    }
    return replace(screen, **arrays)
