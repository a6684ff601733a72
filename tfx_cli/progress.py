"""Progress on stderr: bars on a terminal, else a plain line now and then; and in a run folder, for the dashboard."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from core.progress import Listener, ProgressEvent, ignore_progress, to_all
from core.wording import duration, visible
from tfx_cli.output import is_quiet, lines_above, narrate

#: Without a terminal a line appears at least this often while work advances.
_LINE_SECONDS = 30.0
#: Shorter remaining times are not shown.
_SHORTEST_LEFT = 60.0


@contextlib.contextmanager
def show_progress() -> Iterator[Listener]:
    """Yield a listener for `on_progress`: bars on a terminal, else a plain line now and then."""
    if is_quiet():
        yield ignore_progress
    elif not sys.stderr.isatty():
        yield ProgressLines()
    else:
        with _progress_bars() as listener:
            yield listener


@contextlib.contextmanager
def progress_of_run(folder: Path, state: str) -> Iterator[Listener]:
    """Yield a listener as `show_progress`, which also shows the work in a run folder, if it is one."""
    from core.runlog.schema import RUN_FILE
    from core.runlog.work import work_on

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(show_progress())
        if (folder / RUN_FILE).is_file():
            listener = to_all(listener, stack.enter_context(work_on(folder, state)))
        yield listener


@contextlib.contextmanager
def _progress_bars() -> Iterator[Listener]:
    """Draw bars on stderr, narration above them."""
    console = Console(file=sys.stderr, markup=False, highlight=False, emoji=False)
    bars = StageBars(console)

    def show(event: ProgressEvent) -> None:
        if event.message:
            narrate(event.message)
        bars.show(event)

    with lines_above(console), bars:
        yield show


@dataclass
class ProgressLines:
    """A plain line when a stage begins, at each tenth of it, and every ``line_seconds``."""

    line_seconds: float = _LINE_SECONDS
    write: Callable[[str], None] = narrate
    clock: Callable[[], float] = time.monotonic
    _stage: str = ""
    _tenth: int = 0
    _last_done: int = 0
    _last_line: float = 0.0
    #: Time, and units done before, at the start of the stage.
    _began: tuple[float, int] = (0.0, 0)

    def __call__(self, event: ProgressEvent) -> None:
        """Take an event of a core function."""
        if event.message:
            self.write(event.message)
        if event.stage != self._stage or event.done < self._last_done:
            self._stage, self._tenth = event.stage, 0
            self._last_line = self.clock()
            self._began = (self._last_line, event.done)
            if event.done == 0:
                self.write(f"{event.stage} ...")
        self._last_done = event.done
        tenth = event.done * 10 // event.total if event.total else 0
        is_late = self.clock() - self._last_line >= self.line_seconds
        if tenth > self._tenth or (is_late and event.done):
            self._tenth = tenth
            self._last_line = self.clock()
            note = f", {event.note}" if event.note else ""
            self.write(f"{event.stage}: {_amount(event)}{note}{self._time_left(event)}")

    def _time_left(self, event: ProgressEvent) -> str:
        began, done_before = self._began
        if not event.total or event.done <= done_before:
            return ""
        pace = (self.clock() - began) / (event.done - done_before)
        seconds = event.seconds_left if event.note else pace * (event.total - event.done)
        if seconds is None or seconds < _SHORTEST_LEFT:
            return ""
        minutes = round(seconds / 60)
        return f", {minutes} min left" if minutes < 120 else f", {minutes / 60:.0f} h left"


def _amount(event: ProgressEvent) -> str:
    if not event.total:
        return f"{event.done:,}"
    return f"{event.done * 100 // event.total} % ({event.done:,} of {event.total:,})"


# -- bars
class _Left(ProgressColumn):
    """The time left: as the work estimates it, else at the pace so far."""

    def render(self, task: Task) -> Text:
        left = task.fields["left"] if task.fields["note"] else task.time_remaining
        return Text("" if left is None or task.finished else f"{duration(left)} left", no_wrap=True)


class StageBars(Progress):
    """One bar per stage; the finished ones become one line above it. A stage may begin again."""

    def __init__(self, console: Console) -> None:
        self._stages: dict[str, TaskID] = {}
        #: Stage -> seconds that it took.
        self._over: dict[str, float] = {}

        def text(layout: str) -> TextColumn:
            return TextColumn(layout, markup=False, table_column=Column(no_wrap=True))

        super().__init__(
            text("{task.description}"),
            BarColumn(bar_width=None),
            text("{task.fields[amount]}"),
            text("{task.fields[note]}"),
            _Left(table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
            redirect_stdout=False,  # stdout is for results, not for narration
            redirect_stderr=False,
        )

    def show(self, event: ProgressEvent) -> None:
        """Take an event of a core function."""
        if event.stage not in self._stages:
            self._collapse()
            self._stages[event.stage] = self.add_task(
                visible(event.stage), total=event.total, amount="", note="", left=None
            )
        task = self._stages[event.stage]
        if event.done < self._tasks[task].completed:
            self.reset(task, total=event.total)
        amount = f"{event.done:,}" + (f"/{event.total:,}" if event.total else "")
        self.update(
            task,
            completed=event.done,
            total=event.total,
            amount=amount,
            note=visible(event.note),
            left=event.seconds_left,
        )

    def _collapse(self) -> None:
        """Turn finished stages into words."""
        for stage, number in list(self._stages.items()):
            task = self._tasks[number]
            if task.finished:
                self._over[stage] = self._over.get(stage, 0.0) + (task.finished_time or 0.0)
                self.remove_task(number)
                del self._stages[stage]

    def stop(self) -> None:
        """End with the one line, and the bars of what was not finished."""
        self._collapse()
        super().stop()

    def get_renderables(self) -> Iterator[RenderableType]:
        """Give the line of what is over, and the bars."""
        if self._over:
            parts = [
                f"{visible(stage)} {duration(seconds)}" for stage, seconds in self._over.items()
            ]
            yield Text(f"done: {', '.join(parts)}", style="dim", no_wrap=True, overflow="ellipsis")
        yield self.make_tasks_table(self.tasks)
