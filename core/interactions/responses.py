"""What responds to a perturbation, tested over donors and beside matched genes; and the screen of all genes.

The response of a gene is its mean change in the cells that the perturbation changes. It is tested twice, as it is and less
the median response to the control perturbations (the systematic part); the larger p counts. p over donors: a t-test of the donors' means, so that a donor counts
once, however many cells it has. p_matched: the response among those of the 40 genes of nearest detection rate
and mean, normal with robust moments. q is that of the larger of both (Benjamini and Hochberg 1995).

Simple predictions stand beside the model's: no change; the regression of each gene on those that are set, within
class (correlation); and the mean of the control perturbations. Where the context has cells of other donors, each is
compared with how cells that have the set value differ from the others in nature: an association, as the model's is.

Shapes: B changed cells, G genes of the model, k genes that are set, D donors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.cell_filter import CellFilter
from core.cells.spelling import match_label, suggest
from core.cells.store import Store
from core.errors import ConfigurationError
from core.interactions.baselines import library_size_removed, within
from core.interactions.cells import (
    LEAST_EXPRESSING,
    ContextCells,
    FloatArray,
    Integers,
    Reader,
    group_codes,
)
from core.interactions.effects import bins_of
from core.interactions.perturbation import (
    PerturbedCells,
    PerturbRequest,
    SetGenes,
    changed_cells,
    check_model,
    control_perturbations,
    genes_to_set,
    highest_bin,
    perturb,
    perturb_controls,
    predict_hidden,
    sample_cells,
)
from core.interactions.result import FOUND
from core.interactions.statistics import matched_p_values, q_values
from core.model.folder import CellModel
from core.progress import Listener, ignore_progress

Mask = NDArray[np.bool_]

#: Cells of a donor whose mean is a point of the test, where enough donors have them.
_LEAST_OF_DONOR = 3
#: Mean probability below which, before and after, a phenotype's value is not tested.
_LEAST_PROBABILITY = 0.005
#: Cells of each gene in a screen.
SCREEN_CELLS = 32


@dataclass(frozen=True)
class PhenotypeShift:
    """Mean probability of one value before and after, in the cells that were changed."""

    phenotype: str
    value: str
    before: float
    after: float
    shift: float
    #: The mean shift in control perturbations.
    controls: float
    #: Of the log-odds, over donors, and among the control perturbations; q of the larger.
    p_donors: float
    p_matched: float
    q: float


@dataclass(frozen=True)
class Agreement:
    """How a prediction compares with the difference that cells of other donors show in nature, over genes."""

    prediction: str
    #: Pearson correlation, NaN where the prediction is constant.
    correlation: float
    #: Squared error over that of no change.
    relative_error: float


@dataclass(frozen=True)
class Perturbation:
    """Perturbed cells, and what responds; arrays are (G,), NaN where a gene is set or the cells lack it."""

    cells: ContextCells
    wanted: SetGenes
    #: (cells,), the perturbed ones: those that the change leaves as they are, too.
    at: Integers
    #: (cells, G) values after.
    after: sparse.csr_matrix
    changed: PerturbedCells
    n_donors: int
    n_controls: int
    before_mean: FloatArray
    after_mean: FloatArray
    #: Mean change, and fraction of the cells in which the gene moved.
    shift: FloatArray
    moved: FloatArray
    p_donors: FloatArray
    p_matched: FloatArray
    q: FloatArray
    #: Predictions of simple methods.
    correlation: FloatArray
    other_perturbations: FloatArray
    phenotypes: tuple[PhenotypeShift, ...]
    agreements: tuple[Agreement, ...]
    notes: tuple[str, ...]

    @property
    def n_found(self) -> int:
        """Genes with q below `FOUND`."""
        return int((self.q < FOUND).sum())

    def order(self) -> Integers:
        """Return the genes by q and size of the shift, those without a test last."""
        size = np.nan_to_num(np.abs(self.shift), nan=-1.0)
        return np.lexsort((-size, np.where(np.isnan(self.q), 2.0, np.maximum(self.q, 1e-6))))


def perturb_cells(
    model: CellModel,
    read: Reader,
    request: PerturbRequest,
    *,
    store: Store | None = None,
    on_progress: Listener = ignore_progress,
) -> Perturbation:
    """Perturb the cells of a context and test what responds.

    ``read`` gives the cells of a filter; ``store`` knows genes that the model lacks, for messages.

    Raises
    ------
    ConfigurationError
        The model's cells cannot be perturbed, or it lacks a gene, bin, phenotype or value of the request.
    DataError
        The context has too few cells or donors, or the change concerns too few of them.
    """
    check_model(model)
    cells = read(request.where)
    wanted = genes_to_set(model, store, request.change, cells)
    bins = bins_of(model, cells)
    at = sample_cells(cells, np.arange(len(cells)), request.n_cells, request.seed)
    among = changed_cells(bins, wanted)
    is_changed = np.isin(at, among)
    if is_changed.sum() < LEAST_EXPRESSING:  # of a rare gene: those that express it take part
        more = sample_cells(cells, among, request.n_cells // 2, request.seed)
        at = np.union1d(at[: request.n_cells - len(more)], more)
        is_changed = np.isin(at, among)
    n, k = int(is_changed.sum()), len(wanted.genes)
    changed = perturb(
        model, cells, at[is_changed],
        np.broadcast_to(wanted.genes, (n, k)).copy(), np.broadcast_to(wanted.bins, (n, k)).copy(),
        steps=request.steps, seed=request.seed, on_progress=on_progress,
    )  # fmt: skip
    controls = perturb_controls(
        model, cells, bins, control_perturbations(model, cells, bins, wanted, seed=request.seed),
        steps=request.steps, seed=request.seed, on_progress=on_progress,
    )  # fmt: skip
    after = cells.expression[at].toarray()
    after[is_changed] = changed.after
    return _tested(model, cells, wanted, at, sparse.csr_matrix(after), changed, controls)


def _tested(
    model: CellModel,
    cells: ContextCells,
    wanted: SetGenes,
    at: Integers,
    after: sparse.csr_matrix,
    changed: PerturbedCells,
    controls: Sequence[PerturbedCells],
) -> Perturbation:
    is_tested = ~cells.missing
    is_tested[wanted.genes] = False
    shifts, donors = changed.shift, cells.donors[changed.at]
    responses = np.stack([one.mean_response for one in controls] or [np.zeros(shifts.shape[1])])
    usual = np.nan_to_num(np.nanmedian(responses, axis=0))
    measured = np.where(is_tested, shifts.mean(axis=0), np.nan)
    excess = measured - usual
    genes = np.arange(len(is_tested))
    p_donors, p_matched = (
        np.where(np.isnan(measured) | (measured * excess > 0), np.maximum(one, other), 1.0)
        for one, other in (
            [donor_p_values(shifts, donors, expected) for expected in (0 * usual, usual)],
            [matched_p_values(one[None], cells, genes)[0] for one in (measured, excess)],
        )
    )
    p_donors = np.where(is_tested, p_donors, np.nan)
    notes = []
    n_donors = len(np.unique(donors[donors >= 0]))
    if n_donors < 2:
        p_donors[:] = np.nan
        notes.append(
            "the donors of the cells are not known: q is of the matched null alone, and says nothing of other donors"
        )
    if len(controls) < 2:
        notes.append("too few genes are expressed for control perturbations")
    others = np.where(is_tested, np.nan_to_num(np.nanmean(responses, axis=0)), np.nan)
    linear = np.where(is_tested, regression_shift(cells, wanted.genes, shifts), np.nan)
    agreements, note = _agreements(model, cells, wanted, shifts, measured, others)
    notes += [note] if note else []
    known = ~cells.missing
    return Perturbation(
        cells=cells,
        wanted=wanted,
        at=at,
        after=after,
        changed=changed,
        n_donors=n_donors,
        n_controls=len(controls),
        before_mean=np.where(known, changed.before.mean(axis=0), np.nan),
        after_mean=np.where(known, changed.after.mean(axis=0), np.nan),
        shift=np.where(known, shifts.mean(axis=0), np.nan),
        moved=np.where(known, (changed.after != changed.before).mean(axis=0), np.nan),
        p_donors=p_donors,
        p_matched=p_matched,
        q=q_values(_larger(p_donors, p_matched)),
        correlation=linear,
        other_perturbations=others,
        phenotypes=_phenotype_shifts(model, changed, controls, donors),
        agreements=agreements,
        notes=tuple(notes),
    )


def _larger(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the larger of two p-values, or the one that is known."""
    found: FloatArray = np.fmax(first, second)
    return found


def donor_p_values(values: FloatArray, donors: Integers, expected: FloatArray) -> FloatArray:
    """(n,) p-values of a t-test over donors, that the means of (B, n) values are the expected ones.

    Donors with fewer than three cells take no part where two others are left; NaN with fewer than two donors.
    """
    from scipy.stats import t  # 200 ms

    names, counts = np.unique(donors[donors >= 0], return_counts=True)
    if (counts >= _LEAST_OF_DONOR).sum() >= 2:
        names = names[counts >= _LEAST_OF_DONOR]
    if len(names) < 2:
        return np.full(values.shape[1], np.nan)
    means = np.stack([values[donors == name].mean(axis=0) for name in names]) - expected
    error = means.std(axis=0, ddof=1) / np.sqrt(len(names))
    middle = np.abs(means.mean(axis=0))
    statistic = np.divide(middle, error, out=np.zeros_like(middle), where=error > 1e-12)
    p: FloatArray = 2 * t.sf(statistic, len(names) - 1)
    return p


def regression_shift(cells: ContextCells, genes: Integers, shifts: FloatArray) -> FloatArray:
    """(G,) shifts that a regression on the genes that are set expects of their own mean change.

    It is within class, library size removed.
    """
    values = cells.expression.toarray().astype(np.float64)
    values = library_size_removed(values, cells, cells.classes)
    slopes = np.linalg.lstsq(values[:, genes], values, rcond=None)[0]
    found: FloatArray = shifts[:, genes].mean(axis=0) @ slopes
    return found


def _agreements(
    model: CellModel,
    cells: ContextCells,
    wanted: SetGenes,
    shifts: FloatArray,
    measured: FloatArray,
    others: FloatArray,
) -> tuple[tuple[Agreement, ...], str]:
    """Compare predictions with the difference of cells with and without the set value in other donors."""
    if len(wanted.genes) > 1:
        return (), ""
    sides = cells.two_sides()
    too_few = (
        "too few cells of other donors have and lack the set value to compare predictions with"
    )
    if sides is None:
        return (), too_few
    mine, other = sides
    has = bins_of(model, other)[:, wanted.genes[0]] == wanted.bins[0]
    if min(has.sum(), (~has).sum()) < LEAST_EXPRESSING:
        return (), too_few
    values = library_size_removed(
        other.expression.toarray().astype(np.float64), other, other.classes
    )
    natural = values[has].mean(axis=0) - values[~has].mean(axis=0)
    used = ~np.isnan(measured)
    natural = natural[used]
    predictions = {
        "the model": measured[used],
        "correlation": regression_shift(mine, wanted.genes, shifts)[used],
        "mean of other perturbations": others[used],
        "no change": np.zeros(int(used.sum())),
    }
    total = float((natural**2).sum())
    found = []
    for name, one in predictions.items():
        varies = one.std() > 1e-12 and natural.std() > 1e-12
        r = float(np.corrcoef(one, natural)[0, 1]) if varies else float("nan")
        error = float(((one - natural) ** 2).sum()) / max(total, 1e-12)
        found.append(Agreement(name, r, error))
    return tuple(found), ""


def _phenotype_shifts(
    model: CellModel, changed: PerturbedCells, controls: Sequence[PerturbedCells], donors: Integers
) -> tuple[PhenotypeShift, ...]:
    """Test every value of every phenotype, the largest shifts first."""
    rows, p_values = [], []
    for name in changed.predicted_before:
        shift = changed.log_odds_shift(name)
        of_controls = [one.log_odds_shift(name).mean(axis=0) for one in controls]
        expected = np.median(of_controls, axis=0) if of_controls else np.zeros(shift.shape[1])
        usual = np.zeros(shift.shape[1])
        if controls:
            usual = np.mean([one.probability_shift(name) for one in controls], axis=0)
        p_donors = donor_p_values(shift, donors, expected)
        p_matched = _among_controls(shift.mean(axis=0), of_controls)
        before = changed.predicted_before[name].mean(axis=0)
        after = before + changed.probability_shift(name)
        for code, value in enumerate(model.config.phenotypes[name]):
            if max(before[code], after[code]) < _LEAST_PROBABILITY:
                continue
            rows.append((name, value, before[code], after[code], usual[code]))
            p_values.append((p_donors[code], p_matched[code]))
    if not rows:
        return ()
    both = np.array(p_values)
    q = q_values(_larger(both[:, 0], both[:, 1]))
    shifts = [
        PhenotypeShift(
            name, value, float(before), float(after), float(after - before), float(expected),
            float(p[0]), float(p[1]), float(one),
        )
        for (name, value, before, after, expected), p, one in zip(rows, both, q, strict=True)
    ]  # fmt: skip
    return tuple(sorted(shifts, key=lambda one: -abs(one.shift)))


def _among_controls(shift: FloatArray, controls: Sequence[FloatArray]) -> FloatArray:
    """(n,) p-values of shifts as one more control perturbation."""
    from scipy.stats import t  # 200 ms

    if len(controls) < 2:
        return np.full(len(shift), np.nan)
    known, n = np.stack(controls), len(controls)
    error = known.std(axis=0, ddof=1) * np.sqrt(1 + 1 / n)
    distance = np.abs(shift - known.mean(axis=0))
    statistic = np.divide(distance, error, out=np.zeros_like(distance), where=error > 1e-12)
    p: FloatArray = 2 * t.sf(statistic, n - 1)
    return p


# ------------------------------------------------------------------------------------------ screens
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
        q=q_values(_larger(p_donors, p_matched)),
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
