"""Old spellings that this release still accepts, and what replaces them.

Presets, `TFX_*` variables, `--set`, options, served requests and model folders all look here. An entry
stays for one release after the one that renamed it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

_Value = TypeVar("_Value")

#: Dotted preset key -> its new spelling.
PRESET_KEYS = {
    "model.skeleton": "model.log_linear",
    "model.skeleton_rank": "model.log_linear_rank",
    "model.skeleton_states": "model.cell_states",
    "train.skeleton_learning_rate": "train.log_linear_learning_rate",
    "train.skeleton_steps": "train.log_linear_steps",
    "train.skeleton_weight_decay": "train.log_linear_weight_decay",
    "train.lanes": "train.virtual_ranks",
    "generate.depth": "generate.genes_per_cell",
}
#: Dotted preset keys that are ignored, with a warning -> the reason why they were removed.
REMOVED_PRESET_KEYS = {
    "generate.order": "genes are revealed in a random order; the confidence order emptied cells",
    "generate.remask": "revealed genes are not redrawn any more",
}
#: Folder of bundled presets -> its new name.
PRESET_FOLDERS = {"originals": "published"}
#: Option -> its new spelling.
OPTIONS = {"--depth": "--genes-per-cell", "--given": "--label"}
#: Id of a key of the dashboard, in the user's keys.toml -> its new spelling.
KEY_IDS = {
    "runs.down": "down",
    "runs.up": "up",
    "runs.end": "end",
    "generate.depth": "generate.gene-counts",
}
#: Field of a checkpoint's cursor -> its new spelling.
_CURSOR_FIELDS = {"lanes": "virtual_ranks"}
#: Field of a checkpoint's progress -> its new spelling.
_PROGRESS_FIELDS = {"best_figures": "best_metrics"}
#: Field of a model folder's ``tfx.json`` -> its new spelling.
_MODEL_FIELDS = {"origin": "provenance"}
#: Array of a model folder's ``reference.safetensors`` -> the arrays that its second axis became.
REFERENCE_ARRAYS = {"depth": ("genes_per_cell", "library_size")}
#: Beginning of a tensor's name -> its new spelling; the longer beginning first.
_TENSORS = {"skeleton.votes.": "log_linear.couplings.", "skeleton.": "log_linear."}

#: Field of an evaluation's report.json ("*" is any name) -> its new spelling. Fields of lists count as
#: fields of what holds the list.
_REPORT_FIELDS = {
    "facts.split by": "split_by",
    "facts.trained where": "trained_where",
    "facts.cells": "n_cells",
    "facts.genes": "n_genes",
    "facts.genes missing": "n_genes_missing",
    "facts.training cells of the baselines": "n_cells_of_baselines",
    "phenotypes.*.*.mean_years_off": "mae_years",
    "phenotypes.*.*.over_donors": "donors",
    "phenotypes.*.*.over_donors.donors": "n_donors",
    "phenotypes.*.*.over_donors.donors of 10 cells or more": "n_scored",
    "phenotypes.*.*.over_donors.each.cells": "n_cells",
    "phenotypes.*.*.calibration.error": "ece",
    "phenotypes.*.*.calibration.curve.cells": "n_cells",
    "phenotypes.*.*.intervals.lead of the model": "model_minus_method",
    "phenotypes.*.*.intervals.units": "n_units",
    "conditions.cells": "n_cells",
    "conditions.phenotypes.*.*.mean_years_off": "mae_years",
    "conditions.phenotypes.*.*.intervals.lead of the model": "model_minus_method",
    "conditions.phenotypes.*.*.intervals.units": "n_units",
    "genes.masked genes": "n_masked",
    "genes.accuracy of each gene's most common bin": "baseline_accuracy",
    "gene_rates.cells": "n_cells",
    "gene_rates.rates.rate": "mask_rate",
    "gene_rates.rates.hidden_genes": "n_masked",
    "gene_rates.rates.mean_off": "mean_absolute_error",
    "gene_rates.rates.marginal.mean_off": "mean_absolute_error",
    "gene_rates.rates.bins.genes": "n_masked",
    "gene_rates.best.times_hidden": "n_masked",
    "gene_rates.worst.times_hidden": "n_masked",
}
_REPORT_PATTERNS = {tuple(old.split(".")): new for old, new in _REPORT_FIELDS.items()}


def current_report(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of an evaluation, as an older tfx may have written it, in the present spelling."""

    def current(value: object, path: tuple[str, ...]) -> Any:  # noqa: ANN401 (any JSON value)
        if isinstance(value, list):
            return [current(item, path) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            _current_field((*path, name)): current(item, (*path, name))
            for name, item in value.items()
        }

    return {_current_field((name,)): current(item, (name,)) for name, item in record.items()}


def _current_field(path: tuple[str, ...]) -> str:
    for old, new in _REPORT_PATTERNS.items():
        if len(old) == len(path) and all(a in ("*", b) for a, b in zip(old, path, strict=True)):
            return new
    return path[-1]


def current_key(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the present spelling of a preset key."""
    new = PRESET_KEYS.get(".".join(path))
    return path if new is None else tuple(new.split("."))


def current_section(section: str, settings: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return one section of a preset, as an older tfx may have written it, in the present spelling."""
    return {
        current_key((section, name))[-1]: value
        for name, value in settings.items()
        if f"{section}.{name}" not in REMOVED_PRESET_KEYS
    }


def notes_on_keys(section: str, names: Iterable[str]) -> list[str]:
    """Return a sentence about each key of a section that was renamed or removed."""
    notes = []
    for name in names:
        key = f"{section}.{name}"
        if key in REMOVED_PRESET_KEYS:
            notes.append(f"{name} is ignored: {REMOVED_PRESET_KEYS[key]}")
        elif key in PRESET_KEYS:
            new = current_key((section, name))[-1]
            notes.append(f"{name} is now called {new}; the old name works in this release only")
    return notes


def current_cursor(record: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the cursor of a checkpoint, as an older tfx may have written it, in the present spelling."""
    return {_CURSOR_FIELDS.get(name, name): value for name, value in record.items()}


def current_progress(record: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the progress of a checkpoint, as an older tfx may have written it, in the present spelling."""
    return {_PROGRESS_FIELDS.get(name, name): value for name, value in record.items()}


def current_model_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model folder's ``tfx.json``, as an older tfx may have written it, in the present spelling."""
    present = {_MODEL_FIELDS.get(name, name): value for name, value in record.items()}
    if isinstance(present.get("generate"), dict):
        present["generate"] = current_section("generate", present["generate"])
    return present


def current_tensors(tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return a network's tensors, as an older tfx may have named them, under their present names."""
    return {_current_tensor(name): tensor for name, tensor in tensors.items()}


def _current_tensor(name: str) -> str:
    for old, new in _TENSORS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
