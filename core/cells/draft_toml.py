"""The preset that `tfx init` writes for a user's files: TOML with a comment on every choice.

`choose_sizes` chooses what trains well on the cells that `core.cells.preset_draft` found, and `write_draft`
makes TOML of both. The choices are those of our own presets, which annotate and generate.
"""

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomlkit

from core.cells.preset_draft import DraftFacts
from core.errors import ConfigurationError
from core.files import replace_file
from core.presets.loading import resolve_text
from core.presets.schema import ALTERNATIVES, Preset
from core.presets.sources import Leaf
from core.presets.toml_text import write_key, write_value
from core.wording import visible

Device = Literal["cpu", "cuda", "mps"]

#: Column of the comments.
_WIDTH = 28
#: With fewer cells training soon repeats them.
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
batch_size = {batch_size}
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
norm = "pre"
initial_weights = "fan_in"
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
class Sizes:
    """Sizes of model and training, named as in a preset; ``genes`` are those of the panel."""

    genes: int
    layers: int
    hidden_size: int
    heads: int
    dropout: float
    log_linear_rank: int
    cell_states: int
    log_linear_weight_decay: float
    batch_size: int
    max_steps: int
    learning_rate: float
    encoder: Literal["attention", "pooled"] = "attention"


#: All genes of most files, in minutes (benchmarks/model.md).
_CPU = Sizes(2000, 3, 128, 4, 0.0, 0, 0, 0.3, 64, 3000, 2e-3, "pooled")
#: As in presets/pbmc68k.toml.
_FEW = dataclasses.replace(
    _CPU, dropout=0.1, log_linear_weight_decay=1.0, max_steps=600, learning_rate=1e-3
)
_CPU_MANY = dataclasses.replace(_CPU, max_steps=8000)
#: The learning rate that was best at width 64 (2e-3, benchmarks/model.md) falls as the width grows.
_GPU = Sizes(1024, 4, 256, 4, 0.1, 48, 64, 0.3, 64, 10_000, 5e-4)
_GPU_MANY = Sizes(2048, 6, 512, 8, 0.1, 64, 64, 0.3, 128, 30_000, 3e-4)


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
        if facts.values != "log1p values"
        else "library_size = false # true needs counts, whose total of each cell the model reads then"
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
    if facts.values == "log1p of counts":
        yield _setting(
            "values", "counts", "recovered from log1p values; auto: log1p values as they are"
        )
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
