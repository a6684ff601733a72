"""`tfx train --dry-run`: what a run will be, shown; nothing is written."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tfx_cli.output import make_table, print_result
from tfx_cli.progress import show_progress
from tfx_cli.quantities import duration, size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from core.presets.loading import ResolvedPreset
    from core.training.cell_outline import CellOutline
    from core.training.forecast import RunForecast

__all__ = ["show_forecast"]

_BAR_WIDTH = 24


def show_forecast(
    resolved: "ResolvedPreset", folder: Path, *, is_resumed: bool, processes: int, as_json: bool
) -> None:
    """Forecast the run of a preset, or what is left of one, and print it.

    Parameters
    ----------
    resolved
        The preset.
    folder
        Of the run; there is one already where ``is_resumed``.
    processes
        That will train together.
    """
    from core.runlog.schema import CHECKPOINTS_FOLDER
    from core.training.forecast import forecast_run

    done = 0
    if is_resumed:
        saved = sorted((folder / CHECKPOINTS_FOLDER).glob("step-*"))
        done = int(saved[-1].name.removeprefix("step-")) if saved else 0
    cells = _outline(resolved)
    forecast = forecast_run(resolved.preset, cells, folder, processes=processes, done=done)
    print_result(
        "train-forecast",
        {"run": folder, "cells_from": cells.source, **forecast.to_dict()},
        as_json=as_json,
        text=lambda: _text(forecast, cells.source, folder),
    )


def _outline(resolved: "ResolvedPreset") -> "CellOutline":
    """Look at the store if there is one, else at the tables of the files."""
    from core.cells.checks.preflight import preflight
    from core.cells.checks.report import refuse_failures
    from core.cells.prepare import find_store
    from core.training.cell_outline import outline_of_facts, outline_of_store

    preset = resolved.preset
    store = find_store(preset.data, resolved.name)
    if store is not None:
        return outline_of_store(preset, store)
    with show_progress() as listener:
        report = preflight(preset.data, on_progress=listener)
    refuse_failures(report)
    return outline_of_facts(preset, report.facts)


def _text(forecast: "RunForecast", source: str, folder: Path) -> Iterator["RenderableType"]:
    machine, tokens, cells = forecast.machine, forecast.tokens, forecast.cells
    yield f"{folder}: a forecast; nothing was written"
    yield ""
    yield make_table(
        ["", "", ""],
        [
            ["cells", f"{cells['training']:,.0f} for training, {cells['validation']:,.0f} for validation", source],
            ["sequence", f"{tokens['sequence']:,.0f} tokens", _sequence(forecast)],
            ["step", f"{cells['step']:,.0f} cells, {tokens['step']:,.0f} tokens", ""],
            ["steps", f"{tokens['steps']:,.0f}{_done(tokens)}", f"{tokens['epochs']:,.1f} epochs of {tokens['steps_per_epoch']:,.0f}"],
            ["computed on", f"{machine['device']}, {machine['precision']}", f"{_processes(machine)}{machine['name']}"],
            ["attention", machine["attention"], machine["reason"]],
        ],
    )  # fmt: skip
    total = sum(forecast.parameters.values())
    yield ""
    yield make_table(
        ["parameters", f"{total:,}", ""],
        [[part, f"{n:,}", _bar(n / total)] for part, n in forecast.parameters.items()],
    )
    yield ""
    yield make_table(
        ["operations", "", ""],
        [
            [f"per {what}", _operations(n), "6 P + 12 · layers · d · L̄" if what == "token" else ""]
            for what, n in forecast.operations.items()
        ],
    )
    used = sum(forecast.memory.values())
    share = used / forecast.memory_available
    yield ""
    yield make_table(
        ["memory of a process", size(used), f"{share:.0%} of {size(forecast.memory_available)} free"],
        [[part, size(n), _bar(n / used)] for part, n in forecast.memory.items()],
    )  # fmt: skip
    if forecast.seconds:
        how = "measured on a few cells" if forecast.timed else "computed at 40 % of the peak"
        yield ""
        yield make_table(
            ["time", "", f"{how}; right within a factor of two"],
            [[what, _time(seconds), ""] for what, seconds in forecast.seconds.items()],
        )
    written = sum(forecast.files.values())
    yield ""
    yield make_table(
        ["files", size(written), f"of {size(forecast.disk_free)} free"],
        [[name, size(n), _bar(n / written)] for name, n in forecast.files.items()],
    )
    yield ""
    yield from (f"note: {note}" for note in forecast.notes)
    yield {
        "ok": "memory and disk suffice",
        "tight": "memory or disk is tight",
        "too much": "this does not fit",
    }[forecast.verdict]


def _sequence(forecast: "RunForecast") -> str:
    tokens = forecast.tokens
    if tokens["longest"] == tokens["sequence"]:
        return f"{tokens['genes']:,.0f} genes, header and end"
    return f"on average; the longest {tokens['longest']:,.0f}, of a panel of {tokens['genes']:,.0f} genes"


def _done(tokens: dict[str, float]) -> str:
    return f", {tokens['steps_done']:,.0f} done" if tokens["steps_done"] else ""


def _processes(machine: dict[str, object]) -> str:
    n = machine["processes"]
    return f"{n} processes, each: " if n != 1 else ""


def _bar(share: float) -> str:
    eighths = round(share * _BAR_WIDTH * 8)
    whole, part = divmod(eighths, 8)
    return "█" * whole + (" ▏▎▍▌▋▊▉"[part].strip() if part else "")


def _operations(n: float) -> str:
    for unit, one in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if n >= one:
            return f"{n / one:,.1f} {unit}"
    return f"{n / 1e6:,.1f} MFLOP"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else duration(seconds)
