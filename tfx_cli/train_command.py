"""`tfx train`: train a preset as a new run, continue a run that stopped, or forecast either."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from core.cells.file_patterns import names_cells
from core.errors import ConfigurationError, ExitCode, TfxError, TrainingInterrupted
from core.progress import Listener, ignore_progress, to_all
from core.training.launched import LAUNCHER, launched_process
from core.wording import duration, size
from tfx_cli.arguments import RUNS, bundled_presets, existing_run, new_run_folder, preset_of
from tfx_cli.command_line import argument, option
from tfx_cli.formatting import FORECAST_VERDICTS, progress_of
from tfx_cli.launch import is_main_process, launch, stop_on_signals
from tfx_cli.options import ASSIGNMENTS, CONFIG_FILES, JSON_OUTPUT, preset_option
from tfx_cli.output import Paragraph, make_table, narrate, print_result, warn
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from rich.table import Table

    from core.cells.store import Store
    from core.presets.loading import ResolvedPreset
    from core.training.engine import TrainResult
    from core.training.forecast import RunForecast

_BAR_WIDTH = 24


def train(
    target: str = argument(
        "PRESET | RUN", "A preset (file or bundled name), or a run that stopped, to continue it."
    ),
    run: str | None = option("--run NAME", "Name of the new run; default: the preset's."),
    steps: int | None = preset_option("--steps", "train.max_steps"),
    epochs: float | None = preset_option("--epochs", "train.epochs"),
    batch_size: int | None = preset_option("--batch-size", "train.batch_size"),
    seed: int | None = preset_option("--seed", "train.seed"),
    device: str | None = preset_option("--device auto|cpu|cuda|mps", "train.device"),
    store: str | None = preset_option("--store FOLDER", "data.store"),
    processes: int | None = option(
        "--processes N", "Processes: one per GPU of this machine.", min=1
    ),
    dry_run: bool = option(
        "--dry-run", "Forecast size, memory, time and files; write nothing.", default=False
    ),
    config: list[Path] | None = CONFIG_FILES,
    assign: list[str] | None = ASSIGNMENTS,
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Train a model of cells; the store of cells is prepared first if it is missing.

    Everything goes to runs/NAME: the resolved preset, metrics, checkpoints, and the model folder
    with the weights of the best validation score. Ctrl-C saves a checkpoint and leaves with exit
    code 75. The same command, or 'tfx train runs/NAME', continues from there; a preset that you
    have changed begins a new run. With a run you may give more --steps or another --set
    train.learning_rate: its cells, model and losses are frozen. On several machines use
    'accelerate launch -m tfx_cli train ...'.

    Examples
    --------
    tfx train presets/base.toml
    tfx train presets/base.toml --dry-run
    tfx train presets/base.toml --processes 4
    tfx train runs/base
    tfx train runs/base --steps 6000
    """
    folder = existing_run(target)
    if target in bundled_presets():
        folder = None  # a bundled preset wins over a run of its name
    if folder is not None and run:
        raise ConfigurationError(
            f"{folder} continues under its own name; omit --run, or train a preset"
        )
    changes: dict[str, Any] = {
        "overlays": config or (),
        "options": {
            "train.max_steps": steps,
            "train.epochs": epochs,
            "train.batch_size": batch_size,
            "train.seed": seed,
            "train.device": device,
            "data.store": store,
        },
        "option_names": {"train.max_steps": "--steps"},
        "assignments": assign or (),
    }
    if folder is not None:
        resolved = _changed_preset(folder, changes)
    else:
        from core.presets.loading import resolve_preset

        _check_is_preset(target)
        resolved = resolve_preset(Path(target), environment=os.environ, **changes)
    launched_process()  # junk in the environment fails before anything is started
    if (processes or 1) > 1 and not dry_run and LAUNCHER not in os.environ:
        raise typer.Exit(launch(sys.argv[1:], processes or 1))
    from core.runlog.ownership import owned_run
    from core.runlog.work import work_on

    with ExitStack() as owned:
        stopped = None
        if folder is None and run is None and is_main_process():
            stopped = _claim_stopped_run(resolved, owned)
        if stopped is not None:
            place = stopped
        elif dry_run or not is_main_process():  # they learn the folder of the main one
            place = folder or new_run_folder(resolved.name, run if dry_run else None)
        elif folder is None:
            place = new_run_folder(resolved.name, run, owned)
        else:
            place = folder
            owned.enter_context(owned_run(folder))
        show_work: Listener = ignore_progress
        if is_main_process() and not dry_run:
            what = "preparing" if folder is None and stopped is None else "resuming"
            show_work = owned.enter_context(work_on(place, what))
        _train(
            resolved, place, folder is None, processes, show_work, dry_run=dry_run, as_json=as_json
        )


def _claim_stopped_run(resolved: "ResolvedPreset", claim: ExitStack) -> Path | None:
    """Own the run of this preset and these cells that stopped before its end, and say so; None if there is none.

    The newest run of the preset counts: if it is finished, or another process trains it, a new one begins.
    """
    from core.runlog.ownership import RunInUseError, owned_run
    from core.runlog.reader import RunReader, list_runs

    of_this_name = re.compile(rf"{re.escape(resolved.name)}(-\d+)?")
    for one in list_runs(RUNS):
        if not (of_this_name.fullmatch(one.name) and _is_run_of(resolved, one.path)):
            continue
        reader = RunReader(one.path)
        step, total = reader.status.get("step"), reader.status.get("total")
        if reader.status.get("state") == "finished" or not isinstance(step, int):
            return None
        try:
            claim.enter_context(owned_run(one.path))
        except RunInUseError:
            return None
        narrate(
            f"{one.path} has the same preset and stopped at step {progress_of(step, total)}: it is "
            f"continued; give --run NAME to begin a new run instead"
        )
        return one.path
    return None


def _is_run_of(resolved: "ResolvedPreset", folder: Path) -> bool:
    """Return whether a run has this preset and these cells, and a checkpoint to continue from."""
    from core.runlog.reader import RunReader
    from core.runlog.schema import CHECKPOINTS_FOLDER

    if not any((folder / CHECKPOINTS_FOLDER).glob("step-*")):
        return False
    # torch and scanpy, 3 s: only where a run may be continued.
    from core.cells.prepare import store_key
    from core.training.checkpoints import has_whole_checkpoint, preset_differences
    from core.training.start_weights import take_shape_of_start

    try:
        own = preset_of(folder).preset
    except TfxError:
        return False
    ours = take_shape_of_start(resolved).preset
    differing = set(preset_differences(own, ours))
    if ours.train.virtual_ranks is None:
        differing.discard("train.virtual_ranks")  # settled when the run began
    return (
        not differing
        and RunReader(folder).run.get("store_key") == store_key(ours.data)
        and has_whole_checkpoint(folder)
    )


def _check_is_preset(target: str) -> None:
    """Explain what to do with cells, and with a folder whose process died before it was a run."""
    from core.runlog.ownership import is_free

    if target not in bundled_presets() and names_cells(target):
        raise ConfigurationError(
            f"'{target}' names cells, and tfx train needs a preset; write one by 'tfx init "
            f"{shlex.quote(target)}', then run 'tfx train preset.toml'"
        )
    for folder in (Path(target), RUNS / target):
        if folder.is_dir() and target not in bundled_presets() and is_free(folder):
            raise ConfigurationError(
                f"{folder} holds no run: its process ended before the first step; train the preset again, "
                f"which takes the folder over"
            )


def _train(
    resolved: "ResolvedPreset",
    folder: Path,
    is_new: bool,
    processes: int | None,
    show_work: Listener,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train in a folder that this process owns, or forecast."""
    # torch, transformers, accelerate and scanpy, 3 to 5 s: only after the preset has proved right.
    from core.cells.cell_filter import CellFilter
    from core.cells.prepare import ensure_store
    from core.published.weights import check_start_shape, convert_start
    from core.training.engine import train as train_model
    from core.training.processes import leave_processes, meet_processes
    from core.training.run_setup import check_feasible, check_preset
    from core.training.start_weights import take_shape_of_start

    resolved = take_shape_of_start(resolved)
    check_feasible(resolved.preset, processes=processes)
    check_preset(resolved.preset)
    check_start_shape(resolved.preset)
    CellFilter.parse(resolved.preset.data.where, where="data.where")
    if dry_run:
        store = None if is_new else _store_of_run(folder, resolved)
        _show_forecast(resolved, folder, store, processes or 1, as_json=as_json)
        return
    meet_processes()  # before the cells are prepared, which may take minutes
    with show_progress() as listener:
        if is_new:
            both = to_all(listener, show_work)
            store = ensure_store(resolved.preset.data, resolved.name, on_progress=both)
        else:
            store = _store_of_run(folder, resolved)
        narrate(f"run {folder}: {store.n_cells:,} cells, store {store.path}")
        stopped = ""
        try:
            with stop_on_signals() as stop:
                result = train_model(
                    resolved,
                    store,
                    folder,
                    is_owned=True,
                    convert_weights=convert_start,
                    should_stop=stop,
                    on_progress=listener,
                )
        except TrainingInterrupted as error:
            stopped = str(
                error
            )  # the error itself would hold the network, and so the process group
    leave_processes()
    if not stopped and result.warning:
        warn(result.warning)
    if stopped:
        if not is_main_process():
            raise typer.Exit(ExitCode.STOPPED_EARLY)
        raise TrainingInterrupted(stopped)
    if not result.is_main:
        return
    names = ("run", "model", "steps", "best_step", "validation")
    print_result(
        "train",
        {name: getattr(result, name) for name in names},
        as_json=as_json,
        text=lambda: _summary(
            result,
            is_classifier=resolved.preset.classified is not None,
            has_test=len(store.rows("test")) > 0,
        ),
    )


def _changed_preset(folder: Path, changes: Mapping[str, Any]) -> "ResolvedPreset":
    """Read the preset of a run, with the changes of the command line."""
    from core.runlog.reader import RunReader
    from core.training.checkpoints import check_changes

    own = preset_of(folder, error_type=ConfigurationError)
    resolved = own.changed(**changes)
    has_changes = bool(check_changes(own.preset, resolved.preset, where=str(folder)))
    status = RunReader(folder).status
    steps, done = resolved.preset.train.max_steps, status.get("step")
    if status.get("state") == "finished" and not has_changes:
        raise ConfigurationError(
            f"{folder} is finished; evaluate it by 'tfx eval {folder}', give it more --steps, or train its preset again"
        )
    if status.get("state") == "finished" and isinstance(done, int) and (steps or done + 1) <= done:
        raise ConfigurationError(
            f"{folder} has done {done:,} steps already; give it more than {steps:,}"
        )
    return resolved


def _store_of_run(folder: Path, resolved: "ResolvedPreset") -> "Store":
    """Open the store of a run: the one that this command names, else the run's own, wherever it is now."""
    from core.cells.store import Store, places_of_store
    from core.runlog.reader import RunReader

    run = RunReader(folder).run
    names = ("store", "store_key", "store_relative")
    recorded, key, relative = (str(run.get(name, "")) for name in names)
    places = places_of_store(recorded, folder, relative)
    if named := resolved.preset.data.store:
        is_changed = named != preset_of(folder).preset.data.store
        places = [Path(named)] if is_changed else [Path(named), *places]
    return Store.of_key(key, places, owner=str(folder))


def _summary(result: "TrainResult", *, is_classifier: bool, has_test: bool) -> Iterator[Paragraph]:
    yield f"{result.run}: {result.steps:,} steps; the model folder holds step {result.best_step:,}"
    rows = [
        [name.removeprefix("acc/"), f"{one:.3f}"]
        for name, one in result.validation.items()
        if name.startswith("acc/")
    ]
    if rows:
        yield make_table(["validation: mask accuracy", ""], rows)
    use = "predict new.h5ad -o labelled.h5ad" if is_classifier else "generate -n 1000 -o cells.h5ad"
    how = "" if has_test else " --cross-validate donors"
    yield [f"next: tfx eval {result.run}{how}", f"      tfx {use} --run {result.run}"]


# -- the forecast of --dry-run
def _show_forecast(
    resolved: "ResolvedPreset",
    folder: Path,
    store: "Store | None",
    processes: int,
    *,
    as_json: bool,
) -> None:
    """Print size, memory, time and files of a new run, or of the rest of the run of a store."""
    from core.cells.checks.check import check_data
    from core.cells.prepare import find_store
    from core.runlog.schema import CHECKPOINTS_FOLDER
    from core.training.forecast import forecast_run, outline_of_facts, outline_of_store

    preset = resolved.preset
    store = store or find_store(preset.data, resolved.name)
    if store is not None:
        cells = outline_of_store(preset, store)
    else:
        with show_progress() as listener:
            report = check_data(preset.data, scope="tables", on_progress=listener)
        report.raise_failures()
        cells = outline_of_facts(preset, report.facts)
    saved = sorted((folder / CHECKPOINTS_FOLDER).glob("step-*"))
    done = int(saved[-1].name.removeprefix("step-")) if saved else 0
    forecast = forecast_run(preset, cells, folder, processes=processes, done=done)
    print_result(
        "train-forecast",
        {"run": folder, "cells_from": cells.source, **asdict(forecast)},
        as_json=as_json,
        text=lambda: _forecast_text(forecast, cells.source, folder),
    )


def _forecast_text(forecast: "RunForecast", source: str, folder: Path) -> Iterator[Paragraph]:
    yield f"{folder}: a forecast; nothing was written"
    yield make_table(["", ""], _forecast_facts(forecast, source))
    n_parameters = sum(forecast.parameters.values())
    yield _parts_table(["parameters", f"{n_parameters:,}", ""], forecast.parameters, "{:,}".format)
    formulas = {"token": "6 P + 12 · layers · d · L̄"}
    rows = [
        [f"per {unit}", _operations(n), formulas.get(unit, "")]
        for unit, n in forecast.operations.items()
    ]
    yield make_table(["operations", "", ""], rows, right=(1,))
    used, free = sum(forecast.memory.values()), forecast.memory_available
    head = ["memory of a process", size(used), f"{used / free:.0%} of {size(free)} free"]
    yield _parts_table(head, forecast.memory, size)
    if forecast.seconds:
        times = {
            stage: f"{n * 1e3:.0f} ms" if n < 1 else duration(n)
            for stage, n in forecast.seconds.items()
        }
        yield make_table(["time", ""], times.items(), right=(1,))
    yield f"times: {forecast.timing}"
    head = ["files", size(sum(forecast.files.values())), f"of {size(forecast.disk_free)} free"]
    yield _parts_table(head, forecast.files, size)
    yield [*(f"note: {note}" for note in forecast.notes), FORECAST_VERDICTS[forecast.verdict]]


def _parts_table(
    head: list[str], parts: Mapping[str, float], text: Callable[[float], str]
) -> "Table":
    """Make a table of parts of a whole, with bars."""
    whole = sum(parts.values())
    rows = []
    for part, n in parts.items():
        blocks, eighths = divmod(round(n / whole * _BAR_WIDTH * 8), 8)
        rows.append([part, text(n), "█" * blocks + " ▏▎▍▌▋▊▉"[eighths].strip()])
    return make_table(head, rows, right=(1,))


def _forecast_facts(forecast: "RunForecast", source: str) -> Iterator[list[object]]:
    machine, tokens, cells = forecast.machine, forecast.tokens, forecast.cells
    done = f", {tokens['steps_done']:,.0f} of them done" if tokens["steps_done"] else ""
    together = f"{machine['processes']} processes, each: " if machine["processes"] != 1 else ""
    epochs = f"{tokens['epochs']:,.1f} epochs of {tokens['steps_per_epoch']:,.0f}"
    device = f"{machine['device']} ({machine['name']}), {machine['precision']}"
    genes = f"{tokens['genes']:,.0f} genes"
    if tokens["longest"] == tokens["sequence"]:
        sequence = f"{tokens['sequence']:,.0f} tokens: {genes}, header and end"
    else:
        longest = f"{tokens['longest']:,.0f} at most; a panel of {genes}"
        sequence = f"{tokens['sequence']:,.0f} tokens on average, {longest}"
    n_training, n_validation = cells["training"], cells["validation"]
    yield ["cells", f"{n_training:,.0f} for training, {n_validation:,.0f} for validation"]
    yield ["known from", source]
    yield ["sequence", sequence]
    yield ["step", f"{cells['step']:,.0f} cells, {tokens['step']:,.0f} tokens"]
    yield ["steps", f"{tokens['steps']:,.0f}{done}: {epochs}"]
    yield ["computed on", f"{together}{device}"]
    yield ["attention", f"{machine['attention']}: {machine['reason']}"]


def _operations(n: float) -> str:
    for unit, one in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if n >= one:
            return f"{n / one:,.1f} {unit}"
    return f"{n / 1e6:,.1f} MFLOP"
