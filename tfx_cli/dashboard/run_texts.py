"""What the run screen says in text: numbers, tables, events, the machine. No widgets, no maths."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.text import Text
from textual.content import Content

from core.runlog.json_lines import finite_number, number_in
from core.runlog.schema import EventRecord, metric_info
from core.runlog.settings import Setting
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

__all__ = [
    "PHENOTYPE_COLUMNS",
    "bar",
    "confusion_content",
    "events_content",
    "machine_content",
    "numbers_content",
    "phenotype_rows",
    "plain_text",
    "reference_accuracies",
    "setting_rows",
]

PHENOTYPE_COLUMNS = (
    "phenotype", "mask accuracy", "best", "majority", "test", "LR", "test F1",
)  # fmt: skip
_EVENT_STYLES = {
    "nonfinite": "$error", "spike": "$warning", "warning": "$warning", "signal": "$warning",
    "resume": "$success", "start": "$success", "end": "$primary",
}  # fmt: skip
_SHADES = " ░▒▓█"
_LONGEST = 22


def bar(share: float, width: int) -> Content:
    """Draw a share as a bar."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return Content.assemble(("█" * full, "$primary"), ("░" * (width - full), "$secondary"))


def reference_accuracies(view: RunView, phenotype: str) -> dict[str, float]:
    """Return what simple methods reach for a phenotype, where a run or its evaluation tells."""
    found = {}
    methods = _methods(view, phenotype)
    majority = view.validation.last(f"baseline/{phenotype}")
    if majority is None:
        majority = _figure(methods.get("majority"), "accuracy")
    if majority is not None:
        found["majority"] = majority
    logistic = _figure(methods.get("logistic_regression"), "accuracy")
    if logistic is not None:
        found["logistic regression"] = logistic
    return found


def _methods(view: RunView, phenotype: str) -> Mapping[str, Any]:
    phenotypes = (view.evaluation or {}).get("phenotypes")
    methods = phenotypes.get(phenotype) if isinstance(phenotypes, dict) else None
    return methods if isinstance(methods, dict) else {}


def _figure(scores: object, name: str) -> float | None:
    return finite_number(scores.get(name)) if isinstance(scores, dict) else None


def numbers_content(view: RunView, *, width: int) -> Content:
    """Write the latest figures: losses and speed in one line, then each phenotype's accuracy."""
    train, validation = view.train, view.validation
    first = []
    for label, table, name in (
        ("train loss", train, "loss"),
        ("validation loss", validation, "loss"),
        ("lr", train, "lr"),
        ("cells/s", train, "cells_per_second"),
        ("tokens/s", train, "tokens_per_second"),
        ("MFU", train, "mfu"),
        ("waiting", train, "wait"),
    ):
        value = table.last(name)
        if value is not None:
            shown = short_count(value) if name.endswith("per_second") else metric_value(name, value)
            first.append(f"{label} {shown}")
    lines = [_fit(first, width)]
    lowest = validation.best("loss", lowest=True)
    if lowest is not None:
        lines[0] = _fit([*first[:2], f"lowest {lowest:.4f}", *first[2:]], width)
    cells: list[Content] = []
    longest = max((len(name) for name in view.phenotypes), default=0)
    for name in view.phenotypes:
        value = validation.last(f"acc/{name}")
        references = reference_accuracies(view, name)
        parts: list[str | Content] = [f"{name:{longest}} "]
        parts += [bar(value or 0.0, 12), " -.---" if value is None else f" {value:.3f}"]
        if references:
            known = ", ".join(
                f"{'LR' if key == 'logistic regression' else key} {one:.3f}"
                for key, one in references.items()
            )
            parts.append(
                f" ({known})" if width >= 98 else f" ({references[next(iter(references))]:.3f})"
            )
        cells.append(Content.assemble(*parts))
    genes, guess = validation.last("acc/genes"), validation.last("acc/genes_baseline")
    if genes is not None:
        text = f"{'genes':{longest}} "
        note = "" if guess is None else f" (commonest bin {guess:.3f})"
        cells.append(Content.assemble(text, bar(genes, 12), f" {genes:.3f}{note}"))
    return Content("\n").join([Content(lines[0]), *_columns(cells, width)])


def _columns(cells: Sequence[Content], width: int) -> list[Content]:
    """Set lines side by side, as many as fit."""
    if not cells:
        return []
    widest = max(cell.cell_length for cell in cells) + 3
    n_columns = max(min(width // widest, 3), 1)
    n_rows = -(-len(cells) // n_columns)
    rows = []
    for row in range(n_rows):
        parts = [cells[place] for place in range(row, len(cells), n_rows)]
        rows.append(Content("").join([part.pad_right(widest - part.cell_length) for part in parts]))
    return rows


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
        methods = _methods(view, name)
        references = reference_accuracies(view, name)
        test = _figure(methods.get("model"), "accuracy")
        logistic = references.get("logistic regression")
        loses = test is not None and logistic is not None and test < logistic
        figures = [
            view.validation.last(f"acc/{name}"),
            view.validation.best(f"acc/{name}", lowest=False),
            references.get("majority"), test, logistic,
            _figure(methods.get("model"), "macro_f1"),
        ]  # fmt: skip
        cells = [Text("" if one is None else f"{one:.3f}", justify="right") for one in figures]
        if loses:
            cells[3].append(" loses")
        rows.append((name, [Text(name), *cells]))
    return rows


def confusion_content(view: RunView, phenotype: str | None, *, width: int) -> Content:
    """Draw the confusion matrix of the last evaluation: true values down, answers across."""
    if phenotype is None:
        return Content("no evaluation of phenotypes yet")
    scores = _methods(view, phenotype).get("model")
    if not isinstance(scores, dict) or not scores.get("confusion"):
        return Content(f"'tfx eval {view.row.path}' shows what {phenotype} is confused with")
    matrix, values = scores["confusion"], [str(value) for value in scores["values"]]
    used = [
        place for place in range(len(values))
        if sum(matrix[place]) or sum(row[place] for row in matrix)
    ]  # fmt: skip
    fits = max((width - _LONGEST - 10) // 5, 2)
    note = ""
    if len(used) > fits:
        used = sorted(sorted(used, key=lambda place: -sum(matrix[place]))[:fits])
        note = f" (the {fits} commonest of {len(values)} values)"
    lines = [
        Content(f"{phenotype}: answers in per cent of the true value's cells{note}"),
        Content(""),
    ]
    heads = "".join(f"{_letter(order):>5}" for order in range(len(used)))
    lines.append(Content(f"{'true value':{_LONGEST + 3}} {'cells':>5}{heads}"))
    for order, place in enumerate(used):
        total = sum(matrix[place])
        name = shortened(values[place], _LONGEST)
        parts: list[str | Content] = [f"{_letter(order):>2} {name:{_LONGEST}} {total:>5}"]
        for column in used:
            share = matrix[place][column] / total if total else 0.0
            shade = _SHADES[min(int(share * len(_SHADES)), len(_SHADES) - 1)]
            text = f" {shade}{round(100 * share):>3}" if share >= 0.005 else "    ·"
            style = "bold $success" if column == place else "$error" if share >= 0.1 else ""
            parts.append(Content.styled(text, style) if style else text)
        lines.append(Content.assemble(*parts))
    return Content("\n").join(lines)


def _letter(place: int) -> str:
    return chr(ord("a") + place) if place < 26 else f"{place + 1}"


def events_content(events: Sequence[EventRecord], *, now: float) -> Content:
    """Write the last events, newest first."""
    lines = []
    for event in reversed(events[-200:]):
        name = str(event.get("event", ""))
        step = number_in(event, "step")
        details = ", ".join(
            f"{key} {_detail(key, value)}"
            for key, value in event.items()
            if key not in ("event", "t", "step", "nonfinite", "rows", "cells") and value is not None
        )
        when = ago(number_in(event, "t"), now=max(now, number_in(event, "t") or now))
        where = "" if step is None else f"step {step:,.0f}"
        style = _EVENT_STYLES.get(name, "")
        text = f"{when:>12}  {name:10}"
        lines.append(Content.assemble((text, style) if style else text, f" {where:14} {details}"))
    return Content("\n").join(lines) if lines else Content("no events yet")


def _detail(key: str, value: object) -> str:
    return metric_value(key, value) if isinstance(value, float) else str(value)


def machine_content(view: RunView, *, now: float) -> Content:
    """Write what each machine of the run said last."""
    lines: list[str] = []
    facts = [
        str(view.run.get("device_name") or view.run.get("device") or ""),
        f"{view.run.get('processes') or 1} process(es)",
        {"no": "fp32"}.get(str(view.run.get("precision")), str(view.run.get("precision") or "")),
    ]
    lines.append(", ".join(fact for fact in facts if fact))
    for host, records in view.machines.items():
        line = records[-1]
        moment = number_in(line, "t")
        lines.append(f"{host}: {machine_text(line)}  {ago(moment, now=max(now, moment or now))}")
        gpus = gpus_of(line)
        lines += [f"  {name} {text}" for name, text in gpus]
        if not gpus:
            lines[-1] = f"{lines[-1]}  (no GPU)"
    if not view.machines:
        lines.append("the machine has not said anything yet")
    return Content("\n").join([Content(line) for line in lines])


def setting_rows(settings: Sequence[Setting]) -> list[tuple[Text, Text, Text]]:
    """Return the preset as rows, what somebody chose before what nobody did."""
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
    """Write the figures of a pane as plain text, for the clipboard."""
    if pane == "phenotypes":
        rows = [
            PHENOTYPE_COLUMNS,
            *([str(cell) for cell in cells] for _, cells in phenotype_rows(view)),
        ]
        return "\n".join("\t".join(row) for row in rows)
    if pane == "machine":
        return machine_content(view, now=now).plain
    if pane == "log":
        return "\n".join(view.log)
    if pane == "preset":
        return "\n".join(f"{one.key} = {one.value}  # {one.provenance}" for one in view.settings)
    lines = [f"run\t{view.row.path}", f"state\t{view.row.state}", f"step\t{view.row.step}"]
    for split, table in view.curves.items():
        for name in table.columns:
            value = table.last(name)
            if value is not None:
                unit = metric_info(name).unit
                lines.append(
                    f"{split} {name}\t{metric_value(name, value)}{f' {unit}' if unit else ''}"
                )
    if view.row.started:
        lines.append(f"started\t{date(view.row.started)}")
    return "\n".join(lines)
