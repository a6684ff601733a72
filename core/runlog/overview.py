"""What there is to say of a run: as one among others, or in full."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runlog.figures import RunFigures, number_in, phenotype_accuracies, read_figures
from core.runlog.reader import RunReader, RunSummary
from core.runlog.schema import (
    CHECKPOINT_MARKER,
    CHECKPOINTS_FOLDER,
    LIVE_STATES,
    MODEL_FOLDER,
    RESERVED_METRIC_KEYS,
    EventRecord,
    MetricRecord,
    metric_info,
)
from core.runlog.settings import read_settings

__all__ = [
    "BestValue",
    "Checkpoint",
    "RunOverview",
    "RunRow",
    "best_values",
    "overview",
    "run_row",
    "seconds_trained",
    "setting_sources",
]

_CHECKPOINT = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class RunRow:
    """A run in a list of runs; what it has not written is None.

    Attributes
    ----------
    path
        The run folder.
    state
        As in `RunSummary`.
    loss
        Of the last line of training.
    validation_loss, best_step, accuracies
        The lowest validation loss, its step, and the accuracies there, by phenotype.
    accuracy
        Mean of the accuracies.
    started, last_data
        Seconds since 1970, of the last start, and of the newest figures (without any: of the
        heartbeat).
    eta
        Seconds left, of a run that is going on.
    """

    name: str
    path: str
    state: str
    step: int | None
    total: int | None
    loss: float | None
    validation_loss: float | None
    best_step: int | None
    accuracies: dict[str, float]
    accuracy: float | None
    started: float
    last_data: float | None
    eta: float | None


def run_row(summary: RunSummary, figures: RunFigures | None = None) -> RunRow:
    """Return what a list says of a run.

    Parameters
    ----------
    summary
        Of the run.
    figures
        Of the run, where they have been read already.
    """
    if figures is None:
        figures = read_figures(summary.path)
    kept = figures.kept
    accuracies = phenotype_accuracies(kept)
    mean = sum(accuracies.values()) / len(accuracies) if accuracies else None
    is_live = summary.state in (*LIVE_STATES, "stale")
    return RunRow(
        name=summary.name,
        path=str(summary.path),
        state=summary.state,
        step=summary.step if summary.step is not None else figures.last_step,
        total=summary.total,
        loss=number_in(figures.train, "loss"),
        validation_loss=number_in(kept, "loss"),
        best_step=None if kept is None else kept["step"],
        accuracies=accuracies,
        accuracy=mean,
        started=summary.started,
        last_data=figures.last_time or summary.heartbeat,
        eta=summary.eta if is_live else None,
    )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run.

    Attributes
    ----------
    size
        Bytes.
    is_whole
        Whether its marker is there; the sums of its files are not checked.
    is_best
        Whether it is that of the lowest validation loss.
    """

    name: str
    step: int
    size: int
    is_whole: bool
    is_best: bool


@dataclass(frozen=True)
class BestValue:
    """The best value of a metric, and the step it was first reached at."""

    value: float
    step: int


@dataclass(frozen=True)
class RunOverview:
    """Everything of a run but its curves; what it has not written is empty or None.

    Attributes
    ----------
    row
        As in a list of runs.
    run, status
        run.json and status.json.
    sources
        Where the preset's values come from: source -> number of values.
    train, last, kept
        Lines of metrics: the last of training, the last evaluation, that of the lowest loss.
    best
        The best value of each validation metric that has a better direction.
    seconds
        Time trained, over all starts.
    machines
        The last line of each machine, by host.
    events
        The last events.
    n_events
        Of all.
    checkpoints
        Oldest first.
    model_size
        Bytes of the model folder; None where there is none yet.
    bad_lines
        Lines that could not be read.
    """

    row: RunRow
    run: dict[str, Any]
    status: dict[str, Any]
    sources: dict[str, int]
    train: MetricRecord | None
    last: MetricRecord | None
    kept: MetricRecord | None
    best: dict[str, BestValue]
    seconds: float
    machines: dict[str, dict[str, Any]]
    events: list[EventRecord]
    n_events: int
    checkpoints: list[Checkpoint]
    model_size: int | None
    bad_lines: int


def overview(reader: RunReader, *, n_events: int = 10, now: float | None = None) -> RunOverview:
    """Read everything there is to say of a run.

    Parameters
    ----------
    reader
        Of the run.
    n_events
        How many of the last events.
    now
        Seconds since 1970; for tests.
    """
    folder = reader.folder
    metrics, events = reader.metrics(), reader.events()
    figures = RunFigures.of(metrics)
    kept = figures.kept
    return RunOverview(
        row=run_row(reader.summary(now=time.time() if now is None else now), figures),
        run=reader.run,
        status=reader.status,
        sources=setting_sources(folder),
        train=figures.train,
        last=figures.last,
        kept=kept,
        best=best_values(figures.validations),
        seconds=seconds_trained(events, metrics),
        machines={host: lines[-1] for host, lines in reader.system().items() if lines},
        events=events[len(events) - n_events :] if n_events < len(events) else events,
        n_events=len(events),
        checkpoints=_checkpoints(folder, best_step=None if kept is None else kept["step"]),
        model_size=_size(folder / MODEL_FOLDER),
        bad_lines=reader.bad_lines,
    )


def best_values(records: Sequence[MetricRecord]) -> dict[str, BestValue]:
    """Return the best value of each metric that has a better direction."""
    best: dict[str, BestValue] = {}
    for record in records:
        for name in record:
            value, better = number_in(record, name), metric_info(name).better
            if value is None or better is None or name in RESERVED_METRIC_KEYS:
                continue
            known = best.get(name)
            is_better = known is None or (
                value > known.value if better == "higher" else value < known.value
            )
            if is_better:
                best[name] = BestValue(value, record["step"])
    return best


def seconds_trained(events: Iterable[EventRecord], metrics: Iterable[MetricRecord]) -> float:
    """Return how long a run has been at it: from each start or resume to what it last wrote."""
    times = sorted(
        (number_in(record, "t") or 0.0, record.get("event") in ("start", "resume"))
        for record in (*events, *metrics)
        if number_in(record, "t") is not None
    )
    total, before = 0.0, None
    for moment, begins in times:
        if before is not None and not begins:
            total += moment - before
        before = moment
    return total


def setting_sources(folder: Path) -> dict[str, int]:
    """Count where the values of a run's resolved preset come from."""
    origins = (one.origin for one in read_settings(folder) if one.origin)
    sources = Counter(re.sub(r":\d+$", "", origin) for origin in origins)
    # What somebody chose before what nobody did.
    return dict(sorted(sources.items(), key=lambda pair: (pair[0] == "default", -pair[1])))


def _checkpoints(folder: Path, *, best_step: int | None) -> list[Checkpoint]:
    found = []
    for path in sorted((folder / CHECKPOINTS_FOLDER).glob("step-*")):
        match = _CHECKPOINT.fullmatch(path.name)
        size = _size(path)
        if match is None or size is None:
            continue
        step = int(match[1])
        is_whole = (path / CHECKPOINT_MARKER).is_file()
        found.append(Checkpoint(path.name, step, size, is_whole, is_best=step == best_step))
    return found


def _size(folder: Path) -> int | None:
    """Return the bytes in a folder; None where it is not there."""
    if not folder.is_dir():
        return None
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # a checkpoint that is being removed
            continue
    return total
