"""Reading run folders, live or finished, of any release, and the resolved presets in them."""

import contextlib
import re
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError
from core.files import file_bytes, file_text
from core.renamed import REMOVED_PRESET_KEYS, current_key
from core.runlog.history import ResumeRule
from core.runlog.json_lines import RecordTail, finite_number, parse_object
from core.runlog.schema import (
    BEFORE_STEPS,
    CONFIG_FILE,
    CRASHED_AFTER_SECONDS,
    EVENTS_FILE,
    FORMAT_VERSION,
    LIVE_STATES,
    METRICS_FILE,
    RUN_FILE,
    STALE_AFTER_SECONDS,
    STATUS_FILE,
    TAGS_FILE,
    WORK_FILE,
    EventRecord,
    MetricRecord,
    system_files,
)
from core.runlog.work import Work, read_work
from core.wording import did_you_mean

_SECTION = re.compile(r"^\[(?P<name>[^\[\]]+)\]\s*$")
_VALUE = re.compile(r"^(?P<key>[^=#\s]+) = (?P<value>.*?)(?:  # (?P<provenance>[^#]+))?$")


class RunReader:
    """The reader of one run folder.

    Every call looks at the disk again but reads only what was added, so you can keep a reader as long
    as the run lasts. It keeps ``most`` events, and ``most`` lines of each machine; by default all.
    ConfigurationError if the folder holds no run, or one of a newer format.
    """

    def __init__(self, folder: Path, *, most: int | None = None) -> None:
        self.folder = folder
        self.run = _read_json(folder / RUN_FILE)
        if not self.run:
            raise ConfigurationError(
                f"'{folder}' is not a run folder: it has no readable {RUN_FILE}"
            )
        version = self.run.get("format", 0)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            known = f"this tfx reads up to {FORMAT_VERSION}: update tfx"
            raise ConfigurationError(f"the run '{folder}' has format {version}, {known}")
        self._metrics = RecordTail(folder / METRICS_FILE)
        self._events = RecordTail(folder / EVENTS_FILE, most=most)
        self._most = most
        self._systems: dict[str, RecordTail] = {}
        self._n_unusable = 0

    @property
    def status(self) -> dict[str, Any]:
        """The latest status.json; empty until the run has written one."""
        return _read_json(self.folder / STATUS_FILE)

    def metrics(self, split: str | None = None) -> list[MetricRecord]:
        """Return the metrics lines, of one split or all, in the order of the final history.

        Steps that were run again after a resume appear once, as they were the last time.
        """
        rule = ResumeRule()
        valid = [record for record in reversed(self._metrics.poll()) if rule.is_valid(record)]
        self._n_unusable = rule.n_unusable
        return [record for record in valid[::-1] if split is None or record.get("split") == split]

    def events(self) -> list[EventRecord]:
        """Return all events in the order written."""
        return self._events.poll()

    def system(self) -> dict[str, list[dict[str, Any]]]:
        """Return what each machine logged of itself, by host."""
        for host, path in system_files(self.folder).items():
            self._systems.setdefault(host, RecordTail(path, most=self._most))
        return {host: tail.poll() for host, tail in self._systems.items()}

    @property
    def bad_lines(self) -> int:
        """Lines that could not be read so far, in the files that were read."""
        tails = [self._metrics, self._events, *self._systems.values()]
        return self._n_unusable + sum(tail.bad_lines for tail in tails)

    def summary(self, *, now: float | None = None) -> "RunSummary":
        """Return the run in one line."""
        return _summary(self.folder, self.run, now=time.time() if now is None else now)


@dataclass(frozen=True)
class RunSummary:
    """One run among others; ``started`` and ``heartbeat`` are in seconds since 1970."""

    name: str
    path: Path
    #: As written by the run or by who works for it, or as `seen_state` finds it; ``unknown`` if none was.
    state: str
    #: The last start or resume.
    started: float
    #: When the run last wrote its status.
    heartbeat: float | None = None
    step: int | None = None
    total: int | None = None
    #: Seconds left, as last written.
    eta: float | None = None
    #: What a process does for the run beside its steps, if that is its state.
    work: Work | None = None
    #: Given by the user.
    tags: tuple[str, ...] = ()


def seen_state(state: str, *, silence: float) -> str:
    """Return the state that a reader shows of a run whose last heartbeat is ``silence`` seconds old.

    A live run that missed three heartbeats is ``stale``, after ten minutes it is ``crashed``.
    """
    if state not in LIVE_STATES or silence <= STALE_AFTER_SECONDS:
        return state
    return "crashed" if silence > CRASHED_AFTER_SECONDS else "stale"


def _summary(folder: Path, run: dict[str, Any], *, now: float) -> RunSummary:
    status = _read_json(folder / STATUS_FILE)
    heartbeat = finite_number(status.get("heartbeat"))
    state = status.get("state")
    if not isinstance(state, str):
        state = "unknown"
    elif heartbeat is not None:
        state = seen_state(state, silence=now - heartbeat)
    work = read_work(folder, now=now)
    if work is not None and state in LIVE_STATES:
        work = None  # its steps are more important than who evaluates it meanwhile
    if work is not None:
        state = work.state
    started = [finite_number(status.get("started")), finite_number(run.get("started"))]
    if work is not None and state in BEFORE_STEPS:
        started.append(work.started)
    return RunSummary(
        name=folder.name,
        path=folder,
        state=state,
        started=max((value for value in started if value is not None), default=0.0),
        heartbeat=heartbeat,
        step=_integer(status.get("step")),
        total=_integer(status.get("total")),
        eta=finite_number(status.get("eta")) if work is None else work.eta,
        work=work,
        tags=_read_tags(folder),
    )


def future_run(folder: Path, *, now: float) -> RunSummary | None:
    """Return a run whose folder holds no run yet, while a process prepares its first step; else None."""
    summary = _summary(folder, {}, now=now)
    return None if summary.work is None else summary


def list_runs(root: Path, *, now: float | None = None) -> list[RunSummary]:
    """List the runs in a folder, the newest (last started or resumed) first."""
    now = time.time() if now is None else now
    runs = {path.parent: _read_json(path) for path in root.glob(f"*/{RUN_FILE}")}
    found = [_summary(folder, run, now=now) for folder, run in runs.items() if run]
    coming = {path.parent for path in root.glob(f"*/{WORK_FILE}")} - set(runs)
    found += [run for folder in coming if (run := future_run(folder, now=now)) is not None]
    return sorted(found, key=lambda summary: (-summary.started, summary.name))


def find_run(root: Path, name_or_path: str | Path | None) -> Path:
    """Return a run folder: a path, the name of a run in ``root``, or None for the newest.

    ConfigurationError for a run that does not exist names the nearest, or says that ``root`` has no runs.
    """
    if name_or_path is not None:
        for folder in (Path(name_or_path), root / name_or_path):
            with contextlib.suppress(OSError, ValueError):  # a name too long, a NUL in it
                if (folder / RUN_FILE).is_file():
                    return folder
                if (coming := future_run(folder, now=time.time())) is not None:
                    raise ConfigurationError(
                        f"the run '{folder}' has not begun: it is {coming.state}; watch it by "
                        f"'tfx dashboard {folder}'"
                    )
    runs = [run for run in list_runs(root) if (run.path / RUN_FILE).is_file()]
    if not runs:
        what = "there are no runs" if name_or_path is None else f"there is no run '{name_or_path}'"
        raise ConfigurationError(f"{what} in '{root}'; make one with 'tfx train PRESET'")
    if name_or_path is None:
        return runs[0].path
    names = [run.name for run in runs]
    hint = did_you_mean(Path(name_or_path).name, names) or f"the newest is '{names[0]}'"
    raise ConfigurationError(f"there is no run '{name_or_path}' in '{root}'; {hint}")


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if it is absent or not readable."""
    with contextlib.suppress(OSError):
        return parse_object(file_bytes(path)) or {}
    return {}


def _read_tags(folder: Path) -> tuple[str, ...]:
    with contextlib.suppress(OSError, ValueError):
        lines = file_text(folder / TAGS_FILE).splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    return ()


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class Setting:
    """One value of a preset."""

    #: Dotted, in the present spelling: ``train.batch_size``.
    key: str
    #: As TOML writes it.
    value: str
    #: Where it came from: a file and its line, an option, a variable, ``default``.
    provenance: str


def read_settings(folder: Path) -> list[Setting]:
    """Read the values of a run's preset, in the order of the file; none if it cannot be read."""
    try:
        text = file_text(folder / CONFIG_FILE)
    except (OSError, ValueError):
        return []
    found = []
    section = ""
    for line in text.splitlines():
        if match := _SECTION.match(line):
            section = match["name"] + "."
        elif match := _VALUE.match(line):
            key = ".".join(current_key(tuple(f"{section}{match['key']}".split("."))))
            if key not in REMOVED_PRESET_KEYS:
                found.append(Setting(key, match["value"], match["provenance"] or ""))
    return found


def read_values(folder: Path) -> dict[str, Any]:
    """Read the values of a run's preset as dotted key -> value; those that are not TOML are left out."""
    values = {}
    for setting in read_settings(folder):
        with contextlib.suppress(ValueError, RecursionError):
            values[setting.key] = tomllib.loads(f"value = {setting.value}")["value"]
    return values


def dotted_values(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables: ``{"train.seed": 0}``; an empty table stays as it is."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            flat |= dotted_values(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
