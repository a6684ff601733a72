"""`tfx train`: train a preset as a new run, or continue a run that stopped."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import ConfigurationError, DataError, ExitCode, TrainingInterrupted
from tfx_cli.arguments import bundled_presets, existing_run, new_run_folder
from tfx_cli.launch import is_main_process, launch, stop_on_signals
from tfx_cli.options import Assignments, ConfigFiles, JsonOutput, preset_option
from tfx_cli.output import make_table, narrate, print_result
from tfx_cli.progress import show_progress
from tfx_cli.train_forecast import show_forecast

if TYPE_CHECKING:
    from rich.console import RenderableType

    from core.cells.store import Store
    from core.presets.loading import ResolvedPreset
    from core.training.engine import TrainResult

#: Preset keys that have an option of their own.
_OPTION_NAMES = {"train.max_steps": "--steps", "train.device": "--device"}


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
            "--processes",
            metavar="N",
            min=1,
            help="Train in N processes of this machine: one per GPU. On several machines: "
            "accelerate launch -m tfx_cli train ...",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Forecast size, memory, time and files of the run; write nothing."
        ),
    ] = False,
    config: ConfigFiles = None,
    assign: Assignments = None,
    as_json: JsonOutput = False,
) -> None:
    """Train a model of cells; the store of cells is prepared first if it is missing.

    Everything goes to runs/NAME: the resolved preset, metrics, checkpoints, and the model folder
    with the weights of the lowest validation loss. Ctrl-C saves a checkpoint and leaves with exit
    code 75; 'tfx train runs/NAME' continues from there, also with more --steps or another --set
    train.learning_rate; cells, model and losses of a run are frozen.

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
    options: dict[str, object] = {"train.max_steps": steps, "train.device": device}
    resolved = (
        _preset_of_run(folder, config or (), assign or (), options)
        if folder is not None
        else _new_preset(target, config or (), assign or (), options)
    )
    if processes is not None and processes > 1 and not dry_run:
        raise typer.Exit(launch(_without_processes(sys.argv[1:]), processes))
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
    print_result(
        "train",
        {
            "run": result.run,
            "model": result.model,
            "steps": result.steps,
            "best_step": result.best_step,
            "validation": result.validation,
        },
        as_json=as_json,
        text=lambda: _summary(result, is_classifier=resolved.preset.classified is not None),
    )


def _new_preset(
    target: str, config: Sequence[Path], assign: Sequence[str], options: dict[str, object]
) -> "ResolvedPreset":
    from core.presets.loading import resolve_preset

    return resolve_preset(
        Path(target),
        overlays=config,
        environment=os.environ,
        options=options,
        option_names=_OPTION_NAMES,
        assignments=assign,
    )


def _preset_of_run(
    folder: Path, config: Sequence[Path], assign: Sequence[str], options: dict[str, object]
) -> "ResolvedPreset":
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
    resolved = own.changed(
        overlays=config, options=options, option_names=_OPTION_NAMES, assignments=assign
    )
    changes = check_changes(own.preset, resolved.preset, where=str(folder))
    status = RunReader(folder).status
    steps, done = resolved.preset.train.max_steps, status.get("step")
    has_ended = status.get("state") == "finished"
    if has_ended and changes and steps is not None and isinstance(done, int) and steps <= done:
        message = f"{folder} has done {done:,} steps already; give it more than {steps:,}"
        raise ConfigurationError(message)
    if not changes and has_ended:
        message = (
            f"{folder} is finished; evaluate it by 'tfx eval {folder}', give it more --steps, or "
            f"train its preset again"
        )
        raise ConfigurationError(message)
    return resolved


def _without_processes(arguments: list[str]) -> list[str]:
    """Return the arguments of `tfx` without --processes and its number."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--processes="):
            skip = argument == "--processes"
            if not skip:
                kept.append(argument)
        else:
            skip = False
    return kept


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
    rows = [
        [name.removeprefix("acc/"), f"{value:.3f}"]
        for name, value in result.validation.items()
        if name.startswith("acc/")
    ]
    if rows:
        yield ""
        yield make_table(["validation: mask accuracy", ""], rows)
    yield ""
    yield f"next: tfx eval {result.run}"
    if is_classifier:
        yield f"      tfx predict new.h5ad -o labelled.h5ad --run {result.run}"
        return
    yield f"      tfx generate --run {result.run} -n 1000 -o cells.h5ad"
