"""What pictures of numbers share: a widget that draws itself once per change, series, ticks."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from rich.style import Style
from textual.color import Color
from textual.strip import Strip
from textual.widget import Widget

from tfx_cli.dashboard.canvas import Array, Canvas, Range, column_of, nice_ticks, row_of
from tfx_cli.dashboard.themes import faint_style, n_series_colours, series_colour
from tfx_cli.formatting import tick_labels

#: Columns of the terminal left of a plot, for the labels of its heights.
TICK_WIDTH = 8
#: Dots drawn and left out, and the sign in the legend: for curves beyond the colours of a theme.
_DASHES = (("", "━"), ("###.", "╍"), ("#.", "┅"))


@dataclass(frozen=True)
class Series:
    """A curve, or points of one kind: (points,) x, ascending in a curve, and y, not finite in gaps.

    A noisy curve is smoothed, over the range of its points as a dim band. ``colour`` is a place in
    the theme's colours.
    """

    name: str
    x: Array
    y: Array
    colour: int = 0
    is_noisy: bool = False


class Picture(Widget):
    """A widget that draws itself once per change (size, data, theme, focus) and keeps the rows.

    Subclasses draw in `draw`, and call `changed` when what they show has changed.
    """

    def __init__(self, title: str, *, empty: str, id: str | None) -> None:  # noqa: A002 - textual's
        super().__init__(id=id)
        self.title = title
        self.x_name = ""
        self.empty = empty
        self._version = 0
        self._drawn: tuple[object, list[Strip]] = (None, [])

    def changed(self) -> None:
        self._version += 1
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return one row of the picture."""
        key = (self.size, self._version, self.app.theme, self.has_focus)
        if self._drawn[0] != key:
            canvas = Canvas(*self.size, self.rich_style)
            canvas.write(0, 0, self.title, Style(bold=True))
            self.draw(canvas)
            # With the size of now: a draw before the first resize must not be kept.
            self._drawn = (key, canvas.strips())
        strips = self._drawn[1]
        return strips[y] if y < len(strips) else Strip.blank(self.size.width, self.rich_style)

    def draw(self, canvas: Canvas) -> None:
        """Draw everything but the title."""
        raise NotImplementedError

    def write_empty(self, canvas: Canvas, style: Style) -> None:
        """Write in the middle that there is nothing to draw."""
        column = max((canvas.width - len(self.empty)) // 2, 0)
        canvas.write(canvas.height // 2, column, self.empty, style)

    @property
    def faint(self) -> Style:
        """The style of ticks and remarks."""
        style = self.rich_style
        return faint_style(Color.from_rich_color(style.bgcolor), Color.from_rich_color(style.color))

    def series_style(self, place: int) -> Style:
        """Return the style of a place in the theme's colours."""
        return Style(color=Color.parse(series_colour(self.app.theme, place)).rich_color)

    def dashes(self, place: int) -> tuple[str, str]:
        """Return the dots of a curve, and its sign in the legend: each use of a colour has its own."""
        return _DASHES[place // n_series_colours(self.app.theme) % len(_DASHES)]


def labelled_ticks(low: float, high: float, n_most: int, width: int) -> list[tuple[float, str]]:
    """Return at most ``n_most`` ticks with their labels, of at most ``width`` characters."""
    for n_ticks in range(n_most, 0, -1):
        ticks = nice_ticks(low, high, n_ticks)
        labels = tick_labels(ticks)
        if ticks and max(map(len, labels)) <= width:
            return list(zip(ticks, labels, strict=True))
    return []


def write_y_ticks(
    canvas: Canvas,
    ticks: Iterable[tuple[float, str]],
    y_range: Range,
    width: int,
    style: Style,
    top: int = 1,
) -> None:
    """Write (height, label) left of a plot that has all rows from ``top`` on but the last."""
    for tick, label in ticks:
        row = top + row_of(tick, y_range, canvas.height - top - 1)
        canvas.write(row, 0, label.rjust(width - 1), style)


def write_x_ticks(
    canvas: Canvas, x_range: Range, left: int, n_columns: int, x_name: str, style: Style
) -> None:
    """Write the name of the x axis, and as many ticks as fit beside it, into the last row."""
    canvas.write(canvas.height - 1, canvas.width - len(x_name), x_name, style)
    end = canvas.width - len(x_name) - 2
    for n_most in range(max(n_columns // 12, 5), 0, -1):
        ticks = nice_ticks(*x_range, n_most)
        placed = [
            (left + column_of(tick, x_range, n_columns) - len(label) // 2, label)
            for tick, label in zip(ticks, tick_labels(ticks), strict=True)
        ]
        placed = [(max(column, 0), label) for column, label in placed if column + len(label) <= end]
        apart = itertools.pairwise(placed)
        if all(one[0] + len(one[1]) + 1 < other[0] for one, other in apart):
            for column, label in placed:
                canvas.write(canvas.height - 1, column, label, style)
            return
