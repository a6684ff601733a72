"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint is a folder ``checkpoints/step-00000500`` with weights (safetensors), optimiser and
random state, and ``complete.json`` with the sha256 of each file, written last. It is made under a
temporary name, flushed to disk and renamed; one without its marker, or whose bytes differ, is
passed over for the one before.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from core.errors import DataError

__all__ = ["latest_checkpoint", "load_checkpoint", "save_checkpoint"]

logger = logging.getLogger(__name__)

_MARKER = "complete.json"


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    network: torch.nn.Module,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of a step and remove all but the newest ``keep``.

    Parameters
    ----------
    folder
        The run's ``checkpoints`` folder.
    step
        Optimiser steps done.
    network
        Its weights and buffers are saved.
    state
        Optimiser and random state: tensors and plain values only (it is read back
        without pickle's code execution).
    keep
        Newest checkpoints to keep.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    partial = folder / f".step-{step:08d}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        save_file(weights, partial / "weights.safetensors")
        torch.save({"step": step, **state}, partial / "state.pt")
        names = ("weights.safetensors", "state.pt")
        for name in names:
            with (partial / name).open("rb+") as stream:
                os.fsync(stream.fileno())
        marker = {"step": step, "sha256": {name: _sha256(partial / name) for name in names}}
        (partial / _MARKER).write_text(json.dumps(marker), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint whose bytes are whole; damaged ones are named and passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            marker = json.loads((path / _MARKER).read_text(encoding="utf-8"))
            whole = all(_sha256(path / name) == sum_ for name, sum_ in marker["sha256"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if whole:
            return path
        logger.warning("checkpoint %s is damaged: using the one before", path)
    return None


def load_checkpoint(path: Path, network: torch.nn.Module) -> dict[str, Any]:
    """Load weights into ``network`` and return the state that was saved with them.

    Raises
    ------
    DataError
        The weights do not fit the network: the preset was changed.
    """
    weights = load_file(path / "weights.safetensors")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        message = f"{path}: the checkpoint does not fit the preset's model; resume with the run's own config.toml"
        raise DataError(message) from error
    state: dict[str, Any] = torch.load(path / "state.pt", weights_only=True)
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
