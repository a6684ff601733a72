"""The figures of a run that a summary needs: its last line of training, and its evaluations.

A long run has a hundred thousand lines of training and a few hundred evaluations, so that of the
former only the last is parsed: a list of many runs stays quick.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from core.runlog.json_lines import finite_number
from core.runlog.schema import GENE_FIGURES, METRICS_FILE, MetricRecord

__all__ = ["RunFigures", "number_in", "phenotype_accuracies", "read_figures"]


@dataclass(frozen=True)
class RunFigures:
    """Last and best figures of a run.

    Attributes
    ----------
    train
        The last line of training; None before the first.
    validations
        All lines of the validation split, in the order of the final history.
    """

    train: MetricRecord | None
    validations: tuple[MetricRecord, ...]

    @classmethod
    def of(cls, records: Iterable[MetricRecord]) -> Self:
        """Pick the figures from lines that `RunReader.metrics` gave."""
        records = list(records)
        training = [record for record in records if record.get("split") == "train"]
        validations = [record for record in records if record.get("split") == "validation"]
        return cls(training[-1] if training else None, tuple(validations))

    @property
    def last(self) -> MetricRecord | None:
        """The last evaluation."""
        return self.validations[-1] if self.validations else None

    @property
    def kept(self) -> MetricRecord | None:
        """The evaluation of the lowest loss, whose weights the model folder holds."""
        losses = [(number_in(record, "loss"), record) for record in self.validations]
        known = [(loss, record) for loss, record in losses if loss is not None]
        return min(known, key=lambda pair: pair[0])[1] if known else None

    @property
    def last_step(self) -> int | None:
        """The largest step of these lines."""
        steps = [record["step"] for record in (self.train, self.last) if record is not None]
        return max(steps, default=None)

    @property
    def last_time(self) -> float | None:
        """When the newest of these lines was written."""
        times = [number_in(record, "t") for record in (self.train, self.last) if record is not None]
        return max((time for time in times if time is not None), default=None)


def read_figures(folder: Path) -> RunFigures:
    """Read the figures of a run folder; what is not there or not readable is left out."""
    try:
        data = (folder / METRICS_FILE).read_bytes()
    except OSError:
        return RunFigures(None, ())
    lines = data[: data.rfind(b"\n") + 1].split(b"\n")
    return RunFigures(_last_training(lines), tuple(_validations(lines)))


def _last_training(lines: list[bytes]) -> MetricRecord | None:
    first_void: float = float("inf")  # later lines resumed from here
    for line in reversed(lines):
        is_resume = b'"resume"' in line
        if not is_resume and b'"train"' not in line:
            continue
        record = _parse(line)
        if record is None:
            continue
        step = record.get("step")
        if record.get("event") == "resume":
            first = record.get("from_step")
            if isinstance(first, int):
                first_void = min(first_void, first)
        elif record.get("split") == "train" and isinstance(step, int) and step < first_void:
            return record
    return None


def _validations(lines: list[bytes]) -> list[MetricRecord]:
    found: list[MetricRecord] = []
    for line in lines:
        if b'"validation"' not in line and b'"resume"' not in line:
            continue
        record = _parse(line)
        if record is None:
            continue
        step = record.get("step")
        if record.get("event") == "resume":
            first = record.get("from_step")
            if isinstance(first, int):
                found = [kept for kept in found if kept["step"] < first]
        elif record.get("split") == "validation" and isinstance(step, int):
            found.append(record)
    return found


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def number_in(record: Mapping[str, Any] | None, name: str) -> float | None:
    """Return a number of a record; None where it is absent, not finite, or no number."""
    return None if record is None else finite_number(record.get(name))


def phenotype_accuracies(record: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the accuracies of a record by phenotype, in the order they were written."""
    found = {}
    for name in record or ():
        value = number_in(record, name)
        if name.startswith("acc/") and name not in GENE_FIGURES and value is not None:
            found[name.removeprefix("acc/")] = value
    return found
