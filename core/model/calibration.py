"""What a model's probabilities are worth: a temperature per phenotype, and below which probability it is unsure.

`core.evaluation.calibration` fits a `PhenotypeCalibration` on validation cells. It is kept in ``tfx.json`` of the
model folder. A model without calibrations (an older folder, or one trained without validation cells) has
temperature 1, and is unsure below a probability of one half.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.errors import ConfigurationError

#: Fraction of the kept cells that should be right.
UNSURE_AT = 0.95
#: Probability below which a prediction without calibration is unsure.
UNSURE_BELOW = 0.5
#: Labelled validation cells that a calibration needs.
LEAST_CELLS = 50


class PhenotypeCalibration(BaseModel):
    """How one phenotype was predicted on labelled validation cells, all phenotypes masked."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    #: Logits are divided by it; 1 for fewer than `LEAST_CELLS` cells.
    temperature: float = Field(1.0, gt=0.0)
    n_cells: int = Field(0, ge=0)
    #: Known donors of these cells.
    n_donors: int = Field(0, ge=0)
    #: Of the cells; the lower bound is that of the 95 % interval, over donors if there are several.
    accuracy: float = Field(0.0, ge=0.0, le=1.0)
    accuracy_low: float = Field(0.0, ge=0.0, le=1.0)
    #: Fraction of the cells that have the most common value.
    majority: float = Field(0.0, ge=0.0, le=1.0)
    #: Ascending probabilities from 0, and the accuracy of the cells whose prediction has that or more.
    probabilities: list[float] = Field(default_factory=list, max_length=1_000)
    kept_accuracies: list[float] = Field(default_factory=list, max_length=1_000)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.probabilities) != len(self.kept_accuracies):
            raise ValueError("probabilities and kept_accuracies differ in number")
        if any(np.diff(self.probabilities) < 0):
            raise ValueError("the probabilities decrease")
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether there were enough cells."""
        return self.n_cells >= LEAST_CELLS

    @property
    def is_at_chance(self) -> bool:
        """Whether the most common value alone does as well, within the interval."""
        return self.accuracy_low <= self.majority

    def threshold(self, at: float) -> float:
        """Return the lowest probability from which a fraction ``at`` of the cells is right; infinity if none."""
        for probability, accuracy in zip(self.probabilities, self.kept_accuracies, strict=True):
            if accuracy >= at:
                return probability
        return math.inf


@dataclass(frozen=True)
class UnsureRule:
    """When predictions of a phenotype are unsure: below a probability, infinity for always."""

    below: float
    #: One sentence on why, if it is not that of the requested accuracy.
    reason: str = ""

    @property
    def is_always(self) -> bool:
        """Whether every prediction is unsure."""
        return math.isinf(self.below)


def unsure_rules(
    calibration: Mapping[str, PhenotypeCalibration],
    names: Iterable[str],
    *,
    at: float | None = None,
    below: float | None = None,
) -> dict[str, UnsureRule]:
    """Return the rule of each phenotype.

    ``below`` is a probability for all of them. Otherwise a prediction is sure if the fraction ``at`` (default
    `UNSURE_AT`) of validation cells that were predicted as surely is right. Raises a ConfigurationError
    if both are given, or ``at`` for a model without calibrations.
    """
    if below is not None:
        if at is not None:
            raise ConfigurationError("give --unsure-at or --unsure-below, not both")
        return {name: UnsureRule(below) for name in names}
    if at is not None and not calibration:
        raise ConfigurationError(
            "--unsure-at needs a calibrated model, and this one is not: it was trained without validation "
            "cells, or by an older tfx; give --unsure-below, or train it again"
        )
    wanted = UNSURE_AT if at is None else at
    return {name: _rule(name, calibration.get(name), wanted) for name in names}


def _rule(name: str, known: PhenotypeCalibration | None, at: float) -> UnsureRule:
    if known is None:
        return UnsureRule(UNSURE_BELOW)
    if not known.is_fitted:
        return UnsureRule(
            UNSURE_BELOW,
            f"{name}: its probabilities are not calibrated, because only {known.n_cells} validation cells have a "
            f"label ({LEAST_CELLS} are needed): unsure below {UNSURE_BELOW}",
        )
    donors = {0: "", 1: " of 1 donor"}.get(known.n_donors, f" of {known.n_donors:,} donors")
    cells = f"the {known.n_cells:,} validation cells{donors}"
    if known.majority == 1.0:
        reason = (
            f"all of {cells} have the same value, which does not show whether the model knows it"
        )
    elif known.is_at_chance:
        reason = (
            f"on {cells} the model is no better than the most common value (accuracy {known.accuracy:.3f}, 95 % "
            f"interval from {known.accuracy_low:.3f}, against {known.majority:.3f})"
        )
    elif math.isinf(below := known.threshold(at)):
        reason = f"there is no probability from which {100 * at:g} % of {cells} are right"
    else:
        return UnsureRule(below)
    return UnsureRule(math.inf, f"{name}: always unsure, because {reason}")


def temper(probabilities: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Return (cells, values) probabilities whose logits are divided by a temperature (Guo et al. 2017)."""
    logits = np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), 1e-300)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    tempered: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return tempered
