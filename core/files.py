"""Writing files whole, values that strict JSON holds, and free space."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to `path` at the end, remove it on failure.

    Readers see the old file or the new one, never a part; of a folder, the new one or, for a moment, none.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
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


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def free_space(path: Path) -> tuple[Path, int]:
    """Return the nearest existing folder at or above a path, and the free bytes of its disk."""
    path = path.absolute()
    folder = next(one for one in (path, *path.parents) if one.is_dir())
    return folder, shutil.disk_usage(folder).free
