"""What to generate: the requested phenotype values, how the others are filled, how to sample.

Labels become codes here, and each generated cell gets its phenotypes: the requested ones, and for the
others either real combinations (drawn as often as training cells had them) or [NO_*]. They depend on the
seed and the number of the cell alone.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from core.cells.spelling import match_label, suggest
from core.errors import ConfigurationError
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.presets.fields import invalid_keys
from core.presets.schema import GenerateSettings
from core.random_streams import Stream, generator_at

#: More is likelier a typing error than a wish: months of work, terabytes of disk.
MAX_CELLS = 1_000_000_000
#: Total counts of a cell, beyond which single precision loses them.
_MOST_COUNTS = 10**9
#: Cells of a request that gives no number.
_DEFAULT_CELLS = 200
#: Below this many training cells of a combination its cells are guesswork.
FEW_CELLS = 20
#: Fraction of the cells whose phenotypes are new together, from which on the user reads of it.
_WORTH_A_NOTE = 0.005
#: Of a cell of a few hundred genes, for the message about absurd numbers.
_BYTES_PER_CELL = 1_000


@dataclass(frozen=True)
class GenerationRequest:
    """A request for cells; ConfigurationError if a number is out of bounds."""

    #: Name -> value, as the user wrote it; [NO_SEX] leaves sex unspecified, whatever ``unspecified`` is.
    phenotypes: Mapping[str, str]
    n_cells: int
    #: "sample" fills the other phenotypes from matching training cells; "none" writes [NO_*].
    unspecified: Literal["sample", "none"] = "sample"
    settings: GenerateSettings = field(default_factory=GenerateSettings)
    #: Cell i of a seed is the same whatever the number of cells or the batch size.
    seed: int = 0
    #: Total counts of every cell; None: drawn from training cells.
    library_size: float | None = None
    #: A phenotype whose rare values are to be filled up: each value is drawn by the number of training
    #: cells by which it trails the commonest.
    balance: str | None = None
    #: Name -> value: what each cell is then set to, its other phenotypes, size and random numbers as they were.
    changes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.n_cells < 1:
            raise ConfigurationError(f"cannot generate {self.n_cells:,} cells; request 1 or more")
        if self.n_cells > MAX_CELLS:
            disk = self.n_cells * _BYTES_PER_CELL // 10**12
            raise ConfigurationError(
                f"cannot generate {self.n_cells:,} cells, which would fill about {disk:,} TB "
                f"of disk; request at most {MAX_CELLS:,}"
            )
        if self.library_size is None:
            return
        if not 1 <= self.library_size <= _MOST_COUNTS:
            raise ConfigurationError(
                f"library size {self.library_size} must be a number of counts above 0, from 1 to "
                f"{_MOST_COUNTS:,}"
            )
        if self.settings.genes_per_cell == "none":
            raise ConfigurationError(
                "a library size needs genes_per_cell = 'sample'; leave one of them out"
            )


def cells_to_generate(
    model: CellModel, phenotypes: Mapping[str, str], n_cells: int | None, balance: str | None
) -> int:
    """Return the number of cells of a request: by default what fills up ``balance``, or 200.

    ConfigurationError if ``balance`` is impossible.
    """
    if n_cells is not None:
        return n_cells
    if balance is None:
        return _DEFAULT_CELLS
    return sum(lacking_cells(model, phenotypes, balance).values())


class _GenerateSection(BaseModel):
    """The settings under their key of a preset, by which errors name them."""

    generate: GenerateSettings


def changed_settings(settings: GenerateSettings, changes: Mapping[str, Any]) -> GenerateSettings:
    """Return the settings with some replaced; ConfigurationError for a value that no preset may have."""
    changed = settings.model_dump() | dict(changes)
    try:
        return _GenerateSection.model_validate({"generate": changed}, strict=True).generate
    except ValidationError as error:
        first = invalid_keys(error.errors(include_url=False))[0]
        raise ConfigurationError(f"{first.path[-1]} {first.message}") from None


def resolve_phenotypes(config: TfxConfig, wanted: Mapping[str, str]) -> dict[int, int]:
    """Turn names and labels into slot -> code; -1 for [NO_*].

    ConfigurationError if the model has no such phenotype or value; the nearest are named.
    """
    codes = {}
    names = list(config.phenotypes)
    for name, label in wanted.items():
        if name not in config.phenotypes:
            raise ConfigurationError(
                f"this model has no phenotype '{name}'; {suggest(name, names)}"
            )
        values = config.phenotypes[name]
        if label == f"[NO_{name.upper()}]":
            codes[names.index(name)] = -1
            continue
        value = match_label(label, values)
        if value is None:
            raise ConfigurationError(
                f"this model knows no {name} '{label}'; {suggest(label, values)}"
            )
        codes[names.index(name)] = values.index(value)
    return codes


def lacking_cells(model: CellModel, phenotypes: Mapping[str, str], balance: str) -> dict[str, int]:
    """Return value of a phenotype -> training cells by which it trails the commonest value.

    Values without training cells cannot be filled up, and lack none.
    """
    requested = resolve_phenotypes(model.config, phenotypes)
    names = list(model.config.phenotypes)
    if balance not in names:
        raise ConfigurationError(
            f"this model has no phenotype '{balance}' to balance; {suggest(balance, names)}"
        )
    slot = names.index(balance)
    if slot in requested:
        raise ConfigurationError(
            f"{balance} cannot be both requested and balanced; leave one of them out"
        )
    kept = {other: code for other, code in requested.items() if code >= 0}
    values = model.config.phenotypes[balance]
    has = model.reference.value_counts(slot, len(values), kept)
    lacking = {value: max(has) - n if n else 0 for value, n in zip(values, has, strict=True)}
    if not any(lacking.values()):
        raise ConfigurationError(
            f"there is nothing to fill up: the values of {balance} have equal numbers of cells"
        )
    return lacking


class PhenotypeDraw:
    """The phenotypes that the cells of a request get, in any order and in parts.

    ``wanted`` is slot -> code of the requested values, after the changes; ``n_training`` the number of
    training cells that have all of them, and ``notes`` holds sentences that the user should read.
    """

    def __init__(self, model: CellModel, request: GenerationRequest) -> None:
        self._names = list(model.config.phenotypes)
        self._values = list(model.config.phenotypes.values())
        self._reference, self._seed = model.reference, request.seed
        self._requested = resolve_phenotypes(model.config, request.phenotypes)
        self._changes = resolve_phenotypes(model.config, request.changes)
        self._drawn = {slot: code for slot, code in self._requested.items() if code >= 0}
        after = self._requested | self._changes
        self.wanted = {slot: code for slot, code in after.items() if code >= 0}
        self.n_training = model.reference.n_cells(self.wanted)
        self.notes = self._notes_on_training()
        self._combinations: NDArray[np.int32] | None = None
        if request.balance is not None:
            lacking = lacking_cells(model, request.phenotypes, request.balance)
            weights: NDArray[Any] = self._fill_up(
                request, self._names.index(request.balance), lacking
            )
        elif request.unspecified == "sample" and len(self._requested) < len(self._names):
            matching = self._matching_combinations()
            weights = self._reference.counts[matching]
            self._combinations = self._reference.combinations[matching]
        else:
            return
        fractions = weights / weights.sum()
        self._cumulative = np.cumsum(fractions)
        if self._changes:
            self._note_new_combinations(fractions)

    def codes(self, cells: range) -> NDArray[np.int32]:
        """Return (cells, phenotypes) codes of the cells numbered ``cells``, -1 for [NO_*]."""
        codes = self.codes_before(cells)
        for slot, code in self._changes.items():
            codes[:, slot] = code
        return codes

    def codes_before(self, cells: range) -> NDArray[np.int32]:
        """Return the codes that the cells have before the changes of the request."""
        codes = np.full((len(cells), len(self._names)), -1, dtype=np.int32)
        if self._combinations is not None:
            # One uniform number per cell, in order: a part is the same as within the whole.
            rng = generator_at(cells.start, self._seed, Stream.GENERATED_PHENOTYPES)
            drawn = np.searchsorted(self._cumulative, rng.random(len(cells)), side="right")
            codes = self._combinations[drawn.clip(max=len(self._combinations) - 1)].copy()
        for slot, code in self._requested.items():
            codes[:, slot] = code
        return codes

    def _fill_up(
        self, request: GenerationRequest, slot: int, lacking: dict[str, int]
    ) -> NDArray[np.float64]:
        """Weigh training combinations by what the values of the balanced phenotype lack."""
        matching = self._reference.matching(self._drawn)
        matching &= self._reference.combinations[:, slot] >= 0
        combinations = self._reference.combinations[matching]
        codes, counts = combinations[:, slot], self._reference.counts[matching]
        lacks = np.array(list(lacking.values()), dtype=np.float64)
        has = np.bincount(codes, counts, minlength=len(lacks))
        if request.unspecified == "none":
            combinations = np.full_like(combinations, -1)
            combinations[:, slot] = codes
        self._combinations = combinations
        few = [
            f"{value} ({int(n)})"
            for (value, lack), n in zip(lacking.items(), has, strict=True)
            if lack and n < FEW_CELLS
        ]
        if few:
            self.notes.append(
                f"few training cells: {', '.join(few)}; cells that fill them up are guesswork"
            )
        return counts * (lacks / np.maximum(has, 1.0))[codes]

    def _matching_combinations(self) -> NDArray[np.bool_]:
        """Training combinations that match; if none does, the rarest values are dropped until some do."""
        reference, kept, dropped = self._reference, dict(self._drawn), []
        while not reference.matching(kept).any():
            rarest = min(kept, key=lambda slot: reference.n_cells({slot: kept[slot]}))
            dropped.append(self._names[rarest])
            del kept[rarest]
        if dropped:
            self.notes.append(
                "unspecified phenotypes come from training cells that match all but "
                + ", ".join(dropped)
            )
        return reference.matching(kept)

    def _note_new_combinations(self, fractions: NDArray[np.floating[Any]]) -> None:
        """Say what fraction of the cells the changes give phenotypes that no training cell has together."""
        assert self._combinations is not None
        combinations = self._combinations.copy()
        for slot, code in (self._requested | self._changes).items():
            combinations[:, slot] = code
        known = set(map(tuple, self._reference.combinations.tolist()))
        is_new = [tuple(row) not in known for row in combinations.tolist()]
        if self.n_training and (fraction := float(fractions[is_new].sum())) >= _WORTH_A_NOTE:
            self.notes.append(
                f"the change gives {fraction:.0%} of the cells phenotypes that no training cell has "
                f"together: the model composes what it learnt of each value"
            )

    def _notes_on_training(self) -> list[str]:
        if not self.wanted or self.n_training >= FEW_CELLS:
            return []
        described = ", ".join(self._describe(slot) for slot in self.wanted)
        composed = "the model composes what it learnt of each value"
        if self.n_training > 0:
            have = "cell has" if self.n_training == 1 else "cells have"
            return [f"only {self.n_training} training {have} {described}: {composed}"]
        return [
            f"no training cell has {described}: {composed}",
            *(
                self._contradiction(one, other)
                for one, other in itertools.combinations(self.wanted, 2)
                if self._reference.n_cells({slot: self.wanted[slot] for slot in (one, other)}) == 0
            ),
        ]

    def _contradiction(self, one: int, other: int) -> str:
        """Name, for two values that never occur together, the partners of the more particular one."""
        partners = {one: self._partners(one, other), other: self._partners(other, one)}
        first = min(partners, key=lambda slot: len(partners[slot]))
        second = one + other - first
        shown = ", ".join(partners[first][:3]) + (", ..." if len(partners[first]) > 3 else "")
        return (
            f"{self._describe(first)} and {self._describe(second)} never met in training: "
            f"{self._values[first][self.wanted[first]]} came "
            f"with {self._names[second]} {shown or 'unknown'}"
        )

    def _partners(self, slot: int, other: int) -> list[str]:
        """Values of ``other`` beside the requested value of ``slot`` in training, commonest first."""
        values = self._values[other]
        wanted = {slot: self.wanted[slot]}
        sums = np.array(self._reference.value_counts(other, len(values), wanted))
        return [values[code] for code in np.argsort(-sums, kind="stable") if sums[code] > 0]

    def _describe(self, slot: int) -> str:
        return f"{self._names[slot]} = {self._values[slot][self.wanted[slot]]}"
