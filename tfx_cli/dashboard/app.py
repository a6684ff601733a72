"""The dashboard's application: polls run folders, holds the children, moves between screens."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textual.app import App
from textual.binding import Binding
from textual.message import Message
from textual.screen import Screen

from core.errors import TfxError
from core.runlog.schema import LIVE_STATES
from tfx_cli.dashboard.base_screen import DashboardScreen
from tfx_cli.dashboard.confirm_screen import ConfirmScreen
from tfx_cli.dashboard.generator_process import GeneratorProcess
from tfx_cli.dashboard.keymap import KEYS, read_key_overrides
from tfx_cli.dashboard.themes import DEFAULT_THEME, THEMES
from tfx_cli.dashboard.training_process import (
    Launch,
    TrainingProcesses,
    process_to_stop,
    send_stop,
)
from tfx_cli.dashboard.workspace import RunView, Workspace, WorkspaceView

__all__ = ["DashboardApp", "ViewRead"]


#: Seconds that a training may take to end once it has said that it stopped.
_LONGEST_END = 60.0


class ViewRead(Message):
    """The run folders as they are now; the one way by which data enter the dashboard."""

    def __init__(self, view: WorkspaceView) -> None:
        super().__init__()
        self.view = view


class _ReadFailed(Message):
    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class DashboardApp(App[None]):
    """Watch runs, start and stop them, generate cells.

    Parameters
    ----------
    root
        A folder of runs.
    run
        The run folder to open at once.
    refresh
        Looks at the disk per second.
    theme
        One of `THEMES`.
    workspace
        Instead of the folder's own, for tests.
    """

    TITLE = "tfx"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS = [  # noqa: RUF012 - as textual declares it
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]
    CSS = """
    Footer { height: 1; background: $panel; }
    Toast { max-width: 70; }
    DataTable > .datatable--header { background: $panel; text-style: bold; }
    """

    def __init__(
        self,
        root: Path,
        *,
        run: Path | None = None,
        refresh: float = 2.0,
        theme: str = DEFAULT_THEME,
        workspace: Workspace | None = None,
    ) -> None:
        super().__init__()
        self.root = root
        self.training = TrainingProcesses()
        self.is_paused = False
        self.views_taken = 0
        self._first_run = run
        self._refresh_rate = refresh
        self._first_theme = theme
        self._workspace = workspace or Workspace(root)
        self._view: WorkspaceView | None = None
        self._is_reading = False
        self._asks_again = False
        self._generator: GeneratorProcess | None = None

    # -- start and end

    async def on_mount(self) -> None:
        """Show the runs, or the one run, and begin to read."""
        from tfx_cli.dashboard.runs_screen import RunsScreen

        for theme in THEMES:
            self.register_theme(theme)
        self.theme = self._first_theme
        self.set_keymap(read_key_overrides())
        self._listen_to_signals()
        await self.push_screen(RunsScreen())
        if self._first_run is not None:
            self.open_run(str(self._first_run))
        self.set_interval(1.0 / self._refresh_rate, self.poll_soon)
        self.poll_soon()

    def _listen_to_signals(self) -> None:
        """End as by q when asked to; at once where the terminal is gone and nothing can be drawn."""
        loop = asyncio.get_running_loop()
        for name, handler in (("SIGTERM", self.exit), ("SIGHUP", self._hang_up)):
            # Not on Windows, and not in a thread that is not the main one.
            with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(getattr(signal, name), handler)

    def _hang_up(self) -> None:
        if self._generator is not None:
            self._generator.terminate()
        os._exit(128 + signal.SIGHUP)  # what waits for the terminal would wait for ever

    async def on_unmount(self) -> None:
        """End the generating child; trainings go on."""
        if self._generator is not None:
            await self._generator.stop()
        self.training.close()

    @property
    def failure(self) -> Exception | None:
        """What ended the dashboard, if it did not end well."""
        return self._exception

    def _fatal_error(self) -> None:
        """Close the window; who ran it tells of the failure in one sentence."""
        self._close_messages_no_wait()

    # -- reading

    def poll_soon(self) -> None:
        """Look at the disk, in a thread, one look at a time."""
        if self._is_reading:
            self._asks_again = True
            return
        self._is_reading, self._asks_again = True, False
        wanted = {path for screen in self._dashboard_screens() for path in screen.open_runs()}
        self.run_worker(lambda: self._read(sorted(wanted)), thread=True, group="read")

    def _read(self, wanted: Sequence[str]) -> None:
        try:
            message: Message = ViewRead(self._workspace.poll(wanted))
        except Exception as error:  # noqa: BLE001 - a foreign file must not end the dashboard
            message = _ReadFailed(f"{type(error).__name__}: {error}")
        self.post_message(message)

    def on_view_read(self, event: ViewRead) -> None:
        """Hand what is new to the screens."""
        self._is_reading = False
        self.views_taken += 1
        self._view = event.view
        for launch in self.training.failed():
            self._report_failure(launch)
        if not self.is_paused:
            self._update_screens()
        if self._asks_again:
            self.poll_soon()

    def on__read_failed(self, event: _ReadFailed) -> None:
        """Say so and go on."""
        self._is_reading = False
        self.notify(f"reading the runs failed: {event.reason}", severity="error", markup=False)

    def _update_screens(self) -> None:
        if self._view is not None:
            for screen in self._dashboard_screens():
                screen.update_view(self._view)

    def _dashboard_screens(self) -> list[DashboardScreen]:
        return [screen for screen in self.screen_stack if isinstance(screen, DashboardScreen)]

    def _report_failure(self, launch: Launch) -> None:
        self.notify(
            launch.error() or "no word", title=f"{Path(launch.path).name} failed", severity="error",
            timeout=15, markup=False,
        )  # fmt: skip

    # -- screens

    def open_run(self, path: str) -> None:
        """Show one run."""
        from tfx_cli.dashboard.run_screen import RunScreen

        screen = RunScreen(path)
        self.push_screen(screen)
        self.call_later(self.poll_soon)

    def close_run(self) -> None:
        """Back to the runs."""
        if len(self._dashboard_screens()) > 1:
            self.pop_screen()

    def open_start(self) -> None:
        """Show the presets to start."""
        from tfx_cli.dashboard.start_screen import StartScreen

        self.push_screen(StartScreen())

    def open_generate(self, run: str) -> None:
        """Show the control-token picker of a run's model."""
        from tfx_cli.dashboard.generate_screen import GenerateScreen

        self.push_screen(GenerateScreen(run))

    def close_generate(self) -> None:
        """Back to where one came from."""
        self.pop_screen()

    # -- generating

    @property
    def is_generating(self) -> bool:
        """Whether cells are being made for a screen."""
        from tfx_cli.dashboard.generate_screen import GenerateScreen

        return any(
            isinstance(screen, GenerateScreen) and screen.is_busy for screen in self.screen_stack
        )

    def send_to_generator(self, run: str, record: Mapping[str, Any]) -> None:
        """Send a request to the child that holds the model of a run; another's is ended first."""
        self.run_worker(self._send(run, record), group="generator")

    async def _send(self, run: str, record: Mapping[str, Any]) -> None:
        if self._generator is not None and self._generator.model != run:
            await self._generator.stop()
            self._generator = None
        if self._generator is None:
            self._generator = GeneratorProcess(run, lambda event: self._take_event(run, event))
        try:
            await self._generator.send(record)
        except OSError as error:
            message = f"the generating process cannot be started ({error.strerror})"
            self._take_event(run, {"event": "exit", "message": message})

    def _take_event(self, run: str, event: Mapping[str, Any]) -> None:
        from tfx_cli.dashboard.generate_screen import GenerateScreen

        for screen in self.screen_stack:
            if isinstance(screen, GenerateScreen) and screen.run_path == run:
                screen.take_event(event)

    # -- training

    def free_name(self, name: str) -> str:
        """Return a name for a run that no run has yet."""
        free, number = name, 2
        while (self.root / free).exists() or self.training.launch_of(str(self.root / free)):
            free, number = f"{name}-{number}", number + 1
        return free

    def start_run(self, preset: str, name: str, assignments: Sequence[str]) -> None:
        """Train a preset in a process of its own, and show the run."""
        if not re.fullmatch(r"\w[\w.-]*", name):
            self.notify(
                f"'{name}' is no name for a run: letters, digits, '_', '.' or '-'",
                severity="error", markup=False,
            )  # fmt: skip
            return
        path = Path(preset)
        absolute = str(path.absolute()) if path.is_file() else preset
        try:
            launch = self.training.start(absolute, name, assignments, self.root)
        except TfxError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self.pop_screen()
        self.open_run(launch.path)

    def stop_run(self, path: str, view: RunView | None) -> None:
        """Ask a run to save a checkpoint and end; first the user, where we did not start it."""
        launch = self.training.launch_of(path)
        if view is None and launch is not None and launch.process.poll() is None:
            send_stop(launch.process.pid)
            self.notify("asked to stop", markup=False)
            return
        if view is None or view.row.state not in (*LIVE_STATES, "stale"):
            self.notify("this run is not running", markup=False)
            return
        try:
            pid = process_to_stop(view.status)
        except TfxError as error:
            self.notify(str(error), severity="warning", markup=False)
            return

        def answer(yes: bool | None) -> None:
            if yes:
                send_stop(pid)
                self.notify("saving a checkpoint after this step, then it ends", markup=False)

        if self.training.started_here(path):
            answer(yes=True)
            return
        question = (
            f"{view.row.name} was not started by this dashboard (process {pid}). Ask it to save a "
            "checkpoint and end?"
        )
        self.push_screen(ConfirmScreen(question, "Stop it"), answer)

    def resume_run(self, path: str, view: RunView | None) -> None:
        """Go on with a run that stopped."""
        if view is None and not self.training.started_here(path):
            self.notify("there is no run to go on with; n starts one", markup=False)
            return
        if view is None or view.row.state in LIVE_STATES:
            self.notify("this run is going on", markup=False)
            return
        if view.row.state == "finished":
            self.notify(
                f"finished; for more steps: tfx train {path} --steps N", markup=False
            )  # fmt: skip
            return
        self.notify(f"{view.row.name} goes on (a few seconds)", markup=False)
        self.run_worker(self._resume(path), group="resume")

    async def _resume(self, path: str) -> None:
        """Go on with a run as soon as the process that stopped it has ended."""
        for _ in range(int(_LONGEST_END / 0.2)):
            if not self.training.started_here(path):
                break
            await asyncio.sleep(0.2)
        try:
            self.training.resume(path, self.root)
        except TfxError as error:
            self.notify(str(error), severity="error", markup=False)

    # -- actions of everywhere

    def action_pause(self) -> None:
        """Keep the view as it is; data are read all the same."""
        self.is_paused = not self.is_paused
        self._update_screens()

    def action_next_theme(self) -> None:
        """Switch to the next theme."""
        names = [theme.name for theme in THEMES]
        place = names.index(self.theme) + 1 if self.theme in names else 0
        self.theme = names[place % len(names)]
        self._update_screens()

    def action_help(self) -> None:
        """Show the keys of this screen, from the live bindings."""
        from tfx_cli.dashboard.help_screen import HelpScreen

        screen = self.screen
        if not isinstance(screen, DashboardScreen):
            return
        ids = {key.id: key.label for key in KEYS}
        keys: dict[str, list[str]] = {}
        for key, active in screen.active_bindings.items():
            if active.binding.id in ids:
                keys.setdefault(active.binding.id or "", []).append(key)
        rows = [(",".join(keys[key.id]), key.label, key.id) for key in KEYS if key.id in keys]
        self.push_screen(HelpScreen(screen.NAME, rows))

    def get_system_commands(self, screen: Screen[Any]) -> Any:  # noqa: ANN401 - textual's generator
        """Offer every key's action by name in the command palette."""
        from textual.app import SystemCommand

        if isinstance(screen, DashboardScreen):
            for key in KEYS:
                if any(one.binding.id == key.id for one in screen.active_bindings.values()):
                    yield SystemCommand(key.label, key.id, self._runner(screen, key.action))
        yield from super().get_system_commands(screen)

    def _runner(self, screen: Screen[Any], action: str) -> Any:  # noqa: ANN401 - a callback
        async def run() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await self.run_action(action, screen)

        return run
