"""A curve in one line of text, for terminals and logs alike."""

import itertools
import math
from collections.abc import Sequence

__all__ = ["curve_text"]

_LEVELS = "▁▂▃▄▅▆▇█"


def curve_text(values: Sequence[float | None], *, width: int = 60) -> str:
    """Draw values as a line of blocks, low to high; what is not finite is a gap.

    Parameters
    ----------
    values
        In order; more than ``width`` are averaged in groups of equal size.
    width
        Most characters.
    """
    finite = [None if value is None or not math.isfinite(value) else value for value in values]
    largest = max((abs(value) for value in finite if value is not None), default=None)
    if largest is None:
        return ""
    # Between -1 and 1, where sums and differences of any numbers hold.
    scaled = [None if value is None else value / (largest or 1.0) for value in finite]
    shown = [_mean(group) for group in _groups(scaled, width)]
    known = [value for value in shown if value is not None]
    low, span = min(known), max(known) - min(known)
    top = len(_LEVELS) - 1
    return "".join(
        " " if value is None else _LEVELS[round(top * ((value - low) / span)) if span else 0]
        for value in shown
    )


def _groups(values: Sequence[float | None], width: int) -> list[Sequence[float | None]]:
    n_groups = min(width, len(values))
    bounds = [round(index * len(values) / n_groups) for index in range(n_groups + 1)]
    return [values[first:last] for first, last in itertools.pairwise(bounds)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
