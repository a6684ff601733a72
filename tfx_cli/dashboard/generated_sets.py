"""Sets of generated cells that a generate screen keeps: names and files."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class GeneratedSet:
    """The cells of one request, as `tfx generate --serve` sent them."""

    #: As it was sent (docs/generate-serve.md).
    request: Mapping[str, Any]
    n_cells: int
    profile: Mapping[str, Any]
    #: Place among the sets of the screen.
    number: int
    #: The .h5ad file; None where there is none.
    output: Path | None
    #: The file under which the user saved the cells.
    saved: str = ""

    @property
    def letter(self) -> str:
        """A, B, C, ... for the first sets, then numbers."""
        letters = string.ascii_uppercase
        return letters[self.number] if self.number < len(letters) else str(self.number + 1)

    @property
    def change(self) -> tuple[str, str, str] | None:
        """The phenotype that a flip changed, its value before and after; None for other requests."""
        for name, after in (self.request.get("set") or {}).items():
            return name, self.request["request"].get(name, f"any {name}"), after
        return None

    @property
    def label(self) -> str:
        """The requested values; of a flip, what it changes."""
        values = dict(self.request["request"])
        if self.change is not None:
            name, before, after = self.change
            values[name] = f"{before} → {after}"
        return ", ".join(values.values()) or "any cells"

    def file_name(self) -> str:
        """Return a name for the cells that no file has yet."""
        wanted = (self.request["request"] | (self.request.get("set") or {})).values()
        words = [value for value in wanted if not value.startswith("[NO_")]
        stem = "-".join("".join(c if c.isalnum() else "-" for c in word) for word in words)
        stem, number = stem or "generated", 1
        name = f"{stem}.h5ad"
        while Path(name).exists():
            number += 1
            name = f"{stem}-{number}.h5ad"
        return name
