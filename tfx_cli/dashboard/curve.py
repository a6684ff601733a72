"""A widget of curves: braille lines over dim bands, axes, names at the ends, crosshair and zoom.

The picture is drawn once per change (size, data, view, theme) and kept; what a redraw costs does not
depend on how many points there are, beyond one pass of numpy over them (`raster`).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from rich.style import Style
from textual import events
from textual.color import Color
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tfx_cli.dashboard.canvas import Canvas, number_text
from tfx_cli.dashboard.raster import (
    column_extremes,
    dots_to_codes,
    draw_line,
    draw_range,
    nice_ticks,
    sample_line,
)
from tfx_cli.dashboard.themes import series_colours
from tfx_cli.formatting import short_count, shortened

__all__ = ["SMOOTHING", "CurveSeries", "CurveView", "CurveWindow", "ReferenceMark"]

#: Shares of the visible range that the moving mean of a curve spans: mean of the points within.
SMOOTHING = (0.0, 0.02, 0.05, 0.15)
_TICK_WIDTH = 7
_SHORTEST_NAMED = 56  # columns from which on curves are named at their ends
_NAME_WIDTH = 13


@dataclass(frozen=True)
class CurveSeries:
    """One curve.

    Attributes
    ----------
    name
        Shown at its end and in the title.
    x, y
        (points,), x ascending; NaN and infinite y are gaps.
    colour
        Place in the theme's colours.
    is_noisy
        Draw the range of its points as a dim band and smooth the line.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    colour: int = 0
    is_noisy: bool = False


@dataclass(frozen=True)
class ReferenceMark:
    """A height to compare with, drawn as a dotted line in the colour of a curve."""

    name: str
    y: float
    colour: int = 0


@dataclass(frozen=True)
class CurveWindow:
    """What part of the curves is seen, and how; shared by the panels of a screen.

    Attributes
    ----------
    is_log
        Logarithmic heights; values of zero and below are gaps.
    smoothing
        Place in `SMOOTHING`.
    zoom
        First and last x; None: everything.
    crosshair
        The x that is read out; None: no crosshair.
    """

    is_log: bool = False
    smoothing: int = 2
    zoom: tuple[float, float] | None = None
    crosshair: float | None = None


@dataclass
class _Picture:
    """The drawn widget: rows of (text, colour) runs."""

    key: object = None
    strips: list[Strip] = field(default_factory=list)


class CurveView(Widget, can_focus=True):
    """Curves of one panel.

    Parameters
    ----------
    title
        Shown in its first row, as it is.
    limits
        Least and most height that are always in the picture (shares: 0 and 1).
    x_name
        Of the axis.
    empty
        Said where there are no curves.
    tells_last
        Whether the last value of each curve stands beside its name in the title.
    """

    DEFAULT_CSS = """
    CurveView { height: 1fr; min-height: 5; background: $surface; color: $foreground; }
    CurveView:focus { background: $panel; }
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
        limits: tuple[float, float] | None = None,
        x_name: str = "step",
        empty: str = "no data yet",
        tells_last: bool = True,
        id: str | None = None,  # noqa: A002 - textual's name
        classes: str | None = None,
    ) -> None:
        super().__init__(id=id, classes=classes)
        self.title = title
        self.limits = limits
        self.x_name = x_name
        self.empty = empty
        self.tells_last = tells_last
        self.window = CurveWindow()
        self.series: tuple[CurveSeries, ...] = ()
        self.marks: tuple[ReferenceMark, ...] = ()
        self.domain: tuple[float, float] | None = None
        self._version = 0
        self._picture = _Picture()

    # -- what to show

    def show(
        self,
        series: Sequence[CurveSeries],
        marks: Sequence[ReferenceMark] = (),
        *,
        title: str = "",
        domain: tuple[float, float] | None = None,
    ) -> None:
        """Replace the curves.

        Parameters
        ----------
        series, marks
            Curves, the last on top; heights to compare with.
        title
            A new one, if any.
        domain
            First and last x, where other panels beside it show more than these curves do.
        """
        self.series, self.marks = tuple(series), tuple(marks)
        self.title = title or self.title
        self.domain = domain
        self._version += 1
        self.refresh()

    def look(self, window: CurveWindow) -> None:
        """Change the window."""
        if window != self.window:
            self.window = window
            self.refresh()

    @property
    def x_range(self) -> tuple[float, float] | None:
        """First and last x of all points; None without points."""
        ends = [(one.x[0], one.x[-1]) for one in self.series if len(one.x)]
        if not ends:
            return None
        ends += [self.domain] if self.domain is not None else []
        low, high = min(first for first, _ in ends), max(last for _, last in ends)
        return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)

    @property
    def visible_range(self) -> tuple[float, float] | None:
        """First and last x of the picture."""
        everything = self.x_range
        if everything is None or self.window.zoom is None:
            return everything
        low, high = (float(np.clip(edge, *everything)) for edge in self.window.zoom)
        return (low, high) if high > low else everything

    # -- moves, which end in a message

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

    def shifted(self, share: float) -> CurveWindow:
        """Return the window after a step to the side: of the crosshair, else of the zoomed range."""
        everything, visible = self.x_range, self.visible_range
        if everything is None or visible is None:
            return self.window
        distance = share * (visible[1] - visible[0])
        if self.window.crosshair is not None:
            place = float(np.clip(self.window.crosshair + distance / 4, *visible))
            return replace(self.window, crosshair=place)
        distance = float(np.clip(distance, everything[0] - visible[0], everything[1] - visible[1]))
        return replace(self.window, zoom=(visible[0] + distance, visible[1] + distance))

    def with_crosshair(self) -> CurveWindow:
        """Return the window with the crosshair switched on, at the right end, or off."""
        visible = self.visible_range
        if self.window.crosshair is not None or visible is None:
            return replace(self.window, crosshair=None)
        return replace(self.window, crosshair=visible[1])

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Zoom in around the mouse."""
        event.stop()
        self.post_message(self.Moved(self.zoomed(0.8, self._x_at(event.x))))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Zoom out."""
        event.stop()
        self.post_message(self.Moved(self.zoomed(1.25, self._x_at(event.x))))

    def on_click(self, event: events.Click) -> None:
        """Put the crosshair where the mouse is; a click on it takes it away."""
        place = self._x_at(event.x)
        visible = self.visible_range
        if place is None or visible is None:
            return
        near = (visible[1] - visible[0]) / max(self._plot_size().width, 1)
        known = self.window.crosshair
        is_same = known is not None and abs(known - place) <= near
        self.post_message(self.Moved(replace(self.window, crosshair=None if is_same else place)))

    def _x_at(self, column: int) -> float | None:
        visible = self.visible_range
        width = self._plot_size().width
        if visible is None or width < 2:
            return None
        share = (column - _TICK_WIDTH) / (width - 1)
        return visible[0] + float(np.clip(share, 0.0, 1.0)) * (visible[1] - visible[0])

    # -- drawing

    def render_line(self, y: int) -> Strip:
        """Return one row of the picture, drawing it first where something changed."""
        key = (self.size, self._version, self.window, self.app.theme, self.has_focus, self.title)
        if self._picture.key != key:
            # Not the size it was built for: a draw before the first resize must not be kept.
            self._picture = _Picture(key, self._draw())
        strips = self._picture.strips
        base = self.rich_style
        return strips[y] if y < len(strips) else Strip.blank(self.size.width, base)

    def _plot_size(self) -> Size:
        is_named = self.size.width >= _SHORTEST_NAMED and len(self.series) > 1
        width = self.size.width - _TICK_WIDTH - (_NAME_WIDTH if is_named else 1)
        return Size(max(width, 0), max(self.size.height - 2, 0))

    def _draw(self) -> list[Strip]:
        width, height = self.size
        plot = self._plot_size()
        canvas = Canvas(width, height, self.rich_style)
        colours = [Color.parse(one).rich_color for one in series_colours(self.app.theme)]
        styles = [Style(color=colour) for colour in colours]
        quiet = Style(color=self._faint().rich_color)
        canvas.write(0, 0, self.title, Style(bold=True))
        visible = self.visible_range
        if plot.width < 4 or plot.height < 2:
            return canvas.strips()
        if visible is None:
            canvas.write(height // 2, max((width - len(self.empty)) // 2, 0), self.empty, quiet)
            return canvas.strips()

        at = np.linspace(*visible, 2 * plot.width)
        share = SMOOTHING[self.window.smoothing % len(SMOOTHING)]
        window = share * (visible[1] - visible[0])
        lines = [
            sample_line(one.x, self._scaled(one.y), at, window if one.is_noisy else 0.0)
            for one in self.series
        ]
        bands = [
            column_extremes(one.x, self._scaled(one.y), visible, 2 * plot.width)
            if one.is_noisy
            else None
            for one in self.series
        ]
        y_range = self._y_range(lines, bands)
        if y_range is None:
            text = "nothing above 0 to show on a log axis" if self.window.is_log else "no numbers"
            canvas.write(height // 2, _TICK_WIDTH, text, quiet)
            return canvas.strips()

        shape = (4 * plot.height, 2 * plot.width)
        for band, one in zip(bands, self.series, strict=True):
            if band is not None:
                codes = dots_to_codes(draw_range(band, y_range, shape))
                canvas.lay(1, _TICK_WIDTH, codes, self._dimmed(colours[one.colour % len(colours)]))
        self._draw_marks(canvas, plot, y_range, styles)
        if self.window.crosshair is not None:
            self._draw_crosshair(canvas, plot, visible, quiet)
        for line, one in zip(lines, self.series, strict=True):
            codes = dots_to_codes(draw_line(line, y_range, shape[0]))
            canvas.lay(1, _TICK_WIDTH, codes, styles[one.colour % len(styles)])
        self._draw_axes(canvas, plot, visible, y_range, quiet)
        self._draw_legend(canvas, lines, at, styles, quiet)
        if self.size.width >= _SHORTEST_NAMED and len(self.series) > 1:
            self._draw_names(canvas, plot, lines, y_range, styles)
        return canvas.strips()

    def _scaled(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self.window.is_log:
            return y
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(y > 0, np.log10(y), np.nan)

    def _y_range(
        self, lines: Sequence[NDArray[np.float64]], bands: Sequence[object]
    ) -> tuple[float, float] | None:
        parts = list(lines)
        for band in bands:
            if band is not None:
                parts += [band.low, band.high]  # type: ignore[attr-defined]
        if self.limits is not None and not self.window.is_log:
            parts.append(np.array(self.limits))
        parts.append(self._scaled(np.array([mark.y for mark in self.marks], dtype=float)))
        known = np.concatenate([part[np.isfinite(part)] for part in parts])
        if len(known) == 0:
            return None
        low, high = float(known.min()), float(known.max())
        if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
            margin = abs(low) * 0.05 or 0.5
            return low - margin, high + margin
        margin = 0.0 if self.limits is not None and not self.window.is_log else 0.03 * (high - low)
        return low - margin, high + margin

    def _draw_marks(
        self, canvas: "Canvas", plot: Size, y_range: tuple[float, float], styles: list[Style]
    ) -> None:
        for mark in self.marks:
            height = self._scaled(np.array([mark.y]))[0]
            if not math.isfinite(height):
                continue
            row = _row_of(height, y_range, plot.height)
            style = styles[mark.colour % len(styles)] + Style(dim=True)
            for column in range(0, plot.width, 3):
                canvas.put(1 + row, _TICK_WIDTH + column, "╌", style)

    def _draw_crosshair(
        self, canvas: "Canvas", plot: Size, visible: tuple[float, float], style: Style
    ) -> None:
        assert self.window.crosshair is not None
        share = (self.window.crosshair - visible[0]) / (visible[1] - visible[0])
        if 0 <= share <= 1:
            column = _TICK_WIDTH + round(share * (plot.width - 1))
            for row in range(plot.height):
                canvas.put(1 + row, column, "│", style)

    def _draw_axes(
        self,
        canvas: "Canvas",
        plot: Size,
        visible: tuple[float, float],
        y_range: tuple[float, float],
        style: Style,
    ) -> None:
        for tick, label in self._y_ticks(y_range, max(plot.height // 3, 2)):
            row = _row_of(tick, y_range, plot.height)
            canvas.write(1 + row, 0, label[: _TICK_WIDTH - 1].rjust(_TICK_WIDTH - 1), style)
        end = 0
        for tick in nice_ticks(*visible, max(plot.width // 14, 2)):
            label = short_count(tick)
            share = (tick - visible[0]) / (visible[1] - visible[0])
            column = _TICK_WIDTH + round(share * (plot.width - 1)) - len(label) // 2
            column = min(column, self.size.width - len(label))
            if column > end or end == 0:
                canvas.write(self.size.height - 1, column, label, style)
                end = column + len(label)
        if end < _TICK_WIDTH + plot.width - len(self.x_name):
            canvas.write(
                self.size.height - 1, self.size.width - len(self.x_name), self.x_name, style
            )

    def _y_ticks(self, y_range: tuple[float, float], n_most: int) -> list[tuple[float, str]]:
        if self.window.is_log:
            low, high = (10.0**edge for edge in y_range)
            powers = [
                factor * 10.0**power
                for power in range(math.floor(y_range[0]), math.ceil(y_range[1]) + 1)
                for factor in (1, 2, 5)
            ]
            within = [value for value in powers if low <= value <= high]
            if len(within) >= 2:
                kept = within[:: max(math.ceil(len(within) / n_most), 1)]
                return [(math.log10(value), number_text(value)) for value in kept]
            ticks = nice_ticks(low, high, n_most)
            return [(math.log10(value), number_text(value)) for value in ticks if value > 0]
        return [(tick, number_text(tick)) for tick in nice_ticks(*y_range, n_most)]

    def _draw_legend(
        self,
        canvas: "Canvas",
        lines: Sequence[NDArray[np.float64]],
        at: NDArray[np.float64],
        styles: list[Style],
        quiet: Style,
    ) -> None:
        column = len(self.title) + 2
        if self.window.crosshair is not None:
            place = int(np.searchsorted(at, self.window.crosshair).clip(0, len(at) - 1))
            text = f"at {self.x_name} {self.window.crosshair:,.0f}: "
            canvas.write(0, column, text, quiet)
            column += len(text)
            heights = [line[place] for line in lines]
        else:
            heights = [
                line[np.isfinite(line)][-1] if np.isfinite(line).any() else np.nan for line in lines
            ]
        for one, height in zip(self.series, heights, strict=True):
            value = 10.0**height if self.window.is_log else height
            shown = " -" if math.isnan(height) else f" {number_text(value)}"
            is_told = self.tells_last or self.window.crosshair is not None
            text = f"━ {one.name}{shown if is_told else ''}"
            if column + len(text) > self.size.width:
                break
            canvas.write(0, column, text, styles[one.colour % len(styles)])
            column += len(text) + 2
        settings = [
            *(["log"] if self.window.is_log else []),
            *(["zoomed"] if self.window.zoom is not None else []),
        ]
        text = " ".join(settings)
        if text and column + len(text) <= self.size.width:
            canvas.write(0, self.size.width - len(text), text, quiet)

    def _draw_names(
        self,
        canvas: "Canvas",
        plot: Size,
        lines: Sequence[NDArray[np.float64]],
        y_range: tuple[float, float],
        styles: list[Style],
    ) -> None:
        """Name each curve at its right end, one name per row."""
        ends = []
        for line, one in zip(lines, self.series, strict=True):
            known = line[np.isfinite(line)]
            if len(known):
                ends.append((_row_of(float(known[-1]), y_range, plot.height), one))
        taken: set[int] = set()
        for row, one in sorted(ends, key=lambda pair: pair[0]):
            places = itertools.chain(
                *((row + distance, row - distance) for distance in range(plot.height))
            )
            free = next((p for p in places if 0 <= p < plot.height and p not in taken), None)
            if free is None:
                return
            taken.add(free)
            name = shortened(one.name, _NAME_WIDTH - 1)
            canvas.write(
                1 + free, _TICK_WIDTH + plot.width + 1, name, styles[one.colour % len(styles)]
            )

    def _faint(self) -> Color:
        background = Color.from_rich_color(self.rich_style.bgcolor)
        foreground = Color.from_rich_color(self.rich_style.color)
        return background.blend(foreground, 0.6)

    def _dimmed(self, colour: object) -> Style:
        background = Color.from_rich_color(self.rich_style.bgcolor)
        blended = background.blend(Color.from_rich_color(colour), 0.33)
        return Style(color=blended.rich_color)


def _row_of(height: float, y_range: tuple[float, float], n_rows: int) -> int:
    share = (y_range[1] - height) / (y_range[1] - y_range[0])
    return int(np.clip(math.floor(share * (n_rows - 0.001)), 0, n_rows - 1))
