"""Append-only files of JSON lines: writing a line whole, and following a file that grows.

Strict JSON: a number that is not finite is written as null and its key listed in "nonfinite". A
line counts once its newline is written, so a torn last line is read later, when it is whole.
"""

import contextlib
import json
import logging
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.files import check_own_file, open_file, plain_json

_LOG = logging.getLogger(__name__)
#: Bytes of the largest file that is read: two million lines of metrics.
LARGEST_LOG = 10**9


def finite_number(value: object) -> float | None:
    """Return a number that was read; None if it is not a number, not finite, or beyond a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def number_in(record: Mapping[str, Any] | None, name: str) -> float | None:
    """Return a number of a record; None if it is absent, not finite, or not a number."""
    return None if record is None else finite_number(record.get(name))


def to_line(record: Mapping[str, object]) -> bytes:
    """Write a record as one line of strict JSON, newline included."""
    nonfinite: list[str] = []
    plain = plain_json(record, nonfinite=nonfinite)
    if nonfinite:
        plain["nonfinite"] = nonfinite
    return json.dumps(plain, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def parse_object(text: bytes) -> dict[str, Any] | None:
    """Read a JSON object; None if the text is something else."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


class LineAppender:
    """One append-only file with one writer.

    Every line is one ``os.write`` on a descriptor opened with ``O_APPEND``. A write that fails or
    falls short (a full disk) causes one warning and never raises: training matters more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._has_warned = False
        self._is_torn = False  # the file ends within a line; end that before the next one

    def append(self, record: Mapping[str, object]) -> None:
        """Append one record."""
        line = to_line(record)
        try:
            descriptor = self._open()
            whole = b"\n" + line if self._is_torn else line
            n_written = os.write(descriptor, whole)
            if n_written:
                self._is_torn = n_written < len(whole)
            if self._is_torn:
                self._warn(f"only {n_written} of {len(whole)} bytes were written")
        except OSError as error:
            self._warn(error.strerror or str(error))

    def move(self, folder: Path) -> None:
        """Open the file in another folder, if it is not open yet."""
        self._path = folder / self._path.name

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            check_own_file(self._path)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self._path, flags, 0o666)
            end = os.lseek(self._descriptor, 0, os.SEEK_END)
            if end:  # a crash may have left a torn line
                os.lseek(self._descriptor, end - 1, os.SEEK_SET)
                self._is_torn = os.read(self._descriptor, 1) != b"\n"
        return self._descriptor

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            _LOG.warning(
                "%s cannot be written (%s); the run continues without it", self._path, reason
            )


class LineFollower:
    """Follow a file of JSON lines: every call of `poll` returns the records that are new.

    Keeps a byte offset and stops at the last newline. A file that shrank or was replaced is read
    from its start again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        #: Bytes read so far, up to the end of the last whole line, and bytes of the file.
        self.offset = self.size = 0
        #: Lines that were not JSON objects, so far.
        self.bad_lines = 0
        #: Whether the last call read the file from its start; what was read before is then void.
        self.has_restarted = False

    def skip_to_tail(self, n_bytes: int) -> None:
        """Leave out all but about the last ``n_bytes`` of the file; call it before the first `poll`."""
        with contextlib.suppress(OSError), open_file(self._path) as file:
            status = os.fstat(file.fileno())
            if n_bytes < status.st_size <= LARGEST_LOG:
                file.seek(status.st_size - n_bytes)
                file.readline()
                self.offset, self._inode = file.tell(), status.st_ino

    def poll(self, *, most_bytes: int = -1) -> list[dict[str, Any]]:
        """Return the records added since the last call; none if the file does not exist.

        With ``most_bytes`` about so much is read at a time, in whole lines; `offset` shows the
        progress.
        """
        self.has_restarted = False
        try:
            with open_file(self._path) as file:
                status = os.fstat(file.fileno())
                if status.st_size > LARGEST_LOG:
                    return []
                is_other = self._inode is not None and status.st_ino != self._inode
                self.has_restarted = is_other or status.st_size < self.offset
                if self.has_restarted:
                    self.offset, self.bad_lines = 0, 0
                self._inode, self.size = status.st_ino, status.st_size
                if status.st_size == self.offset:
                    return []
                file.seek(self.offset)
                data = file.read(most_bytes)
                if b"\n" not in data:  # a line longer than that
                    data += file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        if not whole:  # the end of a torn line
            self.size = self.offset
        found = [parse_object(line) for line in whole.split(b"\n") if line.strip()]
        records = [record for record in found if record is not None]
        self.bad_lines += len(found) - len(records)
        return records

    def chunks(self, n_bytes: int) -> Iterator[list[dict[str, Any]]]:
        """Yield the records added since the last call, about so many bytes at a time, until all are read."""
        while True:
            offset = self.offset
            yield self.poll(most_bytes=n_bytes)
            if self.offset == offset and not self.has_restarted:
                return


class RecordTail:
    """The records of a file that grows: all of them, or the last ``most``."""

    def __init__(self, path: Path, *, most: int | None = None) -> None:
        self._follower = LineFollower(path)
        self._records: deque[dict[str, Any]] = deque(maxlen=most)

    @property
    def bad_lines(self) -> int:
        """Lines that were not JSON objects, so far."""
        return self._follower.bad_lines

    def poll(self) -> list[dict[str, Any]]:
        """Read what was added; return the records, oldest first."""
        new = self._follower.poll()
        if self._follower.has_restarted:
            self._records.clear()
        self._records.extend(new)
        return list(self._records)
