"""The resolved preset of a run, read from its config.toml: every value and its provenance."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.renamed import REMOVED_PRESET_KEYS, current_key
from core.runlog.schema import CONFIG_FILE

_SECTION = re.compile(r"^\[(?P<name>[^\[\]]+)\]\s*$")
_VALUE = re.compile(r"^(?P<key>[^=#\s]+) = (?P<value>.*?)(?:  # (?P<provenance>[^#]+))?$")


@dataclass(frozen=True)
class Setting:
    """One value of a preset."""

    #: Dotted, in the present spelling: ``train.batch_size``.
    key: str
    #: As TOML writes it.
    value: str
    #: Where it came from: a file and its line, an option, a variable, ``default``.
    provenance: str


def read_settings(folder: Path) -> list[Setting]:
    """Read the values of a run's preset, in the order of the file; none if it cannot be read."""
    try:
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    found = []
    section = ""
    for line in text.splitlines():
        if match := _SECTION.match(line):
            section = match["name"] + "."
        elif match := _VALUE.match(line):
            key = ".".join(current_key(tuple(f"{section}{match['key']}".split("."))))
            if key not in REMOVED_PRESET_KEYS:
                found.append(Setting(key, match["value"], match["provenance"] or ""))
    return found


def read_values(folder: Path) -> dict[str, Any]:
    """Read the values of a run's preset as dotted key -> value; those that are not TOML are left out."""
    values = {}
    for setting in read_settings(folder):
        try:
            values[setting.key] = tomllib.loads(f"value = {setting.value}")["value"]
        except (ValueError, RecursionError):
            continue
    return values


def dotted_values(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables: ``{"train.seed": 0}``; an empty table stays as it is."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            flat |= dotted_values(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
