"""The preset schema as a list of keys: the values each takes, in words, documents of it, and its errors.

Made only from the pydantic models of `schema.py`, so that a key added there is known to the
loader, to its error messages and to `tfx presets schema` at once.

pydantic's errors become sentences: ``must be greater than 0 (got -1)``, one per key. pydantic reports a
union once per branch and names the branch in the location; here a key that takes several kinds of value
gets one line that lists them, or, for a list, one line per wrong item.
"""

import difflib
import functools
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, BeforeValidator, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from core.presets.schema import Preset
from core.presets.toml_text import KeyPath, show_value, write_value
from core.wording import did_you_mean

#: The key, above all tables, by which a preset names the one that it changes.
EXTENDS = "extends"
_EXTENDS = {
    "type": "string",
    "description": "name or file of a preset whose values apply to all keys that this one does not set",
}
_PLURALS = {
    "a string": "strings",
    "a whole number": "whole numbers",
    "a number": "numbers",
    "true or false": "booleans",
}

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
class PresetField:
    """One key of a preset that holds a value (or, for `data.phenotypes`, a table of them)."""

    path: tuple[str, ...]
    info: FieldInfo

    @property
    def is_table(self) -> bool:
        """Whether the key holds a table whose own keys the user chooses."""
        return get_origin(self.info.annotation) is dict

    @property
    def alternatives(self) -> list[Any]:
        """The types of value that the key (or each key of its table) takes, None left out."""
        annotation = self.info.annotation
        if self.is_table:
            annotation = get_args(annotation)[1]
        return [kind for kind in _union_members(annotation) if kind is not type(None)]

    @property
    def is_nullable(self) -> bool:
        """Whether the key may have no value."""
        return type(None) in _union_members(self.info.annotation)

    @property
    def choices(self) -> list[Any]:
        """The literal values among the alternatives."""
        literals = [kind for kind in self.alternatives if get_origin(kind) is Literal]
        return [choice for literal in literals for choice in get_args(literal)]

    @property
    def wanted(self) -> str:
        """The values that the key takes, in words: "a number from 0 to 1 or 'uniform'"."""
        phrases = []
        for kind in self.alternatives:
            phrases += _phrases(kind, () if self.is_table else self.info.metadata)
        return _either(phrases)

    def accepts(self, value: object) -> bool:
        """Whether a value passes the key's own checks."""
        try:
            _validator(self.path).validate_python(value, strict=True)
        except ValueError:  # pydantic's ValidationError is one
            return False
        return True


@functools.cache
def _validator(path: tuple[str, ...]) -> TypeAdapter[Any]:
    known = field_at(path)
    annotation: Any = known.info.annotation
    if known.is_table:
        return TypeAdapter(get_args(annotation)[1])
    for item in known.info.metadata:
        annotation = Annotated[annotation, item]
    return TypeAdapter(annotation)


def _union_members(annotation: Any) -> list[Any]:  # noqa: ANN401 - annotations are of any type
    if get_origin(annotation) in (Union, types.UnionType):
        return list(get_args(annotation))
    return [annotation]


def _phrases(kind: Any, metadata: Iterable[object]) -> list[str]:  # noqa: ANN401
    """Describe one alternative; a literal gives one phrase per choice."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _phrases(arguments[0], arguments[1:])
    if origin is Literal:
        # False -> false, as TOML writes it
        return [repr(one) if isinstance(one, str) else str(one).lower() for one in arguments]
    if origin is list:
        item = _either(_phrases(arguments[0], ()))
        phrase = f"a list of {_PLURALS.get(item, item)}"
        if any(isinstance(entry, BeforeValidator) for entry in metadata):
            return [item, phrase]  # one item may replace a list of one
        return [phrase]
    names = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}
    return [names.get(kind, f"a {kind}") + _bounds(metadata)]


def _bounds(metadata: Iterable[object]) -> str:
    low = high = ""
    entries = list(metadata)
    for entry in metadata:
        if isinstance(entry, FieldInfo):  # the Field of an Annotated alias
            entries += entry.metadata
    for entry in entries:
        match entry:
            case annotated_types.Gt(gt=bound):
                low = f"greater than {bound:g}"
            case annotated_types.Ge(ge=bound):
                low = f"from {bound:g}"
            case annotated_types.Lt(lt=bound):
                high = f"below {bound:g}"
            case annotated_types.Le(le=bound):
                high = f"to {bound:g}" if low.startswith("from") else f"up to {bound:g}"
    if low.startswith("from") and not high:
        return f" {low} up"
    if low.startswith("from") and high.startswith("below"):
        return f" {low} to {high}"
    text = " ".join(part for part in (low, high) if part)
    return f" {text}" if text else ""


def _either(phrases: list[str]) -> str:
    if len(phrases) < 2:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} or {phrases[-1]}"


def _section_model(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def section_at(path: tuple[str, ...]) -> type[BaseModel] | None:
    """Return the model of the table at ``path``; None if there is no such table."""
    model: type[BaseModel] | None = Preset
    for part in path:
        info = model.model_fields.get(part) if model else None
        model = _section_model(info.annotation) if info else None
    return model


@functools.cache
def _fields() -> dict[tuple[str, ...], PresetField]:
    found: dict[tuple[str, ...], PresetField] = {}

    def walk(model: type[BaseModel], path: tuple[str, ...]) -> None:
        for name, info in model.model_fields.items():
            inner = _section_model(info.annotation)
            if inner is None:
                found[(*path, name)] = PresetField((*path, name), info)
            else:
                walk(inner, (*path, name))

    walk(Preset, ())
    return found


def all_fields() -> list[PresetField]:
    """Return every key that holds a value, in the order of the schema."""
    return list(_fields().values())


def field_at(path: tuple[str, ...]) -> PresetField:
    """Return the key at a path, or the table whose key it is; raise KeyError if it is unknown."""
    fields = _fields()
    if path not in fields and path[:-1] in fields and fields[path[:-1]].is_table:
        return fields[path[:-1]]
    return fields[path]


def nearest_hint(path: tuple[str, ...]) -> str:
    """Name the known key that an unknown one may have meant."""
    *table, name = path
    section = section_at(tuple(table))
    known = list(section.model_fields) if section else []
    if hint := did_you_mean(name, known):
        return hint
    elsewhere = [".".join(field.path) for field in all_fields() if field.path[-1] == name]
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    if len(known) <= 8:
        return f"known here: {', '.join(known)}"
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"the nearest known one is '{nearest}'"


def schema_as_json() -> dict[str, Any]:
    """Return the JSON Schema of a preset, which editors use to complete and check TOML."""
    schema = Preset.model_json_schema()
    schema["properties"] = {EXTENDS: _EXTENDS, **schema["properties"]}
    for part in (schema, schema["$defs"]["DataSettings"]):
        part.pop("required", None)  # the preset that it extends may have them
    return schema


def schema_as_markdown() -> str:
    """Return a page with a table of keys per section: values, default, meaning."""
    tables: dict[tuple[str, ...], list[PresetField]] = {}
    for field in all_fields():
        table = field.path if field.is_table else field.path[:-1]
        tables.setdefault(table, []).append(field)
    lines = ["# Preset keys", "", f"`{EXTENDS}`, above all tables: {_EXTENDS['description']}.", ""]
    for path, fields in tables.items():
        if path:
            lines += [f"## [{'.'.join(path)}]", ""]
        section = section_at(path)
        if path and section is not None and section.__doc__:
            lines += [section.__doc__.strip(), ""]
        lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
        lines += [_row(field) for field in fields]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _row(field: PresetField) -> str:
    if field.info.is_required():
        default = "required"
    else:
        value = field.info.get_default(call_default_factory=True)
        default = "" if value is None or value == {} else f"`{write_value(value)}`"
    key = "NAME" if field.is_table else field.path[-1]
    cells = [f"`{key}`", field.wanted, default, field.info.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


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
