"""TOML as text: writing a value, showing it in a message, reading it from an option, finding its line."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import tomlkit

from core.wording import visible

#: ("train", "batch_size"), with integers for the items of a list.
KeyPath = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
#: A comment, or one of the four kinds of string.
_OPAQUE = re.compile(
    r'#[^\n]*|"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"[^"\\\n]*(?:\\.[^"\\\n]*)*"|\'[^\'\n]*\'',
    re.DOTALL,
)
_SIGN = re.compile(r"[^\s#]")
_MARK = re.compile(r"[\[\]{},\n]|\Z")
_DEPTH = {"[": 1, "{": 1, "]": -1, "}": -1}
_LONGEST_SHOWN = 70
#: A key of more parts than any preset has: tomllib needs the square of their number.
_PART = r"(?:\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'|[\w-]+)"
_DEEP_KEY = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*\.[ \t]*{_PART}){{100}}")


def write_value(value: object) -> str:
    """Write a value as TOML on one line; raise TypeError if TOML has no such value (None)."""
    if isinstance(value, Mapping):
        pairs = (f"{write_key(str(key))} = {write_value(item)}" for key, item in value.items())
        return "{ " + ", ".join(pairs) + " }" if value else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return "[" + ", ".join(write_value(item) for item in value) + "]"
    try:
        return visible(tomlkit.item(value).as_string())  # escapes are the same in a string of TOML
    except tomlkit.exceptions.ConvertError as error:
        raise TypeError(f"TOML has no form for a {type(value).__name__}") from error


def show_value(value: object) -> str:
    """Write a value for an error message: as in TOML, strings in single quotes, long ones cut."""
    if isinstance(value, str):
        text = repr(value)
    else:
        try:
            text = write_value(value)
        except (TypeError, ValueError):  # ValueError: an integer of thousands of digits
            text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def write_key(part: str) -> str:
    """Write one part of a key, quoted where TOML needs it."""
    return part if _BARE_KEY.fullmatch(part) else write_value(part)


def dotted(path: Iterable[str | int]) -> str:
    """Write a key path: ``data.phenotypes."my column"``, ``data.files[2]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + write_key(part)
    return text


def check_depth(text: str) -> None:
    """Raise RecursionError for TOML with a dotted key of more than a hundred parts."""
    if _DEEP_KEY.search(text):
        raise RecursionError


def read_key(text: str) -> tuple[str, ...] | None:
    """Read a dotted key as TOML does; None if it is not one."""
    if bare := _BARE_KEY.fullmatch(text.strip(" \t")):
        return (bare[0],)
    if "\n" in text:
        return None  # it would be read as lines of a document
    try:
        check_depth(text)
        table: object = tomllib.loads(f"{text} = 0")
    except (ValueError, RecursionError):
        return None
    parts = []
    while isinstance(table, dict):
        if len(table) != 1:
            return None
        (part, table), *_ = table.items()
        parts.append(part)
    return tuple(parts)


def read_value(text: str) -> object:
    """Read a value as TOML where it is TOML, else as the string that it is."""
    try:
        check_depth(text)
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if set(table) == {"value"} else text


class LineFinder:
    """The line of every key of one valid TOML text, and the comment behind its value.

    `tomllib` and tomlkit keep no positions. Once strings and comments are blanked out, a statement ends
    with the first line on which no bracket is open. A key that is not found has the line of its longest
    known prefix.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._blank = _OPAQUE.sub(_filler, text)
        self._counted_to, self._line = 0, 1
        self._lines: dict[KeyPath, int] = {}
        self._comments: dict[KeyPath, str] = {}
        table: tuple[str, ...] = ()
        for start, end in self._statements():
            is_header = self._blank.startswith("[", start)
            stop = self._blank.find("]" if is_header else "=", start, end)
            key = read_key(text[start:stop].lstrip("[")) if stop >= 0 else None
            if key is None:  # not TOML: the lines found so far remain
                break
            path, line = key if is_header else (*table, *key), self._line_at(start)
            for n_parts in range(1, len(path) + 1):
                self._lines.setdefault(path[:n_parts], line)
            if not is_header:
                self._find_items(path, stop + 1, end)
                continue
            table = path
            if not self._blank.startswith("[[", start):
                self._lines[path] = line  # a header of its own outranks an earlier mention

    def line_of(self, key: Sequence[str | int]) -> int:
        """Return the line of ``key``, or of the longest known prefix of it, or 1."""
        path = tuple(key)
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def comment_after(self, key: Sequence[str | int]) -> str:
        """Return the comment that follows the value of ``key`` on its line, without '#'."""
        return self._comments.get(tuple(key), "")

    def _statements(self) -> Iterator[tuple[int, int]]:
        """Give the first character and the end of each header and each pair of key and value."""
        start = depth = 0
        for mark in _MARK.finditer(self._blank):
            depth += _DEPTH.get(mark[0], 0)
            if depth <= 0 and mark[0] in ("\n", ""):
                first = self._skip_filler(start)
                if first < mark.start():
                    yield first, mark.start()
                start = mark.end()

    def _find_items(self, path: KeyPath, start: int, end: int) -> None:
        """Find the items of an array, and the comment, of the value from `start` to `end`."""
        depth = index = 0
        for mark in _MARK.finditer(self._blank, start, end):
            depth += _DEPTH.get(mark[0], 0)
            item = self._skip_filler(mark.end())
            if depth == 1 and mark[0] in ("[", ",") and not self._blank.startswith("]", item):
                self._lines[(*path, index)] = self._line_at(item)
                index += 1
        comment = self._blank.find("#", max(self._blank.rfind("\n", start, end), start), end)
        if comment >= 0:
            self._comments[path] = self._text[comment + 1 : end].strip()

    def _skip_filler(self, at: int) -> int:
        """Return where the next sign is that is no blank, line end or comment."""
        match = _SIGN.search(self._blank, at)
        return len(self._blank) if match is None else match.start()

    def _line_at(self, at: int) -> int:
        self._line += self._text.count("\n", self._counted_to, at)
        self._counted_to = at
        return self._line


def _filler(match: re.Match[str]) -> str:
    """Return as many signs as a string or a comment has characters."""
    return ("#" if match[0].startswith("#") else "s") * len(match[0])
