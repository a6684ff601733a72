"""Reading and writing files whole, values that strict JSON and CSV hold, and free space."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

#: Bytes of the largest text that is read whole; a preset, a vocabulary or a manifest has far fewer.
_LARGEST_TEXT = 100 * 10**6


def open_file(path: Path) -> io.BufferedReader:
    """Open a file for reading; OSError at once for what may never end or never begin: a pipe, a device."""
    _check_kind(path, path.stat().st_mode)
    waits_not = getattr(os, "O_NONBLOCK", 0)  # for what took the file's place since
    stream = open(path, "rb", opener=lambda name, flags: os.open(name, flags | waits_not))  # noqa: SIM115
    try:
        _check_kind(path, os.fstat(stream.fileno()).st_mode)
    except OSError:
        stream.close()
        raise
    return stream


def _check_kind(path: Path, mode: int) -> None:
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder is an error of its own
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, not a file", str(path))


def check_own_file(path: Path) -> None:
    """Raise OSError if a file to append to is a link or no file: a stranger's folder may lead elsewhere."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(
                errno.EINVAL, f"{path.name} is a link, a pipe or a device, not a file", str(path)
            )


def file_bytes(path: Path, *, most: int = _LARGEST_TEXT) -> bytes:
    """Read a file whole; OSError for what is no file, and for more than ``most`` bytes."""
    with open_file(path) as stream:
        n_bytes = os.fstat(stream.fileno()).st_size
        if n_bytes > most:
            what = f"it has more than {most // 10**6:,} million bytes"
            raise OSError(errno.EINVAL, what, str(path))
        return stream.read()


def file_text(path: Path) -> str:
    """Read a text in UTF-8; OSError as of `file_bytes`, ValueError for other bytes."""
    return file_bytes(path).decode()


def file_names(path: Path) -> list[str]:
    """Read names, one a line or separated by commas; '#' begins a comment. Errors as of `file_text`."""
    lines = (line.partition("#")[0] for line in file_text(path).splitlines())
    names = (name.strip() for line in lines for name in line.split(","))
    return list(dict.fromkeys(filter(None, names)))


def file_json(path: Path) -> Any:  # noqa: ANN401
    """Read a JSON file; OSError as of `file_bytes`, ValueError if it is not JSON."""
    try:
        return json.loads(file_bytes(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to `path` at the end, remove it on failure.

    Readers see the old file or the new one, never a part. The temporary file exists, and is empty: a link
    that another user put in its place is removed, not followed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file whole: text in UTF-8, or bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """Write a file of one JSON object."""
    replace_file(path, json.dumps(plain_json(record), indent=2, allow_nan=False) + "\n")


def plain_json(value: object, *, nonfinite: list[str] | None = None, key: str = "") -> Any:  # noqa: ANN401
    """Turn a value into what strict JSON holds; never fails, so that logging never stops a run.

    Numpy and torch values become numbers and lists, objects with ``to_dict`` dictionaries, sets sorted
    lists, and anything else its ``str``. A number that is infinite or NaN becomes None, and its dotted
    key (which begins with `key`) is added to `nonfinite`.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        if nonfinite is not None:
            nonfinite.append(key)
        return None
    if isinstance(value, Mapping):
        prefix = f"{key}." if key else ""
        return {
            str(name): plain_json(item, nonfinite=nonfinite, key=f"{prefix}{name}")
            for name, item in value.items()
        }
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, Sequence) and not isinstance(value, bytes | PurePath):
        return [
            plain_json(item, nonfinite=nonfinite, key=f"{key}[{index}]")
            for index, item in enumerate(value)
        ]
    for method in ("tolist", "to_dict"):
        convert = getattr(value, method, None)
        if callable(convert):
            try:
                return plain_json(convert(), nonfinite=nonfinite, key=key)
            except (ValueError, TypeError, RuntimeError):
                continue
    return str(value)


def csv_cell(value: object) -> object:
    """Return a cell of a table; a text that spreadsheets run as a formula gets an apostrophe before it."""
    if not isinstance(value, str) or len(value) < 2 or value[0] not in "=+-@\t\r":
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Write rows as CSV in UTF-8; None is an empty cell, and no text becomes a formula of a spreadsheet."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(["" if value is None else csv_cell(value) for value in row] for row in rows)
    return text.getvalue().encode(errors="backslashreplace")  # lone surrogates of JSON


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def share_as_folder(path: Path) -> None:
    """Give a file the permissions of the new folder it is in: those of the user's umask.

    Some libraries make files that only their owner can read.
    """
    path.chmod(path.parent.stat().st_mode & 0o666)


def free_space(path: Path) -> tuple[Path, int]:
    """Return the nearest existing folder at or above a path, and the free bytes of its disk."""
    path = path.absolute()
    folder = next(one for one in (path, *path.parents) if one.is_dir())
    return folder, shutil.disk_usage(folder).free


def folder_size(folder: Path) -> int | None:
    """Return the bytes in a folder; None if it does not exist."""
    if not folder.is_dir():
        return None
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a checkpoint that is being removed
            total += path.stat().st_size if path.is_file() else 0
    return total
