"""The dashboard's application: reads run folders, holds child processes, serves the screens."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.segment import Segment
from textual import work
from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.color import Color
from textual.filter import LineFilter
from textual.message import Message
from textual.screen import Screen

from core.errors import TfxError
from core.runlog.overview import RunRow
from core.runlog.ownership import is_run_name
from core.runlog.reader import RunReader
from core.runlog.schema import AT_WORK, LIVE_STATES, MODEL_FOLDER
from core.runlog.work import read_work
from core.wording import without_controls
from tfx_cli.dashboard.base_screen import (
    DashboardScreen,
    FindEdges,
    Generate,
    OfferCopy,
    OpenRun,
    StartRun,
)
from tfx_cli.dashboard.dialogs import ConfirmDialog, CopyDialog, HelpDialog
from tfx_cli.dashboard.generate_screen import GenerateScreen
from tfx_cli.dashboard.interactions_screen import InteractionsScreen
from tfx_cli.dashboard.keymap import KEYS, names_of_keys, read_key_overrides
from tfx_cli.dashboard.processes import (
    NO_FAILURE,
    GeneratorProcess,
    Launch,
    RunProcesses,
    process_to_stop,
    send_stop,
)
from tfx_cli.dashboard.run_screen import RunScreen
from tfx_cli.dashboard.runs_screen import RunsScreen
from tfx_cli.dashboard.start_screen import StartScreen
from tfx_cli.dashboard.themes import DEFAULT_THEME, THEMES
from tfx_cli.dashboard.workspace import NOTHING_READ, Workspace, WorkspaceView

#: Seconds that a training may take to end after its folder says that it stopped.
_LONGEST_END = 60.0


class _ControlFilter(LineFilter):
    """Draws no control characters, which a name or a label may hold and a terminal would obey."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            Segment(without_controls(text, cell_len), style, control)
            for text, style, control in segments
        ]


_CONTROL_FILTER = _ControlFilter()


@dataclass
class ViewRead(Message):
    """New data of the run folders, or the error that stopped reading them."""

    result: WorkspaceView | Exception


class DashboardApp(App[None]):
    """Watch runs, start and stop them, generate cells.

    ``root`` is a folder of runs, ``run`` a run folder to open at once, ``refresh`` the reads of the
    disk per second.
    """

    TITLE = "tfx"
    ENABLE_COMMAND_PALETTE = True
    CSS_PATH = "styles.tcss"
    BINDINGS = [  # noqa: RUF012 - as textual declares it
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False),
    ]

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
        self.processes = RunProcesses()
        #: Runs that u resumes, until their folder shows it; None before the process is started.
        self._resuming: dict[str, Launch | None] = {}
        self.is_paused = False
        self.views_taken = 0
        self._first_run = run
        self._refresh_rate = refresh
        self._first_theme = theme
        self._workspace = workspace or Workspace(root)
        self._view = NOTHING_READ
        self._is_reading = False
        self._reads_again = False
        self._generator: GeneratorProcess | None = None
        #: Run -> screen with its generated cells, which stay while other screens are shown.
        self._cells: dict[str, GenerateScreen] = {}

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [*super().get_line_filters(), _CONTROL_FILTER]

    # -- start and end
    async def on_mount(self) -> None:
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = self._first_theme
        self.set_keymap(read_key_overrides())
        self._listen_to_signals()
        await self.push_screen(RunsScreen(self.root, self.processes))
        if self._first_run is not None:
            self._open(RunScreen(str(self._first_run), self.processes))
        self.set_interval(1.0 / self._refresh_rate, self.poll_soon)
        self.poll_soon()

    def _listen_to_signals(self) -> None:
        """End on SIGTERM as by q; at once where the terminal is gone and nothing can be drawn."""
        loop = asyncio.get_running_loop()
        for name, handler in (("SIGTERM", self.exit), ("SIGHUP", self._hang_up)):
            # Not on Windows, and only in the main thread.
            with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(getattr(signal, name), handler)

    def _hang_up(self) -> None:
        if self._generator is not None:
            self._generator.terminate()
        for screen in self._cells.values():
            screen.discard()
        os._exit(128 + signal.SIGHUP)  # an ordinary end would wait for the terminal for ever

    async def on_unmount(self) -> None:
        """End the generating process; trainings continue."""
        if self._generator is not None:
            await self._generator.stop()

    @property
    def failure(self) -> Exception | None:
        """The error that ended the dashboard, if there was one."""
        return self._exception

    def _fatal_error(self) -> None:
        """Close the window; the command prints the failure as one sentence."""
        self._close_messages_no_wait()

    # -- reading
    def poll_soon(self) -> None:
        """Read the disk in a thread, one read at a time."""
        if self._is_reading:
            self._reads_again = True
            return
        self._is_reading, self._reads_again = True, False
        screens = self._dashboard_screens()
        wanted = sorted({path for screen in screens for path in screen.open_runs()})
        with_settings = any(screen.needs_settings for screen in screens)
        self.run_worker(lambda: self._read(wanted, with_settings), thread=True, group="read")

    def _read(self, wanted: Sequence[str], with_settings: bool) -> None:
        try:
            view = self._workspace.poll(wanted, with_settings=with_settings)
            self.post_message(ViewRead(view))
        except Exception as error:  # noqa: BLE001 - a foreign file must not end the dashboard
            self.post_message(ViewRead(error))

    def on_view_read(self, event: ViewRead) -> None:
        self._is_reading = False
        if isinstance(event.result, Exception):
            name = type(event.result).__name__
            self._notify_error(f"reading the runs failed: {name}: {event.result}")
            return
        self.views_taken += 1
        self._view = event.result
        self._follow_processes(event.result)
        if not self.is_paused:
            self._update_screens()
        is_behind = any(one.fraction_read < 1 for one in event.result.open_runs.values())
        if self._reads_again or is_behind:
            self.poll_soon()

    def _follow_processes(self, view: WorkspaceView) -> None:
        """Report the processes that ended, and leave those to their folders that show more."""
        for launch in self.processes.ended():
            name = Path(launch.path).name
            if launch.process.poll() not in NO_FAILURE:
                text = launch.error() or "without a message"
                title = f"tfx {launch.command} {name} failed"
                self.notify(text, title=title, severity="error", timeout=15)
            elif launch.command == "eval":
                self.notify(f"{name} is evaluated")
            elif launch.command == "interactions":
                self.notify(f"the edges of {name} are found")
        for row in view.rows:
            if row.state in AT_WORK:
                self.processes.launches.pop(row.path, None)
                self._resuming.pop(row.path, None)
        for path, resumed in list(self._resuming.items()):
            if resumed is not None and not resumed.is_running:
                del self._resuming[path]

    def on_read_soon(self) -> None:
        self.poll_soon()

    def _update_screens(self) -> None:
        for screen in self._dashboard_screens():
            screen.is_paused = self.is_paused
            if self._view is not NOTHING_READ:
                screen.update_view(self._view)

    def _dashboard_screens(self) -> list[DashboardScreen]:
        shown = [screen for screen in self.screen_stack if isinstance(screen, DashboardScreen)]
        return [*shown, *(one for one in self._cells.values() if one not in shown)]

    def notify(self, message: str, *, markup: bool = False, **options: Any) -> None:  # noqa: ANN401
        """Show a message as it is written: names and labels may hold brackets."""
        super().notify(message, markup=False, **options)

    def _notify_error(self, problem: object) -> None:
        self.notify(str(problem), severity="error")

    # -- screens
    def _open(self, screen: DashboardScreen) -> None:
        screen.is_paused = self.is_paused
        self.push_screen(screen)
        self.call_later(self.poll_soon)

    def on_open_run(self, event: OpenRun) -> None:
        self._open(RunScreen(event.path, self.processes))

    def action_new_run(self) -> None:
        self._open(StartScreen(self.root, self.processes))

    def action_generate(self) -> None:
        run = self._current_run()
        if run is None:
            return
        kept = self._cells.get(run)
        if kept is not None and not (kept.sets or kept.is_busy):  # the model may be another by now
            self.uninstall_screen(kept)
            kept.remove()
            kept = None
        if kept is None:
            kept = self._cells[run] = GenerateScreen(run)
            self.install_screen(kept, f"cells of {run}")
        self._open(kept)

    def action_interactions(self) -> None:
        run = self._current_run()
        if run is not None:
            self._open(InteractionsScreen(run))

    async def action_quit(self) -> None:
        """End; ask first if that discards generated cells."""
        n_unsaved = sum(screen.n_unsaved for screen in self._cells.values())
        if not n_unsaved or isinstance(self.screen, ConfirmDialog):
            self.exit()
            return
        sets = f"{n_unsaved} generated set{'s are' if n_unsaved > 1 else ' is'}"

        def leave(confirmed: bool | None) -> None:
            if confirmed:
                self.exit()

        question = f"{sets} not saved (c shows the cells, w saves). Leave and discard?"
        self.push_screen(ConfirmDialog(question, "Discard"), leave)

    def _current_run(self) -> str | None:
        return self.screen.current_run() if isinstance(self.screen, DashboardScreen) else None

    # -- generating
    @property
    def is_generating(self) -> bool:
        return any(screen.is_busy for screen in self._dashboard_screens())

    def on_generate(self, event: Generate) -> None:
        self.send_to_generator(event.run, event.record)

    def send_to_generator(self, run: str, record: Mapping[str, Any]) -> None:
        """Send a record to the process with the model of a run; that of another model is ended."""
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
        for screen in self._dashboard_screens():
            screen.take_event(run, event)

    # -- training
    def on_start_run(self, event: StartRun) -> None:
        """Train a preset in a process of its own, and show the run."""
        if not is_run_name(event.name):
            hint = "use letters, digits, '_', '.' or '-'"
            self._notify_error(f"'{event.name}' cannot name a run: {hint}")
            return
        try:
            launch = self.processes.start(event.preset, event.name, event.assignments, self.root)
        except TfxError as error:
            self._notify_error(error)
            return
        self.pop_screen()
        self._open(RunScreen(launch.path, self.processes))

    def _run_of_screen(self) -> tuple[str, RunRow | None]:
        path = self._current_run() or ""
        return path, self._view.row_of(path)

    @work
    async def action_stop_run(self) -> None:
        """Make a run save a checkpoint and end; one that was started elsewhere only if confirmed."""
        path, row = self._run_of_screen()
        launch = self.processes.launches.get(path)
        if row is None and launch is not None and launch.is_running:
            send_stop(launch.process.pid)
            self.notify("stopping")
            return
        if row is None or row.state not in (*AT_WORK, "stale"):
            self.notify("this run is not running")
            return
        work = read_work(Path(path), now=time.time())
        saves = work is None
        try:
            pid = process_to_stop(RunReader(Path(path)).status if work is None else work.record)
        except TfxError as error:
            self.notify(str(error), severity="warning")
            return
        if pid not in [launch.process.pid for launch in self.processes.running()]:
            end = "save a checkpoint and end" if saves else f"end ({row.state})"
            question = (
                f"{row.name} was not started by this dashboard (process {pid}). Make it {end}?"
            )
            if not await self.push_screen_wait(ConfirmDialog(question, "Stop it")):
                return
        send_stop(pid)
        self.notify("saving a checkpoint after this step, then it ends" if saves else "stopping")

    def action_resume_run(self) -> None:
        path, row = self._run_of_screen()
        if row is None and not self.processes.started_here(path):
            self.notify("there is no run to resume; n starts one")
        elif row is None or row.state in AT_WORK:
            self.notify(f"this run is {'starting' if row is None else row.state}")
        elif path in self._resuming:
            self.notify(f"{row.name} is being resumed")
        elif row.state == "finished":
            self.notify(f"finished; for more steps: tfx train {path} --steps N")
        else:
            self._resuming[path] = None
            self.notify(f"{row.name} continues (a few seconds)")
            self.run_worker(self._resume(path), group="resume")

    def action_evaluate_run(self) -> None:
        """Score the test cells of a run in a process of its own."""
        path = self._current_run() or ""
        name = Path(path).name
        self._start_work(
            path, "eval", lambda: self.processes.evaluate(path, self.root),
            no_model="there is no model to evaluate yet", already=f"{name} is being evaluated",
            begun=f"evaluating {name} on its test cells",
        )  # fmt: skip

    def on_find_edges(self, event: FindEdges) -> None:
        """Find the edges of a context of a run in a process of its own."""
        name = Path(event.run).name
        self._start_work(
            event.run, "interactions",
            lambda: self.processes.find_edges(event.run, self.root, event.where, event.contrast),
            no_model="there is no model to find edges with yet",
            already=f"edges of {name} are being found",
            begun=f"finding the edges of {event.where or 'all cells'}",
        )  # fmt: skip

    def _start_work(
        self,
        path: str,
        command: str,
        start: Callable[[], Launch],
        *,
        no_model: str,
        already: str,
        begun: str,
    ) -> None:
        """Start a process that works with the model of a run, unless one does."""
        row = self._view.row_of(path)
        if row is None or not (Path(path) / MODEL_FOLDER).is_dir():
            self.notify(no_model)
        elif row.state in AT_WORK and row.state not in LIVE_STATES:
            self.notify(f"this run is {row.state}")
        elif self.processes.started_here(path, command):
            self.notify(already)
        else:
            try:
                start()
            except TfxError as error:
                self._notify_error(error)
            else:
                self.notify(begun)

    async def _resume(self, path: str) -> None:
        """Continue a run as soon as the process that stopped it has ended."""
        for _ in range(int(_LONGEST_END / 0.2)):
            if not self.processes.started_here(path):
                break
            await asyncio.sleep(0.2)
        try:
            self._resuming[path] = self.processes.resume(path, self.root)
        except TfxError as error:
            del self._resuming[path]
            self._notify_error(error)

    # -- actions of all screens
    def on_offer_copy(self, event: OfferCopy) -> None:
        """Show the text, too: whether the terminal took it is not known."""
        self.copy_to_clipboard(event.text)
        self.push_screen(CopyDialog(event.title, event.text))

    def action_pause(self) -> None:
        """Keep the view as it is; data are still read."""
        self.is_paused = not self.is_paused
        self._update_screens()

    def action_next_theme(self) -> None:
        names = [theme.name for theme in THEMES]
        place = names.index(self.theme) + 1 if self.theme in names else 0
        self.theme = names[place % len(names)]
        self._update_screens()

    def action_help(self) -> None:
        screen = self.screen
        if not isinstance(screen, DashboardScreen):
            return
        keys: dict[str | None, list[str]] = {}
        for key, active in screen.active_bindings.items():
            keys.setdefault(active.binding.id, []).append(key)
        ordered = sorted(KEYS, key=lambda key: key.screen == "everywhere")
        rows = [(",".join(keys[key.id]), key.about, key.id) for key in ordered if key.id in keys]
        self.push_screen(HelpDialog(screen.NAME, rows))

    def get_key_display(self, binding: Binding) -> str:
        """Write a key in the footer as the help does."""
        return names_of_keys(binding.key)

    def get_system_commands(self, screen: Screen[Any]) -> Any:  # noqa: ANN401 - textual's generator
        """Offer every key's action by name in the command palette."""
        if isinstance(screen, DashboardScreen):
            active = {one.binding.id for one in screen.active_bindings.values()}
            for key in KEYS:
                if key.id in active:
                    about = f"key {names_of_keys(key.keys)}"
                    yield SystemCommand(key.about, about, self._runner(screen, key.action))
        # Ours has the others, in its own words.
        inherited = super().get_system_commands(screen)
        yield from (one for one in inherited if one.title == "Screenshot")

    def _runner(self, screen: Screen[Any], action: str) -> Any:  # noqa: ANN401 - a callback
        async def run() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await self.run_action(action, screen)

        return run
