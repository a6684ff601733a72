"""The control tokens of a model folder, read without torch: phenotypes, values, real cells of each.

What a picker needs. Only a few kilobytes are read; checksums are left to whoever loads the weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from core.errors import DataError
from core.model.reference import Reference

__all__ = ["ControlTokens"]


@dataclass(frozen=True)
class ControlTokens:
    """The phenotypes of a model and how many training cells had what.

    Attributes
    ----------
    phenotypes
        Name -> values, in the order of the model's slots and codes.
    reference
        Combinations of training cells and how many had each; without profiles.
    generate
        The model's own settings of generation (steps, temperature, guidance, ...).
    is_simulated
        Whether the training cells were simulated.
    """

    phenotypes: dict[str, tuple[str, ...]]
    reference: Reference
    generate: dict[str, Any]
    is_simulated: bool

    @classmethod
    def read(cls, folder: Path) -> "ControlTokens":
        """Read a model folder.

        Raises
        ------
        DataError
            It is not there, or holds something else.
        """
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            record = json.loads((folder / "tfx.json").read_text(encoding="utf-8"))
            with safe_open(folder / "reference.safetensors", framework="np") as file:
                combinations = file.get_tensor("combinations")
                counts = file.get_tensor("counts")
            phenotypes = {
                str(name): tuple(str(value) for value in values)
                for name, values in zip(
                    config["phenotype_names"], config["phenotype_values"], strict=True
                )
            }
            generate, origin = dict(record["generate"]), dict(record["origin"])
        except FileNotFoundError as error:
            message = (
                f"{folder}: no model to generate with ({Path(str(error.filename)).name} is missing)"
            )
            raise DataError(message) from None
        except (
            OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError,
        ) as error:  # fmt: skip
            message = f"{folder}: the model folder cannot be read ({error}); copy it again"
            raise DataError(message) from error
        if combinations.ndim != 2 or combinations.shape != (len(counts), len(phenotypes)):
            message = f"{folder}: reference.safetensors and config.json do not fit each other"
            raise DataError(message)
        nothing = np.empty((0, 0), np.float32)
        reference = Reference(
            combinations.astype(np.int32), counts.astype(np.int64), nothing, nothing,
            np.empty((0, 0), np.int64),
        )  # fmt: skip
        return cls(
            phenotypes=phenotypes,
            reference=reference,
            generate=generate,
            is_simulated=bool(origin.get("simulated")),
        )

    @property
    def n_cells(self) -> int:
        """All training cells."""
        return self.reference.n_cells({})

    def count(self, wanted: Mapping[str, str]) -> int:
        """Return how many training cells had all the wanted values, which the model knows."""
        return self.reference.n_cells(self._codes(wanted))

    def counts_of(self, name: str, wanted: Mapping[str, str] | None = None) -> dict[str, int]:
        """Return value -> training cells of a phenotype, among those that had the wanted values."""
        slot = list(self.phenotypes).index(name)
        values = self.phenotypes[name]
        chosen = self.reference.matching(self._codes(wanted or {}))
        codes, counts = self.reference.combinations[chosen, slot], self.reference.counts[chosen]
        known = codes >= 0
        totals = np.bincount(codes[known], weights=counts[known], minlength=len(values))
        return dict(zip(values, totals.astype(int).tolist(), strict=True))

    def _codes(self, wanted: Mapping[str, str]) -> dict[int, int]:
        slots = list(self.phenotypes)
        return {
            slots.index(name): self.phenotypes[name].index(value) for name, value in wanted.items()
        }
