"""The report of `tfx eval` for the run screen: scores, confusion matrix, calibration, parts, genes."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from textual.color import Color
from textual.content import Content

from core.evaluation.report.records import EvaluationReport
from core.evaluation.report.tables import (
    ReportTable,
    gene_tables,
    headline_table,
    masked_gene_rows,
    part_table,
    phenotype_tables,
    reliability_table,
    show,
    split_text,
)
from tfx_cli.dashboard.picture import Series
from tfx_cli.dashboard.themes import heat_style
from tfx_cli.dashboard.workspace import RunView
from tfx_cli.formatting import column_groups, shortened

_GAP = "  "
#: Confidences of fewer cells are left out of a calibration curve.
_FEWEST_CELLS = 5
#: Places between two points of a calibration curve, which join them by a line.
_JOINED = 40
#: Columns of the terminal of a confusion matrix: of a name where room is scarce, a number, numbers of cells.
_NAME, _NUMBER, _CELLS = 24, 4, 8


def evaluation_content(view: RunView, *, width: int) -> Content:
    """Write the newest evaluation of a run in full, as text."""
    return Content("\n\n").join(
        [scores_content(view, width=width), details_content(view, width=width)]
    )


def scores_content(view: RunView, *, width: int) -> Content:
    """Write what was evaluated, and the scores of every method."""
    report = view.evaluation
    if report is None and view.row.state == "evaluating":
        return Content("The run is being evaluated; the report will be here.")
    if report is None:
        return Content(
            "No evaluation yet: e scores the run on its test cells, with baselines and intervals "
            f"(tfx eval {view.row.path})."
        )
    facts = report.facts
    split = f"{facts.split} {split_text(facts.split_by)}" if facts.split else facts.data
    simulated = ", simulated" if facts.simulated else ""
    step = "" if facts.step is None else f", model of step {facts.step:,}"
    text = f"  {facts.n_cells:,} cells, {facts.n_genes:,} genes{simulated} ({split}){step}"
    parts = [Content.assemble((report.title, "bold"), text)]
    if report.phenotypes:
        parts.append(table_content(headline_table(report), width))
    return Content("\n\n").join(parts)


def details_content(view: RunView, *, width: int) -> Content:
    """Write the other tables of an evaluation, and the verdict on generated cells."""
    parts = [] if view.evaluation is None else list(_details(view.evaluation, width))
    if view.fidelity is not None:
        title, sentences = view.fidelity
        lines = [Content.styled(f"Generated cells: {title}", "bold")]
        parts.append(Content("\n").join([*lines, *(Content(f"- {one}") for one in sentences)]))
    return Content("\n\n").join(parts)


def _details(report: EvaluationReport, width: int) -> Iterator[Content]:
    parts = part_table(report)
    tables = [*([] if parts is None else [parts]), *phenotype_tables(report)]
    for table in [*tables, *reliability_table(report)]:
        yield table_content(table, width)
    if report.genes is not None:
        rows = ", ".join(f"{name} {value}" for name, value in masked_gene_rows(report))
        yield Content.assemble(("Masked genes as in training  ", "bold"), rows)
    for table in gene_tables(report):
        yield table_content(table, width)
    if report.notes:
        yield Content("\n").join(Content(f"- {note}") for note in report.notes)


def phenotypes_with_confusion(view: RunView) -> list[str]:
    """Return the phenotypes of which the evaluation has a confusion matrix."""
    models = {} if view.evaluation is None else view.evaluation.of_model
    return [name for name, scores in models.items() if scores.confusion and scores.values]


def confusion_content(
    view: RunView, phenotype: str | None, *, width: int, colours: Mapping[str, str]
) -> Content:
    """Draw the confusion matrix of the last evaluation: true values down, predictions across.

    ``colours`` are those of the theme: of its background, and of right and of wrong predictions
    (primary, error).
    """
    if phenotype is None:
        return Content("no evaluation of phenotypes yet")
    if view.evaluation is None or phenotype not in phenotypes_with_confusion(view):
        return Content(f"e evaluates the run, and then the confusion matrix of {phenotype} is here")
    scores = view.evaluation.of_model[phenotype]
    matrix, values = scores.confusion or (), scores.values or ()
    predicted = [sum(column) for column in zip(*matrix, strict=True)]
    used = [place for place, row in enumerate(matrix) if sum(row) or predicted[place]]
    fits, note = max((width - _NAME - _CELLS) // _NUMBER, 2), ""
    if len(used) > fits:
        used = sorted(sorted(used, key=lambda place: -sum(matrix[place]))[:fits])
        note = f"; the {fits} commonest of {len(values)} values"
    longest = max((len(values[place]) for place in used), default=0)
    room = max(width - _CELLS - _NUMBER * len(used), _NAME)
    left = min(longest, room, 2 * _NAME)
    names = [shortened(values[place], left) for place in used]
    title = f": % of the true (rows) predicted as (columns){note}"
    lines = [Content.assemble((phenotype, "bold"), title)]
    # Every column has its name in a row of its own, the last one on top, joined to it by a line.
    down = f"{'│':>{_NUMBER}}"
    for n in reversed(range(len(used))):
        arm = f" {'─' * (_NUMBER * n + 1)}┐{down * (len(used) - 1 - n)}"
        lines.append(Content.assemble(f"{names[n]:>{left + _CELLS}}", (arm, "$secondary")))
    heads = f"{'':{left}} {'cells':>6} {down[1:]}{down * (len(used) - 1)}"
    lines.append(Content.styled(heads, "$secondary"))
    background = Color.parse(colours["background"])
    for name, place in zip(names, used, strict=True):
        total = sum(matrix[place])
        parts: list[str | tuple[str, str]] = [f"{name:<{left}} {total:>6,} "]
        for column in used:
            fraction = matrix[place][column] / total if total else 0.0
            if fraction < 0.005:
                parts.append((f"{'·':>{_NUMBER - 1}} ", "$secondary"))
                continue
            colour = Color.parse(colours["primary" if column == place else "error"])
            text = f"{round(100 * fraction):>{_NUMBER - 1}} "
            parts.append((text, heat_style(background, colour, fraction)))
        lines.append(Content.assemble(*parts))
    return Content("\n").join(lines)


def calibration_series(view: RunView, phenotype: str) -> list[Series]:
    """Return the accuracy of the model's predictions of a phenotype by their confidence."""
    scores = None if view.evaluation is None else view.evaluation.of_model.get(phenotype)
    if scores is None or (calibration := scores.calibration) is None:
        return []
    bins = [one for one in calibration.curve if one.n_cells >= _FEWEST_CELLS]
    place = np.arange(len(bins), dtype=float)
    joined = np.linspace(0, len(bins) - 1, _JOINED * (len(bins) - 1) + 1) if bins else place
    x, y = (
        np.interp(joined, place, [float(getattr(one, name)) for one in bins]) if bins else place
        for name in ("confidence", "accuracy")
    )
    return [Series(f"{phenotype}, ECE {show(calibration.ece)}", x, y)]


def table_content(table: ReportTable, width: int) -> Content:
    """Write a table; columns that do not fit side by side follow below, with their labels."""
    texts = [list(table.header), *(list(row) for row in table.rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(table.header))]
    labels = list(range(table.n_labels))
    groups = column_groups(widths, table.n_labels, room=width, gap=len(_GAP))
    lines = [Content.styled(table.title, "bold")] if table.title else []
    lines += [Content.styled(table.note, "$secondary")] if table.note else []
    for number, group in enumerate(groups):
        if number:
            lines.append(Content(""))
        columns = [*labels, *group]
        for place, row in enumerate(texts):
            text = _GAP.join(_cell(row, one, widths, table.n_labels) for one in columns).rstrip()
            lines.append(Content.styled(text, "$secondary") if place == 0 else Content(text))
    return Content("\n").join(lines)


def _cell(row: Sequence[str], column: int, widths: Sequence[int], n_labels: int) -> str:
    is_label = column < n_labels
    return row[column].ljust(widths[column]) if is_label else row[column].rjust(widths[column])
