"""Text of the run screen: numbers, tables, events, the machine. No widgets, no maths."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text
from textual.content import Content

from core.evaluation.report.records import PhenotypeScores
from core.runlog.json_lines import finite_number, number_in
from core.runlog.overview import RunRow
from core.runlog.reader import Setting
from core.runlog.schema import LIVE_STATES, EventRecord, metric_info
from core.wording import duration
from tfx_cli.dashboard.evaluation_texts import evaluation_content
from tfx_cli.dashboard.themes import bar, state_sign
from tfx_cli.dashboard.workspace import RunView
from tfx_cli.formatting import (
    PRECISIONS,
    ago,
    date,
    gpus_of,
    machine_text,
    metric_value,
    short_count,
)

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
_COPIED_WIDTH = 100


def baseline_accuracies(view: RunView, phenotype: str) -> dict[str, float]:
    """Return the accuracies of simple baselines, by method, from the run or its evaluation."""
    found = {name: _score(_report(view, phenotype, name), "accuracy") for name in _BASELINES}
    majority = view.validation.last(f"baseline/{phenotype}")
    if majority is not None:
        found["majority"] = majority
    return {name: value for name, value in found.items() if value is not None}


def fitted_accuracy(view: RunView, phenotype: str) -> float | None:
    """Return the accuracy of the fitted terms alone, of a model without its encoder, from the evaluation."""
    parts = None if view.evaluation is None else view.evaluation.parts
    scores = None if parts is None else parts.scores.get("without_the_encoder")
    metric = None if scores is None else scores.accuracy.get(phenotype)
    return None if metric is None else finite_number(metric.value)


def _report(view: RunView, phenotype: str, method: str) -> PhenotypeScores | None:
    phenotypes = {} if view.evaluation is None else view.evaluation.phenotypes
    return phenotypes.get(phenotype, {}).get(method)


def _score(scores: PhenotypeScores | None, name: str) -> float | None:
    return None if scores is None else finite_number(getattr(scores, name))


def numbers_content(view: RunView, *, width: int) -> Content:
    """Write the latest metrics: losses and speed in one line, then each phenotype's accuracy."""
    train, validation = view.train, view.validation
    # A run without a score (of an older tfx) keeps the weights of the lowest loss.
    kept = "lowest" if validation.last("score") is None else "at best score"
    line = ""
    for label, name, value in (
        ("train loss", "loss", train.last("loss")),
        ("validation loss", "loss", validation.last("loss")),
        (kept, "loss", view.row.validation_loss),
        ("lr", "lr", train.last("lr")),
        ("cells/s", "", train.last("cells_per_second")),
        ("tokens/s", "", train.last("tokens_per_second")),
        ("MFU", "mfu", train.last("mfu")),
        ("waiting", "wait", train.last("wait")),
    ):
        if value is None:
            continue
        longer = f"{line}  {label} {metric_value(name, value) if name else short_count(value)}"
        if len(longer) > width + 2:
            break
        line = longer
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
    return Content("\n").join([Content(line[2:]), *_side_by_side(cells, width)])


def _accuracy(label: str, value: float | None, note: str) -> Content:
    shown = "-.---" if value is None else f"{value:.3f}"
    return Content.assemble(
        f"{label} ", bar(value or 0.0, 12), f" {shown}{f' ({note})' if note else ''}"
    )


def _side_by_side(cells: Sequence[Content], width: int) -> list[Content]:
    """Set lines in up to three columns."""
    widest = max((cell.cell_length for cell in cells), default=0) + 3
    n_rows = -(-len(cells) // max(min(width // widest, 3), 1))
    padded = [cell.pad_right(widest - cell.cell_length) for cell in cells]
    return [Content("").join(padded[row::n_rows]) for row in range(n_rows)]


def state_parts(row: RunRow, faults: Sequence[object] = ()) -> list[object]:
    """Write the name of a run, its state, the work on it and its progress, for the line on top."""
    parts: list[object] = [(row.name, "bold"), "  ", state_sign(row.state)]
    if row.stage:
        parts.append(f"  {row.stage}")
    elif row.step is not None:
        parts.append(f"  step {row.step:,}" + (f"/{row.total:,}" if row.total else ""))
    parts += faults
    if row.fraction is not None and row.state != "finished":
        parts += ["  ", bar(row.fraction, 10), f" {row.fraction:.0%}"]
    if row.eta is not None and (row.state in LIVE_STATES or row.stage):
        parts.append(f"  {duration(row.eta)} left")
    return parts


def phenotype_rows(view: RunView) -> dict[str, list[Text]]:
    """Return phenotype -> a row of `PHENOTYPE_COLUMNS`."""
    rows = {}
    for name in view.phenotypes:
        model, baselines = _report(view, name, "model"), baseline_accuracies(view, name)
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
        rows[name] = [Text(name), *cells]
    return rows


def events_content(events: Sequence[EventRecord], part: str = "") -> Content:
    """Write the last events that hold a text, the newest last, with their times."""
    lines = []
    for event in events[-200:]:
        name, step = str(event.get("event", "")), number_in(event, "step")
        details = ", ".join(
            f"{key} {metric_value(key, value) if isinstance(value, float) else value}"
            for key, value in event.items()
            if key not in _EVENT_KEYS and value is not None
        )
        where = "" if step is None else f"step {step:,.0f}"
        text, style = f"{date(number_in(event, 't')):19}  {name:10}", _EVENT_STYLES.get(name, "")
        line = Content.assemble((text, style) if style else text, f" {where:12} {details}")
        if part in line.plain.lower():
            lines.append(line)
    nothing = f"no event with '{part}'" if part else "no events yet"
    return Content("\n").join(lines) if lines else Content(nothing)


def log_content(log: Sequence[str], part: str = "") -> Content:
    """Write the last lines of log.txt that hold a text."""
    lines = [line for line in log if part in line.lower()][-300:]
    nothing = f"no line with '{part}'" if part else "log.txt has no lines yet"
    return Content("\n".join(lines) or nothing)


def _ago_of(record: Mapping[str, Any], *, now: float) -> str:
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
    lines = [", ".join(filter(None, facts))]
    for host, record in view.machines.items():
        gpus = gpus_of(record)
        no_gpu = "" if gpus else "  (no GPU)"
        lines.append(f"{host}: {machine_text(record)}  {_ago_of(record, now=now)}{no_gpu}")
        lines += [f"  {name} {text}" for name, text in gpus]
    if not view.machines:
        lines.append("no data of the machine yet")
    return Content("\n".join(lines))


def setting_rows(settings: Sequence[Setting], part: str = "") -> dict[str, list[Text]]:
    """Return key -> a row of the preset, chosen values before defaults, of the rows that hold a text."""
    ordered = sorted(settings, key=lambda one: one.provenance == "default")
    return {
        one.key: [Text(one.key), Text(one.value), Text(one.provenance)]
        for one in ordered
        if part in f"{one.key} {one.value} {one.provenance}".lower()
    }


def plain_text(view: RunView, pane: str, *, now: float) -> str:
    """Write the metrics of a pane as plain text, for the clipboard."""
    if pane == "phenotypes":
        rows = [[str(cell) for cell in cells] for cells in phenotype_rows(view).values()]
        return "\n".join("\t".join(row) for row in [PHENOTYPE_COLUMNS, *rows])
    if pane == "evaluation":
        return evaluation_content(view, width=_COPIED_WIDTH).plain
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
                lines.append(f"{split} {name}\t{f'{metric_value(name, value)} {unit}'.rstrip()}")
    if view.row.started:
        lines.append(f"started\t{date(view.row.started)}")
    return "\n".join(lines)
