"""Curves of one panel: braille on axes, with a legend, names at the ends, crosshair and zoom."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.style import Style
from textual import events
from textual.color import Color
from textual.geometry import Size
from textual.message import Message

from tfx_cli.dashboard.canvas import (
    Array,
    Canvas,
    Columns,
    Range,
    column_extremes,
    column_of,
    draw_line,
    draw_range,
    row_of,
    sample_line,
)
from tfx_cli.dashboard.picture import (
    TICK_WIDTH,
    Picture,
    Series,
    labelled_ticks,
    write_x_ticks,
    write_y_ticks,
)
from tfx_cli.formatting import legend_text, number_text, shortened

#: Fractions of the visible range over which a moving mean smooths a curve.
SMOOTHING = (0.0, 0.02, 0.05, 0.15)
_SHORTEST_NAMED = 56  # columns from which on curves are named at their ends
_NAME_WIDTH = 14  # with the leader from the end of the curve
_LONGEST_NAME = 24  # in a legend
#: Characters of a leader by the directions in which it goes: up, down, left, right.
_LEADERS = dict(zip(itertools.product((0, 1), repeat=4), " ╶╴─╷┌┐┬╵└┘┴│├┤┼", strict=True))


@dataclass(frozen=True)
class ReferenceMark:
    """A value to compare with, drawn as a dotted line in the colour of a curve."""

    name: str
    y: float
    colour: int = 0


@dataclass(frozen=True)
class EventMark:
    """An event at a place of the x axis, drawn as a sign of one column in the first row of the plot."""

    x: float
    sign: str


@dataclass(frozen=True)
class CurveWindow:
    """The visible part of the curves, shared by the panels of a screen."""

    #: Logarithmic heights; values of zero and below are gaps.
    is_log: bool = False
    #: Place in `SMOOTHING`.
    smoothing: int = 2
    #: First and last x; None: everything.
    zoom: Range | None = None
    #: The x whose values are shown; None: no crosshair.
    crosshair: float | None = None

    @property
    def smoothed_fraction(self) -> float:
        """The fraction of the visible range that a mean spans."""
        return SMOOTHING[self.smoothing]


@dataclass(frozen=True)
class _Plot:
    """What a drawing of curves shares: the place of the plot, its ranges, the curves as lines."""

    size: Size
    #: The first row.
    top: int
    x_range: Range
    y_range: Range
    #: Series, (columns of dots,) heights, style.
    lines: Sequence[tuple[Series, Array, Style]]
    faint: Style

    def row(self, height: float) -> int:
        return self.top + row_of(height, self.y_range, self.size.height)

    def column(self, x: float) -> int:
        return TICK_WIDTH + column_of(x, self.x_range, self.size.width)


class CurveView(Picture, can_focus=True):
    """Curves of one panel.

    ``limits`` are heights that are always visible (accuracies: 0 and 1); without ``has_values`` the
    legend lacks the last value of each curve.
    """

    @dataclass
    class Moved(Message):
        """The user moved the window of a panel; its screen moves the others along."""

        window: CurveWindow

    def __init__(
        self,
        title: str,
        *,
        limits: Range | None = None,
        x_name: str = "step",
        empty: str = "no data yet",
        has_values: bool = True,
        id: str | None = None,  # noqa: A002 - textual's name
    ) -> None:
        super().__init__(title, empty=empty, id=id)
        self.limits = limits
        self.x_name = x_name
        self.window = CurveWindow()
        self.series: tuple[Series, ...] = ()
        self.marks: tuple[ReferenceMark, ...] = ()
        self.events: tuple[EventMark, ...] = ()
        self.domain: Range | None = None
        self._has_values = has_values

    def show(
        self,
        series: Sequence[Series],
        marks: Sequence[ReferenceMark] = (),
        *,
        title: str = "",
        domain: Range | None = None,
        window: CurveWindow | None = None,
        events: Sequence[EventMark] = (),
        x_name: str | None = None,
    ) -> None:
        """Replace the curves, the last on top, and the window and the name of the x axis, if given.

        ``domain`` is the first and last x of the panels beside it, if these show more.
        """
        self.series, self.marks, self.events = tuple(series), tuple(marks), tuple(events)
        self.x_name = self.x_name if x_name is None else x_name
        self.title = title or self.title
        self.domain = domain
        self.window = window or self.window
        self.changed()

    @property
    def x_range(self) -> Range | None:
        """First and last x of all points, from 0 on where all are one; None without points."""
        ends = [(one.x[0], one.x[-1]) for one in self.series if len(one.x)]
        if not ends:
            return None
        ends += [self.domain] if self.domain is not None else []
        low, high = float(min(ends)[0]), float(max(last for _, last in ends))
        return (low, high) if high > low else (min(low, 0.0), max(high, 1.0))

    @property
    def visible_range(self) -> Range | None:
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
        low, high = (around + (edge - around) * factor for edge in visible)
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
        if visible is None or self.window.crosshair is not None:
            return replace(self.window, crosshair=None)
        return replace(self.window, crosshair=visible[1])

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
        near = (visible[1] - visible[0]) / self._plot_width
        is_same = known is not None and abs(known - place) <= near
        self.post_message(self.Moved(replace(self.window, crosshair=None if is_same else place)))

    def _x_at(self, column: int) -> float | None:
        visible, width = self.visible_range, self._plot_width
        if visible is None or width < 2:
            return None
        fraction = float(np.clip((column - TICK_WIDTH) / (width - 1), 0.0, 1.0))
        return visible[0] + fraction * (visible[1] - visible[0])

    # -- drawing
    @property
    def _names_ends(self) -> bool:
        return self.size.width >= _SHORTEST_NAMED and len(self.series) > 1

    @property
    def _plot_width(self) -> int:
        width = self.size.width - TICK_WIDTH - (_NAME_WIDTH if self._names_ends else 1)
        return max(width, 0)

    def draw(self, canvas: Canvas) -> None:
        width, visible = self._plot_width, self.visible_range
        background = Color.from_rich_color(self.rich_style.bgcolor)
        faint = self.faint
        if width < 4 or self.size.height < 4:
            return
        if visible is None:
            self.write_empty(canvas, faint)
            return
        n_columns = 2 * width
        at = np.linspace(*visible, n_columns)
        smoothed = self.window.smoothed_fraction * (visible[1] - visible[0])
        lines, bands = [], []
        for one in self.series:
            y, style = self._scaled(one.y), self.series_style(one.colour)
            heights = sample_line(one.x, y, at, smoothed if one.is_noisy else 0.0)
            lines.append((one, heights, style))
            if one.is_noisy:
                dim = background.blend(Color.from_rich_color(style.color), 0.33).rich_color
                band = column_extremes(one.x, y, visible, n_columns)
                bands.append((band, Style(color=dim)))
        y_range = self._y_range([line for _, line, _ in lines], [band for band, _ in bands])
        if y_range is None:
            text = "nothing above 0 to show on a log axis" if self.window.is_log else "no numbers"
            canvas.write(canvas.height // 2, TICK_WIDTH, text, faint)
            return
        top = self._draw_legend(canvas, lines, at, faint)
        size = Size(width, self.size.height - top - 1)
        plot, n_rows = _Plot(size, top, visible, y_range, lines, faint), 4 * size.height
        for band, style in bands:
            canvas.lay(top, TICK_WIDTH, draw_range(band, y_range, n_rows), style)
        heights_of_marks = self._scaled(np.array([mark.y for mark in self.marks], dtype=float))
        marks = [
            (mark, plot.row(height))
            for mark, height in zip(self.marks, heights_of_marks, strict=True)
            if math.isfinite(height)
        ]
        for mark, row in marks:
            style = self.series_style(mark.colour)
            for column in range(0, width, 3):
                canvas.write(row, TICK_WIDTH + column, "╌", style)
        crosshair = self.window.crosshair
        if crosshair is not None and visible[0] <= crosshair <= visible[1]:
            for row in range(size.height):
                canvas.write(top + row, plot.column(crosshair), "│", faint)
        for one, line, style in lines:
            dots, (dash, _) = draw_line(line, y_range, n_rows), self.dashes(one.colour)
            if dash:
                dots &= np.resize([dot == "#" for dot in dash], n_columns)
            canvas.lay(top, TICK_WIDTH, dots, style)
        for mark, row in marks:  # over the curves, or it could not be read
            text = shortened(f" {mark.name} {number_text(mark.y)} ", width)
            canvas.write(row, TICK_WIDTH + 1, text, faint)
        for event in self.events:
            if visible[0] <= event.x <= visible[1]:
                canvas.write(top, plot.column(event.x), event.sign, faint)
        ticks = self._y_ticks(y_range, max(size.height // 3, 2))
        write_y_ticks(canvas, ticks, y_range, TICK_WIDTH, faint, top)
        write_x_ticks(canvas, visible, TICK_WIDTH, width, self.x_name, faint)
        if self._names_ends:
            self._draw_names(canvas, plot)

    def _scaled(self, y: Array) -> Array:
        if not self.window.is_log:
            return y
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(y > 0, np.log10(y), np.nan)

    def _y_range(self, lines: Sequence[Array], bands: Sequence[Columns]) -> Range | None:
        limits = None if self.window.is_log else self.limits
        marks = self._scaled(np.array([mark.y for mark in self.marks], dtype=float))
        known = np.concatenate([*lines, *itertools.chain(*bands), limits or (), marks])
        known = known[np.isfinite(known)]
        if len(known) == 0:
            return None
        low, high = float(known.min()), float(known.max())
        if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
            margin = abs(low) * 0.05 or 0.5
        else:
            margin = 0.0 if limits else 0.03 * (high - low)
        return low - margin, high + margin

    def _y_ticks(self, y_range: Range, n_most: int) -> list[tuple[float, str]]:
        if not self.window.is_log:
            return labelled_ticks(*y_range, n_most, TICK_WIDTH - 1)
        low, high = (10.0**edge for edge in y_range)
        powers = range(math.floor(y_range[0]), math.ceil(y_range[1]) + 1)
        ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        ticks = [value for value in ticks if low <= value <= high]
        if len(ticks) >= 2:
            ticks = ticks[:: max(math.ceil(len(ticks) / n_most), 1)]
            return [(math.log10(value), number_text(value)) for value in ticks]
        linear = labelled_ticks(low, high, n_most, TICK_WIDTH - 1)
        return [(math.log10(value), label) for value, label in linear if value > 0]

    def _draw_legend(
        self, canvas: Canvas, lines: Sequence[tuple[Series, Array, Style]], at: Array, faint: Style
    ) -> int:
        """Write a sign, the name and a value of every curve; return the first row below.

        The values are the last ones, or those at the crosshair. What does not fit beside the title
        becomes a table below it.
        """
        crosshair = self.window.crosshair
        state = " ".join(["log"] * self.window.is_log + ["zoomed"] * bool(self.window.zoom))
        canvas.write(0, canvas.width - len(state), state, faint)
        column = len(self.title) + 2
        if crosshair is not None:
            text = f"at {self.x_name} {crosshair:,.{2 if self.x_name == 'hours' else 0}f}: "
            canvas.write(0, column, text, faint)
            column += len(text)
        entries = []
        for one, line, style in lines:
            height = _last(line)
            if crosshair is not None:
                height = float(line[np.searchsorted(at, crosshair).clip(0, len(at) - 1)])
            value = 10.0**height if self.window.is_log else height
            shown = " -" if math.isnan(height) else f" {legend_text(value)}"
            has_value = self._has_values or crosshair is not None
            name = f"{self.dashes(one.colour)[1]} {shortened(one.name, _LONGEST_NAME)}"
            entries.append((name, shown if has_value else "", style))
        if column + sum(len(name + value) + 2 for name, value, _ in entries) <= canvas.width - len(
            state
        ):
            canvas.write_legend(column, [(name + value, style) for name, value, style in entries])
            return 1
        longest = (
            max(len(name) for name, _, _ in entries),
            max(len(value) for _, value, _ in entries),
        )
        n_columns = max((canvas.width + 2) // (sum(longest) + 2), 1)
        n_rows = min(-(-len(entries) // n_columns), max(canvas.height // 3, 1))
        for place, (name, value, style) in enumerate(entries[: n_rows * n_columns]):
            row, left = 1 + place // n_columns, place % n_columns * (sum(longest) + 2)
            text = name.ljust(longest[0]) + value.rjust(longest[1])
            n_more = len(entries) - n_rows * n_columns
            if n_more > 0 and place == n_rows * n_columns - 1:
                text, style = f"and {n_more + 1} more", faint
            canvas.write(row, left, text, style)
        return 1 + n_rows

    def _draw_names(self, canvas: Canvas, plot: _Plot) -> None:
        """Write the names of the curves right of their ends, in the order of these, with leaders."""
        ends = [
            (height, plot.row(height), one.name, style)
            for one, line, style in plot.lines
            if not math.isnan(height := _last(line))
        ]
        ends.sort(key=lambda end: -end[0])
        ends = ends[: plot.size.height]
        places: list[int] = []
        for _, row, _, _ in ends:
            places.append(max(row, places[-1] + 1 if places else plot.top))
        last = plot.top + plot.size.height
        for n in reversed(range(len(places))):
            last = places[n] = min(places[n], last - 1)
        column = TICK_WIDTH + plot.size.width
        arms: dict[int, list[int]] = {}  # row -> whether a leader goes up, down, left, right
        for place, (_, row, name, style) in zip(places, ends, strict=True):
            for at in range(min(place, row), max(place, row) + 1):
                arm = arms.setdefault(at, [0, 0, 0, 0])
                arm[0] |= at > min(place, row)
                arm[1] |= at < max(place, row)
                arm[2] |= at == row
                arm[3] |= at == place
            canvas.write(place, column + 1, shortened(name, _NAME_WIDTH - 1), style)
        for row, arm in arms.items():
            canvas.write(row, column, _LEADERS[tuple(map(int, arm))], plot.faint)


def _last(line: Array) -> float:
    """Return the last finite value; NaN if there is none."""
    known = line[np.isfinite(line)]
    return float(known[-1]) if len(known) else math.nan
