"""Values as people read them: times, counts, metrics, machines, a curve in one line."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.runlog.json_lines import number_in
from core.runlog.schema import metric_info
from core.wording import duration, size

_COUNT_UNITS = ("", "k", "M", "G", "T")
_BLOCKS = "▁▂▃▄▅▆▇█"
#: accelerate's name of a precision -> ours.
PRECISIONS = {"no": "fp32"}
#: Verdict of a forecast of a run, in words.
FORECAST_VERDICTS = {
    "ok": "memory and disk suffice",
    "tight": "memory or disk is tight",
    "too much": "this does not fit",
}


def shortened(text: str, width: int) -> str:
    """Cut a text that is longer than ``width`` characters; an ellipsis marks the cut."""
    return text if len(text) <= width else text[: width - 1] + "…"


def shortened_middle(text: str, width: int) -> str:
    """Cut a text that is longer than ``width`` characters in its middle: both ends tell runs apart."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def column_groups(widths: Sequence[int], n_labels: int, *, room: int, gap: int) -> list[list[int]]:
    """Part the columns of a wide table, after its labels, into groups that fit into a room beside the labels."""
    groups: list[list[int]] = []
    for column in range(n_labels, len(widths)):
        used = [*range(n_labels), *(groups[-1] if groups else ()), column]
        if not groups or sum(widths[one] + gap for one in used) > room + gap:
            groups.append([])
        groups[-1].append(column)
    return groups


def count_of(number: int, noun: str) -> str:
    """Write a number with its noun: ``1 file``, ``1,200 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short_count(value: float) -> str:
    """Write a number in three digits: ``50.4k``."""
    for unit in _COUNT_UNITS:
        if abs(value) < 999.5 or unit == _COUNT_UNITS[-1]:
            break
        value /= 1000
    return f"{value:.3g}{unit}"


def number_text(value: float) -> str:
    """Write a number in about six characters: 50.4k, 1.33, 0.0021, 2e-05."""
    if abs(value) >= 1000:
        return short_count(value)
    return "0" if abs(value) < 1e-300 else f"{value:.3g}"


def legend_text(value: float) -> str:
    """Write a number like `number_text`, with three digits, so that its width stays while it changes: 1.30."""
    if not 0.001 <= abs(value) < 999.5:
        return number_text(value)
    return f"{value:#.3g}".rstrip(".")


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Write ascending numbers with the digits that tell them apart: 1.36, 1.38; 2.05e-5; 12.5k."""
    largest = max(map(abs, ticks), default=0.0)
    gaps = [right - left for left, right in itertools.pairwise(ticks)]
    distance = min(gaps, default=largest) or 1.0
    scale, unit = 1.0, ""
    if 0 < largest < 1e-3:
        exponent = math.floor(math.log10(largest))
        scale, unit = 10.0**exponent, f"e{exponent}"
    elif distance * 1000 >= largest >= 10_000:  # else a unit only moves the digits behind a point
        power = min(int(math.log10(largest)) // 3, len(_COUNT_UNITS) - 1)
        scale, unit = 1000.0**power, _COUNT_UNITS[power]
    decimals = min(max(math.ceil(-math.log10(distance / scale) - 1e-9), 0), 15)
    texts = [f"{tick / scale:.{decimals}f}" for tick in ticks]
    return ["0" if float(text) == 0 else text + unit for text in texts]


def ago(moment: float | None, *, now: float) -> str:
    """Write how long ago a moment was; nothing for None."""
    return "" if moment is None else f"{duration(now - moment)} ago"


def date(moment: float | None) -> str:
    """Write a moment in local time: ``2026-01-31 12:00:00``; nothing for None or a wrong number."""
    if moment is None:
        return ""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    except (ValueError, OverflowError, OSError):
        return ""


def metric_value(name: str, value: object) -> str:
    """Write the value of a metric in its own format; anything but a number as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return format(value, metric_info(name).number_format)


def progress_of(step: int | None, total: int | None, *, short: bool = False) -> str:
    """Write the step of a run and, where it is known, the last one: ``50.4k/100k``, ``3 of 10``."""
    if step is None:
        return ""
    if short:
        return short_count(step) + (f"/{short_count(total)}" if total else "")
    return f"{step:,}" + (f" of {total:,}" if total is not None else "")


# -- machines
def machine_text(line: Mapping[str, Any]) -> str:
    """Write a line of system-HOST.jsonl without what it lacks."""
    return _known(
        line,
        {
            "cpu_percent": "CPU {:.0f} %".format,
            "process_cpu_percent": "this process {:.0f} % of one core".format,
            "process_memory": lambda used: _memory(used, line),
            "disk_free": lambda free: f"{size(free)} of disk free",
        },
    )


def gpus_of(line: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the name and the state of every GPU in a line of system-HOST.jsonl."""
    gpus = line.get("gpus")
    known = [gpu for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []
    return [(f"GPU {gpu.get('index', '')}", _gpu_text(gpu)) for gpu in known]


def _gpu_text(gpu: Mapping[str, Any]) -> str:
    state = _known(
        gpu,
        {
            "utilisation_percent": "{:.0f} % in use".format,
            "memory_used": lambda used: _memory(used, gpu),
            "memory_peak": lambda peak: f"at most {size(peak)} by this run",
            "temperature": "{:.0f} °C".format,
            "power": "{:.0f} W".format,
        },
    )
    return ", ".join(filter(None, [str(gpu.get("name") or ""), state]))


def _known(line: Mapping[str, Any], texts: Mapping[str, Callable[[float], str]]) -> str:
    known = {key: value for key in texts if (value := number_in(line, key)) is not None}
    return ", ".join(texts[key](value) for key, value in known.items())


def _memory(used: float, line: Mapping[str, Any]) -> str:
    total = number_in(line, "memory_total")
    return f"{size(used)} of memory" + (f" ({size(total)})" if total else "")


# -- curves
def curve_text(values: Sequence[float | None], *, width: int = 60) -> str:
    """Draw values as one line of blocks, low to high; values that are not finite are gaps.

    More than ``width`` values are averaged in groups of equal size.
    """
    finite = [None if value is None or not math.isfinite(value) else value for value in values]
    largest = max((abs(value) for value in finite if value is not None), default=None)
    if largest is None:
        return ""
    # Between -1 and 1, where sums and differences cannot overflow.
    scaled = [None if value is None else value / (largest or 1.0) for value in finite]
    n_groups = min(width, len(scaled))
    bounds = [round(index * len(scaled) / n_groups) for index in range(n_groups + 1)]
    shown = [_mean(scaled[first:last]) for first, last in itertools.pairwise(bounds)]
    known = [value for value in shown if value is not None]
    low, span = min(known), max(known) - min(known)
    top = len(_BLOCKS) - 1
    return "".join(
        " " if value is None else _BLOCKS[round(top * ((value - low) / span)) if span else 0]
        for value in shown
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
