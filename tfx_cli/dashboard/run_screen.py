"""One run: curves, accuracy per phenotype, machine, log and preset, and the keys that control it."""

import time
from dataclasses import replace

import numpy as np
from textual.app import ComposeResult
from textual.containers import Container, Grid, Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import DataTable, Static, TabPane

from core.errors import ExitCode
from core.runlog.schema import LIVE_STATES
from core.wording import duration
from tfx_cli.dashboard import run_texts
from tfx_cli.dashboard.base_screen import DashboardScreen, Panes, current_key, fill_table
from tfx_cli.dashboard.keymap import bindings_of
from tfx_cli.dashboard.plots import SMOOTHING, CurveView, CurveWindow, ReferenceMark, Series
from tfx_cli.dashboard.processes import TrainingProcesses
from tfx_cli.dashboard.themes import bar, state_sign
from tfx_cli.dashboard.workspace import RunView, WorkspaceView
from tfx_cli.formatting import ago

#: Panels of the machine pane: id, title, metrics of training with their names.
_MACHINE_PANELS = (
    ("speed", "speed, cells/s", {"cells_per_second": "cells/s"}),
    ("gradient", "gradient norm", {"grad_norm": "norm"}),
    ("rate", "learning rate", {"lr": "rate"}),
    ("fractions", "fractions of time", {"mfu": "MFU", "wait": "waiting"}),
)
_PRESET_COLUMNS = ("key", "value", "from")
#: Widget of each pane that gets the focus.
_FOCUS = {
    "curves": "#loss",
    "phenotypes": "#phenotype-table",
    "machine": "#speed",
    "log": "#log-lines",
    "preset": "#preset-table",
}


class RunScreen(DashboardScreen):
    """Watch one run; its folder may be missing while a run that was just started prepares cells."""

    NAME = "run"
    BINDINGS = bindings_of("run")

    def __init__(self, path: str, training: TrainingProcesses) -> None:
        super().__init__()
        self.path = path
        self._training = training
        self._view: RunView | None = None
        self._now = time.time()
        self._window = CurveWindow()
        self._phenotype: str | None = None

    def make_body(self) -> ComposeResult:
        with Panes(initial="curves", classes="body", id="panes"):
            with TabPane("1 Curves", id="curves"), Vertical(id="curves-pane"):
                with Container(id="curve-grid"):
                    yield CurveView("loss", id="loss", empty="waiting for the first steps")
                    empty = "waiting for the first evaluation"
                    yield CurveView("mask accuracy", limits=(0.0, 1.0), id="accuracy", empty=empty)
                yield Static("", id="numbers", markup=False)
            with TabPane("2 Phenotypes", id="phenotypes"), Vertical():
                yield DataTable(id="phenotype-table", cursor_type="row", zebra_stripes=True)
                with VerticalScroll():
                    yield Static("", id="confusion", markup=False)
            with TabPane("3 Machine", id="machine"), Vertical():
                with Grid(id="machine-grid"):
                    for name, title, _ in _MACHINE_PANELS:
                        yield CurveView(title, id=name)
                yield Static("", id="machine-facts", markup=False)
            with TabPane("4 Log", id="log"), Container(id="log-pane"):
                with VerticalScroll(id="events"):
                    yield Static("", id="event-lines", markup=False)
                with VerticalScroll(id="log-lines"):
                    yield Static("", id="log-text", markup=False)
            with TabPane("5 Preset", id="preset"), Horizontal():
                yield DataTable(id="preset-table", cursor_type="row", zebra_stripes=True)

    def on_mount(self) -> None:
        fill_table(self.query_one("#phenotype-table", DataTable), run_texts.PHENOTYPE_COLUMNS, {})
        fill_table(self.query_one("#preset-table", DataTable), _PRESET_COLUMNS, {})
        self.query_one("#loss").focus()
        self._show()

    def current_run(self) -> str:
        return self.path

    def update_view(self, view: WorkspaceView) -> None:
        self._now = view.now
        self._view = view.open_runs.get(self.path)
        if self._view is not None and self._view.row.state in (*LIVE_STATES, "stale"):
            self._training.forget_launch(self.path)
        self._show()

    def on_resize(self) -> None:
        self.call_after_refresh(self._show)

    # -- drawing
    def _show(self) -> None:
        if not self.is_laid_out:
            return
        view = self._view
        if view is None:
            self._show_launch()
            return
        self._show_bar(view)
        self._show_curves(view)
        pane = self._pane
        if pane == "phenotypes":
            self._show_phenotypes(view)
        elif pane == "machine":
            for name, _, metrics in _MACHINE_PANELS:
                is_log = self._window.is_log and name != "fractions"
                window = replace(self._window, is_log=is_log)
                self._curves(name).show(_series(view, metrics), window=window)
            self.write("machine-facts", run_texts.machine_content(view, now=self._now))
        elif pane == "log":
            self.write("event-lines", run_texts.events_content(view.events, now=self._now))
            self.write("log-text", Content("\n".join(view.log[-300:])))
        elif pane == "preset":
            rows = run_texts.setting_rows(view.settings)
            fill_table(self.query_one("#preset-table", DataTable), _PRESET_COLUMNS, rows)

    @property
    def _pane(self) -> str:
        return self.query_one(Panes).active

    def _curves(self, name: str) -> CurveView:
        return self.query_one(f"#{name}", CurveView)

    def _show_launch(self) -> None:
        """Show a run whose folder is missing."""
        launch = self._training.launch_of(self.path)
        if launch is None:
            self.set_bar((self.path, "bold"), "  reading...")
            return
        code = launch.process.poll()
        if code is None:
            state, hint = "starting", "cells are being prepared if there is no store of them yet"
        elif code in (ExitCode.STOPPED_EARLY, ExitCode.INTERRUPTED):
            state, hint = "stopped", "before its first step; esc, then n starts it again"
        else:
            state, hint = "failed", f"tfx train ended with exit code {code}"
        self.set_bar((self.path, "bold"), "  ", state_sign(state), f"  {hint}")
        self.write("numbers", Content("\n".join(launch.last_lines(7))))

    def _show_bar(self, view: RunView) -> None:
        row, error = view.row, view.status.get("error")
        parts: list[object] = [(row.name, "bold"), "  ", state_sign(row.state)]
        if row.step is not None:
            parts.append(f"  step {row.step:,}" + (f"/{row.total:,}" if row.total else ""))
        # Faults are first: a narrow window cuts off the end.
        if row.state == "failed" and isinstance(error, str):
            parts.append((f"  {error}", "$error"))
        if view.nonfinite:
            parts.append((f"  ! {view.nonfinite} non-finite", "$error"))
        if view.bad_lines:
            parts.append((f"  ! {view.bad_lines} unreadable lines", "$warning"))
        if row.total and row.step is not None and row.state != "finished":
            fraction = min(row.step / row.total, 1.0)
            parts += ["  ", bar(fraction, 10), f" {fraction:.0%}"]
        if row.eta is not None and row.state in LIVE_STATES:
            parts.append(f"  {duration(row.eta)} left")
        if row.last_data is not None:
            parts.append(f"  data {ago(row.last_data, now=max(self._now, row.last_data))}")
        self.set_bar(*parts)

    def _show_curves(self, view: RunView) -> None:
        losses = [
            Series(split, table.steps, table.columns["loss"], place, split == "train")
            for place, (split, table) in enumerate(view.curves.items())
            if "loss" in table.columns
        ]
        title = "loss, log" if self._window.is_log else "loss"
        smoothed = self._window.smoothed_fraction
        if smoothed and self.size.width >= 100:
            title += f" (mean of {smoothed:.0%} of the width)"
        self._curves("loss").show(losses, title=title, domain=view.steps, window=self._window)
        table, names = view.validation, [*view.phenotypes, "genes"]
        accuracies = [
            Series(name, table.steps, table.columns[f"acc/{name}"], place)
            for place, name in enumerate(names)
            if f"acc/{name}" in table.columns
        ]
        marks = []
        if self._phenotype in view.phenotypes:
            baselines = run_texts.baseline_accuracies(view, self._phenotype)
            if (fitted := run_texts.fitted_accuracy(view, self._phenotype)) is not None:
                baselines["no encoder"] = fitted
            place = names.index(self._phenotype)
            marks = [ReferenceMark(name, value, place) for name, value in baselines.items()]
        window = replace(self._window, is_log=False)
        self._curves("accuracy").show(accuracies, marks, domain=view.steps, window=window)
        self.write("numbers", run_texts.numbers_content(view, width=self.size.width - 2))

    def _show_phenotypes(self, view: RunView) -> None:
        table = self.query_one("#phenotype-table", DataTable)
        fill_table(table, run_texts.PHENOTYPE_COLUMNS, run_texts.phenotype_rows(view))
        self._show_confusion(current_key(table))

    def _show_confusion(self, phenotype: str | None) -> None:
        assert self._view is not None
        self._phenotype = phenotype
        width = self.size.width - 4
        self.write("confusion", run_texts.confusion_content(self._view, phenotype, width=width))

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        if event.data_table.id == "phenotype-table" and self._view is not None:
            self._show_confusion(str(event.row_key.value))

    # -- the window of the curves
    def _look(self, window: CurveWindow) -> None:
        self._window = window
        self._show()

    def on_curve_view_moved(self, event: CurveView.Moved) -> None:
        self._look(replace(event.window, is_log=self._window.is_log))

    def action_log_axis(self) -> None:
        self._look(replace(self._window, is_log=not self._window.is_log))

    def action_smoothing(self) -> None:
        smoothing = (self._window.smoothing + 1) % len(SMOOTHING)
        self._look(replace(self._window, smoothing=smoothing))

    def action_crosshair(self) -> None:
        self._look(self._curves("loss").with_crosshair())

    def action_zoom(self, factor: float) -> None:
        self._look(self._curves("loss").zoomed(factor))

    def action_shift(self, fraction: float) -> None:
        self._look(self._curves("loss").shifted(fraction))

    def action_reset(self) -> None:
        self._look(replace(self._window, zoom=None, crosshair=None))

    # -- panes
    def on_tabbed_content_tab_activated(self) -> None:
        """Fill the active pane and give it the focus."""
        self._show()
        if self._pane in _FOCUS:  # the event may come late
            self.query_one(_FOCUS[self._pane]).focus()

    def action_copy(self) -> None:
        if self._view is not None:
            text = run_texts.plain_text(self._view, self._pane, now=self._now)
            self.app.copy_to_clipboard(text)
            self.notify(f"{len(text.splitlines())} lines copied", markup=False)


def _series(view: RunView, metrics: dict[str, str]) -> list[Series]:
    table = view.train
    return [
        Series(name, table.steps, table.columns[metric], place, is_noisy=True)
        for place, (metric, name) in enumerate(metrics.items())
        if np.isfinite(table.columns.get(metric, np.empty(0))).any()
    ]
