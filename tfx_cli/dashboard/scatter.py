"""A widget of points: braille dots in colours, with axes; real and generated cells, or gene means."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.style import Style
from textual.color import Color
from textual.strip import Strip
from textual.widget import Widget

from tfx_cli.dashboard.canvas import Canvas, number_text
from tfx_cli.dashboard.raster import dots_to_codes, draw_line, draw_points, nice_ticks
from tfx_cli.dashboard.themes import series_colours

__all__ = ["PointSet", "ScatterView"]

_TICK_WIDTH = 6
#: Up to so many points in all, each is drawn as 2 x 2 dots.
_FEW_POINTS = 700


@dataclass(frozen=True)
class PointSet:
    """Points of one kind.

    Attributes
    ----------
    name
        In the legend.
    x, y
        (points,).
    colour
        Place in the theme's colours.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    colour: int = 0


class ScatterView(Widget):
    """Points of several kinds.

    Parameters
    ----------
    has_diagonal
        Both axes have one scale, and the line of equal values is drawn.
    has_ticks
        Whether numbers on the axes mean anything.
    """

    DEFAULT_CSS = """
    ScatterView { height: 1fr; min-height: 5; background: $surface; color: $foreground; }
    """

    def __init__(
        self,
        *,
        has_diagonal: bool = False,
        has_ticks: bool = True,
        empty: str = "",
        id: str | None = None,  # noqa: A002 - textual's name
    ) -> None:
        super().__init__(id=id)
        self.title = ""
        self.x_name = ""
        self.empty = empty
        self.points: tuple[PointSet, ...] = ()
        self._has_diagonal = has_diagonal
        self._has_ticks = has_ticks
        self._version = 0
        self._drawn: tuple[object, list[Strip]] = (None, [])

    def show(self, points: Sequence[PointSet], *, title: str, x_name: str = "") -> None:
        """Replace the points."""
        self.points, self.title, self.x_name = tuple(points), title, x_name
        self._version += 1
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return one row of the picture."""
        key = (self.size, self._version, self.app.theme)
        if self._drawn[0] != key:
            self._drawn = (key, self._draw())
        strips = self._drawn[1]
        return strips[y] if y < len(strips) else Strip.blank(self.size.width, self.rich_style)

    def _draw(self) -> list[Strip]:
        width, height = self.size
        canvas = Canvas(width, height, self.rich_style)
        styles = [
            Style(color=Color.parse(one).rich_color) for one in series_colours(self.app.theme)
        ]
        quiet = Style(dim=True)
        canvas.write(0, 0, self.title, Style(bold=True))
        known = [
            (one, np.isfinite(one.x) & np.isfinite(one.y)) for one in self.points if len(one.x)
        ]
        left = _TICK_WIDTH if self._has_ticks else 1
        n_columns, n_rows = width - left - 1, height - 2
        if not any(finite.any() for _, finite in known) or n_columns < 4 or n_rows < 2:
            canvas.write(height // 2, max((width - len(self.empty)) // 2, 0), self.empty, quiet)
            return canvas.strips()
        x = np.concatenate([one.x[finite] for one, finite in known])
        y = np.concatenate([one.y[finite] for one, finite in known])
        x_range, y_range = _range(x), _range(y)
        if self._has_diagonal:
            x_range = y_range = (min(x_range[0], y_range[0]), max(x_range[1], y_range[1]))
        shape = (4 * n_rows, 2 * n_columns)
        if self._has_diagonal:
            line = draw_line(np.linspace(*x_range, shape[1]), y_range, shape[0])
            canvas.lay(1, left, dots_to_codes(line), quiet)
        column = len(self.title) + 2
        for one in self.points:
            style = styles[one.colour % len(styles)]
            dots = draw_points(one.x, one.y, x_range, y_range, shape)
            if len(x) < _FEW_POINTS:
                dots[:, 1:] |= dots[:, :-1].copy()
                dots[1:] |= dots[:-1].copy()
            canvas.lay(1, left, dots_to_codes(dots), style)
            text = f"⠿ {one.name}"
            if column + len(text) <= width:
                canvas.write(0, column, text, style)
                column += len(text) + 2
        if self._has_ticks:
            for tick in nice_ticks(*y_range, max(n_rows // 3, 2)):
                share = (y_range[1] - tick) / (y_range[1] - y_range[0])
                row = 1 + min(int(share * n_rows), n_rows - 1)
                canvas.write(row, 0, number_text(tick)[: left - 1].rjust(left - 1), quiet)
            for tick in nice_ticks(*x_range, max(n_columns // 12, 2)):
                share = (tick - x_range[0]) / (x_range[1] - x_range[0])
                canvas.write(
                    height - 1, left + round(share * (n_columns - 1)), number_text(tick), quiet
                )
        if self.x_name:
            canvas.write(height - 1, max(width - len(self.x_name), 0), self.x_name, quiet)
        return canvas.strips()


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin
