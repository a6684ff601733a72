"""Tables and text of `tfx runs`; colour is never the only sign."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.runlog.json_lines import number_in
from core.runlog.overview import ComparedMetric, Comparison, RunOverview, RunRow
from core.runlog.schema import RESERVED_METRIC_KEYS, EventRecord, MetricRecord, metric_info
from core.wording import duration, size
from tfx_cli.formatting import (
    ago,
    curve_text,
    date,
    gpus_of,
    machine_text,
    metric_value,
    progress_of,
    short_count,
)
from tfx_cli.output import make_table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

#: States that need attention, or are alive.
_STYLES = {
    "running": "green",
    "starting": "green",
    "stale": "yellow",
    "stopped": "yellow",
    "crashed": "red",
    "failed": "red",
}
#: accelerate's name of a precision -> ours.
PRECISIONS = {"no": "fp32"}
_EVENT_KEYS = frozenset({"event", "t", "step", "nonfinite"})
_LONGEST_DETAIL, _LONGEST_SETTING = 160, 60  # characters
#: Model FLOPs utilisation; docs/run-format.md explains the symbols.
_MFU = "(6 P + 12 · layers · d · L̄) · tokens/s / peak FLOP/s"


def run_texts(row: RunRow, *, now: float) -> dict[str, str]:
    """Return the columns of a list of runs: name -> text."""
    return {
        "run": row.name,
        "state": row.state,
        "step": progress_of(row.step, row.total, short=True),
        "loss": metric_value("loss", row.loss),
        "val. loss": metric_value("loss", row.validation_loss),
        "accuracy": metric_value("acc/mean", row.accuracy),
        "last data": ago(row.last_data, now=now),
        "left": "" if row.eta is None else duration(row.eta),
    }


def runs_table(rows: Sequence[RunRow], *, now: float) -> "Table":
    """Make the table of `tfx runs list`, about 80 columns wide."""
    texts = [run_texts(row, now=now) for row in rows]
    cells = [[*{**one, "state": _state(one["state"])}.values()] for one in texts]
    return make_table(list(texts[0]), cells, right=range(2, 8))


def _state(state: str) -> "Text":
    from rich.text import Text

    return Text(state, style=_STYLES.get(state, ""))


# -- one run


def overview_text(
    found: RunOverview, metrics: Sequence[MetricRecord], *, now: float
) -> "Iterator[RenderableType]":
    """Make the text of `tfx runs show`; ``metrics`` are for its curves."""
    yield f"{found.row.path}: {_headline(found.row, now=now)}"
    yield ""
    yield make_table(["", ""], _facts(found))
    curves = [curve for split in ("train", "validation") if (curve := _curve(metrics, split))]
    if curves:
        yield ""
        yield from curves
    if found.train is not None or found.last is not None:
        yield ""
        yield _metrics_table(found)
    mfu = number_in(found.train, "mfu")
    if mfu is not None:
        yield f"MFU {metric_value('mfu', mfu)} = {_MFU}{_mfu_numbers(found.run)}"
    if found.machines:
        yield ""
        yield make_table(["machine", "", "at"], _machines(found, now=now))
    if found.checkpoints:
        yield ""
        yield make_table(["checkpoint", "step", "size", ""], _checkpoints(found))
    if found.events:
        yield ""
        shown = len(found.events)
        title = f"last {shown} of {found.n_events} events" if shown < found.n_events else ""
        yield make_table(["event", "step", "", "at"], map(_event, found.events), title=title)
    if found.bad_lines:
        yield ""
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
    columns = [("train", found.train), ("validation", found.last)]
    if found.kept is not None and found.kept is not found.last:
        columns.append(("lowest loss", found.kept))
    names = dict.fromkeys(
        name for _, record in columns for name in record or () if name not in RESERVED_METRIC_KEYS
    )
    heads = [
        f"{head}, step {record['step']:,}" if record is not None else head
        for head, record in columns
    ]
    rows = []
    for name in names:
        best = found.best.get(name)
        last = "" if best is None else f"{metric_value(name, best.value)} at {best.step:,}"
        rows.append([_label(name), *(_metric(record, name) for _, record in columns), last])
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
    details = "  ".join(
        f"{name}: {_detail(name, value)}"
        for name, value in record.items()
        if name not in _EVENT_KEYS and value is not None
    )
    cut = details[:_LONGEST_DETAIL] + ("..." if len(details) > _LONGEST_DETAIL else "")
    when = date(number_in(record, "t"))
    return str(record.get("event", "")), None if step is None else int(step), cut, when


def _detail(name: str, value: object) -> str:
    if isinstance(value, list) and name == "rows":
        return f"{len(value)} cells"
    return metric_value(name, value) if isinstance(value, float) else str(value)


# -- runs side by side

_LABELS = {
    ("seconds", "run"): "time of training",
    ("parameters", "run"): "parameters",
    ("step", "kept"): "  at step",
    ("loss", "train"): "train loss, last",
    ("loss", "last"): "validation loss, last",
    ("loss", "kept"): "validation loss, lowest",
}


def comparison_text(found: Comparison) -> "Iterator[RenderableType]":
    """Make the text of `tfx runs compare`."""
    names = [row.name for row in found.runs]
    names = [row.path if names.count(row.name) > 1 else row.name for row in found.runs]
    if found.settings:
        settings = [[key, *map(_setting, values)] for key, values in found.settings.items()]
        yield make_table(["preset", *names], settings)
    else:
        yield "The presets are the same."
    yield ""
    rows: list[Sequence[object]] = [
        ["state", *(_state(row.state) for row in found.runs)],
        ["step", *(progress_of(row.step, row.total) for row in found.runs)],
    ]
    rows += [_compared(metric) for metric in found.metrics]
    yield make_table(["metric", *names], rows, right=range(1, 1 + len(names)))
    if any(metric.best for metric in found.metrics):
        yield "* best"
    yield from found.notes


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
