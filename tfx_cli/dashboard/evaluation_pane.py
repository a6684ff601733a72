"""The pane of an evaluation: scores, confusion matrix and calibration as pictures, then all tables."""

from textual.app import ComposeResult
from textual.containers import Container, VerticalScroll
from textual.widgets import Static

from tfx_cli.dashboard.evaluation_texts import (
    calibration_series,
    confusion_content,
    details_content,
    phenotypes_with_confusion,
    scores_content,
)
from tfx_cli.dashboard.scatter_view import ScatterView
from tfx_cli.dashboard.workspace import RunView

#: Columns of the terminal of the calibration curve beside a confusion matrix.
_CALIBRATION_WIDTH = 50


class EvaluationPane(VerticalScroll):
    """The newest `tfx eval` of a run."""

    def compose(self) -> ComposeResult:
        yield Static("", id="evaluation-scores", markup=False)
        with Container(id="evaluation-pictures"):
            yield Static("", id="evaluation-confusion", markup=False)
            yield ScatterView(
                has_diagonal=True,
                limits=(0.0, 1.0),
                id="calibration",
                empty="too few cells of each confidence",
            )
        yield Static("", id="evaluation-details", markup=False)

    def show(self, view: RunView, phenotype: str | None) -> None:
        """Show the evaluation, with the confusion matrix of a phenotype."""
        width = self.size.width - 4
        self.query_one("#evaluation-scores", Static).update(scores_content(view, width=width))
        names = phenotypes_with_confusion(view)
        phenotype = phenotype if phenotype in names else next(iter(names), None)
        curves = [] if phenotype is None else calibration_series(view, phenotype)
        is_wide = width >= 2 * _CALIBRATION_WIDTH
        self.set_class(is_wide, "-side-by-side")
        self.query_one("#evaluation-pictures").display = bool(names)
        if phenotype is not None:
            room = width - (_CALIBRATION_WIDTH + 2 if is_wide and curves else 0)
            content = confusion_content(
                view, phenotype, width=room, colours=self.app.theme_variables
            )
            self.query_one("#evaluation-confusion", Static).update(content)
        calibration = self.query_one("#calibration", ScatterView)
        calibration.display = bool(curves)
        calibration.show(curves, title="accuracy by confidence", x_name="confidence")
        self.query_one("#evaluation-details", Static).update(details_content(view, width=width))
