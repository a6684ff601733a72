"""A widget of curves: braille lines over dim bands, axes, names at the ends, crosshair and zoom."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich.style import Style
from textual import events
from textual.color import Color
from textual.geometry import Size
from textual.message import Message

from tfx_cli.dashboard.canvas import Canvas, Picture
from tfx_cli.dashboard.raster import (
    Columns,
    column_extremes,
    draw_line,
    draw_range,
    nice_ticks,
    row_of,
    sample_line,
)
from tfx_cli.formatting import number_text, short_count, shortened

#: Fractions of the visible range over which a moving mean smooths a curve.
SMOOTHING = (0.0, 0.02, 0.05, 0.15)
_TICK_WIDTH = 7
_SHORTEST_NAMED = 56  # columns from which on curves are named at their ends
_NAME_WIDTH = 13

_Array = NDArray[np.float64]
_Range = tuple[float, float]


@dataclass(frozen=True)
class CurveSeries:
    """One curve: (points,) x ascending, and y with NaN or infinity for gaps.

    A noisy curve is smoothed, over the range of its points as a dim band. ``colour`` is a place in
    the theme's colours.
    """

    name: str
    x: _Array
    y: _Array
    colour: int = 0
    is_noisy: bool = False


@dataclass(frozen=True)
class ReferenceMark:
    """A value to compare with, drawn as a dotted line in the colour of a curve."""

    name: str
    y: float
    colour: int = 0


@dataclass(frozen=True)
class CurveWindow:
    """The visible part of the curves, shared by the panels of a screen."""

    #: Logarithmic heights; values of zero and below are gaps.
    is_log: bool = False
    #: Place in `SMOOTHING`.
    smoothing: int = 2
    #: First and last x; None: everything.
    zoom: _Range | None = None
    #: The x whose values are shown; None: no crosshair.
    crosshair: float | None = None

    @property
    def smoothed_fraction(self) -> float:
        """The fraction of the visible range that a mean spans."""
        return SMOOTHING[self.smoothing % len(SMOOTHING)]


class CurveView(Picture, can_focus=True):
    """Curves of one panel.

    ``limits`` are heights that are always visible (accuracies: 0 and 1); without ``has_values`` the
    legend lacks the last value of each curve.
    """

    class Moved(Message):
        """The user moved the window of a panel; its screen moves the others along."""

        def __init__(self, window: CurveWindow) -> None:
            super().__init__()
            self.window = window

    def __init__(
        self,
        title: str,
        *,
        limits: _Range | None = None,
        x_name: str = "step",
        empty: str = "no data yet",
        has_values: bool = True,
        id: str | None = None,  # noqa: A002 - textual's name
    ) -> None:
        super().__init__(title, empty=empty, id=id)
        self.limits = limits
        self.x_name = x_name
        self.window = CurveWindow()
        self.series: tuple[CurveSeries, ...] = ()
        self.marks: tuple[ReferenceMark, ...] = ()
        self.domain: _Range | None = None
        self._has_values = has_values

    def show(
        self,
        series: Sequence[CurveSeries],
        marks: Sequence[ReferenceMark] = (),
        *,
        title: str = "",
        domain: _Range | None = None,
    ) -> None:
        """Replace the curves, the last on top.

        ``domain`` is the first and last x of the panels beside it, if these show more.
        """
        self.series, self.marks = tuple(series), tuple(marks)
        self.title = title or self.title
        self.domain = domain
        self.changed()

    def look(self, window: CurveWindow) -> None:
        """Change the window."""
        if window != self.window:
            self.window = window
            self.changed()

    @property
    def x_range(self) -> _Range | None:
        """First and last x of all points; None without points."""
        ends = [(one.x[0], one.x[-1]) for one in self.series if len(one.x)]
        if not ends:
            return None
        ends += [self.domain] if self.domain is not None else []
        low, high = min(first for first, _ in ends), max(last for _, last in ends)
        return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)

    @property
    def visible_range(self) -> _Range | None:
        """First and last x of the picture."""
        everything = self.x_range
        if everything is None or self.window.zoom is None:
            return everything
        low, high = (float(np.clip(edge, *everything)) for edge in self.window.zoom)
        return (low, high) if high > low else everything

    # -- moves of the window

    def zoomed(self, factor: float, at: float | None = None) -> CurveWindow:
        """Return the window with a range ``factor`` times as wide, around ``at`` or the crosshair."""
        everything, visible = self.x_range, self.visible_range
        if everything is None or visible is None:
            return self.window
        around = at if at is not None else self.window.crosshair
        around = visible[1] if around is None else float(np.clip(around, *visible))
        low = around - (around - visible[0]) * factor
        high = around + (visible[1] - around) * factor
        if high - low >= everything[1] - everything[0]:
            return replace(self.window, zoom=None)
        if high - low < 1e-9 * max(abs(high), 1.0):
            return self.window
        return replace(self.window, zoom=(max(low, everything[0]), min(high, everything[1])))

    def shifted(self, fraction: float) -> CurveWindow:
        """Return the window after a step to the side: of the crosshair, else of the zoomed range."""
        everything, visible = self.x_range, self.visible_range
        if everything is None or visible is None:
            return self.window
        distance = fraction * (visible[1] - visible[0])
        if self.window.crosshair is not None:
            place = float(np.clip(self.window.crosshair + distance / 4, *visible))
            return replace(self.window, crosshair=place)
        distance = float(np.clip(distance, everything[0] - visible[0], everything[1] - visible[1]))
        return replace(self.window, zoom=(visible[0] + distance, visible[1] + distance))

    def with_crosshair(self) -> CurveWindow:
        """Return the window with a crosshair at the right end, or without the one it has."""
        visible = self.visible_range
        has_one = self.window.crosshair is not None or visible is None
        return replace(self.window, crosshair=None if has_one else visible[1])  # type: ignore[index]

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.post_message(self.Moved(self.zoomed(0.8, self._x_at(event.x))))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.post_message(self.Moved(self.zoomed(1.25, self._x_at(event.x))))

    def on_click(self, event: events.Click) -> None:
        place, visible, known = self._x_at(event.x), self.visible_range, self.window.crosshair
        if place is None or visible is None:
            return
        near = (visible[1] - visible[0]) / max(self._plot_size().width, 1)
        is_same = known is not None and abs(known - place) <= near
        self.post_message(self.Moved(replace(self.window, crosshair=None if is_same else place)))

    def _x_at(self, column: int) -> float | None:
        visible, width = self.visible_range, self._plot_size().width
        if visible is None or width < 2:
            return None
        fraction = float(np.clip((column - _TICK_WIDTH) / (width - 1), 0.0, 1.0))
        return visible[0] + fraction * (visible[1] - visible[0])

    # -- drawing

    @property
    def _names_ends(self) -> bool:
        return self.size.width >= _SHORTEST_NAMED and len(self.series) > 1

    def _plot_size(self) -> Size:
        width = self.size.width - _TICK_WIDTH - (_NAME_WIDTH if self._names_ends else 1)
        return Size(max(width, 0), max(self.size.height - 2, 0))

    def draw(self, canvas: Canvas) -> None:
        """Draw bands, marks, crosshair, lines, axes, legend and names."""
        plot, visible = self._plot_size(), self.visible_range
        background = Color.from_rich_color(self.rich_style.bgcolor)
        foreground = Color.from_rich_color(self.rich_style.color)
        faint = Style(color=background.blend(foreground, 0.6).rich_color)
        if plot.width < 4 or plot.height < 2:
            return
        if visible is None:
            self.write_empty(canvas, faint)
            return
        at = np.linspace(*visible, 2 * plot.width)
        width = self.window.smoothed_fraction * (visible[1] - visible[0])
        heights = [self._scaled(one.y) for one in self.series]
        lines = [
            sample_line(one.x, y, at, width if one.is_noisy else 0.0)
            for one, y in zip(self.series, heights, strict=True)
        ]
        bands = [
            column_extremes(one.x, y, visible, 2 * plot.width) if one.is_noisy else None
            for one, y in zip(self.series, heights, strict=True)
        ]
        y_range = self._y_range(lines, bands)
        if y_range is None:
            text = "nothing above 0 to show on a log axis" if self.window.is_log else "no numbers"
            canvas.write(canvas.height // 2, _TICK_WIDTH, text, faint)
            return
        styles = [self.series_style(one.colour) for one in self.series]
        for band, style in zip(bands, styles, strict=True):
            if band is not None:
                dim = background.blend(Color.from_rich_color(style.color), 0.33).rich_color
                dots = draw_range(band, y_range, (4 * plot.height, 2 * plot.width))
                canvas.lay(1, _TICK_WIDTH, dots, Style(color=dim))
        for mark in self.marks:
            height = self._scaled(np.array([mark.y]))[0]
            if math.isfinite(height):
                row = 1 + row_of(height, y_range, plot.height)
                style = self.series_style(mark.colour) + Style(dim=True)
                for column in range(0, plot.width, 3):
                    canvas.put(row, _TICK_WIDTH + column, "╌", style)
        if self.window.crosshair is not None:
            fraction = (self.window.crosshair - visible[0]) / (visible[1] - visible[0])
            if 0 <= fraction <= 1:
                column = _TICK_WIDTH + round(fraction * (plot.width - 1))
                for row in range(plot.height):
                    canvas.put(1 + row, column, "│", faint)
        for line, style in zip(lines, styles, strict=True):
            canvas.lay(1, _TICK_WIDTH, draw_line(line, y_range, 4 * plot.height), style)
        self._draw_axes(canvas, plot, visible, y_range, faint)
        self._draw_legend(canvas, lines, at, styles, faint)
        if self._names_ends:
            self._draw_names(canvas, plot, lines, y_range, styles)

    def _scaled(self, y: _Array) -> _Array:
        if not self.window.is_log:
            return y
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(y > 0, np.log10(y), np.nan)

    def _y_range(self, lines: Sequence[_Array], bands: Sequence[Columns | None]) -> _Range | None:
        has_limits = self.limits is not None and not self.window.is_log
        parts = [*lines, *(edge for band in bands if band is not None for edge in band)]
        if has_limits:
            parts.append(np.array(self.limits))
        parts.append(self._scaled(np.array([mark.y for mark in self.marks], dtype=float)))
        known = np.concatenate([part[np.isfinite(part)] for part in parts])
        if len(known) == 0:
            return None
        low, high = float(known.min()), float(known.max())
        if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
            margin = abs(low) * 0.05 or 0.5
        else:
            margin = 0.0 if has_limits else 0.03 * (high - low)
        return low - margin, high + margin

    def _draw_axes(
        self, canvas: Canvas, plot: Size, visible: _Range, y_range: _Range, style: Style
    ) -> None:
        for tick, label in self._y_ticks(y_range, max(plot.height // 3, 2)):
            row = 1 + row_of(tick, y_range, plot.height)
            canvas.write(row, 0, label[: _TICK_WIDTH - 1].rjust(_TICK_WIDTH - 1), style)
        end, last_row = 0, canvas.height - 1
        for tick in nice_ticks(*visible, max(plot.width // 14, 2)):
            label = short_count(tick)
            fraction = (tick - visible[0]) / (visible[1] - visible[0])
            column = _TICK_WIDTH + round(fraction * (plot.width - 1)) - len(label) // 2
            column = min(column, canvas.width - len(label))
            if column > end or end == 0:
                canvas.write(last_row, column, label, style)
                end = column + len(label)
        if end < _TICK_WIDTH + plot.width - len(self.x_name):
            canvas.write(last_row, canvas.width - len(self.x_name), self.x_name, style)

    def _y_ticks(self, y_range: _Range, n_most: int) -> list[tuple[float, str]]:
        if not self.window.is_log:
            return [(tick, number_text(tick)) for tick in nice_ticks(*y_range, n_most)]
        low, high = (10.0**edge for edge in y_range)
        powers = range(math.floor(y_range[0]), math.ceil(y_range[1]) + 1)
        ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        ticks = [value for value in ticks if low <= value <= high]
        if len(ticks) >= 2:
            ticks = ticks[:: max(math.ceil(len(ticks) / n_most), 1)]
        else:
            ticks = [value for value in nice_ticks(low, high, n_most) if value > 0]
        return [(math.log10(value), number_text(value)) for value in ticks]

    def _draw_legend(
        self, canvas: Canvas, lines: Sequence[_Array], at: _Array, styles: list[Style], faint: Style
    ) -> None:
        column, crosshair = len(self.title) + 2, self.window.crosshair
        if crosshair is not None:
            place = int(np.searchsorted(at, crosshair).clip(0, len(at) - 1))
            text = f"at {self.x_name} {crosshair:,.0f}: "
            canvas.write(0, column, text, faint)
            column += len(text)
            heights = [float(line[place]) for line in lines]
        else:
            heights = [_last(line) for line in lines]
        names = []
        for one, height in zip(self.series, heights, strict=True):
            value = 10.0**height if self.window.is_log else height
            shown = " -" if math.isnan(height) else f" {number_text(value)}"
            has_value = self._has_values or crosshair is not None
            names.append(f"━ {one.name}{shown if has_value else ''}")
        column = canvas.write_legend(column, zip(names, styles, strict=True))
        text = " ".join(["log"] * self.window.is_log + ["zoomed"] * bool(self.window.zoom))
        if column + len(text) <= canvas.width:
            canvas.write(0, canvas.width - len(text), text, faint)

    def _draw_names(
        self,
        canvas: Canvas,
        plot: Size,
        lines: Sequence[_Array],
        y_range: _Range,
        styles: list[Style],
    ) -> None:
        """Write the name of each curve at its right end, one name per row."""
        ends = [
            (row_of(height, y_range, plot.height), one.name, style)
            for line, one, style in zip(lines, self.series, styles, strict=True)
            if not math.isnan(height := _last(line))
        ]
        free = set(range(plot.height))
        for row, name, style in sorted(ends, key=lambda end: end[0]):
            distances = itertools.chain(*((row + n, row - n) for n in range(plot.height)))
            place = next((one for one in distances if one in free), None)
            if place is None:
                return
            free.remove(place)
            column = _TICK_WIDTH + plot.width + 1
            canvas.write(1 + place, column, shortened(name, _NAME_WIDTH - 1), style)


def _last(line: _Array) -> float:
    """Return the last finite value; NaN if there is none."""
    known = line[np.isfinite(line)]
    return float(known[-1]) if len(known) else math.nan
