"""Columns of a list of runs, in `tfx runs list` and in the dashboard: heads, texts, order, and which fit."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from core.runlog.overview import RunRow
from core.wording import duration, visible
from tfx_cli.formatting import ago, date, metric_value, progress_of

#: Columns of the terminal for the names of runs, at least.
SHORTEST_NAME = 12


class RunColumn(NamedTuple):
    """One column of a list of runs."""

    name: str
    #: Of one or two lines.
    head: str
    #: The text of a run at a moment, in seconds since 1970.
    text: Callable[[RunRow, float], str]
    #: What runs are sorted by, the first in the list least; None is last.
    order: Callable[[RunRow], Any]
    #: A narrow list keeps the columns of the highest numbers.
    weight: int
    is_left: bool = False

    @property
    def title(self) -> str:
        """The head in one line."""
        return self.head.replace("\n", ", ")


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _done(row: RunRow) -> str:
    return "" if row.fraction is None or row.state == "finished" else f"{row.fraction:.0%}"


RUN_COLUMNS = (
    RunColumn("run", "run", lambda row, _: visible(row.name), lambda row: row.name, 99, True),
    RunColumn("state", "state", lambda row, _: visible(row.state), lambda row: row.state, 98, True),
    RunColumn(
        "step",
        "step",
        lambda row, _: progress_of(row.step, row.total, short=True),
        lambda row: _negative(row.step),
        7,
    ),
    RunColumn("done", "done", lambda row, _: _done(row), lambda row: _negative(row.fraction), 6),
    RunColumn(
        "loss", "loss\nlast", lambda row, _: metric_value("loss", row.loss), lambda row: row.loss, 2
    ),
    RunColumn(
        "val. loss",
        "val. loss\nbest",
        lambda row, _: metric_value("loss", row.validation_loss),
        lambda row: row.validation_loss,
        9,
    ),
    RunColumn(
        "accuracy",
        "accuracy\nthere",
        lambda row, _: metric_value("acc/mean", row.accuracy),
        lambda row: _negative(row.accuracy),
        8,
    ),
    RunColumn(
        "last data",
        "last data",
        lambda row, now: ago(row.last_data, now=max(now, row.last_data or now)),
        lambda row: _negative(row.last_data),
        4,
    ),
    RunColumn(
        "left",
        "left",
        lambda row, _: "" if row.eta is None else duration(row.eta),
        lambda row: row.eta,
        5,
    ),
    RunColumn("tags", "tags", lambda row, _: visible(", ".join(row.tags)), lambda row: row.tags, 3),
    RunColumn(
        "started",
        "started",
        lambda row, _: date(row.started or None),
        lambda row: _negative(row.started),
        1,
    ),
)


#: Those that a list has if nobody chooses.
DEFAULT_COLUMNS = RUN_COLUMNS[:-1]


def sorted_runs(
    rows: Iterable[RunRow], column: RunColumn, *, reverse: bool = False
) -> list[RunRow]:
    """Sort runs by a column; those without a value are last, whatever the direction."""
    keyed = [(column.order(row), row) for row in rows]
    known = [one for one in keyed if one[0] is not None]
    known.sort(key=lambda one: one[0], reverse=reverse)
    return [row for _, row in known] + [row for key, row in keyed if key is None]


def columns_that_fit(
    columns: Sequence[RunColumn], rows: Sequence[RunRow], *, now: float, width: int | None, gap: int
) -> list[RunColumn]:
    """Leave out empty columns, and where the width is limited those of least weight.

    The width is that of the table without edges, the gap that between two columns; names of runs are
    cut to the room that is left.
    """
    widths = {}
    for column in columns:
        texts = [column.text(row, now) for row in rows]
        if any(texts) or column.name in ("run", "state"):
            widths[column.name] = max(map(len, [*column.head.split("\n"), *texts]))
    if "run" in widths:
        widths["run"] = SHORTEST_NAME
    while width is not None and sum(widths.values()) + gap * (len(widths) - 1) > width:
        lightest = min((one for one in columns if one.name in widths), key=lambda one: one.weight)
        if lightest.weight > 10:
            break
        del widths[lightest.name]
    return [column for column in columns if column.name in widths]


def room_for_names(
    columns: Sequence[RunColumn], rows: Sequence[RunRow], *, now: float, width: int, gap: int
) -> int:
    """Return the columns of the terminal that are left for the names of runs."""
    used = [
        max(map(len, [*column.head.split("\n"), *(column.text(row, now) for row in rows)]))
        for column in columns
        if column.name != "run"
    ]
    return max(width - sum(used) - gap * len(used), SHORTEST_NAME)
