"""A resolved preset as a run keeps it: every value with where it came from, for people to read."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.renamed import REMOVED_PRESET_KEYS, current_key
from core.runlog.schema import CONFIG_FILE

__all__ = ["Setting", "dotted_values", "read_settings"]

_SECTION = re.compile(r"^\[(?P<name>[^\[\]]+)\]\s*$")
_VALUE = re.compile(r"^(?P<key>[^=#\s]+) = (?P<value>.*?)(?:  # (?P<origin>[^#]+))?$")


@dataclass(frozen=True)
class Setting:
    """One value of a preset.

    Attributes
    ----------
    key
        Dotted: ``train.batch_size``.
    value
        As TOML writes it.
    origin
        Where it came from: a file and its line, an option, a variable, ``default``.
    """

    key: str
    value: str
    origin: str


def dotted_values(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Bring nested tables to one, ``{"train.seed": 0}``; an empty table stays as it is."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            flat |= dotted_values(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def read_settings(folder: Path) -> list[Setting]:
    """Read the values of a run's preset, in the order of the file; none where it cannot be read."""
    try:
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    return list(_settings(text))


def _settings(text: str) -> Iterator[Setting]:
    section = ""
    for line in text.splitlines():
        if match := _SECTION.match(line):
            section = match["name"] + "."
        elif match := _VALUE.match(line):
            key = ".".join(current_key(tuple(f"{section}{match['key']}".split("."))))
            if key not in REMOVED_PRESET_KEYS:
                yield Setting(key, match["value"], match["origin"] or "")
