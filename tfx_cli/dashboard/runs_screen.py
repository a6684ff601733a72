"""The runs of a folder: a table, and the curves of those that were selected, laid over each other."""

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import DataTable, Input

from core.runlog.overview import RunRow
from core.runlog.schema import metric_info
from tfx_cli.dashboard.base_screen import STATE_STYLES, DashboardScreen
from tfx_cli.dashboard.curve import CurveSeries, CurveView
from tfx_cli.dashboard.keymap import bindings_of
from tfx_cli.dashboard.themes import series_colours
from tfx_cli.dashboard.workspace import RunView, UnreadableRun, WorkspaceView
from tfx_cli.formatting import ago, duration, metric_value, short_count

__all__ = ["RunsScreen", "run_colours"]

_COLUMNS = ("", "run", "state", "step", "loss", "val. loss", "accuracy", "last data", "left")
#: Columns that a narrow terminal goes without.
_WIDE_COLUMNS = frozenset({"loss", "left"})


def run_colours(names: Iterable[str], n_colours: int = 8) -> dict[str, int]:
    """Give each run a colour that depends on its name, and another one only where that is taken."""
    colours: dict[str, int] = {}
    taken: set[int] = set()
    for name in sorted(names):
        wish = zlib.crc32(name.encode()) % n_colours
        free = next(
            (c for step in range(n_colours) if (c := (wish + step) % n_colours) not in taken), wish
        )
        colours[name] = free
        taken.add(free)
    return colours


class RunsScreen(DashboardScreen):
    """List, overlay, and the way into one run."""

    NAME = "runs"
    BINDINGS = bindings_of("runs")
    DEFAULT_CSS = """
    RunsScreen DataTable { height: 1fr; background: $background; scrollbar-size-vertical: 1; }
    RunsScreen #filter { display: none; height: 1; border: none; padding: 0 1; }
    RunsScreen #filter.-shown { display: block; }
    RunsScreen #overlay { height: 1fr; display: none; }
    RunsScreen.-overlay #overlay { display: block; }
    RunsScreen.-tall #overlay { display: block; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._view: WorkspaceView | None = None
        self._selected: list[str] = []  # paths
        self._pinned: str | None = None
        self._metric = 0
        self._columns: tuple[str, ...] = ()

    def make_body(self) -> ComposeResult:
        """Lay out the table and the overlay."""
        with Vertical(classes="body"):
            yield Input(placeholder="filter by name or state", id="filter", compact=True)
            yield DataTable(cursor_type="row", zebra_stripes=True, id="runs")
            yield CurveView("overlay", id="overlay", empty="select runs with v")

    def on_mount(self) -> None:
        """Begin with the table."""
        self.query_one("#runs").focus()
        self._show()

    def open_runs(self) -> list[str]:
        """Return the runs of the overlay."""
        return self._shown_paths()

    def _shown_paths(self) -> list[str]:
        """Return the selected runs; without any the one under the cursor, to look into it."""
        here = self._current_path() if self.is_laid_out else None
        return list(self._selected) or ([here] if here is not None else [])

    def on_data_table_row_highlighted(self) -> None:
        """Look into the run under the cursor."""
        if not self._selected:
            self.dashboard.poll_soon()

    def update_view(self, view: WorkspaceView) -> None:
        """Show the runs as they are now."""
        self._view = view
        paths = {row.path for row in view.rows}
        self._selected = [path for path in self._selected if path in paths]
        self._show()

    def on_resize(self) -> None:
        """Show fewer columns in a narrow terminal."""
        self.call_after_refresh(self._show)

    # -- the table

    def _show(self) -> None:
        if not self.is_laid_out:
            return
        self._show_bar()
        table = self.query_one("#runs", DataTable)
        wanted = tuple(
            name for name in _COLUMNS if self.size.width >= 100 or name not in _WIDE_COLUMNS
        )
        row_key = self._current_path()
        if wanted != self._columns:
            table.clear(columns=True)
            self._columns = wanted
            for name in wanted:
                table.add_column(Text(name), key=name)
        rows = self._rows()
        keys = [key for key, _ in rows]
        known = [str(key.value) for key in table.rows]
        if keys != known:
            table.clear()
            for key, cells in rows:
                table.add_row(*(cells[name] for name in wanted), key=key)
            if row_key in keys:
                table.move_cursor(row=keys.index(row_key))
        else:
            for key, cells in rows:
                for name in wanted:
                    if table.get_cell(key, name) != cells[name]:
                        table.update_cell(key, name, cells[name], update_width=True)
        self._show_overlay()

    def _show_bar(self) -> None:
        if self._view is None:
            self.set_bar(Content.assemble(("tfx", "bold"), f"  {self.dashboard.root}"))
            return
        view = self._view
        live = sum(row.state in ("running", "starting") for row in view.rows)
        n_runs = len(view.rows)
        parts = [f"{n_runs} run{'s' if n_runs != 1 else ''}", f"{live} running"]
        if view.unreadable:
            parts.append(f"{len(view.unreadable)} unreadable")
        what = ", ".join(parts)
        if not view.rows and not view.unreadable:
            what = "no runs yet: press n to train a preset"
        self.set_bar(Content.assemble(("tfx", "bold"), f"  {self.dashboard.root}  ", what))

    def _rows(self) -> list[tuple[str, dict[str, Text]]]:
        if self._view is None:
            return []
        colours = self._colours()
        palette = series_colours(self.app.theme)
        wish = self.query_one("#filter", Input).value.strip().lower()
        rows = [
            (row.path, self._cells(row, palette[colours[row.path]]))
            for row in self._view.rows
            if wish in row.name.lower() or wish in row.state
        ]
        rows += [
            (one.path, _unreadable_cells(one))
            for one in self._view.unreadable
            if wish in one.name.lower() or wish in "unreadable"
        ]
        return rows

    def _cells(self, row: RunRow, colour: str) -> dict[str, Text]:
        assert self._view is not None
        mark = "◆" if row.path == self._pinned else "■" if row.path in self._selected else "·"
        now = self._view.now
        step = "" if row.step is None else short_count(row.step)
        if row.total and row.step is not None:
            step = f"{step}/{short_count(row.total)}"
        return {
            "": Text(mark, style=colour),
            "run": Text(row.name),
            "state": self._state(row.state),
            "step": Text(step, justify="right"),
            "loss": Text(metric_value("loss", row.loss), justify="right"),
            "val. loss": Text(metric_value("loss", row.validation_loss), justify="right"),
            "accuracy": Text(metric_value("acc/mean", row.accuracy), justify="right"),
            "last data": Text(ago(row.last_data, now=now), justify="right"),
            "left": Text("" if row.eta is None else duration(row.eta), justify="right"),
        }

    def _state(self, state: str) -> Text:
        sign, style = STATE_STYLES.get(state, ("?", "$secondary"))
        variables = self.app.theme_variables
        return Text(f"{sign} {state}", style=variables.get(style.removeprefix("$"), ""))

    def _colours(self) -> dict[str, int]:
        assert self._view is not None
        return run_colours(row.path for row in self._view.rows)

    def _current_path(self) -> str | None:
        table = self.query_one("#runs", DataTable)
        if not table.row_count or not 0 <= table.cursor_row < table.row_count:
            return None
        return str(table.ordered_rows[table.cursor_row].key.value)

    # -- the overlay

    def _metrics(self, views: Sequence[RunView]) -> list[tuple[str, str]]:
        """Return (split, metric) pairs that the selected runs have, losses first."""
        pairs: dict[tuple[str, str], None] = {("validation", "loss"): None, ("train", "loss"): None}
        for view in views:
            for split in ("validation", "train"):
                pairs |= (
                    {(split, name): None for name in view.curves[split].columns}
                    if split in view.curves
                    else {}
                )
        return list(pairs)

    def _show_overlay(self) -> None:
        self.set_class(bool(self._selected), "-overlay")
        if self._view is None:
            return
        shown = [path for path in self._shown_paths() if path in self._view.open_runs]
        views = [self._view.open_runs[path] for path in shown]
        metrics = self._metrics(views)
        split, name = metrics[self._metric % len(metrics)]
        colours = self._colours()
        series = [
            CurveSeries(view.row.name, table.steps, table.columns[name], colours[path],
                        is_noisy=split == "train")
            for path, view in zip(shown, views, strict=True)
            if (table := view.curves.get(split)) is not None and name in table.columns
            and np.isfinite(table.columns[name]).any()
        ]  # fmt: skip
        pinned = next(
            (v.row.name for p, v in zip(shown, views, strict=True) if p == self._pinned), None
        )
        series.sort(key=lambda one: one.name == pinned)  # drawn last, on top
        label = f"{metric_info(name).label}, {split}"
        self.query_one("#overlay", CurveView).show(series, title=label)

    def on_curve_view_moved(self, event: CurveView.Moved) -> None:
        """Zoom the overlay."""
        self.query_one("#overlay", CurveView).look(event.window)

    # -- actions

    def action_open(self) -> None:
        """Open the run under the cursor."""
        path = self._current_path()
        if path is not None and self._view is not None:
            unreadable = {one.path: one.reason for one in self._view.unreadable}
            if path in unreadable:
                self.notify(unreadable[path], severity="error", markup=False)
            else:
                self.dashboard.open_run(path)

    def on_data_table_row_selected(self) -> None:
        """Open a run by enter or mouse."""
        self.action_open()

    def action_select(self) -> None:
        """Take a run into the overlay, or out of it."""
        path = self._current_path()
        if path is None or self._view is None or path not in {row.path for row in self._view.rows}:
            return
        if path in self._selected:
            self._selected.remove(path)
        else:
            self._selected.append(path)
        self.dashboard.poll_soon()
        self._show()

    def action_pin(self) -> None:
        """Draw the run under the cursor above the others."""
        path = self._current_path()
        self._pinned = None if path == self._pinned else path
        if path is not None and path not in self._selected and self._pinned is not None:
            self.action_select()
        self._show()

    def action_next_metric(self) -> None:
        """Overlay another metric."""
        self._metric += 1
        self._show()

    def action_filter(self) -> None:
        """Ask for a part of a name."""
        box = self.query_one("#filter", Input)
        box.add_class("-shown")
        box.focus()

    def on_input_changed(self) -> None:
        """Filter while typing."""
        self._show()

    def on_input_submitted(self) -> None:
        """Back to the table."""
        self.query_one("#runs").focus()

    def action_back(self) -> None:
        """Leave the filter."""
        box = self.query_one("#filter", Input)
        box.value = ""
        box.remove_class("-shown")
        self.query_one("#runs").focus()

    def action_new_run(self) -> None:
        """Start a run from a preset."""
        self.dashboard.open_start()

    def action_generate(self) -> None:
        """Pick control tokens of the model of the run under the cursor."""
        path = self._current_path()
        if path is not None:
            self.dashboard.open_generate(path)


def _unreadable_cells(run: UnreadableRun) -> dict[str, Text]:
    cells = {name: Text("") for name in _COLUMNS}
    return cells | {"run": Text(run.name), "state": Text("! unreadable")}
