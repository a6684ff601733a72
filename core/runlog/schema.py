"""The names in a run folder: files, states, events, and what each metric means.

docs/run-format.md describes the same for programs in other languages; a change of meaning here
raises `FORMAT_VERSION`, and the reader must still read the older form.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

#: Version of the folder's format, in run.json. Readers read every version up to their own.
FORMAT_VERSION = 1

RUN_FILE = "run.json"
CONFIG_FILE = "config.toml"
STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
LOG_FILE = "log.txt"
#: What a process does for the run beside its steps; there only meanwhile (`core.runlog.work`).
WORK_FILE = "work.json"
#: Tags that the user gave the run, one a line.
TAGS_FILE = "tags.txt"
#: The output of processes that the dashboard started for the run.
OUTPUT_FILE = "output.txt"
CHECKPOINTS_FOLDER = "checkpoints"
#: File in a checkpoint that is written last: without it the checkpoint is not whole.
CHECKPOINT_MARKER = "complete.json"
#: Folder of the model with the best validation score so far.
MODEL_FOLDER = "model"
#: The cells of steps that were skipped because they were not finite.
NONFINITE_FOLDER = "nonfinite"

#: status.json is replaced about this often while the state stays the same.
STATUS_SECONDS = 5.0
#: A running run whose heartbeat is older is stale: three heartbeats were missed.
STALE_AFTER_SECONDS = 3 * STATUS_SECONDS
#: ... and is presumed crashed after this (wandb leet uses the same ten minutes).
CRASHED_AFTER_SECONDS = 600.0

RunState = Literal["starting", "running", "finished", "stopped", "failed"]
#: starting and running are live; stopped means stopped early with a checkpoint to resume from.
RUN_STATES: tuple[str, ...] = get_args(RunState)
LIVE_STATES = ("starting", "running")
#: States that ``work.json`` names: the run is not ready for its steps, or has done them.
BEFORE_STEPS = ("preparing", "fitting", "resuming")
WORK_STATES = (
    *BEFORE_STEPS, "evaluating", "generating", "comparing", "finding edges", "perturbing",
)  # fmt: skip
#: States in which a process works for the run.
AT_WORK = (*LIVE_STATES, *WORK_STATES)
#: What readers show: these, and the states of a run that is silent or never wrote one.
SEEN_STATES = (*RUN_STATES, *WORK_STATES, "stale", "crashed", "unknown")

#: What tfx writes to events.jsonl; readers accept other names too.
EVENTS = (
    *("start", "resume", "checkpoint", "eval", "early_stop"),
    *("spike", "nonfinite", "threads", "warning", "signal", "end"),
)

#: Metrics of the group acc that are not of a phenotype.
GENE_METRICS = frozenset({"acc/genes", "acc/genes_baseline"})

#: Keys of a metrics line that are not metrics.
RESERVED_METRIC_KEYS = frozenset({"step", "t", "split", "nonfinite", "event"})


#: A line of metrics.jsonl: step, t, split, and one entry per metric (None: not finite).
MetricRecord = dict[str, Any]
#: A line of events.jsonl: event, t, and the fields of that event.
EventRecord = dict[str, Any]


@dataclass(frozen=True)
class MetricInfo:
    """How to show a metric."""

    label: str
    unit: str = ""
    #: A format specification for one value.
    number_format: str = ".4g"
    #: Which direction is progress; None if neither is.
    better: Literal["higher", "lower"] | None = None


_METRICS = {
    "loss": MetricInfo("loss", number_format=".4f", better="lower"),
    "score": MetricInfo("score", number_format=".4f", better="higher"),
    "lr": MetricInfo("learning rate", number_format=".2e"),
    "grad_norm": MetricInfo("gradient norm"),
    "cells_per_second": MetricInfo("speed", "cells/s", ",.0f", "higher"),
    "tokens_per_second": MetricInfo("speed", "tokens/s", ",.0f", "higher"),
    "mfu": MetricInfo("model FLOPs utilisation", number_format=".1%", better="higher"),
    "wait": MetricInfo("fraction of time waiting for cells", number_format=".1%", better="lower"),
    "epoch": MetricInfo("epoch", number_format=".2f"),
    "acc/genes_baseline": MetricInfo(
        "accuracy of predicting the commonest bin", number_format=".3f"
    ),
}
_GROUPS = {
    "loss": MetricInfo("loss of", number_format=".4f", better="lower"),
    "gain": MetricInfo("gain over the baseline of", number_format=".4f", better="higher"),
    "acc": MetricInfo("accuracy of", number_format=".3f", better="higher"),
    "f1": MetricInfo("macro-F1 of", number_format=".3f", better="higher"),
    "baseline": MetricInfo("baseline of", number_format=".3f", better="higher"),
}


def metric_info(name: str) -> MetricInfo:
    """Return how to show a metric named ``name`` or ``group/name``; unknown ones are plain."""
    if name in _METRICS:
        return _METRICS[name]
    group, slash, rest = name.partition("/")
    if slash and group in _GROUPS:
        return replace(_GROUPS[group], label=f"{_GROUPS[group].label} {rest}")
    return MetricInfo(name)


def system_file(host: str) -> str:
    """Return the name of the file in which one machine logs its load."""
    kept = "".join(one if one.isalnum() or one in "-." else "-" for one in host)
    return f"system-{kept or 'unknown'}.jsonl"


def system_files(folder: Path) -> dict[str, Path]:
    """Return the files of all machines by host."""
    paths = sorted(folder.glob("system-*.jsonl"))
    return {path.stem.removeprefix("system-"): path for path in paths}
