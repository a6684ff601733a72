"""Which matrix of a source is read, and on which scale its values are.

Sampled cells of the whole file show the scale (`value_scale`). What is not recognised is refused, never
guessed, unless the user says what it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from core.cells.genes import other_features
from core.cells.matrix_state import (
    LARGEST_LOG,
    MatrixChoice,
    MatrixState,
    convert_cells,
    gene_chunks,
    genes_of,
    name_place,
    numbers_of,
    place_of,
)
from core.cells.normalisation import TARGET_SUM
from core.cells.sources import BY_COLUMNS_VALUES, CellSource
from core.cells.spelling import suggest
from core.cells.value_scale import (
    NEARLY_WHOLE,
    Transform,
    ValueScale,
    are_whole,
    recognise,
    total_of_sizes,
)
from core.errors import DataError
from core.wording import listed, percentage

#: What a preset says about values (data.values).
Values = Literal["auto", "counts", "linear", "log"]

#: Cells that are sampled from each matrix, in blocks spread over the file, or over a large matrix
#: stored by columns, of which every block costs a pass over all values.
_SAMPLE, _BLOCKS, _BLOCKS_BY_COLUMNS = 512, 32, 3
#: A matrix with a smaller fraction of the genes of another holds a selection of them, and a smaller
#: fraction of the counts makes its sums no library sizes.
_MOST_GENES, _MOST_COUNTS = 0.9, 0.9
#: obs columns that hold library sizes: of scanpy, Seurat, scvi-tools and others.
_TOTALS = ["total_counts", "nCount_RNA", "n_counts", "nCounts_RNA", "n_umis", "nUMI", "n_umi"]
_TOTALS += ["total_umis", "n_counts_all", "umi_count", "total_UMIs", "nCount"]
#: Standard deviation of the log fraction of the counts: where it is larger, totals are of other cells.
_SPREAD_OF_FRACTIONS = 1.0
_COUNT_WORDS = ("count", "umi")
#: Where tfx notes what it wrote into X.
_OWN_NOTES = ("tfx", "tfx_generation")
#: log1p of counts per 10,000, because somebody says so.
_ASSUMED_LOG = ValueScale(Transform.LN, None, TARGET_SUM)

_USABLE = {MatrixState.COUNTS, MatrixState.LOG1P}
#: What to do about a matrix that cannot be taken.
_REMEDY = {
    MatrixState.UNKNOWN: "store raw counts, or set data.values (--values) to take them as they are: "
    "'linear' for values proportional to counts, 'log' for log1p of counts per 10,000",
    MatrixState.SCALED: "set data.matrix to one with counts or log values ('raw', 'layers/NAME')",
    MatrixState.NOT_FINITE: "replace or drop them",
    MatrixState.EMPTY: "set data.matrix to one that holds expression",
}


@dataclass(frozen=True)
class Inspection:
    """What sampled cells of a matrix show."""

    state: MatrixState
    #: None where it is not recognised.
    scale: ValueScale | None = None
    #: Largest finite value seen.
    largest: float = 0.0
    #: First offending cell and gene (row, column), or None.
    place: tuple[int, int] | None = None
    #: Whether the user says what the values are, and nothing shows it.
    is_assumed: bool = False
    #: Why the matrix cannot be taken, if its state does not say it all.
    reason: str = ""
    #: Genes of the matrix.
    n_genes: int = 0

    def describe(self) -> str:
        """State and range in words."""
        if self.state in {MatrixState.EMPTY, MatrixState.NOT_FINITE}:
            return str(self.state)
        what = str(self.state) if self.scale is None else self.scale.describe()
        if self.state == MatrixState.LOG1P and self.scale and self.scale.is_plain_log:
            what = str(self.state)
        return f"{what}, up to {self.largest:.4g}"


def choose_matrix(
    source: CellSource,
    wanted: str,
    *,
    values: Values = "auto",
    count_genes: Callable[[str], int] | None = None,
) -> MatrixChoice:
    """Choose the matrix to read; DataError if it does not exist, or its values are not recognised.

    `wanted` names it, or is "auto": counts (X, layers named like counts, raw), else log-normalised
    values (X, raw, layers); a matrix that has a selection of the genes of another comes behind it.
    `values` says what they are, where the user knows better. `count_genes` counts the genes of a matrix
    that matter, those of a model for instance.
    """
    present = source.matrices()
    if not present:
        raise DataError(
            f"{source.name}: holds no matrix (no X, raw or layers); add the expression values"
        )
    if wanted not in {"auto", *present}:
        raise DataError(
            f"{source.name}: no matrix '{wanted}' (data.matrix); {suggest(wanted, present)}"
        )
    groups = [[wanted]] if wanted != "auto" else _groups(source, present, count_genes)
    layers = [name for name in present if name.startswith("layers/")]
    counts_like = [name for name in layers if any(word in name.lower() for word in _COUNT_WORDS)]
    orders = {
        MatrixState.COUNTS: ["X", *counts_like, "raw"],
        MatrixState.LOG1P: ["X", "raw", *layers],
    }
    seen: dict[str, Inspection] = {}
    for group in groups:
        for state, order in orders.items():
            for matrix in order if wanted == "auto" else [wanted]:
                if matrix not in group:
                    continue
                if matrix not in seen:
                    seen[matrix] = inspect_matrix(source, matrix, values)
                if seen[matrix].state == state:
                    choice = _chosen(source, matrix, seen[matrix], values)
                    passed = {one: look.describe() for one, look in seen.items() if one != matrix}
                    return replace(choice, passed_over=passed)
    if len(seen) == 1:
        raise DataError(_unfit(source, *seen.popitem()))
    held = "; ".join(f"{name}: {look.describe()}" for name, look in seen.items())
    raise DataError(
        f"{source.name}: no matrix holds raw counts or log1p values, or what can be brought to them "
        f"({held}); add one and set data.matrix to it, or set data.values (--values)"
    )


def _groups(
    source: CellSource, present: Sequence[str], count_genes: Callable[[str], int] | None
) -> list[Sequence[str]]:
    """Group matrices in the order in which they are tried: those that have a selection of genes last."""
    others = [matrix for matrix in present if matrix != "raw"]
    if "raw" not in present or not others:
        return [present]
    few, many = sorted((others, ["raw"]), key=lambda group: len(genes_of(source, group[0])))
    is_selection = len(genes_of(source, few[0])) < _MOST_GENES * len(genes_of(source, many[0]))
    if not is_selection and count_genes is not None:
        is_selection = count_genes(few[0]) < count_genes(many[0])
    return [many, few] if is_selection else [present]


def inspect_matrix(source: CellSource, matrix: str, values: Values = "auto") -> Inspection:
    """Inspect sampled cells of a matrix; `values` is what the user says about them."""
    rows, sample = _sample(source, matrix)
    n_genes = sample.shape[1]

    def unfit(state: MatrixState, offending: NDArray[np.bool_]) -> Inspection:
        row, column = place_of(sample, offending)
        return Inspection(state, None, largest, (int(rows[row]), column), n_genes=n_genes)

    if not sample.nnz:
        return Inspection(MatrixState.EMPTY, n_genes=n_genes)
    finite = np.isfinite(sample.data)
    largest = float(sample.data[finite].max(initial=0.0))
    if not finite.all():
        return unfit(MatrixState.NOT_FINITE, ~finite)
    if (sample.data < 0).any():
        return unfit(MatrixState.SCALED, sample.data < 0)
    scale = recognise(sample)
    if scale is not None and scale.unit == "cell" and not scale.has_totals:
        scale = _with_total_of_obs(scale, source, rows, sample)
    found = replace(_interpret(scale, values, largest, source), n_genes=n_genes)
    if found.state in _USABLE:
        return found
    whole = are_whole(sample.data)
    if not whole.any() or found.reason:
        return found
    row, column = place_of(sample, ~whole)
    value = sample.data[np.flatnonzero(~whole)[0]]
    reason = f"{value:.6g} is not a whole number, others are"
    return replace(found, reason=reason, place=(int(rows[row]), column))


def _with_total_of_obs(
    scale: ValueScale, source: CellSource, rows: NDArray[np.int64], sample: sparse.csr_matrix
) -> ValueScale:
    """Find the total by library sizes in obs, where values are too coarse to show it."""
    table = source.obs_columns(_TOTALS)
    for column in filter(table.columns.__contains__, _TOTALS):
        total = total_of_sizes(sample, scale, numbers_of(table[column])[rows])
        if total is not None:
            return replace(scale, total=total)
    return scale


def _interpret(
    scale: ValueScale | None, values: Values, largest: float, source: CellSource
) -> Inspection:
    """Decide what a scale means, given what the user says about the values."""

    def usable(state: MatrixState, scale: ValueScale, *, is_assumed: bool = False) -> Inspection:
        return Inspection(state, scale, largest, is_assumed=is_assumed)

    reason = ""
    if scale is None:
        may_be_log = largest <= LARGEST_LOG
        if may_be_log and (values == "log" or (values == "auto" and _tfx_wrote_log(source))):
            return usable(MatrixState.LOG1P, _ASSUMED_LOG, is_assumed=True)
        if values == "linear":
            return usable(MatrixState.LOG1P, ValueScale(is_fractional=True), is_assumed=True)
        if values == "log":
            reason = f"a value of {largest:.6g} is no logarithm"
    elif values == "auto" and not scale.is_like_tpm:
        is_counts = scale.unit is not None and not scale.is_plain_log
        return usable(MatrixState.COUNTS if is_counts else MatrixState.LOG1P, scale)
    elif values == "counts" and scale.unit is not None:
        return usable(MatrixState.COUNTS, scale)
    elif values == "log" and scale.is_log:
        return usable(MatrixState.LOG1P, scale)
    elif values == "linear" and scale.transform == Transform.NONE:
        return usable(MatrixState.COUNTS if scale.is_counts else MatrixState.LOG1P, scale)
    elif values != "auto":
        reason = f"data.values = '{values}' contradicts that"
    if scale is None and values == "counts":
        reason = "no counts can be recovered from them"
    return Inspection(MatrixState.UNKNOWN, scale, largest, reason=reason)


def _tfx_wrote_log(source: CellSource) -> bool:
    """Whether tfx noted in the file that X is log1p: values that it draws are not made of counts."""
    notes = (source.uns(key) for key in _OWN_NOTES)
    return any("log1p" in str(one.get("values", "")) for one in notes if isinstance(one, dict))


def _chosen(source: CellSource, matrix: str, found: Inspection, values: Values) -> MatrixChoice:
    """Return the choice of a matrix that is usable, with its library sizes and remarks."""
    assert found.scale is not None, "a usable matrix has a scale"
    scale = found.scale
    choice = MatrixChoice(matrix, found.state, scale, found.n_genes, is_assumed=found.is_assumed)
    remarks, warnings = [], []
    for other in source.matrices():
        n_fewer = len(genes_of(source, other))
        if n_fewer < _MOST_GENES * found.n_genes:
            genes = f"{n_fewer:,} of the {found.n_genes:,} genes of {matrix}"
            remarks.append(f"{matrix} is read, because {other} has {genes}")
            break
    is_other, kinds = other_features(source.var(matrix))
    if n_other := int(is_other.sum()):
        remarks.append(
            f"{n_other:,} features of {matrix} are not gene expression ({listed(kinds)}); they are "
            f"left out, also of library sizes"
        )
    if found.is_assumed and values != "auto":
        what = "log1p of counts per 10,000" if values == "log" else "proportional to counts"
        warnings.append(
            f"{matrix} is taken for {what}, because data.values is '{values}'; its values do not "
            f"show it"
        )
    elif scale.is_like_tpm:
        warnings.append(
            f"{matrix} holds {scale.describe()}; if they are divided by the lengths of genes, they "
            f"differ from what a model of counts knows"
        )
    choice = replace(choice, remarks=tuple(remarks), warnings=tuple(warnings))
    if choice.state == MatrixState.COUNTS and scale.total is None and not scale.is_complete:
        return _with_library(source, choice)
    return choice


def _with_library(source: CellSource, choice: MatrixChoice) -> MatrixChoice:
    """Take library sizes from raw or from obs, where the matrix has a part of the counts alone."""
    rows, sample = _sample(source, choice.matrix)
    sums = convert_cells(sample, choice, source, rows).library_sizes
    if (n_filled := int(np.count_nonzero(sums))) < 2:
        return choice

    def fraction_of(sizes: NDArray[np.float64]) -> float | None:
        """Fraction of the counts that the matrix has, or None if these are not its library sizes."""
        if len(sizes) != len(sums) or not (sizes >= sums * (1 - NEARLY_WHOLE)).all():
            return None
        part = sums[sums > 0] / sizes[sums > 0]
        is_alike = n_filled < 2 or float(np.std(np.log(part))) < _SPREAD_OF_FRACTIONS
        return float(sums.sum() / sizes.sum()) if is_alike else None

    def of(where: str, fraction: float) -> tuple[str, ...]:
        has = f"{choice.matrix} has {percentage(fraction, 1)} of the counts"
        return (*choice.remarks, f"library sizes come from {where}, because {has}")

    if "raw" in source.matrices() and choice.matrix != "raw":
        raw = inspect_matrix(source, "raw", "counts")
        if raw.state == MatrixState.COUNTS and choice.n_genes < _MOST_GENES * raw.n_genes:
            assert raw.scale is not None, "counts have a scale"
            every = MatrixChoice("raw", raw.state, raw.scale, raw.n_genes)
            sizes = convert_cells(_sample(source, "raw")[1], every, source, rows).library_sizes
            if (fraction := fraction_of(sizes)) is not None:
                return replace(choice, library=every, remarks=of("raw", fraction))
    if not other_features(source.var(choice.matrix))[0].any():  # else totals may include them
        table = source.obs_columns(_TOTALS)
        for column in filter(table.columns.__contains__, _TOTALS):
            sizes = numbers_of(table[column])[rows]
            fraction = fraction_of(sizes)
            is_whole = bool((np.abs(sizes - np.rint(sizes)) <= NEARLY_WHOLE).all())
            if is_whole and fraction is not None and fraction < _MOST_COUNTS:
                return replace(choice, library=column, remarks=of(f"obs['{column}']", fraction))
    if choice.scale.unit == "cell":
        warning = (
            f"{choice.matrix} holds {choice.scale.describe()}, so that library sizes are taken to be "
            f"the sums over its {choice.n_genes:,} genes; they are too small if genes were removed"
        )
        return replace(choice, warnings=(*choice.warnings, warning))
    return choice


def of_one_kind(choices: Sequence[MatrixChoice]) -> list[MatrixChoice]:
    """Read all as log1p if some give log1p alone, and no matrix holds counts as they are."""
    can_be_log = [one.state == MatrixState.LOG1P or one.scale.has_totals for one in choices]
    if len({one.state for one in choices}) < 2 or not all(can_be_log):
        return list(choices)
    return [replace(one, state=MatrixState.LOG1P) for one in choices]


def _sample(source: CellSource, matrix: str) -> tuple[NDArray[np.int64], sparse.csr_matrix]:
    """(cells,) rows in blocks over the whole file, and their (cells, genes) values."""
    n_cells, how = source.n_cells, source.stored(matrix)
    is_large = how.by_columns and how.n_values > BY_COLUMNS_VALUES
    n_blocks = _BLOCKS_BY_COLUMNS if is_large else _BLOCKS
    size = _SAMPLE // n_blocks
    blocks: list[tuple[int, sparse.csr_matrix]] = []
    if n_cells <= _SAMPLE:
        blocks += gene_chunks(source, matrix, max(n_cells, 1))
    elif how.by_columns and not is_large:  # one pass over the matrix, in memory
        at_once = -(-n_cells // n_blocks)
        blocks += ((at, chunk[:size]) for at, chunk in gene_chunks(source, matrix, at_once))
    else:
        for start in np.linspace(0, n_cells - size, n_blocks).astype(np.int64).tolist():
            blocks += gene_chunks(source, matrix, size, start=start, stop=start + size)
    if not any(block.nnz for _, block in blocks):  # few cells have values
        every = gene_chunks(source, matrix, _SAMPLE)
        blocks = [next(((at, chunk) for at, chunk in every if chunk.nnz), blocks[0])]
    rows = np.concatenate([np.arange(at, at + block.shape[0]) for at, block in blocks])
    return rows, sparse.csr_matrix(sparse.vstack([block for _, block in blocks]))


def _unfit(source: CellSource, matrix: str, found: Inspection) -> str:
    where = "" if found.place is None else f", first {name_place(source, matrix, found.place)}"
    others = [name for name in source.matrices() if name != matrix]
    alternatives = f" (the file also has {', '.join(others)})" if others else ""
    reason = f" ({found.reason})" if found.reason else ""
    return (
        f"{source.name}: {matrix} holds {found.describe()}{reason}{where}, where raw counts or log1p "
        f"values are needed; {_REMEDY[found.state]}{alternatives}"
    )
