"""What responds to a perturbation, tested over donors and beside matched genes.

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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.store import Store
from core.interactions.baselines import library_size_removed
from core.interactions.cells import LEAST_EXPRESSING, ContextCells, FloatArray, Integers, Reader
from core.interactions.effects import bins_of
from core.interactions.perturbation import (
    PerturbedCells,
    PerturbRequest,
    SetGenes,
    changed_cells,
    check_model,
    control_perturbations,
    genes_to_set,
    perturb,
    perturb_controls,
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
        q=q_values(larger_p(p_donors, p_matched)),
        correlation=linear,
        other_perturbations=others,
        phenotypes=_phenotype_shifts(model, changed, controls, donors),
        agreements=agreements,
        notes=tuple(notes),
    )


def larger_p(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the larger of two arrays of p-values, or the one that is known."""
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
    q = q_values(larger_p(both[:, 0], both[:, 1]))
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
