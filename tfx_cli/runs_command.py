"""`tfx runs`: list, show, compare and export runs. Nothing here imports torch."""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import ConfigurationError
from core.files import folder_size
from core.runlog.export import format_of, metrics_table, to_bytes, write_export
from core.runlog.json_lines import number_in
from core.runlog.overview import (
    ComparedMetric,
    Comparison,
    RunOverview,
    RunRow,
    compare_runs,
    overview,
    run_row,
)
from core.runlog.reader import RunReader, find_run, list_runs
from core.runlog.schema import (
    RESERVED_METRIC_KEYS,
    RUN_FILE,
    SEEN_STATES,
    WORK_STATES,
    EventRecord,
    MetricRecord,
    metric_info,
)
from core.wording import did_you_mean, duration, size
from tfx_cli.arguments import JSON_OUTPUT, RUNS
from tfx_cli.command_line import argument, new_app, option
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
from tfx_cli.output import (
    TABLE_GAP,
    Document,
    Paragraph,
    confirm,
    make_table,
    narrate,
    print_result,
    print_text,
)
from tfx_cli.run_columns import (
    DEFAULT_COLUMNS,
    RUN_COLUMNS,
    RunColumn,
    columns_that_fit,
    room_for_names,
    sorted_runs,
)

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

app = new_app(no_args_is_help=True, add_completion=False)

_RUN = argument("[RUN]", "A run, by name or folder; default: the newest.", default=None)
SortKey = Literal["started", "name", "step", "loss", "accuracy"]


@app.callback()
def runs() -> None:
    """List, show, compare, export, rename, tag and delete runs, while they train or later.

    Examples
    --------
    tfx runs list
    tfx runs show base
    """


@app.command("list")
def list_command(
    folder: Path | None = argument("[FOLDER]", "Folder of runs; default: runs.", default=None),
    state: list[str] | None = option(
        "--state", "Only runs in this state, as in stale; can be repeated."
    ),
    sort: SortKey = option("--sort", "Newest, best or furthest first.", default="started"),
    as_json: bool = JSON_OUTPUT,
) -> None:
    """List runs: progress, losses, and whether they still train.

    A run that has written nothing for 15 seconds is stale; after 10 minutes it is presumed
    crashed. Loss and accuracy are those of the best validation score, whose weights are in the
    model folder; accuracy is the mean over phenotypes.

    Examples
    --------
    tfx runs list
    tfx runs list --state running --state stale
    tfx runs list experiments --sort accuracy --json
    """
    for one in state or ():
        if one not in SEEN_STATES:
            hint = did_you_mean(one, SEEN_STATES) or f"one of {', '.join(SEEN_STATES)}"
            raise ConfigurationError(f"--state {one}: there is no such state; {hint}")
    root = RUNS if folder is None else folder
    if folder is not None and not folder.is_dir():
        raise ConfigurationError(f"there is no folder '{folder}'; give the folder that holds runs")
    if (root / RUN_FILE).is_file():
        raise ConfigurationError(f"'{root}' is a run itself; see 'tfx runs show {root}'")
    now = time.time()
    rows = [run_row(summary) for summary in list_runs(root, now=now)]
    shown = [row for row in rows if not state or row.state in state]
    column = {"name": "run", "loss": "val. loss"}.get(sort, sort)
    shown = sorted_runs(shown, next(one for one in RUN_COLUMNS if one.name == column))
    if not shown:
        found = f"{len(rows)} runs, none of them {' or '.join(state or ())}" if rows else "no runs"
        narrate(f"{found} in '{root}'; 'tfx train PRESET' makes one")

    ages = [None if row.last_data is None else max(now - row.last_data, 0.0) for row in shown]
    records = [asdict(row) | {"age": age} for row, age in zip(shown, ages, strict=True)]
    print_result(
        "runs.list",
        {"folder": str(root), "runs": records},
        as_json=as_json,
        text=lambda: runs_table(shown, now=now) if shown else [],
    )


@app.command("show")
def show_command(
    run: str | None = _RUN,
    n_events: int = option("--events N", "How many of the last events.", min=0, default=10),
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Show everything about a run, as text.

    State, preset and provenance of its values, cells, model, machine, the last and the best
    metrics, speed and use of the hardware, checkpoints, events.

    Examples
    --------
    tfx runs show
    tfx runs show base --events 50
    tfx runs show runs/base --json
    """
    reader = RunReader(find_run(RUNS, run))
    now = time.time()
    found = overview(reader, n_events=n_events, now=now)
    record = asdict(found)
    record["metrics"] = {
        name: {key: getattr(metric_info(name), key) for key in ("label", "unit", "better")}
        for name in [*(found.train or ()), *(found.last or ())]
        if name not in RESERVED_METRIC_KEYS
    }
    print_result(
        "runs.show",
        {**record.pop("row"), **record},
        as_json=as_json,
        text=lambda: overview_text(found, reader.metrics(), now=now),
    )


@app.command("compare")
def compare_command(
    names: list[str] = argument("RUN RUN...", "Two runs or more, by name or folder."),
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Compare runs: differences of their presets, and their metrics.

    A '*' marks the best value of a metric, where the runs have the same cells, encoding, masking and
    losses.

    Examples
    --------
    tfx runs compare base wide
    tfx runs compare runs/base runs/base-2 --json
    """
    folders = [find_run(RUNS, name) for name in names]
    if len({folder.resolve() for folder in folders}) < 2:
        raise ConfigurationError("give two different runs or more; 'tfx runs list' names them")
    found = compare_runs([RunReader(folder) for folder in folders])
    record = asdict(found)
    print_result(
        "runs.compare",
        record | {"figures": record["metrics"]},  # the name before 0.2
        as_json=as_json,
        text=lambda: comparison_text(found),
    )


@app.command("export")
def export_command(
    run: str | None = _RUN,
    output: str = option("--output -o FILE", "File to write; - for stdout.", default="-"),
    form: Literal["wide", "long"] = option(
        "--form", "A column per metric, or a row per value.", default="wide"
    ),
    file_format: Literal["csv", "json", "jsonl", "parquet"] | None = option(
        "--format", "Format; default: by the file's name, csv for stdout."
    ),
    split: str | None = option("--split SPLIT", "Only train or validation."),
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Write the metrics of a run as a table for other programs.

    Steps that a resumed run repeated appear once. A value that is not finite is empty. The file is
    replaced as a whole, so that you can export again while the run trains.

    Examples
    --------
    tfx runs export base -o base.csv
    tfx runs export base -o - --form long --split validation
    """
    is_stdout = output == "-"
    if is_stdout and as_json:
        raise ConfigurationError(
            "--json describes a written file; for the metrics as JSON give --format json"
        )
    wanted = file_format or ("csv" if is_stdout else format_of(Path(output)))
    if is_stdout and wanted == "parquet":
        raise ConfigurationError("Parquet cannot be printed; give -o FILE.parquet")
    folder = find_run(RUNS, run)
    records = RunReader(folder).metrics()
    splits = sorted({str(record.get("split")) for record in records})
    if split is not None and split not in splits:
        has = f"it has {', '.join(splits)}" if splits else "it has no metrics yet"
        raise ConfigurationError(f"--split {split}: {folder} has no metrics of that split; {has}")
    kept = [record for record in records if split is None or record.get("split") == split]
    columns, rows = metrics_table(kept, form=form)
    content = to_bytes(columns, rows, wanted)
    if is_stdout:
        print_text(Document(content.decode()))
        return
    write_export(Path(output), content)
    print_result(
        "runs.export",
        {"run": str(folder), "file": output, "rows": len(rows), "columns": columns},
        as_json=as_json,
        text=lambda: f"{output}: {len(rows):,} rows, {len(columns)} columns",
    )


# -- keeping runs
@app.command("rename")
def rename_command(
    run: str = argument("RUN", "A run, by name or folder."),
    name: str = argument("NAME", "Its new name."),
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Give a run another name.

    Examples
    --------
    tfx runs rename base-2 wide-batches
    """
    from core.runlog.keeping import rename_run

    folder = find_run(RUNS, run)
    renamed = rename_run(folder, name)
    print_result(
        "runs.rename",
        {"run": str(renamed), "before": str(folder)},
        as_json=as_json,
        text=lambda: f"{folder} is now {renamed}",
    )


@app.command("tag")
def tag_command(
    run: str = argument("RUN", "A run, by name or folder."),
    tags: list[str] | None = argument("[TAG...]", "Tags instead of those it has.", default=None),
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Give a run tags, which lists of runs show; without any tag, take them away.

    Examples
    --------
    tfx runs tag base paper "seed 3"
    tfx runs tag base
    """
    from core.runlog.keeping import tag_run

    folder = find_run(RUNS, run)
    tag_run(folder, tags or [])
    kept = RunReader(folder).summary().tags
    print_result(
        "runs.tag",
        {"run": str(folder), "tags": kept},
        as_json=as_json,
        text=lambda: f"{folder}: {', '.join(kept) or 'no tags'}",
    )


@app.command("delete")
def delete_command(
    names: list[str] = argument("RUN...", "Runs, by name or folder."),
    yes: bool = option("--yes", "Do not ask.", default=False),
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Move runs to the folder .trash beside them, after asking.

    Move a folder back to undo it; delete .trash to free the disk.

    Examples
    --------
    tfx runs delete base-2 base-3
    tfx runs delete base-2 --yes
    """
    from core.runlog.keeping import TRASH, delete_run

    folders = list(dict.fromkeys(find_run(RUNS, name) for name in names))
    if not yes:
        shown = ", ".join(f"{one} ({size(folder_size(one) or 0)})" for one in folders)
        confirm(
            f"Move {shown} to {folders[0].parent / TRASH}?",
            refusal=f"to delete {shown} without being asked, give --yes",
        )
    moved = {str(folder): str(delete_run(folder)) for folder in folders}
    print_result(
        "runs.delete",
        {"moved": moved},
        as_json=as_json,
        text=lambda: "\n".join(f"{one} is now {place}" for one, place in moved.items()),
    )


# -- text
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


# -- one run
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


# -- runs side by side
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
