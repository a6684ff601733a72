"""Progress of long work on stderr: bars on a terminal, else a plain line now and then."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from core.progress import Listener, ProgressEvent, ignore_progress
from tfx_cli import output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Without a terminal a line appears at least this often while work advances.
LINE_SECONDS = 30.0
#: Shorter remaining times are not shown.
_SHORTEST_LEFT = 60.0


@contextlib.contextmanager
def show_progress() -> Iterator[Listener]:
    """Yield a listener for `on_progress` that shows the work while the block runs."""
    if output.is_quiet():
        yield ignore_progress
    elif not sys.stderr.isatty():
        yield ProgressLines()
    else:
        with _bars() as listener:
            yield listener


@contextlib.contextmanager
def _bars() -> Iterator[Listener]:
    from rich import progress as rich_progress

    with output.live_console() as console:
        columns = (
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(),
            rich_progress.TaskProgressColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(),
        )
        # stdout is for results, not for narration.
        with rich_progress.Progress(
            *columns, console=console, redirect_stdout=False, redirect_stderr=False
        ) as progress:
            yield _ProgressBars(progress)


class _ProgressBars:
    """One bar per stage; a stage that begins again starts its bar anew."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}

    def __call__(self, event: ProgressEvent) -> None:
        if event.message:
            output.narrate(event.message)
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._progress.add_task(event.stage, total=event.total)
        elif event.done < self._done[event.stage]:
            self._progress.reset(self._tasks[event.stage], total=event.total)
        self._done[event.stage] = event.done
        self._progress.update(self._tasks[event.stage], completed=event.done, total=event.total)


class ProgressLines:
    """A plain line when a stage begins, at each tenth of it, and every ``line_seconds``."""

    def __init__(
        self,
        *,
        line_seconds: float = LINE_SECONDS,
        write: Callable[[str], None] = output.narrate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line_seconds = line_seconds
        self._write = write
        self._clock = clock
        self._stage = ""
        self._tenth = 0
        self._last_done = 0
        self._last_line = 0.0
        self._began = (0.0, 0)

    def __call__(self, event: ProgressEvent) -> None:
        """Take an event of a core function."""
        if event.message:
            self._write(event.message)
        if event.stage != self._stage or event.done < self._last_done:
            self._stage, self._tenth = event.stage, 0
            self._last_line = self._clock()
            self._began = (self._last_line, event.done)
            if event.done == 0:
                self._write(f"{event.stage} ...")
        self._last_done = event.done
        tenth = event.done * 10 // event.total if event.total else 0
        is_late = self._clock() - self._last_line >= self._line_seconds
        if tenth > self._tenth or (is_late and event.done):
            self._tenth = tenth
            self._last_line = self._clock()
            self._write(f"{event.stage}: {_amount(event)}{self._time_left(event)}")

    def _time_left(self, event: ProgressEvent) -> str:
        began, done_before = self._began
        if not event.total or event.done <= done_before:
            return ""
        pace = (self._clock() - began) / (event.done - done_before)
        seconds = pace * (event.total - event.done)
        if seconds < _SHORTEST_LEFT:
            return ""
        minutes = round(seconds / 60)
        return f", {minutes} min left" if minutes < 120 else f", {minutes / 60:.0f} h left"


def _amount(event: ProgressEvent) -> str:
    if not event.total:
        return f"{event.done:,}"
    return f"{event.done * 100 // event.total} % ({event.done:,} of {event.total:,})"
