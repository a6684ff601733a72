"""The pane of all metrics of a run: a panel for each one, in a chosen order."""

from collections.abc import Sequence

import numpy as np
from textual.app import ComposeResult
from textual.containers import Grid, VerticalScroll

from core.runlog.schema import metric_info
from tfx_cli.dashboard.canvas import Range
from tfx_cli.dashboard.curve_view import CurveView, CurveWindow
from tfx_cli.dashboard.run_curves import RunAxis, event_marks, metric_names, metric_series
from tfx_cli.dashboard.workspace import RunView

#: Of a panel, in columns and rows of the terminal.
_WIDTH, _HEIGHT = 52, 11
#: Orders of the panels, in words.
ORDERS = ("by group", "by name", "what changes most first")


class MetricGrid(VerticalScroll):
    """Panels of all metrics that match a filter."""

    def __init__(self, *, id: str) -> None:  # noqa: A002 - textual's name
        super().__init__(id=id)
        #: Metric -> its panel.
        self._panels: dict[str, CurveView] = {}

    def compose(self) -> ComposeResult:
        yield Grid()

    def show(
        self,
        view: RunView,
        axis: RunAxis,
        domain: Range | None,
        window: CurveWindow,
        *,
        part: str,
        order: str,
    ) -> None:
        """Draw the metrics whose names hold a text."""
        grid = self.query_one(Grid)
        names = _ordered(view, metric_names(view, part), order)
        if set(self._panels) != set(names):
            grid.remove_children()
            self._panels = {name: CurveView("") for name in names}
            grid.mount_all(self._panels.values())
        elif list(self._panels) != names:
            self._panels = {name: self._panels[name] for name in names}
            places = {panel: place for place, panel in enumerate(self._panels.values())}
            grid.sort_children(key=lambda panel: places[panel])  # type: ignore[index]
        n_columns = max((self.size.width - 1) // _WIDTH, 1)
        grid.styles.grid_size_columns = n_columns
        grid.styles.height = -(-len(names) // n_columns) * _HEIGHT
        marks = event_marks(view, axis)
        for name, panel in self._panels.items():
            info = metric_info(name)
            panel.show(
                metric_series(view, name, axis),
                title=f"{info.label}, {info.unit}" if info.unit else info.label,
                domain=domain,
                window=window,
                events=marks,
                x_name=axis.name,
            )


def _ordered(view: RunView, names: Sequence[str], order: str) -> list[str]:
    """Sort metrics, which are in groups."""
    if order == ORDERS[1]:
        return sorted(names, key=lambda name: metric_info(name).label)
    if order == ORDERS[2]:
        return sorted(names, key=lambda name: -_change(view, name))
    return list(names)


def _change(view: RunView, name: str) -> float:
    """Return how much a metric changed: from its first value to its last, in standard deviations."""
    changes = [0.0]
    for table in view.curves.values():
        values = table.columns.get(name, np.empty(0))
        values = values[np.isfinite(values)]
        if len(values) > 1 and np.ptp(values) > 0:
            changes.append(float(abs(values[-1] - values[0]) / np.std(values)))
    return max(changes)
