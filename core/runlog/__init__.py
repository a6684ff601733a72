"""The run folder: writing it during a run, and reading it.

The format is a public one, described in docs/run-format.md. Standard library only: the dashboard
reads runs without torch, pydantic or numpy.
"""

from core.runlog.reader import RunReader, RunSummary, find_run, list_runs
from core.runlog.schema import FORMAT_VERSION, RUN_STATES, MetricInfo, metric_info
from core.runlog.writer import RunWriter, SystemLog

__all__ = [
    "FORMAT_VERSION",
    "RUN_STATES",
    "MetricInfo",
    "RunReader",
    "RunSummary",
    "RunWriter",
    "SystemLog",
    "find_run",
    "list_runs",
    "metric_info",
]
