"""`tfx dashboard`: watch runs and generate cells in the terminal."""

import functools
import os
import re
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core.errors import ConfigurationError, MachineError
from core.wording import first_line
from tfx_cli.arguments import RUNS, check_output, existing_run
from tfx_cli.command_line import argument, option
from tfx_cli.options import JSON_OUTPUT
from tfx_cli.output import narrate, print_result

if TYPE_CHECKING:
    from rich.table import Table
    from textual.pilot import Pilot

    from tfx_cli.dashboard.app import DashboardApp

_LONGEST_WAIT = 600.0  # seconds
#: Checks in a row, 0.05 s apart, that find nothing at work before a frame is drawn.
_QUIET_CHECKS = 4
_headless = functools.partial(option, rich_help_panel="Without a terminal")


def dashboard(
    target: str | None = argument(
        "[RUNS | RUN]", "A folder of runs, or a run to open; default: runs.", default=None
    ),
    refresh: float = option(
        "--refresh", "Reads of the disk per second.", min=0.1, max=20, default=2.0
    ),
    theme: Literal["dark", "light", "colour-blind", "mono"] = option(
        "--theme", "Colours.", default="dark"
    ),
    once: bool = _headless("--once", "Draw one frame and exit.", default=False),
    svg: Path | None = _headless("--svg FILE", "With --once: the file of the frame."),
    frame: str = _headless(
        "--size COLUMNSxROWS", "With --svg: the size of the frame.", default="120x40"
    ),
    keys: str = _headless(
        "--keys", "With --svg: keys to press before it, as '2' or 'g,right,g'.", default=""
    ),
    web: bool = _headless(
        "--web", "Serve it to a browser on 127.0.0.1 (extra: web).", default=False
    ),
    port: int = _headless("--port", "With --web.", min=1, max=65535, default=8000),
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Watch, start, stop and resume runs, pick control tokens and see the generated cells.

    It reads run folders only, so that it works while another machine trains, and afterwards. The
    footer shows keys; ? lists all of them.

    Examples
    --------
    tfx dashboard
    tfx dashboard runs/base
    tfx dashboard runs/base --once --svg base.svg --size 140x45
    """
    root, run = _find(target)
    if svg is not None and not once:
        raise ConfigurationError("--svg draws one frame: give --once too")
    from tfx_cli.dashboard.keymap import read_key_overrides

    read_key_overrides()  # a wrong file fails before the screen is taken
    if svg is not None:
        _draw(root, run, svg, size=frame, keys=keys, theme=f"tfx-{theme}")
    if once or as_json:
        if svg is None or as_json:
            _print_view(root, run, as_json=as_json)
        return
    if web:
        _serve(target, port=port, theme=theme)
        return
    is_web_tab = "web_driver" in os.environ.get("TEXTUAL_DRIVER", "")  # a child of --web
    if not is_web_tab and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigurationError(
            "the dashboard needs a terminal; --once --svg FILE draws a frame without one, "
            "--once --json prints the metrics"
        )
    from tfx_cli.dashboard.app import DashboardApp

    app = DashboardApp(root, run=run, refresh=refresh, theme=f"tfx-{theme}")
    app.run()
    for launch in app.processes.running():
        doing = "training" if launch.command == "train" else "being evaluated"
        narrate(f"{launch.path} is still {doing}; 'tfx dashboard {launch.path}' shows it again")
    if app.failure is not None:
        raise app.failure


def _find(target: str | None) -> tuple[Path, Path | None]:
    """Return the folder of runs and the run to open."""
    if target is None:
        return RUNS, None
    run = existing_run(target) or _future_run(target)
    if run is None and Path(target).is_dir():
        return Path(target), None
    if run is None:
        from core.runlog.reader import find_run

        run = find_run(RUNS, target)  # its error suggests a name
    return run.parent, run


def _future_run(target: str) -> Path | None:
    """Return a folder in which a process prepares a run."""
    from core.runlog.reader import future_run

    found = [one for one in (Path(target), RUNS / target) if future_run(one, now=time.time())]
    return found[0] if found else None


def _draw(root: Path, run: Path | None, svg: Path, *, size: str, keys: str, theme: str) -> None:
    """Write one frame as SVG, after pressing ``keys`` and waiting for what each one starts."""
    from core.files import replace_file
    from tfx_cli.dashboard.app import DashboardApp

    match = re.fullmatch(r"(\d{1,3})x(\d{1,3})", size)
    if match is None or not (20 <= int(match[1]) <= 400 and 5 <= int(match[2]) <= 200):
        raise ConfigurationError(f"--size {size}: columns x rows, as 120x40, of 20x5 to 400x200")
    check_output(svg, (".svg",), what="the frame", overwrite=True)
    app = DashboardApp(root, run=run, refresh=20.0, theme=theme)
    drawn: list[str] = []

    async def draw(pilot: "Pilot[None]") -> None:
        await _settle(app, pilot)
        for key in filter(None, keys.split(",")):
            await pilot.press(key)
            await _settle(app, pilot)
        if app.failure is None:
            drawn.append(app.export_screenshot(title="tfx dashboard"))
            app.exit()

    shape = int(match[1]), int(match[2])
    app.run(headless=True, size=shape, auto_pilot=draw)  # type: ignore[arg-type]
    if app.failure is not None:
        raise app.failure
    if not drawn:
        raise MachineError("the dashboard could not draw a frame")
    # The viewer's own monospaced font: a picture must not load one from the network.
    text = re.sub(r"@font-face\s*{[^}]*}", "", drawn[0])
    replace_file(svg, re.sub(r"Fira Code,?", "Menlo, DejaVu Sans Mono, Consolas,", text))
    narrate(f"{svg}: a frame of {size}")


async def _settle(app: "DashboardApp", pilot: "Pilot[None]") -> None:
    """Wait until the disk has been read again, no process works for a screen, and all is drawn."""
    import asyncio

    seen, n_quiet = app.views_taken, 0
    for _ in range(int(_LONGEST_WAIT / 0.05)):
        if app.failure is not None:  # it will never be drawn
            return
        await pilot.pause()
        is_quiet = app.views_taken > seen + 1 and not app.is_generating
        n_quiet = n_quiet + 1 if is_quiet else 0
        if n_quiet > _QUIET_CHECKS:
            return
        await asyncio.sleep(0.05)


def _print_view(root: Path, run: Path | None, *, as_json: bool) -> None:
    from tfx_cli.dashboard.workspace import Workspace
    from tfx_cli.runs_text import runs_table

    view = Workspace(root).poll([] if run is None else [str(run)])
    opened = {}
    for path, one in view.open_runs.items():
        metrics = {
            split: {name: table.last(name) for name in table.columns}
            for split, table in one.curves.items()
        }
        record = {"metrics": metrics, "events": one.events[-10:], "bad_lines": one.bad_lines}
        opened[path] = record | {"figures": metrics}  # the name before 0.2
    data = {
        "runs": [asdict(row) for row in view.rows],
        "unreadable": [asdict(one) for one in view.unreadable],
        "open": opened,
    }

    def text() -> "Table | str":
        return runs_table(view.rows, now=view.now) if view.rows else "no runs"

    print_result("dashboard", data, as_json=as_json, text=text)


def _serve(target: str | None, *, port: int, theme: str) -> None:
    """Serve the dashboard until Ctrl-C."""
    try:
        from tfx_cli.dashboard.web import DashboardServer
    except ImportError:
        raise MachineError("--web needs textual-serve: pip install 'transformerics[web]'") from None
    arguments = [sys.executable, "-m", "tfx_cli", "dashboard", *([target] if target else [])]
    try:
        DashboardServer(shlex.join([*arguments, "--theme", theme]), port).serve()
    except OSError as error:
        raise MachineError(
            f"--port {port} cannot be used ({first_line(error)}); choose another"
        ) from error
