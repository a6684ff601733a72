import asyncio
import inspect
import os
import time
from pathlib import Path

import pytest
from textual._compositor import Compositor

from tests.dashboard import run_states
from tfx_cli.dashboard.app import DashboardApp
from tfx_cli.dashboard.workspace import Workspace

SNAPSHOTS = Path(__file__).parent / "snapshots"
SIZES = ((80, 24), (100, 30), (120, 40), (160, 50), (200, 60))


def pytest_pyfunc_call(pyfuncitem):
    """Run a test that is a coroutine in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch, tmp_path):
    """Let no setting of the person who runs the tests reach the dashboard."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("NO_COLOR", "TFX_KEYS", "TEXTUAL_ANIMATIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.fixture(autouse=True)
def _nothing_drawn_for_no_terminal(monkeypatch):
    """Draw the screen where a test looks at it, not after every event: a third of the time."""
    draw = Compositor.render_update

    def render_update(self, *, full=False, **options):
        return draw(self, full=full, **options) if full else self._dirty_regions.clear()

    monkeypatch.setattr(Compositor, "render_update", render_update)


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def open_app(runs):
    """Make the dashboard over the folder of runs, at one fixed moment."""

    def make(run=None, **settings):
        workspace = Workspace(Path("runs"), clock=lambda: run_states.NOW, monotonic=lambda: 1000.0)
        path = None if run is None else Path("runs") / run
        return DashboardApp(Path("runs"), run=path, refresh=0.2, workspace=workspace, **settings)

    return make


def rows_of(app):
    """Return what is on the screen, as lines of text."""
    strips = app.screen._compositor.render_strips(app.size)
    return ["".join(segment.text for segment in strip).rstrip() for strip in strips]


def text_of(app):
    """Return the screen; a kept one ends with one newline, whatever rows below are empty."""
    return "\n".join(rows_of(app)).rstrip("\n")


async def settled(app, pilot):
    """Read the disk again, now, and wait until the screen is drawn."""
    await pilot.pause()
    seen = app.views_taken
    app.poll_soon()
    until = time.monotonic() + 30  # a machine may be busy
    while app.views_taken == seen and time.monotonic() < until:
        await pilot.pause(0.005)
    await pilot.pause()


async def shown(app, pilot, text):
    """Wait until a text is on the screen."""
    for _ in range(200):
        await pilot.pause(0.02)
        if text in text_of(app):
            return


def _snapshot(app, name):
    width, height = app.size
    return SNAPSHOTS / f"{name}-{width}x{height}.txt"


def is_kept(app, name):
    """Whether the screen is the one that was kept (always, where it is kept anew)."""
    path = _snapshot(app, name)
    if os.environ.get("TFX_UPDATE_SNAPSHOTS") == "1" or not path.is_file():
        return True
    return text_of(app) + "\n" == path.read_text(encoding="utf-8")


@pytest.fixture
def matches():
    """Compare the screen with what was kept; TFX_UPDATE_SNAPSHOTS=1 keeps it anew."""

    def compare(app, name):
        path = _snapshot(app, name)
        found = text_of(app) + "\n"
        if os.environ.get("TFX_UPDATE_SNAPSHOTS") == "1":
            path.parent.mkdir(exist_ok=True)
            path.write_text(found, encoding="utf-8")
        kept = path.read_text(encoding="utf-8") if path.is_file() else ""
        assert found == kept, f"{path.name} differs; TFX_UPDATE_SNAPSHOTS=1 keeps the new one"

    return compare
