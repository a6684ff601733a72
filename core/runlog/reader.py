"""Reading run folders, live or finished, of any release."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError
from core.runlog.json_lines import LineFollower, finite_number
from core.runlog.schema import (
    CRASHED_AFTER_SECONDS,
    EVENTS_FILE,
    FORMAT_VERSION,
    LIVE_STATES,
    METRICS_FILE,
    RUN_FILE,
    STALE_AFTER_SECONDS,
    STATUS_FILE,
    EventRecord,
    MetricRecord,
)
from core.wording import did_you_mean

__all__ = ["RunReader", "RunSummary", "find_run", "list_runs"]


class RunReader:
    """The reader of one run folder.

    Every question looks at the disk again but reads only what was added, so a reader can be kept
    and asked for as long as the run goes.

    Parameters
    ----------
    folder
        The run folder.

    Raises
    ------
    ConfigurationError
        The folder holds no run, or one of a newer format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = _read_json(folder / RUN_FILE)
        if not self.run:
            message = f"'{folder}' is not a run folder: it has no readable {RUN_FILE}"
            raise ConfigurationError(message)
        version = self.run.get("format", 0)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            message = (
                f"the run '{folder}' has format {version}, this tfx reads up to {FORMAT_VERSION}: "
                "update tfx"
            )
            raise ConfigurationError(message)
        self._metrics = _FoldedMetrics(folder / METRICS_FILE)
        self._events = LineFollower(folder / EVENTS_FILE)
        self._event_records: list[EventRecord] = []
        self._n_event_restarts = 0
        self._systems: dict[str, tuple[LineFollower, list[dict[str, Any]]]] = {}

    @property
    def status(self) -> dict[str, Any]:
        """The latest status.json; empty until the run has written one."""
        return _read_json(self.folder / STATUS_FILE)

    def metrics(self, split: str | None = None) -> list[MetricRecord]:
        """Return the metrics lines, of one split or all, in the order of the final history.

        Steps that were run again after a resume appear once, as they were the last time.
        """
        records = self._metrics.records()
        return [record for record in records if split is None or record.get("split") == split]

    def events(self) -> list[EventRecord]:
        """Return all events in the order written."""
        new = self._events.poll()
        if self._events.n_restarts != self._n_event_restarts:
            self._n_event_restarts = self._events.n_restarts
            self._event_records = []
        self._event_records += new
        return list(self._event_records)

    def system(self) -> dict[str, list[dict[str, Any]]]:
        """Return what each machine logged of itself, by host."""
        for path in sorted(self.folder.glob("system-*.jsonl")):
            host = path.stem.removeprefix("system-")
            follower, records = self._systems.setdefault(host, (LineFollower(path), []))
            n_restarts = follower.n_restarts
            new = follower.poll()
            if follower.n_restarts != n_restarts:
                records.clear()
            records += new
        return {host: list(records) for host, (_, records) in self._systems.items()}

    @property
    def bad_lines(self) -> int:
        """Lines that could not be read so far, in the files that were asked for."""
        followers = [self._metrics.follower, self._events]
        followers += [follower for follower, _ in self._systems.values()]
        return sum(follower.bad_lines for follower in followers)

    def summary(self, *, now: float | None = None) -> "RunSummary":
        """Return the run in one line."""
        return _summary(self.folder, self.run, now=time.time() if now is None else now)


class _FoldedMetrics:
    """Metrics lines, with the steps before a resume taken back where they were run again."""

    def __init__(self, path: Path) -> None:
        self.follower = LineFollower(path)
        self._records: list[MetricRecord] = []
        self._n_restarts = 0

    def records(self) -> list[MetricRecord]:
        new = self.follower.poll()
        if self.follower.n_restarts != self._n_restarts:
            self._n_restarts = self.follower.n_restarts
            self._records = []
        for record in new:
            if record.get("event") == "resume":
                first = record.get("from_step")
                if isinstance(first, int):
                    self._records = [kept for kept in self._records if kept["step"] < first]
            elif isinstance(record.get("step"), int):
                self._records.append(record)
            else:
                self.follower.bad_lines += 1
        return self._records


@dataclass(frozen=True)
class RunSummary:
    """One run among others.

    Attributes
    ----------
    state
        As the run says, but ``stale`` where a live run has missed three heartbeats, ``crashed``
        where it has been silent for ten minutes, ``unknown`` where it never said.
    started
        Seconds since 1970, of the last start or resume.
    heartbeat
        When the run last wrote its status; None where it never did.
    eta
        Seconds left, when it last said so.
    """

    name: str
    path: Path
    state: str
    started: float
    heartbeat: float | None = None
    step: int | None = None
    total: int | None = None
    eta: float | None = None


def _summary(folder: Path, run: dict[str, Any], *, now: float) -> RunSummary:
    status = _read_json(folder / STATUS_FILE)
    heartbeat = finite_number(status.get("heartbeat"))
    state = status.get("state")
    if not isinstance(state, str):
        state = "unknown"
    elif state in LIVE_STATES and heartbeat is not None:
        silence = now - heartbeat
        if silence > CRASHED_AFTER_SECONDS:
            state = "crashed"
        elif silence > STALE_AFTER_SECONDS:
            state = "stale"
    started = [finite_number(status.get("started")), finite_number(run.get("started"))]
    return RunSummary(
        name=folder.name,
        path=folder,
        state=state,
        started=max((value for value in started if value is not None), default=0.0),
        heartbeat=heartbeat,
        step=_integer(status.get("step")),
        total=_integer(status.get("total")),
        eta=finite_number(status.get("eta")),
    )


def list_runs(root: Path, *, now: float | None = None) -> list[RunSummary]:
    """List the runs in a folder, the newest (last started or resumed) first."""
    now = time.time() if now is None else now
    found = []
    for path in root.glob(f"*/{RUN_FILE}"):
        run = _read_json(path)
        if run:
            found.append(_summary(path.parent, run, now=now))
    return sorted(found, key=lambda summary: (-summary.started, summary.name))


def find_run(root: Path, name_or_path: str | Path | None) -> Path:
    """Return a run folder: a path, the name of a run in ``root``, or None for the newest.

    Raises
    ------
    ConfigurationError
        There is no such run; the message names the nearest, or says that there are none.
    """
    if name_or_path is not None:
        for folder in (Path(name_or_path), root / name_or_path):
            if _is_file(folder / RUN_FILE):
                return folder
    runs = list_runs(root)
    if not runs:
        what = "there are no runs" if name_or_path is None else f"there is no run '{name_or_path}'"
        message = f"{what} in '{root}'; make one with 'tfx train PRESET'"
        raise ConfigurationError(message)
    if name_or_path is None:
        return runs[0].path
    names = [run.name for run in runs]
    hint = did_you_mean(Path(name_or_path).name, names) or f"the newest is '{names[0]}'"
    message = f"there is no run '{name_or_path}' in '{root}'; {hint}"
    raise ConfigurationError(message)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, a NUL in it
        return False


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where it is absent or not readable."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
