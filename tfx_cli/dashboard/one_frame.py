"""One frame of the dashboard as SVG, drawn without a terminal."""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from textual.pilot import Pilot

from core.errors import ConfigurationError, MachineError
from tfx_cli.dashboard.app import DashboardApp

_LONGEST_WAIT = 600.0


def frame_size(text: str) -> tuple[int, int]:
    """Read a size such as ``120x40``; raise ConfigurationError for any other text or size."""
    match = re.fullmatch(r"(\d{1,3})x(\d{1,3})", text)
    if match is None or not (20 <= int(match[1]) <= 400 and 5 <= int(match[2]) <= 200):
        message = f"--size {text}: columns x rows, as 120x40, of 20x5 to 400x200"
        raise ConfigurationError(message)
    return int(match[1]), int(match[2])


def frame_svg(
    root: Path, run: Path | None, *, size: tuple[int, int], keys: Sequence[str], theme: str
) -> str:
    """Draw the dashboard once, after pressing ``keys`` and waiting for what each one starts.

    Raises
    ------
    MachineError
        The dashboard could not draw.
    """
    app = DashboardApp(root, run=run, refresh=20.0, theme=theme)
    drawn: list[str] = []

    async def draw(pilot: Pilot[None]) -> None:
        await _settle(app, pilot)
        for key in keys:
            await pilot.press(key)
            await _settle(app, pilot)
        if app.failure is not None:
            return
        drawn.append(app.export_screenshot(title="tfx dashboard"))
        app.exit()

    app.run(headless=True, size=size, auto_pilot=draw)  # type: ignore[arg-type]
    if app.failure is not None:
        raise app.failure
    if not drawn:
        message = "the dashboard could not draw a frame"
        raise MachineError(message)
    return _without_web_fonts(drawn[0])


def _without_web_fonts(svg: str) -> str:
    """Use the viewer's own monospaced font: a picture must not load one from the network."""
    svg = re.sub(r"@font-face\s*{[^}]*}", "", svg)
    return re.sub(r"Fira Code,?", "Menlo, DejaVu Sans Mono, Consolas,", svg)


async def _settle(app: DashboardApp, pilot: Pilot[None]) -> None:
    """Wait until the disk has been read again and no cells are being generated."""
    seen = app.views_taken
    for _ in range(int(_LONGEST_WAIT / 0.05)):
        if app.failure is not None:  # it will never be drawn
            return
        await pilot.pause()
        if app.views_taken > seen + 1 and not app.is_generating:
            return
        await asyncio.sleep(0.05)
