"""TOML values as text: writing one, showing one in an error message, reading one from an option.

Only what presets hold: strings, numbers, booleans, lists, and dotted keys. Documents are read by
`tomllib`; where a key stands in them is `toml_lines`' business.
"""

import datetime
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "dotted",
    "printable",
    "read_key",
    "read_value",
    "show_value",
    "write_key",
    "write_value",
]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_SHOWN = 70


def write_value(value: object) -> str:
    """Write a value as TOML on one line.

    Raises
    ------
    TypeError
        TOML has no such value (None among them).
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON strings are TOML strings but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return repr(value)
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        pairs = (f"{write_key(str(key))} = {write_value(item)}" for key, item in value.items())
        return "{ " + ", ".join(pairs) + " }" if value else "{}"
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "[" + ", ".join(write_value(item) for item in value) + "]"
    message = f"TOML has no form for a {type(value).__name__}"
    raise TypeError(message)


def show_value(value: object) -> str:
    """Write a value for an error message: as in TOML, strings in single quotes, long ones cut."""
    if isinstance(value, str):
        text = repr(value)
    else:
        try:
            text = write_value(value)
        except (TypeError, ValueError):  # ValueError: an integer of thousands of digits
            text = f"a {type(value).__name__}"
    if len(text) > _LONGEST_SHOWN:
        text = f"{text[: _LONGEST_SHOWN - 3]}..."
    return text


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


def printable(text: str) -> str:
    """Replace what would break a line of a message or a TOML comment: line ends, controls."""
    return "".join(character if character.isprintable() else "?" for character in text)


def read_key(text: str) -> tuple[str, ...] | None:
    """Read a dotted key as TOML does; None if it is not one."""
    if "\n" in text:
        return None  # it would be read as lines of a document
    try:
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
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if set(table) == {"value"} else text
