"""Sizes, time spans, fractions, lists and suggestions in words, for messages and reports."""

import difflib
from collections.abc import Iterable, Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(name: str, known: Iterable[str], *, n: int = 1, cutoff: float = 0.6) -> str:
    """Write "did you mean 'x'?" with the known names nearest to `name`; "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=n, cutoff=cutoff)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""
