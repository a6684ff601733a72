"""The preset that `tfx init` writes for a user's files, with a comment on every choice.

`look_at_files` finds out what the cells are (the obs columns by `core.cells.obs_columns`), `choose_sizes`
what trains well on them, and `write_draft` makes TOML of both. The choices are those of our own presets,
which annotate and generate.
"""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomlkit
from pydantic import BaseModel, ValidationError

from core.cells.checks.check import check_data
from core.cells.checks.report import CheckReport
from core.cells.file_patterns import expand_files
from core.cells.obs_columns import FoundColumn, ObsColumns, find_columns
from core.cells.phenotypes import describe_joined
from core.cells.reading import open_source
from core.errors import ConfigurationError
from core.files import replace_file
from core.presets.fields import invalid_keys
from core.presets.loading import resolve_text
from core.presets.schema import ALTERNATIVES, DataSettings, Preset
from core.presets.sources import Leaf, read_assignments, read_options
from core.presets.toml_text import dotted, write_key, write_value
from core.progress import Listener, ProgressEvent, ignore_progress
from core.wording import listed, visible

Device = Literal["cpu", "cuda", "mps"]

#: Labels in a note, and warnings at the top of a preset.
_MOST_LABELS, _MOST_WARNINGS = 4, 8
#: Up to this number of donors, none is held out.
_FEW_DONORS = 5
#: Column of the comments.
_WIDTH = 28
#: With fewer cells the log-linear part learns nearly all that a large network could.
_FEW_CELLS = 2_000
_MANY_CELLS = 50_000
#: A panel smaller by a lower factor than this saves nothing.
_NEARLY_ALL = 1.5

#: What does not depend on the cells, except for sizes.
_TEMPLATE = """\
[encoding]
kind = "binned"
layout = "ranked" # every gene of the panel, in its order
bins = 8
edges = "gene_quantile" # the bins of each gene hold equally many cells
threshold = 0.0 # bin 0: not expressed

[masking]
genes = "uniform" # mask rates from one gene to all, for generation; 0.15: as in BERT
phenotypes = 0.5
visible_cells = 0.4 # fraction of cells that train annotation: all genes visible

[model] # sized for these cells and {machine}
{model}

[loss]
smoothing = 0.0
weighting = {weighting}

[train]
max_steps = {max_steps}
{log_linear_steps}batch_size = {batch_size}
learning_rate = {learning_rate}
log_linear_weight_decay = {log_linear_weight_decay}
warmup_ratio = 0.05
schedule = "cosine"
eval_steps = {eval_steps}
eval_cells = 600
save_steps = {eval_steps}

[generate]
steps = 64
"""

_ATTENTION = """\
layers = {layers}
hidden_size = {hidden_size}
heads = {heads}
dropout = {dropout}
{library_size}
log_linear = true # the classical part, to whose logits the encoder's are added
log_linear_rank = {log_linear_rank}
cell_states = {cell_states} # subtypes that no label names; 0: none
cell_summary = true # for tfx embed: [CLS] begins with principal components"""

#: From the first step on, beside class log-odds and regression (benchmarks/model.md).
_POOLED = """\
encoder = "pooled" # without attention: its time grows with the genes, not with their square
layers = {layers}
hidden_size = {hidden_size}
dropout = {dropout}
initial_weights = "fan_in"
{library_size}
log_linear = true # class log-odds and regression, to whose logits the encoder's are added
log_linear_rank = {log_linear_rank}"""


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
    #: "counts" or "log1p values".
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


@dataclass(frozen=True)
class Sizes:
    """Sizes of model and training, named as in a preset; ``genes`` are those of the panel."""

    genes: int
    layers: int
    hidden_size: int
    heads: int
    dropout: float
    log_linear_rank: int
    cell_states: int
    log_linear_steps: int
    log_linear_weight_decay: float
    batch_size: int
    max_steps: int
    learning_rate: float
    encoder: Literal["attention", "pooled"] = "attention"


#: As in presets/pbmc68k.toml.
_FEW = Sizes(256, 1, 48, 4, 0.2, 24, 0, 0, 1.0, 64, 600, 5e-4)
#: All genes of most files, in minutes (benchmarks/model.md).
_CPU = Sizes(2000, 3, 128, 4, 0.0, 0, 0, 0, 0.3, 64, 3000, 2e-3, "pooled")
_CPU_MANY = dataclasses.replace(_CPU, max_steps=8000)
_GPU = Sizes(1024, 4, 256, 4, 0.1, 48, 64, 2000, 0.3, 64, 10_000, 5e-4)
_GPU_MANY = Sizes(2048, 6, 512, 8, 0.1, 64, 64, 2000, 0.3, 128, 30_000, 3e-4)


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
        values="counts" if facts["values"] == "counts" else "log1p values",
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


def choose_sizes(n_cells: int, n_genes: int, device: Device, *, n_listed: int = 0) -> Sizes:
    """Choose what trains on these cells in minutes on a CPU, or in about an hour on a GPU.

    The panel has room for ``n_listed`` genes that the user names.
    """
    if n_cells < _FEW_CELLS:
        sizes = _FEW
    elif device == "cpu":
        sizes = _CPU if n_cells < _MANY_CELLS else _CPU_MANY
    else:
        sizes = _GPU if n_cells < _MANY_CELLS else _GPU_MANY
    n_training = max(int(0.8 * n_cells), 1)
    # The largest power of two that leaves four batches, 1 at least.
    largest_batch = 1 << max((n_training // 4).bit_length() - 1, 0)
    return dataclasses.replace(
        sizes,
        genes=max(sizes.genes, n_listed) if n_genes > _NEARLY_ALL * sizes.genes else n_genes,
        log_linear_rank=min(sizes.log_linear_rank, n_genes),
        batch_size=min(sizes.batch_size, largest_batch),
    )


def write_draft(facts: DraftFacts, sizes: Sizes, *, path: str, device: Device) -> str:
    """Write the preset as TOML; texts of the user are quoted, or made printable in comments.

    ``path`` is where it will be saved, for the commands at its top; ``device`` is what the sizes
    were chosen for.
    """
    values, is_pooled = dataclasses.asdict(sizes), sizes.encoder == "pooled"
    values["library_size"] = (
        "library_size = true # the model reads the total counts of each cell"
        if facts.values == "counts"
        else "library_size = false # true needs counts, whose total of each cell the model reads then"
    )
    values["log_linear_steps"] = (
        ""
        if is_pooled
        else f"log_linear_steps = {sizes.log_linear_steps} # first steps, which train the log-linear part "
        "alone, quickly\n"
    )
    values |= {
        "machine": "a CPU" if device == "cpu" else "a GPU",
        "model": (_POOLED if is_pooled else _ATTENTION).format(**values),
        "weighting": '"mean"'
        if is_pooled
        else "\"rate\" # the likelihood bound, for masking.genes = 'uniform'",
        "eval_steps": max(sizes.max_steps // 6 // 100 * 100, 100),
    }
    fixed = _TEMPLATE.format(**values)
    aligned = [_line(*line.partition(" # ")[::2]) for line in fixed.splitlines()]
    return "\n".join([*_head(facts, path), *_data(facts, sizes), *aligned, ""])


def with_changes(text: str, changes: Sequence[Leaf]) -> str:
    """Return the TOML of a draft with what the user sets; a comment names the option."""
    document = tomlkit.parse(text)
    for leaf in changes:
        if (rival := ALTERNATIVES.get(leaf.path)) is not None and leaf.value is not None:
            document.get(rival[0], {}).pop(rival[1], None)
        table: Any = document
        for part in leaf.path[:-1]:
            table = table.setdefault(part, tomlkit.table())
        if leaf.value is None:
            table.pop(leaf.path[-1], None)
        else:
            option = leaf.source.name.partition(" ")[0]
            table[leaf.path[-1]] = tomlkit.value(write_value(leaf.value)).comment(option)
    return tomlkit.dumps(document)


def save_draft(text: str, path: Path) -> Preset:
    """Write a draft to a new file, after checking that it is a valid preset, and return the preset."""
    preset = resolve_text(text, where=path).preset
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise ConfigurationError(f"{path} exists; choose another name")
    replace_file(path, text)
    return preset


def _head(facts: DraftFacts, path: str) -> Iterator[str]:
    cells = f"{facts.n_cells:,} cells x {facts.n_genes:,} genes, {facts.values}"
    shown = shlex.quote(path)
    lines = [
        f" Written by 'tfx init' for {facts.n_files:,} file{'s' * (facts.n_files != 1)}: {cells}.",
        " Change what you like; 'tfx presets schema' explains every key.",
        "",
        f"   tfx train {shown} --dry-run      memory and time",
        f"   tfx train {shown}",
        f"   tfx eval{' --cross-validate donors' * facts.has_few_donors}",
        "   tfx generate -n 1000 -o cells.h5ad",
    ]
    if facts.warnings:
        lines += ["", " Warnings ('tfx check' has more):"]
        lines += [f" - {warning}" for warning in facts.warnings]
    yield from (f"#{visible(line)}" for line in lines)
    yield ""


def _data(facts: DraftFacts, sizes: Sizes) -> Iterator[str]:
    yield "[data]"
    yield f"files = {write_value(list(facts.files))}"
    matrix = "in every file" if facts.matrix != "auto" else "the files have different matrices"
    yield _setting("matrix", facts.matrix, f"{facts.values}, {matrix}")
    yield _setting("genes", sizes.genes, f"of {facts.n_genes:,}, most variable first")
    yield f"# gene ids: {visible(facts.gene_ids)}"
    yield ""
    yield _line("[data.phenotypes]", "phenotype = obs column")
    yield from (_setting(one.phenotype, one.column, one.note) for one in facts.phenotypes)
    yield from (_setting(one.phenotype, value=False, note=one.note) for one in facts.left_out)
    for name in facts.partial:
        text = f"{name}: some files have no such column; their cells get [NO_{name.upper()}]"
        yield f"# {visible(text)}"
    if facts.further:
        yield "# these columns could be phenotypes too:"
        yield from (f"# {_setting(one.phenotype, one.column, one.note)}" for one in facts.further)
    yield ""
    yield "[data.split]"
    yield _setting("by", facts.split_by, facts.split_note)
    fraction = 0.0 if facts.has_few_donors else 0.1
    last = "the model folder holds the last step" if facts.has_few_donors else ""
    yield _setting("validation", fraction, last)
    yield _setting("test", fraction, "")
    yield ""


def _setting(key: str, value: object, note: str) -> str:
    return _line(f"{write_key(key)} = {write_value(value)}", note)


def _line(setting: str, note: str) -> str:
    return f"{setting:<{_WIDTH - 1}} # {visible(note)}" if note else setting
