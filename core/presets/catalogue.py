"""The presets that come with tfx, and finding a preset by file or by name.

Without pydantic: a name is found and listed without checking the file.
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from core.errors import ConfigurationError
from core.renamed import PRESET_FOLDERS
from core.wording import did_you_mean

_PUBLISHED = "published"


@dataclass(frozen=True)
class PresetSummary:
    """One preset; ``title`` is the first comment line of its file."""

    name: str
    path: Path
    title: str

    @property
    def is_published(self) -> bool:
        """Whether it reproduces a run of PolyGene or PerturbGene."""
        return self.path.parent.name == _PUBLISHED


def list_presets() -> list[PresetSummary]:
    """List the bundled presets by name: tfx's own, then the published ones."""
    folder = Path(str(resources.files("presets")))
    paths = [*sorted(folder.glob("*.toml")), *sorted((folder / _PUBLISHED).glob("*.toml"))]
    return [PresetSummary(path.stem, path, _title(path)) for path in paths]


def list_own_presets(folder: Path) -> list[PresetSummary]:
    """List the .toml files of a folder and of its folder ``presets``, whatever is in them."""
    paths = [*sorted(folder.glob("*.toml")), *sorted(folder.glob("presets/*.toml"))]
    return [
        PresetSummary(path.stem, path, _title(path))
        for path in paths
        if path.name != "pyproject.toml" and path.is_file()
    ]


def _title(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):  # of another user, or no text: reading the preset says so
        return ""
    for line in text.splitlines():
        if line.startswith("#") and line.strip("# "):
            return line.strip("# ")
        if line.strip() and not line.startswith("#"):
            break
    return ""


def _names_beside(path: Path) -> list[str]:
    """Name the preset files in the folder of a path."""
    try:
        return [file.name for file in path.parent.glob("*.toml")]
    except (OSError, ValueError):
        return []


def find_preset(name_or_path: str | Path) -> Path:
    """Return the file of a preset: a file, or a bundled preset such as ``base`` or ``presets/base.toml``."""
    path = Path(name_or_path)
    try:
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except (OSError, ValueError):  # a name too long, a NUL in it, a folder that may not be read
        is_folder = False
    bundled = {preset.name: preset for preset in list_presets()}
    name = path.name.removesuffix(".toml")
    parts = [PRESET_FOLDERS.get(part, part) for part in path.parent.parts]
    if name in bundled and parts in ([], ["presets"], [_PUBLISHED], ["presets", _PUBLISHED]):
        return bundled[name].path
    what = "is a folder, not a preset file" if is_folder else "is neither a file nor a preset name"
    near = did_you_mean(name, bundled) or did_you_mean(path.name, _names_beside(path))
    hint = f"; {near}" if near else ""
    own = [preset.name for preset in bundled.values() if not preset.is_published]
    more = ", ..." if len(own) < len(bundled) else ""
    raise ConfigurationError(
        f"{str(name_or_path)!r} {what}{hint} (bundled presets: {', '.join(own)}{more})"
    )
