"""Numbers as people read them: times, counts, metrics with their unit."""

import time

from core.runlog.schema import metric_info

__all__ = ["ago", "date", "duration", "metric_value", "short_count"]

_COUNT_UNITS = ("", "k", "M", "G", "T")


def short_count(value: float) -> str:
    """Write a number in three digits: ``50.4k``."""
    for unit in _COUNT_UNITS:
        if abs(value) < 999.5 or unit == _COUNT_UNITS[-1]:
            break
        value /= 1000
    return f"{value:.3g}{unit}"


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


def ago(moment: float | None, *, now: float) -> str:
    """Write how long ago something was; nothing for None."""
    return "" if moment is None else f"{duration(now - moment)} ago"


def date(moment: float | None) -> str:
    """Write a moment in local time: ``2026-01-31 12:00:00``; nothing where it is none."""
    if moment is None:
        return ""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    except (ValueError, OverflowError, OSError):
        return ""


def metric_value(name: str, value: object) -> str:
    """Write the value of a metric in its own format; what is no number as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return format(value, metric_info(name).number_format)
