"""The curves of a run in columns: a hundred thousand lines of metrics in a few megabytes.

`RunReader.metrics` gives every line as a dictionary, which a program that keeps many runs open
cannot afford. Here each metric of each split is one array of numbers, brought up to date by reading
what was added.
"""

import math
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeGuard

from core.runlog.json_lines import LineFollower, finite_number
from core.runlog.schema import METRICS_FILE, RESERVED_METRIC_KEYS, MetricRecord

__all__ = ["RunCurves", "SplitCurves"]

#: Read at a time, so that a long history never lies in memory as dictionaries.
_CHUNK_BYTES = 2 * 2**20


class SplitCurves:
    """The metrics of one split, as columns of equal length.

    Attributes
    ----------
    steps, times
        (lines,), the step, and seconds since 1970 (NaN where a line tells none).
    columns
        Metric -> (lines,) values, NaN where a line lacks it or it was not finite.
    """

    def __init__(self) -> None:
        self.steps = array("q")
        self.times = array("d")
        self.columns: dict[str, array[float]] = {}

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self.steps)

    def last(self, name: str) -> float | None:
        """Return the newest finite value of a metric, of the last line that has one."""
        column = self.columns.get(name, ())
        return next((value for value in reversed(column) if not math.isnan(value)), None)

    def add(self, step: int, record: MetricRecord) -> None:
        """Append a line."""
        n_lines = len(self.steps)
        self.steps.append(step)
        self.times.append(_number(record.get("t")))
        for name in record:
            if name not in RESERVED_METRIC_KEYS and name not in self.columns:
                self.columns[name] = array("d", [math.nan]) * n_lines
        for name, column in self.columns.items():
            column.append(_number(record.get(name)))

    def drop_from(self, step: int) -> None:
        """Take back the lines of a step and of those after it, which a resumed run does again."""
        kept = [place for place, one in enumerate(self.steps) if one < step]
        if len(kept) == len(self.steps):
            return
        self.steps = array("q", (self.steps[place] for place in kept))
        self.times = array("d", (self.times[place] for place in kept))
        for name, column in self.columns.items():
            self.columns[name] = array("d", (column[place] for place in kept))


class RunCurves:
    """All curves of a run folder, as far as they have been read.

    Parameters
    ----------
    folder
        The run folder; it may be empty still.
    """

    def __init__(self, folder: Path) -> None:
        self._follower = LineFollower(folder / METRICS_FILE)
        self._n_restarts = 0
        self._splits: dict[str, SplitCurves] = {}
        self._n_unusable = 0

    @property
    def bad_lines(self) -> int:
        """Lines that could not be read or had no step."""
        return self._follower.bad_lines + self._n_unusable

    @property
    def splits(self) -> dict[str, SplitCurves]:
        """Split -> its curves, in the order they appeared."""
        return self._splits

    def __getitem__(self, split: str) -> SplitCurves:
        """Return the curves of a split; empty ones where it has none."""
        return self._splits.get(split) or SplitCurves()

    def poll(self) -> bool:
        """Read what was added; tell whether anything was."""
        is_new = False
        for records in self._chunks():
            is_new = is_new or bool(records)
            for record in records:
                self._take(record)
        return is_new

    def _chunks(self) -> Iterator[Iterable[MetricRecord]]:
        while True:
            before = (self._follower.offset, self._follower.n_restarts)
            records = self._follower.poll(most_bytes=_CHUNK_BYTES)
            if self._follower.n_restarts != self._n_restarts:
                self._n_restarts = self._follower.n_restarts
                self._splits, self._n_unusable = {}, 0
            yield records
            if (self._follower.offset, self._follower.n_restarts) == before:
                return

    def _take(self, record: MetricRecord) -> None:
        step = record.get("step")
        if record.get("event") == "resume":
            first = record.get("from_step")
            if _is_integer(first):
                for curves in self._splits.values():
                    curves.drop_from(first)
        elif _is_integer(step) and isinstance(record.get("split"), str):
            self._splits.setdefault(record["split"], SplitCurves()).add(step, record)
        else:
            self._n_unusable += 1


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def _number(value: object) -> float:
    number = finite_number(value)
    return math.nan if number is None else number
