"""`tfx dashboard`: watch runs and generate cells in the terminal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from core.errors import ConfigurationError
from tfx_cli.options import JsonOutput
from tfx_cli.output import narrate, print_result
from tfx_cli.run_folders import RUNS

if TYPE_CHECKING:
    from rich.table import Table

    from tfx_cli.dashboard.workspace import WorkspaceView

__all__ = ["dashboard"]

_HEADLESS = "Without a terminal"


def dashboard(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUNS | RUN]", help="A folder of runs, or a run to open; default: runs."
        ),
    ] = None,
    refresh: Annotated[
        float, typer.Option("--refresh", min=0.1, max=20, help="Looks at the disk per second.")
    ] = 2.0,
    theme: Annotated[
        Literal["dark", "light", "colour-blind"], typer.Option("--theme", help="Colours.")
    ] = "dark",
    once: Annotated[
        bool,
        typer.Option("--once", help="Draw one frame and leave.", rich_help_panel=_HEADLESS),
    ] = False,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg", metavar="FILE", help="With --once: where the frame goes.",
            rich_help_panel=_HEADLESS,
        ),
    ] = None,
    frame: Annotated[
        str,
        typer.Option(
            "--size", metavar="COLUMNSxROWS", help="With --once --svg: the size of the frame.",
            rich_help_panel=_HEADLESS,
        ),
    ] = "120x40",
    keys: Annotated[
        str,
        typer.Option(
            "--keys", metavar="KEY,KEY", help="With --once --svg: keys pressed before, as "
            "'2' or 'g,right,g'; cells that they generate are waited for.",
            rich_help_panel=_HEADLESS,
        ),
    ] = "",
    web: Annotated[
        bool,
        typer.Option("--web", help="Serve it to a browser on 127.0.0.1 (extra: web).",
                     rich_help_panel=_HEADLESS),
    ] = False,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="With --web.", rich_help_panel=_HEADLESS)
    ] = 8000,
    as_json: JsonOutput = False,
) -> None:  # fmt: skip
    """Watch runs, start, stop and resume them, pick control tokens and see the cells.

    It reads run folders, so that it works while another machine trains, and afterwards. Keys are
    in the footer; ? lists all of them.

    Examples
    --------
    tfx dashboard
    tfx dashboard runs/base
    tfx dashboard runs/base --once --svg base.svg --size 140x45
    """
    root, run = _find(target)
    if svg is not None and not once:
        message = "--svg draws one frame: give --once too"
        raise ConfigurationError(message)
    from tfx_cli.dashboard.keymap import read_key_overrides

    read_key_overrides()  # refuse a wrong file before the screen is taken
    if once or as_json:
        _once(root, run, svg=svg, frame=frame, keys=keys, theme=theme, as_json=as_json)
        return
    if web:
        from tfx_cli.dashboard.web import serve

        serve(target, port=port, theme=theme)
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        message = (
            "the dashboard needs a terminal; --once --svg FILE draws a frame without one, "
            "--once --json tells the figures"
        )
        raise ConfigurationError(message)
    from tfx_cli.dashboard.app import DashboardApp

    app = DashboardApp(root, run=run, refresh=refresh, theme=f"tfx-{theme}")
    app.run()
    for path in app.training.going_on():
        narrate(f"{path} goes on; 'tfx dashboard {path}' shows it again")
    if app.failure is not None:
        raise app.failure


def _find(target: str | None) -> tuple[Path, Path | None]:
    """Return the folder of runs and the run to open."""
    from core.runlog.schema import RUN_FILE

    if target is None:
        return RUNS, None
    for folder in (Path(target), RUNS / target):
        if (folder / RUN_FILE).is_file():
            return folder.parent, folder
    if Path(target).is_dir():
        return Path(target), None
    from core.runlog.reader import find_run

    run = find_run(RUNS, target)  # says which is the nearest
    return run.parent, run


def _once(
    root: Path, run: Path | None, *, svg: Path | None, frame: str, keys: str, theme: str,
    as_json: bool,
) -> None:  # fmt: skip
    if svg is not None:
        from tfx_cli.dashboard.one_frame import frame_size, frame_svg
        from tfx_cli.output_files import check_output

        size = frame_size(frame)
        check_output(svg, (".svg",), what="the frame", overwrite=True)
        pressed = [key for key in keys.split(",") if key]
        content = frame_svg(root, run, size=size, keys=pressed, theme=f"tfx-{theme}")
        from core.files import replace_file

        replace_file(svg, content)
        narrate(f"{svg}: a frame of {frame}")
        if not as_json:
            return
    from tfx_cli.dashboard.workspace import Workspace

    view = Workspace(root).poll([] if run is None else [str(run)])
    print_result("dashboard", _record(view), as_json=as_json, text=lambda: _table(view))


def _record(view: "WorkspaceView") -> dict[str, object]:
    from dataclasses import asdict

    opened = {
        path: {
            "figures": {
                split: {name: table.last(name) for name in table.columns}
                for split, table in one.curves.items()
            },
            "events": list(one.events[-10:]),
            "bad_lines": one.bad_lines,
        }
        for path, one in view.open_runs.items()
    }
    return {
        "runs": [asdict(row) for row in view.rows],
        "unreadable": [asdict(one) for one in view.unreadable],
        "open": opened,
    }


def _table(view: "WorkspaceView") -> "Table | str":
    from tfx_cli.runs_tables import runs_table

    return runs_table(view.rows, now=view.now) if view.rows else "no runs"
