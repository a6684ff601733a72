"""One run: curves, accuracy per phenotype, machine, log and preset, and the keys that steer it."""

import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from textual.app import ComposeResult
from textual.containers import Container, Grid, Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import DataTable, Static, TabPane

from core.errors import ExitCode
from core.runlog.overview import RunRow
from core.runlog.schema import LIVE_STATES
from tfx_cli.dashboard import run_texts
from tfx_cli.dashboard.base_screen import DashboardScreen, state_content
from tfx_cli.dashboard.curve import SMOOTHING, CurveSeries, CurveView, CurveWindow, ReferenceMark
from tfx_cli.dashboard.keymap import bindings_of
from tfx_cli.dashboard.panes import Panes
from tfx_cli.dashboard.workspace import CurveTable, RunView, WorkspaceView
from tfx_cli.formatting import ago, duration

__all__ = ["RunScreen"]

#: Panels of the machine pane: id, title, metrics of training with their names.
_MACHINE_PANELS = (
    ("speed", "speed, cells/s", (("cells_per_second", "cells/s"),)),
    ("gradient", "gradient norm", (("grad_norm", "norm"),)),
    ("rate", "learning rate", (("lr", "rate"),)),
    ("shares", "shares of time", (("mfu", "MFU"), ("wait", "waiting"))),
)


class RunScreen(DashboardScreen):
    """Watch one run.

    Parameters
    ----------
    path
        The run folder; it may not be there yet, while a run that was just started prepares cells.
    """

    NAME = "run"
    BINDINGS = bindings_of("run")
    DEFAULT_CSS = """
    RunScreen #curves-pane { layout: vertical; height: 1fr; }
    RunScreen #numbers { height: auto; max-height: 7; padding: 0 1; background: $background; }
    RunScreen.-normal #curve-grid, RunScreen.-wide #curve-grid { layout: horizontal; }
    RunScreen #curve-grid { layout: vertical; height: 1fr; }
    RunScreen #loss { height: 1fr; width: 1fr; }
    RunScreen #accuracy { height: 1fr; width: 1fr; }
    RunScreen.-normal #accuracy, RunScreen.-wide #accuracy { margin-left: 1; }
    RunScreen.-narrow #accuracy { margin-top: 0; }
    RunScreen #phenotype-table { height: auto; max-height: 50%; background: $background; }
    RunScreen #confusion { height: 1fr; padding: 1 1; background: $background; }
    RunScreen #machine-grid { grid-size: 2 2; grid-gutter: 1; height: 1fr; }
    RunScreen #machine-facts { height: auto; max-height: 6; padding: 0 1; background: $background; }
    RunScreen #events, RunScreen #log-lines { height: 1fr; width: 1fr; background: $background;
        padding: 0 1; }
    RunScreen #log-pane { layout: vertical; height: 1fr; }
    RunScreen.-wide #log-pane { layout: horizontal; }
    RunScreen #preset-table { height: 1fr; background: $background; }
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self._view: RunView | None = None
        self._now = time.time()
        self._window = CurveWindow()
        self._phenotype: str | None = None
        self._shown_settings: object = None

    def make_body(self) -> ComposeResult:
        """Lay out the panes."""
        with Panes(initial="curves", classes="body", id="panes"):
            with TabPane("1 Curves", id="curves"), Vertical(id="curves-pane"):
                with Container(id="curve-grid"):
                    yield CurveView("loss", id="loss", empty="waiting for the first steps")
                    yield CurveView(
                        "mask accuracy", limits=(0.0, 1.0), id="accuracy",
                        empty="waiting for the first evaluation",
                    )  # fmt: skip
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
        """Name the columns."""
        self.query_one("#phenotype-table", DataTable).add_columns(*run_texts.PHENOTYPE_COLUMNS)
        self.query_one("#preset-table", DataTable).add_columns("key", "value", "from")
        self.query_one("#loss").focus()
        self._show()

    def open_runs(self) -> list[str]:
        """Return this run."""
        return [self.path]

    def update_view(self, view: WorkspaceView) -> None:
        """Show the run as it is now."""
        self._now = view.now
        self._view = view.open_runs.get(self.path)
        if self._view is not None and self._view.row.state in (*LIVE_STATES, "stale"):
            self.dashboard.training.forget_launch(self.path)
        self._show()

    def on_resize(self) -> None:
        """Fit texts to the new width."""
        self.call_after_refresh(self._show)

    # -- drawing

    def _show(self) -> None:
        if not self.is_laid_out:
            return
        view = self._view
        if view is None:
            self._show_launch()
            return
        self._show_bar(view.row, view)
        self._show_curves(view)
        pane = self.query_one("#panes", Panes).active
        if pane == "phenotypes":
            self._show_phenotypes(view)
        elif pane == "machine":
            self._show_machine(view)
        elif pane == "log":
            self.query_one("#event-lines", Static).update(
                run_texts.events_content(view.events, now=self._now)
            )
            self.query_one("#log-text", Static).update(Content("\n".join(view.log[-300:])))
        elif pane == "preset":
            self._show_preset(view)

    def _show_launch(self) -> None:
        """Show a run whose folder is not there yet."""
        launch = self.dashboard.training.launch_of(self.path)
        if launch is None:
            self.set_bar(Content.assemble((self.path, "bold"), "  reading..."))
            return
        code = launch.process.poll()
        lines = launch.last_lines(12)
        if code is None:
            state, hint = "starting", "cells are being prepared where they are not yet"
        elif code in (ExitCode.STOPPED_EARLY, ExitCode.INTERRUPTED):
            state, hint = "stopped", "before its first step; esc, then n starts it anew"
        else:
            state, hint = "failed", f"tfx train ended with exit code {code}"
        self.set_bar(Content.assemble((self.path, "bold"), "  ", state_content(state), f"  {hint}"))
        self.query_one("#numbers", Static).update(Content("\n".join(lines[-7:])))

    def _show_bar(self, row: RunRow, view: RunView) -> None:
        parts: list[Content | str | tuple[str, str]] = [
            (row.name, "bold"),
            "  ",
            state_content(row.state),
        ]
        if row.step is not None:
            parts.append(f"  step {row.step:,}" + (f"/{row.total:,}" if row.total else ""))
        # What wants a look stands before what a narrow window may cut off.
        error = view.status.get("error")
        if row.state == "failed" and isinstance(error, str):
            parts.append((f"  {error}", "$error"))
        if view.nonfinite:
            parts.append((f"  ! {view.nonfinite} non-finite", "$error"))
        if view.bad_lines:
            parts.append((f"  ! {view.bad_lines} unreadable lines", "$warning"))
        if row.total and row.step is not None and row.state != "finished":
            share = min(row.step / row.total, 1.0)
            parts += ["  ", run_texts.bar(share, 10), f" {share:.0%}"]
        if row.eta is not None and row.state in LIVE_STATES:
            parts.append(f"  {duration(row.eta)} left")
        if row.last_data is not None:
            parts.append(f"  data {ago(row.last_data, now=max(self._now, row.last_data))}")
        self.set_bar(Content.assemble(*parts))

    def _show_curves(self, view: RunView) -> None:
        losses = []
        for place, (split, table) in enumerate(view.curves.items()):
            if "loss" in table.columns:
                losses.append(
                    CurveSeries(split, table.steps, table.columns["loss"], place, split == "train")
                )
        scale = ", log" if self._window.is_log else ""
        smoothing = SMOOTHING[self._window.smoothing % len(SMOOTHING)]
        note = (
            f" (mean of {smoothing:.0%} of the width)"
            if smoothing and self.size.width >= 100
            else ""
        )
        self.query_one("#loss", CurveView).show(
            losses, title=f"loss{scale}{note}", domain=view.steps
        )
        accuracies, marks = self._accuracies(view)
        self.query_one("#accuracy", CurveView).show(accuracies, marks, domain=view.steps)
        for panel in (self.query_one("#loss", CurveView), self.query_one("#accuracy", CurveView)):
            panel.look(self._window if panel.id == "loss" else replace(self._window, is_log=False))
        self.query_one("#numbers", Static).update(
            run_texts.numbers_content(view, width=self.size.width - 2)
        )

    def _accuracies(self, view: RunView) -> tuple[list[CurveSeries], list[ReferenceMark]]:
        table = view.validation
        names = view.phenotypes
        series = [
            CurveSeries(name, table.steps, table.columns[f"acc/{name}"], place)
            for place, name in enumerate(names)
        ]
        if "acc/genes" in table.columns:
            values = table.columns["acc/genes"]
            series.append(CurveSeries("genes", table.steps, values, len(names)))
        chosen = self._phenotype if self._phenotype in names else None
        marks = []
        if chosen is not None:
            references = run_texts.reference_accuracies(view, chosen)
            marks = [
                ReferenceMark(name, value, names.index(chosen))
                for name, value in references.items()
            ]
        return series, marks

    def _show_phenotypes(self, view: RunView) -> None:
        table = self.query_one("#phenotype-table", DataTable)
        rows = run_texts.phenotype_rows(view)
        keys = [key for key, _ in rows]
        if keys != [str(key.value) for key in table.rows]:
            table.clear()
            for key, cells in rows:
                table.add_row(*cells, key=key)
        else:
            for key, cells in rows:
                for column, cell in zip(table.ordered_columns, cells, strict=True):
                    table.update_cell(key, column.key, cell, update_width=True)
        chosen = keys[table.cursor_row] if keys and table.cursor_row < len(keys) else None
        self._phenotype = chosen
        self.query_one("#confusion", Static).update(
            run_texts.confusion_content(view, chosen, width=self.size.width - 4)
        )

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show the confusion matrix of the phenotype under the cursor."""
        if event.data_table.id == "phenotype-table" and self._view is not None:
            self._phenotype = str(event.row_key.value)
            self.query_one("#confusion", Static).update(
                run_texts.confusion_content(self._view, self._phenotype, width=self.size.width - 4)
            )

    def _show_machine(self, view: RunView) -> None:
        for name, _, metrics in _MACHINE_PANELS:
            panel = self.query_one(f"#{name}", CurveView)
            panel.show(list(_series(view.train, metrics)))
            panel.look(replace(self._window, is_log=self._window.is_log and name != "shares"))
        self.query_one("#machine-facts", Static).update(
            run_texts.machine_content(view, now=self._now)
        )

    def _show_preset(self, view: RunView) -> None:
        if self._shown_settings is view.settings:
            return
        self._shown_settings = view.settings
        table = self.query_one("#preset-table", DataTable)
        table.clear()
        for row in run_texts.setting_rows(view.settings):
            table.add_row(*row)

    # -- the window of the curves

    def _look(self, window: CurveWindow) -> None:
        self._window = window
        self._show()

    def on_curve_view_moved(self, event: CurveView.Moved) -> None:
        """Move all panels together."""
        self._look(replace(event.window, is_log=self._window.is_log))

    def _panel(self) -> CurveView:
        return self.query_one("#loss", CurveView)

    def action_log_axis(self) -> None:
        """Switch between linear and logarithmic heights."""
        self._look(replace(self._window, is_log=not self._window.is_log))

    def action_smoothing(self) -> None:
        """Smooth more, and after the most not at all."""
        smoothing = (self._window.smoothing + 1) % len(SMOOTHING)
        self._look(replace(self._window, smoothing=smoothing))

    def action_crosshair(self) -> None:
        """Read values out at one step."""
        self._look(self._panel().with_crosshair())

    def action_zoom(self, factor: float) -> None:
        """Zoom in or out."""
        self._look(self._panel().zoomed(factor))

    def action_shift(self, share: float) -> None:
        """Move the crosshair or the zoomed range."""
        self._look(self._panel().shifted(share))

    def action_reset(self) -> None:
        """See everything."""
        self._look(replace(self._window, zoom=None, crosshair=None))

    # -- panes

    def action_pane(self, name: str) -> None:
        """Switch to a pane."""
        self.query_one("#panes", Panes).choose(name)

    def on_tabbed_content_tab_activated(self) -> None:
        """Fill the pane that came up, and let keys reach it."""
        targets = {
            "curves": "#loss", "phenotypes": "#phenotype-table", "machine": "#speed",
            "log": "#log-lines", "preset": "#preset-table",
        }  # fmt: skip
        self._show()
        target = targets.get(self.query_one("#panes", Panes).active)  # events may come late
        if target is not None:
            self.query_one(target).focus()

    def action_copy(self) -> None:
        """Copy the figures of this pane as text."""
        if self._view is None:
            return
        pane = self.query_one("#panes", Panes).active
        text = run_texts.plain_text(self._view, pane, now=self._now)
        self.app.copy_to_clipboard(text)
        self.notify(f"{len(text.splitlines())} lines copied", markup=False)

    # -- steering

    def action_stop(self) -> None:
        """Ask the run to save a checkpoint and end."""
        self.dashboard.stop_run(self.path, self._view)

    def action_resume(self) -> None:
        """Go on with a run that stopped."""
        self.dashboard.resume_run(self.path, self._view)

    def action_generate(self) -> None:
        """Pick control tokens of this run's model."""
        self.dashboard.open_generate(self.path)

    def action_back(self) -> None:
        """Back to the list of runs."""
        self.dashboard.close_run()


def _series(table: CurveTable, metrics: Iterable[tuple[str, str]]) -> Iterable[CurveSeries]:
    for place, (metric, name) in enumerate(metrics):
        values = table.columns.get(metric)
        if values is not None and np.isfinite(values).any():
            yield CurveSeries(name, table.steps, values, place, is_noisy=True)
