"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint is a folder ``checkpoints/step-00000500`` with weights (safetensors), optimiser and
progress, and ``complete.json`` with the sha256 of each file, written last. It is made under a
temporary name, flushed to disk and renamed, and never replaced: a process that dies at any moment
leaves the checkpoints it had. One without its marker, or whose bytes differ, is passed over for the
one before.
"""

import hashlib
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

from core.errors import DataError, MachineError
from core.runlog.schema import CHECKPOINT_MARKER

__all__ = [
    "checkpoint_name",
    "discard_checkpoints_after",
    "latest_checkpoint",
    "load_checkpoint",
    "prune_checkpoints",
    "remove_leftovers",
    "save_checkpoint",
]

logger = logging.getLogger(__name__)

_WEIGHTS, _STATE = "weights.safetensors", "state.pt"


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint after so many steps."""
    return f"step-{step:08d}"


def save_checkpoint(
    folder: Path, *, step: int, weights: dict[str, Tensor], state: dict[str, Any]
) -> Path:
    """Write the checkpoint of a step; a whole one of that step is left as it is.

    Parameters
    ----------
    folder
        The run's ``checkpoints`` folder.
    step
        Optimiser steps done.
    weights
        Whole tensors on the host.
    state
        Optimiser and progress: tensors and plain values only (it is read back without pickle's
        code execution).

    Raises
    ------
    MachineError
        It cannot be written, because the disk is full, say; what was there stays, no part is left.
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
        torch.save({"step": step, **state}, partial / _STATE)
        names = (_WEIGHTS, _STATE)
        for name in names:
            _flush(partial / name)
        marker = {"step": step, "sha256": {name: _sha256(partial / name) for name in names}}
        (partial / CHECKPOINT_MARKER).write_text(json.dumps(marker), encoding="utf-8")
        _flush(partial / CHECKPOINT_MARKER)
        _flush(partial)
        shutil.rmtree(final, ignore_errors=True)  # damaged: it was passed over
        partial.rename(final)
        _flush(folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch: RuntimeError on a full disk
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if folder.exists() and shutil.disk_usage(folder).free < _bytes(weights):
            reason = "the disk is full"  # which torch and safetensors say in words of their own
        message = f"checkpoint {final} cannot be written ({reason})"
        raise MachineError(message) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def prune_checkpoints(folder: Path, *, keep: int, best: int) -> None:
    """Remove all but the newest ``keep`` checkpoints and that of step ``best``."""
    for old in sorted(folder.glob("step-*"))[:-keep]:
        if old.name != checkpoint_name(best):
            _remove(old)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed left unfinished; only the owner of the run may."""
    for pattern in (".*.partial-*", ".*.old-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def discard_checkpoints_after(folder: Path, step: int) -> None:
    """Remove checkpoints of later steps: damaged ones, which the run is about to write anew."""
    for path in folder.glob("step-*"):
        if path.name > checkpoint_name(step):
            _remove(path)


def latest_checkpoint(
    folder: Path, *, on_damage: Callable[[Path], None] = lambda _: None
) -> Path | None:
    """Return the newest checkpoint whose bytes are whole; damaged ones are named and passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if _is_whole(path):
            return path
        logger.warning("checkpoint %s is damaged: using the one before", path)
        on_damage(path)
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the state of a checkpoint that `latest_checkpoint` found whole.

    Raises
    ------
    DataError
        It cannot be read all the same.
    """
    try:
        return load_file(path / _WEIGHTS), torch.load(path / _STATE, weights_only=True)
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        message = (
            f"{path}: the checkpoint cannot be read ({error}); remove it to use the one before"
        )
        raise DataError(message) from error


def _is_whole(path: Path) -> bool:
    try:
        marker = json.loads((path / CHECKPOINT_MARKER).read_text(encoding="utf-8"))
        sums = marker["sha256"]
        return set(sums) == {_WEIGHTS, _STATE} and all(
            _sha256(path / name) == sum_ for name, sum_ in sums.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _bytes(weights: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in weights.values())


def _remove(path: Path) -> None:
    """Remove a checkpoint so that no part of it can be taken for one."""
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


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
