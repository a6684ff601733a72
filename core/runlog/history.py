"""The metrics of a run: which lines are valid, in columns, and the newest and best of them.

A long run has a hundred thousand lines of training and a few hundred evaluations. `RunCurves` keeps
them all in a few megabytes, one array of numbers per metric and split, brought up to date by reading
what was added. `read_latest_metrics` parses few lines, so that a list of many runs stays quick.
"""

import itertools
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeGuard

from core.files import file_bytes
from core.runlog.json_lines import LARGEST_LOG, LineFollower, finite_number, number_in, parse_object
from core.runlog.schema import (
    GENE_METRICS,
    METRICS_FILE,
    RESERVED_METRIC_KEYS,
    MetricRecord,
    system_files,
)

#: Read at a time, so that a long history is never in memory as dictionaries.
_CHUNK_BYTES = 2 * 2**20
#: What `MachineCurves` keeps: per cent of all cores, bytes of the process, per cent and bytes of the GPUs,
#: fraction of the time spent waiting for cells.
MACHINE_METRICS = ("cpu_percent", "memory", "gpu_percent", "gpu_memory", "wait")


class ResumeRule:
    """Decides which lines of metrics are valid, called from the newest line to the oldest.

    A resume voids all older lines of its first step and of later steps: the run does them again.
    """

    def __init__(self) -> None:
        #: Older lines of this step and of later ones are void.
        self.first_void: float = math.inf
        #: Lines without a step.
        self.n_unusable = 0

    def is_valid(self, record: Mapping[str, Any]) -> bool:
        """Whether a line holds metrics that no newer line voids."""
        step = record.get("step")
        if record.get("event") == "resume":
            first = record.get("from_step")
            if _is_step(first):
                self.first_void = min(self.first_void, first)
            return False
        if not _is_step(step):
            self.n_unusable += 1
            return False
        return step < self.first_void


def _is_step(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


class SplitCurves:
    """The metrics of one split, as columns of equal length."""

    def __init__(self) -> None:
        #: (lines,)
        self.steps = array("q")
        #: (lines,), seconds since 1970, NaN where unknown.
        self.times = array("d")
        #: Metric -> (lines,) values, NaN where a line lacks it or it was not finite.
        self.columns: dict[str, array[float]] = {}

    def extend(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append lines, the oldest first."""
        names = dict.fromkeys(itertools.chain.from_iterable(records))
        for name in names:
            if name not in RESERVED_METRIC_KEYS and name not in self.columns:
                self.columns[name] = array("d", [math.nan]) * len(self.steps)
        self.steps.extend([record["step"] for record in records])
        self.times.extend([_number(record.get("t")) for record in records])
        for name, column in self.columns.items():
            column.extend([_number(record.get(name)) for record in records])

    def drop_from(self, step: float) -> None:
        """Remove the lines of a step and of those after it."""
        kept = [] if step == math.inf else [one < step for one in self.steps]
        if not all(kept):
            self.steps = array("q", itertools.compress(self.steps, kept))
            self.times = array("d", itertools.compress(self.times, kept))
            for name, column in self.columns.items():
                self.columns[name] = array("d", itertools.compress(column, kept))


class RunCurves:
    """All curves of a run folder, as far as they have been read; the folder may still be empty.

    ``tail_bytes`` leaves out all but the end of the file, for a first look at a long history.
    """

    def __init__(self, folder: Path, *, tail_bytes: int | None = None) -> None:
        self._follower = LineFollower(folder / METRICS_FILE)
        if tail_bytes is not None:
            self._follower.skip_to_tail(tail_bytes)
        self._n_unusable = 0
        #: Split -> its curves, in the order they appeared.
        self.splits: dict[str, SplitCurves] = {}

    @property
    def bad_lines(self) -> int:
        """Lines that could not be read or had no step."""
        return self._follower.bad_lines + self._n_unusable

    @property
    def fraction(self) -> float:
        """The fraction of the file that has been read."""
        return self._follower.offset / self._follower.size if self._follower.size else 1.0

    def poll(self, *, most_bytes: int | None = None) -> bool:
        """Read what was added, about ``most_bytes`` at most; return whether anything was."""
        is_new, began = False, self._follower.offset
        for records in self._follower.chunks(_CHUNK_BYTES):
            if self._follower.has_restarted:
                self.splits, self._n_unusable, began = {}, 0, 0
            self._add(records)
            is_new = is_new or bool(records)
            if most_bytes is not None and self._follower.offset - began >= most_bytes:
                break
        return is_new

    def _add(self, records: list[MetricRecord]) -> None:
        rule = ResumeRule()
        valid = [record for record in reversed(records) if rule.is_valid(record)]
        for curves in self.splits.values():
            curves.drop_from(rule.first_void)
        by_split: dict[str, list[MetricRecord]] = {}
        for record in reversed(valid):
            split = record.get("split")
            if isinstance(split, str):
                by_split.setdefault(split, []).append(record)
            else:
                self._n_unusable += 1
        for split, lines in by_split.items():
            self.splits.setdefault(split, SplitCurves()).extend(lines)
        self._n_unusable += rule.n_unusable


def _number(value: object) -> float:
    """Return a number of a line, NaN if it is none or not finite."""
    if type(value) is float and math.isfinite(value):
        return value
    number = finite_number(value)
    return math.nan if number is None else number


class MachineCurves:
    """The load of the machines of a run over time, from ``system-*.jsonl``, and the last line of each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._followers: dict[str, LineFollower] = {}
        #: Host -> its last line.
        self.last: dict[str, dict[str, Any]] = {}
        #: Host -> metric (one of `MACHINE_METRICS`, or "t") -> (lines,) values, NaN where unknown.
        self.hosts: dict[str, dict[str, array[float]]] = {}

    @property
    def bad_lines(self) -> int:
        """Lines that could not be read."""
        return sum(follower.bad_lines for follower in self._followers.values())

    def poll(self) -> None:
        """Read what was added."""
        for host, path in system_files(self._folder).items():
            follower = self._followers.setdefault(host, LineFollower(path))
            for lines in follower.chunks(_CHUNK_BYTES):
                if follower.has_restarted:
                    self.hosts.pop(host, None)
                    self.last.pop(host, None)
                if lines:
                    self.last[host] = lines[-1]
                    self._add(host, lines)

    def _add(self, host: str, lines: Sequence[Mapping[str, Any]]) -> None:
        names = ("t", *MACHINE_METRICS)
        columns = self.hosts.setdefault(host, {name: array("d") for name in names})
        for line in lines:
            values = _machine_values(line)
            for name, column in columns.items():
                column.append(values.get(name, math.nan))


def _machine_values(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of one line of a machine; of several GPUs means of use, sums of memory."""
    values = {name: _number(line.get(name)) for name in ("t", "cpu_percent", "wait")}
    values["memory"] = _number(line.get("process_memory"))
    gpus = line.get("gpus")
    known = [gpu for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []
    if known:
        used = [_number(gpu.get("utilisation_percent")) for gpu in known]
        values["gpu_percent"] = sum(used) / len(used)
        values["gpu_memory"] = sum(_number(gpu.get("memory_used")) for gpu in known)
    return values


@dataclass(frozen=True)
class LatestMetrics:
    """The last line of training, and all lines of the validation split, oldest first."""

    train: MetricRecord | None = None
    validations: tuple[MetricRecord, ...] = ()

    @classmethod
    def of(cls, records: Iterable[MetricRecord]) -> Self:
        """Pick from the lines that `RunReader.metrics` returns."""
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
        """The evaluation whose weights the model folder holds: of the best score, else of the lowest loss.

        A run that chooses its best step by the loss (of an older tfx) has no score. At step 0 no weights are kept.
        """
        trained = [record for record in self.validations if record["step"] > 0]
        known = [record for record in trained if number_in(record, "loss") is not None]
        scored = [record for record in known if number_in(record, "score") is not None]

        def rank(record: MetricRecord) -> tuple[float, float]:
            return number_in(record, "score") or 0.0, -(number_in(record, "loss") or 0.0)

        return max(scored or known, key=rank, default=None)


def read_latest_metrics(folder: Path) -> LatestMetrics:
    """Read the latest metrics of a run folder; lines that are absent or not readable are left out."""
    try:
        data = file_bytes(folder / METRICS_FILE, most=LARGEST_LOG)
    except OSError:
        return LatestMetrics()
    rule = ResumeRule()
    train: MetricRecord | None = None
    validations: list[MetricRecord] = []
    for line in reversed(data[: data.rfind(b"\n") + 1].split(b"\n")):
        # Parsing every line of training would take seconds.
        is_train = train is None and b'"train"' in line
        is_wanted = is_train or b'"validation"' in line or b'"resume"' in line
        record = parse_object(line) if is_wanted else None
        if record is None or not rule.is_valid(record):
            continue
        if record.get("split") == "validation":
            validations.append(record)
        elif record.get("split") == "train" and train is None:
            train = record
    return LatestMetrics(train, tuple(reversed(validations)))


def phenotype_accuracies(record: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the accuracies of a record by phenotype, in the order they were written."""
    found = {}
    for name in record or ():
        value = number_in(record, name)
        if name.startswith("acc/") and name not in GENE_METRICS and value is not None:
            found[name.removeprefix("acc/")] = value
    return found
