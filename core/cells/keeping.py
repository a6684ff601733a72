"""The stores of a folder: their sizes, the runs that were trained on them, and deleting them."""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.cells.manifest import MANIFEST_NAME, Manifest
from core.errors import ConfigurationError, DataError, MachineError
from core.files import folder_size
from core.folders import FolderInUseError, locked_folder
from core.runlog.reader import RunReader, list_runs
from core.runlog.schema import LIVE_STATES
from core.wording import did_you_mean, listed

#: Behind the name of a store that is being prepared, and the lock in its folder.
PREPARING, PREPARATION_LOCK = ".preparing", "lock"


@dataclass(frozen=True)
class StoredCells:
    """One store of a folder; ``cells`` and ``genes`` are None unless it is whole."""

    path: Path
    state: Literal["whole", "unfinished", "damaged"]
    n_bytes: int
    #: Seconds since 1970.
    modified: float
    cells: int | None = None
    genes: int | None = None
    #: Runs that were trained on it, and those of them that train now.
    runs: tuple[str, ...] = ()
    live_runs: tuple[str, ...] = ()


def list_stores(root: Path, runs: Path) -> list[StoredCells]:
    """List the stores in a folder, the largest first, with the runs of ``runs`` that need them."""
    users: dict[str, list[tuple[str, bool]]] = {}
    for run in list_runs(runs):
        with suppress(ConfigurationError):  # its first step is still to come
            key = str(RunReader(run.path).run.get("store_key", ""))
            users.setdefault(key, []).append((str(run.path), run.state in LIVE_STATES))
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    found = [one for path in folders if (one := _stored_cells(path, users)) is not None]
    return sorted(found, key=lambda one: (-one.n_bytes, one.path.name))


def _stored_cells(path: Path, users: dict[str, list[tuple[str, bool]]]) -> StoredCells | None:
    n_bytes, modified = folder_size(path) or 0, path.stat().st_mtime
    if path.name.endswith(PREPARING):
        return StoredCells(path, "unfinished", n_bytes, modified)
    if not (path / MANIFEST_NAME).exists():
        return None
    try:
        manifest = Manifest.load(path)
    except DataError:
        return StoredCells(path, "damaged", n_bytes, modified)
    runs = users.get(manifest.key, [])
    return StoredCells(
        path,
        "whole",
        n_bytes,
        modified,
        manifest.n_cells,
        len(manifest.gene_ids),
        tuple(name for name, _ in runs),
        tuple(name for name, is_live in runs if is_live),
    )


def find_stores(root: Path, runs: Path, names: list[str]) -> list[StoredCells]:
    """Return the named stores, by name or folder; ConfigurationError names what is none."""
    found: dict[Path, StoredCells] = {}
    for name in names:
        path = next((one for one in (Path(name), root / name) if one.is_dir()), None)
        known = {one.path: one for one in list_stores(root if path is None else path.parent, runs)}
        if path not in known:
            here = [one.path.name for one in known.values()]
            hint = did_you_mean(Path(name).name, here) or "'tfx stores list' names those there are"
            raise ConfigurationError(f"there is no store '{name}' in '{root}'; {hint}")
        found[path] = known[path]
    return list(found.values())


def delete_store(store: StoredCells) -> None:
    """Delete a store; MachineError if a run trains on it, if it is being prepared, or if the disk refuses."""
    if store.live_runs:
        raise MachineError(
            f"{listed(store.live_runs)} trains on {store.path}; wait for it, or stop it first"
        )
    outgoing = store.path.with_name(f".{store.path.name}.deleted-{os.getpid()}")
    try:
        if store.state == "unfinished":
            with locked_folder(store.path, lock=PREPARATION_LOCK):
                store.path.rename(outgoing)
        else:
            store.path.rename(outgoing)  # at once: no half of it looks like a store
        shutil.rmtree(outgoing)
    except FolderInUseError:
        raise MachineError(
            f"{store.path} is being prepared by another process; stop that first"
        ) from None
    except OSError as error:
        raise MachineError(f"{store.path} cannot be deleted ({error.strerror})") from error
