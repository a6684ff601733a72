"""Checks of the split: donors that leak, are few, or cannot be told from a phenotype."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from core.cells.cell_labels import CellLabels
from core.cells.checks.label_table import LabelColumn, LabelTable
from core.cells.checks.phenotype_rows import likely_column
from core.cells.checks.report import CheckRow
from core.cells.checks.summary import FileSummary
from core.presets.schema import DataSettings
from core.wording import listed, percentage

__all__ = ["check_donors", "confounded_values"]

#: A donor or file counts as being of one value if this share of its cells is.
_PURE = 0.99
#: A value of fewer donors cannot be told from these donors.
_FEW_DONORS = 3
#: Scores of a split of fewer donors are those donors' scores.
_FEW_HELD_OUT = 3


def check_donors(
    files: Sequence[FileSummary],
    data: DataSettings,
    table: LabelTable,
    labels: CellLabels | None,
) -> Iterator[CheckRow]:
    """Judge the split, and what cannot be learnt apart from donor, file or batch.

    Parameters
    ----------
    files
        Files whose tables could be read.
    data
        The preset's data section.
    table
        Their labels.
    labels
        What `tfx prepare` would make of them; None where it would refuse.
    """
    yield from _split(files, data, table, labels)
    yield from _leakage(files, table)
    yield from _confounded(table, labels)


def _split(
    files: Sequence[FileSummary],
    data: DataSettings,
    table: LabelTable,
    labels: CellLabels | None,
) -> Iterator[CheckRow]:
    if data.split.by == "cells":
        yield CheckRow(
            "ok", "donors", "split", "single cells are split, as data.split.by = 'cells' asks"
        )
        return
    if table.donors is None and labels is None and "by" in data.split.model_fields_set:
        return  # refused for it, as the faults tell
    if table.donors is None:
        columns = list(dict.fromkeys(name for one in files for name in one.columns))
        similar = likely_column(data.split.by, "donor_id", columns)
        yield CheckRow(
            "warn",
            "donors",
            "split",
            f"there is no obs column '{data.split.by}'; single cells are split, stratified by "
            f"phenotype, so scores may flatter",
            f"--set data.split.by={similar}, if it names donors"
            if similar
            else "--set data.split.by=COLUMN, or =cells to say that it is meant so",
        )
        return
    if labels is None:
        return
    per_split = labels.split_report.get("donors", {})
    n_donors = len(table.donors.values)
    if labels.split.method == "stratified":
        yield CheckRow(
            "warn",
            "donors",
            "split",
            f"obs column '{data.split.by}' has too few values ({n_donors}) to hold some out; single "
            f"cells are split, stratified by phenotype, so scores may flatter",
            "add donors, or read the scores as those of known donors",
        )
        return
    dealt = ", ".join(f"{len(names):,} {split}" for split, names in per_split.items())
    if any(0 < len(per_split.get(split, [])) < _FEW_HELD_OUT for split in ("validation", "test")):
        yield CheckRow(
            "warn",
            "donors",
            "split",
            f"{n_donors:,} donors ({dealt}): the scores of a split of so few donors are scores of "
            f"these donors",
            "add donors, raise data.split.validation and test, or repeat with other data.split.seed",
        )
    else:
        yield CheckRow("ok", "donors", "split", f"{n_donors:,} donors ({dealt})")
    n_unknown = table.n_cells - int(table.count(table.donors).sum())
    if n_unknown:
        yield CheckRow(
            "warn",
            "donors",
            "unknown donors",
            f"{n_unknown:,} of {table.n_cells:,} cells ({percentage(n_unknown, table.n_cells)}) have no "
            f"known '{data.split.by}' and are used to train",
            "fill the column in: their donors may be held out as well",
        )


def _leakage(files: Sequence[FileSummary], table: LabelTable) -> Iterator[CheckRow]:
    roles = np.array([one.role for one in files])
    if table.donors is None or not {"validation", "test"} & set(roles.tolist()):
        return
    by_file = table.cross(table.donors, table.files)
    training = by_file[:, np.isin(roles, ["all", "train"])].sum(axis=1) > 0
    any_shared = False
    for role in ("validation", "test"):
        held_out = by_file[:, roles == role].sum(axis=1)
        shared = np.flatnonzero(training & (held_out > 0))
        if not len(shared):
            continue
        any_shared = True
        names = [table.donors.values[donor] for donor in shared]
        n_cells = int(held_out[shared].sum())
        yield CheckRow(
            "warn",
            "donors",
            "leakage",
            f"data.{role}_files share {len(shared):,} donors with data.files ({listed(names)}), "
            f"{percentage(n_cells, int(held_out.sum()))} of their cells, so scores may flatter",
            "move all cells of a donor to one side",
        )
    if not any_shared:
        yield CheckRow("ok", "donors", "leakage", "no donor is on both sides of a given split")


def confounded_values(crossed: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Count groups per value, if a group tells the value.

    Parameters
    ----------
    crossed
        (values, groups), cells.

    Returns
    -------
    (values,), groups (donors, files) of each value; None unless each group is of one value (99 %
    of its cells) and there are two groups and two values or more.
    """
    inside = crossed[:, crossed.sum(axis=0) > 0]
    n_values = int(np.sum(crossed.sum(axis=1) > 0))
    if inside.shape[1] < 2 or n_values < 2:
        return None
    pure = inside.max(axis=0) >= _PURE * inside.sum(axis=0)
    if not pure.all():
        return None
    return np.bincount(inside.argmax(axis=0), minlength=len(crossed))


def _confounded(table: LabelTable, labels: CellLabels | None) -> Iterator[CheckRow]:
    phenotypes = [
        column
        for name, column in table.phenotypes.items()
        if (labels is None or name in labels.phenotypes) and len(column.values) > 1
    ]
    told = set()
    clean = []
    for column in phenotypes:
        n_donors = None
        if table.donors is not None:
            n_donors = confounded_values(table.cross(column, table.donors))
        few = [] if n_donors is None else _few(column, n_donors)
        if few:
            told.add(column.name)
            yield CheckRow(
                "warn",
                "donors",
                "confounding",
                f"{column.name}: every donor has one value, and {listed(few)}: what sets these "
                f"donors apart looks like {column.name}",
                f"add donors, or read results on {column.name} as results on donors",
                column.name,
            )
        elif n_donors is not None:
            clean.append(column.name)
    if clean:
        yield CheckRow(
            "ok",
            "donors",
            "confounding",
            f"{', '.join(clean)}: one value per donor, {_FEW_DONORS} donors or more of each",
        )
    for column in phenotypes:
        if column.name not in told:
            yield from _confounded_with_group(table, column)


def _few(column: LabelColumn, n_donors: NDArray[np.int64]) -> list[str]:
    few = np.flatnonzero((n_donors > 0) & (n_donors < _FEW_DONORS))
    return [
        f"'{column.values[value]}' has {n_donors[value]} donor{'' if n_donors[value] == 1 else 's'}"
        for value in few[np.argsort(n_donors[few], kind="stable")]
    ]


def _confounded_with_group(table: LabelTable, column: LabelColumn) -> Iterator[CheckRow]:
    """Find the file, batch or assay that tells a phenotype, some value of it alone."""
    for group in (table.files, *table.batches.values()):
        if group.column == column.column:
            continue
        n_groups = confounded_values(table.cross(column, group))
        if n_groups is None or not (n_groups == 1).any():
            continue
        alone = [column.values[value] for value in np.flatnonzero(n_groups == 1)]
        what = "file" if group is table.files else group.name
        yield CheckRow(
            "warn",
            "donors",
            "confounding",
            f"{column.name}: every {what} has one value, and {listed(alone)} "
            f"{'has' if len(alone) == 1 else 'have'} a single {what}: technical differences look "
            f"like {column.name}",
            f"add a {what} in which the values meet, or read results on {column.name} with care",
            column.name,
        )
        return
