"""Checks of the values: one kind in all files, every cell as the first look found."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from core.cells.checks.report import CheckRow, fault_row
from core.cells.checks.summary import FileSummary
from core.cells.hvg_ranking import resolve_method
from core.cells.matrix_state import MatrixState, constant_sum
from core.cells.normalisation import TARGET_SUM
from core.errors import DataError
from core.presets.schema import DataSettings
from core.wording import files_of, listed, some_of

__all__ = ["check_matrices"]

#: Relative difference of totals that is told.
_SAME_TOTAL = 0.01
#: Largest count that a store keeps in two bytes; larger ones go to a side table.
_LARGEST_SHORT_COUNT = 65_535


def check_matrices(files: Sequence[FileSummary], data: DataSettings) -> Iterator[CheckRow]:
    """Judge matrices and their states.

    Parameters
    ----------
    files
        Files of which a matrix was chosen, or not (their faults tell).
    data
        The preset's data section.
    """
    chosen = [one for one in files if one.choice is not None]
    yield from _what_is_read(chosen)
    yield from _one_kind(chosen, data)
    yield from _counts_passed_over(chosen)
    yield from _every_value(files, chosen)
    yield from _totals_of_log_values(chosen)
    yield from _large_counts(chosen)


def _what_is_read(chosen: Sequence[FileSummary]) -> Iterator[CheckRow]:
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    passed: dict[str, None] = {}
    for one in chosen:
        assert one.choice is not None, "chosen files only"
        alike[one.choice.matrix, str(one.choice.state)].append(one.name)
        others = {matrix: found.describe() for matrix, found in one.others.items()}
        for matrix, what in (others | one.choice.passed_over).items():
            passed[f"{matrix} ({what})"] = None
    for (matrix, state), names in alike.items():
        where = some_of(names, len(chosen))
        yield CheckRow("ok", "matrix", "values", f"{matrix} holds {state}{where}")
    if passed:
        yield CheckRow("ok", "matrix", "values", f"not taken: {listed(list(passed))}")


def _one_kind(chosen: Sequence[FileSummary], data: DataSettings) -> Iterator[CheckRow]:
    by_state: dict[MatrixState, FileSummary] = {}
    for one in chosen:
        assert one.choice is not None, "chosen files only"
        by_state.setdefault(one.choice.state, one)
    if len(by_state) > 1:
        kinds = " but ".join(
            f"{one.name} ({one.choice.matrix if one.choice else ''}) holds {state}"
            for state, one in by_state.items()
        )
        yield CheckRow(
            "fail",
            "matrix",
            "one kind",
            kinds,
            "all files must hold the same kind of values, set data.matrix to a matrix that does",
        )
    elif by_state:
        (state,) = by_state
        try:
            resolve_method(data.hvg, str(state))
        except DataError as error:
            yield fault_row("matrix", "gene ranking", error)


def _counts_passed_over(chosen: Sequence[FileSummary]) -> Iterator[CheckRow]:
    """Log values were taken, yet a matrix of another name holds counts."""
    for one in chosen:
        assert one.choice is not None, "chosen files only"
        if one.choice.state == MatrixState.COUNTS:
            continue
        counts = [name for name, found in one.others.items() if found.state == MatrixState.COUNTS]
        if counts:
            yield CheckRow(
                "warn",
                "matrix",
                "values",
                f"{one.name}: {one.choice.matrix} (log values) is read, though {counts[0]} holds "
                f"counts, which lose nothing",
                f"set data.matrix to '{counts[0]}' if it is raw counts",
                one.name,
            )


def _every_value(files: Sequence[FileSummary], chosen: Sequence[FileSummary]) -> Iterator[CheckRow]:
    read = [one for one in chosen if one.expression is not None]
    spoilt = any(row.check == "every value" for one in files for row in one.faults)
    if not read or spoilt:
        return
    n_read = sum(len(one.expression.rows) for one in read if one.expression)
    n_cells = sum(one.n_cells for one in chosen)
    if n_read == n_cells:
        finding = f"all values of {n_cells:,} cells are as the first look found"
    else:
        finding = f"{n_read:,} of {n_cells:,} cells were looked at: a sample"
    yield CheckRow("ok", "matrix", "every value", finding)


def _totals_of_log_values(chosen: Sequence[FileSummary]) -> Iterator[CheckRow]:
    for one in chosen:
        if one.choice is None or one.expression is None or one.choice.state != MatrixState.LOG1P:
            continue
        where = f"{one.name} ({one.choice.matrix})"
        total = constant_sum(one.expression.totals.astype(float))
        if total is None:
            yield CheckRow(
                "warn",
                "matrix",
                "totals",
                f"{where}: log values whose cells do not add up to one total (genes were removed "
                f"after normalisation); they are taken as log1p of counts per 10,000",
                "give raw counts or the log values of all genes if you have them",
                one.name,
            )
        elif abs(total / TARGET_SUM - 1) > _SAME_TOTAL:
            yield CheckRow(
                "ok",
                "matrix",
                "totals",
                f"{where}: log values normalised to {total:,.6g} per cell are rescaled to "
                f"{TARGET_SUM:,.0f}",
                subject=one.name,
            )


def _large_counts(chosen: Sequence[FileSummary]) -> Iterator[CheckRow]:
    largest = {
        one.name: one.expression.largest
        for one in chosen
        if one.expression and one.choice and one.choice.state == MatrixState.COUNTS
    }
    over = [name for name, value in largest.items() if value > _LARGEST_SHORT_COUNT]
    if over:
        yield CheckRow(
            "ok",
            "matrix",
            "large counts",
            f"{files_of(over)}: counts above 65,535 (up to {max(largest.values()):,.0f}) go to "
            f"the store's side table",
        )
