"""One run: curves, accuracy per phenotype, machine, log and preset, and the keys that control it."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from textual.app import ComposeResult
from textual.containers import Container, Grid, Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import DataTable, Input, Static, TabPane

from core.errors import ExitCode
from core.runlog.schema import AT_WORK, LIVE_STATES, MODEL_FOLDER, OUTPUT_FILE
from tfx_cli.dashboard import run_texts
from tfx_cli.dashboard.base_screen import (
    DashboardScreen,
    FilterBox,
    OfferCopy,
    Panes,
    current_key,
    fill_table,
)
from tfx_cli.dashboard.canvas import Range
from tfx_cli.dashboard.curve_view import SMOOTHING, CurveView, CurveWindow, ReferenceMark
from tfx_cli.dashboard.evaluation_pane import EvaluationPane
from tfx_cli.dashboard.evaluation_texts import confusion_content, phenotypes_with_confusion
from tfx_cli.dashboard.keymap import Key, bindings_of
from tfx_cli.dashboard.metric_grid import ORDERS, MetricGrid
from tfx_cli.dashboard.picture import Series
from tfx_cli.dashboard.processes import RunProcesses, output_lines
from tfx_cli.dashboard.run_curves import Axis, RunAxis, event_marks, machine_series
from tfx_cli.dashboard.themes import state_sign
from tfx_cli.dashboard.workspace import RunView, WorkspaceView
from tfx_cli.formatting import ago

if TYPE_CHECKING:
    from core.runlog.overview import RunRow

#: Panels of the machine pane: id, title, metrics of training with their names.
_MACHINE_PANELS = (
    ("speed", "speed, cells/s", {"cells_per_second": "cells/s"}),
    ("gradient", "gradient norm", {"grad_norm": "norm"}),
    ("rate", "learning rate", {"lr": "rate"}),
    ("fractions", "fractions of time", {"mfu": "MFU", "wait": "waiting"}),
)
#: Panels of the machines themselves, which low windows leave out.
_LOAD_PANELS = (
    ("use", "use, %", {"cpu_percent": "CPU", "gpu_percent": "GPU"}),
    ("memory", "memory, GB", {"memory": "process", "gpu_memory": "GPU"}),
)
_AXES: tuple[Axis, ...] = ("step", "cells", "hours")
_PRESET_COLUMNS = ("key", "value", "from")
#: Panes that a text filters.
_FILTERED = ("log", "preset", "metrics")
#: Widget of each pane that gets the focus.
_FOCUS = {
    "curves": "#loss",
    "phenotypes": "#phenotype-table",
    "machine": "#speed",
    "log": "#log-lines",
    "preset": "#preset-table",
    "evaluation": "#evaluation-pane",
    "metrics": "#metrics-pane",
}


class RunScreen(DashboardScreen):
    """Watch one run; its folder may be missing while a run that was just started prepares cells."""

    NAME = "run"
    BINDINGS = bindings_of("run")

    def __init__(self, path: str, processes: RunProcesses) -> None:
        super().__init__()
        self.path = path
        self._processes = processes
        self._view: RunView | None = None
        #: In the list of runs, where it is before its folder is a run.
        self._row: RunRow | None = None
        self._now = time.time()
        self._window = CurveWindow()
        self._axis: Axis = "step"
        #: Place of the order of all metrics in `ORDERS`.
        self._order = 0
        self._phenotype: str | None = None

    def make_body(self) -> ComposeResult:
        yield FilterBox("filter")
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
                    for name, title, _ in (*_MACHINE_PANELS, *_LOAD_PANELS):
                        yield CurveView(title, id=name)
                yield Static("", id="machine-facts", markup=False)
            with TabPane("4 Log", id="log"), Container(id="log-pane"):
                with VerticalScroll(id="events"):
                    yield Static("", markup=False)
                with VerticalScroll(id="log-lines"):
                    yield Static("", markup=False)
            with TabPane("5 Preset", id="preset"), Horizontal():
                yield DataTable(id="preset-table", cursor_type="row", zebra_stripes=True)
            with TabPane("6 Evaluation", id="evaluation"):
                yield EvaluationPane(id="evaluation-pane")
            with TabPane("7 All metrics", id="metrics"):
                yield MetricGrid(id="metrics-pane")

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
        self._row = view.row_of(self.path)
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
        axis = RunAxis.of(view, self._axis)
        steps = view.steps
        domain = None
        if steps is not None:
            low, high = axis.of_steps(np.array(steps))
            domain = (float(low), float(high))
        self._show_curves(view, axis, domain)
        pane, box = self.pane, self.filter
        part = box.part
        box.set_class(pane in _FILTERED and (bool(part) or box.has_focus), "-shown")
        if pane == "metrics":
            grid = self.query_one(MetricGrid)
            grid.show(view, axis, domain, self._window, part=part, order=ORDERS[self._order])
        elif pane == "phenotypes":
            self._show_phenotypes(view)
        elif pane == "machine":
            for name, _, metrics in _MACHINE_PANELS:
                is_log = self._window.is_log and name != "fractions"
                window = replace(self._window, is_log=is_log)
                self._curves(name).show(
                    _series(view, metrics, axis), domain=domain, window=window, x_name=axis.name
                )
            for name, _, metrics in _LOAD_PANELS:
                window = replace(self._window, is_log=False)
                self._curves(name).show(
                    machine_series(view, metrics, axis),
                    domain=domain,
                    window=window,
                    x_name=axis.name,
                )
            self.write("machine-facts", run_texts.machine_content(view, now=self._now))
        elif pane == "log":
            self._write_log("events", run_texts.events_content(view.events, part))
            self._write_log("log-lines", run_texts.log_content(view.log, part))
        elif pane == "preset":
            rows = run_texts.setting_rows(view.settings, part)
            fill_table(self.query_one("#preset-table", DataTable), _PRESET_COLUMNS, rows)
        elif pane == "evaluation":
            self.query_one(EvaluationPane).show(view, self._phenotype)

    def _write_log(self, name: str, content: Content) -> None:
        """Write lines whose end stays visible, unless the user has scrolled up."""
        lines = self.query_one(f"#{name}", VerticalScroll)
        follows_end = lines.is_vertical_scroll_end
        lines.query_one(Static).update(content)
        if follows_end:
            self.call_after_refresh(lines.scroll_end, animate=False)

    def offers(self, key: Key) -> bool:
        if key.panes and self._view is None:
            return False
        row = self._row
        state = None if row is None else row.state
        has_model = (Path(self.path) / MODEL_FOLDER).is_dir()
        conditions = {
            "run.stop": state in (*AT_WORK, "stale"),
            "run.resume": state in ("stopped", "failed", "crashed"),
            "run.evaluate": has_model and (state in LIVE_STATES or state not in AT_WORK),
            "run.generate": has_model,
            "run.interactions": has_model,
            "run.next-phenotype": self._view is not None
            and len(phenotypes_with_confusion(self._view)) > 1,
        }
        return super().offers(key) and conditions.get(key.id, True)

    def enter_label(self) -> str:
        return "Keep the filter" if isinstance(self.focused, Input) else ""

    def _curves(self, name: str) -> CurveView:
        return self.query_one(f"#{name}", CurveView)

    def _show_launch(self) -> None:
        """Show a run whose folder is no run yet: what is done for it, and the last lines of output."""
        if self._row is not None:
            self.set_bar(*run_texts.state_parts(self._row))
            lines = output_lines(Path(self.path) / OUTPUT_FILE)
            self.write("numbers", Content("\n".join(lines[-7:])))
            return
        launch = self._processes.launches.get(self.path)
        if launch is None:
            self.set_bar((self.path, "bold"), "  reading...")
            return
        code = launch.process.poll()
        if code is None:
            state, hint = "starting", "cells are prepared first if there is no store of them"
        elif code in (ExitCode.STOPPED_EARLY, ExitCode.INTERRUPTED):
            state, hint = "stopped", "before its first step; esc, then n starts it again"
        else:
            state, hint = "failed", f"tfx train ended with exit code {code}"
        self.set_bar((self.path, "bold"), "  ", state_sign(state), f"  {hint}")
        self.write("numbers", Content("\n".join(launch.last_lines(7))))

    def _show_bar(self, view: RunView) -> None:
        row, error = view.row, view.status.get("error")
        # Faults are first: a narrow window cuts off the end.
        faults: list[object] = []
        if row.state == "failed" and isinstance(error, str):
            faults.append((f"  {error}", "$error"))
        if view.nonfinite:
            faults.append((f"  ! {view.nonfinite} non-finite", "$error"))
        if view.bad_lines:
            faults.append((f"  ! {view.bad_lines} unreadable lines", "$warning"))
        if view.fraction_read < 1:
            faults.append((f"  reading older metrics {view.fraction_read:.0%}", "$secondary"))
        parts = run_texts.state_parts(row, faults)
        if row.last_data is not None:
            parts.append(f"  data {ago(row.last_data, now=max(self._now, row.last_data))}")
        self.set_bar(*parts)

    def _show_curves(self, view: RunView, axis: RunAxis, domain: Range | None) -> None:
        losses = [
            Series(split, axis.of_table(table), table.columns["loss"], place, split == "train")
            for place, (split, table) in enumerate(view.curves.items())
            if "loss" in table.columns
        ]
        title = "loss, log" if self._window.is_log else "loss"
        smoothed = self._window.smoothed_fraction
        if smoothed and self.size.width >= 100:
            title += f" (mean of {smoothed:.0%} of the width)"
        shared: dict[str, Any] = {"domain": domain, "x_name": axis.name}
        events = event_marks(view, axis)
        self._curves("loss").show(losses, title=title, window=self._window, events=events, **shared)
        table, names = view.validation, [*view.phenotypes, "genes"]
        accuracies = [
            Series(name, axis.of_table(table), table.columns[f"acc/{name}"], place)
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
        self._curves("accuracy").show(accuracies, marks, window=window, events=events, **shared)
        self.write("numbers", run_texts.numbers_content(view, width=self.size.width - 2))

    def _show_phenotypes(self, view: RunView) -> None:
        table = self.query_one("#phenotype-table", DataTable)
        fill_table(table, run_texts.PHENOTYPE_COLUMNS, run_texts.phenotype_rows(view))
        self._show_confusion(current_key(table))

    def _show_confusion(self, phenotype: str | None) -> None:
        assert self._view is not None
        self._phenotype = phenotype
        content = confusion_content(
            self._view, phenotype, width=self.size.width - 4, colours=self.app.theme_variables
        )
        self.write("confusion", content)

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        if event.data_table.id == "phenotype-table" and self._view is not None:
            self._show_confusion(str(event.row_key.value))

    # -- the window of the curves
    def _look(self, window: CurveWindow) -> None:
        self._window = window
        self._show()

    def on_curve_view_moved(self, event: CurveView.Moved) -> None:
        self._look(replace(event.window, is_log=self._window.is_log))

    def action_next_axis(self) -> None:
        """Show the curves over steps, cells or hours."""
        assert self._view is not None
        axes = [one for one in _AXES if RunAxis.of(self._view, one).name == one]
        place = axes.index(self._axis) + 1 if self._axis in axes else 0
        self._axis = axes[place % len(axes)]
        self._look(replace(self._window, zoom=None, crosshair=None))

    def action_next_phenotype(self) -> None:
        """Show the confusion matrix of the next phenotype."""
        names = [] if self._view is None else phenotypes_with_confusion(self._view)
        if names:
            place = names.index(self._phenotype) if self._phenotype in names else 0
            self._phenotype = names[(place + 1) % len(names)]
            self._show()

    def action_order(self) -> None:
        """Show all metrics in the next order."""
        self._order = (self._order + 1) % len(ORDERS)
        self.notify(f"metrics {ORDERS[self._order]}", timeout=2)
        self._show()

    def action_filter(self) -> None:
        """Type a filter of the pane, or of all metrics."""
        if self.pane not in _FILTERED:
            self.action_pane("metrics")
        super().action_filter()

    def on_input_changed(self) -> None:
        self._show()

    def on_input_submitted(self) -> None:
        self.query_one(_FOCUS[self.pane]).focus()
        self._show()

    def action_back(self) -> None:
        """Leave the filter, or the screen."""
        box = self.filter
        if box.has_focus or (box.value and self.pane in _FILTERED):
            box.value = ""
            self.query_one(_FOCUS[self.pane]).focus()
            self._show()
        else:
            super().action_back()

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
        # The event may come late; while a filter is typed for this pane, that keeps the focus.
        if self.pane in _FOCUS and not (self.pane in _FILTERED and isinstance(self.focused, Input)):
            self.query_one(_FOCUS[self.pane]).focus()

    def action_copy(self) -> None:
        if self._view is not None:
            text = run_texts.plain_text(self._view, self.pane, now=self._now)
            self.post_message(OfferCopy(f"{self.pane} of {self._view.row.name}", text))


def _series(view: RunView, metrics: dict[str, str], axis: RunAxis) -> list[Series]:
    table = view.train
    return [
        Series(name, axis.of_table(table), table.columns[metric], place, is_noisy=True)
        for place, (metric, name) in enumerate(metrics.items())
        if np.isfinite(table.columns.get(metric, np.empty(0))).any()
    ]
