"""Whether the bytes of a store are those that were prepared.

A small store is compared with its checksums when it is opened. Of a large one the labels are compared
when they are first used, and the expression block by block as cells are read: `StoreChecks` remembers
what it has seen. ``blocks.npy`` holds a checksum of every `BLOCK_VALUES` genes and values. Stores of
older releases have none, and sha256 alone, of whole files.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cells.manifest import Manifest
from core.errors import DataError
from core.files import sha256_of
from core.progress import Listener, ProgressEvent, ignore_progress

#: (blocks, 2), uint32: CRC-32 of blocks of genes.npy and values.npy.
BLOCKS_NAME = "blocks.npy"
BLOCKED = ("genes", "values")
BLOCK_VALUES = 2**15
#: Bytes of a store that is compared whole when it is opened: a hundredth of a second.
_SMALL_STORE = 2**24


def block_checksums(task: tuple[Path, int, int]) -> NDArray[np.uint32]:
    """Return the CRC-32 of the blocks [first, last) of an array file."""
    path, first, last = task
    array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    blocks = (array[at * BLOCK_VALUES : (at + 1) * BLOCK_VALUES] for at in range(first, last))
    return np.fromiter(
        (zlib.crc32(one.data) for one in blocks), dtype=np.uint32, count=last - first
    )


class StoreChecks:
    """Compares what is read of a store with its checksums, once; ``arrays`` are its maps, by name."""

    def __init__(self, path: Path, manifest: Manifest, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._path, self._sums = path, manifest.checksums
        self._blocks: NDArray[np.uint32] | None = None
        self._pending = np.zeros(0, dtype=np.bool_)
        #: Files that were not compared yet.
        self._files = set(manifest.checksums)
        if self._files and sum(array.nbytes for array in arrays.values()) <= _SMALL_STORE:
            for name in sorted(self._files):
                self.check_file(name)
        elif BLOCKS_NAME in self._files:
            self.check_file(BLOCKS_NAME)
            self._arrays = [arrays[name] for name in BLOCKED]
            self._blocks = np.load(path / BLOCKS_NAME, allow_pickle=False)
            self._pending = np.ones(len(self._blocks) + 1, dtype=np.bool_)
            self._pending[-1] = False

    def check_file(self, name: str) -> None:
        """Compare a file with its checksum, unless that is done; DataError if it has changed."""
        if name not in self._files:
            return
        self._files.discard(name)
        try:
            is_whole = sha256_of(self._path / name) == self._sums[name]
        except OSError as error:
            raise DataError(f"{self._path / name}: cannot be read ({error.strerror})") from error
        if not is_whole:
            raise _changed(self._path / name)

    def check_values(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Compare the blocks that hold values [start, end) of cells; DataError if one has changed."""
        if self._blocks is None:
            return
        first = starts // BLOCK_VALUES
        last = np.maximum((ends - 1) // BLOCK_VALUES, first)
        touched = np.concatenate([first, last, *_between(first, last)])
        for block in np.unique(touched[self._pending[touched]]).tolist():
            at = slice(block * BLOCK_VALUES, (block + 1) * BLOCK_VALUES)
            for name, array, known in zip(BLOCKED, self._arrays, self._blocks[block], strict=True):
                if zlib.crc32(array[at].data) != known:
                    where = f" from value {at.start:,} on"
                    raise _changed(self._path / f"{name}.npy", where)
            self._pending[block] = False


def _between(first: NDArray[np.int64], last: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the blocks between the first and the last of cells that are larger than a block."""
    large = np.flatnonzero(last - first > 1)
    return [np.arange(first[cell] + 1, last[cell]) for cell in large.tolist()]


def _changed(path: Path, where: str = "") -> DataError:
    return DataError(
        f"{path}: damaged{where}, its bytes are not those that were prepared; delete the store and prepare "
        f"it again, or copy it again from where it is whole"
    )


def verify_store(path: Path, *, on_progress: Listener = ignore_progress) -> int:
    """Compare every file of a store with the checksum in its manifest; return the number of files.

    DataError names the files that are missing or were changed; or the folder is no store, or has no
    checksums (format 1).
    """
    manifest = Manifest.load(path)
    if not manifest.checksums:
        raise DataError(
            f"{path}: a store of format {manifest.format_version}, which has no checksums; prepare "
            f"it again to get them"
        )
    missing = [name for name in manifest.checksums if not (path / name).exists()]
    sizes = {
        name: (path / name).stat().st_size for name in manifest.checksums if name not in missing
    }
    changed = []
    done, total = 0, sum(sizes.values())
    for name, n_bytes in sizes.items():
        on_progress(ProgressEvent("verifying", done, total))
        if sha256_of(path / name) != manifest.checksums[name]:
            changed.append(name)
        done += n_bytes
    on_progress(ProgressEvent("verifying", done, total))
    faults = [f"{', '.join(changed)} changed since it was prepared"] if changed else []
    faults += [f"{', '.join(missing)} missing"] if missing else []
    if faults:
        raise DataError(
            f"{path}: damaged store ({'; '.join(faults)}); delete it and prepare it again, or copy "
            f"it again from where it is whole"
        )
    return len(manifest.checksums)
