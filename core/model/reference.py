"""A summary of the training cells: joint phenotype counts, mean profiles, and sizes of cells.

It is part of the model folder, so that generation can draw unspecified phenotypes from real
combinations, and report how many real cells match a request, without the store. No torch here: the
dashboard reads `ControlTokens`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from core.errors import DataError
from core.files import file_json
from core.folders import read_settled
from core.renamed import REFERENCE_ARRAYS, current_model_record

_WRONG_CONTENT = (ValueError, KeyError, TypeError, AttributeError)
#: Quantiles kept of the sizes of each combination's cells, at equal steps of the fraction of cells.
SIZE_QUANTILES = 32


@dataclass(frozen=True)
class Reference:
    """Joint phenotype counts and per-value mean profiles of the training cells."""

    #: (combinations, phenotypes), int32 codes that occur, -1 where missing.
    combinations: NDArray[np.int32]
    #: (combinations,), int64 training cells of each.
    counts: NDArray[np.int64]
    #: (all phenotype values, genes), float32: mean log1p counts per 10,000, and fraction of cells above
    #: bin 0, over the training cells with that value.
    means: NDArray[np.float32]
    detection: NDArray[np.float32]
    #: (genes, bins), int64 training cells in each bin of each gene.
    bin_counts: NDArray[np.int64]
    #: (combinations, `SIZE_QUANTILES`), float32, ascending: quantiles of the panel genes above bin 0 and
    #: of the library sizes of each combination's cells (library size 0 where cells came as log values);
    #: None in models saved before they were kept.
    genes_per_cell: NDArray[np.float32] | None = None
    library_size: NDArray[np.float32] | None = None

    @classmethod
    def count(cls, codes: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the distinct rows of (cells, phenotypes) codes and how many cells have each."""
        if codes.shape[1] == 0:
            return np.zeros((1, 0), np.int32), np.array([len(codes)])
        combinations, counts = np.unique(codes, axis=0, return_counts=True)
        return combinations.astype(np.int32), counts.astype(np.int64)

    def matching(self, wanted: dict[int, int]) -> NDArray[np.bool_]:
        """Return (combinations,), True for those with code ``wanted[slot]`` in every slot named."""
        match = np.ones(len(self.counts), dtype=bool)
        for slot, code in wanted.items():
            match &= self.combinations[:, slot] == code
        return match

    def n_cells(self, wanted: dict[int, int]) -> int:
        """Training cells with the wanted codes."""
        return int(self.counts[self.matching(wanted)].sum())

    def value_counts(
        self, slot: int, n_values: int, wanted: dict[int, int] | None = None
    ) -> list[int]:
        """Training cells of each value of a phenotype, among those with the wanted codes."""
        chosen = self.matching(wanted or {}) & (self.combinations[:, slot] >= 0)
        codes, counts = self.combinations[chosen, slot], self.counts[chosen]
        totals: list[int] = np.bincount(codes, counts, n_values).astype(int).tolist()
        return totals


def size_quantiles(
    combinations: NDArray[np.int32], codes: NDArray[np.int32], sizes: NDArray[Any]
) -> NDArray[np.float32]:
    """Return (combinations, `SIZE_QUANTILES`) of a size of cells, from (cells, phenotypes) and (cells,).

    A combination without cells takes the quantiles of all cells.
    """
    fractions = (np.arange(SIZE_QUANTILES) + 0.5) / SIZE_QUANTILES
    sizes = sizes.astype(np.float64)
    found = np.tile(np.quantile(sizes, fractions), (len(combinations), 1)).astype(np.float32)
    order = np.lexsort(codes.T) if codes.shape[1] else np.arange(len(codes))
    changes = np.flatnonzero((np.diff(codes[order], axis=0) != 0).any(axis=1)) + 1
    place = {tuple(row): at for at, row in enumerate(combinations.tolist())}
    for cells in np.split(order, changes):
        at = place.get(tuple(codes[cells[0]].tolist()))
        if at is not None:
            found[at] = np.quantile(sizes[cells], fractions)
    return found


def current_reference(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays of ``reference.safetensors``, as an older tfx may have named them."""
    present = {name: array for name, array in arrays.items() if name not in REFERENCE_ARRAYS}
    for old in REFERENCE_ARRAYS.keys() & arrays.keys():
        if arrays[old].ndim != 3 or arrays[old].shape[1] != 2:
            raise ValueError(f"'{old}' has the shape {arrays[old].shape}")
        for at, new in enumerate(REFERENCE_ARRAYS[old]):
            present[new] = np.ascontiguousarray(arrays[old][:, at])
    return present


@dataclass(frozen=True)
class ControlTokens:
    """The phenotypes of a model and their training cells, read without the weights or their checksums."""

    #: Name -> values, in the order of the model's slots and codes.
    phenotypes: dict[str, tuple[str, ...]]
    #: Combinations of training cells and their counts; without profiles.
    reference: Reference
    #: The model's own settings of generation (steps, temperature, guidance, ...).
    generate: dict[str, Any]
    #: Whether the training cells were simulated.
    is_simulated: bool

    @classmethod
    def read(cls, folder: Path) -> "ControlTokens":
        """Read a model folder; a `DataError` if it is missing or something else."""
        return read_settled(folder, cls._read)

    @classmethod
    def _read(cls, folder: Path) -> "ControlTokens":
        try:
            config = file_json(folder / "config.json")
            record = file_json(folder / "tfx.json")
            record = current_model_record(record)
            with safe_open(folder / "reference.safetensors", framework="np") as file:
                combinations = file.get_tensor("combinations")
                counts = file.get_tensor("counts")
            phenotypes = {
                str(name): tuple(str(value) for value in values)
                for name, values in zip(
                    config["phenotype_names"], config["phenotype_values"], strict=True
                )
            }
            generate, provenance = dict(record["generate"]), dict(record["provenance"])
        except FileNotFoundError as error:
            raise DataError(
                f"{folder}: no model to generate with ({Path(str(error.filename)).name} is missing)"
            ) from None
        except (OSError, SafetensorError, RecursionError, *_WRONG_CONTENT) as error:
            raise DataError(
                f"{folder}: the model folder cannot be read ({error}); copy it again"
            ) from error
        if combinations.ndim != 2 or combinations.shape != (len(counts), len(phenotypes)):
            raise DataError(
                f"{folder}: reference.safetensors and config.json do not fit each other"
            )
        nothing = np.empty((0, 0))
        return cls(
            phenotypes=phenotypes,
            reference=Reference(
                combinations.astype(np.int32),
                counts.astype(np.int64),
                nothing.astype(np.float32),
                nothing.astype(np.float32),
                nothing.astype(np.int64),
            ),
            generate=generate,
            is_simulated=bool(provenance.get("simulated")),
        )

    @property
    def n_cells(self) -> int:
        """All training cells."""
        return self.reference.n_cells({})

    def count(self, wanted: Mapping[str, str]) -> int:
        """Return the number of training cells with all the wanted values, which the model knows."""
        return self.reference.n_cells(self._codes(wanted))

    def counts_of(self, name: str, wanted: Mapping[str, str] | None = None) -> dict[str, int]:
        """Return value -> training cells of a phenotype, among those with the wanted values."""
        slot, values = list(self.phenotypes).index(name), self.phenotypes[name]
        counts = self.reference.value_counts(slot, len(values), self._codes(wanted or {}))
        return dict(zip(values, counts, strict=True))

    def _codes(self, wanted: Mapping[str, str]) -> dict[int, int]:
        slots = list(self.phenotypes)
        return {
            slots.index(name): self.phenotypes[name].index(value) for name, value in wanted.items()
        }
