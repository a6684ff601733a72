"""`tfx runs`: list, show, compare, export, rename, tag and delete runs. Nothing here imports torch."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from core.errors import ConfigurationError
from core.files import folder_size
from core.runlog.export import format_of, metrics_table, to_bytes, write_export
from core.runlog.overview import compare_runs, overview, run_row
from core.runlog.reader import RunReader, find_run, list_runs
from core.runlog.schema import RESERVED_METRIC_KEYS, RUN_FILE, SEEN_STATES, metric_info
from core.wording import did_you_mean, size
from tfx_cli.arguments import RUNS
from tfx_cli.command_line import argument, new_app, option
from tfx_cli.options import JSON_OUTPUT
from tfx_cli.output import Document, confirm, narrate, print_result, print_text
from tfx_cli.run_columns import RUN_COLUMNS, sorted_runs
from tfx_cli.runs_text import comparison_text, overview_text, runs_table

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
            refusal=f"there is no terminal to ask on: add --yes to delete {shown}",
        )
    moved = {str(folder): str(delete_run(folder)) for folder in folders}
    print_result(
        "runs.delete",
        {"moved": moved},
        as_json=as_json,
        text=lambda: "\n".join(f"{one} is now {place}" for one, place in moved.items()),
    )
