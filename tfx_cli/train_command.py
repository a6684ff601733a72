"""`tfx train`: from a preset to a run, or on with a run that stopped."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import ConfigurationError, ExitCode, TrainingInterrupted
from tfx_cli.launch import is_main_process, launch
from tfx_cli.options import Assignments, ConfigFiles, JsonOutput
from tfx_cli.output import make_table, narrate, print_result
from tfx_cli.progress import show_progress
from tfx_cli.run_folders import existing_run, new_run_folder
from tfx_cli.stop_signal import stop_on_signals
from tfx_cli.train_forecast import show_forecast

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from core.cells.store import Store
    from core.presets.loading import ResolvedPreset
    from core.training.engine import TrainResult

__all__ = ["train"]


def train(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PRESET | RUN",
            help="A preset (file or bundled name), or a run that stopped, to go on with it.",
        ),
    ],
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="NAME", help="Name of the new run; default: the preset's."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Optimiser steps (train.max_steps).")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or mps.")
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
    """Train a model of cells; what is missing (the store of cells) is prepared first.

    Everything goes to runs/NAME: the resolved preset, metrics, checkpoints, and the model folder
    with the weights of the lowest validation loss. Ctrl-C saves a checkpoint and leaves with exit
    code 75; 'tfx train runs/NAME' goes on from there, also with more --steps or another --set
    train.learning_rate; cells, model and losses of a run are frozen.

    Examples
    --------
    tfx train presets/base.toml
    tfx train presets/base.toml --dry-run
    tfx train presets/base.toml --processes 4
    tfx train runs/base
    tfx train runs/base --steps 6000
    """
    folder = _run_to_resume(target)
    if folder is not None and run:
        message = f"{folder} goes on under its own name; leave out --run, or train a preset"
        raise ConfigurationError(message)
    options: dict[str, object] = {"train.max_steps": steps, "train.device": device}
    resolved = (
        _preset_of_run(folder, config or [], assign or [], options)
        if folder is not None
        else _new_preset(target, config or [], assign or [], options)
    )
    if processes is not None and processes > 1 and not dry_run:
        raise typer.Exit(launch(_without_processes(sys.argv[1:]), processes))
    if folder is None:
        new_run_folder(resolved.name, run)  # refuse a taken name before the cells are prepared
    # torch, transformers, accelerate and scanpy, 3 to 5 s: not before the preset has proved right.
    from core.cells.cell_filter import CellFilter
    from core.cells.prepare import ensure_store
    from core.published.conversion import check_start_shape, convert_start
    from core.training.engine import train as train_model
    from core.training.feasibility import check_feasible
    from core.training.processes import leave_processes
    from core.training.setup import check_preset
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
            stopped = f"{error}; 'tfx train {folder}' goes on from there"
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


def _run_to_resume(target: str) -> Path | None:
    """Tell a run from a preset; a preset's file or bundled name wins over a run of that name."""
    from core.presets.catalogue import list_presets

    folder = existing_run(target)
    bundled = {preset.name for preset in list_presets()}
    return None if folder is not None and target in bundled else folder


_OPTION_NAMES = {"train.max_steps": "--steps", "train.device": "--device"}


def _new_preset(
    target: str, config: list[Path], assign: list[str], options: dict[str, object]
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
    folder: Path, config: list[Path], assign: list[str], options: dict[str, object]
) -> "ResolvedPreset":
    """Read the run's own preset, with what the command line changes of it."""
    from core.presets.loading import ResolvedPreset
    from core.runlog.reader import RunReader
    from core.runlog.schema import CONFIG_FILE
    from core.training.resume_rules import check_changes

    path = folder / CONFIG_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}): this run cannot go on; train its preset anew"
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
            f"train its preset anew"
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
    from core.errors import DataError
    from core.runlog.reader import RunReader

    run = RunReader(folder).run
    store = Store.open(str(run.get("store", "")))
    if store.manifest.key != run.get("store_key"):
        message = f"{store.path} was prepared anew since {folder} began; train the preset anew"
        raise DataError(message)
    return store


def _summary(result: "TrainResult", *, is_classifier: bool) -> "Iterator[RenderableType]":
    yield f"{result.run}: {result.steps:,} steps; the model is that of step {result.best_step:,}"
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
