"""Curves of the run screen: series of metrics and of machines over steps, cells or hours, and events."""

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.runlog.history import MACHINE_METRICS
from core.runlog.json_lines import number_in
from core.runlog.schema import metric_info
from tfx_cli.dashboard.canvas import Array
from tfx_cli.dashboard.curve_view import EventMark
from tfx_cli.dashboard.picture import Series
from tfx_cli.dashboard.workspace import CurveTable, RunView

Axis = Literal["step", "cells", "hours"]
#: Events that are marked on curves, and their signs.
EVENT_SIGNS = {"resume": "↻", "checkpoint": "▪", "spike": "!", "nonfinite": "✖", "early_stop": "■"}
BEST_SIGN = "★"
_SIDES = ("train", "validation")


@dataclass(frozen=True)
class RunAxis:
    """The x axis of the curves of a run: what a step is on it."""

    name: Axis
    #: Cells of a step; None where steps differ in cells.
    batch: int | None
    #: (lines,) steps and times, in seconds since 1970, of all lines of the run, ascending.
    steps: Array
    times: Array

    @classmethod
    def of(cls, view: RunView, name: Axis) -> "RunAxis":
        """Return an axis of a run, or that of steps where the run does not know the other."""
        known = [table for table in view.curves.values() if len(table.steps)]
        steps = np.concatenate([np.empty(0), *(table.steps for table in known)])
        times = np.concatenate([np.empty(0), *(table.times for table in known)])
        finite = np.isfinite(times)
        order = np.argsort(steps[finite], kind="stable")
        axis = cls(name, _batch_of(view), steps[finite][order], times[finite][order])
        has_it = axis.batch is not None if name == "cells" else len(axis.times) > 1
        return axis if name == "step" or has_it else cls("step", axis.batch, axis.steps, axis.times)

    def of_steps(self, steps: Array) -> Array:
        """Return the places of steps."""
        if self.name == "cells" and self.batch is not None:
            return steps * self.batch
        if self.name == "hours":
            return (np.interp(steps, self.steps, self.times) - self.times[0]) / 3600.0
        return steps

    def of_times(self, times: Array) -> Array:
        """Return the places of moments, in seconds since 1970."""
        if self.name == "hours":
            return (times - self.times[0]) / 3600.0
        if len(self.times) < 2:
            return np.full(len(times), np.nan)
        order = np.argsort(self.times, kind="stable")
        steps = np.interp(times, self.times[order], self.steps[order], left=np.nan, right=np.nan)
        return self.of_steps(steps)

    def of_table(self, table: CurveTable) -> Array:
        """Return the places of the lines of a table."""
        if self.name == "hours" and len(table.times) and np.all(np.diff(table.times) >= 0):
            return (table.times - self.times[0]) / 3600.0
        return self.of_steps(table.steps)


def _batch_of(view: RunView) -> int | None:
    values = {one.key: one.value for one in view.settings}
    if values.get("train.tokens_per_batch") is not None:
        return None
    try:
        batch = tomllib.loads(f"value = {values.get('train.batch_size')}")["value"]
    except ValueError:
        return None
    return batch if isinstance(batch, int) and not isinstance(batch, bool) else None


def metric_names(view: RunView, part: str = "") -> list[str]:
    """Return the metrics of a run that hold a text in their names, sorted by group and name."""
    names = dict.fromkeys(itertools.chain(*(table.columns for table in view.curves.values())))
    found = [name for name in names if part in name.lower() or part in metric_info(name).label]
    return sorted(found, key=lambda name: (name.partition("/")[0], name))


def metric_series(view: RunView, name: str, axis: RunAxis) -> list[Series]:
    """Return a metric of training and of validation."""
    return [
        Series(
            split, axis.of_table(table), table.columns[name], _SIDES.index(split), split == "train"
        )
        for split, table in view.curves.items()
        if split in _SIDES and np.isfinite(table.columns.get(name, np.empty(0))).any()
    ]


def machine_series(view: RunView, names: Mapping[str, str], axis: RunAxis) -> list[Series]:
    """Return metrics of the machines of a run, by the names that they are shown by; bytes in GB."""
    assert set(names) <= set(MACHINE_METRICS)
    series: list[Series] = []
    for host, load in view.load.items():
        x = axis.of_times(load["t"])
        known = np.isfinite(x)
        for name, shown in names.items():
            y = load[name][known] / (1e9 if "memory" in name else 1.0)
            if np.isfinite(y).any():
                label = shown if len(view.load) == 1 else f"{shown} {host}"
                series.append(Series(label, x[known], y, len(series), is_noisy=True))
    return series


def event_marks(view: RunView, axis: RunAxis) -> list[EventMark]:
    """Return the events of a run on an axis, and the step of the lowest validation loss."""
    found = [
        (step, sign)
        for event in view.events
        if (sign := EVENT_SIGNS.get(str(event.get("event")))) is not None
        and (step := number_in(event, "step" if sign != "↻" else "from_step")) is not None
    ]
    if view.row.best_step is not None:
        found.append((float(view.row.best_step), BEST_SIGN))
    places = axis.of_steps(np.array([step for step, _ in found], dtype=float))
    return [EventMark(float(x), sign) for x, (_, sign) in zip(places, found, strict=True)]
