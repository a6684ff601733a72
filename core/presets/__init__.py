"""Presets: the schema, the bundled files, and one checked preset from many sources."""

from typing import TYPE_CHECKING, Any

from core.presets.catalogue import PresetSummary, find_preset, list_presets

if TYPE_CHECKING:
    from core.presets.fields import schema_as_json, schema_as_markdown
    from core.presets.loading import ResolvedPreset, resolve_preset
    from core.presets.schema import Preset

__all__ = [
    "Preset",
    "PresetSummary",
    "ResolvedPreset",
    "find_preset",
    "list_presets",
    "resolve_preset",
    "schema_as_json",
    "schema_as_markdown",
]

# Importing pydantic and building the schema takes about 250 ms, which listing and completing the
# names of presets does without.
_LAZY = {
    "Preset": "core.presets.schema",
    "ResolvedPreset": "core.presets.loading",
    "resolve_preset": "core.presets.loading",
    "schema_as_json": "core.presets.fields",
    "schema_as_markdown": "core.presets.fields",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module holds
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
