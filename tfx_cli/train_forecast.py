"""`tfx train --dry-run`: size, memory, time and files of a run, before it writes anything."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from core.wording import duration, size
from tfx_cli.output import make_table, print_result
from tfx_cli.progress import show_progress

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from core.cells.store import Store
    from core.presets.loading import ResolvedPreset
    from core.training.forecast import CellOutline, RunForecast

_BAR_WIDTH = 24
_VERDICTS = {
    "ok": "memory and disk suffice",
    "tight": "memory or disk is tight",
    "too much": "this does not fit",
}


def show_forecast(
    resolved: "ResolvedPreset",
    folder: Path,
    *,
    store: "Store | None",
    processes: int,
    as_json: bool,
) -> None:
    """Forecast the run of a preset, or the rest of a run that continues, and print it.

    ``store`` is the store of a run that continues; None: the run is new.
    """
    from core.training.forecast import forecast_run, outline_of_store

    cells = (
        _outline_of_preset(resolved) if store is None else outline_of_store(resolved.preset, store)
    )
    forecast = forecast_run(
        resolved.preset, cells, folder, processes=processes, done=_steps_done(folder)
    )
    print_result(
        "train-forecast",
        {"run": folder, "cells_from": cells.source, **asdict(forecast)},
        as_json=as_json,
        text=lambda: _text(forecast, cells.source, folder),
    )


def _steps_done(folder: Path) -> int:
    from core.runlog.schema import CHECKPOINTS_FOLDER

    saved = sorted((folder / CHECKPOINTS_FOLDER).glob("step-*"))
    return int(saved[-1].name.removeprefix("step-")) if saved else 0


def _outline_of_preset(resolved: "ResolvedPreset") -> "CellOutline":
    """Read the store if there is one, else the tables of the files."""
    from core.cells.checks.check import check_data
    from core.cells.prepare import find_store
    from core.training.forecast import outline_of_facts, outline_of_store

    preset = resolved.preset
    store = find_store(preset.data, resolved.name)
    if store is not None:
        return outline_of_store(preset, store)
    with show_progress() as listener:
        report = check_data(preset.data, scope="tables", on_progress=listener)
    report.raise_failures()
    return outline_of_facts(preset, report.facts)


def _text(forecast: "RunForecast", source: str, folder: Path) -> Iterator["RenderableType"]:
    yield f"{folder}: a forecast; nothing was written"
    yield ""
    yield make_table(["", ""], _facts(forecast, source))
    yield ""
    n_parameters = sum(forecast.parameters.values())
    yield _parts_table(["parameters", f"{n_parameters:,}", ""], forecast.parameters, "{:,}".format)
    yield ""
    formulas = {"token": "6 P + 12 · layers · d · L̄"}
    rows = [
        [f"per {unit}", _operations(n), formulas.get(unit, "")]
        for unit, n in forecast.operations.items()
    ]
    yield make_table(["operations", "", ""], rows, right=(1,))
    used, free = sum(forecast.memory.values()), forecast.memory_available
    yield ""
    head = ["memory of a process", size(used), f"{used / free:.0%} of {size(free)} free"]
    yield _parts_table(head, forecast.memory, size)
    yield ""
    if forecast.seconds:
        rows = [[stage, _time(seconds)] for stage, seconds in forecast.seconds.items()]
        yield make_table(["time", ""], rows, right=(1,))
        yield ""
    yield f"times: {forecast.timing}"
    yield ""
    head = ["files", size(sum(forecast.files.values())), f"of {size(forecast.disk_free)} free"]
    yield _parts_table(head, forecast.files, size)
    yield ""
    yield from (f"note: {note}" for note in forecast.notes)
    yield _VERDICTS[forecast.verdict]


def _parts_table(
    head: list[str], parts: Mapping[str, float], text: Callable[[float], str]
) -> "Table":
    """Make a table of parts of a whole, with bars."""
    whole = sum(parts.values())
    rows = [[part, text(n), _bar(n / whole)] for part, n in parts.items()]
    return make_table(head, rows, right=(1,))


def _facts(forecast: "RunForecast", source: str) -> Iterator[list[object]]:
    machine, tokens, cells = forecast.machine, forecast.tokens, forecast.cells
    done = f", {tokens['steps_done']:,.0f} of them done" if tokens["steps_done"] else ""
    together = f"{machine['processes']} processes, each: " if machine["processes"] != 1 else ""
    epochs = f"{tokens['epochs']:,.1f} epochs of {tokens['steps_per_epoch']:,.0f}"
    device = f"{machine['device']} ({machine['name']}), {machine['precision']}"
    n_training, n_validation = cells["training"], cells["validation"]
    yield ["cells", f"{n_training:,.0f} for training, {n_validation:,.0f} for validation"]
    yield ["known from", source]
    yield ["sequence", _sequence(tokens)]
    yield ["step", f"{cells['step']:,.0f} cells, {tokens['step']:,.0f} tokens"]
    yield ["steps", f"{tokens['steps']:,.0f}{done}: {epochs}"]
    yield ["computed on", f"{together}{device}"]
    yield ["attention", f"{machine['attention']}: {machine['reason']}"]


def _sequence(tokens: dict[str, float]) -> str:
    if tokens["longest"] == tokens["sequence"]:
        return f"{tokens['sequence']:,.0f} tokens: {tokens['genes']:,.0f} genes, header and end"
    return (
        f"{tokens['sequence']:,.0f} tokens on average, {tokens['longest']:,.0f} at most; a panel of "
        f"{tokens['genes']:,.0f} genes"
    )


def _bar(fraction: float) -> str:
    eighths = round(fraction * _BAR_WIDTH * 8)
    whole, part = divmod(eighths, 8)
    return "█" * whole + (" ▏▎▍▌▋▊▉"[part].strip() if part else "")


def _operations(n: float) -> str:
    for unit, one in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if n >= one:
            return f"{n / one:,.1f} {unit}"
    return f"{n / 1e6:,.1f} MFLOP"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else duration(seconds)
