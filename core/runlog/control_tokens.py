"""The control tokens of a model folder, read without torch: phenotypes, values, real cells of each.

What a picker needs. Only a few kilobytes are read; checksums are left to whoever loads the weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from core.errors import DataError

__all__ = ["ControlTokens"]


@dataclass(frozen=True)
class ControlTokens:
    """The phenotypes of a model and how many training cells had what.

    Attributes
    ----------
    phenotypes
        Name -> values, in the order of the model's slots and codes.
    combinations
        (combinations, phenotypes), codes that occurred in training, -1 where a label was missing.
    counts
        (combinations,), training cells of each.
    generate
        The model's own settings of generation (steps, temperature, guidance, ...).
    is_simulated
        Whether the training cells were simulated.
    """

    phenotypes: dict[str, tuple[str, ...]]
    combinations: NDArray[np.int32]
    counts: NDArray[np.int64]
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
        return cls(
            phenotypes=phenotypes,
            combinations=combinations.astype(np.int32),
            counts=counts.astype(np.int64),
            generate=generate,
            is_simulated=bool(origin.get("simulated")),
        )

    @property
    def n_cells(self) -> int:
        """All training cells."""
        return int(self.counts.sum())

    def count(self, wanted: Mapping[str, str]) -> int:
        """Return how many training cells had all the wanted values."""
        return int(self.counts[self._matching(wanted)].sum())

    def counts_of(self, name: str, wanted: Mapping[str, str] | None = None) -> dict[str, int]:
        """Return value -> training cells of a phenotype, among those that had the wanted values."""
        slot = list(self.phenotypes).index(name)
        values = self.phenotypes[name]
        chosen = self._matching(wanted or {})
        codes, counts = self.combinations[chosen, slot], self.counts[chosen]
        known = codes >= 0
        totals = np.bincount(codes[known], weights=counts[known], minlength=len(values))
        return dict(zip(values, totals.astype(int).tolist(), strict=False))

    def _matching(self, wanted: Mapping[str, str]) -> NDArray[np.bool_]:
        match = np.ones(len(self.counts), dtype=bool)
        for slot, (name, values) in enumerate(self.phenotypes.items()):
            if name in wanted:
                code = values.index(wanted[name]) if wanted[name] in values else -2
                match &= self.combinations[:, slot] == code
        return match
