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
from tfx_cli.dashboard.base_screen import STATE_STYLES, DashboardScreen
from tfx_cli.dashboard.curve import CurveSeries, CurveView
from tfx_cli.dashboard.keymap import bindings_of
from tfx_cli.dashboard.messages import OpenGenerate, OpenRun, OpenStart, ReadSoon
from tfx_cli.dashboard.themes import series_colours
from tfx_cli.dashboard.workspace import RunView, WorkspaceView
from tfx_cli.formatting import count_of
from tfx_cli.runs_tables import run_texts

_COLUMNS = ("", "run", "state", "step", "loss", "val. loss", "accuracy", "last data", "left")
_LEFT_COLUMNS = ("", "run", "state")
#: Columns that a narrow terminal does not show.
_WIDE_COLUMNS = frozenset({"loss", "left"})


def run_colours(names: Iterable[str], n_colours: int = 8) -> dict[str, int]:
    """Give each run a colour that depends on its name, and another one only where that is taken."""
    colours: dict[str, int] = {}
    for name in sorted(names):
        own = zlib.crc32(name.encode()) % n_colours
        others = ((own + step) % n_colours for step in range(n_colours))
        colours[name] = next((one for one in others if one not in colours.values()), own)
    return colours


class RunsScreen(DashboardScreen):
    """List and overlay runs; open one."""

    NAME = "runs"
    BINDINGS = bindings_of("runs")

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root
        self._view: WorkspaceView | None = None
        self._selected: list[str] = []  # paths
        self._pinned: str | None = None
        self._metric = 0
        self._columns: tuple[str, ...] = ()

    def make_body(self) -> ComposeResult:
        with Vertical(classes="body"):
            yield Input(placeholder="filter by name or state", id="filter", compact=True)
            yield DataTable(cursor_type="row", zebra_stripes=True, id="runs")
            yield CurveView("overlay", id="overlay", empty="select runs with v")

    def on_mount(self) -> None:
        self.query_one("#runs").focus()
        self._show()

    def open_runs(self) -> list[str]:
        """Return the selected runs, or the run at the cursor if none is selected."""
        here = self._current_path() if self.is_laid_out else None
        return list(self._selected) or ([here] if here is not None else [])

    def on_data_table_row_highlighted(self) -> None:
        if not self._selected:
            self.post_message(ReadSoon())

    def update_view(self, view: WorkspaceView) -> None:
        """Show the runs as they are now."""
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
        table = self.query_one("#runs", DataTable)
        is_wide = self.size.width >= 100
        wanted = tuple(name for name in _COLUMNS if is_wide or name not in _WIDE_COLUMNS)
        current = self._current_path()
        if wanted != self._columns:
            table.clear(columns=True)
            self._columns = wanted
            for name in wanted:
                table.add_column(Text(name), key=name)
        rows = self._rows()
        if list(rows) != [str(key.value) for key in table.rows]:
            table.clear()
            for key, cells in rows.items():
                table.add_row(*(cells[name] for name in wanted), key=key)
            if current in rows:
                table.move_cursor(row=list(rows).index(current))
        else:
            for key, cells in rows.items():
                for name in wanted:
                    if table.get_cell(key, name) != cells[name]:
                        table.update_cell(key, name, cells[name], update_width=True)
        self._show_overlay()

    def _show_bar(self) -> None:
        parts: list[str] = []
        if self._view is not None:
            n_live = sum(row.state in ("running", "starting") for row in self._view.rows)
            parts = [count_of(len(self._view.rows), "run"), f"{n_live} running"]
            if self._view.unreadable:
                parts.append(f"{len(self._view.unreadable)} unreadable")
            elif not self._view.rows:
                parts = ["no runs yet: press n to train a preset"]
        self.set_bar(
            ("tfx", "bold"), f"  {self._root}", *([f"  {', '.join(parts)}"] if parts else [])
        )

    def _rows(self) -> dict[str, dict[str, Text]]:
        """Return path -> cells of the runs that match the filter."""
        if self._view is None:
            return {}
        part = self.query_one("#filter", Input).value.strip().lower()
        rows = {
            row.path: self._cells(row)
            for row in self._view.rows
            if part in row.name.lower() or part in row.state
        }
        for one in self._view.unreadable:
            if part in one.name.lower() or part in "unreadable":
                known = {"run": Text(one.name), "state": Text("! unreadable")}
                rows[one.path] = {name: Text("") for name in _COLUMNS} | known
        return rows

    def _cells(self, row: RunRow) -> dict[str, Text]:
        assert self._view is not None
        mark = "◆" if row.path == self._pinned else "■" if row.path in self._selected else "·"
        sign, style = STATE_STYLES.get(row.state, ("?", "$secondary"))
        state_colour = self.app.theme_variables.get(style.removeprefix("$"), "")
        cells = {
            name: Text(text, justify="left" if name in _LEFT_COLUMNS else "right")
            for name, text in run_texts(row, now=self._view.now).items()
        }
        colour = series_colours(self.app.theme)[self._colours()[row.path]]
        return cells | {
            "": Text(mark, style=colour),
            "state": Text(f"{sign} {row.state}", style=state_colour),
        }

    def _colours(self) -> dict[str, int]:
        assert self._view is not None
        return run_colours(row.path for row in self._view.rows)

    def _current_path(self) -> str | None:
        table = self.query_one("#runs", DataTable)
        if not 0 <= table.cursor_row < table.row_count:
            return None
        return str(table.ordered_rows[table.cursor_row].key.value)

    # -- the overlay

    def _metrics(self, views: Sequence[RunView]) -> list[tuple[str, str]]:
        """Return (split, metric) pairs of the runs, losses first."""
        pairs: dict[tuple[str, str], None] = {("validation", "loss"): None, ("train", "loss"): None}
        for view in views:
            for split in ("validation", "train"):
                if split in view.curves:
                    pairs |= {(split, name): None for name in view.curves[split].columns}
        return list(pairs)

    def _show_overlay(self) -> None:
        self.set_class(bool(self._selected), "-overlay")
        if self._view is None:
            return
        opened, colours = self._view.open_runs, self._colours()
        views = {path: opened[path] for path in self.open_runs() if path in opened}
        metrics = self._metrics(list(views.values()))
        split, name = metrics[self._metric % len(metrics)]
        series = []
        for path, view in views.items():
            table = view.curves.get(split)
            if table is not None and np.isfinite(table.columns.get(name, np.empty(0))).any():
                values, is_noisy = table.columns[name], split == "train"
                one = CurveSeries(view.row.name, table.steps, values, colours[path], is_noisy)
                # The pinned run is drawn last, on top.
                series.append((path == self._pinned, one))
        series.sort(key=lambda pair: pair[0])
        self.query_one("#overlay", CurveView).show(
            [one for _, one in series], title=f"{metric_info(name).label}, {split}"
        )

    def on_curve_view_moved(self, event: CurveView.Moved) -> None:
        self.query_one("#overlay", CurveView).look(event.window)

    # -- actions

    def action_open(self) -> None:
        path = self._current_path()
        if path is not None and self._view is not None:
            unreadable = {one.path: one.reason for one in self._view.unreadable}
            if path in unreadable:
                self.notify(unreadable[path], severity="error", markup=False)
            else:
                self.post_message(OpenRun(path))

    def on_data_table_row_selected(self) -> None:
        self.action_open()

    def action_select(self) -> None:
        path = self._current_path()
        if path is None or self._view is None or path not in {row.path for row in self._view.rows}:
            return
        if path in self._selected:
            self._selected.remove(path)
        else:
            self._selected.append(path)
        self.post_message(ReadSoon())
        self._show()

    def action_pin(self) -> None:
        path = self._current_path()
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
        box = self.query_one("#filter", Input)
        box.value = ""
        box.remove_class("-shown")
        self.query_one("#runs").focus()

    def action_new_run(self) -> None:
        self.post_message(OpenStart())

    def action_generate(self) -> None:
        path = self._current_path()
        if path is not None:
            self.post_message(OpenGenerate(path))
