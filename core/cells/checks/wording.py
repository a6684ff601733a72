"""How findings put numbers, names and lists into words."""

from collections.abc import Sequence

__all__ = ["files_of", "listed", "number", "share", "size", "some_of"]

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def listed(names: Sequence[str], *, most: int = 3) -> str:
    """Name the first of many."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def files_of(names: Sequence[str]) -> str:
    """One file by name, several by number."""
    return names[0] if len(names) == 1 else f"{len(names):,} files"


def some_of(names: Sequence[str], n_files: int) -> str:
    """Which of the files, in brackets after a finding; nothing if it is all of them."""
    return "" if len(names) == n_files else f" ({files_of(names)})"


def number(value: float) -> str:
    """Write a whole number with thousands separators."""
    return f"{round(value):,}"


def share(part: float, whole: float) -> str:
    """Write a percentage that is 0 % and 100 % only where it is exactly so."""
    if not part:
        return "0 %"
    if part == whole:
        return "100 %"
    percent = 100 * part / whole
    if percent < 0.1:
        return "under 0.1 %"
    return f"{min(percent, 99.9):.1f} %" if percent < 10 or percent > 99 else f"{percent:.0f} %"


def size(n_bytes: float) -> str:
    """Write a number of bytes in the unit that fits it."""
    for unit in _UNITS:
        if n_bytes < 1000 or unit == _UNITS[-1]:
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} {unit}" if unit == "B" or n_bytes >= 10 else f"{n_bytes:.1f} {unit}"
