"""Progress on a terminal: a bar for the stage at work, and one line for those that are over."""

from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from core.progress import ProgressEvent
from core.wording import duration, visible


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
