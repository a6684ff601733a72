"""Checks of the split: donors that leak, are few, or are confounded with a phenotype."""

import numpy as np
from numpy.typing import NDArray

from core.cells.cell_labels import CellLabels
from core.cells.checks.phenotype_rows import find_variants
from core.cells.checks.report import CheckRow, Rows
from core.cells.checks.survey import LabelColumn, LabelTable
from core.cells.obs_columns import likely_column
from core.cells.phenotypes import describe_joined
from core.wording import listed, percentage

#: A donor or file has one value if this fraction of its cells has it.
_PURE = 0.99
#: With fewer donors, a value cannot be distinguished from its donors, and the scores of a split
#: are the scores of its donors.
_FEW_DONORS = 3
_OPTIMISTIC = "single cells are split, stratified by phenotype, so scores may be too optimistic"


def check_donors(table: LabelTable, labels: CellLabels | None) -> list[CheckRow]:
    """Check the split, and phenotypes that are confounded with donor, file or batch.

    ``labels`` is what `tfx prepare` would make of ``table``; None if it would stop.
    """
    rows = Rows("donors")
    _split(rows, table, labels)
    if table.donors is not None:
        _spelling(rows, table, table.donors)
        _leakage(rows, table, table.donors)
    _confounding(rows, table, labels)
    return rows


def _split(rows: Rows, table: LabelTable, labels: CellLabels | None) -> None:
    by = table.data.split.by
    if by == "cells":
        rows.ok("split", "single cells are split, as data.split.by = 'cells' requests")
        return
    if table.donors is None:
        if labels is None and "by" in table.data.split.model_fields_set:
            return  # the error of `tfx prepare` has a row
        similar = likely_column(by, "donor_id", table.obs_columns)
        fix = "--set data.split.by=COLUMN, or =cells if you intend this"
        fix = f"--set data.split.by={similar}, if it names donors" if similar else fix
        rows.warn("split", f"there is no obs column '{by}'; {_OPTIMISTIC}", fix)
        return
    if labels is None:
        return
    n_donors = len(table.donors.values)
    if labels.split.method == "stratified":
        few = f"obs column '{by}' has too few values ({n_donors}) to hold some out"
        fix = "add donors, or read the scores as those of known donors"
        rows.warn("split", f"{few}; {_OPTIMISTIC}", fix)
        return
    per_split = {name: len(donors) for name, donors in labels.split_report["donors"].items()}
    finding = f"{n_donors:,} donors ({', '.join(f'{n:,} {name}' for name, n in per_split.items())})"
    if any(0 < per_split.get(name, 0) < _FEW_DONORS for name in ("validation", "test")):
        finding += ": the scores of a split with so few donors depend on these donors"
        fix = "add donors, raise data.split.validation and test, repeat with other data.split.seed, or hold "
        fix += (
            "none out (data.split.validation = test = 0) and run 'tfx eval --cross-validate donors'"
        )
        rows.warn("split", finding, fix)
    else:
        rows.ok("split", finding)
    if n_unknown := table.n_cells - int(table.count(table.donors).sum()):
        unknown = f"{n_unknown:,} of {table.n_cells:,} cells"
        unknown += f" ({percentage(n_unknown, table.n_cells)})"
        fix = "fill in the column: their donors may be held out as well"
        rows.warn("unknown donors", f"{unknown} have no known '{by}' and are used to train", fix)


def _spelling(rows: Rows, table: LabelTable, donors: LabelColumn) -> None:
    """Report donors that may be one: cells of theirs could be on both sides of the split."""
    if donors.joined:
        rows.ok("joined donors", f"one donor: {describe_joined(donors.joined)}")
    counts = dict(zip(donors.values, table.count(donors).tolist(), strict=True))
    alike = [one for one in find_variants(counts) if one.kind == "form"]
    if alike:
        pairs = listed([f"'{one.rare}' and '{one.common}'" for one in alike])
        finding = f"names of donors that differ only in form: {pairs}"
        fix = f"if they are one donor, use one name in obs '{donors.column}'"
        rows.warn("spelling", finding, fix)


def _leakage(rows: Rows, table: LabelTable, donors: LabelColumn) -> None:
    roles = np.array([one.role for one in table.summaries])
    if not np.isin(roles, ["validation", "test"]).any():
        return
    by_file = table.cross(donors, table.files)
    training = by_file[:, np.isin(roles, ["all", "train"])].sum(axis=1) > 0
    for role in ("validation", "test"):
        held_out = by_file[:, roles == role].sum(axis=1)
        shared = np.flatnonzero(training & (held_out > 0))
        if len(shared):
            names = listed([donors.values[donor] for donor in shared])
            cells = percentage(int(held_out[shared].sum()), int(held_out.sum()))
            finding = (
                f"data.{role}_files share {len(shared):,} donors with data.files ({names}), "
                f"{cells} of their cells, so scores may be too optimistic"
            )
            rows.warn("leakage", finding, "move all cells of a donor to one side")
    if not rows.has_warned("leakage"):
        rows.ok("leakage", "no donor is on both sides of a given split")


def confounded_values(crossed: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Count the groups (donors, files) of each value, if groups determine the value.

    ``crossed`` is (values, groups), cells. Returns (values,), or None unless each group has one
    value (99 % of its cells) and there are at least two groups and two values.
    """
    inside = crossed[:, crossed.any(axis=0)]
    if inside.shape[1] < 2 or crossed.any(axis=1).sum() < 2:
        return None
    if (inside.max(axis=0) < _PURE * inside.sum(axis=0)).any():
        return None
    return np.bincount(inside.argmax(axis=0), minlength=len(crossed))


def _confounding(rows: Rows, table: LabelTable, labels: CellLabels | None) -> None:
    clean = []
    for name, column in table.phenotypes.items():
        if (labels is not None and name not in labels.phenotypes) or len(column.values) < 2:
            continue
        n_donors = None
        if table.donors is not None:
            n_donors = confounded_values(table.cross(column, table.donors))
        few = [] if n_donors is None else sorted(zip(n_donors, column.values, strict=True))
        few = [(n, value) for n, value in few if 0 < n < _FEW_DONORS]
        if not few:
            clean += [] if n_donors is None else [name]
            _confounded_with_group(rows, table, column)
            continue
        values = [f"'{value}' has {n} donor{'' if n == 1 else 's'}" for n, value in few]
        finding = f"every donor has one value, and {listed(values)}: "
        finding += f"differences between these donors look like {name}"
        fix = f"add donors, or read results on {name} as results on donors"
        rows.warn("confounding", finding, fix, name)
    if clean:
        finding = f"{', '.join(clean)}: one value per donor, {_FEW_DONORS} donors or more of each"
        rows.ok("confounding", finding)


def _confounded_with_group(rows: Rows, table: LabelTable, column: LabelColumn) -> None:
    """Find the first of file, batch and assay that determines a phenotype."""
    name = column.name
    for group in (table.files, *table.batches):
        if group.column == column.column:
            continue
        n_groups = confounded_values(table.cross(column, group))
        if n_groups is None or not (n_groups == 1).any():
            continue
        alone = [column.values[value] for value in np.flatnonzero(n_groups == 1)]
        have = "has" if len(alone) == 1 else "have"
        single = f"{listed(alone)} {have} a single {group.name}"
        finding = f"every {group.name} has one value, and {single}: technical differences look like"
        fix = f"add a {group.name} with several values, or read results on {name} with care"
        rows.warn("confounding", f"{finding} {name}", fix, name)
        return
