"""pydantic's errors as sentences: ``must be greater than 0 (got -1)``, one per key.

pydantic reports a union once per branch and names the branch in the location; here a key with
several kinds of value gets one line that lists them, or, for a list, one line per wrong item.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from core.presets.fields import PresetField, field_at, section_at
from core.presets.toml_lines import KeyPath
from core.presets.toml_text import show_value

__all__ = ["Complaint", "complaints_of"]

#: pydantic's error types -> what to say; {name} is taken from the error's context.
_SENTENCES = {
    "bool_type": "must be true or false",
    "dict_type": "must be a table",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "int_type": "must be a whole number",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "list_type": "must be a list",
    "string_type": "must be a string",
}


@dataclass(frozen=True)
class Complaint:
    """What is wrong with a key; ``path`` may end in the number of a list item.

    ``is_about_section`` marks a rule between several keys of a table; ``path`` is the table's.
    """

    path: KeyPath
    message: str
    is_about_section: bool = False


def complaints_of(errors: Iterable[ErrorDetails]) -> list[Complaint]:
    """Bring pydantic's errors to one complaint per key, rule or list item."""
    complaints: list[Complaint] = []
    by_key: dict[tuple[str, ...], list[tuple[KeyPath, ErrorDetails]]] = {}
    for error in errors:
        key, rest = _split_location(error["loc"])
        if section_at(key) is not None and error["type"] != "missing":
            message = str(error.get("ctx", {}).get("error", error["msg"]))
            complaints.append(Complaint(key, message, is_about_section=True))
        else:
            by_key.setdefault(key, []).append((rest, error))
    for key, group in by_key.items():
        complaints += _about_key(key, field_at(key), group)
    return complaints


def _split_location(location: KeyPath) -> tuple[tuple[str, ...], KeyPath]:
    """Divide pydantic's location into the key of the preset and what lies within its value."""
    path: tuple[str, ...] = ()
    for depth, part in enumerate(location):
        candidate = (*path, str(part))
        try:
            known = field_at(candidate)
        except KeyError:
            if section_at(candidate) is None:
                return path, location[depth:]
        else:
            if known.path == candidate and known.is_table and len(location) > depth + 1:
                return (*candidate, str(location[depth + 1])), location[depth + 2 :]
            return candidate, location[depth + 1 :]
        path = candidate
    return path, ()


def _about_key(
    key: tuple[str, ...], known: PresetField, group: list[tuple[KeyPath, ErrorDetails]]
) -> list[Complaint]:
    if group[0][1]["type"] == "missing":
        return [Complaint(key, f"is missing; it must be {known.wanted}")]
    items: dict[int, ErrorDetails] = {}
    for rest, error in group:
        for part in rest:
            if isinstance(part, int):
                items.setdefault(part, error)
    if items:
        return [Complaint((*key, index), _sentence(error)) for index, error in items.items()]
    error = group[0][1]
    if len(known.alternatives) == 1 and not known.choices and error["type"] in _SENTENCES:
        if error["type"] == "list_type":
            return [Complaint(key, f"must be {known.wanted}{_got(error['input'])}")]
        return [Complaint(key, _sentence(error))]
    if error["type"] == "value_error":
        return [Complaint(key, f"{error['ctx']['error']}{_got(error['input'])}")]
    if error["type"] == "too_short":
        return [Complaint(key, "must not be empty")]
    # The value itself: a union's branches all carry it.
    message = f"must be {known.wanted}{_got(error['input'])}"
    return [Complaint(key, message + _nearest_choice(error["input"], known))]


def _sentence(error: ErrorDetails) -> str:
    template = _SENTENCES.get(error["type"])
    if template is None:
        text = error["msg"]
        return f"{text[:1].lower()}{text[1:]}{_got(error['input'])}"
    context: Mapping[str, Any] = error.get("ctx", {})
    return template.format(**context) + _got(error["input"])


def _got(value: object) -> str:
    return f" (got {show_value(value)})"


def _nearest_choice(value: object, known: PresetField) -> str:
    if not isinstance(value, str):
        return ""
    choices = [choice for choice in known.choices if isinstance(choice, str)]
    close = difflib.get_close_matches(value, choices, n=1, cutoff=0.75)  # 'gpu' is not 'cpu'
    return f"; did you mean '{close[0]}'?" if close else ""
