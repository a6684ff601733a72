"""From the names of cells in a preset to a list of files: braces, globs, experiments, built-in datasets.

`name_{0..43}.h5ad` names 44 files that must all exist (a missing shard is an error, not a smaller
dataset); `name_*.h5ad` names the files that exist. `builtin:...` and `soma://...` are not changed. A pattern
names a bounded number of files, and looks at a bounded number of files and folders.
"""

import fnmatch
import glob
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import bracex

from core.errors import ConfigurationError, DataError
from core.wording import listed

BUILTIN_PREFIX = "builtin:"
#: Files that the braces of a pattern name, and entries of folders that its globs look at.
_MOST_FILES, _MOST_ENTRIES = 100_000, 200_000
SOMA_PREFIX = "soma://"
#: Endings of the files and folders that hold cells (docs/formats.md); the content decides what they are.
_ENDINGS = (".h5ad", ".zarr", ".h5", ".h5mu", ".h5ad.gz", "matrix.mtx", "matrix.mtx.gz")


def is_path(spec: str) -> bool:
    """Whether cells are named by a path, not as a built-in dataset or a SOMA experiment."""
    return not spec.startswith((BUILTIN_PREFIX, SOMA_PREFIX))


def names_cells(spec: str) -> bool:
    """Whether an argument of a command line names cells: by its ending, or as a folder of matrix.mtx."""
    if not is_path(spec) or spec.rstrip("/").endswith(_ENDINGS):
        return True
    return any(Path(spec).glob("*matrix.mtx*")) if Path(spec).is_dir() else False


def expand_files(patterns: Sequence[str], *, allow_missing: bool = False) -> list[str]:
    """List the files of patterns, in the order of the patterns.

    Patterns are paths, globs (``*``, ``?``, ``[...]``, ``**``), braces (``{0..43}``, ``{00..43}``,
    ``{lung,liver}``), or names that begin with ``builtin:`` or ``soma://``. A path that exists is taken
    literally; the files of a glob come in natural order (2 before 10). A plain path is returned even if it
    does not exist: reading it raises the error. With `allow_missing`, the same holds for files of braces.
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
    if not is_path(pattern):
        return [pattern]
    pattern = str(Path(pattern).expanduser())
    if Path(pattern).exists():
        return [pattern]
    try:
        names = bracex.expand(pattern, keep_escapes=True, limit=_MOST_FILES)
    except bracex.ExpansionLimitException:
        raise ConfigurationError(
            f"{pattern}: its braces name more than {_MOST_FILES:,} files; correct them"
        ) from None
    files: list[str] = []
    search = _Search(pattern)
    for name in names:
        if glob.has_magic(name):
            found = sorted(search.files_of(name), key=_natural)
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


@dataclass
class _Search:
    """Finds the files that the globs of a pattern match, each as glob.glob would spell it."""

    pattern: str
    n_entries: int = 0

    def files_of(self, name: str) -> list[str]:
        """List the files and folders that match one of the pattern's globs."""
        parts = Path(name).parts
        if parts[-1] == "**":
            parts += ("*",)
        found = [""]
        for part in parts:
            if part == "**":
                below = (folder for top in found for folder in self._folders_below(top))
                found = list(dict.fromkeys(below))
            elif glob.has_magic(part):
                found = [
                    os.path.join(folder, one)  # noqa: PTH118 (keeps the path as given)
                    for folder in found
                    for one in self._names_in(folder)
                    if fnmatch.fnmatch(one, part) and one.startswith(".") <= part.startswith(".")
                ]
            else:
                found = [os.path.join(folder, part) for folder in found]  # noqa: PTH118
        return [path for path in found if os.path.lexists(path)]

    def _names_in(self, folder: str) -> list[str]:
        """List a folder; nothing is in a file, and in a folder that you may not read."""
        left = _MOST_ENTRIES - self.n_entries
        try:
            with os.scandir(folder or ".") as entries:
                names = [one.name for one in itertools.islice(entries, left + 1)]
        except (OSError, ValueError):  # a NUL character
            return []
        self.n_entries += len(names)
        if len(names) > left:
            raise ConfigurationError(
                f"{self.pattern}: it would look at more than {_MOST_ENTRIES:,} files and folders; "
                f"name the folder more closely"
            )
        return names

    def _folders_below(self, top: str) -> Iterator[str]:
        """Yield a folder and those in it at any depth, but hidden ones and .zarr stores.

        A folder that links to one above it is not entered again.
        """
        seen, waiting = set[tuple[int, int]](), [top]
        while waiting:
            folder = waiting.pop()
            try:
                status = Path(folder).stat()
            except OSError:
                continue
            place = (status.st_dev, status.st_ino)
            if place in seen or not stat.S_ISDIR(status.st_mode):
                continue
            seen.add(place)
            yield folder
            waiting += [
                os.path.join(folder, one)  # noqa: PTH118
                for one in self._names_in(folder)
                if not one.startswith(".") and not one.endswith(".zarr")
            ]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _key(file: str) -> str:
    """Return what two spellings of one file have in common."""
    # Unlike Path.resolve it takes links that lead to themselves.
    return os.path.realpath(file) if is_path(file) else file
