"""`tfx train`: train a preset as a new run, or continue a run that stopped."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import ConfigurationError, DataError, ExitCode, TrainingInterrupted
from tfx_cli.arguments import bundled_presets, existing_run, new_run_folder
from tfx_cli.launch import LAUNCHER, is_main_process, launch, stop_on_signals
from tfx_cli.options import Assignments, ConfigFiles, JsonOutput, preset_option
from tfx_cli.output import make_table, narrate, print_result
from tfx_cli.progress import show_progress
from tfx_cli.train_forecast import show_forecast

if TYPE_CHECKING:
    from rich.console import RenderableType

    from core.cells.store import Store
    from core.presets.loading import ResolvedPreset
    from core.training.engine import TrainResult


def train(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PRESET | RUN",
            help="A preset (file or bundled name), or a run that stopped, to continue it.",
        ),
    ],
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="NAME", help="Name of the new run; default: the preset's."),
    ] = None,
    steps: Annotated[int | None, preset_option("train.max_steps", "--steps")] = None,
    device: Annotated[
        str | None, preset_option("train.device", "--device", metavar="auto|cpu|cuda|mps")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes", metavar="N", min=1, help="Processes: one per GPU of this machine."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Forecast size, memory, time and files; write nothing."),
    ] = False,
    config: ConfigFiles = None,
    assign: Assignments = None,
    as_json: JsonOutput = False,
) -> None:
    """Train a model of cells; the store of cells is prepared first if it is missing.

    Everything goes to runs/NAME: the resolved preset, metrics, checkpoints, and the model folder
    with the weights of the lowest validation loss. Ctrl-C saves a checkpoint and leaves with exit
    code 75; 'tfx train runs/NAME' continues from there, also with more --steps or another --set
    train.learning_rate; cells, model and losses of a run are frozen. On several machines use
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
        message = f"{folder} continues under its own name; omit --run, or train a preset"
        raise ConfigurationError(message)
    from core.presets.loading import resolve_preset

    changes: dict[str, Any] = {
        "overlays": config or (),
        "options": {"train.max_steps": steps, "train.device": device},
        "option_names": {"train.max_steps": "--steps", "train.device": "--device"},
        "assignments": assign or (),
    }
    if folder is None:
        resolved = resolve_preset(Path(target), environment=os.environ, **changes)
    else:
        resolved = _changed_preset(folder, changes)
    if (processes or 1) > 1 and not dry_run and LAUNCHER not in os.environ:
        raise typer.Exit(launch(sys.argv[1:], processes or 1))
    if folder is None:
        new_run_folder(resolved.name, run)  # a taken name fails before the cells are prepared
    # torch, transformers, accelerate and scanpy, 3 to 5 s: only after the preset has proved right.
    from core.cells.cell_filter import CellFilter
    from core.cells.prepare import ensure_store
    from core.published.weights import check_start_shape, convert_start
    from core.training.engine import train as train_model
    from core.training.processes import leave_processes
    from core.training.run_setup import check_feasible, check_preset
    from core.training.start_weights import take_shape_of_start

    resolved = take_shape_of_start(resolved)
    check_feasible(resolved.preset, processes=processes)
    check_preset(resolved.preset)
    check_start_shape(resolved.preset)
    CellFilter.parse(resolved.preset.data.where, where="data.where")
    if dry_run:
        show_forecast(
            resolved,
            folder or new_run_folder(resolved.name, run),
            store=None if folder is None else _store_of_run(folder),
            processes=processes or 1,
            as_json=as_json,
        )
        return
    with show_progress() as listener:
        if folder is not None:
            store = _store_of_run(folder)
        else:
            store = ensure_store(resolved.preset.data, resolved.name, on_progress=listener)
            folder = new_run_folder(resolved.name, run)
        narrate(f"run {folder}: {store.n_cells:,} cells, store {store.path}")
        stopped = ""
        try:
            with stop_on_signals() as stop:
                result = train_model(
                    resolved,
                    store,
                    folder,
                    convert_weights=convert_start,
                    should_stop=stop,
                    on_progress=listener,
                )
        except TrainingInterrupted as error:
            stopped = f"{error}; 'tfx train {folder}' continues from there"
    leave_processes()
    if stopped and not is_main_process():
        raise typer.Exit(ExitCode.STOPPED_EARLY)
    if stopped:
        raise TrainingInterrupted(stopped)
    if not result.is_main:
        return
    names = ("run", "model", "steps", "best_step", "validation")
    print_result(
        "train",
        {name: getattr(result, name) for name in names},
        as_json=as_json,
        text=lambda: _summary(result, is_classifier=resolved.preset.classified is not None),
    )


def _changed_preset(folder: Path, changes: Mapping[str, Any]) -> "ResolvedPreset":
    """Read the preset of a run, with the changes of the command line."""
    from core.presets.loading import ResolvedPreset
    from core.runlog.reader import RunReader
    from core.runlog.schema import CONFIG_FILE
    from core.training.checkpoints import check_changes

    path = folder / CONFIG_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}): this run cannot continue; train its preset again"
        raise ConfigurationError(message) from error
    own = ResolvedPreset.from_toml(text, where=str(path))
    resolved = own.changed(**changes)
    has_changes = bool(check_changes(own.preset, resolved.preset, where=str(folder)))
    status = RunReader(folder).status
    steps, done = resolved.preset.train.max_steps, status.get("step")
    if status.get("state") == "finished" and not has_changes:
        message = f"{folder} is finished; evaluate it by 'tfx eval {folder}', give it more --steps, or train its preset again"
        raise ConfigurationError(message)
    if status.get("state") == "finished" and isinstance(done, int) and (steps or done + 1) <= done:
        message = f"{folder} has done {done:,} steps already; give it more than {steps:,}"
        raise ConfigurationError(message)
    return resolved


def _store_of_run(folder: Path) -> "Store":
    from core.cells.store import Store
    from core.runlog.reader import RunReader

    run = RunReader(folder).run
    store = Store.open(str(run.get("store", "")))
    if store.manifest.key != run.get("store_key"):
        message = f"{store.path} was prepared again after {folder} began; train the preset again"
        raise DataError(message)
    return store


def _summary(result: "TrainResult", *, is_classifier: bool) -> Iterator["RenderableType"]:
    yield f"{result.run}: {result.steps:,} steps; the model folder holds step {result.best_step:,}"
    accuracies = {name: one for name, one in result.validation.items() if name.startswith("acc/")}
    if accuracies:
        rows = [[name.removeprefix("acc/"), f"{one:.3f}"] for name, one in accuracies.items()]
        yield ""
        yield make_table(["validation: mask accuracy", ""], rows)
    use = "predict new.h5ad -o labelled.h5ad" if is_classifier else "generate -n 1000 -o cells.h5ad"
    yield ""
    yield f"next: tfx eval {result.run}"
    yield f"      tfx {use} --run {result.run}"
