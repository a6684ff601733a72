"""Characters and styles of a picture, written in any order and turned into textual's strips."""

import itertools

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tfx_cli.dashboard.raster import BLANK
from tfx_cli.formatting import short_count

__all__ = ["Canvas", "number_text"]


def number_text(value: float) -> str:
    """Write a figure in six characters or so: 50.4k, 1.33, 0.0021, 2e-05."""
    size = abs(value)
    if size >= 1000:
        return short_count(value)
    return "0" if size < 1e-300 else f"{value:.3g}"


class Canvas:
    """A picture of characters; what comes later covers.

    Parameters
    ----------
    width, height
        In cells.
    base
        Style of what is not written.
    """

    def __init__(self, width: int, height: int, base: Style) -> None:
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
        """Set one character; what lies outside is left out."""
        if 0 <= row < self._text.shape[0] and 0 <= column < self._text.shape[1]:
            self._text[row, column] = ord(character)
            self._style[row, column] = self._number_of(style)

    def write(self, row: int, column: int, text: str, style: Style) -> None:
        """Write text to the right of a place."""
        for place, character in enumerate(text, start=column):
            # A name may hold anything; what is not one cell wide would shift the rest of the row.
            self.put(row, place, character if cell_len(character) == 1 else "?", style)

    def lay(self, row: int, column: int, codes: NDArray[np.uint16], style: Style) -> None:
        """Lay a picture of braille over what is there, where it has dots."""
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
