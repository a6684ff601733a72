"""Pictures of characters: curves and points as braille, and a canvas written in any order.

A terminal cell has 2 x 4 dots. Of all points in a column of dots only the lowest, the highest and
a moving mean are drawn, so that a redraw of a million points is one pass of numpy over them.
"""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

Array = NDArray[np.float64]
Range = tuple[float, float]

#: The braille cell without dots.
BLANK = 0x2800
#: Points per column from which on columns, not points, are averaged.
_MANY_POINTS = 8
#: Bit of each dot of a cell, by row and column.
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint16)


class Columns(NamedTuple):
    """The lowest and highest value in each column of dots; NaN in a column without finite ones."""

    low: Array
    high: Array


def column_extremes(x: Array, y: Array, x_range: Range, n_columns: int) -> Columns:
    """Return the extremes of a curve, (points,) x ascending and y, in each column of dots.

    ``x_range`` is the first and last x of the picture, the first smaller.
    """
    first, last = np.searchsorted(x, x_range[0], "left"), np.searchsorted(x, x_range[1], "right")
    edges = np.linspace(*x_range, n_columns + 1)
    starts = np.searchsorted(x[first:last], edges[:-1], "left")
    filled = np.flatnonzero(np.append(starts[1:], last - first) > starts)
    shown = y[first:last]
    # fmin and fmax ignore NaN: one must not blank a whole column.
    found = [extreme.reduceat(shown, starts[filled]) for extreme in (np.fmin, np.fmax)]
    if np.isinf(found).any():  # rare: once more, without them
        shown = np.where(np.isfinite(shown), shown, np.nan)
        found = [extreme.reduceat(shown, starts[filled]) for extreme in (np.fmin, np.fmax)]
    columns = np.full((2, n_columns), np.nan)
    columns[:, filled] = found
    return Columns(*columns)


def moving_mean(x: Array, y: Array, at: Array, width: float) -> Array:
    """Return the mean of the finite values within ``width / 2`` of each place; NaN without any.

    (points,) x ascending and y; (places,) ascending. A ``width`` of 0 takes values at these places.
    """
    finite = np.isfinite(y)
    totals = np.zeros((2, len(y) + 1))
    totals[:, 1:] = np.cumsum([np.where(finite, y, 0.0), finite], axis=1)
    first = np.searchsorted(x, at - width / 2, "left")
    return _means(totals, first, np.searchsorted(x, at + width / 2, "right"))


def _means(totals: Array, first: NDArray[np.intp], last: NDArray[np.intp]) -> Array:
    """Return the means from each first to before each last place; ``totals`` are of sum and number."""
    sums, counts = totals[:, last] - totals[:, first]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 0, sums / counts, np.nan)


def sample_line(x: Array, y: Array, at: Array, width: float) -> Array:
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


def _column_means(x: Array, y: Array, at: Array, width: float) -> Array:
    """Return the mean of the columns around each place, ``width`` together."""
    n_columns = len(at)
    edges = np.searchsorted(x, np.linspace(at[0], at[-1], n_columns + 1), "left")
    edges[-1] = np.searchsorted(x, at[-1], "right")
    filled = np.flatnonzero(np.diff(edges))
    starts, shown = edges[filled], y[: edges[-1]]
    sums, counts = np.add.reduceat(shown, starts), np.diff(edges)[filled]
    if not np.isfinite(sums).all():  # some value is not: once more, without those
        finite = np.isfinite(shown)
        sums = np.add.reduceat(np.where(finite, shown, 0.0), starts)
        counts = np.add.reduceat(finite.astype(np.int64), starts)
    totals = np.zeros((2, n_columns + 1))
    totals[:, filled + 1] = sums, counts
    reach = round(width / max(at[-1] - at[0], 1e-300) * n_columns / 2)
    place = np.arange(n_columns)
    first, last = np.maximum(place - reach, 0), np.minimum(place + reach + 1, n_columns)
    return _means(totals.cumsum(axis=1), first, last)


def _rows(values: Array, y_range: Range, n_rows: int) -> Array:
    """Place values on rows of dots, 0 at the top; NaN stays, values outside get rows outside."""
    span = y_range[1] - y_range[0]
    with np.errstate(invalid="ignore", over="ignore"):
        return np.rint((y_range[1] - values) / span * (n_rows - 1))


def _fill(top: Array, bottom: Array, n_rows: int) -> NDArray[np.bool_]:
    """Return (rows, columns) of dots: in each column those from its top to its bottom row."""
    rows = np.arange(n_rows)[:, None]
    with np.errstate(invalid="ignore"):
        dots: NDArray[np.bool_] = (rows >= top) & (rows <= bottom)
    return dots


def draw_range(columns: Columns, y_range: Range, n_rows: int) -> NDArray[np.bool_]:
    """Return (rows, columns) of dots: those between the extremes of each column."""
    return _fill(_rows(columns.high, y_range, n_rows), _rows(columns.low, y_range, n_rows), n_rows)


def draw_line(heights: Array, y_range: Range, n_rows: int) -> NDArray[np.bool_]:
    """Return (rows, columns) of dots: a line of one height per column, each joined to the last."""
    place = _rows(heights, y_range, n_rows)
    before = np.concatenate(([np.nan], place[:-1]))
    # Half of the way up or down belongs to each of two neighbours; a single one is a dot.
    toward = np.where(np.isnan(before), place, before + np.sign(place - before))
    return _fill(np.fmin(place, toward), np.fmax(place, toward), n_rows)


def draw_points(
    x: Array, y: Array, x_range: Range, y_range: Range, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return (rows, columns) of dots: one per point; points outside the picture are left out."""
    dots = np.zeros(shape, dtype=bool)
    # False for NaN, too.
    inside = (x >= x_range[0]) & (x <= x_range[1]) & (y >= y_range[0]) & (y <= y_range[1])
    column = (x[inside] - x_range[0]) / (x_range[1] - x_range[0]) * (shape[1] - 1)
    dots[_rows(y[inside], y_range, shape[0]).astype(int), np.rint(column).astype(int)] = True
    return dots


def dots_to_codes(dots: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Turn (4 x height, 2 x width) dots into (height, width) code points of braille characters."""
    height, width = dots.shape[0] // 4, dots.shape[1] // 2
    cells = dots.reshape(height, 4, width, 2)
    codes = (cells * _BITS[None, :, None, :]).sum(axis=(1, 3), dtype=np.uint16)
    return codes + np.uint16(BLANK)


def row_of(value: float, y_range: Range, n_rows: int) -> int:
    """Return the row of a value among rows of characters, 0 at the top."""
    fraction = (y_range[1] - value) / (y_range[1] - y_range[0])
    return int(np.clip(np.floor(fraction * (n_rows - 0.001)), 0, n_rows - 1))


def column_of(value: float, x_range: Range, n_columns: int) -> int:
    """Return the column of a value among columns of characters; one outside for a value outside."""
    return round((value - x_range[0]) / (x_range[1] - x_range[0]) * (n_columns - 1))


def nice_ticks(low: float, high: float, n_most: int) -> list[float]:
    """Return at most ``n_most`` round numbers (1, 2 or 5 times a power of ten) within a range."""
    if not (np.isfinite(low) and np.isfinite(high)) or high <= low or n_most < 1:
        return []
    power = 10.0 ** np.floor(np.log10((high - low) / n_most))
    for factor in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0):
        distance = factor * power
        first, last = np.ceil(low / distance - 1e-9), np.floor(high / distance + 1e-9)
        if last - first < n_most:
            return [float(n * distance) for n in np.arange(first, last + 1)]
    return []


class Canvas:
    """A picture of ``width`` x ``height`` characters; later writing covers earlier."""

    def __init__(self, width: int, height: int, base: Style) -> None:
        self.width, self.height = width, height
        self._base = base
        self._text = np.full((height, width), ord(" "), dtype=np.uint32)
        self._style = np.zeros((height, width), dtype=np.int32)
        self._styles = [base]

    def _number_of(self, style: Style) -> int:
        whole = self._base + style
        if whole not in self._styles:
            self._styles.append(whole)
        return self._styles.index(whole)

    def write(self, row: int, column: int, text: str, style: Style) -> None:
        """Write text to the right of a place; places outside are ignored."""
        number = self._number_of(style)
        for place, character in enumerate(text, start=column):
            if 0 <= row < self.height and 0 <= place < self.width:
                # A name may hold anything; a character of two cells would shift the rest of the row.
                self._text[row, place] = ord(character if cell_len(character) == 1 else "?")
                self._style[row, place] = number

    def write_legend(self, column: int, entries: Iterable[tuple[str, Style]]) -> int:
        """Write entries side by side in the first row, as many as fit; return the next column."""
        for text, style in entries:
            if column + len(text) > self.width:
                break
            self.write(0, column, text, style)
            column += len(text) + 2
        return column

    def lay(self, row: int, column: int, dots: NDArray[np.bool_], style: Style) -> None:
        """Lay dots, (4 x rows, 2 x columns), over the picture as braille."""
        codes = dots_to_codes(dots)
        height, width = codes.shape
        place = (slice(row, row + height), slice(column, column + width))
        has_dots = codes != BLANK
        self._text[place][has_dots] = codes[has_dots]
        self._style[place][has_dots] = self._number_of(style)

    def strips(self) -> list[Strip]:
        strips = []
        for text, style in zip(self._text, self._style, strict=True):
            cuts = [0, *(np.flatnonzero(np.diff(style)) + 1).tolist(), len(text)]
            segments = [
                Segment("".join(map(chr, text[first:last])), self._styles[style[first]])
                for first, last in itertools.pairwise(cuts)
                if last > first
            ]
            strips.append(Strip(segments, len(text)))
        return strips
