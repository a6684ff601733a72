"""On which scale values are: counts, or what a normalisation and a logarithm made of counts.

Whatever the counts of a cell were multiplied by, they are whole multiples of one unit as soon as the
logarithm is undone: the smallest value of a cell is the unit, or a small multiple of it. A wrong base
or a missing logarithm breaks this rule, so that it finds the scale without a header, and also where
genes were removed afterwards. With the unit u of each cell and the total T that cells were normalised
to, T / u is the library size: a whole number in all cells for the right T alone.

Where values are not made of whole counts (corrected counts, TPM), the sums of the cells decide.
Arrays: V values of C cells, cell after cell, as in CSR; the values of cell i are those from
``indptr[i]`` to ``indptr[i + 1]``.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.normalisation import TARGET_SUM

Floats = NDArray[np.float64]

#: Values this near to a whole number are one that was rounded, as 2.9999998.
NEARLY_WHOLE = 1e-3
#: Sums that vary less than this (relative) come from normalisation, not from cells; genes that
#: were removed because hardly any cell has them change sums by less, too.
_CONSTANT = 0.01
#: Sums of all genes vary by rounding alone.
_EXACTLY_CONSTANT = 2e-4
#: Larger linear values are neither counts nor normalised ones.
_LARGEST = 2e7
#: Totals of single cells agree to this (relative), also where values have three decimal places.
_SAME_TOTAL = 2e-3
#: Relative rounding errors of the values, and of the arithmetic of float32 that made them.
_FLOAT32, _FLOAT16, _ARITHMETIC = 1e-7, 5e-4, 3e-7
#: The smallest value of a cell is up to this many units.
_MOST_UNITS = 6
#: A ratio is compared with whole numbers where its error is smaller than this.
_SURE = 0.05
#: Of the cells that can be tested, at least this fraction must be whole multiples of a unit.
_MOST_CELLS = 0.97
#: Fraction of the cells whose library size must be sure before a total is believed.
_MOST_SURE = 0.8
#: Decimal digits of evidence: chance gives less.
_DIGITS = 6.0
#: Totals that tools normalise to, tried before every other; each stands for its divisors, too.
_USUAL_TOTALS = (1e4, 1e6)
#: Largest total that is searched: that of the median cell (scanpy's default).
_LARGEST_TOTAL = 200_000
#: A cell of fewer values may be all whole numbers by chance.
_ENOUGH_VALUES = 5
#: Several totals in one matrix: each has at least this many of the sampled cells.
_CELLS_PER_TOTAL = 5


class Transform(StrEnum):
    """What was done to linear values last; the value is how a message names it."""

    NONE = ""
    LN = "log1p"
    LOG2 = "log2(1 + x)"
    LOG10 = "log10(1 + x)"
    LN_TWICE = "log1p of log1p"
    LN_LOG2 = "log1p of log2(1 + x)"
    SQRT = "square root"


_BASES = {Transform.LOG2: 2.0, Transform.LN_LOG2: 2.0, Transform.LOG10: 10.0}


@dataclass(frozen=True)
class ValueScale:
    """How values become counts, or log1p of counts per 10,000."""

    transform: Transform = Transform.NONE
    #: Counts are linear values ("one"), or those divided by a unit of each cell's own; None: values
    #: are not made of whole counts, or nothing shows it.
    unit: Literal["one", "cell"] | None = None
    #: What the linear values of a cell add up to over all genes; None: to a number of its own.
    total: float | None = None
    #: Whether the values of the cells do add up to `total`, so that no gene was removed.
    is_complete: bool = False
    #: Whether values are surely not made of whole counts.
    is_fractional: bool = False
    #: Whether values are counts but for rounding errors, as 2.9999998.
    is_near: bool = False

    @property
    def is_counts(self) -> bool:
        """Whether values are counts already, or after rounding."""
        return self.unit == "one" and self.transform == Transform.NONE

    @property
    def is_log(self) -> bool:
        """Whether values are logarithms."""
        return self.transform not in {Transform.NONE, Transform.SQRT}

    @property
    def has_totals(self) -> bool:
        """Whether the normalised counts of a cell, over all genes, have a known sum."""
        return self.total is not None or self.is_complete

    @property
    def is_plain_log(self) -> bool:
        """Whether values are log1p of counts per 10,000 already."""
        if self.transform != Transform.LN or self.total is None:
            return False
        return abs(self.total / TARGET_SUM - 1) <= _CONSTANT

    @property
    def is_like_tpm(self) -> bool:
        """Whether values may be divided by the lengths of genes: a million per cell, no counts."""
        return self.is_fractional and self.total in {1e5, 1e6}

    def describe(self) -> str:
        """Return the values in words, as in "log2(1 + x) of counts per 10,000"."""
        if self.is_counts:
            return "nearly whole counts" if self.is_near else "counts"
        if self.unit == "one":
            what = "raw counts"
        elif self.is_like_tpm:
            what = f"TPM or other fractional counts per {self.total:,.0f}"
        else:
            what = "fractional counts" if self.is_fractional else "counts"
            if self.total is not None:
                what += f" per {self.total:,.7g}"
            elif self.is_complete:
                what += " normalised to several totals"
            elif self.unit is not None:
                what += " multiplied by a factor of each cell"
        if self.transform == Transform.NONE:
            return what + (", not logged" if self.total or self.is_complete else "")
        return f"{self.transform} of {what}"

    def linear(self, values: NDArray[Any]) -> Floats:
        """(V,) proportional to counts, in each cell by its own factor."""
        return _undo(self.transform, values.astype(np.float64))


def _undo(transform: Transform, values: Floats) -> Floats:
    if transform == Transform.NONE:
        return values
    if transform == Transform.SQRT:
        return values * values
    if transform in {Transform.LN_TWICE, Transform.LN_LOG2}:
        values = np.expm1(values)
    base = _BASES.get(transform)
    return np.expm1(values) if base is None else np.expm1(values * np.log(base))


def recognise(cells: sparse.csr_matrix) -> ValueScale | None:
    """Find the scale of (cells, genes) finite values that are not negative; None if it is no known one."""
    cells = cells[np.diff(cells.indptr) > 0]
    values = cells.data.astype(np.float64)
    if are_whole(values).all():
        return ValueScale(unit="one", is_near=bool((values != np.rint(values)).any()))
    precision = _precision(values)
    if (n_raw := _fraction_of_counts(values, cells.indptr)) > 0.5:
        return None  # counts, but for some values
    found = []
    for transform in Transform:
        judgement = _judge(transform, values, cells.indptr, precision)
        if judgement is not None:
            found.append(judgement)
            if judgement.rank >= 4:
                break
    if found:
        return max(found, key=lambda one: (one.rank, -one.deviation)).scale
    is_corrected = n_raw <= 1 - _MOST_CELLS and _are_corrected_counts(values)
    return ValueScale(is_fractional=True) if is_corrected else None


def _fraction_of_counts(values: Floats, indptr: NDArray[Any]) -> float:
    """Fraction of the cells of several values that are counts: whole numbers, one and others."""
    starts = indptr[:-1]
    least, most = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    is_counts = np.logical_and.reduceat(are_whole(values), starts)
    is_counts &= (np.abs(least - 1) <= NEARLY_WHOLE) & (most > 1.5)
    is_long = np.diff(indptr) >= _ENOUGH_VALUES
    return float(np.mean(is_counts[is_long])) if is_long.any() else 0.0


def are_whole(values: NDArray[Any]) -> NDArray[np.bool_]:
    """(V,), whether each value is a count, or one that was rounded."""
    counts = np.rint(values)
    whole: NDArray[np.bool_] = (np.abs(values - counts) <= NEARLY_WHOLE) & (counts > 0)
    return whole


class _Judgement(NamedTuple):
    scale: ValueScale
    #: 5: raw counts; 4: multiples of a unit and a known total; 3: multiples of a unit; 2: one total; 1:
    #: nearly one total.
    rank: int
    #: Of the sums, relative.
    deviation: float


def _judge(
    transform: Transform, values: Floats, indptr: NDArray[Any], precision: tuple[float, float]
) -> _Judgement | None:
    """Judge one transform by sampled cells, none of them empty."""
    with np.errstate(over="ignore"):
        linear = _undo(transform, values)
    if not float(linear.max()) <= _LARGEST:
        return None
    sums = np.add.reduceat(linear, indptr[:-1])
    total, deviation = _common_total(sums)
    errors = _errors(transform, values, precision)
    may_be_raw = transform != Transform.NONE and deviation > _EXACTLY_CONSTANT
    if may_be_raw and _are_raw_counts(linear, errors):
        return _Judgement(ValueScale(transform, "one"), 5, deviation)
    lattice = _find_lattice(linear, errors, indptr)
    is_of_few = total is None and _totals_are_few(sums)
    is_complete = total is not None or is_of_few
    if lattice.is_found:
        if not is_of_few and deviation > _EXACTLY_CONSTANT:
            known = _total_of_units(lattice, sums)
            total, is_complete = (total, is_complete) if known is None else (known, False)
        is_known = total is not None or is_complete
        return _Judgement(
            ValueScale(transform, "cell", total, is_complete), 4 if is_known else 3, deviation
        )
    is_exact = deviation <= _EXACTLY_CONSTANT or is_of_few
    is_usual = total is not None and 1 - 2 * _CONSTANT < total / _usual(total) <= 1 + _CONSTANT
    # Squares of standardised values, too, have a common sum; and many values nearly so.
    if not is_complete or transform == Transform.SQRT or not (is_exact or is_usual):
        return None
    scale = ValueScale(transform, None, total, is_complete=True, is_fractional=lattice.is_refuted)
    return _Judgement(scale, 2 if is_exact else 1, deviation)


def _are_raw_counts(linear: Floats, errors: Floats) -> bool:
    """Whether linear values are whole numbers without a common divisor, but for their rounding errors."""
    slack = NEARLY_WHOLE + 3 * errors
    sure = slack < 2 * _SURE
    if sure.mean() < 0.5 or -np.log10(2 * slack[sure]).sum() < _DIGITS:
        return False
    counts = np.rint(linear[sure])
    if not ((np.abs(linear[sure] - counts) <= slack[sure]) & (counts > 0)).all():
        return False
    return int(np.gcd.reduce(counts.astype(np.int64))) == 1


def _precision(values: Floats) -> tuple[float, float]:
    """Relative and absolute rounding error of values: of their type, or of few decimal places."""
    if values.max() < np.finfo(np.float16).max and (values == values.astype(np.float16)).all():
        return _FLOAT16, 0.0
    for places in range(2, 7):
        shifted = values * 10.0**places
        if (np.abs(shifted - np.rint(shifted)) <= shifted * _FLOAT32 + 1e-9).all():
            return _FLOAT32, 0.5 * 10.0**-places
    return _FLOAT32, 0.0


def _errors(transform: Transform, values: Floats, precision: tuple[float, float]) -> Floats:
    """(V,) largest rounding errors of the linear values."""
    relative, absolute = precision
    linear = _undo(transform, values)
    moved: Floats = _undo(transform, values * (1 + relative) + absolute)
    return moved - linear + _ARITHMETIC * linear


def _common_total(sums: Floats) -> tuple[float | None, float]:
    """Return the number that all sums are, or None, and their largest relative deviation from it."""
    middle = float(np.median(sums))
    usual = _usual(middle)
    if len(sums) < 2:  # one cell shows a total that is usual
        is_usual = abs(middle / usual - 1) <= _EXACTLY_CONSTANT
        return (usual, 0.0) if is_usual else (None, np.inf)
    deviation = float(np.abs(sums / middle - 1).max())
    if float(np.ptp(sums)) > _CONSTANT * middle:
        return None, deviation
    if abs(middle / usual - 1) <= max(deviation, _EXACTLY_CONSTANT):
        middle = usual
    return middle, deviation


def _usual(total: float) -> float:
    """Return the power of ten that is nearest."""
    return float(10.0 ** np.rint(np.log10(total)))


def _totals_are_few(sums: Floats) -> bool:
    """Whether all sums are some of a few totals, as where files of several totals were joined."""
    in_order = np.sort(sums)
    borders = np.flatnonzero(np.diff(in_order) > _CONSTANT * in_order[:-1]) + 1
    groups = np.split(in_order, borders)
    return len(groups) > 1 and all(
        len(one) >= _CELLS_PER_TOTAL and np.ptp(one) <= 2 * _EXACTLY_CONSTANT * one[0]
        for one in groups
    )


def _are_corrected_counts(values: Floats) -> bool:
    """Whether values are somewhat smaller than whole numbers, as after the removal of ambient RNA.

    Near one and near two, most are less than a third below. Values of a logarithm are not spaced so.
    """
    for whole in (1, 2):
        around = values[(values > whole - 0.5) & (values <= whole + 0.5)] - whole
        if len(around) < 30:
            return False
        below = np.mean((around > -0.35) & (around <= 0.05))
        middle = np.mean(around)
        if below < 0.75 or not -0.3 < middle < 0.05:
            return False
    return True


# ------------------------------------------------------------------------------ multiples of a unit
class _Lattice(NamedTuple):
    """Cells whose linear values are whole multiples of a unit."""

    #: (C,), NaN for a cell without values.
    units: Floats
    #: (C,), relative errors of the units.
    errors: Floats
    #: (V,), how many units each value is.
    multiples: Floats
    #: (C,), whether all values are whole multiples, and whether any value could show otherwise.
    fits: NDArray[np.bool_]
    is_tested: NDArray[np.bool_]
    #: Decimal digits of evidence.
    digits: float

    @property
    def is_found(self) -> bool:
        """Whether cells, but for a few, consist of whole multiples."""
        return self.digits >= _DIGITS and self._fraction >= _MOST_CELLS

    @property
    def is_refuted(self) -> bool:
        """Whether cells surely do not."""
        return self.digits >= _DIGITS and self._fraction < 0.5

    @property
    def _fraction(self) -> float:
        return float(np.mean(self.fits[self.is_tested])) if self.is_tested.any() else 0.0


def _find_lattice(linear: Floats, errors: Floats, indptr: NDArray[Any]) -> _Lattice:
    lengths = np.diff(indptr)
    n_cells = len(lengths)
    of_cell = np.repeat(np.arange(n_cells), lengths)
    filled = np.flatnonzero(lengths)
    smallest, relative = np.full(n_cells, np.nan), np.zeros(n_cells)
    if len(filled):
        smallest[filled] = np.minimum.reduceat(linear, indptr[filled])
        relative[filled] = np.minimum.reduceat(errors, indptr[filled]) / smallest[filled]
    ratio = linear / smallest[of_cell]
    slack = 3 * (errors / smallest[of_cell] + ratio * relative[of_cell])
    can_test = (slack < _SURE) & (ratio > 1 + slack)
    is_tested = np.bincount(of_cell[can_test], minlength=n_cells) > 0
    surest = np.full(n_cells, 1.0)
    np.minimum.at(surest, of_cell[can_test], 2 * slack[can_test])
    divisor, fits = np.ones(n_cells), np.zeros(n_cells, dtype=bool)
    left = np.ones(len(linear), dtype=bool)
    for number in range(1, _MOST_UNITS + 1):
        some = np.flatnonzero(left & can_test & (slack * number < _SURE))
        multiple = ratio[some] * number
        misses = np.abs(multiple - np.rint(multiple)) > slack[some] * number
        fit_now = (np.bincount(of_cell[some[misses]], minlength=n_cells) == 0) & ~fits
        divisor[fit_now], fits[fit_now] = number, True
        if fits.all():
            break
        left = ~fits[of_cell]
    multiples = np.rint(ratio * divisor[of_cell])
    units, spread = _mean_units(linear, multiples, of_cell, smallest / divisor, slack < _SURE)
    digits = float(-np.log10(np.maximum(surest, 1e-12)).sum())
    return _Lattice(units, relative * spread, multiples, fits, is_tested, digits)


def _mean_units(
    linear: Floats,
    multiples: Floats,
    of_cell: NDArray[np.int64],
    first: Floats,
    is_sure: NDArray[np.bool_],
) -> tuple[Floats, Floats]:
    """(C,) the mean unit over the different values of each cell, and how much the error shrinks.

    Equal counts of a cell have equal rounding errors, so each counts once.
    """
    sure = np.flatnonzero(is_sure)
    _, chosen = np.unique(of_cell[sure] * 2.0**32 + multiples[sure], return_index=True)
    chosen = sure[chosen]
    cells, n_cells = of_cell[chosen], len(first)
    n_values = np.bincount(cells, minlength=n_cells)
    sums = np.bincount(cells, linear[chosen] / multiples[chosen], minlength=n_cells)
    units = np.where(n_values > 0, sums / np.maximum(n_values, 1), first)
    return units, 1 / np.sqrt(np.maximum(n_values, 1))


def _total_of_units(lattice: _Lattice, sums: Floats) -> float | None:
    """Find the total T for which T / unit is a whole number in every cell, from C cells.

    Genes were removed, so that the ``sums`` (C,) of the others are smaller. Of all multiples of the true
    total the smallest is returned.
    """
    tested = lattice.fits & lattice.is_tested
    units, errors = lattice.units[tested], lattice.errors[tested]
    if len(units) < 2 or np.ptp(units) <= 3 * errors.max() * units.max():
        return None  # counts times a number
    least = float(sums.max()) * (1 - _EXACTLY_CONSTANT)
    for usual in _USUAL_TOTALS:
        sizes = _whole_sizes(usual, units, errors) if usual >= least else None
        if sizes is not None:
            common = int(np.gcd.reduce(sizes))
            if _are_of_two_totals(sizes // max(common, 1)):
                return None
            is_chance = float(common) ** -(len(sizes) - 1) > 10.0**-_DIGITS
            return usual if is_chance or usual / common < least else usual / common
    order = np.argsort(errors / units)[:16]  # of these, T / unit is known best
    grid = np.arange(np.ceil(2 * least), 2 * _LARGEST_TOTAL + 1) / 2
    for unit, error in zip(units[order], errors[order], strict=True):
        size = grid / unit
        grid = grid[np.abs(size - np.rint(size)) <= np.maximum(3 * size * error, 1e-4)]
    return next((float(one) for one in grid if _whole_sizes(one, units, errors) is not None), None)


def _are_of_two_totals(sizes: NDArray[np.int64]) -> bool:
    """Whether many library sizes are multiples of 10 or 100: those of cells of a smaller total."""
    for ratio in (2, 5, 10, 100):
        expected = len(sizes) / ratio
        found = int(np.count_nonzero(sizes % ratio == 0))
        if found < len(sizes) and found > expected + 5 * np.sqrt(expected) + 3:
            return True
    return False


def _whole_sizes(total: float, units: Floats, errors: Floats) -> NDArray[np.int64] | None:
    """Return the library sizes, of the cells in which they can be known, if they are whole numbers."""
    sizes = total / units
    slack = np.maximum(3 * sizes * errors, 1e-4)
    sure = slack < 4 * _SURE
    digits = -np.log10(2 * slack[sure]).sum()
    if digits < _DIGITS or sure.mean() < _MOST_SURE:
        return None  # the other cells may have another total
    fits = np.abs(sizes - np.rint(sizes))[sure] <= slack[sure]
    return np.rint(sizes[sure][fits]).astype(np.int64) if fits.mean() >= _MOST_CELLS else None


class RecoveredCounts(NamedTuple):
    """The counts behind values."""

    #: (V,), whole numbers.
    counts: Floats
    #: (C,), counts over all genes, also of genes that were removed if the total is known; 0 for a
    #: cell without values.
    library_sizes: Floats
    #: (C,), whether the values of the cell are whole multiples of one unit.
    fits: NDArray[np.bool_]


def recover_counts(
    values: NDArray[Any], indptr: NDArray[Any], scale: ValueScale
) -> RecoveredCounts:
    """Recover the counts of cells from normalised values of a known scale.

    ``values`` (V,) and ``indptr`` (C + 1,) are the data and row borders of a CSR matrix without stored
    zeros. Counts whose only values in a cell have a common divisor are recovered without it, which leaves
    their normalised values the same.
    """
    as_floats = values.astype(np.float64)
    linear = scale.linear(as_floats)
    lengths = np.diff(indptr)
    of_cell = np.repeat(np.arange(len(lengths)), lengths)
    if scale.unit == "one":
        counts = np.rint(linear)
        sizes = np.bincount(of_cell, counts, minlength=len(lengths)).astype(np.float64)
        slack = NEARLY_WHOLE + 3 * _errors(scale.transform, as_floats, (_FLOAT32, 0.0))
        bad = (np.abs(linear - counts) > slack) | (counts == 0)
        return RecoveredCounts(counts, sizes, np.bincount(of_cell[bad], minlength=len(sizes)) == 0)
    errors = _errors(scale.transform, as_floats, _precision(as_floats))
    lattice = _find_lattice(linear, errors, indptr)
    sizes = np.bincount(of_cell, lattice.multiples, minlength=len(lengths)).astype(np.float64)
    if scale.total is not None and not scale.is_complete:
        filled = lengths > 0
        sizes[filled] = scale.total / lattice.units[filled]
        whole = np.rint(sizes)
        sizes = np.where(np.abs(sizes - whole) <= 4 * _SURE, whole, sizes)
    return RecoveredCounts(lattice.multiples, sizes, lattice.fits)


def total_of_sizes(cells: sparse.csr_matrix, scale: ValueScale, sizes: Floats) -> float | None:
    """Return the total of normalised (cells, genes) if these are their library sizes (cells,), else None.

    Where they are, they and the units of the cells have one and the same product.
    """
    filled = np.flatnonzero(np.diff(cells.indptr))
    counts = recover_counts(cells.data, cells.indptr, scale).counts
    starts = cells.indptr[filled]
    units = np.add.reduceat(scale.linear(cells.data), starts) / np.add.reduceat(counts, starts)
    totals = units * sizes[filled]
    middle = float(np.median(totals))
    if not (len(totals) > 1 and middle > 0 and np.ptp(sizes[filled]) > 0):
        return None
    if not (np.abs(totals / middle - 1) <= _SAME_TOTAL).all():
        return None
    usual = _usual(middle)
    return usual if abs(middle / usual - 1) <= _SAME_TOTAL else middle


def recover_library_sizes(log_values: NDArray[Any], indptr: NDArray[Any]) -> Floats:
    """(C,) library sizes behind log1p of counts per 10,000, NaN where they cannot be recovered.

    ``log_values`` (V,) and ``indptr`` (C + 1,) are the data and row borders of a CSR matrix without
    stored zeros, of whole counts; the matrix may lack some of the genes. In a cell of library size N the
    counts 1, 2, 3 have the values log1p(T / N), log1p(2 T / N), log1p(3 T / N) for T = 10,000: undone, the
    values are multiples of T / N. A cell whose only values are of one count c gives N / c.
    """
    scale = ValueScale(Transform.LN, "cell", TARGET_SUM)
    found = recover_counts(log_values, indptr, scale)
    return np.where(found.fits & (np.diff(indptr) > 0), found.library_sizes, np.nan)
