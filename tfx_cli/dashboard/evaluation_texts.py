"""The report of `tfx eval` as text of the run screen: scores, calibration, genes, generated cells."""

from collections.abc import Iterator, Sequence

from textual.content import Content

from core.evaluation.report.records import EvaluationReport
from core.evaluation.report.tables import (
    ReportTable,
    gene_tables,
    headline_table,
    masked_gene_rows,
    phenotype_tables,
)
from tfx_cli.dashboard.themes import bar
from tfx_cli.dashboard.workspace import RunView

_GAP = "  "
#: Confidences of fewer cells are left out of a calibration curve.
_FEWEST_CELLS = 5


def evaluation_content(view: RunView, *, width: int) -> Content:
    """Write the newest evaluation of a run, and the verdict on its generated cells."""
    report = view.evaluation
    if report is None and view.fidelity is None:
        return Content(
            "No evaluation yet: e scores the run on its test cells, with baselines and intervals "
            f"(tfx eval {view.row.path})."
        )
    parts = [] if report is None else list(_report_parts(report, width))
    if view.fidelity is not None:
        title, sentences = view.fidelity
        lines = [Content.styled(f"Generated cells: {title}", "bold")]
        parts.append(Content("\n").join([*lines, *(Content(f"- {one}") for one in sentences)]))
    return Content("\n\n").join(parts)


def _report_parts(report: EvaluationReport, width: int) -> Iterator[Content]:
    facts = report.facts
    split = f"{facts.split} split by {facts.split_by}" if facts.split else facts.data
    simulated = ", simulated" if facts.simulated else ""
    step = "" if facts.step is None else f", model of step {facts.step:,}"
    text = f"  {facts.n_cells:,} cells, {facts.n_genes:,} genes{simulated} ({split}){step}"
    yield Content.assemble((report.title, "bold"), text)
    if report.phenotypes:
        yield table_content(headline_table(report), width)
    for table in phenotype_tables(report):
        yield table_content(table, width)
    yield from _calibration_curves(report)
    if report.genes is not None:
        rows = ", ".join(f"{name} {value}" for name, value in masked_gene_rows(report))
        yield Content.assemble(("Masked genes as in training  ", "bold"), rows)
    for table in gene_tables(report):
        yield table_content(table, width)
    if report.notes:
        yield Content("\n").join(Content(f"- {note}") for note in report.notes)


def _calibration_curves(report: EvaluationReport) -> Iterator[Content]:
    """Draw accuracy by confidence of the model, a curve for each phenotype."""
    for name, methods in report.phenotypes.items():
        scores = methods.get("model")
        if scores is None or scores.calibration is None:
            continue
        bins = [one for one in scores.calibration.curve if one.n_cells >= _FEWEST_CELLS]
        if not bins:
            continue
        lines = [
            Content.styled(f"Calibration of {name}: accuracy by confidence", "bold"),
            Content.styled("confidence  accuracy" + " " * 22 + "cells", "$secondary"),
        ]
        lines += [
            Content.assemble(
                f"{one.confidence:10.2f}  {one.accuracy:8.2f}  ",
                bar(one.accuracy, 18),
                f"{one.n_cells:7,}",
            )
            for one in bins
        ]
        yield Content("\n").join(lines)


def table_content(table: ReportTable, width: int) -> Content:
    """Write a table; columns that do not fit side by side follow below, with their labels."""
    texts = [list(table.header), *(list(row) for row in table.rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(table.header))]
    labels = list(range(table.n_labels))
    groups: list[list[int]] = [[]]
    for column in range(table.n_labels, len(widths)):
        used = [*labels, *groups[-1], column]
        if groups[-1] and sum(widths[one] + len(_GAP) for one in used) > width + len(_GAP):
            groups.append([])
        groups[-1].append(column)
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
