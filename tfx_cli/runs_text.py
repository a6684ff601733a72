"""Texts of `tfx runs`: the table of a list, all about one run, runs side by side."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.runlog.json_lines import number_in
from core.runlog.overview import ComparedMetric, Comparison, RunOverview, RunRow
from core.runlog.schema import (
    RESERVED_METRIC_KEYS,
    WORK_STATES,
    EventRecord,
    MetricRecord,
    metric_info,
)
from core.wording import duration, size
from tfx_cli.formatting import (
    PRECISIONS,
    ago,
    curve_text,
    date,
    gpus_of,
    machine_text,
    metric_value,
    progress_of,
    short_count,
    shortened_middle,
)
from tfx_cli.output import TABLE_GAP, Paragraph, make_table
from tfx_cli.run_columns import DEFAULT_COLUMNS, RunColumn, columns_that_fit, room_for_names

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


#: States that need attention, or are alive.
_STYLES = {
    "running": "green",
    **dict.fromkeys(WORK_STATES, "green"),
    "starting": "green",
    "stale": "yellow",
    "stopped": "yellow",
    "crashed": "red",
    "failed": "red",
}
_EVENT_KEYS = frozenset({"event", "t", "step", "nonfinite"})
_LONGEST_DETAIL, _LONGEST_SETTING = 160, 60  # characters
#: Model FLOPs utilisation; docs/run-format.md explains the symbols.
_MFU = "(6 P + 12 · layers · d · L̄) · tokens/s / peak FLOP/s, the last layer where it is read"
#: Rows of `tfx runs compare` that are no metric of their own name.
_LABELS = {
    ("seconds", "run"): "time of training",
    ("parameters", "run"): "parameters",
    ("step", "kept"): "  at step",
    ("loss", "train"): "train loss, last",
    ("loss", "last"): "validation loss, last",
    ("loss", "kept"): "validation loss, best step",
}


def runs_table(rows: Sequence[RunRow], *, now: float) -> "Table":
    """Make the table of `tfx runs list`; a terminal has one line a run, and long names are cut."""
    from rich.text import Text

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    columns = columns_that_fit(DEFAULT_COLUMNS, rows, now=now, width=width, gap=TABLE_GAP)
    room = (
        None
        if width is None
        else room_for_names(columns, rows, now=now, width=width, gap=TABLE_GAP)
    )

    def cell(column: RunColumn, row: RunRow) -> Text | str:
        text = column.text(row, now)
        if column.name == "run":
            return text if room is None else shortened_middle(text, room)
        return _state(text) if column.name == "state" else text

    cells = [[cell(column, row) for column in columns] for row in rows]
    heads = [Text(column.title if width is None else column.head) for column in columns]
    right = [place for place, column in enumerate(columns) if not column.is_left]
    return make_table(heads, cells, right=right)


def _state(state: str) -> "Text":
    from rich.text import Text

    return Text(state, style=_STYLES.get(state, ""))


def overview_text(
    found: RunOverview, metrics: Sequence[MetricRecord], *, now: float
) -> Iterator[Paragraph]:
    """Make the text of `tfx runs show`; ``metrics`` are for its curves."""
    yield f"{found.row.path}: {_headline(found.row, now=now)}"
    yield make_table(["", ""], _facts(found))
    yield [curve for split in ("train", "validation") if (curve := _curve(metrics, split))]
    if found.train is not None or found.last is not None:
        mfu = number_in(found.train, "mfu")
        lines = [] if mfu is None else [f"MFU {metric_value('mfu', mfu)} = {_MFU}"]
        yield [_metrics_table(found), *(line + _mfu_numbers(found.run) for line in lines)]
    if found.machines:
        yield make_table(["machine", "", "at"], _machines(found, now=now))
    if found.checkpoints:
        yield make_table(["checkpoint", "step", "size", ""], _checkpoints(found))
    if found.events:
        shown = len(found.events)
        title = f"last {shown} of {found.n_events} events" if shown < found.n_events else ""
        yield make_table(["event", "step", "", "at"], map(_event, found.events), title=title)
    if found.bad_lines:
        yield f"{found.bad_lines:,} lines of its files could not be read and were left out"


def _headline(row: RunRow, *, now: float) -> str:
    parts = [row.state]
    if row.step is not None:
        fraction = f" ({row.step / row.total:.0%})" if row.total else ""
        parts.append(f"step {progress_of(row.step, row.total)}{fraction}")
    if row.last_data is not None:
        parts.append(f"last data {ago(row.last_data, now=now)}")
    if row.eta is not None:
        parts.append(f"{duration(row.eta)} left")
    return ", ".join(parts)


def _facts(found: RunOverview) -> Iterator[tuple[str, str]]:
    run = found.run

    def known(name: str, text: str = "{}") -> list[str]:
        return [] if run.get(name) in (None, "") else [text.format(str(run[name]))]

    def count(name: str, noun: str) -> list[str]:
        return [f"{run[name]:,} {noun}"] if type(run.get(name)) is int else []

    if found.status.get("error"):
        yield "error", str(found.status["error"])
    sources = ", ".join(f"{source} ({number})" for source, number in found.sources.items())
    yield "preset", f"{run.get('name', '')}{f': values from {sources}' if sources else ''}"
    yield "store", f"{run.get('store', '')}{' (simulated cells)' if run.get('simulated') else ''}"
    phenotypes = run.get("phenotypes")
    parts = [
        f"{name} ({len(values)})" if isinstance(values, list) else str(name)
        for name, values in (phenotypes if isinstance(phenotypes, dict) else {}).items()
    ]
    parts = [*count("parameters", "parameters"), *count("genes", "genes"), *parts]
    yield "model", ", ".join(parts)
    if found.model_size is not None:
        step = "" if found.kept is None else f", of step {found.kept['step']:,}"
        yield "model folder", f"{found.row.path}/model ({size(found.model_size)}{step})"
    precision = [PRECISIONS.get(one, one) for one in known("precision")]
    devices = dict.fromkeys([*known("device"), *known("device_name")])
    processes = count("processes", "process" if run.get("processes") == 1 else "processes")
    yield "device", ", ".join([*devices, *precision, *processes])
    yield "host", ", ".join([*known("host"), *known("job", "job {}")])
    yield "started", f"{date(number_in(run, 'started'))}, {duration(found.seconds)} of training"
    versions = [*known("tfx", "tfx {}"), *known("python", "python {}")]
    yield "versions", ", ".join([*versions, *known("commit", "commit {:.12}")])
    if isinstance(run.get("argv"), list):
        yield "command", " ".join(map(str, run["argv"]))


def _curve(metrics: Sequence[MetricRecord], split: str) -> str:
    losses = [number_in(one, "loss") for one in metrics if one.get("split") == split]
    known = [loss for loss in losses if loss is not None]
    if len(known) < 2:
        return ""
    first, last, lowest = (metric_value("loss", one) for one in (known[0], known[-1], min(known)))
    return f"{f'{split} loss':<15}  {curve_text(losses)}  {first} to {last}, lowest {lowest}"


def _metrics_table(found: RunOverview) -> "Table":
    columns = {"train": found.train, "validation": found.last}
    if found.kept is not None and found.kept is not found.last:
        columns["best score"] = found.kept
    names = dict.fromkeys(name for record in columns.values() for name in record or ())
    rows = []
    for name in names:
        if name not in RESERVED_METRIC_KEYS:
            best = found.best.get(name)
            last = "" if best is None else f"{metric_value(name, best.value)} at {best.step:,}"
            shown = [_metric(record, name) for record in columns.values()]
            rows.append([_label(name), *shown, last])
    heads = [
        f"{head}, step {record['step']:,}" if record is not None else head
        for head, record in columns.items()
    ]
    return make_table(["metric", *heads, "best, at step"], rows, right=range(1, 2 + len(heads)))


def _label(name: str) -> str:
    info = metric_info(name)
    return f"{info.label}, {info.unit}" if info.unit else info.label


def _metric(record: MetricRecord | None, name: str) -> str:
    if record is None or name not in record:
        return ""
    nonfinite = record.get("nonfinite")
    if record[name] is None and isinstance(nonfinite, list) and name in nonfinite:
        return "not finite"
    return metric_value(name, record[name])


def _mfu_numbers(run: Mapping[str, Any]) -> str:
    """Write P, layers, d and the peak, if the run has recorded them."""
    encoder, peak = run.get("encoder"), number_in(run, "peak_flops")
    if not isinstance(encoder, dict) or peak is None:
        return ""
    return (
        f", P = {encoder.get('parameters'):,}, {encoder.get('layers')} layers, "
        f"d = {encoder.get('width')}, peak {short_count(peak)}FLOP/s"
    )


def _machines(found: RunOverview, *, now: float) -> Iterator[Sequence[object]]:
    for host, line in found.machines.items():
        yield host, machine_text(line), ago(number_in(line, "t"), now=now)
        yield from ((f"  {name}", text, "") for name, text in gpus_of(line))


def _checkpoints(found: RunOverview) -> Iterator[Sequence[object]]:
    for one in found.checkpoints:
        notes = ["best"] if one.is_best else []
        notes += ["newest"] if one is found.checkpoints[-1] else []
        notes += [] if one.is_whole else ["not whole"]
        yield one.name, one.step, size(one.size), ", ".join(notes)


def _event(record: EventRecord) -> Sequence[object]:
    step = number_in(record, "step")
    details = []
    for name, value in record.items():
        if name not in _EVENT_KEYS and value is not None:
            text = metric_value(name, value) if isinstance(value, float) else str(value)
            is_cells = name == "rows" and isinstance(value, list)
            details.append(f"{name}: {f'{len(value)} cells' if is_cells else text}")
    shown = "  ".join(details)
    cut = shown[:_LONGEST_DETAIL] + ("..." if len(shown) > _LONGEST_DETAIL else "")
    when = date(number_in(record, "t"))
    return str(record.get("event", "")), None if step is None else int(step), cut, when


def comparison_text(found: Comparison) -> Iterator[Paragraph]:
    """Make the text of `tfx runs compare`."""
    names = [row.name for row in found.runs]
    names = [row.path if names.count(row.name) > 1 else row.name for row in found.runs]
    settings = [[key, *map(_setting, values)] for key, values in found.settings.items()]
    yield make_table(["preset", *names], settings) if settings else "The presets are the same."
    rows: list[Sequence[object]] = [
        ["state", *(_state(row.state) for row in found.runs)],
        ["step", *(progress_of(row.step, row.total) for row in found.runs)],
        *map(_compared, found.metrics),
    ]
    table = make_table(["metric", *names], rows, right=range(1, 1 + len(names)))
    best = ["* best"] if any(metric.best for metric in found.metrics) else []
    yield [table, *best, *found.notes]


def _setting(value: object) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_SETTING else text[: _LONGEST_SETTING - 3] + "..."


def _compared(metric: ComparedMetric) -> Sequence[object]:
    from rich.text import Text

    label = _LABELS.get((metric.name, metric.at))
    if label is None:
        label = f"  {_label(metric.name)}" if metric.at == "kept" else _label(metric.name)
    cells = []
    for place, value in enumerate(metric.values):
        text, is_best = _value(metric.name, value), place in metric.best
        cells.append(Text(f"* {text}" if is_best else text, style="bold" if is_best else ""))
    return [label, *cells]


def _value(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "seconds":
        return duration(value)
    if name == "step":
        return f"{value:,.0f}"
    return short_count(value) if name == "parameters" else metric_value(name, value)
