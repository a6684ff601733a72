"""Parts: what the first stage of preparing leaves for the second, one file per range of rows.

A part holds its cells in the order of their keys, so that any range of keys is one stretch of each of
its arrays. It appears under its name whole or not at all, and is the same file whoever wrote it.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from core.errors import MachineError

__all__ = ["Part", "write_part"]

_ALIGNMENT = 64
_LENGTH_BYTES = 8
#: macOS and Windows have none.
_advise = getattr(os, "posix_fadvise", None)


def write_part(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write one-dimensional arrays into one file: a JSON header, then their bytes.

    Raises
    ------
    OSError
        The file cannot be written; nothing is left of it.
    """
    header = {name: [str(array.dtype), len(array)] for name, array in arrays.items()}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + _LENGTH_BYTES) % _ALIGNMENT)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


class Part:
    """A part, open for reading stretches of its arrays.

    Raises
    ------
    MachineError
        The file is not a whole part: a disk that lost power may keep a name without its bytes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        try:
            length = int.from_bytes(self._file.read(_LENGTH_BYTES), "little")
            header: dict[str, tuple[str, int]] = json.loads(self._file.read(length))
        except (ValueError, MemoryError):
            self._file.close()
            raise MachineError(self._damage()) from None
        self._places: dict[str, tuple[np.dtype[Any], int, int]] = {}
        at = _LENGTH_BYTES + length
        for name, (kind, count) in header.items():
            dtype = np.dtype(kind)
            self._places[name] = (dtype, count, at)
            at += dtype.itemsize * count
        if os.fstat(self._file.fileno()).st_size != at:
            self._file.close()
            raise MachineError(self._damage())

    def __enter__(self) -> Self:
        """Give the open part."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def size(self, name: str) -> int:
        """Length of an array."""
        return self._places[name][1]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Entries [start, stop) of an array."""
        dtype, count, at = self._places[name]
        stop = count if stop is None else stop
        wanted = (stop - start) * dtype.itemsize
        values = np.empty(stop - start, dtype=dtype)
        buffer = values.view(np.uint8).data
        done = 0
        while done < wanted:
            got = os.preadv(
                self._file.fileno(), [buffer[done:]], at + start * dtype.itemsize + done
            )
            if got == 0:
                raise MachineError(self._damage())
            done += got
        return values

    def read_ahead(self, name: str, start: int, stop: int) -> None:
        """Ask the system to fetch entries [start, stop) of an array, where it can be asked."""
        if _advise is None:
            return
        dtype, _, at = self._places[name]
        length = (stop - start) * dtype.itemsize
        with contextlib.suppress(OSError):  # a file system may not take advice
            _advise(
                self._file.fileno(), at + start * dtype.itemsize, length, os.POSIX_FADV_WILLNEED
            )

    def _damage(self) -> str:
        return f"{self._path}: a damaged piece of an unfinished store; delete it and prepare again"
