"""The runs of a folder: a table, and the overlaid curves of the selected ones."""

import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import DataTable, Input, Static

from core.errors import TfxError
from core.runlog.keeping import TRASH, delete_run, rename_run, tag_run
from core.runlog.overview import RunRow
from core.runlog.ownership import is_run_name
from core.runlog.schema import AT_WORK, MODEL_FOLDER, metric_info
from tfx_cli.arguments import names_in
from tfx_cli.dashboard.base_screen import (
    DashboardScreen,
    FilterBox,
    OpenRun,
    ReadSoon,
    current_key,
    fill_table,
)
from tfx_cli.dashboard.curve_view import CurveView
from tfx_cli.dashboard.dialogs import ConfirmDialog, SelectionDialog, TextDialog
from tfx_cli.dashboard.kept_choices import keep_choices, read_choices
from tfx_cli.dashboard.keymap import Key, bindings_of
from tfx_cli.dashboard.picture import Series
from tfx_cli.dashboard.processes import NO_FAILURE, Launch, RunProcesses
from tfx_cli.dashboard.themes import series_colour, state_sign
from tfx_cli.dashboard.workspace import NOTHING_READ, WorkspaceView
from tfx_cli.formatting import count_of, shortened, shortened_middle
from tfx_cli.run_columns import (
    DEFAULT_COLUMNS,
    RUN_COLUMNS,
    RunColumn,
    columns_that_fit,
    room_for_names,
    sorted_runs,
)

#: The mark of a run, which no list of columns offers.
_MARK = "mark"
_OWN_COLUMNS = {column.name for column in RUN_COLUMNS}
#: Columns of the terminal that a table takes beside its text: the mark and edges; between two columns.
_EDGES, _GAP = 4, 2
_LONGEST_SETTING = 24
#: In place of an empty list.
_WELCOME = """There are no runs in this folder yet.

n   train a preset: 'base' has simulated cells and takes minutes
    For your own cells, 'tfx init cells.h5ad' writes a preset for n.
q   leave: 'tfx dashboard FOLDER' opens the runs of a folder
?   all keys"""


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
    AUTO_FOCUS = "#runs"
    BINDINGS = bindings_of("runs")

    def __init__(self, root: Path, processes: RunProcesses) -> None:
        super().__init__()
        self._root = root
        self._processes = processes
        self._view = NOTHING_READ
        self._selected: list[str] = []  # paths
        self._pinned: str | None = None
        self._metric = 0
        #: Names of the chosen columns; None: those that fit.
        self._chosen: list[str] | None = None
        self._sort, self._is_reversed = "started", False
        self._take_kept(read_choices())
        self._opens_columns = False

    def make_body(self) -> ComposeResult:
        with Vertical(classes="body"):
            yield FilterBox("filter by name or state")
            yield DataTable(cursor_type="row", zebra_stripes=True, header_height=2, id="runs")
            yield CurveView("overlay", id="overlay", empty="select runs with v")
            yield Static(_WELCOME, id="welcome", markup=False)

    def on_mount(self) -> None:
        self.query_one("#runs").focus()
        self._show()

    def offers(self, key: Key) -> bool:
        needs_run = key.id in ("runs.open", "runs.select", "runs.generate", "runs.filter")
        if (
            key.id == "runs.generate"
            and not (Path(self.current_run() or "") / MODEL_FOLDER).is_dir()
        ):
            return False
        return super().offers(key) and (bool(self.current_run()) or not needs_run)

    def enter_label(self) -> str:
        if isinstance(self.focused, Input):
            return "Keep the filter"
        return "Open" if self.current_run() else ""

    def current_run(self) -> str | None:
        return current_key(self.query_one("#runs", DataTable)) if self.is_laid_out else None

    def open_runs(self) -> list[str]:
        return list(self._selected) or super().open_runs()

    def on_data_table_row_highlighted(self) -> None:
        self._update_footer()
        if not self._selected:
            self.post_message(ReadSoon())

    def update_view(self, view: WorkspaceView) -> None:
        self._view = view
        paths = {row.path for row in view.rows}
        self._selected = [path for path in self._selected if path in paths]
        self._show()
        if self._opens_columns and (view.settings or not view.rows):
            self._opens_columns = False
            self._open_columns()

    def on_resize(self) -> None:
        self.call_after_refresh(self._show)

    # -- the table
    def _show(self) -> None:
        if not self.is_laid_out:
            return
        rows = self._shown_rows()
        self._show_bar(len(rows))
        columns = self._columns(rows)
        now, width = self._view.now, self.size.width - _EDGES
        room = room_for_names(columns, rows, now=now, width=width - 2, gap=_GAP)  # signs of states
        colours = self._colours()
        cells = {
            row.path: [self._mark(row, colours), *(self._cell(one, row, room) for one in columns)]
            for row in rows
        }
        part = self.filter.part
        for bad in self._view.unreadable:
            if part in bad.name.lower() or part in "unreadable":
                texts = {"run": shortened_middle(bad.name, room), "state": "! unreadable"}
                cells[bad.path] = [Text(""), *(Text(texts.get(one.name, "")) for one in columns)]
        heads = {_MARK: Text("")} | {one.name: self._head(one) for one in columns}
        fill_table(self.query_one("#runs", DataTable), heads, cells)
        self._show_overlay()

    def _show_bar(self, n_shown: int) -> None:
        n_live = sum(row.state in AT_WORK for row in self._view.rows)
        parts = [count_of(len(self._view.rows), "run"), f"{n_live} at work"]
        if self._view.unreadable:
            parts.append(f"{len(self._view.unreadable)} unreadable")
        elif not self._view.rows:
            parts = ["no runs yet: press n to train a preset"]
        is_empty = not self._view.rows and not self._processes.launches
        is_empty = is_empty and not self._view.unreadable and self._view is not NOTHING_READ
        if self.has_class("-empty") and not is_empty:  # a hidden list cannot have the focus
            self.call_after_refresh(self.query_one("#runs").focus)
        self.set_class(is_empty, "-empty")
        if self._view.rows and not n_shown and not self._view.unreadable:
            parts = [f"no run matches '{self.filter.part}' (esc shows all)"]
        text = "" if self._view is NOTHING_READ else f"  {', '.join(parts)}"
        self.set_bar(("tfx", "bold"), f"  {self._root}{text}")

    def _shown_rows(self) -> list[RunRow]:
        """Return the runs that match the filter, in order; first those that were just started here."""
        part, known = self.filter.part, {row.path for row in self._view.rows}
        launched = [one for one in self._processes.launches.values() if one.path not in known]
        rows = [
            row
            for row in [*map(_row_of_launch, launched), *self._view.rows]
            if any(part in text.lower() for text in (row.name, row.state, *row.tags))
        ]
        column = next((one for one in self._all_columns() if one.name == self._sort), None)
        return rows if column is None else sorted_runs(rows, column, reverse=self._is_reversed)

    # -- columns
    def _take_kept(self, kept: Mapping[str, object]) -> None:
        """Take the columns and the order of the last start."""
        columns = kept.get("columns")
        if isinstance(columns, list) and columns:
            self._chosen = [str(name) for name in columns]
            # Keys of presets are read of all runs.
            self.needs_settings = any("." in name for name in set(self._chosen) - _OWN_COLUMNS)
        self._sort = str(kept.get("sort", self._sort))
        self._is_reversed = kept.get("reversed") is True

    def _keep(self) -> None:
        keep_choices(columns=self._chosen, sort=self._sort, reversed=self._is_reversed)

    def _all_columns(self) -> list[RunColumn]:
        """Return all columns: also the keys of the presets, as far as they differ."""
        settings = self._view.settings
        keys = dict.fromkeys(key for values in settings.values() for key in values if key != "name")
        differ = [key for key in keys if len({one.get(key) for one in settings.values()}) > 1]
        return [*RUN_COLUMNS, *(_setting_column(key, settings) for key in differ)]

    def _columns(self, rows: Sequence[RunRow]) -> list[RunColumn]:
        if self._chosen is None:
            width = self.size.width - _EDGES - 2
            return columns_that_fit(
                DEFAULT_COLUMNS, rows, now=self._view.now, width=width, gap=_GAP
            )
        chosen = ["run", *self._chosen]
        return [column for column in self._all_columns() if column.name in chosen]

    def _head(self, column: RunColumn) -> Text:
        arrow = "" if column.name != self._sort else " ▾" if self._is_reversed else " ▴"
        first, *others = column.head.split("\n")
        justify: Literal["left", "right"] = "left" if column.is_left else "right"
        return Text("\n".join([first + arrow, *others]), justify=justify)

    def _mark(self, row: RunRow, colours: Mapping[str, int]) -> Text:
        mark = "◆" if row.path == self._pinned else "■" if row.path in self._selected else "·"
        colour = colours.get(row.path, 0)
        return Text(mark, style=series_colour(self.app.theme, colour))

    def _cell(self, column: RunColumn, row: RunRow, room: int) -> Text:
        text = column.text(row, self._view.now)
        if column.name == "run":
            return Text(shortened_middle(text, room))
        if column.name == "state":
            shown, style = state_sign(text)
            return Text(shown, style=self.app.theme_variables.get(style.removeprefix("$"), ""))
        return Text(text, justify="left" if column.is_left else "right")

    def action_columns(self) -> None:
        """Choose columns, once the presets have been read."""
        self.needs_settings = self._opens_columns = True
        self.post_message(ReadSoon())

    @work
    async def _open_columns(self) -> None:
        chosen = self._chosen or [one.name for one in self._columns(self._shown_rows())]
        options = [
            (one.name, one.title, one.name in chosen)
            for one in self._all_columns()
            if one.name != "run"
        ]
        dialog = SelectionDialog("columns; none: those that fit", options)
        if (names := await self.app.push_screen_wait(dialog)) is not None:
            self._chosen = names or None
            self._keep()
            self._show()

    def _sort_by(self, name: str) -> None:
        self._is_reversed = name == self._sort and not self._is_reversed
        self._sort = name
        self._keep()
        self._show()

    def action_sort(self) -> None:
        names = [column.name for column in self._columns(self._shown_rows())]
        place = names.index(self._sort) + 1 if self._sort in names else 0
        self._sort, self._is_reversed = names[place % len(names)], False
        self._keep()
        self._show()

    def action_reverse(self) -> None:
        self._sort_by(self._sort)

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        if event.column_key.value not in (None, _MARK):
            self._sort_by(str(event.column_key.value))

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

    # -- keeping
    def _run(self) -> RunRow | None:
        path = self.current_run()
        row = self._view.row_of(path)
        if row is None:
            self.notify("there is no run here")
        return row

    def _change(self, change: Callable[[], object]) -> None:
        """Change a run on the disk; what is wrong is shown."""
        try:
            change()
        except TfxError as error:
            self.notify(str(error), severity="error")
        self.post_message(ReadSoon())

    @work
    async def action_rename(self) -> None:
        row = self._run()
        if row is None:
            return
        folder = Path(row.path)

        def fault(name: str) -> str:
            if not is_run_name(name):
                return "use letters, digits, '_', '.' or '-'"
            return f"{name} exists" if folder.with_name(name).exists() else ""

        dialog = TextDialog(f"new name of {row.name}", row.name, fault)
        if name := await self.app.push_screen_wait(dialog):
            self._change(lambda: rename_run(folder, name))

    @work
    async def action_tag(self) -> None:
        row = self._run()
        if row is None:
            return
        title = f"tags of {row.name}, separated by commas"
        dialog = TextDialog(title, ", ".join(row.tags), lambda _: "")
        if (text := await self.app.push_screen_wait(dialog)) is not None:
            self._change(lambda: tag_run(Path(row.path), names_in([text])))

    @work
    async def action_delete(self) -> None:
        row = self._run()
        if row is None:
            return
        question = f"Move {row.path} to {Path(row.path).parent / TRASH}? You can move it back."
        if await self.app.push_screen_wait(ConfirmDialog(question, "Delete")):
            self._change(lambda: delete_run(Path(row.path)))

    # -- actions
    def action_open(self) -> None:
        path = self.current_run()
        unreadable = {one.path: one.reason for one in self._view.unreadable}
        if path in unreadable:
            self.notify(unreadable[path], severity="error")
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

    def on_input_changed(self) -> None:
        self._show()

    def on_input_submitted(self) -> None:
        self.query_one("#runs").focus()

    def action_back(self) -> None:
        """Close the filter."""
        self.filter.close()
        self.query_one("#runs").focus()


def _setting_column(key: str, settings: Mapping[str, Mapping[str, str]]) -> RunColumn:
    """Return a column of a key of the presets."""

    def text(row: RunRow, _: float) -> str:
        return shortened(settings.get(row.path, {}).get(key, ""), _LONGEST_SETTING)

    def order(row: RunRow) -> tuple[bool, float, str] | None:
        value = settings.get(row.path, {}).get(key)
        if value is None:
            return None
        try:
            return False, float(value), ""
        except ValueError:
            return True, 0.0, value

    section, _, name = key.rpartition(".")
    return RunColumn(key, f"{section}\n{name}", text, order, 0)


def _row_of_launch(launch: Launch) -> RunRow:
    """Return the row of a run whose process has not shown itself in its folder."""
    code = launch.process.poll()
    state = "starting" if code is None else "stopped" if code in NO_FAILURE else "failed"
    return RunRow(
        name=Path(launch.path).name,
        path=launch.path,
        state=state,
        step=None,
        total=None,
        loss=None,
        validation_loss=None,
        best_step=None,
        accuracies={},
        accuracy=None,
        started=time.time(),
        last_data=None,
        eta=None,
    )
