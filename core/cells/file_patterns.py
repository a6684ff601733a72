"""From the file names of a preset to a list of files: braces, globs, built-in datasets.

`name_{0..43}.h5ad` names 44 files that must all exist (a missing shard is an error, not a smaller
dataset); `name_*.h5ad` names those there are. `builtin:...` passes through.
"""

import glob
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigurationError, DataError

__all__ = ["BUILTIN_PREFIX", "expand_files", "refuse_overlap"]

BUILTIN_PREFIX = "builtin:"
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_files(patterns: Sequence[str], *, allow_missing: bool = False) -> list[str]:
    """List the files that patterns stand for, in the order of the patterns.

    Parameters
    ----------
    patterns
        Paths, globs (``*``, ``?``, ``[...]``, ``**``), braces (``{0..43}``, ``{00..43}``,
        ``{lung,liver}``) or ``builtin:`` names. A path that exists is taken literally.
    allow_missing
        Pass on files that braces name and that do not exist, as plain paths are.

    Returns
    -------
    Paths as given; the files of a glob in natural order (2 before 10). A plain path is passed on
    even if it does not exist: who opens it says so.

    Raises
    ------
    DataError
        A glob matches nothing, or files that braces name are missing.
    ConfigurationError
        Two patterns name the same file.
    """
    files = [file for pattern in patterns for file in _expand(pattern, allow_missing=allow_missing)]
    seen: dict[str, str] = {}
    for file in files:
        identity = _identity(file)
        same = seen.get(identity)
        seen[identity] = file
        if same is not None:
            also = "" if same == file else f" (as '{same}' and '{file}')"
            message = f"{file}: listed twice{also}; its cells would count double, name it once"
            raise ConfigurationError(message)
    return files


def refuse_overlap(lists: dict[str, Sequence[str]]) -> None:
    """Refuse a file that stands in two of the lists, e.g. in training and in test.

    Parameters
    ----------
    lists
        Preset key ("data.files") -> expanded files.

    Raises
    ------
    ConfigurationError
        Naming the file and both keys.
    """
    owner: dict[str, str] = {}
    for key, files in lists.items():
        for file in files:
            first = owner.setdefault(_identity(file), key)
            if first != key:
                message = (
                    f"{file}: stands in {first} and in {key}; a model must not be judged on cells "
                    f"it has seen, leave it in one of them"
                )
                raise ConfigurationError(message)


def _expand(pattern: str, *, allow_missing: bool) -> list[str]:
    if pattern.startswith(BUILTIN_PREFIX):
        return [pattern]
    pattern = str(Path(pattern).expanduser())
    if Path(pattern).exists():
        return [pattern]
    names = _expand_braces(pattern)
    files: list[str] = []
    for name in names:
        if glob.has_magic(name):
            found = sorted(glob.glob(name, recursive=True), key=_natural)  # noqa: PTH207 (keeps the path as given)
            if not found:
                message = f"{pattern}: no file matches this pattern; check it"
                raise DataError(message)
            files += found
        else:
            files.append(name)
    if not allow_missing and (len(names) > 1 or names[0] != pattern):
        missing = [file for file in files if not Path(file).exists()]
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            message = (
                f"{pattern}: {len(missing)} of the {len(files)} files it names do not exist "
                f"({shown}); correct the braces or add the files"
            )
            raise DataError(message)
    return files


def _expand_braces(pattern: str) -> list[str]:
    pieces = _BRACES.split(pattern)  # text, braces, text, braces, ..., text
    choices = [
        [piece] if index % 2 == 0 else _alternatives(piece) for index, piece in enumerate(pieces)
    ]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _alternatives(inside: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",") if "," in inside else ["{" + inside + "}"]
    first, last = int(match[1]), int(match[2])
    padded = match[1].startswith("0") and len(match[1]) > 1
    width = len(match[1]) if padded else 0
    step = 1 if last >= first else -1
    return [str(number).zfill(width) for number in range(first, last + step, step)]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _identity(file: str) -> str:
    return file if file.startswith(BUILTIN_PREFIX) else str(Path(file).resolve())
