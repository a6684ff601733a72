"""How many years off an answer about age is: decades have an order that accuracy does not see."""

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from core.cells.phenotypes import parse_years

__all__ = ["mean_years_off", "years_of"]

#: "70-79" stands for ages from 70.0 to just under 80.0.
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")
_LONGEST_RANGE = 30


def years_of(label: str) -> float | None:
    """Age in years that a value stands for, the middle of a range; None where it states none."""
    if match := _RANGE.fullmatch(label.strip()):
        first, last = int(match[1]), int(match[2])
        if first <= last <= first + _LONGEST_RANGE:
            return (first + last + 1) / 2
        return None
    years = parse_years(label)
    return years + 5 if years is not None and "decade" in label else years


def mean_years_off(
    true_codes: ArrayLike, predicted_codes: ArrayLike, values: Sequence[str]
) -> float | None:
    """Mean absolute difference, in years, between the ages that truth and answer stand for.

    Parameters
    ----------
    true_codes, predicted_codes
        (cells,), codes of `values`, -1 where missing.

    Returns
    -------
    None where fewer than two values state an age, or no cell has one. Cells whose true value
    states no age are left out; an answer that states none counts as the value furthest off.
    """
    years = np.array(
        [math.nan if (one := years_of(v)) is None else one for v in values] + [math.nan]
    )
    if np.isfinite(years).sum() < 2:
        return None
    truth = years[np.asarray(true_codes, dtype=np.int64)]
    answer = years[np.asarray(predicted_codes, dtype=np.int64)]  # -1 is the last: no age
    known = np.isfinite(truth)
    if not known.any():
        return None
    truth, answer = truth[known], answer[known]
    furthest = np.maximum(truth - np.nanmin(years), np.nanmax(years) - truth)
    return float(np.where(np.isfinite(answer), np.abs(truth - answer), furthest).mean())
