"""From the file names of a preset to a list of files: braces, globs, built-in datasets.

`name_{0..43}.h5ad` names 44 files that must all exist (a missing shard is an error, not a smaller
dataset); `name_*.h5ad` names the files that exist. `builtin:...` is not changed.
"""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

import bracex

from core.errors import ConfigurationError, DataError
from core.wording import listed

BUILTIN_PREFIX = "builtin:"


def expand_files(patterns: Sequence[str], *, allow_missing: bool = False) -> list[str]:
    """List the files of patterns, in the order of the patterns.

    Patterns are paths, globs (``*``, ``?``, ``[...]``, ``**``), braces (``{0..43}``, ``{00..43}``,
    ``{lung,liver}``) or ``builtin:`` names. A path that exists is taken literally; the files of a glob
    come in natural order (2 before 10). A plain path is returned even if it does not exist: reading it
    raises the error. With `allow_missing`, the same holds for files of braces.
    """
    files = [file for pattern in patterns for file in _expand(pattern, allow_missing=allow_missing)]
    seen: dict[str, str] = {}
    for file in files:
        same, seen[_key(file)] = seen.get(_key(file)), file
        if same is not None:
            also = "" if same == file else f" (as '{same}' and '{file}')"
            raise ConfigurationError(
                f"{file}: listed twice{also}; its cells would count double, name it once"
            )
    return files


def check_overlap(lists: dict[str, Sequence[str]]) -> None:
    """Check that no file is in two lists of files; ``lists`` maps preset keys to expanded files."""
    owner: dict[str, str] = {}
    for key, files in lists.items():
        for file in files:
            first = owner.setdefault(_key(file), key)
            if first != key:
                raise ConfigurationError(
                    f"{file}: is in {first} and in {key}; a model must not be evaluated on its "
                    f"training cells, leave it in one of them"
                )


def _expand(pattern: str, *, allow_missing: bool) -> list[str]:
    if pattern.startswith(BUILTIN_PREFIX):
        return [pattern]
    pattern = str(Path(pattern).expanduser())
    if Path(pattern).exists():
        return [pattern]
    names = bracex.expand(pattern, keep_escapes=True, limit=0)
    files: list[str] = []
    for name in names:
        if glob.has_magic(name):
            found = sorted(glob.glob(name, recursive=True), key=_natural)  # noqa: PTH207 (keeps the path as given)
            if not found:
                raise DataError(f"{pattern}: no file matches this pattern; check it")
            files += found
        else:
            files.append(name)
    if not allow_missing and names != [pattern]:
        missing = [file for file in files if not Path(file).exists()]
        if missing:
            raise DataError(
                f"{pattern}: {len(missing)} of the {len(files)} files it names do not exist "
                f"({listed(missing)}); correct the braces or add the files"
            )
    return files


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _key(file: str) -> str:
    """Return what two spellings of one file have in common."""
    return file if file.startswith(BUILTIN_PREFIX) else str(Path(file).resolve())
