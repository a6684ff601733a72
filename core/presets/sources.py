"""The sources of preset values: files, the environment, options, `--set`; and the values of each.

Every source becomes a list of `Leaf` (key path, value) and a list of `Problem`. Unknown keys and
misplaced tables are found here; values are checked later, once it is known which source wins.
"""

import contextlib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path, PurePath
from typing import Any

from core.files import file_bytes
from core.presets.fields import EXTENDS, all_fields, field_at, nearest_hint, section_at
from core.presets.toml_text import (
    KeyPath,
    LineFinder,
    check_depth,
    dotted,
    read_key,
    read_value,
    show_value,
)
from core.renamed import REMOVED_PRESET_KEYS, current_key
from core.wording import visible

_PREFIX = "TFX_"
#: Bytes of a preset, and its errors that are listed.
_LARGEST_PRESET, MOST_PROBLEMS = 10 * 10**6, 50
#: Characters of a problem.
_LONGEST = 1_000
#: Entries of a table whose keys are the user's own.
_MOST_ENTRIES = 200
_AT_LINE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_UNSET = ("", "none")  # unsets a value on the command line, for TOML has no null


@dataclass(frozen=True)
class Problem:
    """One error: where, in which key, what."""

    where: str
    key: str
    message: str
    line: int = 0

    def __str__(self) -> str:
        """Write the problem as its line of the error message."""
        if not self.key or self.where.startswith(f"--set {self.key}="):
            return visible(f"{self.where}: {self.message}", most=_LONGEST)
        return visible(f"{self.where}: {self.key}: {self.message}", most=_LONGEST)


class Level(IntEnum):
    """Strength of the sources that are not files; files count from 0 in the order given."""

    ENVIRONMENT = 1_000_000
    OPTIONS = 1_000_001
    ASSIGNMENTS = 1_000_002


@dataclass
class Source:
    """All values of one file, variable, option or assignment, which ``name`` names in messages."""

    name: str
    #: Strength; sources of one level cannot overrule each other's alternatives.
    level: int
    #: For files.
    lines: LineFinder | None = None
    leaves: list["Leaf"] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    #: Problems beyond those that are listed.
    n_unlisted: int = 0
    #: The file could not be read, so that missing keys mean nothing.
    is_broken: bool = False
    #: The preset whose values apply to the keys that this file does not set.
    extends: str | None = None
    #: Present key -> the older spelling in the source.
    renamed: dict[KeyPath, KeyPath] = field(default_factory=dict)
    #: One sentence for every key of an older spelling.
    warnings: list[str] = field(default_factory=list)

    def line_of(self, path: KeyPath) -> int:
        """Return the line of a key, or of the table that would hold it; 0 without lines."""
        return self.lines.line_of(self.renamed.get(path, path)) if self.lines else 0

    def comment_after(self, path: KeyPath) -> str:
        """Return the comment in the line of a key; "" without lines."""
        return self.lines.comment_after(self.renamed.get(path, path)) if self.lines else ""

    def place_of(self, path: KeyPath) -> str:
        """Return ``file:line`` of a key, or the source's name if it has no lines."""
        return f"{self.name}:{self.line_of(path)}" if self.lines else self.name

    def add_problem(self, path: KeyPath, message: str) -> None:
        """Add a problem with one key, if not too many are listed already."""
        if self.is_full():
            self.n_unlisted += 1
        else:
            self.problems.append(self.problem(path, message))

    def is_full(self) -> bool:
        """Return whether no further problem is listed."""
        return len(self.problems) >= MOST_PROBLEMS

    def problem(self, path: KeyPath, message: str) -> Problem:
        """Make a problem of one key."""
        return Problem(self.place_of(path), dotted(path), message, self.line_of(path))

    def provenance_of(self, path: KeyPath) -> str:
        """Name the source of a value in a resolved preset."""
        name = "--set" if self.level == Level.ASSIGNMENTS else self.place_of(path)
        return " ".join(visible(name).split())  # as it will be read back from a comment


@dataclass(frozen=True)
class Leaf:
    """One value of one source."""

    path: tuple[str, ...]
    value: Any
    source: Source


def read_file(path: Path, *, level: int) -> Source:
    """Read a TOML file; if it cannot be read, or is not TOML, the source has a problem."""
    shown = _shown(path)
    try:
        text = file_bytes(path, most=_LARGEST_PRESET).decode(
            "utf-8-sig"
        )  # editors on Windows add the mark
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return _broken(shown, level, Problem(f"{shown}:{line}", "", "is not UTF-8 text", line))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        return _broken(shown, level, Problem(shown, "", f"cannot be read ({reason})"))
    return read_text(text, name=shown, level=level)


def read_text(text: str, *, name: str, level: int) -> Source:
    """Read TOML text; ``name`` is its file in messages."""
    try:
        check_depth(text)
        table = tomllib.loads(text)
    except RecursionError:
        return _broken(name, level, Problem(f"{name}:1", "", "not valid TOML: nested too deeply"))
    except ValueError as error:  # TOMLDecodeError, and integers too long to read
        return _broken(name, level, _syntax_problem(str(error), text, name))
    source = Source(name, level, LineFinder(text))
    base = table.pop(EXTENDS, None)
    if isinstance(base, str) and base:
        source.extends = base
    elif base is not None:
        source.add_problem((EXTENDS,), f"must be a preset's name or file (got {show_value(base)})")
    _collect(table, (), source)
    return source


def _broken(name: str, level: int, problem: Problem) -> Source:
    return Source(name, level, problems=[problem], is_broken=True)


def _syntax_problem(message: str, text: str, file: str) -> Problem:
    place = _AT_LINE.search(message)
    line, column = (place.group(1), place.group(2)) if place else ("1", None)
    if place and line is None:  # at the end of the document
        line = str(text.rstrip().count("\n") + 1)
    reason = _AT_LINE.sub("", message)
    if column is not None:
        reason += f" (column {column})"
    return Problem(f"{file}:{line}", "", f"not valid TOML: {reason}", int(line))


def read_environment(environment: Mapping[str, str]) -> list[Source]:
    """Read `TFX_TRAIN__BATCH_SIZE=8`; other variables that begin with TFX_ are ignored."""
    sources = []
    for variable in sorted(environment):
        if not variable.startswith(_PREFIX):
            continue
        rest = variable[len(_PREFIX) :].lower()
        path = tuple(rest.split("__"))
        if len(path) == 1 and not any(known.path[:1] == path for known in all_fields()):
            # With single underscores: TFX_TRAIN_SEED.
            meant = [
                one.path for one in all_fields() if one.path[1:] and "_".join(one.path) == rest
            ]
            if meant:
                message = f"unknown setting; did you mean {_PREFIX}{'__'.join(meant[0]).upper()}?"
                sources.append(_broken(variable, Level.ENVIRONMENT, Problem(variable, "", message)))
            continue
        value = _from_text(path, environment[variable])
        sources.append(_single(path, value, Source(variable, Level.ENVIRONMENT)))
    return sources


def read_options(options: Mapping[str, object], names: Mapping[str, str]) -> list[Source]:
    """Read command-line options given as dotted key -> value; None is an option not given."""
    sources = []
    for key, value in options.items():
        if value is None:
            continue
        path = tuple(key.split("."))
        option = names.get(key, f"--{path[-1].replace('_', '-')}")
        sources.append(_single(path, _plain(value), Source(option, Level.OPTIONS)))
    return sources


def read_assignments(assignments: Iterable[str]) -> list[Source]:
    """Read `a.b=c` of `--set`: the value is TOML if possible, else a string."""
    sources = []
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        where = f"--set {assignment}"
        path = read_key(key.strip())
        if not equals or path is None:
            problem = Problem(where, "", "must be KEY=VALUE, as in train.batch_size=8")
            sources.append(_broken(where, Level.ASSIGNMENTS, problem))
            continue
        settled = _from_text(path, value.strip())
        sources.append(_single(path, settled, Source(where, Level.ASSIGNMENTS)))
    return sources


def _single(path: tuple[str, ...], value: object, source: Source) -> Source:
    """Fill a source that sets a single key."""
    table: dict[str, object] = {path[-1]: value}
    for part in reversed(path[:-1]):
        table = {part: table}
    _collect(table, (), source)
    return source


def _plain(value: object) -> object:
    """Turn an option's value into one that TOML has."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return value


def _from_text(path: tuple[str, ...], text: str) -> object:
    """Read the text of a variable or an assignment as a value of the key.

    A key that takes strings gets the text itself if its TOML value does not fit (`name=2024`), one
    that takes whole numbers gets 1e5 as 100000, and an empty text or `none` unsets a key that may
    have no value.
    """
    value = read_value(text)
    try:
        known = field_at(current_key(path))
    except KeyError:
        return value
    if text.lower() in _UNSET and known.is_nullable:
        return None
    if known.is_table and len(path) == len(known.path):
        return value
    candidates = [value, text]
    if isinstance(value, float) and value.is_integer():
        candidates.insert(1, int(value))
    return next((item for item in candidates if known.accepts(item)), value)


def _collect(table: Mapping[str, object], path: tuple[str, ...], source: Source) -> None:
    """Walk a table along the schema: add the leaves, and a problem for every unknown key."""
    for name, value in table.items():
        written = (*path, name)
        here = current_key(written)
        old = dotted(written)
        if old in REMOVED_PRESET_KEYS:
            place = source.place_of(written)
            source.warnings.append(f"{place}: {old} is ignored: {REMOVED_PRESET_KEYS[old]}")
            continue
        if here != written:
            source.renamed[here] = written
            source.warnings.append(
                f"{source.place_of(here)}: {old} is now called {dotted(here)}; "
                "the old name works in this release only"
            )
        try:
            known = field_at(here)
        except KeyError:
            if section_at(here) is None:
                hint = "" if source.is_full() else nearest_hint(here)  # a search among all keys
                source.add_problem(here, f"unknown key; {hint}")
                continue
            known = None
        if known is None or (known.is_table and here == known.path):
            if known is not None and isinstance(value, Mapping) and len(value) > _MOST_ENTRIES:
                has = f"has {len(value):,} entries, and at most {_MOST_ENTRIES} are possible"
                source.add_problem(here, has)
            elif isinstance(value, Mapping):
                _collect(value, here, source)
            else:
                source.add_problem(here, f"must be a table (got {show_value(value)})")
        elif (reason := _unfit(name) or _unfit(value)) is not None:
            source.add_problem(here, reason)
        else:
            source.leaves.append(Leaf(here, value, source))


def _unfit(value: object) -> str | None:
    """Say why a value cannot be stored in any preset; None if it can."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "is too large for a 64-bit integer"
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # bytes of the command line that were not UTF-8
            return f"is not UTF-8 text (got {show_value(value)})"
    if isinstance(value, list):
        return next((reason for item in value if (reason := _unfit(item))), None)
    return None


def _shown(path: Path) -> str:
    """Name a file in messages: relative to the working folder if it is inside it."""
    with contextlib.suppress(ValueError, OSError):  # not inside it, or the folder is gone
        if path.is_absolute():
            return str(path.relative_to(Path.cwd()))
    return str(path)
