"""What a user's files hold, for the preset that `tfx init` writes for them (`core.cells.draft_toml`)."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from core.cells.checks.check import check_data
from core.cells.checks.report import CheckReport
from core.cells.file_patterns import expand_files
from core.cells.obs_columns import FoundColumn, ObsColumns, find_columns
from core.cells.phenotypes import describe_joined
from core.cells.reading import open_source
from core.errors import ConfigurationError
from core.presets.fields import invalid_keys
from core.presets.schema import DataSettings
from core.presets.sources import Leaf, read_assignments, read_options
from core.presets.toml_text import dotted
from core.progress import Listener, ProgressEvent, ignore_progress
from core.wording import listed

#: Labels in a note, and warnings at the top of a preset.
_MOST_LABELS, _MOST_WARNINGS = 4, 8
#: Up to this number of donors, none is held out.
_FEW_DONORS = 5


@dataclass(frozen=True)
class ColumnNote:
    """A phenotype of the draft, or an obs column that could be one, with a note on its labels."""

    phenotype: str
    column: str
    note: str


@dataclass(frozen=True)
class DraftFacts:
    """What the user's files hold."""

    #: As the user named them, and their number after expansion.
    files: Sequence[str]
    n_files: int
    n_cells: int
    #: Genes that all files have.
    n_genes: int
    #: "X", "raw" or "layers/NAME"; "auto" if the files differ.
    matrix: str
    #: "counts", "log1p of counts" (from which they can be recovered) or "log1p values".
    values: str
    #: Where the gene ids are, in words.
    gene_ids: str
    #: What the model learns, and uses as control tokens.
    phenotypes: Sequence[ColumnNote]
    #: obs column of the donors, or "cells"; and why.
    split_by: str
    split_note: str
    #: Whether there are too few donors to hold some out.
    has_few_donors: bool = False
    #: Standard phenotypes that cannot be learnt (one value only, for instance).
    left_out: Sequence[ColumnNote] = ()
    #: Standard phenotypes whose column some files lack.
    partial: Sequence[str] = ()
    #: Columns that could be phenotypes, for the user to uncomment.
    further: Sequence[ColumnNote] = ()
    #: Warnings of `tfx check`, one sentence each.
    warnings: Sequence[str] = ()


class _DataSection(BaseModel):
    """The settings under their key of a preset, by which errors name them."""

    data: DataSettings


def draft_changes(assignments: Sequence[str], genes: str | None = None) -> list[Leaf]:
    """Read what the user sets in a draft: ``a.b=c`` of `--set`, and `--genes`, a number or a file of names.

    ConfigurationError lists what is no key or no value.
    """
    options: dict[str, object] = {}
    if genes is not None and genes.strip().isdigit():
        options["data.genes"] = int(genes)
    elif genes is not None:
        options["data.genes_file"] = genes
    named = dict.fromkeys(options, "--genes")
    sources = [*read_options(options, named), *read_assignments(assignments)]
    if problems := [str(problem) for source in sources for problem in source.problems]:
        raise ConfigurationError(*problems)
    return [leaf for source in sources for leaf in source.leaves]


def look_at_files(
    files: Sequence[str], *, changes: Sequence[Leaf] = (), on_progress: Listener = ignore_progress
) -> DraftFacts:
    """Look at tables and first values of h5ad files, which takes seconds, whatever their size.

    ``files`` are paths, globs, brace patterns or built-in data sets; ``changes`` of data.* count. If `tfx train` would stop
    because of one phenotype, the draft leaves it out with the reason; DataError lists all other
    reasons. Progress stages are "reading labels" and "checking files".
    """
    paths = expand_files(files)
    tables = []
    for done, path in enumerate(paths):
        on_progress(ProgressEvent("reading labels", done, len(paths)))
        with closing(open_source(path)) as source:
            tables.append(source.obs)
    on_progress(ProgressEvent("reading labels", len(paths), len(paths)))
    columns = find_columns(tables)
    unfit: dict[str, str] = {}
    while True:
        phenotypes = [one for one in columns.phenotypes if one.name not in unfit]
        mapped: dict[str, str | bool] = {one.name: one.column for one in phenotypes}
        mapped |= dict.fromkeys([*(one.name for one in columns.single), *unfit], False)
        split: dict[str, object] = {"by": "cells"}
        if columns.donors is not None:
            split = {"by": columns.donors.column}
            if len(columns.donors.values) <= _FEW_DONORS:
                split |= {"validation": 0.0, "test": 0.0}
        settings: dict[str, Any] = {"files": list(files), "phenotypes": mapped, "split": split}
        for leaf in changes:
            if leaf.path[0] == "data" and leaf.value is not None:
                table = settings if len(leaf.path) == 2 else settings[leaf.path[1]]
                table[leaf.path[-1]] = leaf.value
        report = check_data(_checked(settings), scope="tables", on_progress=on_progress)
        faults = {
            row.subject or _phenotype_of(row.finding, phenotypes): row.finding
            for row in report.of_level("fail")
            if row.family == "phenotypes"
        }
        new = {one.name: faults[one.name] for one in phenotypes if one.name in faults}
        if not new:
            break
        unfit |= new
    report.raise_failures()
    return _facts(files, len(paths), columns, unfit, report)


def _checked(settings: Mapping[str, Any]) -> DataSettings:
    try:
        return _DataSection.model_validate({"data": settings}, strict=True).data
    except ValidationError as error:
        invalid = invalid_keys(error.errors(include_url=False))
        raise ConfigurationError(
            *(f"--set {dotted(one.path)}: {one.message}" for one in invalid)
        ) from None


def _phenotype_of(finding: str, phenotypes: Sequence[FoundColumn]) -> str:
    """Return the phenotype of an error whose message has data.phenotypes.NAME."""
    named = [one.name for one in phenotypes if f"data.phenotypes.{one.name} " in finding]
    return max(named, key=len, default="")


def _facts(
    files: Sequence[str],
    n_files: int,
    columns: ObsColumns,
    unfit: dict[str, str],
    report: CheckReport,
) -> DraftFacts:
    facts = report.facts
    # Costs are for `tfx check`, which reads every value.
    warnings = [row.finding for row in report.without("cost").of_level("warn")]
    if len(warnings) > _MOST_WARNINGS:
        warnings[_MOST_WARNINGS - 1 :] = [f"and {len(warnings) - _MOST_WARNINGS + 1} more"]

    def described(found: Sequence[FoundColumn]) -> list[ColumnNote]:
        return [ColumnNote(one.name, one.column, _note(one, facts["cells"])) for one in found]

    reasons = {
        one: f" has one value only, {_short(one.values[0])}"
        if one.values
        else " has no known label"
        for one in columns.single
    }
    # The reason without its place, which is the line of the preset.
    reasons |= {
        one: f": {unfit[one.name].partition(') ')[2] or unfit[one.name]}"
        for one in columns.phenotypes
        if one.name in unfit
    }
    matrices = {one["matrix"] for one in facts["files"]}
    split_by = "cells"
    split_note = (
        "no column with three donors or more: single cells are split, scores may be too optimistic"
    )
    has_few_donors = False
    if columns.donors is not None:
        split_by, n_donors = columns.donors.column, len(columns.donors.values)
        split_note = f"{n_donors:,} donors, each in one split"
        if has_few_donors := n_donors <= _FEW_DONORS:
            split_note = (
                f"{n_donors:,} donors are too few to hold some out: all train the model, and "
                f"'tfx eval --cross-validate donors' scores it"
            )
    return DraftFacts(
        files=files,
        n_files=n_files,
        n_cells=facts["cells"],
        n_genes=facts["genes"],
        matrix=matrices.pop() if len(matrices) == 1 else "auto",
        values=_values(facts),
        gene_ids=" or ".join(dict.fromkeys(one["gene_ids"] for one in facts["files"])),
        phenotypes=described([one for one in columns.phenotypes if one.name not in unfit]),
        left_out=[
            ColumnNote(one.name, one.column, f"obs column {one.column!r}{reason}")
            for one, reason in reasons.items()
        ],
        partial=columns.partial,
        further=described(columns.further),
        split_by=split_by,
        split_note=split_note,
        has_few_donors=has_few_donors,
        warnings=warnings,
    )


def _values(facts: dict[str, Any]) -> str:
    if facts["values"] == "counts":
        return "counts"
    recovers = all(one["recovers_counts"] for one in facts["files"])
    return "log1p of counts" if recovers else "log1p values"


def _note(found: FoundColumn, n_cells: int) -> str:
    named = "; ".join(_short(value) for value in found.values[:_MOST_LABELS])  # labels have commas
    more = "; ..." if len(found.values) > _MOST_LABELS else ""
    known = "" if found.n_known == n_cells else f", known for {found.n_known:,} cells"
    notes = []
    if found.missing:
        texts = [f"{_short(text)!r} ({n:,} cells)" for text, n in found.missing.items()]
        notes.append(f"not known: {listed(texts)}")
    if found.joined:
        notes.append(f"one label: {describe_joined(found.joined)}")
    if found.twins:
        notes.append(f"the same as {listed(found.twins)}")
    values = f"{len(found.values):,} values{known}: {named}{more}"
    return f"{values} ({'; '.join(notes)})" if notes else values


def _short(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:37]}..."
