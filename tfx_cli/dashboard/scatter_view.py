"""A picture of points of several kinds, as braille."""

from collections.abc import Sequence

import numpy as np

from tfx_cli.dashboard.canvas import Array, Canvas, Range, draw_line, draw_points
from tfx_cli.dashboard.picture import (
    TICK_WIDTH,
    Picture,
    Series,
    labelled_ticks,
    write_x_ticks,
    write_y_ticks,
)

#: Up to this number of points in all, each is drawn as 2 x 2 dots.
_FEW_POINTS = 700


class ScatterView(Picture):
    """Points of several kinds: real and generated cells, or gene means.

    A diagonal gives both axes one scale; ticks need meaningful axes; ``limits`` are always visible.
    """

    def __init__(
        self,
        *,
        has_diagonal: bool = False,
        has_ticks: bool = True,
        limits: Range | None = None,
        empty: str,
        id: str,  # noqa: A002
    ) -> None:
        super().__init__("", empty=empty, id=id)
        self.points: tuple[Series, ...] = ()
        self._has_diagonal = has_diagonal
        self._has_ticks = has_ticks
        self._limits = limits or ()

    def show(self, points: Sequence[Series], *, title: str, x_name: str = "") -> None:
        """Replace the points."""
        self.points, self.title, self.x_name = tuple(points), title, x_name
        self.changed()

    def draw(self, canvas: Canvas) -> None:
        faint = self.faint
        known = [np.isfinite(one.x) & np.isfinite(one.y) for one in self.points]
        n_points = sum(int(one.sum()) for one in known)
        left = TICK_WIDTH - 1 if self._has_ticks else 1
        n_columns, n_rows = canvas.width - left - 1, canvas.height - 2
        if not n_points or n_columns < 4 or n_rows < 2:
            self.write_empty(canvas, faint)
            return
        pairs = list(zip(self.points, known, strict=True))
        x_range = _widened(
            np.concatenate([self._limits, *(one.x[finite] for one, finite in pairs)])
        )
        y_range = _widened(
            np.concatenate([self._limits, *(one.y[finite] for one, finite in pairs)])
        )
        shape = (4 * n_rows, 2 * n_columns)
        if self._has_diagonal:
            x_range = y_range = (min(x_range[0], y_range[0]), max(x_range[1], y_range[1]))
            line = draw_line(np.linspace(*x_range, shape[1]), y_range, shape[0])
            canvas.lay(1, left, line, faint)
        for one in self.points:
            dots = draw_points(one.x, one.y, x_range, y_range, shape)
            if n_points < _FEW_POINTS:
                dots[:, 1:] |= dots[:, :-1].copy()
                dots[1:] |= dots[:-1].copy()
            canvas.lay(1, left, dots, self.series_style(one.colour))
        names = [(f"⠿ {one.name}", self.series_style(one.colour)) for one in self.points]
        canvas.write_legend(len(self.title) + 2, names)
        if self._has_ticks:
            ticks = labelled_ticks(*y_range, max(n_rows // 3, 2), left - 1)
            write_y_ticks(canvas, ticks, y_range, left, faint)
            write_x_ticks(canvas, x_range, left, n_columns, self.x_name, faint)
        else:
            column = max(canvas.width - len(self.x_name), 0)
            canvas.write(canvas.height - 1, column, self.x_name, faint)


def _widened(values: Array) -> Range:
    low, high = float(values.min()), float(values.max())
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin
