"""A folder of runs at one moment: read in a thread, handed to the screens as values.

Of a run that is not open only its status file and, now and then, its last lines are read; of an
open run, the added lines. Nothing is written, nothing is assumed: a file may be torn, foreign,
deleted, or written by a machine with another clock.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import TfxError
from core.evaluation.report.records import EvaluationReport, read_evaluation_file
from core.files import file_json, open_file
from core.interactions.kept import FOLDER as RESULTS_FOLDER
from core.interactions.kept import KeptResult, read_results
from core.runlog.history import (
    LatestMetrics,
    MachineCurves,
    RunCurves,
    SplitCurves,
    phenotype_accuracies,
    read_latest_metrics,
)
from core.runlog.overview import RunRow, run_row
from core.runlog.reader import RunReader, RunSummary, Setting, future_run, read_settings, seen_state
from core.runlog.schema import (
    CONFIG_FILE,
    LIVE_STATES,
    LOG_FILE,
    METRICS_FILE,
    RUN_FILE,
    STALE_AFTER_SECONDS,
    WORK_FILE,
    EventRecord,
)

#: Seconds between reads of the metrics of a run that is not open, per megabyte of them.
_SECONDS_PER_MEGABYTE = 0.5
_MOST_LINES = 2_000  # events
_LOG_BYTES = 64 * 1024
#: Bytes of metrics that are read at a time, and of the end that is read first if there are more.
_LONG_HISTORY, _TAIL_BYTES = 4 * 2**20, 2**20


@dataclass(frozen=True)
class CurveTable:
    """The curves of one split at one moment."""

    #: (lines,), ascending.
    steps: NDArray[np.float64]
    #: Metric -> (lines,), NaN where absent or not finite.
    columns: Mapping[str, NDArray[np.float64]]
    #: (lines,), seconds since 1970, NaN where unknown.
    times: NDArray[np.float64]

    @classmethod
    def of(cls, curves: SplitCurves) -> "CurveTable":
        """Copy the lines read so far."""
        steps = np.array(curves.steps, dtype=np.float64)
        columns = {name: np.array(values) for name, values in curves.columns.items()}
        times = np.array(curves.times)
        if np.any(np.diff(steps) < 0):  # a foreign file
            order = np.argsort(steps, kind="stable")
            steps = steps[order]
            columns = {name: values[order] for name, values in columns.items()}
            times = times[order]
        return cls(steps, columns, times)

    def before(self, later: "CurveTable") -> "CurveTable":
        """Return these curves up to the first step of later ones, and then those."""
        if not len(later.steps):
            return self
        n_kept = int(np.searchsorted(self.steps, later.steps[0]))
        unknown = np.full(len(later.steps), np.nan)
        columns = {
            name: np.concatenate(
                [
                    self.columns.get(name, np.full(len(self.steps), np.nan))[:n_kept],
                    later.columns.get(name, unknown),
                ]
            )
            for name in {**self.columns, **later.columns}
        }
        steps = np.concatenate([self.steps[:n_kept], later.steps])
        return CurveTable(steps, columns, np.concatenate([self.times[:n_kept], later.times]))

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


_NO_CURVES = CurveTable(np.empty(0), {}, np.empty(0))


@dataclass(frozen=True)
class RunView:
    """An open run at one moment."""

    row: RunRow
    #: run.json and status.json.
    run: Mapping[str, Any]
    status: Mapping[str, Any]
    #: Split -> curves.
    curves: Mapping[str, CurveTable]
    #: The last events, and the last lines of log.txt; the oldest first.
    events: tuple[EventRecord, ...]
    #: Host -> its last line, and its load over time (`MachineCurves`).
    machines: Mapping[str, Mapping[str, Any]]
    load: Mapping[str, Mapping[str, NDArray[np.float64]]]
    log: tuple[str, ...]
    #: The resolved preset.
    settings: tuple[Setting, ...]
    #: report.json of `tfx eval`, if there is one.
    evaluation: EvaluationReport | None
    #: Title and verdict of the newest report of `tfx eval --generated`, if there is one.
    fidelity: tuple[str, tuple[str, ...]] | None
    #: What `tfx interactions` and `tfx perturb` kept in the run folder, the newest first.
    results: tuple[KeptResult, ...]
    #: Lines that could not be read.
    bad_lines: int
    #: Fraction of the metrics that has been read; the end of a long history is read first.
    fraction_read: float = 1.0

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
    #: Path -> key -> value of the preset, of all runs, where they are requested.
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def row_of(self, path: str | None) -> RunRow | None:
        return next((row for row in self.rows if row.path == path), None)


#: Before the first reading.
NOTHING_READ = WorkspaceView((), (), {}, 0.0)


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
        self._settings: dict[str, tuple[int, Mapping[str, str]]] = {}

    def poll(
        self, open_runs: Collection[str] = (), *, with_settings: bool = False
    ) -> WorkspaceView:
        """Read the disk; ``open_runs`` are the paths of the runs whose curves are needed."""
        now = self._clock()
        rows, unreadable = [], []
        for folder in self._folders():
            try:
                summary = self._alive(folder, self._reader(folder).summary(now=now))
                rows.append(run_row(summary, self._metrics_of(folder)))
            except TfxError as error:
                unreadable.append(UnreadableRun(folder.name, str(folder), str(error)))
        coming = [future_run(folder, now=now) for folder in self._folders_before_runs()]
        rows += [run_row(summary, LatestMetrics()) for summary in coming if summary is not None]
        rows.sort(key=lambda row: (-row.started, row.name))
        by_path = {row.path: row for row in rows}
        self._feeds = {
            path: self._feeds.get(path) or _RunFeed(self._reader(Path(path)))
            for path in open_runs
            if path in by_path and (Path(path) / RUN_FILE).is_file()
        }
        views = {path: feed.poll(by_path[path]) for path, feed in self._feeds.items()}
        settings = {row.path: self._settings_of(row.path) for row in rows if with_settings}
        return WorkspaceView(tuple(rows), tuple(unreadable), views, now, settings)

    def _settings_of(self, path: str) -> Mapping[str, str]:
        """Read the preset of a run, again if the file has changed."""
        stamp = 0
        with contextlib.suppress(OSError):
            stamp = (Path(path) / CONFIG_FILE).stat().st_mtime_ns
        known = self._settings.get(path)
        if known is None or known[0] != stamp:
            values = {one.key: one.value for one in read_settings(Path(path))}
            known = self._settings[path] = stamp, values
        return known[1]

    def _folders(self) -> list[Path]:
        if (self.root / RUN_FILE).is_file():
            return [self.root]
        with contextlib.suppress(OSError):
            return sorted(path.parent for path in self.root.glob(f"*/{RUN_FILE}"))
        return []

    def _folders_before_runs(self) -> list[Path]:
        """Return the folders in which a process prepares a run."""
        found: set[Path] = set()
        with contextlib.suppress(OSError):
            found = {path.parent for path in self.root.glob(f"*/{WORK_FILE}")}
        return sorted(folder for folder in found if not (folder / RUN_FILE).is_file())

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
        self._machines = MachineCurves(reader.folder)
        #: The end of a long history, until all of it has been read.
        self._tail: RunCurves | None = None
        self._has_begun = False
        self._fraction_read = 1.0
        self._tables: dict[str, CurveTable] = {}
        self._evaluation: tuple[int, EvaluationReport | None] = (0, None)
        #: The reports that were looked at, and the verdict of the newest that has one.
        self._fidelity: tuple[list[tuple[int, Path]], tuple[str, tuple[str, ...]] | None] = (
            [],
            None,
        )
        self._results: tuple[list[tuple[str, int]], tuple[KeptResult, ...]] = ([], ())
        self._settings: tuple[Setting, ...] = ()

    def poll(self, row: RunRow) -> RunView:
        self._poll_curves()
        if not self._settings:
            self._settings = tuple(read_settings(self._folder))
        events = self._reader.events()
        self._machines.poll()
        return RunView(
            row=row,
            run=self._run,
            status=self._reader.status,
            curves=self._tables,
            events=tuple(events),
            machines=dict(self._machines.last),
            load={
                host: {name: np.array(values) for name, values in columns.items()}
                for host, columns in self._machines.hosts.items()
            },
            log=last_lines(self._folder / LOG_FILE),
            settings=self._settings,
            evaluation=self._read_evaluation(),
            fidelity=self._read_fidelity(),
            results=self._read_results(),
            bad_lines=self._curves.bad_lines + self._reader.bad_lines + self._machines.bad_lines,
            fraction_read=self._fraction_read,
        )

    def _read_results(self) -> tuple[KeptResult, ...]:
        """Read the results of interactions and perturbations if there are others."""
        found: list[tuple[str, int]] = []
        with contextlib.suppress(OSError):
            paths = (self._folder / RESULTS_FOLDER).glob("*.json")
            found = sorted((path.name, path.stat().st_mtime_ns) for path in paths)
        if found != self._results[0]:
            self._results = (found, tuple(read_results(self._folder)))
        return self._results[1]

    def _poll_curves(self) -> None:
        """Read what was added: of a long history first its end, then the rest, some at a time."""
        if not self._has_begun:
            self._has_begun = True
            with contextlib.suppress(OSError):
                if (self._folder / METRICS_FILE).stat().st_size > _LONG_HISTORY:
                    self._tail = RunCurves(self._folder, tail_bytes=_TAIL_BYTES)
                    self._tail.poll()
                    self._tables, self._fraction_read = _tables_of(self._tail), 0.0
                    return
        is_new = self._curves.poll(most_bytes=_LONG_HISTORY)
        self._fraction_read = 1.0 if self._tail is None else self._curves.fraction
        is_whole = False
        if self._tail is not None and self._fraction_read >= 1.0:
            self._tail, is_whole = None, True
        if self._tail is not None:
            self._tail.poll()
            older = _tables_of(self._curves)
            self._tables = older | {
                split: older.get(split, _NO_CURVES).before(table)
                for split, table in _tables_of(self._tail).items()
            }
        elif is_new or is_whole or not self._tables:
            self._tables = _tables_of(self._curves)

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

    def _read_fidelity(self) -> tuple[str, tuple[str, ...]] | None:
        """Read the verdict of the newest report on generated cells, if there is another."""
        found: list[tuple[int, Path]] = []
        with contextlib.suppress(OSError):
            paths = self._folder.glob("eval-*/report.json")
            found = sorted(((path.stat().st_mtime_ns, path) for path in paths), reverse=True)
        if found != self._fidelity[0]:
            verdicts = (_verdict(path) for _, path in found)
            self._fidelity = (found, next((one for one in verdicts if one is not None), None))
        return self._fidelity[1]


def _tables_of(curves: RunCurves) -> dict[str, CurveTable]:
    return {split: CurveTable.of(one) for split, one in curves.splits.items()}


def _verdict(path: Path) -> tuple[str, tuple[str, ...]] | None:
    with contextlib.suppress(OSError, ValueError):
        record = file_json(path)
        sentences = record.get("verdict") if isinstance(record, dict) else None
        if isinstance(sentences, list):
            return str(record.get("title", path.parent.name)), tuple(map(str, sentences))
    return None


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
