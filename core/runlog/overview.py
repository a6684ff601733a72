"""Runs: a row of one in a list, everything of one but its curves, and several side by side."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.files import folder_size
from core.runlog.history import LatestMetrics, phenotype_accuracies, read_latest_metrics
from core.runlog.json_lines import number_in
from core.runlog.reader import RunReader, RunSummary, read_settings, read_values
from core.runlog.schema import (
    CHECKPOINT_MARKER,
    CHECKPOINTS_FOLDER,
    GENE_METRICS,
    LIVE_STATES,
    MODEL_FOLDER,
    RESERVED_METRIC_KEYS,
    EventRecord,
    MetricRecord,
    metric_info,
)

_CHECKPOINT = re.compile(r"step-(\d+)")
#: Sections of a preset that define the task: if they differ, losses mean different things.
_TASK = ("data", "encoding", "masking", "loss")


@dataclass(frozen=True)
class RunRow:
    """A run in a list of runs; a value that it has not written is None."""

    name: str
    path: str
    #: As in `RunSummary`.
    state: str
    step: int | None
    total: int | None
    #: Of the last line of training.
    loss: float | None
    #: The best evaluation, whose weights the model folder holds: its loss, step, and accuracies by phenotype.
    validation_loss: float | None
    best_step: int | None
    accuracies: dict[str, float]
    #: Mean of the accuracies.
    accuracy: float | None
    #: The last start, in seconds since 1970.
    started: float
    #: The newest metrics (without any: the heartbeat), in seconds since 1970.
    last_data: float | None
    #: Seconds left, of a live run or of the present stage of other work.
    eta: float | None
    #: Stage of the work that the state names, and the fraction that is done of it, or of all steps.
    stage: str = ""
    fraction: float | None = None
    tags: tuple[str, ...] = ()


def run_row(summary: RunSummary, latest: LatestMetrics | None = None) -> RunRow:
    """Return the row of a run; ``latest`` spares reading its metrics where they are known."""
    if latest is None:
        latest = read_latest_metrics(summary.path)
    kept = latest.kept
    accuracies = phenotype_accuracies(kept)
    newest = [line for line in (latest.train, latest.last) if line is not None]
    last_step = max((line["step"] for line in newest), default=None)
    times = [number_in(line, "t") for line in newest]
    work, step = summary.work, summary.step if summary.step is not None else last_step
    fraction = None if work is None else work.fraction
    if work is None and step is not None and summary.total:
        fraction = min(step / summary.total, 1.0)
    is_live = work is not None or summary.state in (*LIVE_STATES, "stale")
    return RunRow(
        name=summary.name,
        path=str(summary.path),
        state=summary.state,
        step=step,
        total=summary.total,
        loss=number_in(latest.train, "loss"),
        validation_loss=number_in(kept, "loss"),
        best_step=None if kept is None else kept["step"],
        accuracies=accuracies,
        accuracy=sum(accuracies.values()) / len(accuracies) if accuracies else None,
        started=summary.started,
        last_data=max(filter(None, times), default=None) or summary.heartbeat,
        eta=summary.eta if is_live else None,
        stage="" if work is None else work.stage,
        fraction=fraction,
        tags=summary.tags,
    )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run, and its size in bytes."""

    name: str
    step: int
    size: int
    #: Whether its marker exists; the checksums of its files are not verified.
    is_whole: bool
    #: Whether it is that of the best evaluation.
    is_best: bool


@dataclass(frozen=True)
class BestValue:
    """The best value of a metric, and the step that reached it first."""

    value: float
    step: int


@dataclass(frozen=True)
class RunOverview:
    """Everything of a run but its curves; what it has not written is empty or None."""

    row: RunRow
    #: run.json and status.json.
    run: dict[str, Any]
    status: dict[str, Any]
    #: Provenance of the preset's values: source -> number of values.
    sources: dict[str, int]
    #: Lines of metrics: the last of training, the last evaluation, the best one.
    train: MetricRecord | None
    last: MetricRecord | None
    kept: MetricRecord | None
    #: The best value of each validation metric that has a better direction.
    best: dict[str, BestValue]
    #: Time trained, over all starts.
    seconds: float
    #: Host -> its last line.
    machines: dict[str, dict[str, Any]]
    #: The last events, and the number of all.
    events: list[EventRecord]
    n_events: int
    #: Oldest first.
    checkpoints: list[Checkpoint]
    #: Bytes of the model folder; None if it does not exist yet.
    model_size: int | None
    #: Lines that could not be read.
    bad_lines: int


def overview(reader: RunReader, *, n_events: int = 10, now: float | None = None) -> RunOverview:
    """Read everything about a run, with its last ``n_events`` events; ``now`` is for tests."""
    folder = reader.folder
    metrics, events = reader.metrics(), reader.events()
    latest = LatestMetrics.of(metrics)
    kept = latest.kept
    return RunOverview(
        row=run_row(reader.summary(now=time.time() if now is None else now), latest),
        run=reader.run,
        status=reader.status,
        sources=setting_sources(folder),
        train=latest.train,
        last=latest.last,
        kept=kept,
        best=best_values(latest.validations),
        seconds=seconds_trained(events, metrics),
        machines={host: lines[-1] for host, lines in reader.system().items() if lines},
        events=events[max(len(events) - n_events, 0) :],
        n_events=len(events),
        checkpoints=_checkpoints(folder, best_step=None if kept is None else kept["step"]),
        model_size=folder_size(folder / MODEL_FOLDER),
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
            sign = 1 if better == "higher" else -1
            if name not in best or sign * value > sign * best[name].value:
                best[name] = BestValue(value, record["step"])
    return best


def seconds_trained(events: Iterable[EventRecord], metrics: Iterable[MetricRecord]) -> float:
    """Return the time a run trained: from each start or resume to the last line before the next."""
    times = sorted(
        (moment, record.get("event") in ("start", "resume"))
        for record in (*events, *metrics)
        if (moment := number_in(record, "t")) is not None
    )
    total, before = 0.0, None
    for moment, begins in times:
        if before is not None and not begins:
            total += moment - before
        before = moment
    return total


def setting_sources(folder: Path) -> dict[str, int]:
    """Count the values of a run's resolved preset by their source, defaults last."""
    known = (setting.provenance for setting in read_settings(folder) if setting.provenance)
    sources = Counter(re.sub(r":\d+$", "", one) for one in known)
    return dict(sorted(sources.items(), key=lambda pair: (pair[0] == "default", -pair[1])))


def _checkpoints(folder: Path, *, best_step: int | None) -> list[Checkpoint]:
    found = []
    for path in sorted((folder / CHECKPOINTS_FOLDER).glob("step-*")):
        match = _CHECKPOINT.fullmatch(path.name)
        size = folder_size(path)
        if match is None or size is None:
            continue
        step = int(match[1])
        is_whole = (path / CHECKPOINT_MARKER).is_file()
        found.append(Checkpoint(path.name, step, size, is_whole, is_best=step == best_step))
    return found


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of all runs."""

    #: As in metrics.jsonl, or ``seconds`` or ``parameters``.
    name: str
    #: ``train``: last line of training; ``kept``: the best evaluation; ``last``: the
    #: last evaluation; ``run``: of the run itself.
    at: Literal["run", "train", "kept", "last"]
    #: One per run; None if a run has none.
    values: tuple[float | None, ...]
    #: Places of the best runs; none without a better direction, or if the values are not comparable.
    best: tuple[int, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, in the order given."""

    runs: tuple[RunRow, ...]
    #: Dotted key of the preset -> its value in each run (None: not set), where they differ.
    settings: dict[str, tuple[Any, ...]]
    #: In the order to show.
    metrics: tuple[ComparedMetric, ...]
    #: Why some metrics must not be compared.
    notes: tuple[str, ...]


def compare_runs(readers: Sequence[RunReader]) -> Comparison:
    """Compare runs, in the order to show them."""
    presets = [read_values(reader.folder) for reader in readers]
    keys = dict.fromkeys(key for preset in presets for key in preset if key != "name")
    rows = {key: tuple(preset.get(key) for preset in presets) for key in keys}
    settings = {key: row for key, row in rows.items() if any(one != row[0] for one in row[1:])}

    lines = [reader.metrics() for reader in readers]
    latest = [LatestMetrics.of(records) for records in lines]
    stores = [reader.run.get("store_key") for reader in readers]
    same_cells = isinstance(stores[0], str) and all(store == stores[0] for store in stores)
    same_task = same_cells and not any(key.split(".")[0] in _TASK for key in settings)
    notes = []
    if not same_cells:
        notes = ["the runs were not trained on one store: none of their metrics is marked as best"]
    elif not same_task:
        notes = [
            "encoding, masking or loss differ: losses and accuracies of genes are not marked as best"
        ]

    def compared(name: str, at: Literal["train", "kept", "last"]) -> ComparedMetric:
        values = tuple(number_in(getattr(one, at), name) for one in latest)
        is_of_phenotype = name.startswith(("acc/", "f1/")) and name not in GENE_METRICS
        is_comparable = at == "kept" and (same_cells if is_of_phenotype else same_task)
        return ComparedMetric(name, at, values, _best(name, values) if is_comparable else ())

    parameters = tuple(number_in(reader.run, "parameters") for reader in readers)
    both = list(zip(readers, lines, strict=True))
    seconds = tuple(seconds_trained(reader.events(), records) for reader, records in both)
    # The loss first, then its step.
    names = dict.fromkeys(["loss", "step", *(name for one in latest for name in one.kept or ())])
    found = [
        ComparedMetric("parameters", "run", parameters),
        ComparedMetric("seconds", "run", seconds),
        compared("cells_per_second", "train"),
        compared("loss", "train"),
        compared("loss", "last"),
        *(compared(name, "kept") for name in names if name not in RESERVED_METRIC_KEYS - {"step"}),
    ]
    return Comparison(
        runs=tuple(map(run_row, [reader.summary() for reader in readers], latest)),
        settings=settings,
        metrics=tuple(one for one in found if any(value is not None for value in one.values)),
        notes=tuple(notes),
    )


def _best(name: str, values: Sequence[float | None]) -> tuple[int, ...]:
    better = metric_info(name).better
    known = [value for value in values if value is not None]
    if better is None or len(known) < 2:
        return ()
    best = max(known) if better == "higher" else min(known)
    return tuple(place for place, value in enumerate(values) if value == best)
