"""Sizes, time spans, fractions, lists and suggestions in words; and text of strangers made harmless.

Labels, gene names and file names come from other people's files: `visible` is for everything that is
printed or drawn, `as_markdown` for model cards.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from core.errors import MachineError

_HDF5_ERRNO = re.compile(r"errno = (\d+)")
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
#: What a terminal obeys or hides, or XML forbids: control characters, marks of direction, characters
#: without width, line ends other than "\n", halves of surrogate pairs.
_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f"
)
_CONTROLS = re.compile(f"[\t\n{_HIDDEN}]")
_CONTROLS_IN_LINES = re.compile(f"[{_HIDDEN}]")
_MARKDOWN = re.compile(r"[\\`*\[\]<>&|~#]")
#: Most characters of a name in a model card.
_LONGEST_NAME = 200


def size(n_bytes: float) -> str:
    """Write a number of bytes in the unit that fits it: ``1.25 GB``."""
    for unit in _UNITS:
        if n_bytes < 1000 or unit == _UNITS[-1]:
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} {unit}" if unit == "B" or n_bytes >= 100 else f"{n_bytes:.3g} {unit}"


def duration(seconds: float) -> str:
    """Write a time span in the unit that fits it: ``12 s``, ``3 min``, ``1.5 h``, ``2.3 d``."""
    seconds = max(seconds, 0.0)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"


def percentage(part: float, whole: float) -> str:
    """Write a fraction as a percentage that is 0 % or 100 % only where it is exactly so."""
    if not part:
        return "0 %"
    if part == whole:
        return "100 %"
    percent = 100 * part / whole
    if percent < 0.1:
        return "under 0.1 %"
    return f"{min(percent, 99.9):.1f} %" if percent < 10 or percent > 99 else f"{percent:.0f} %"


def listed(names: Sequence[str], *, most: int = 3) -> str:
    """Name the first few, and count the rest."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def files_of(names: Sequence[str]) -> str:
    """Name one file, or count several."""
    return names[0] if len(names) == 1 else f"{len(names):,} files"


def some_of(names: Sequence[str], n_files: int) -> str:
    """Name or count the files concerned, in brackets; "" if these are all `n_files`."""
    return "" if len(names) == n_files else f" ({files_of(names)})"


def visible(text: str, *, lines: bool = False, most: int | None = None) -> str:
    r"""Show control characters as such: ``\x1b``, ``\u202e``; no terminal obeys the result.

    With ``lines`` line ends and tabs stay. A text (with ``lines``: a line) of more than ``most`` characters
    loses its middle.
    """
    if most is not None and len(text) > most:
        if lines and "\n" in text:
            return "\n".join(visible(line, most=most) for line in text.split("\n"))
        left_out = f" … ({len(text) - most:,} characters left out) … "
        text = text[: most - most // 3] + left_out + text[len(text) - most // 3 :]
    return (_CONTROLS_IN_LINES if lines else _CONTROLS).sub(_escape, text)


def without_controls(text: str, width_of: Callable[[str], int]) -> str:
    """Replace control characters by as many spaces as they take cells, so that no column moves."""
    return _CONTROLS.sub(lambda match: " " * width_of(match[0]), text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return {"\t": "\\t", "\n": "\\n", "\r": "\\r"}.get(match[0], f"\\x{code:02x}")
    # As TOML and JSON write them, too.
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def as_markdown(text: str, *, most: int = _LONGEST_NAME) -> str:
    """Write a text so that Markdown shows it as it is: no HTML, link, picture or table."""
    text = visible(text, most=most)
    shown = {"<": "&lt;", "&": "&amp;"}
    return _MARKDOWN.sub(lambda match: shown.get(match[0], f"\\{match[0]}"), text)


def cause(error: BaseException) -> str:
    """Return in a line why a file could not be read or written; HDF5 quotes the system's error in its own."""
    number = _HDF5_ERRNO.search(str(error))
    if number is not None:
        return os.strerror(int(number[1]))
    return getattr(error, "strerror", None) or first_line(error)


@contextmanager
def naming_write_errors(what: str, remedy: str = "") -> Iterator[None]:
    """Turn errors of the disk into a MachineError that says what cannot be written, and why."""
    try:
        yield
    except OSError as error:
        raise MachineError(f"{what} cannot be written ({cause(error)}){remedy}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(name: str, known: Iterable[str], *, n: int = 1, cutoff: float = 0.6) -> str:
    """Write "did you mean 'x'?" with the known names nearest to `name`; "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=n, cutoff=cutoff)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""
