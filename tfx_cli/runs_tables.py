"""What `tfx runs` prints for people: tables and lines of text, no maths.

Every figure is text, and colour is never the only sign.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.runlog.comparison import ComparedMetric, Comparison
from core.runlog.json_lines import number_in
from core.runlog.overview import RunOverview, RunRow
from core.runlog.schema import RESERVED_METRIC_KEYS, EventRecord, MetricRecord, metric_info
from core.wording import size
from tfx_cli.curve_text import curve_text
from tfx_cli.machine_text import gpu_text, machine_text
from tfx_cli.output import make_table
from tfx_cli.quantities import ago, date, duration, metric_value, short_count

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

__all__ = ["comparison_text", "overview_text", "runs_table"]

#: Of the states that want a look.
_STYLES = {
    "running": "green",
    "starting": "green",
    "stale": "yellow",
    "stopped": "yellow",
    "crashed": "red",
    "failed": "red",
}
_PRECISIONS = {"no": "fp32"}  # accelerate's word
_EVENT_KEYS = frozenset({"event", "t", "step", "nonfinite"})
_LONGEST_DETAIL, _LONGEST_SETTING = 160, 60  # characters
#: How model FLOPs utilisation is reckoned; docs/run-format.md has the symbols.
_MFU = "(6 P + 12 · layers · d · L̄) · tokens/s / peak FLOP/s"


def runs_table(rows: Sequence[RunRow], *, now: float) -> "Table":
    """Make the table of `tfx runs list`; it fits into 80 columns or so."""
    return make_table(
        ["run", "state", "step", "loss", "val. loss", "accuracy", "last data", "left"],
        [
            [
                row.name,
                _state(row.state),
                _short_steps(row),
                metric_value("loss", row.loss),
                metric_value("loss", row.validation_loss),
                metric_value("acc/mean", row.accuracy),
                ago(row.last_data, now=now),
                "" if row.eta is None else duration(row.eta),
            ]
            for row in rows
        ],
        right=(2, 3, 4, 5, 6, 7),
    )


def _state(state: str) -> "Text":
    from rich.text import Text

    return Text(state, style=_STYLES.get(state, ""))


def _short_steps(row: RunRow) -> str:
    if row.step is None:
        return ""
    step = short_count(row.step)
    return step if row.total is None else f"{step}/{short_count(row.total)}"


def _steps(row: RunRow) -> str:
    if row.step is None:
        return ""
    return f"{row.step:,}" if row.total is None else f"{row.step:,} of {row.total:,}"


# -- one run


def overview_text(
    found: RunOverview, metrics: Sequence[MetricRecord], *, now: float
) -> "Iterator[RenderableType]":
    """Make all of `tfx runs show`.

    Parameters
    ----------
    found
        What there is to say.
    metrics
        For the curves.
    now
        Seconds since 1970.
    """
    yield f"{found.row.path}: {_headline(found, now=now)}"
    yield ""
    yield make_table(["", ""], _facts(found))
    yield from _curves(metrics)
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
        yield make_table(
            ["checkpoint", "step", "size", ""],
            [[one.name, one.step, size(one.size), _checkpoint_note(found, place)]
             for place, one in enumerate(found.checkpoints)],
        )  # fmt: skip
    if found.events:
        yield ""
        shown = len(found.events)
        title = f"last {shown} of {found.n_events} events" if shown < found.n_events else ""
        yield make_table(["event", "step", "", "at"], map(_event, found.events), title=title)
    if found.bad_lines:
        yield ""
        yield f"{found.bad_lines:,} lines of its files could not be read and were left out"


def _mfu_numbers(run: Mapping[str, Any]) -> str:
    """Say what P, layers, d and the peak are, where the run tells."""
    encoder, peak = run.get("encoder"), number_in(run, "peak_flops")
    if not isinstance(encoder, dict) or peak is None:
        return ""
    return (
        f", P = {encoder.get('parameters'):,}, {encoder.get('layers')} layers, "
        f"d = {encoder.get('width')}, peak {short_count(peak)}FLOP/s"
    )


def _headline(found: RunOverview, *, now: float) -> str:
    row = found.row
    parts = [row.state]
    if row.step is not None:
        share = f" ({row.step / row.total:.0%})" if row.total else ""
        parts.append(f"step {_steps(row)}{share}")
    if row.last_data is not None:
        parts.append(f"last data {ago(row.last_data, now=now)}")
    if row.eta is not None:
        parts.append(f"{duration(row.eta)} left")
    return ", ".join(parts)


def _facts(found: RunOverview) -> Iterator[tuple[str, str]]:
    run, status = found.run, found.status

    def known(*names: str) -> Iterable[str]:
        return (str(run[name]) for name in names if run.get(name) not in (None, ""))

    if status.get("error"):
        yield "error", str(status["error"])
    sources = ", ".join(f"{source} ({count})" for source, count in found.sources.items())
    yield (
        "preset",
        f"{run.get('name', '')}: values from {sources}" if sources else str(run.get("name", "")),
    )
    yield "store", f"{run.get('store', '')}{' (simulated cells)' if run.get('simulated') else ''}"
    parts = [f"{run['parameters']:,} parameters"] if _is_count(run.get("parameters")) else []
    if _is_count(run.get("genes")):
        parts.append(f"{run['genes']:,} genes")
    if isinstance(run.get("phenotypes"), dict):
        parts += [
            f"{name} ({len(values)})" if isinstance(values, list) else str(name)
            for name, values in run["phenotypes"].items()
        ]
    yield "model", ", ".join(parts)
    if found.model_size is not None:
        step = "" if found.kept is None else f", of step {found.kept['step']:,}"
        yield "model folder", f"{found.row.path}/model ({size(found.model_size)}{step})"
    precision = str(run.get("precision", ""))
    parts = list(dict.fromkeys(known("device", "device_name")))
    parts += [_PRECISIONS.get(precision, precision)] if precision else []
    if _is_count(run.get("processes")):
        parts.append(f"{run['processes']} process{'' if run['processes'] == 1 else 'es'}")
    yield "device", ", ".join(parts)
    yield "host", ", ".join([*known("host"), *(f"job {job}" for job in known("job"))])
    yield "started", f"{date(number_in(run, 'started'))}, {duration(found.seconds)} of training"
    versions = [f"tfx {tfx}" for tfx in known("tfx")] + [f"python {one}" for one in known("python")]
    yield "versions", ", ".join([*versions, *(f"commit {one[:12]}" for one in known("commit"))])
    if isinstance(run.get("argv"), list):
        yield "command", " ".join(map(str, run["argv"]))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _curves(metrics: Sequence[MetricRecord]) -> Iterator[str]:
    curves = []
    for split in ("train", "validation"):
        losses = [number_in(one, "loss") for one in metrics if one.get("split") == split]
        drawn = curve_text(losses)
        known = [loss for loss in losses if loss is not None]
        if len(known) > 1:
            ends = f"{metric_value('loss', known[0])} to {metric_value('loss', known[-1])}"
            lowest = f"lowest {metric_value('loss', min(known))}"
            curves.append(f"{f'{split} loss':<15}  {drawn}  {ends}, {lowest}")
    if curves:
        yield ""
        yield from curves


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
        rows.append(
            [
                _label(name),
                *(_figure(record, name) for _, record in columns),
                "" if best is None else f"{metric_value(name, best.value)} at {best.step:,}",
            ]
        )
    places = range(1, 2 + len(heads))
    return make_table(["figure", *heads, "best, at step"], rows, right=places)


def _label(name: str) -> str:
    info = metric_info(name)
    return f"{info.label}, {info.unit}" if info.unit else info.label


def _figure(record: MetricRecord | None, name: str) -> str:
    if record is None or name not in record:
        return ""
    nonfinite = record.get("nonfinite")
    if record[name] is None and isinstance(nonfinite, list) and name in nonfinite:
        return "not finite"
    return metric_value(name, record[name])


def _machines(found: RunOverview, *, now: float) -> Iterator[Sequence[object]]:
    for host, line in found.machines.items():
        yield host, machine_text(line), ago(number_in(line, "t"), now=now)
        gpus = line.get("gpus")
        for gpu in gpus if isinstance(gpus, list) else []:
            if isinstance(gpu, dict):
                yield f"  GPU {gpu.get('index', '')}", gpu_text(gpu), ""


def _checkpoint_note(found: RunOverview, place: int) -> str:
    one = found.checkpoints[place]
    notes = ["best"] if one.is_best else []
    notes += ["newest"] if place == len(found.checkpoints) - 1 else []
    notes += [] if one.is_whole else ["not whole"]
    return ", ".join(notes)


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


def comparison_text(found: Comparison) -> "Iterator[RenderableType]":
    """Make all of `tfx runs compare`."""
    names = _distinct_names(found.runs)
    yield make_table(["preset", *names], [
        [key, *(_setting(value) for value in values)] for key, values in found.settings.items()
    ]) if found.settings else "The presets say the same."  # fmt: skip
    yield ""
    rows: list[Sequence[object]] = [
        ["state", *(_state(row.state) for row in found.runs)],
        ["step", *(_steps(row) for row in found.runs)],
    ]
    rows += [_compared(figure) for figure in found.metrics]
    yield make_table(["figure", *names], rows, right=range(1, 1 + len(names)))
    if any(figure.best for figure in found.metrics):
        yield "* best"
    yield from found.notes


def _distinct_names(rows: Sequence[RunRow]) -> list[str]:
    names = [row.name for row in rows]
    return [row.path if names.count(row.name) > 1 else row.name for row in rows]


def _setting(value: object) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_SETTING else text[: _LONGEST_SETTING - 3] + "..."


_LABELS = {
    ("seconds", "run"): "time of training",
    ("parameters", "run"): "parameters",
    ("step", "kept"): "  at step",
    ("loss", "train"): "train loss, last",
    ("loss", "last"): "validation loss, last",
    ("loss", "kept"): "validation loss, lowest",
}


def _compared(figure: ComparedMetric) -> Sequence[object]:
    from rich.text import Text

    label = _LABELS.get((figure.name, figure.at))
    if label is None:
        label = f"  {_label(figure.name)}" if figure.at == "kept" else _label(figure.name)
    cells = []
    for place, value in enumerate(figure.values):
        text = _value(figure.name, value)
        is_best = place in figure.best
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
