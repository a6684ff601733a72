"""PRESET or FILES...: the argument of the commands that read cells."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ConfigurationError

if TYPE_CHECKING:
    from core.presets.loading import ResolvedPreset

__all__ = ["resolve_sources"]


def resolve_sources(
    sources: Sequence[str], config: Sequence[Path], assign: Sequence[str]
) -> "ResolvedPreset":
    """Tell a preset from files of cells, and settle all values.

    Parameters
    ----------
    sources
        One preset (file or bundled name), or files of cells.
    config, assign
        Of the options `--config` and `--set`.

    Raises
    ------
    ConfigurationError
        A preset stands beside other arguments, does not exist, or a value is wrong.
    """
    from core.presets.catalogue import list_presets
    from core.presets.loading import resolve_preset

    bundled = {preset.name for preset in list_presets()}
    presets = [
        source
        for source in sources
        if source.endswith(".toml") or source.removeprefix("presets/") in bundled
    ]
    if not presets and len(sources) == 1 and not _names_cells(sources[0]):
        presets = list(sources)  # a preset's name mistyped: let the search for it say so
    if presets and len(sources) > 1:
        message = (
            f"'{presets[0]}' is a preset and stands alone; give either one preset or files of cells"
        )
        raise ConfigurationError(message)
    return resolve_preset(
        Path(presets[0]) if presets else None,
        overlays=config,
        environment=os.environ,
        options={} if presets else {"data.files": list(sources)},
        option_names={"data.files": "FILES"},
        assignments=assign,
    )


def _names_cells(source: str) -> bool:
    """Tell whether an argument is meant as cells: a file, a pattern, a built-in dataset."""
    looks_like_file = Path(source).suffix != "" or any(sign in source for sign in "*?[{/\\:")
    return looks_like_file or Path(source).exists()
