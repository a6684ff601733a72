"""The runs of a folder: a table, and the overlaid curves of the selected ones."""

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import DataTable, Input

from core.runlog.overview import RunRow
from core.runlog.schema import metric_info
from tfx_cli.dashboard.base_screen import (
    DashboardScreen,
    OpenRun,
    ReadSoon,
    current_key,
    fill_table,
)
from tfx_cli.dashboard.keymap import bindings_of
from tfx_cli.dashboard.plots import CurveView, Series
from tfx_cli.dashboard.themes import series_colour, state_sign
from tfx_cli.dashboard.workspace import WorkspaceView
from tfx_cli.formatting import count_of, run_texts, shortened_middle

_COLUMNS = ("", "run", "state", "step", "loss", "val. loss", "accuracy", "last data", "left")
_LEFT_COLUMNS = ("", "run", "state")
#: Columns that a narrow terminal does not show.
_WIDE_COLUMNS = frozenset({"loss", "left"})
#: Columns of the terminal that all but the run's name take, in a wide and in a narrow table.
_WIDE, _NARROW = 82, 62
_SHORTEST_NAME = 12
#: Before the first reading.
_NOTHING_READ = WorkspaceView((), (), {}, 0.0)


def run_colours(shown: Sequence[str], names: Iterable[str], n_colours: int = 12) -> dict[str, int]:
    """Give each run a colour that depends on its name; of those shown, each one that is still free."""
    colours: dict[str, int] = {}
    for name in shown:
        own = zlib.crc32(name.encode()) % n_colours
        taken = set(colours.values())
        ring = ((own + step) % n_colours for step in range(n_colours))
        # With all colours taken, curves have them once more, dashed.
        colours[name] = next((place for place in ring if place not in taken), len(colours))
    own_colours = {name: zlib.crc32(name.encode()) % n_colours for name in names}
    return own_colours | colours


class RunsScreen(DashboardScreen):
    """List and overlay runs; open one."""

    NAME = "runs"
    BINDINGS = bindings_of("runs")

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root
        self._view = _NOTHING_READ
        self._selected: list[str] = []  # paths
        self._pinned: str | None = None
        self._metric = 0

    def make_body(self) -> ComposeResult:
        with Vertical(classes="body"):
            yield Input(placeholder="filter by name or state", id="filter", compact=True)
            yield DataTable(cursor_type="row", zebra_stripes=True, id="runs")
            yield CurveView("overlay", id="overlay", empty="select runs with v")

    def on_mount(self) -> None:
        self.query_one("#runs").focus()
        self._show()

    def current_run(self) -> str | None:
        return current_key(self.query_one("#runs", DataTable)) if self.is_laid_out else None

    def open_runs(self) -> list[str]:
        return list(self._selected) or super().open_runs()

    def on_data_table_row_highlighted(self) -> None:
        if not self._selected:
            self.post_message(ReadSoon())

    def update_view(self, view: WorkspaceView) -> None:
        self._view = view
        paths = {row.path for row in view.rows}
        self._selected = [path for path in self._selected if path in paths]
        self._show()

    def on_resize(self) -> None:
        self.call_after_refresh(self._show)

    # -- the table
    def _show(self) -> None:
        if not self.is_laid_out:
            return
        self._show_bar()
        is_wide = self.size.width >= 100
        columns = [name for name in _COLUMNS if is_wide or name not in _WIDE_COLUMNS]
        room = max(self.size.width - (_WIDE if is_wide else _NARROW), _SHORTEST_NAME)
        rows = {}
        for path, cells in self._rows().items():
            cells["run"].plain = shortened_middle(cells["run"].plain, room)
            rows[path] = [cells[name] for name in columns]
        fill_table(self.query_one("#runs", DataTable), columns, rows)
        self._show_overlay()

    def _show_bar(self) -> None:
        n_live = sum(row.state in ("running", "starting") for row in self._view.rows)
        parts = [count_of(len(self._view.rows), "run"), f"{n_live} running"]
        if self._view.unreadable:
            parts.append(f"{len(self._view.unreadable)} unreadable")
        elif not self._view.rows:
            parts = ["no runs yet: press n to train a preset"]
        text = "" if self._view is _NOTHING_READ else f"  {', '.join(parts)}"
        self.set_bar(("tfx", "bold"), f"  {self._root}{text}")

    def _rows(self) -> dict[str, dict[str, Text]]:
        """Return path -> cells of the runs that match the filter."""
        part = self.query_one("#filter", Input).value.strip().lower()
        colours = self._colours()
        rows = {
            row.path: self._cells(row, colours[row.path])
            for row in self._view.rows
            if part in row.name.lower() or part in row.state
        }
        for one in self._view.unreadable:
            if part in one.name.lower() or part in "unreadable":
                known = {"run": Text(one.name), "state": Text("! unreadable")}
                rows[one.path] = {name: Text("") for name in _COLUMNS} | known
        return rows

    def _cells(self, row: RunRow, colour: int) -> dict[str, Text]:
        mark = "◆" if row.path == self._pinned else "■" if row.path in self._selected else "·"
        state, style = state_sign(row.state)
        cells = {
            name: Text(text, justify="left" if name in _LEFT_COLUMNS else "right")
            for name, text in run_texts(row, now=self._view.now).items()
        }
        return cells | {
            "": Text(mark, style=series_colour(self.app.theme, colour)),
            "state": Text(state, style=self.app.theme_variables.get(style.removeprefix("$"), "")),
        }

    def _colours(self) -> dict[str, int]:
        return run_colours(self.open_runs(), [row.path for row in self._view.rows])

    # -- the overlay
    def _show_overlay(self) -> None:
        self.set_class(bool(self._selected), "-overlay")
        opened, colours = self._view.open_runs, self._colours()
        views = {path: opened[path] for path in self.open_runs() if path in opened}
        # (split, metric), losses first.
        metrics = {("validation", "loss"): None, ("train", "loss"): None}
        for view in views.values():
            for split in ("validation", "train"):
                if split in view.curves:
                    metrics |= {(split, name): None for name in view.curves[split].columns}
        split, name = list(metrics)[self._metric % len(metrics)]
        series = []
        # The pinned run is drawn last, on top.
        for path, view in sorted(views.items(), key=lambda item: item[0] == self._pinned):
            table = view.curves.get(split)
            if table is not None and np.isfinite(table.columns.get(name, np.empty(0))).any():
                values, is_noisy = table.columns[name], split == "train"
                series.append(Series(view.row.name, table.steps, values, colours[path], is_noisy))
        overlay = self.query_one("#overlay", CurveView)
        overlay.show(series, title=f"{metric_info(name).label}, {split}")

    def on_curve_view_moved(self, event: CurveView.Moved) -> None:
        overlay = self.query_one("#overlay", CurveView)
        overlay.show(overlay.series, window=event.window)

    # -- actions
    def action_open(self) -> None:
        path = self.current_run()
        unreadable = {one.path: one.reason for one in self._view.unreadable}
        if path in unreadable:
            self.notify(unreadable[path], severity="error", markup=False)
        elif path is not None:
            self.post_message(OpenRun(path))

    def on_data_table_row_selected(self) -> None:
        self.action_open()

    def action_select(self) -> None:
        path = self.current_run()
        if path is None or path not in {row.path for row in self._view.rows}:
            return
        if path in self._selected:
            self._selected.remove(path)
        else:
            self._selected.append(path)
        self.post_message(ReadSoon())
        self._show()

    def action_pin(self) -> None:
        path = self.current_run()
        self._pinned = None if path == self._pinned else path
        if path is not None and path not in self._selected and self._pinned is not None:
            self.action_select()
        self._show()

    def action_next_metric(self) -> None:
        self._metric += 1
        self._show()

    def action_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.add_class("-shown")
        box.focus()

    def on_input_changed(self) -> None:
        self._show()

    def on_input_submitted(self) -> None:
        self.query_one("#runs").focus()

    def action_back(self) -> None:
        """Close the filter."""
        box = self.query_one("#filter", Input)
        box.value = ""
        box.remove_class("-shown")
        self.query_one("#runs").focus()
