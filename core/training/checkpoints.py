"""Checkpoints: everything a run needs to resume as if it had never stopped, and the rules of resuming.

A checkpoint is a folder ``checkpoints/step-00000500`` with weights (safetensors), optimiser and
progress, and ``complete.json`` with the sha256 of each file, written last. It is made under a
temporary name, flushed to disk and renamed, and never replaced: a process that dies at any moment
leaves the checkpoints it had. One without its marker, or whose bytes differ, is skipped for the one
before. Most keys of the preset are frozen.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import ConfigurationError, DataError, MachineError
from core.files import file_json, file_text, sha256_of, share_as_folder
from core.presets.loading import ResolvedPreset
from core.presets.schema import Preset
from core.runlog.reader import dotted_values
from core.runlog.schema import CHECKPOINT_MARKER, CHECKPOINTS_FOLDER, CONFIG_FILE

logger = logging.getLogger(__name__)

_WEIGHTS, _STATE = "weights.safetensors", "state.pt"
#: Keys, and whole sections, that change neither the cells, nor the model, nor the targets.
CHANGEABLE = frozenset(
    {
        *("name", "generate", "model.attention"),
        "data.store",  # the same cells in another place; the run checks the store's key
        *("train.compile", "train.device", "train.precision", "train.threads", "train.trackers"),
        *("train.epochs", "train.max_steps", "train.patience", "train.max_nonfinite"),
        *("train.eval_steps", "train.log_steps", "train.save_steps", "train.keep_checkpoints"),
        *("train.learning_rate", "train.warmup_ratio", "train.schedule", "train.weight_decay"),
        *("train.log_linear_learning_rate", "train.log_linear_weight_decay"),
        *("train.gradient_clip", "train.micro_batches"),
    }
)


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint after ``step`` steps."""
    return f"step-{step:08d}"


def save_checkpoint(
    folder: Path, *, step: int, weights: dict[str, Tensor], state: dict[str, Any]
) -> Path:
    """Write the checkpoint of a step into ``checkpoints/``; a whole one of that step is kept.

    ``weights`` are whole tensors on the host; ``state`` holds tensors and plain values only, so that
    it is read back without pickle's code execution. MachineError if it cannot be written, because the
    disk is full, say; what was there is kept, no part is left.
    """
    final = folder / checkpoint_name(step)
    if _is_whole(final):
        return final
    partial = folder / f".{final.name}.partial-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_file(weights, partial / _WEIGHTS)
        share_as_folder(partial / _WEIGHTS)
        torch.save({"step": step, **state}, partial / _STATE)
        sums = {name: sha256_of(partial / name) for name in (_WEIGHTS, _STATE)}
        marker = json.dumps({"step": step, "sha256": sums})
        (partial / CHECKPOINT_MARKER).write_text(marker, encoding="utf-8")
        for name in (_WEIGHTS, _STATE, CHECKPOINT_MARKER, ""):  # the files, then the folder
            _flush(partial / name)
        shutil.rmtree(final, ignore_errors=True)  # damaged: it was skipped
        partial.rename(final)
        _flush(folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch: RuntimeError on a full disk
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        n_bytes = sum(tensor.nbytes for tensor in weights.values())
        if folder.exists() and shutil.disk_usage(folder).free < n_bytes:
            reason = "the disk is full"  # torch and safetensors have other words for it
        raise MachineError(f"checkpoint {final} cannot be written ({reason})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def prune_checkpoints(folder: Path, *, keep: int, best: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, that of step ``best``, and what is unfinished."""
    remove_leftovers(folder)  # those that could not be removed when the run was resumed
    for old in sorted(folder.glob("step-*"))[:-keep]:
        if old.name != checkpoint_name(best):
            _remove(old)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left unfinished; only the owner of the run may."""
    for path in (*folder.glob(".*.partial-*"), *folder.glob(".*.old-*")):
        shutil.rmtree(path, ignore_errors=True)


def discard_checkpoints_after(folder: Path, step: int) -> None:
    """Remove checkpoints of later steps: they are damaged, and the run is about to write them anew."""
    for path in folder.glob("step-*"):
        if path.name > checkpoint_name(step):
            _remove(path)


def latest_checkpoint(
    folder: Path, on_damage: Callable[[Path], None] = lambda _: None
) -> Path | None:
    """Return the newest checkpoint whose bytes are whole; damaged ones are reported and skipped."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if _is_whole(path):
            return path
        logger.warning("checkpoint %s is damaged: using the one before", path)
        on_damage(path)
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return weights and state of a checkpoint that `latest_checkpoint` found; DataError if unreadable."""
    try:
        return load_file(path / _WEIGHTS), torch.load(path / _STATE, weights_only=True)
    except Exception as error:  # what a stranger pickled can make torch raise anything
        raise DataError(
            f"{path} cannot be read ({error}); remove the checkpoint to use the one before"
        ) from error


def has_checkpoint(run_folder: Path) -> bool:
    """Return whether a run has a checkpoint, whole or damaged."""
    return any((run_folder / CHECKPOINTS_FOLDER).glob("step-*"))


def has_whole_checkpoint(run_folder: Path) -> bool:
    """Return whether a run can be resumed."""
    folder = run_folder / CHECKPOINTS_FOLDER
    return any(_is_whole(path) for path in sorted(folder.glob("step-*"), reverse=True))


def _is_whole(path: Path) -> bool:
    try:
        marker = file_json(path / CHECKPOINT_MARKER)
        sums = marker["sha256"]
        return set(sums) == {_WEIGHTS, _STATE} and all(
            sha256_of(path / name) == sum_ for name, sum_ in sums.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _remove(path: Path) -> None:
    """Remove a checkpoint so that no part of it looks like one."""
    outgoing = path.with_name(f".{path.name}.old-{os.getpid()}")
    try:
        path.rename(outgoing)
    except OSError:
        return
    shutil.rmtree(outgoing, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file's or folder's content is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle_preset(
    resolved: ResolvedPreset, run_folder: Path, *, n_processes: int
) -> tuple[ResolvedPreset, dict[str, tuple[Any, Any]]]:
    """Settle the number of virtual ranks; return the preset, and the changes since the run's own."""
    path = run_folder / CONFIG_FILE
    before = None
    if path.is_file() and has_checkpoint(run_folder):
        before = ResolvedPreset.from_toml(file_text(path), where=str(path)).preset
    if resolved.preset.train.virtual_ranks is None:
        virtual_ranks = n_processes if before is None else before.train.virtual_ranks
        resolved = resolved.changed(
            options={"train.virtual_ranks": virtual_ranks},
            option_names={"train.virtual_ranks": "number of processes"},
        )
    if before is None:
        return resolved, {}
    return resolved, check_changes(before, resolved.preset, where=str(run_folder))


def preset_differences(before: Preset, after: Preset) -> dict[str, tuple[Any, Any]]:
    """Return dotted key -> (value before, value after) of the keys that differ."""
    one, two = dotted_values(before.model_dump()), dotted_values(after.model_dump())
    return {
        key: (one.get(key), two.get(key))
        for key in sorted(one.keys() | two.keys())
        if one.get(key) != two.get(key)
    }


def check_changes(before: Preset, after: Preset, *, where: str) -> dict[str, tuple[Any, Any]]:
    """Return the differences; ConfigurationError lists those of frozen keys with both values."""
    differences = preset_differences(before, after)
    frozen = [
        f"{key} = {old!r}, not {new!r}"
        for key, (old, new) in differences.items()
        if not CHANGEABLE.intersection((key, key.partition(".")[0]))
    ]
    if frozen:
        raise ConfigurationError(
            f"{where} cannot resume with another preset: its {'; its '.join(frozen)}; leave that as "
            f"it is, or train the changed preset as a new run"
        )
    return differences
