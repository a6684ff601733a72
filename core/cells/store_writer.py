"""Write the small files of a store; the meaning of the arrays is documented in `store`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cells.manifest import MANIFEST_NAME, Manifest
from core.cells.store import TRUTH_NAME

__all__ = ["write_array", "write_manifest"]


def write_array(folder: Path, name: str, array: NDArray[Any]) -> None:
    """Write one array of a store."""
    np.save(folder / f"{name}.npy", array, allow_pickle=False)


def write_manifest(folder: Path, manifest: Manifest, truth: Mapping[str, Any] | None) -> None:
    """Write the manifest, and the truth of simulated cells beside it."""
    if truth is not None:
        text = json.dumps(truth, indent=1, ensure_ascii=False) + "\n"
        (folder / TRUTH_NAME).write_text(text, encoding="utf-8")
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
