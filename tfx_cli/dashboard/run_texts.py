"""Text of the run screen: numbers, tables, events, the machine. No widgets, no maths."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.text import Text
from textual.content import Content

from core.evaluation.report.records import PhenotypeScores
from core.runlog.json_lines import finite_number, number_in
from core.runlog.reader import Setting
from core.runlog.schema import EventRecord, metric_info
from tfx_cli.dashboard.workspace import RunView
from tfx_cli.formatting import (
    ago,
    date,
    gpus_of,
    machine_text,
    metric_value,
    short_count,
    shortened,
)
from tfx_cli.runs_tables import PRECISIONS

PHENOTYPE_COLUMNS = ("phenotype", "mask accuracy", "best", "majority", "test", "LR", "test F1")
_EVENT_STYLES = {
    "nonfinite": "$error",
    "spike": "$warning",
    "warning": "$warning",
    "signal": "$warning",
    "resume": "$success",
    "start": "$success",
    "end": "$primary",
}
_EVENT_KEYS = frozenset({"event", "t", "step", "nonfinite", "rows", "cells"})
#: Baselines of a report of `tfx eval`, and their short names.
_BASELINES = {"majority": "majority", "logistic_regression": "LR"}
_SHADES = " ░▒▓█"
_LONGEST = 22


def bar(fraction: float, width: int) -> Content:
    """Draw a fraction as a bar."""
    full = round(min(max(fraction, 0.0), 1.0) * width)
    return Content.assemble(("█" * full, "$primary"), ("░" * (width - full), "$secondary"))


def baseline_accuracies(view: RunView, phenotype: str) -> dict[str, float]:
    """Return the accuracies of simple baselines, by method, from the run or its evaluation."""
    methods = _methods(view, phenotype)
    found = {name: _score(methods.get(name), "accuracy") for name in _BASELINES}
    majority = view.validation.last(f"baseline/{phenotype}")
    if majority is not None:
        found["majority"] = majority
    return {name: value for name, value in found.items() if value is not None}


def _methods(view: RunView, phenotype: str) -> Mapping[str, PhenotypeScores]:
    return {} if view.evaluation is None else view.evaluation.phenotypes.get(phenotype, {})


def _score(scores: PhenotypeScores | None, name: str) -> float | None:
    return None if scores is None else finite_number(getattr(scores, name))


def numbers_content(view: RunView, *, width: int) -> Content:
    """Write the latest metrics: losses and speed in one line, then each phenotype's accuracy."""
    train, validation = view.train, view.validation
    lowest = validation.best("loss", lowest=True)
    parts: list[str] = []
    for label, table, name in (
        ("train loss", train, "loss"),
        ("validation loss", validation, "loss"),
        ("lowest", None, ""),
        ("lr", train, "lr"),
        ("cells/s", train, "cells_per_second"),
        ("tokens/s", train, "tokens_per_second"),
        ("MFU", train, "mfu"),
        ("waiting", train, "wait"),
    ):
        if table is None:
            parts += [] if lowest is None else [f"lowest {lowest:.4f}"]
        elif (value := table.last(name)) is not None:
            shown = short_count(value) if name.endswith("per_second") else metric_value(name, value)
            parts.append(f"{label} {shown}")
    longest = max((len(name) for name in view.phenotypes), default=0)
    cells: list[Content] = []
    for name in view.phenotypes:
        known = baseline_accuracies(view, name)
        note = ", ".join(f"{_BASELINES[key]} {one:.3f}" for key, one in known.items())
        if width < 98:  # the first number alone
            note = f"{next(iter(known.values())):.3f}" if known else ""
        cells.append(_accuracy(f"{name:{longest}}", validation.last(f"acc/{name}"), note))
    genes, commonest = validation.last("acc/genes"), validation.last("acc/genes_baseline")
    if genes is not None:
        note = "" if commonest is None else f"commonest bin {commonest:.3f}"
        cells.append(_accuracy(f"{'genes':{longest}}", genes, note))
    return Content("\n").join([Content(_fit(parts, width)), *_columns(cells, width)])


def _accuracy(label: str, value: float | None, note: str) -> Content:
    shown = "-.---" if value is None else f"{value:.3f}"
    return Content.assemble(
        f"{label} ", bar(value or 0.0, 12), f" {shown}{f' ({note})' if note else ''}"
    )


def _columns(cells: Sequence[Content], width: int) -> list[Content]:
    """Set lines side by side, as many as fit."""
    if not cells:
        return []
    widest = max(cell.cell_length for cell in cells) + 3
    n_columns = max(min(width // widest, 3), 1)
    n_rows = -(-len(cells) // n_columns)
    padded = [cell.pad_right(widest - cell.cell_length) for cell in cells]
    return [Content("").join(padded[row::n_rows]) for row in range(n_rows)]


def _fit(parts: Iterable[str], width: int) -> str:
    text = ""
    for part in parts:
        longer = f"{text}  {part}" if text else part
        if len(longer) > width:
            break
        text = longer
    return text


def phenotype_rows(view: RunView) -> list[tuple[str, list[Text]]]:
    """Return phenotype -> a row of `PHENOTYPE_COLUMNS`."""
    rows = []
    for name in view.phenotypes:
        model = _methods(view, name).get("model")
        baselines = baseline_accuracies(view, name)
        test, logistic = _score(model, "accuracy"), baselines.get("logistic_regression")
        values = [
            view.validation.last(f"acc/{name}"),
            view.validation.best(f"acc/{name}", lowest=False),
            baselines.get("majority"),
            test,
            logistic,
            _score(model, "macro_f1"),
        ]
        cells = [Text("" if one is None else f"{one:.3f}", justify="right") for one in values]
        if test is not None and logistic is not None and test < logistic:
            cells[3].append(" loses")
        rows.append((name, [Text(name), *cells]))
    return rows


def confusion_content(view: RunView, phenotype: str | None, *, width: int) -> Content:
    """Draw the confusion matrix of the last evaluation: true values down, predictions across."""
    if phenotype is None:
        return Content("no evaluation of phenotypes yet")
    scores = _methods(view, phenotype).get("model")
    if scores is None or not scores.confusion or not scores.values:
        return Content(f"'tfx eval {view.row.path}' writes the confusion matrix of {phenotype}")
    matrix, values = scores.confusion, scores.values
    predicted = [sum(column) for column in zip(*matrix, strict=True)]
    used = [place for place, row in enumerate(matrix) if sum(row) or predicted[place]]
    fits = max((width - _LONGEST - 10) // 5, 2)
    note = ""
    if len(used) > fits:
        used = sorted(sorted(used, key=lambda place: -sum(matrix[place]))[:fits])
        note = f" (the {fits} commonest of {len(values)} values)"
    letters = [
        chr(ord("a") + order) if order < 26 else f"{order + 1}" for order in range(len(used))
    ]
    heads = "".join(f"{letter:>5}" for letter in letters)
    lines = [
        Content(f"{phenotype}: predictions in per cent of the true value's cells{note}"),
        Content(""),
        Content(f"{'true value':{_LONGEST + 3}} {'cells':>5}{heads}"),
    ]
    for letter, place in zip(letters, used, strict=True):
        total = sum(matrix[place])
        name = shortened(values[place], _LONGEST)
        parts: list[str | Content] = [f"{letter:>2} {name:{_LONGEST}} {total:>5}"]
        for column in used:
            fraction = matrix[place][column] / total if total else 0.0
            shade = _SHADES[min(int(fraction * len(_SHADES)), len(_SHADES) - 1)]
            text = f" {shade}{round(100 * fraction):>3}" if fraction >= 0.005 else "    ·"
            style = "bold $success" if column == place else "$error" if fraction >= 0.1 else ""
            parts.append(Content.styled(text, style) if style else text)
        lines.append(Content.assemble(*parts))
    return Content("\n").join(lines)


def events_content(events: Sequence[EventRecord], *, now: float) -> Content:
    """Write the last events, newest first."""
    lines = []
    for event in reversed(events[-200:]):
        name, step = str(event.get("event", "")), number_in(event, "step")
        details = ", ".join(
            f"{key} {metric_value(key, value) if isinstance(value, float) else value}"
            for key, value in event.items()
            if key not in _EVENT_KEYS and value is not None
        )
        where = "" if step is None else f"step {step:,.0f}"
        text = f"{ago_of(event, now=now):>12}  {name:10}"
        style = _EVENT_STYLES.get(name, "")
        lines.append(Content.assemble((text, style) if style else text, f" {where:14} {details}"))
    return Content("\n").join(lines) if lines else Content("no events yet")


def ago_of(record: Mapping[str, Any], *, now: float) -> str:
    """Write how long ago a record was written; a machine whose clock is ahead wrote it now."""
    moment = number_in(record, "t")
    return ago(moment, now=max(now, moment or now))


def machine_content(view: RunView, *, now: float) -> Content:
    """Write the last state of each machine of the run."""
    run = view.run
    precision = str(run.get("precision") or "")
    facts = [
        str(run.get("device_name") or run.get("device") or ""),
        f"{run.get('processes') or 1} process(es)",
        PRECISIONS.get(precision, precision),
    ]
    lines = [", ".join(fact for fact in facts if fact)]
    for host, records in view.machines.items():
        line, gpus = records[-1], gpus_of(records[-1])
        lines.append(f"{host}: {machine_text(line)}  {ago_of(line, now=now)}")
        lines += [f"  {name} {text}" for name, text in gpus]
        if not gpus:
            lines[-1] += "  (no GPU)"
    if not view.machines:
        lines.append("no data of the machine yet")
    return Content("\n").join([Content(line) for line in lines])


def setting_rows(settings: Sequence[Setting]) -> list[tuple[Text, Text, Text]]:
    """Return the preset as rows, chosen values before defaults."""
    ordered = sorted(settings, key=lambda one: one.provenance == "default")
    return [
        (
            Text(one.key),
            Text(one.value),
            Text(one.provenance, style="dim" if one.provenance == "default" else ""),
        )
        for one in ordered
    ]


def plain_text(view: RunView, pane: str, *, now: float) -> str:
    """Write the metrics of a pane as plain text, for the clipboard."""
    if pane == "phenotypes":
        rows = [[str(cell) for cell in cells] for _, cells in phenotype_rows(view)]
        return "\n".join("\t".join(row) for row in [PHENOTYPE_COLUMNS, *rows])
    if pane == "machine":
        return machine_content(view, now=now).plain
    if pane == "log":
        return "\n".join(view.log)
    if pane == "preset":
        return "\n".join(f"{one.key} = {one.value}  # {one.provenance}" for one in view.settings)
    lines = [f"run\t{view.row.path}", f"state\t{view.row.state}", f"step\t{view.row.step}"]
    for split, table in view.curves.items():
        for name in table.columns:
            if (value := table.last(name)) is not None:
                unit = metric_info(name).unit
                shown = f"{metric_value(name, value)}{f' {unit}' if unit else ''}"
                lines.append(f"{split} {name}\t{shown}")
    if view.row.started:
        lines.append(f"started\t{date(view.row.started)}")
    return "\n".join(lines)
