"""Checksums of a store's files: written with it, and compared when somebody asks."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from core.cells.manifest import Manifest
from core.errors import DataError
from core.progress import Listener, ProgressEvent, ignore_progress

__all__ = ["ChecksumTask", "checksum", "verify_store"]

_BLOCK = 2**22


@dataclass(frozen=True)
class ChecksumTask:
    """One file."""

    path: Path


def checksum(task: ChecksumTask) -> str:
    """sha256 of a file, as ``sha256sum`` prints it."""
    digest = hashlib.sha256()
    with task.path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def verify_store(path: Path, *, on_progress: Listener = ignore_progress) -> int:
    """Compare every file of a store with the checksum in its manifest.

    Returns
    -------
    The number of files compared.

    Raises
    ------
    DataError
        The folder is no store, has no checksums (format 1), or files are missing or were changed;
        the message names them.
    """
    manifest = Manifest.load(path)
    if not manifest.checksums:
        message = (
            f"{path}: a store of format {manifest.format_version}, which has no checksums; prepare "
            f"it again to get them"
        )
        raise DataError(message)
    sizes = {
        name: (path / name).stat().st_size if (path / name).exists() else 0
        for name in manifest.checksums
    }
    done, changed, missing = 0, [], []
    for name, expected in manifest.checksums.items():
        on_progress(ProgressEvent("verifying", done, sum(sizes.values())))
        if not (path / name).exists():
            missing.append(name)
        elif checksum(ChecksumTask(path / name)) != expected:
            changed.append(name)
        done += sizes[name]
    on_progress(ProgressEvent("verifying", done, sum(sizes.values())))
    faults = [f"{', '.join(changed)} changed since it was prepared"] if changed else []
    faults += [f"{', '.join(missing)} missing"] if missing else []
    if faults:
        message = (
            f"{path}: damaged store ({'; '.join(faults)}); delete it and prepare it again, or copy "
            f"it again from where it is whole"
        )
        raise DataError(message)
    return len(manifest.checksums)
