"""The preset schema for readers: a Markdown page for people, JSON Schema for editors."""

from typing import Any

from core.presets.fields import PresetField, all_fields, section_at
from core.presets.schema import Preset
from core.presets.sources import EXTENDS
from core.presets.toml_text import write_value

__all__ = ["schema_as_json", "schema_as_markdown"]


_EXTENDS = {
    "type": "string",
    "description": "the preset, by name or by file, whose values hold wherever this one is silent",
}


def schema_as_json() -> dict[str, Any]:
    """Return the JSON Schema of a preset, which editors use to complete and check TOML."""
    schema = Preset.model_json_schema()
    schema["properties"] = {EXTENDS: _EXTENDS, **schema["properties"]}
    for part in (schema, schema["$defs"]["DataSettings"]):
        part.pop("required", None)  # what a preset lacks may be in the one that it extends
    return schema


def schema_as_markdown() -> str:
    """Return a page with a table of keys per section: what each takes, its default, its use."""
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
    key = "NAME" if field.is_table else field.path[-1]
    cells = [f"`{key}`", field.wanted, _default(field), field.info.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _default(field: PresetField) -> str:
    if field.info.is_required():
        return "required"
    default = field.info.get_default(call_default_factory=True)
    return "" if default is None or default == {} else f"`{write_value(default)}`"
