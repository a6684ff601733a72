"""The folder beside a store in which it is prepared: one process at a time, resumable, then gone.

===========================  ===================================================================
STORE.preparing/lock         held by the process that prepares
STORE.preparing/parts/       pieces of the first stage, reused by any preparation they fit
STORE.preparing/KEY/store/   the store itself, moved to STORE when it is whole
STORE.preparing/KEY/         further files that only this store needs
===========================  ===================================================================
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cells.keeping import PREPARATION_LOCK, PREPARING
from core.cells.manifest import MANIFEST_NAME
from core.errors import ConfigurationError, MachineError
from core.folders import locked_folder
from core.presets.schema import DataSettings
from core.progress import Listener, ProgressEvent


@dataclass
class PreparationFolder:
    """Where the store of a key is prepared: `root` is ``STORE.preparing``."""

    root: Path
    key: str
    #: Whether the folder outlives a failure: set once there is a piece that a retry can use.
    keep: bool = False

    def __post_init__(self) -> None:
        """Name the pieces of the first stage, what only this store needs, and the store."""
        self.parts = self.root / "parts"
        self.of_store = self.root / self.key[:16]
        self.labels = self.of_store / "labels"
        self.store = self.of_store / "store"

    def publish(self, destination: Path) -> None:
        """Move the store to its name, in the place of a store that exists."""
        for path in self.store.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        old = self.root / "replaced"  # removed with the folder
        if destination.exists():
            destination.rename(old)
        try:
            self.store.rename(destination)
        except BaseException:
            if old.exists():
                old.rename(destination)
            raise


@dataclass(frozen=True)
class Preparation:
    """What every stage needs."""

    data: DataSettings
    key: str
    folder: PreparationFolder
    on_progress: Listener


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Check that a store may be written to a folder: only a store is replaced, if `overwrite`."""
    is_store = (destination / MANIFEST_NAME).exists()
    may_be_replaced = _is_empty_folder(destination) or (overwrite and is_store)
    if destination.exists() and not may_be_replaced:
        todo = "give another folder" if overwrite else "give another folder or overwrite it"
        what = "a store of other cells or settings" if is_store else "not a store"
        raise ConfigurationError(f"{destination}: exists and is {what}; {todo}")


@contextmanager
def open_preparation(
    destination: Path, key: str, on_progress: Listener
) -> Iterator[PreparationFolder]:
    """Hold the folder in which a store is prepared; `publish` inside the block ends it.

    Waits for another process that prepares the same store. After a failure the folder stays if a
    retry can use something in it; otherwise nothing stays.
    """
    folder = PreparationFolder(destination.with_name(f"{destination.name}{PREPARING}"), key)
    made = [parent for parent in destination.parents if not parent.exists()]  # innermost first

    def announce() -> None:
        message = (
            f"{folder.root}: another process is preparing this store; waiting for it (Ctrl-C leaves "
            f"it alone)"
        )
        on_progress(ProgressEvent("waiting", message=message))

    try:
        with locked_folder(
            folder.root, lock=PREPARATION_LOCK, is_private=True, on_wait=announce
        ) as held:
            try:
                folder.keep = any(folder.parts.glob("*.part"))
                for path in folder.root.iterdir():
                    if path.is_dir() and path not in {folder.parts, folder.of_store}:
                        shutil.rmtree(path)  # of a store with other settings
                folder.parts.mkdir(exist_ok=True)
                folder.of_store.mkdir(exist_ok=True)
                yield folder
            except BaseException:
                if not folder.keep:
                    held.remove()
                    for parent in filter(_is_empty_folder, made):
                        parent.rmdir()
                raise
            held.remove()
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise  # not about a file: a fault of ours
        raise MachineError(
            f"{destination}: the store cannot be written ({error.strerror or error})"
        ) from error


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def write_array(folder: Path, name: str, array: NDArray[Any]) -> None:
    """Write an array as a file of a folder, which is `Store`'s or beside it."""
    np.save(folder / f"{name}.npy", array, allow_pickle=False)
