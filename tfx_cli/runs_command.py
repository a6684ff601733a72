"""`tfx runs`: list, show, compare and export runs. Nothing here imports torch."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from core.errors import ConfigurationError
from core.wording import did_you_mean
from tfx_cli.arguments import RUNS
from tfx_cli.command_line import new_app
from tfx_cli.options import JsonOutput
from tfx_cli.output import narrate, print_result, print_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from core.runlog.overview import RunOverview, RunRow

app = new_app(no_args_is_help=True, add_completion=False)

RunArgument = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="A run, by name or folder; default: the newest."),
]
SortKey = Literal["started", "name", "step", "loss", "accuracy"]


@app.callback()
def runs() -> None:
    """List, show, compare and export runs, while they train or later.

    Examples
    --------
    tfx runs list
    tfx runs show base
    """


@app.command("list")
def list_command(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Folder of runs; default: runs.")
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", help="Only runs in this state, as in stale; can be repeated."),
    ] = None,
    sort: Annotated[SortKey, typer.Option("--sort", help="Newest, best or furthest first.")] = (
        "started"
    ),
    as_json: JsonOutput = False,
) -> None:
    """List runs: progress, losses, and whether they still train.

    A run that has written nothing for 15 seconds is stale; after 10 minutes it is presumed
    crashed. Loss and accuracy are those of the lowest validation loss, whose weights are in the
    model folder; accuracy is the mean over phenotypes.

    Examples
    --------
    tfx runs list
    tfx runs list --state running --state stale
    tfx runs list experiments --sort accuracy --json
    """
    from core.runlog.overview import run_row
    from core.runlog.reader import list_runs
    from core.runlog.schema import RUN_FILE, SEEN_STATES
    from tfx_cli.runs_tables import runs_table

    for one in state or ():
        if one not in SEEN_STATES:
            hint = did_you_mean(one, SEEN_STATES) or f"one of {', '.join(SEEN_STATES)}"
            message = f"--state {one}: there is no such state; {hint}"
            raise ConfigurationError(message)
    root = RUNS if folder is None else folder
    if folder is not None and not folder.is_dir():
        message = f"there is no folder '{folder}'; give the folder that holds runs"
        raise ConfigurationError(message)
    if (root / RUN_FILE).is_file():
        message = f"'{root}' is a run itself; see 'tfx runs show {root}'"
        raise ConfigurationError(message)
    now = time.time()
    rows = [run_row(summary) for summary in list_runs(root, now=now)]
    shown = [row for row in rows if not state or row.state in state]
    keys: dict[str, Callable[[RunRow], Any]] = {
        "started": lambda row: -row.started,
        "name": lambda row: row.name,
        "step": lambda row: -(row.step or 0),
        "loss": lambda row: (row.validation_loss is None, row.validation_loss or 0.0),
        "accuracy": lambda row: (row.accuracy is None, -(row.accuracy or 0.0)),
    }
    shown.sort(key=keys[sort])
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
    run: RunArgument = None,
    n_events: Annotated[
        int, typer.Option("--events", metavar="N", min=0, help="How many of the last events.")
    ] = 10,
    as_json: JsonOutput = False,
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
    from core.runlog.overview import overview
    from core.runlog.reader import RunReader, find_run
    from tfx_cli.runs_tables import overview_text

    reader = RunReader(find_run(RUNS, run))
    now = time.time()
    found = overview(reader, n_events=n_events, now=now)
    record = asdict(found)
    print_result(
        "runs.show",
        {**record.pop("row"), **record, "metrics": _described(found)},
        as_json=as_json,
        text=lambda: overview_text(found, reader.metrics(), now=now),
    )


def _described(found: "RunOverview") -> dict[str, object]:
    """Return label, unit and better direction of the metrics of a run."""
    from core.runlog.schema import RESERVED_METRIC_KEYS, metric_info

    names = dict.fromkeys([*(found.train or ()), *(found.last or ())])
    infos = {name: metric_info(name) for name in names if name not in RESERVED_METRIC_KEYS}
    return {
        name: {"label": info.label, "unit": info.unit, "better": info.better}
        for name, info in infos.items()
    }


@app.command("compare")
def compare_command(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Two runs or more, by name or folder.")
    ],
    as_json: JsonOutput = False,
) -> None:
    """Compare runs: differences of their presets, and their metrics.

    A '*' marks the best value of a metric, where the runs have the same cells, encoding, masking and
    losses.

    Examples
    --------
    tfx runs compare base wide
    tfx runs compare runs/base runs/base-2 --json
    """
    from core.runlog.overview import compare_runs
    from core.runlog.reader import RunReader, find_run
    from tfx_cli.runs_tables import comparison_text

    folders = [find_run(RUNS, name) for name in names]
    if len({folder.resolve() for folder in folders}) < 2:
        message = "give two different runs or more; 'tfx runs list' names them"
        raise ConfigurationError(message)
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
    run: RunArgument = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="File to write; - for stdout.")
    ] = "-",
    form: Annotated[
        Literal["wide", "long"],
        typer.Option("--form", help="A column per metric, or a row per value."),
    ] = "wide",
    file_format: Annotated[
        Literal["csv", "json", "jsonl", "parquet"] | None,
        typer.Option("--format", help="Format; default: by the file's name, csv for stdout."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="SPLIT", help="Only train or validation.")
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Write the metrics of a run as a table for other programs.

    Steps that a resumed run repeated appear once. A value that is not finite is empty. The file is
    replaced as a whole, so that you can export again while the run trains.

    Examples
    --------
    tfx runs export base -o base.csv
    tfx runs export base -o - --form long --split validation
    """
    from core.runlog.export import format_of, metrics_table, to_bytes, write_export
    from core.runlog.reader import RunReader, find_run

    is_stdout = output == "-"
    if is_stdout and as_json:
        message = "--json describes a written file; for the metrics as JSON give --format json"
        raise ConfigurationError(message)
    wanted = file_format or ("csv" if is_stdout else format_of(Path(output)))
    if is_stdout and wanted == "parquet":
        message = "Parquet cannot be printed; give -o FILE.parquet"
        raise ConfigurationError(message)
    folder = find_run(RUNS, run)
    records = RunReader(folder).metrics()
    splits = sorted({str(record.get("split")) for record in records})
    if split is not None and split not in splits:
        has = f"it has {', '.join(splits)}" if splits else "it has no metrics yet"
        message = f"--split {split}: {folder} has no metrics of that split; {has}"
        raise ConfigurationError(message)
    kept = [record for record in records if split is None or record.get("split") == split]
    columns, rows = metrics_table(kept, form=form)
    content = to_bytes(columns, rows, wanted)
    if is_stdout:
        print_text(content.decode())
        return
    write_export(Path(output), content)
    print_result(
        "runs.export",
        {"run": str(folder), "file": output, "rows": len(rows), "columns": columns},
        as_json=as_json,
        text=lambda: f"{output}: {len(rows):,} rows, {len(columns)} columns",
    )
