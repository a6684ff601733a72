"""pydantic's errors as sentences: ``must be greater than 0 (got -1)``, one per key.

pydantic reports a union once per branch and names the branch in the location; here a key that takes
several kinds of value gets one line that lists them, or, for a list, one line per wrong item.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic_core import ErrorDetails

from core.presets.fields import PresetField, field_at, section_at
from core.presets.toml_text import KeyPath, show_value
from core.wording import did_you_mean

#: Type of pydantic's error -> sentence, with values of the error's context.
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
class InvalidKey:
    """What is wrong with a key."""

    #: May end in the number of a list item; of a rule between keys of a table, the table's path.
    path: KeyPath
    message: str
    is_about_section: bool = False


def invalid_keys(errors: Iterable[ErrorDetails]) -> list[InvalidKey]:
    """Reduce pydantic's errors to one per key, rule or list item."""
    found: list[InvalidKey] = []
    by_key: dict[tuple[str, ...], list[tuple[KeyPath, ErrorDetails]]] = {}
    for error in errors:
        key, rest = _split_location(error["loc"])
        if section_at(key) is not None and error["type"] != "missing":
            message = str(error.get("ctx", {}).get("error", error["msg"]))
            found.append(InvalidKey(key, message, is_about_section=True))
        else:
            by_key.setdefault(key, []).append((rest, error))
    for key, group in by_key.items():
        found += _of_key(key, field_at(key), group)
    return found


def _split_location(location: KeyPath) -> tuple[tuple[str, ...], KeyPath]:
    """Divide pydantic's location into the key of the preset and the place within its value."""
    path: tuple[str, ...] = ()
    for index, part in enumerate(location):
        candidate = (*path, str(part))
        try:
            known = field_at(candidate)
        except KeyError:
            if section_at(candidate) is None:
                return path, location[index:]
        else:
            if known.path == candidate and known.is_table and len(location) > index + 1:
                return (*candidate, str(location[index + 1])), location[index + 2 :]
            return candidate, location[index + 1 :]
        path = candidate
    return path, ()


def _of_key(
    key: tuple[str, ...], known: PresetField, group: list[tuple[KeyPath, ErrorDetails]]
) -> list[InvalidKey]:
    error = group[0][1]
    if error["type"] == "missing":
        return [InvalidKey(key, f"is missing; it must be {known.wanted}")]
    items: dict[int, ErrorDetails] = {}
    for rest, one in group:
        for part in rest:
            if isinstance(part, int):
                items.setdefault(part, one)
    if items:
        return [InvalidKey((*key, index), _sentence(one)) for index, one in items.items()]
    # The value itself: a union's branches all carry it.
    message = f"must be {known.wanted}{_got(error['input'])}"
    if len(known.alternatives) == 1 and not known.choices and error["type"] in _SENTENCES:
        return [InvalidKey(key, message if error["type"] == "list_type" else _sentence(error))]
    if error["type"] == "value_error":
        return [InvalidKey(key, f"{error['ctx']['error']}{_got(error['input'])}")]
    if error["type"] == "too_short":
        return [InvalidKey(key, "must not be empty")]
    choices = [choice for choice in known.choices if isinstance(choice, str)]
    value = error["input"]  # 'gpu' is not 'cpu', hence the high cutoff
    hint = did_you_mean(value, choices, cutoff=0.75) if isinstance(value, str) else ""
    return [InvalidKey(key, f"{message}; {hint}" if hint else message)]


def _sentence(error: ErrorDetails) -> str:
    template = _SENTENCES.get(error["type"])
    if template is None:
        text = error["msg"]
        return f"{text[:1].lower()}{text[1:]}{_got(error['input'])}"
    return template.format(**error.get("ctx", {})) + _got(error["input"])


def _got(value: object) -> str:
    return f" (got {show_value(value)})"
