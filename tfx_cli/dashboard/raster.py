"""Curves and points as braille, by numpy.

A terminal cell has 2 x 4 dots. Of all points in a column of dots only the lowest, the highest and
a moving mean are drawn, so that a redraw of a million points is one pass of numpy over them.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: The braille cell without dots.
BLANK = 0x2800
#: Points per column from which on columns, not points, are averaged.
_MANY_POINTS = 8
#: Bit of each dot of a cell, by row and column.
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint16)


class Columns(NamedTuple):
    """The lowest and highest value in each column of dots; NaN in a column without finite ones."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


def column_extremes(
    x: NDArray[np.float64], y: NDArray[np.float64], x_range: tuple[float, float], n_columns: int
) -> Columns:
    """Return the extremes of a curve, (points,) x ascending and y, in each column of dots.

    ``x_range`` is the first and last x of the picture, the first smaller.
    """
    low = np.full(n_columns, np.nan)
    high = np.full(n_columns, np.nan)
    first, last = np.searchsorted(x, x_range[0], "left"), np.searchsorted(x, x_range[1], "right")
    if last <= first:
        return Columns(low, high)
    edges = np.linspace(*x_range, n_columns + 1)
    starts = np.searchsorted(x[first:last], edges[:-1], "left")
    ends = np.append(starts[1:], last - first)
    filled = np.flatnonzero(ends > starts)
    shown = y[first:last]
    # fmin and fmax ignore NaN: one must not blank a whole column.
    low[filled] = np.fmin.reduceat(shown, starts[filled])
    high[filled] = np.fmax.reduceat(shown, starts[filled])
    if np.isinf(low).any() or np.isinf(high).any():  # rare: once more, without them
        shown = np.where(np.isfinite(shown), shown, np.nan)
        low[filled] = np.fmin.reduceat(shown, starts[filled])
        high[filled] = np.fmax.reduceat(shown, starts[filled])
    return Columns(low, high)


def moving_mean(
    x: NDArray[np.float64], y: NDArray[np.float64], at: NDArray[np.float64], width: float
) -> NDArray[np.float64]:
    """Return the mean of the finite values within ``width / 2`` of each place; NaN without any.

    (points,) x ascending and y; (places,) ascending. A ``width`` of 0 takes values at these places.
    """
    finite = np.isfinite(y)
    sums = np.concatenate(([0.0], np.cumsum(np.where(finite, y, 0.0))))
    counts = np.concatenate(([0], np.cumsum(finite)))
    first = np.searchsorted(x, at - width / 2, "left")
    last = np.searchsorted(x, at + width / 2, "right")
    n_values = counts[last] - counts[first]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n_values > 0, (sums[last] - sums[first]) / n_values, np.nan)


def sample_line(
    x: NDArray[np.float64], y: NDArray[np.float64], at: NDArray[np.float64], width: float
) -> NDArray[np.float64]:
    """Return the heights of a curve at ascending places: its moving mean, joined between points.

    A curve has no height beyond its ends, nor between two points of which one is not finite. With
    many points between two places, the mean is that of whole columns, in one pass.
    """
    if len(x) == 0:
        return np.full(len(at), np.nan)
    if len(x) > _MANY_POINTS * len(at):
        return _column_means(x, y, at, width)
    smooth = moving_mean(x, y, at, width)
    is_empty = np.isnan(smooth)
    if is_empty.any():
        means = moving_mean(x, y, x, width) if width else y
        joined = np.interp(at, x, np.where(np.isfinite(y), means, np.nan))
        inside = (at >= x[0]) & (at <= x[-1])
        smooth = np.where(is_empty & inside, joined, smooth)
    return smooth


def _column_means(
    x: NDArray[np.float64], y: NDArray[np.float64], at: NDArray[np.float64], width: float
) -> NDArray[np.float64]:
    """Return the mean of the columns around each place, ``width`` together."""
    n_columns = len(at)
    edges = np.linspace(at[0], at[-1], n_columns + 1)
    starts = np.searchsorted(x, edges[:-1], "left")
    last = int(np.searchsorted(x, edges[-1], "right"))
    ends = np.append(starts[1:], last)
    filled = np.flatnonzero(ends > starts)
    sums, counts = np.zeros(n_columns), np.zeros(n_columns)
    shown = y[:last]
    counts[filled] = (ends - starts)[filled]
    sums[filled] = np.add.reduceat(shown, starts[filled]) if len(filled) else 0.0
    if not np.isfinite(sums).all():  # some value is not: once more, without those
        finite = np.isfinite(shown)
        sums[filled] = np.add.reduceat(np.where(finite, shown, 0.0), starts[filled])
        counts[filled] = np.add.reduceat(finite.astype(np.int64), starts[filled])
    reach = round(width / max(at[-1] - at[0], 1e-300) * n_columns / 2)
    total = np.concatenate(([0.0], np.cumsum(sums)))
    number = np.concatenate(([0.0], np.cumsum(counts)))
    place = np.arange(n_columns)
    low, high = np.maximum(place - reach, 0), np.minimum(place + reach + 1, n_columns)
    n_values = number[high] - number[low]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n_values > 0, (total[high] - total[low]) / n_values, np.nan)


def _rows(
    values: NDArray[np.float64], y_range: tuple[float, float], n_rows: int
) -> NDArray[np.float64]:
    """Place values on rows of dots, 0 at the top; NaN stays, values outside get rows outside."""
    span = y_range[1] - y_range[0]
    with np.errstate(invalid="ignore", over="ignore"):
        return np.rint((y_range[1] - values) / span * (n_rows - 1))


def draw_range(
    columns: Columns, y_range: tuple[float, float], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return (rows, columns) of dots: those between the extremes of each column."""
    n_rows, n_columns = shape
    top, bottom = (_rows(v, y_range, n_rows) for v in (columns.high, columns.low))
    rows = np.arange(n_rows)[:, None]
    with np.errstate(invalid="ignore"):
        dots: NDArray[np.bool_] = (rows >= top) & (rows <= bottom)
    assert dots.shape == (n_rows, n_columns)
    return dots


def draw_line(
    heights: NDArray[np.float64], y_range: tuple[float, float], n_rows: int
) -> NDArray[np.bool_]:
    """Return (rows, columns) of dots: a line of one height per column, each joined to the last."""
    place = _rows(heights, y_range, n_rows)
    before = np.concatenate(([np.nan], place[:-1]))
    before = np.where(np.isnan(before), place, before)
    # Half of the way up or down belongs to each of two neighbours; a single one is a dot.
    toward = np.where(place > before, before + 1, np.where(place < before, before - 1, place))
    rows = np.arange(n_rows)[:, None]
    with np.errstate(invalid="ignore"):
        dots: NDArray[np.bool_] = (rows >= np.fmin(place, toward)) & (
            rows <= np.fmax(place, toward)
        )
    return dots


def draw_points(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    shape: tuple[int, int],
) -> NDArray[np.bool_]:
    """Return (rows, columns) of dots: one per point; points outside the picture are left out."""
    n_rows, n_columns = shape
    dots = np.zeros(shape, dtype=bool)
    # False for NaN, too.
    inside = (x >= x_range[0]) & (x <= x_range[1]) & (y >= y_range[0]) & (y <= y_range[1])
    column = (x[inside] - x_range[0]) / (x_range[1] - x_range[0]) * (n_columns - 1)
    dots[_rows(y[inside], y_range, n_rows).astype(int), np.rint(column).astype(int)] = True
    return dots


def dots_to_codes(dots: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Turn (4 x height, 2 x width) dots into (height, width) code points of braille characters."""
    height, width = dots.shape[0] // 4, dots.shape[1] // 2
    cells = dots.reshape(height, 4, width, 2)
    codes = (cells * _BITS[None, :, None, :]).sum(axis=(1, 3), dtype=np.uint16)
    return codes + np.uint16(BLANK)


def row_of(value: float, y_range: tuple[float, float], n_rows: int) -> int:
    """Return the row of a value among rows of characters, 0 at the top."""
    fraction = (y_range[1] - value) / (y_range[1] - y_range[0])
    return int(np.clip(np.floor(fraction * (n_rows - 0.001)), 0, n_rows - 1))


def nice_ticks(low: float, high: float, n_most: int) -> list[float]:
    """Return at most ``n_most`` round numbers (1, 2 or 5 times a power of ten) within a range."""
    if not (np.isfinite(low) and np.isfinite(high)) or high <= low or n_most < 1:
        return []
    power = 10.0 ** np.floor(np.log10((high - low) / n_most))
    for factor in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0):
        distance = factor * power
        first = np.ceil(low / distance - 1e-9)
        ticks = [
            float(n * distance) for n in np.arange(first, np.floor(high / distance + 1e-9) + 1)
        ]
        if len(ticks) <= n_most:
            return ticks
    return []
