"""Checks of the labels: coverage, spelling, labels and combinations with few cells."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from core.cells.cell_labels import CellLabels
from core.cells.checks.label_table import LabelColumn, LabelTable
from core.cells.checks.report import CheckRow
from core.cells.checks.spelling import Variant, find_variants
from core.cells.checks.summary import FileSummary
from core.cells.phenotypes import PhenotypeColumn, requested_phenotypes
from core.presets.schema import DataSettings
from core.wording import files_of, listed, percentage

__all__ = ["RARE_CELLS", "check_phenotypes", "likely_column"]

#: Below this share of known labels a phenotype is warned of.
_COVERED = 0.5
#: Training cells below which a label is learnt by heart, if at all.
RARE_CELLS = 10
#: Cells below which a combination of labels gives no picture of its own.
_RARE_COMBINATION = 20
#: Share of cells in rare combinations that is warned of.
_MANY_RARE = 0.05
#: A phenotype of more labels than this share of its cells names single things.
_IDENTIFIER = 0.5
_IDENTIFIER_LABELS = 50
#: Spellings that one phenotype's rows spell out.
_MOST_VARIANTS = 8
_NOT_LETTERS = re.compile(r"[\W_]+")
#: What else the standard columns are called; compared without case, blanks and underscores.
_ALSO_CALLED = {
    "sex": ("gender",),
    "tissue": ("organ", "organtissue"),
    "celltype": ("celltypes", "cellontologyclass", "cellannotation", "annotation", "bulklabels"),
    "age": ("developmentstage", "age", "ageyears", "donorage", "ageatdiagnosis"),
    "disease": ("condition", "diagnosis", "diseasestatus", "healthstatus"),
    "donorid": (
        "donor", "patient", "patientid", "subject", "subjectid", "individual", "individualid",
        "participant", "participantid", "mouseid", "animalid", "sampleid", "sample",
    ),
}  # fmt: skip


def check_phenotypes(
    files: Sequence[FileSummary],
    data: DataSettings,
    table: LabelTable,
    labels: CellLabels | None,
) -> Iterator[CheckRow]:
    """Judge the labels of all files together.

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
    phenotypes = requested_phenotypes(data)
    yield from _absent(files, phenotypes, table)
    yield from _coverage(files, phenotypes, table)
    for column in table.phenotypes.values():
        yield from _spelling(column, table)
    if labels is not None:
        yield from _taught(labels, data)
        yield from _combinations(table, labels)


def likely_column(wanted: str, name: str, columns: Sequence[str]) -> str | None:
    """Find the obs column that is probably meant.

    Parameters
    ----------
    wanted
        The column that is not there.
    name
        The phenotype, by which other names are known.
    columns
        Those that are.
    """
    folded = {_folded(column): column for column in reversed(columns)}
    for candidate in (wanted, name, *_ALSO_CALLED.get(_folded(name), ())):
        found = folded.get(_folded(candidate))
        if found is not None:
            return found
    return None


def _folded(name: str) -> str:
    return _NOT_LETTERS.sub("", name.casefold())


def _absent(
    files: Sequence[FileSummary], phenotypes: Sequence[PhenotypeColumn], table: LabelTable
) -> Iterator[CheckRow]:
    """Phenotypes that no file has; a preset that names one is refused, which the faults tell."""
    refused = {row.subject for one in files for row in one.faults if row.family == "phenotypes"}
    absent = [
        phenotype
        for phenotype in phenotypes
        if phenotype.name not in table.phenotypes and phenotype.name not in refused
    ]
    if len(absent) == len(phenotypes) and not refused:
        yield CheckRow(
            "warn",
            "phenotypes",
            "coverage",
            "no phenotype is known of any cell: a model would learn genes alone",
            "map obs columns: --set data.phenotypes.cell_type=COLUMN",
        )
    silent = []
    for phenotype in absent:
        taken = {column.column for column in table.phenotypes.values()}
        free = [name for one in files for name in one.columns if name not in taken]
        similar = likely_column(phenotype.column, phenotype.name, list(dict.fromkeys(free)))
        if similar is None:
            silent.append(f"{phenotype.name} ('{phenotype.column}')")
            continue
        yield CheckRow(
            "warn",
            "phenotypes",
            "coverage",
            f"{phenotype.name}: no obs column '{phenotype.column}', though there is '{similar}'",
            f"--set data.phenotypes.{phenotype.name}={similar}, or =false to say that it is left "
            f"out",
            phenotype.name,
        )
    if silent:
        yield CheckRow(
            "ok",
            "phenotypes",
            "coverage",
            f"left out, no such obs columns: {', '.join(silent)}",
        )


def _coverage(
    files: Sequence[FileSummary], phenotypes: Sequence[PhenotypeColumn], table: LabelTable
) -> Iterator[CheckRow]:
    """Say how many cells each phenotype is known of, the unremarkable ones in one row."""
    everywhere: list[str] = []
    left_out: list[str] = []
    for phenotype in phenotypes:
        column = table.phenotypes.get(phenotype.name)
        if column is None:
            continue
        n_known, n_values = int(table.count(column).sum()), len(column.values)
        if n_values < 2:
            only = f"'{column.values[0]}'" if n_values else "no known label"
            # One that the preset names is refused, in the words of `tfx prepare`.
            left_out += [] if phenotype.explicit else [f"{phenotype.name} ({only})"]
        elif n_values > max(_IDENTIFIER * n_known, _IDENTIFIER_LABELS):
            yield CheckRow(
                "warn",
                "phenotypes",
                "coverage",
                f"{phenotype.name}: {n_values:,} labels for {n_known:,} cells; "
                f"'{phenotype.column}' names single things rather than kinds",
                f"map another column, or --set data.phenotypes.{phenotype.name}=false",
                phenotype.name,
            )
        elif n_known == table.n_cells:
            everywhere.append(f"{phenotype.name} ({n_values:,} labels)")
        else:
            yield _partly_known(files, phenotype, table, n_known)
    if everywhere:
        finding = f"known of every cell: {', '.join(everywhere)}"
        yield CheckRow("ok", "phenotypes", "coverage", finding)
    if left_out:
        finding = f"left out, one value only: {', '.join(left_out)}"
        yield CheckRow("ok", "phenotypes", "coverage", finding)


def _partly_known(
    files: Sequence[FileSummary], phenotype: PhenotypeColumn, table: LabelTable, n_known: int
) -> CheckRow:
    """Judge a phenotype that is unknown of some cells, or of all cells of some files."""
    lacking = [one for one in files if one.labels.get(phenotype.name) is None]
    is_poor = n_known < _COVERED * table.n_cells
    where, fix = "", f"fill the obs column '{phenotype.column}' in" if is_poor else ""
    if lacking:
        where = f"; no column '{phenotype.column}' in {files_of([one.name for one in lacking])}"
        similar = likely_column(phenotype.column, phenotype.name, lacking[0].columns)
        fix = (
            f"rename '{similar}' to '{phenotype.column}' in {lacking[0].name}"
            if similar
            else f"add the obs column '{phenotype.column}' if its labels are known"
        )
    return CheckRow(
        "warn" if is_poor or lacking else "ok",
        "phenotypes",
        "coverage",
        f"{phenotype.name}: known of {percentage(n_known, table.n_cells)} of cells{where}",
        fix,
        phenotype.name,
    )


def _spelling(column: LabelColumn, table: LabelTable) -> Iterator[CheckRow]:
    counts = dict(zip(column.values, table.count(column).tolist(), strict=True))
    variants = find_variants(counts)
    by_file = table.cross(column, table.files) if variants else None
    for variant in variants[:_MOST_VARIANTS]:
        where = ""
        if by_file is not None:
            rare, common = (
                set(np.flatnonzero(by_file[column.values.index(label)]))
                for label in (variant.rare, variant.common)
            )
            if not rare & common:
                names = [table.files.values[index] for index in sorted(rare)]
                where = f", only in {files_of(names)}"
        yield _spelling_row(column, variant, counts, where)
    if len(variants) > _MOST_VARIANTS:
        yield CheckRow(
            "warn",
            "phenotypes",
            "spelling",
            f"{column.name}: {len(variants) - _MOST_VARIANTS:,} further pairs of like labels",
            "bring the labels to one spelling",
            column.name,
        )


def _spelling_row(
    column: LabelColumn, variant: Variant, counts: dict[str, int], where: str
) -> CheckRow:
    how = "differ in form alone" if variant.kind == "form" else "differ by a slip"
    return CheckRow(
        "warn",
        "phenotypes",
        "spelling",
        f"{column.name}: '{variant.rare}' ({counts[variant.rare]:,} cells{where}) and "
        f"'{variant.common}' ({counts[variant.common]:,}) {how}, and count as two labels",
        f"if they are one, rename '{variant.rare}' to '{variant.common}' in obs '{column.column}'",
        column.name,
    )


def _taught(labels: CellLabels, data: DataSettings) -> Iterator[CheckRow]:
    """Labels that training hardly sees, or not at all."""
    any_rare = False
    for name, found in labels.phenotype_report.items():
        rare = sorted(
            (count, label) for label, count in found["training_cells"].items() if count < RARE_CELLS
        )
        if rare:
            any_rare = True
            names = [f"'{label}' ({count:,})" for count, label in rare]
            yield CheckRow(
                "warn",
                "phenotypes",
                "rare labels",
                f"{name}: {len(rare):,} of {len(found['training_cells']):,} labels with fewer than "
                f"{RARE_CELLS} training cells: {listed(names)}",
                "add cells, or merge them into a broader label",
                name,
            )
        if unmapped := found["unmapped_labels"]:
            names = [f"'{label}' ({count:,} cells)" for label, count in unmapped.items()]
            yield CheckRow(
                "warn",
                "phenotypes",
                "unknown labels",
                f"{name}: not among the values of training, so [NO_{name.upper()}]: {listed(names)}",
                "correct the labels or the vocabulary"
                if data.vocabulary
                else "add donors who have them, or try another data.split.seed",
                name,
            )
    if labels.phenotype_report and not any_rare:
        yield CheckRow(
            "ok",
            "phenotypes",
            "rare labels",
            f"every label has {RARE_CELLS} training cells or more",
        )


def _combinations(table: LabelTable, labels: CellLabels) -> Iterator[CheckRow]:
    columns = [column for name, column in table.phenotypes.items() if name in labels.phenotypes]
    if len(columns) < 2:
        return
    codes = np.column_stack([column.codes for column in columns])
    known = (codes >= 0).all(axis=1)
    if not known.any():
        return
    distinct, place = np.unique(codes[known], axis=0, return_inverse=True)
    cells = np.bincount(place.ravel(), weights=table.cells[known]).astype(np.int64)
    rare = np.flatnonzero(cells < _RARE_COMBINATION)
    possible = int(np.prod([len(column.values) for column in columns], dtype=float))
    names = " x ".join(column.name for column in columns)
    occurring = f"{len(distinct):,} of {possible:,} combinations of {names} occur"
    n_rare, n_known = int(cells[rare].sum()), int(cells.sum())
    if not len(rare):
        finding = f"{occurring}, each in {_RARE_COMBINATION} cells or more"
        yield CheckRow("ok", "phenotypes", "combinations", finding)
        return
    worst = [
        " + ".join(
            column.values[code] for column, code in zip(columns, distinct[index], strict=True)
        )
        + f" ({cells[index]:,})"
        for index in rare[np.argsort(cells[rare], kind="stable")]
    ]
    many = n_rare > _MANY_RARE * n_known
    yield CheckRow(
        "warn" if many else "ok",
        "phenotypes",
        "combinations",
        f"{occurring}, {len(rare):,} of them in fewer than {_RARE_COMBINATION} cells "
        f"({percentage(n_rare, n_known)} of the cells): {listed(worst)}",
        "cells generated for these and for those that do not occur are extrapolated: check them "
        "against real cells"
        if many
        else "",
    )
