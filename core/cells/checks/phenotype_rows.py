"""Checks of the labels: coverage, spelling, labels and combinations with few cells.

Names of cells are short and alike on purpose ("CD4 T cell", "CD8 T cell"; "stage 1", "stage 2";
"alpha cell", "beta cell"), so an edit distance alone would flag half of an ontology. Two rules of
spelling remain: names that differ only in form (case, blanks, underscores, hyphens, a plural), and a
rare name one typing error away from a frequent one, within a word of five letters or more.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from core.cells.ages import column_unit, gives_years, group_ages, is_prenatal, parse_age
from core.cells.cell_labels import CellLabels
from core.cells.checks.report import CheckRow, Rows
from core.cells.checks.survey import LabelColumn, LabelTable
from core.cells.obs_columns import likely_column
from core.cells.ontology import (
    INSTALL,
    find_deprecated,
    find_term,
    is_installed,
    term_id,
    term_name,
)
from core.cells.phenotypes import NO_COLUMNS, PhenotypeColumn, describe_joined, requested_phenotypes
from core.cells.spelling import is_missing, may_be_label
from core.wording import files_of, listed, percentage

#: Below this fraction of known labels a phenotype is warned of.
_COVERED = 0.5
#: Training cells below which a model hardly learns a label.
_RARE_CELLS = 10
#: Cells below which a combination of labels is rare, and the fraction of cells in rare ones that
#: is warned of.
_RARE_COMBINATION = 20
_MANY_RARE = 0.05
#: A phenotype with more labels than this fraction of its cells identifies single cells.
_IDENTIFIER = 0.5
_IDENTIFIER_LABELS = 50
#: Pairs of spellings that are listed for one phenotype.
_MOST_VARIANTS = 8
_GAPS = re.compile(r"(?:[\s_]|(?<=\w)-(?=\w))+")
#: "cells", not "mass", "virus" or "pelvis".
_PLURAL = re.compile(r"\b([^\W\d_]{2,}[^\W\d_sui])s\b")
#: Typing errors are searched in words of at least this many letters ...
_SHORTEST = 5
#: ... and in labels with at most this fraction of the cells of the label that they resemble.
_RARE = 0.05
#: More labels than this are identifiers, not groups: comparing all pairs takes seconds.
_MOST_LABELS = 2_000
#: One letter apart, and yet two things.
_DIFFERENT = (
    *(("micro", "macro"), ("inferior", "interior"), ("ileum", "ilium"), ("ileal", "ilial")),
    *(("perineal", "peroneal"), ("mucous", "mucus"), ("colonic", "clonic"), ("adduct", "abduct")),
)


def check_phenotypes(
    table: LabelTable, labels: CellLabels | None, *, by_name: bool = True
) -> list[CheckRow]:
    """Check the labels of all readable files together.

    ``labels`` is what `tfx prepare` would make of ``table``; None if it would stop. ``by_name``: look for
    deprecated ontology terms among names too, which reads whole ontologies, 1 s.
    """
    rows = Rows("phenotypes")
    phenotypes = requested_phenotypes(table.data)
    _absent(rows, phenotypes, table)
    _coverage(rows, phenotypes, table)
    for column in table.phenotypes.values():
        _decisions(rows, column, table)
        _spelling(rows, column, table)
        _terms(rows, column, table, by_name=by_name)
    if table.data.age_groups == "decade":
        _ages(rows, table)
    if labels is not None:
        _training_labels(rows, labels, has_vocabulary=bool(table.data.vocabulary))
        _combinations(rows, table, labels)
    return rows


def _absent(rows: Rows, phenotypes: Sequence[PhenotypeColumn], table: LabelTable) -> None:
    """Phenotypes that no file has; for one that the preset names, the faults have a row."""
    faults = [row for one in table.summaries for row in one.faults]
    with_fault = {row.subject for row in faults if row.family == "phenotypes"}
    covered = with_fault.union(table.phenotypes)
    absent = [phenotype for phenotype in phenotypes if phenotype.name not in covered]
    if len(absent) == len(phenotypes) and not with_fault:
        finding = "no cell has a known phenotype: a model would learn genes only"
        fix = "map obs columns: --set data.phenotypes.cell_type=COLUMN"
        rows.warn("coverage", finding, fix if table.obs_columns else NO_COLUMNS)
    used = {column.column for column in table.phenotypes.values()}
    free = [name for name in table.obs_columns if name not in used]
    left_out = []
    for phenotype in absent:
        name, column = phenotype.name, phenotype.column
        similar = likely_column(column, name, free)
        if similar is None:
            left_out.append(f"{name} ('{column}')")
            continue
        finding = f"there is no obs column '{column}', but there is '{similar}'"
        fix = f"--set data.phenotypes.{name}={similar}, or =false to leave it out"
        rows.warn("coverage", finding, fix, name)
    if left_out:
        rows.ok("coverage", f"left out, no such obs columns: {', '.join(left_out)}")


def _coverage(rows: Rows, phenotypes: Sequence[PhenotypeColumn], table: LabelTable) -> None:
    """How many cells have each phenotype; those that all cells have share one row."""
    everywhere, left_out = [], []
    for phenotype in phenotypes:
        name, found = phenotype.name, table.phenotypes.get(phenotype.name)
        if found is None:
            continue
        n_known, n_values = int(table.count(found).sum()), len(found.values)
        if n_values < 2:
            only = f"'{found.values[0]}'" if n_values else "no known label"
            # If the preset names it, `tfx prepare` stops, and its error has a row.
            left_out += [] if phenotype.explicit else [f"{name} ({only})"]
        elif n_values > max(_IDENTIFIER * n_known, _IDENTIFIER_LABELS):
            finding = (
                f"{n_values:,} labels for {n_known:,} cells; '{phenotype.column}' identifies single "
                f"cells rather than groups"
            )
            fix = f"map another column, or --set data.phenotypes.{name}=false"
            rows.warn("coverage", finding, fix, name)
        elif n_known == table.n_cells:
            everywhere.append(f"{name} ({n_values:,} labels)")
        else:
            _partly_known(rows, phenotype, table, n_known)
    if everywhere:
        rows.ok("coverage", f"known for every cell: {', '.join(everywhere)}")
    if left_out:
        rows.ok("coverage", f"left out, one value only: {', '.join(left_out)}")


def _partly_known(rows: Rows, phenotype: PhenotypeColumn, table: LabelTable, n_known: int) -> None:
    """Add the row of a phenotype that some cells, or all cells of some files, do not have."""
    name, column = phenotype.name, phenotype.column
    finding = f"known for {percentage(n_known, table.n_cells)} of cells"
    lacking = [one for one in table.summaries if one.labels.get(name) is None]
    if lacking:
        finding += f"; no column '{column}' in {files_of([one.name for one in lacking])}"
        fix = f"add the obs column '{column}' if you know its labels"
        if similar := likely_column(column, name, lacking[0].columns):
            fix = f"rename '{similar}' to '{column}' in {lacking[0].name}"
        rows.warn("coverage", finding, fix, name)
    elif n_known < _COVERED * table.n_cells:
        rows.warn("coverage", finding, f"fill in the obs column '{column}'", name)
    else:
        rows.ok("coverage", finding, name)


def _decisions(rows: Rows, column: LabelColumn, table: LabelTable) -> None:
    """Report what was taken as missing, what is a label though it may mean "missing", and what was joined."""
    name = column.name
    if column.missing:
        texts = sorted(column.missing.items(), key=lambda item: (-item[1], item[0]))
        finding = f"taken as not known: {listed([f'{text!r} ({n:,} cells)' for text, n in texts], most=6)}"
        if rare := [text for text, _ in texts if may_be_label(text, name)]:
            fix = f"if {rare[0]!r} is a label, rename it in obs '{column.column}', to 'control' for example"
            rows.warn("missing labels", finding, fix, name)
        else:
            rows.ok("missing labels", finding, name)
    counts = dict(zip(column.values, table.count(column).tolist(), strict=True))
    for label in filter(is_missing, column.values):
        part = percentage(counts[label], table.n_cells)
        finding = f"{label!r} ({counts[label]:,} cells, {part}) is common, so it is a label"
        rows.ok("missing labels", finding, name)
    if column.joined:
        rows.ok("joined labels", f"one label: {describe_joined(column.joined)}", name)


def _ages(rows: Rows, table: LabelTable) -> None:
    """Report which labels are in decades, and those that no decade holds."""
    column = table.phenotypes.get("age")
    if column is None:
        return
    counts: Counter[str] = Counter()
    for one in table.summaries:
        if (labels := one.labels.get("age")) is not None:
            for text, n in zip(labels.values, labels.cells(), strict=True):
                counts.update({} if is_missing(text) else {term_name(text) or text: n})
    unit = column_unit(column.column)
    if not gives_years(list(counts), unit):
        return
    groups = dict(zip(counts, group_ages(list(counts), unit), strict=True))
    ages = {text: parse_age(text, unit) for text in counts}
    left = [text for text, age in ages.items() if age is None or age.decade is None]
    odd = [
        f"'{text}' in {groups[text]}"
        for text, age in ages.items()
        if text not in left and text != groups[text] and age is not None
        if age.unit != "y" or age.low != age.high
    ]
    finding = f"{len(counts) - len(left):,} of {len(counts):,} labels are in decades"
    rows.ok("ages", finding + (f", {listed(odd, most=8)}" if odd else ""), "age")
    unborn = [text for text in left if is_prenatal(text)]
    if unborn:
        rows.ok("ages", f"before birth, and kept as labels: {listed(unborn, most=6)}", "age")
    if others := [f"'{text}' ({counts[text]:,} cells)" for text in left if text not in unborn]:
        finding = f"not an age within one decade, and kept as labels: {listed(others, most=6)}"
        fix = f"correct them in obs '{column.column}', or set data.age_groups = 'none'"
        rows.warn("ages", finding, fix, "age")


def _terms(rows: Rows, column: LabelColumn, table: LabelTable, *, by_name: bool) -> None:
    """Report deprecated ontology terms, and ids beside names that cannot be joined."""
    name = column.name
    ids = [label for label in column.values if term_id(label)]
    if not is_installed():
        if ids and len(ids) < len(column.values):
            finding = f"ids of ontology terms beside names: {listed(ids)}"
            rows.warn("ontology", finding, INSTALL, name)
        return
    # Ids that were joined with a name may be deprecated too.
    spelled = [*column.values, *(text for texts in column.joined.values() for text in texts)]
    written = sorted(text for text in spelled if by_name or term_id(text))
    for found in find_deprecated(written, name):
        finding = f"{found.label!r} is a deprecated term"
        finding += f" ({found.term})" if found.term != found.label else ""
        fix = f"replace it in obs '{column.column}'"
        fix += (
            f" by {' or '.join(found.replacements)}" if found.replacements else " by a term in use"
        )
        rows.warn("ontology", finding, fix, name)
    if unknown := [label for label in ids if find_term(label, name) is None]:
        finding = f"no terms of their ontology: {listed(unknown)}"
        rows.warn("ontology", finding, f"correct the ids in obs '{column.column}'", name)


def _spelling(rows: Rows, column: LabelColumn, table: LabelTable) -> None:
    counts = dict(zip(column.values, table.count(column).tolist(), strict=True))
    variants = find_variants(counts)
    by_file = table.cross(column, table.files) if variants else np.empty((0, 0))
    for rare, common, kind in variants[:_MOST_VARIANTS]:
        with_rare, with_common = (by_file[column.values.index(one)] > 0 for one in (rare, common))
        where = ""
        if not (with_rare & with_common).any():
            names = [table.files.values[index] for index in np.flatnonzero(with_rare)]
            where = f", only in {files_of(names)}"
        how = "differ only in form" if kind == "form" else "may differ by a typing error"
        finding = (
            f"'{rare}' ({counts[rare]:,} cells{where}) and '{common}' ({counts[common]:,}) {how}, "
            f"and count as two labels"
        )
        fix = f"if they are one, rename '{rare}' to '{common}' in obs '{column.column}'"
        rows.warn("spelling", finding, fix, column.name)
    if len(variants) > _MOST_VARIANTS:
        finding = f"{len(variants) - _MOST_VARIANTS:,} more pairs of similar labels"
        rows.warn("spelling", finding, "use one spelling for each label", column.name)


class Variant(NamedTuple):
    """Two spellings of one label, and whether they differ in form or by a typing error."""

    rare: str
    common: str
    kind: Literal["form", "slip"]


def find_variants(counts: Mapping[str, int]) -> list[Variant]:
    """Find pairs of labels (label -> cells) that are probably one, in the order of the labels."""
    variants: list[Variant] = []
    same: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        same[_form(label)].append(label)
    for spellings in same.values():
        common = max(spellings, key=lambda label: (counts[label], label))
        variants += [Variant(label, common, "form") for label in spellings if label != common]
    if len(counts) <= _MOST_LABELS:
        variants += _slips(counts, [max(group, key=counts.__getitem__) for group in same.values()])
    return sorted(variants, key=lambda variant: variant.rare)


def _slips(counts: Mapping[str, int], labels: list[str]) -> list[Variant]:
    words = {label: _words(label) for label in labels}
    by_length: dict[int, list[str]] = defaultdict(list)
    for label in labels:
        by_length[len(words[label])].append(label)
    found: list[Variant] = []
    for rare in labels:
        alike = [
            common
            for common in by_length[len(words[rare])]
            if counts[rare] <= _RARE * counts[common]
            and _one_word_slips(words[rare], words[common])
        ]
        if alike:
            found.append(Variant(rare, max(alike, key=counts.__getitem__), "slip"))
    return found


def _one_word_slips(first: list[str], second: list[str]) -> bool:
    """Whether all words are equal except for one typing error in one of them."""
    different = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    return len(different) == 1 and is_one_slip(*different[0])


def is_one_slip(first: str, second: str) -> bool:
    """Whether two words are one typing error apart: a letter lost, added or changed, or two swapped.

    Digits, words of fewer than five letters, a changed first letter, a changed index letter
    ("groupA", "groupB") and known pairs ("microglia", "macroglia") do not count.
    """
    a, b = first.casefold(), second.casefold()
    if a == b or not (a.isalpha() and b.isalpha()):
        return False
    if max(len(a), len(b)) < _SHORTEST or abs(len(a) - len(b)) > 1 or a[0] != b[0]:
        return False
    if len(a) == len(b) and a[:-1] == b[:-1] and (first[-1].isupper() or second[-1].isupper()):
        return False
    if any(_swaps(a, b, *pair) or _swaps(b, a, *pair) for pair in _DIFFERENT):
        return False
    start = next(i for i in range(len(a) + 1) if a[i : i + 1] != b[i : i + 1])
    if len(a) == len(b):
        swapped = a[start : start + 2] == b[start : start + 2][::-1]
        return a[start + 1 :] == b[start + 1 :] or (swapped and a[start + 2 :] == b[start + 2 :])
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    return longer[start + 1 :] == shorter[start:]


def _swaps(first: str, second: str, old: str, new: str) -> bool:
    return old in first and first.replace(old, new) == second


def _words(label: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", _PLURAL.sub(r"\1", label)) if word]


def _form(label: str) -> str:
    """Remove differences that do not change the meaning."""
    spaced = _GAPS.sub(" ", label.strip()).casefold()
    return _PLURAL.sub(r"\1", spaced)


def _training_labels(rows: Rows, labels: CellLabels, *, has_vocabulary: bool) -> None:
    """Labels with few training cells, or none."""
    for name, found in labels.phenotype_report.items():
        counts = found["training_cells"]
        rare = sorted((n, label) for label, n in counts.items() if n < _RARE_CELLS)
        if rare:
            shown = listed([f"'{label}' ({n:,})" for n, label in rare])
            few = f"{len(rare):,} of {len(counts):,} labels"
            finding = f"{few} with fewer than {_RARE_CELLS} training cells: {shown}"
            rows.warn("rare labels", finding, "add cells, or merge them into a broader label", name)
        if unmapped := found["unmapped_labels"]:
            shown = listed([f"'{label}' ({n:,} cells)" for label, n in unmapped.items()])
            become = f"so they become [NO_{name.upper()}]"
            fix = "add donors who have them, or try another data.split.seed"
            fix = "correct the labels or the vocabulary" if has_vocabulary else fix
            finding = f"training does not have these labels, {become}: {shown}"
            rows.warn("unknown labels", finding, fix, name)
    if labels.phenotype_report and not rows.has_warned("rare labels"):
        rows.ok("rare labels", f"every label has {_RARE_CELLS} training cells or more")


def _combinations(rows: Rows, table: LabelTable, labels: CellLabels) -> None:
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
    finding = f"{len(distinct):,} of {possible:,} combinations of {names} occur"
    if not len(rare):
        rows.ok("combinations", f"{finding}, each in {_RARE_COMBINATION} cells or more")
        return
    n_rare, n_known = int(cells[rare].sum()), int(cells.sum())
    rarest = []
    for index in rare[np.argsort(cells[rare], kind="stable")]:
        values = [one.values[code] for one, code in zip(columns, distinct[index], strict=True)]
        rarest.append(f"{' + '.join(values)} ({cells[index]:,})")
    finding += (
        f", {len(rare):,} of them in fewer than {_RARE_COMBINATION} cells "
        f"({percentage(n_rare, n_known)} of the cells): {listed(rarest)}"
    )
    if n_rare <= _MANY_RARE * n_known:
        rows.ok("combinations", finding)
        return
    extrapolated = (
        "cells generated for these and for combinations that do not occur are extrapolated"
    )
    rows.warn("combinations", finding, f"{extrapolated}: compare them with real cells")
