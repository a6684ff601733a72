"""Pictures of characters: a canvas that is written in any order, and a widget that draws on one."""

import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.strip import Strip
from textual.widget import Widget

from tfx_cli.dashboard.raster import BLANK, dots_to_codes
from tfx_cli.dashboard.themes import series_colours


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

    def put(self, row: int, column: int, character: str, style: Style) -> None:
        """Set one character; places outside are ignored."""
        if 0 <= row < self.height and 0 <= column < self.width:
            self._text[row, column] = ord(character)
            self._style[row, column] = self._number_of(style)

    def write(self, row: int, column: int, text: str, style: Style) -> None:
        """Write text to the right of a place."""
        for place, character in enumerate(text, start=column):
            # A name may hold anything; a character of two cells would shift the rest of the row.
            self.put(row, place, character if cell_len(character) == 1 else "?", style)

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
        """Return the rows."""
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


class Picture(Widget):
    """A widget that draws itself once per change (size, data, theme, focus) and keeps the rows.

    Subclasses draw in `draw`, and call `changed` when what they show has changed.
    """

    def __init__(self, title: str, *, empty: str, id: str | None) -> None:  # noqa: A002 - textual's
        super().__init__(id=id)
        self.title = title
        self.empty = empty
        self._version = 0
        self._drawn: tuple[object, list[Strip]] = (None, [])

    def changed(self) -> None:
        """Draw again."""
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

    def series_style(self, place: int) -> Style:
        """Return the style of a place in the theme's colours."""
        colours = series_colours(self.app.theme)
        return Style(color=Color.parse(colours[place % len(colours)]).rich_color)
