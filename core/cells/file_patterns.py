"""From the names of cells in a preset to a list of files: braces, globs, experiments, built-in datasets.

`name_{0..43}.h5ad` names 44 files that must all exist (a missing shard is an error, not a smaller
dataset); `name_*.h5ad` names the files that exist. `builtin:...` and `soma://...` are not changed. A pattern
names a bounded number of files, and `**` looks through a bounded number of folders.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import bracex

from core.errors import ConfigurationError, DataError
from core.wording import listed

BUILTIN_PREFIX = "builtin:"
#: Files of a pattern, and entries of folders that `**` looks at.
_MOST_FILES, _MOST_ENTRIES = 100_000, 200_000
_TWO_STARS = re.compile(r"(?<![^/])\*\*(?:/|$)")
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
    for name in names:
        if glob.has_magic(name):
            found = sorted(_files_of(name), key=_natural)
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


def _files_of(pattern: str) -> list[str]:
    """List the files that a glob matches, each as the glob spells it."""
    match = _TWO_STARS.search(pattern)
    if match is None:
        return glob.glob(pattern)  # noqa: PTH207 (keeps the path as given)
    before, after = pattern[: match.start()], pattern[match.end() :]
    tops = glob.glob(before) if before else [""]  # noqa: PTH207
    folders = [folder for top in tops for folder in _folders_below(top, pattern)]
    found = (file for folder in folders for file in _files_of(glob.escape(folder) + (after or "*")))
    return list(dict.fromkeys(found))


def _folders_below(top: str, pattern: str) -> Iterator[str]:
    """Yield a folder and those in it at any depth, but hidden ones, with a slash at the end.

    A folder that links to one above it is not entered again.
    """
    n_entries, seen, waiting = 0, set[tuple[int, int]](), [top]
    while waiting:
        folder = waiting.pop()
        try:
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder or ".") as entries:
                for one in entries:
                    n_entries += 1
                    if (
                        not one.name.startswith(".")
                        and one.is_dir()
                        and not one.name.endswith(".zarr")
                    ):
                        waiting.append(f"{folder}{one.name}/")
        except OSError:  # a folder that you may not read holds nothing for a pattern
            continue
        if n_entries > _MOST_ENTRIES:
            raise ConfigurationError(
                f"{pattern}: '**' would look at more than {_MOST_ENTRIES:,} files and folders below "
                f"'{top or '.'}'; name the folder more closely"
            )
        yield folder


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _key(file: str) -> str:
    """Return what two spellings of one file have in common."""
    return str(Path(file).resolve()) if is_path(file) else file
