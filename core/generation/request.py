"""What to generate: phenotype values asked for, how the open ones are filled, how to sample.

Labels become codes here, and each generated cell gets its phenotypes: those asked for, and for the
open ones either real combinations (drawn as often as training cells had them) or [NO_*].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.cells.phenotypes import match_label, suggest
from core.errors import ConfigurationError
from core.model.configuration import TfxConfig
from core.model.folder import CellModel
from core.presets.schema import GenerateSettings

__all__ = ["MAX_CELLS", "GenerationRequest", "draw_codes", "resolve_phenotypes"]

#: More cells than this are held in memory at once, which no laptop has room for.
MAX_CELLS = 1_000_000
#: Below this many training cells of a combination its cells are guesswork.
FEW_CELLS = 20


@dataclass(frozen=True)
class GenerationRequest:
    """A request for cells.

    Attributes
    ----------
    phenotypes
        Name -> value asked for, as the user wrote it.
    n_cells
        How many.
    unspecified
        "sample" fills open phenotypes from matching training cells; "none" writes [NO_*].
    settings
        Steps, order, temperature, guidance, decoding.
    seed
        Cell i of a seed is the same whatever the number of cells or the batch size.
    """

    phenotypes: Mapping[str, str]
    n_cells: int
    unspecified: Literal["sample", "none"] = "sample"
    settings: GenerateSettings = field(default_factory=GenerateSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers; ``model_copy`` of the settings has not."""
        if not 1 <= self.n_cells <= MAX_CELLS:
            message = f"cannot generate {self.n_cells:,} cells; ask for 1 to {MAX_CELLS:,}"
            raise ConfigurationError(message)
        if not 0 < self.settings.temperature < math.inf:
            message = f"temperature {self.settings.temperature} must be a number above 0; 1 draws from the model"
            raise ConfigurationError(message)
        if not 0 <= self.settings.guidance < math.inf:
            message = f"guidance {self.settings.guidance} must be a number of at least 0; 0 is none"
            raise ConfigurationError(message)


def resolve_phenotypes(config: TfxConfig, wanted: Mapping[str, str]) -> dict[int, int]:
    """Turn names and labels into slot -> code.

    Raises
    ------
    ConfigurationError
        The model has no such phenotype, or the phenotype no such value; the nearest are named.
    """
    codes = {}
    names = list(config.phenotypes)
    for name, label in wanted.items():
        if name not in config.phenotypes:
            message = f"this model has no phenotype '{name}'; {suggest(name, names)}"
            raise ConfigurationError(message)
        values = config.phenotypes[name]
        value = match_label(label, values)
        if value is None:
            message = f"this model knows no {name} '{label}'; {suggest(label, values)}"
            raise ConfigurationError(message)
        codes[names.index(name)] = values.index(value)
    return codes


def draw_codes(model: CellModel, request: GenerationRequest) -> tuple[NDArray[np.int32], list[str]]:
    """Give every cell its phenotypes.

    Returns
    -------
    (cells, phenotypes) codes, -1 for [NO_*]; and sentences the user should read: combinations that
    training had few or none of.
    """
    config, reference = model.config, model.reference
    names = list(config.phenotypes)
    wanted = resolve_phenotypes(config, request.phenotypes)
    described = ", ".join(
        f"{names[slot]} = {config.phenotypes[names[slot]][code]}" for slot, code in wanted.items()
    )
    codes = np.full((request.n_cells, len(names)), -1, dtype=np.int32)
    notes = []
    n_training = reference.n_cells(wanted)
    if wanted and n_training < FEW_CELLS:
        how_many = (
            "no training cell has" if n_training == 0 else f"only {n_training} training cells have"
        )
        notes.append(f"{how_many} {described}: the model composes what it learnt of each value")
    if request.unspecified == "sample" and len(wanted) < len(names):
        matching, given_up = _matching_combinations(model, wanted)
        if given_up:
            notes.append(
                "open phenotypes come from training cells that match all but "
                + ", ".join(names[slot] for slot in given_up)
            )
        rng = np.random.default_rng([request.seed, 23])
        counts = reference.counts[matching]
        # One uniform number per cell, in order: cell i is the same however many are asked for.
        drawn = np.searchsorted(
            np.cumsum(counts) / counts.sum(), rng.random(request.n_cells), side="right"
        )
        codes = reference.combinations[matching][drawn.clip(max=len(counts) - 1)].copy()
    for slot, code in wanted.items():
        codes[:, slot] = code
    return codes, notes


def _matching_combinations(
    model: CellModel, wanted: dict[int, int]
) -> tuple[NDArray[np.bool_], list[int]]:
    """Training combinations that match; if none does, give up the rarest value until some do."""
    kept, given_up = dict(wanted), []
    reference = model.reference
    while not reference.matching(kept).any():
        rarest = min(kept, key=lambda slot: reference.n_cells({slot: kept[slot]}))
        given_up.append(rarest)
        del kept[rarest]
    return reference.matching(kept), given_up
