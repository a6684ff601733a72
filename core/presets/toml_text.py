"""TOML as text: writing a value, showing it in a message, reading it from an option, finding its line."""

import contextlib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence

import tomlkit

from core.wording import visible

#: ("train", "batch_size"), with integers for the items of a list.
KeyPath = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"[ \t]*")
_FILLER = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")  # between the items of an array
_SCALAR = re.compile(r"[^,\]}#\r\n]+")  # numbers, dates, booleans
_STRINGS = (
    re.compile(r'"""(?:\\.|[^\\])*?"{3,5}', re.DOTALL),
    re.compile(r"'''.*?'{3,5}", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\\n])*"'),
    re.compile(r"'[^'\n]*'"),
)
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


class _LostPlaceError(Exception):
    """The scanner met something that it does not understand."""


class LineFinder:
    """The line of every key of one valid TOML text.

    `tomllib` and tomlkit keep no positions. Because `tomllib` has accepted the text, this scanner only
    steps over comments, the four kinds of string, arrays and inline tables. If it fails it keeps the
    lines found so far, and a key gets the line of its longest known prefix.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._counted_to = 0
        self._line = 1
        self._lines: dict[KeyPath, int] = {}
        self._ends: dict[KeyPath, int] = {}
        self._n_tables: dict[KeyPath, int] = {}  # [[array of tables]] -> its tables so far
        with contextlib.suppress(_LostPlaceError, RecursionError):
            self._scan()

    def line_of(self, key: Sequence[str | int]) -> int:
        """Return the line of ``key``, or of the longest known prefix of it, or 1."""
        path = tuple(key)
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def comment_after(self, key: Sequence[str | int]) -> str:
        """Return the comment that follows the value of ``key`` on its line, without '#'."""
        end = self._ends.get(tuple(key))
        if end is None:
            return ""
        rest = self._text[end:].split("\n", 1)[0].strip()
        return rest[1:].strip() if rest.startswith("#") else ""

    # -- the scanner: every method moves self._at and leaves it after what it read
    def _scan(self) -> None:
        table: KeyPath = ()
        while True:
            self._skip(_FILLER)
            if self._at >= len(self._text):
                return
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> KeyPath:
        line = self._line_here()
        is_array = self._text.startswith("[[", self._at)
        bracket = "]]" if is_array else "]"
        self._at += len(bracket)
        parts = self._key()
        self._expect(bracket)
        if is_array:
            array = (*self._descend((), parts[:-1], line), parts[-1])
            self._lines.setdefault(array, line)
            index = self._n_tables.get(array, 0)
            self._n_tables[array] = index + 1
            path: KeyPath = (*array, index)
        else:
            path = self._descend((), parts, line)
        self._lines[path] = line  # a header of its own outranks an earlier mention
        return path

    def _descend(self, start: KeyPath, parts: Sequence[str], line: int) -> KeyPath:
        """Follow key parts, stepping into the latest element of arrays of tables."""
        path = start
        for part in parts:
            path = (*path, part)
            self._lines.setdefault(path, line)
            if path in self._n_tables:
                path = (*path, self._n_tables[path] - 1)
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line_here()
        path = self._descend(table, self._key(), line)
        self._expect("=")
        self._value(path)

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._skip(_BLANK)
            quoted = self._string()
            if quoted is not None:
                try:
                    parts.append(str(tomllib.loads(f"key = {quoted}")["key"]))
                except tomllib.TOMLDecodeError as error:
                    raise _LostPlaceError from error
            else:
                match = _BARE_KEY.match(self._text, self._at)
                if match is None:
                    raise _LostPlaceError
                parts.append(match.group())
                self._at = match.end()
            self._skip(_BLANK)
            if not self._text.startswith(".", self._at):
                return parts
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        self._skip(_BLANK)
        if self._text.startswith("[", self._at):
            self._array(path)
        elif self._text.startswith("{", self._at):
            self._inline_table(path)
        elif self._string() is None:
            match = _SCALAR.match(self._text, self._at)
            if match is None:
                raise _LostPlaceError
            self._at = match.end()
        self._ends[path] = self._at

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while True:
            self._skip(_FILLER)
            if self._text.startswith("]", self._at):
                self._at += 1
                return
            item = (*path, index)
            self._lines[item] = self._line_here()
            self._value(item)
            index += 1
            self._skip(_FILLER)
            if self._text.startswith(",", self._at):
                self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while True:
            self._skip(_FILLER)  # later TOML versions allow line breaks here
            if self._text.startswith("}", self._at):
                self._at += 1
                return
            self._pair(path)
            self._skip(_FILLER)
            if self._text.startswith(",", self._at):
                self._at += 1

    def _string(self) -> str | None:
        for pattern in _STRINGS:
            match = pattern.match(self._text, self._at)
            if match is not None:
                self._at = match.end()
                return match.group()
        return None

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _expect(self, token: str) -> None:
        self._skip(_BLANK)
        if not self._text.startswith(token, self._at):
            raise _LostPlaceError
        self._at += len(token)

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._counted_to, self._at)
        self._counted_to = self._at
        return self._line
