"""A preset for cells that somebody has looked at: sizes that fit them, and a comment on every choice.

What the cells are is found out elsewhere (`core.cells.preset_draft`); here it becomes text that
`resolve_preset` reads. The choices are those of our own presets, which annotate and generate.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core.errors import ConfigurationError
from core.files import replace_file
from core.presets.loading import ResolvedPreset
from core.presets.toml_text import printable, write_key, write_value

__all__ = ["ColumnNote", "DraftFacts", "Sizes", "choose_sizes", "save_draft", "write_draft"]

Device = Literal["cpu", "cuda", "mps"]

#: Fewer cells teach a large network little: nearly all is the log-linear part.
_FEW_CELLS = 2_000
_MANY_CELLS = 50_000
#: A panel of a few genes less than the files have saves nothing.
_NEARLY_ALL = 1.5
_WIDTH = 28  # where comments begin


@dataclass(frozen=True)
class ColumnNote:
    """A phenotype of the draft, or a column that could be one.

    Attributes
    ----------
    phenotype, column
        Its name and its obs column.
    note
        A few words on the labels.
    """

    phenotype: str
    column: str
    note: str


@dataclass(frozen=True)
class DraftFacts:
    """What was found in the user's files.

    Attributes
    ----------
    files
        As the user named them.
    n_files, n_cells, n_genes
        Files after expansion, their cells, and the genes that all of them have.
    matrix, values
        "X", "raw" or "layers/NAME", the same in every file, else "auto"; "counts" or "log1p".
    gene_ids
        Where the gene ids were found, in words.
    phenotypes
        What the model learns and takes as control tokens.
    left_out
        Standard phenotypes that cannot be learnt: one value only, say.
    partial
        Standard phenotypes that some files know nothing of.
    further
        Columns that could be phenotypes, which the user may uncomment.
    split_by, split_note
        obs column of the donors, or "cells"; and why.
    warnings
        What `tfx check` warns of, one sentence each.
    """

    files: Sequence[str]
    n_files: int
    n_cells: int
    n_genes: int
    matrix: str
    values: str
    gene_ids: str
    phenotypes: Sequence[ColumnNote]
    split_by: str
    split_note: str
    left_out: Sequence[ColumnNote] = ()
    partial: Sequence[str] = ()
    further: Sequence[ColumnNote] = ()
    warnings: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Sizes:
    """Size and length of a training run, for so many cells on such a device.

    Attributes
    ----------
    genes
        Of the panel.
    layers, hidden_size, heads, dropout
        Of the encoder.
    log_linear_rank, cell_states, log_linear_steps, log_linear_weight_decay
        Of the classical part.
    batch_size, max_steps, learning_rate, eval_steps
        Of training.
    """

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
    eval_steps: int


def choose_sizes(n_cells: int, n_genes: int, device: Device) -> Sizes:
    """Choose what trains in minutes on a CPU, and in an hour or so on a GPU.

    Parameters
    ----------
    n_cells, n_genes
        Of the files; 80 % of the cells are taken to train.
    device
        Where training will run.
    """
    training = max(int(0.8 * n_cells), 1)
    is_gpu = device != "cpu"
    if n_cells < _FEW_CELLS:  # as in presets/pbmc68k.toml
        genes, layers, width, dropout = 256, 1, 48, 0.2
        rank, states, alone, decay = 24, 0, 0, 1.0
        batch, steps, rate = 64, 600, 5e-4
    elif not is_gpu:  # as in presets/base.toml, but for states and a longer log-linear part
        genes, layers, width, dropout = 256, 2, 64, 0.1
        rank, states, alone, decay = 48, 64, 6000, 0.3  # benchmarks/log_linear_constants.md
        batch, steps, rate = 32, 7000 if n_cells < _MANY_CELLS else 10_000, 1e-3
    elif n_cells < _MANY_CELLS:
        genes, layers, width, dropout = 1024, 4, 256, 0.1
        rank, states, alone, decay = 48, 64, 2000, 0.3
        batch, steps, rate = 64, 10_000, 5e-4
    else:
        genes, layers, width, dropout = 2048, 6, 512, 0.1
        rank, states, alone, decay = 64, 64, 2000, 0.3
        batch, steps, rate = 128, 30_000, 3e-4
    return Sizes(
        genes=genes if n_genes > _NEARLY_ALL * genes else n_genes,
        layers=layers,
        hidden_size=width,
        heads=width // 64 if width > 64 else 4,
        dropout=dropout,
        log_linear_rank=min(rank, n_genes),
        cell_states=states,
        log_linear_steps=alone,
        log_linear_weight_decay=decay,
        batch_size=min(batch, _power_of_two(training // 4)),
        max_steps=steps,
        learning_rate=rate,
        eval_steps=max(steps // 6 // 100 * 100, 100),
    )


def write_draft(facts: DraftFacts, sizes: Sizes, *, path: str, device: Device) -> str:
    """Write the preset.

    Parameters
    ----------
    facts
        What was found in the files.
    sizes
        Of `choose_sizes`.
    path
        Where it will lie, for the commands in its head.
    device
        That the sizes were chosen for.

    Returns
    -------
    TOML; every text of the user's is quoted, or made printable in comments.
    """
    return "\n".join([*_head(facts, path), *_data(facts, sizes), *_model(sizes, device), ""])


def save_draft(text: str, path: Path) -> None:
    """Write a draft where no file is, whole, once it has proved to be a preset.

    Raises
    ------
    ConfigurationError
        A file is there by now, or the text is no preset.
    """
    ResolvedPreset.from_toml(text, where=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        message = f"{path} exists; choose another name"
        raise ConfigurationError(message)
    replace_file(path, text)


def _head(facts: DraftFacts, path: str) -> Iterator[str]:
    files = f"{facts.n_files:,} file{'s' * (facts.n_files != 1)}"
    yield _comment(
        f"Written by 'tfx init' for {files}: {facts.n_cells:,} cells x {facts.n_genes:,} genes, "
        f"{facts.values}."
    )
    yield _comment("Change what you like; 'tfx presets schema' explains every key.")
    yield "#"
    shown = shlex.quote(path)
    for command in (
        f"tfx train {shown} --dry-run      memory and time",
        f"tfx train {shown}",
        "tfx eval",
        "tfx generate -n 1000 -o cells.h5ad",
    ):
        yield _comment(f"  {command}")
    if facts.warnings:
        yield "#"
        yield _comment("To look at ('tfx check' tells more):")
        for warning in facts.warnings:
            yield _comment(f"- {warning}")
    yield ""


def _data(facts: DraftFacts, sizes: Sizes) -> Iterator[str]:
    yield "[data]"
    yield f"files = {write_value(list(facts.files))}"
    matrix = "what every file holds" if facts.matrix != "auto" else "they differ from file to file"
    yield _setting("matrix", facts.matrix, f"{facts.values}; {matrix}")
    yield _setting("genes", sizes.genes, f"of {facts.n_genes:,}, most variable first")
    yield _comment(f"gene ids: {facts.gene_ids}")
    yield ""
    yield "[data.phenotypes]" + " " * (_WIDTH - 17) + "# phenotype = obs column"
    for one in facts.phenotypes:
        yield _setting(one.phenotype, one.column, one.note)
    for one in facts.left_out:
        yield _setting(one.phenotype, value=False, note=one.note)
    for name in facts.partial:
        yield _comment(
            f"{name}: some files have no such column; their cells get [NO_{name.upper()}]"
        )
    if facts.further:
        yield _comment("these columns could be phenotypes too:")
        for one in facts.further:
            yield "# " + _setting(one.phenotype, one.column, one.note)
    yield ""
    yield "[data.split]"
    yield _setting("by", facts.split_by, facts.split_note)
    yield "validation = 0.1"
    yield "test = 0.1"
    yield ""


def _model(sizes: Sizes, device: Device) -> Iterator[str]:
    yield "[encoding]"
    yield _setting("kind", "binned")
    yield _setting("layout", "ranked", "every gene of the panel, in its order")
    yield _setting("bins", 8)
    yield _setting("edges", "gene_quantile", "every gene's bins are filled alike")
    yield _setting("threshold", 0.0, "bin 0: not detected")
    yield ""
    yield "[masking]"
    yield _setting("genes", "uniform", "from one gene to all: what a generator needs; 0.15: BERT's")
    yield _setting("phenotypes", 0.5)
    yield _setting("visible_cells", 0.4, "these train annotation: genes visible, phenotypes masked")
    yield ""
    where = "a CPU" if device == "cpu" else "a GPU"
    yield "[model]" + " " * (_WIDTH - 7) + f"# sized for these cells and {where}"
    yield _setting("layers", sizes.layers)
    yield _setting("hidden_size", sizes.hidden_size)
    yield _setting("heads", sizes.heads)
    yield _setting("dropout", sizes.dropout)
    yield _setting("log_linear", value=True, note="the classical answer, to which the encoder adds")
    yield _setting("log_linear_rank", sizes.log_linear_rank)
    if sizes.cell_states:
        yield _setting("cell_states", sizes.cell_states, "groups that no label names; 0: none")
    yield _setting(
        "cell_summary", value=True, note="for tfx embed: [CLS] begins with the components"
    )
    yield ""
    yield "[loss]"
    yield _setting("smoothing", 0.0)
    yield _setting("weighting", "rate", "the likelihood bound, for masking.genes = 'uniform'")
    yield ""
    yield "[train]"
    yield _setting("max_steps", sizes.max_steps)
    if sizes.log_linear_steps:
        yield _setting(
            "log_linear_steps", sizes.log_linear_steps, "the log-linear part alone, which is quick"
        )
    yield _setting("batch_size", sizes.batch_size)
    yield _setting("learning_rate", sizes.learning_rate)
    yield _setting("log_linear_weight_decay", sizes.log_linear_weight_decay)
    yield _setting("warmup_ratio", 0.05)
    yield _setting("schedule", "cosine")
    yield _setting("eval_steps", sizes.eval_steps)
    yield _setting("eval_cells", 600)
    yield _setting("save_steps", sizes.eval_steps)
    yield ""
    yield "[generate]"
    yield _setting("steps", 64)


def _setting(key: str, value: object, note: str = "") -> str:
    line = f"{write_key(key)} = {write_value(value)}"
    return f"{line:<{_WIDTH - 1}} # {printable(note)}" if note else line


def _comment(text: str) -> str:
    return f"# {printable(text)}"


def _power_of_two(value: int) -> int:
    """Return the largest power of two up to a value, 1 at least."""
    return 1 << max(value.bit_length() - 1, 0)
