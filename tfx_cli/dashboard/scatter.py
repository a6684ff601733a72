"""A widget of points: braille dots in colours, with axes; real and generated cells, or gene means."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.style import Style

from tfx_cli.dashboard.canvas import Canvas, Picture
from tfx_cli.dashboard.raster import draw_line, draw_points, nice_ticks, row_of
from tfx_cli.formatting import number_text

_TICK_WIDTH = 6
#: Up to this number of points in all, each is drawn as 2 x 2 dots.
_FEW_POINTS = 700


@dataclass(frozen=True)
class PointSet:
    """Points of one kind: name for the legend, (points,) x and y, place in the theme's colours."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    colour: int = 0


class ScatterView(Picture):
    """Points of several kinds; a diagonal gives both axes one scale, ticks need meaningful axes."""

    def __init__(
        self,
        *,
        has_diagonal: bool = False,
        has_ticks: bool = True,
        empty: str = "",
        id: str | None = None,  # noqa: A002 - textual's name
    ) -> None:
        super().__init__("", empty=empty, id=id)
        self.x_name = ""
        self.points: tuple[PointSet, ...] = ()
        self._has_diagonal = has_diagonal
        self._has_ticks = has_ticks

    def show(self, points: Sequence[PointSet], *, title: str, x_name: str = "") -> None:
        """Replace the points."""
        self.points, self.title, self.x_name = tuple(points), title, x_name
        self.changed()

    def draw(self, canvas: Canvas) -> None:
        """Draw points, ticks and legend."""
        faint = Style(dim=True)
        finite = [np.isfinite(one.x) & np.isfinite(one.y) for one in self.points]
        left = _TICK_WIDTH if self._has_ticks else 1
        n_columns, n_rows = canvas.width - left - 1, canvas.height - 2
        if not any(one.any() for one in finite) or n_columns < 4 or n_rows < 2:
            self.write_empty(canvas, faint)
            return
        pairs = list(zip(self.points, finite, strict=True))
        x_range = _range(np.concatenate([one.x[known] for one, known in pairs]))
        y_range = _range(np.concatenate([one.y[known] for one, known in pairs]))
        shape = (4 * n_rows, 2 * n_columns)
        if self._has_diagonal:
            x_range = y_range = (min(x_range[0], y_range[0]), max(x_range[1], y_range[1]))
            line = draw_line(np.linspace(*x_range, shape[1]), y_range, shape[0])
            canvas.lay(1, left, line, faint)
        styles = [self.series_style(one.colour) for one in self.points]
        for one, style in zip(self.points, styles, strict=True):
            dots = draw_points(one.x, one.y, x_range, y_range, shape)
            if sum(known.sum() for known in finite) < _FEW_POINTS:
                dots[:, 1:] |= dots[:, :-1].copy()
                dots[1:] |= dots[:-1].copy()
            canvas.lay(1, left, dots, style)
        names = [f"⠿ {one.name}" for one in self.points]
        canvas.write_legend(len(self.title) + 2, zip(names, styles, strict=True))
        if self._has_ticks:
            for tick in nice_ticks(*y_range, max(n_rows // 3, 2)):
                label = number_text(tick)[: left - 1].rjust(left - 1)
                canvas.write(1 + row_of(tick, y_range, n_rows), 0, label, faint)
            for tick in nice_ticks(*x_range, max(n_columns // 12, 2)):
                fraction = (tick - x_range[0]) / (x_range[1] - x_range[0])
                column = left + round(fraction * (n_columns - 1))
                canvas.write(canvas.height - 1, column, number_text(tick), faint)
        column = max(canvas.width - len(self.x_name), 0)
        canvas.write(canvas.height - 1, column, self.x_name, faint)


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin
