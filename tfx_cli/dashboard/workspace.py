"""A folder of runs at one moment: read in a thread, handed to the screens as values.

Of a run that is not open only its status file and, now and then, its last lines are read; of an
open run, the added lines. Nothing is written, nothing is assumed: a file may be torn, foreign,
deleted, or written by a machine with another clock.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import TfxError
from core.evaluation.report.records import EvaluationReport, read_evaluation_file
from core.files import open_file
from core.runlog.history import (
    LatestMetrics,
    RunCurves,
    SplitCurves,
    phenotype_accuracies,
    read_latest_metrics,
)
from core.runlog.overview import RunRow, run_row
from core.runlog.reader import RunReader, RunSummary, Setting, read_settings, seen_state
from core.runlog.schema import (
    LIVE_STATES,
    LOG_FILE,
    METRICS_FILE,
    RUN_FILE,
    STALE_AFTER_SECONDS,
    EventRecord,
)

#: Seconds between reads of the metrics of a run that is not open, per megabyte of them.
_SECONDS_PER_MEGABYTE = 0.5
_MOST_LINES = 2_000  # events, and lines of each machine
_LOG_BYTES = 64 * 1024


@dataclass(frozen=True)
class CurveTable:
    """The curves of one split at one moment."""

    #: (lines,), ascending.
    steps: NDArray[np.float64]
    #: Metric -> (lines,), NaN where absent or not finite.
    columns: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(cls, curves: SplitCurves) -> "CurveTable":
        """Copy the lines read so far."""
        steps = np.array(curves.steps, dtype=np.float64)
        columns = {name: np.array(values) for name, values in curves.columns.items()}
        if np.any(np.diff(steps) < 0):  # a foreign file
            order = np.argsort(steps, kind="stable")
            steps = steps[order]
            columns = {name: values[order] for name, values in columns.items()}
        return cls(steps, columns)

    def last(self, name: str) -> float | None:
        """Return the newest finite value of a metric."""
        known = self._finite(name)
        return float(known[-1]) if len(known) else None

    def best(self, name: str, *, lowest: bool) -> float | None:
        """Return the lowest or the highest finite value of a metric."""
        known = self._finite(name)
        return float(known.min() if lowest else known.max()) if len(known) else None

    def _finite(self, name: str) -> NDArray[np.float64]:
        values = self.columns.get(name, np.empty(0))
        return values[np.isfinite(values)]


_NO_CURVES = CurveTable(np.empty(0), {})


@dataclass(frozen=True)
class RunView:
    """An open run at one moment."""

    row: RunRow
    #: run.json and status.json.
    run: Mapping[str, Any]
    status: Mapping[str, Any]
    #: Split -> curves.
    curves: Mapping[str, CurveTable]
    #: The last events, the last lines of each host, and those of log.txt; the oldest first.
    events: tuple[EventRecord, ...]
    machines: Mapping[str, tuple[Mapping[str, Any], ...]]
    log: tuple[str, ...]
    #: The resolved preset.
    settings: tuple[Setting, ...]
    #: report.json of `tfx eval`, if there is one.
    evaluation: EvaluationReport | None
    #: Lines that could not be read.
    bad_lines: int

    @property
    def train(self) -> CurveTable:
        return self.curves.get("train", _NO_CURVES)

    @property
    def validation(self) -> CurveTable:
        return self.curves.get("validation", _NO_CURVES)

    @property
    def steps(self) -> tuple[float, float] | None:
        """The first and the last step of all curves."""
        known = [table.steps for table in self.curves.values() if len(table.steps)]
        if not known:
            return None
        return min(float(one[0]) for one in known), max(float(one[-1]) for one in known)

    @property
    def nonfinite(self) -> int:
        """Number of recorded steps whose loss was not finite."""
        return sum(event.get("event") == "nonfinite" for event in self.events)

    @property
    def phenotypes(self) -> list[str]:
        """The phenotypes with an accuracy, in the order of the file."""
        return list(phenotype_accuracies(dict.fromkeys(self.validation.columns, 0.0)))


@dataclass(frozen=True)
class UnreadableRun:
    """A folder that looks like a run and cannot be read."""

    name: str
    path: str
    reason: str


@dataclass(frozen=True)
class WorkspaceView:
    """A folder of runs at one moment."""

    #: Newest first.
    rows: tuple[RunRow, ...]
    unreadable: tuple[UnreadableRun, ...]
    #: Path -> view of the requested runs.
    open_runs: Mapping[str, RunView]
    #: Seconds since 1970, at reading.
    now: float


@dataclass
class _Pulse:
    """When a heartbeat last changed, by our own clock."""

    heartbeat: float | None = None
    moved_at: float | None = None
    watched_since: float = 0.0


class Workspace:
    """The runs of a folder, or one run folder; tests give their own clocks."""

    def __init__(
        self,
        root: Path,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = root
        self._clock = clock
        self._monotonic = monotonic
        self._reader = functools.cache(functools.partial(RunReader, most=_MOST_LINES))
        self._feeds: dict[str, _RunFeed] = {}
        self._metrics: dict[Path, tuple[tuple[int, int], float, LatestMetrics]] = {}
        self._pulses: dict[Path, _Pulse] = {}

    def poll(self, open_runs: Collection[str] = ()) -> WorkspaceView:
        """Read the disk; ``open_runs`` are the paths of the runs whose curves are needed."""
        now = self._clock()
        rows, unreadable = [], []
        for folder in self._folders():
            try:
                summary = self._alive(folder, self._reader(folder).summary(now=now))
                rows.append(run_row(summary, self._metrics_of(folder)))
            except TfxError as error:
                unreadable.append(UnreadableRun(folder.name, str(folder), str(error)))
        rows.sort(key=lambda row: (-row.started, row.name))
        by_path = {row.path: row for row in rows}
        self._feeds = {
            path: self._feeds.get(path) or _RunFeed(self._reader(Path(path)))
            for path in open_runs
            if path in by_path
        }
        views = {path: feed.poll(by_path[path]) for path, feed in self._feeds.items()}
        return WorkspaceView(tuple(rows), tuple(unreadable), views, now)

    def _folders(self) -> list[Path]:
        if (self.root / RUN_FILE).is_file():
            return [self.root]
        with contextlib.suppress(OSError):
            return sorted(path.parent for path in self.root.glob(f"*/{RUN_FILE}"))
        return []

    def _metrics_of(self, folder: Path) -> LatestMetrics:
        """Read the last metrics of a run; the longer its history, the more rarely."""
        try:
            status = (folder / METRICS_FILE).stat()
        except OSError:
            return LatestMetrics()
        stamp, moment = (status.st_size, status.st_mtime_ns), self._monotonic()
        known = self._metrics.get(folder)
        pause = _SECONDS_PER_MEGABYTE * status.st_size / 1e6
        if known is not None and (known[0] == stamp or moment - known[1] < pause):
            return known[2]
        metrics = read_latest_metrics(folder)
        self._metrics[folder] = (stamp, moment, metrics)
        return metrics

    def _alive(self, folder: Path, summary: RunSummary) -> RunSummary:
        """Decide by our own clock whether a run lives, once its heartbeat has been watched.

        Its machine's clock may be minutes off: a heartbeat that changes is alive whatever its time,
        and one from the future that does not change is not.
        """
        moment = self._monotonic()
        pulse = self._pulses.setdefault(folder, _Pulse(summary.heartbeat, None, moment))
        if summary.heartbeat != pulse.heartbeat:
            pulse.heartbeat, pulse.moved_at = summary.heartbeat, moment
        if summary.state not in (*LIVE_STATES, "stale", "crashed") or summary.heartbeat is None:
            return summary
        state = summary.state
        if pulse.moved_at is not None and moment - pulse.moved_at <= STALE_AFTER_SECONDS:
            if state in ("stale", "crashed"):
                state = "running"
        elif state in LIVE_STATES:
            state = seen_state(state, silence=moment - (pulse.moved_at or pulse.watched_since))
        return replace(summary, state=state)


class _RunFeed:
    """An open run, of which added lines are read."""

    def __init__(self, reader: RunReader) -> None:
        self._folder = reader.folder
        self._run = reader.run
        self._reader = reader
        self._curves = RunCurves(reader.folder)
        self._tables: dict[str, CurveTable] = {}
        self._evaluation: tuple[int, EvaluationReport | None] = (0, None)
        self._settings: tuple[Setting, ...] = ()

    def poll(self, row: RunRow) -> RunView:
        if self._curves.poll() or not self._tables:
            self._tables = {name: CurveTable.of(one) for name, one in self._curves.splits.items()}
        if not self._settings:
            self._settings = tuple(read_settings(self._folder))
        events, machines = self._reader.events(), self._reader.system()
        return RunView(
            row=row,
            run=self._run,
            status=self._reader.status,
            curves=self._tables,
            events=tuple(events),
            machines={host: tuple(lines) for host, lines in machines.items() if lines},
            log=last_lines(self._folder / LOG_FILE),
            settings=self._settings,
            evaluation=self._read_evaluation(),
            bad_lines=self._curves.bad_lines + self._reader.bad_lines,
        )

    def _read_evaluation(self) -> EvaluationReport | None:
        """Read the report if it has changed; a file that is no report counts as none."""
        path = self._folder / "eval" / "report.json"
        if not path.is_file():
            path = self._folder / "eval-cross-validation" / "report.json"
        try:
            stamp = path.stat().st_mtime_ns
        except OSError:
            self._evaluation = (0, None)
            return None
        if stamp != self._evaluation[0]:
            self._evaluation = (stamp, None)
            with contextlib.suppress(OSError, ValueError, RecursionError):
                self._evaluation = (stamp, read_evaluation_file(path))
        return self._evaluation[1]


def last_lines(path: Path) -> tuple[str, ...]:
    """Return the last whole lines of a text file; none if it cannot be read."""
    try:
        with open_file(path) as file:
            size = file.seek(0, 2)
            file.seek(max(size - _LOG_BYTES, 0))
            data = file.read()
    except OSError:
        return ()
    lines = data.decode("utf-8", "replace").splitlines()
    return tuple(lines[1:] if size > _LOG_BYTES else lines)
