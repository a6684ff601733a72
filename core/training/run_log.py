"""What a run tells the outside: its folder, trackers, and the figures of its machine.

Only the main process tells; on the others every call does nothing. The first process of every other
machine watches its own.
"""

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from core.runlog.writer import RunWriter, SystemLog
from core.training.system_monitor import MachineReader, SystemMonitor
from core.training.trackers import Trackers

__all__ = ["RunLog", "open_run_log"]


class RunLog:
    """The run folder's writer, the trackers and the monitor, or nothing."""

    def __init__(
        self,
        writer: RunWriter | None = None,
        trackers: Trackers | None = None,
        monitor: SystemMonitor | None = None,
    ) -> None:
        self._writer, self._trackers, self._monitor = writer, trackers, monitor

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write the metrics of a split at a step, and copy them to the trackers."""
        if self._writer is not None:
            self._writer.metrics(step, split, values)
        if self._trackers is not None:
            self._trackers.log(split, step, values)

    def event(self, name: str, **fields: object) -> None:
        """Write an event."""
        if self._writer is not None:
            self._writer.event(name, **fields)

    def status(self, state: str, **fields: object) -> None:
        """Say how the run stands."""
        if self._writer is not None:
            self._writer.status(state, **fields)

    def machine(self, **figures: float | None) -> None:
        """Say how fast training is, for the lines about the machine."""
        if self._monitor is not None:
            self._monitor.report(**figures)


@contextmanager
def open_run_log(
    folder: Path,
    *,
    is_main: bool,
    is_first_of_machine: bool = True,
    run: Mapping[str, Any],
    config: str,
    settings: Mapping[str, Any],
    trackers: Sequence[str],
    device: torch.device,
) -> Iterator[RunLog]:
    """Open the log of a run while the block runs.

    Parameters
    ----------
    folder
        Of the run.
    is_main
        Whether this process is the one that tells.
    is_first_of_machine
        Whether it is the one that watches its machine.
    run
        What identifies the run, for run.json.
    config
        The resolved preset, as TOML.
    settings
        The preset's values, for the trackers.
    trackers
        Names, of ``train.trackers``.
    device
        Whose memory and use is watched.

    Raises
    ------
    MachineError
        The folder cannot be written.
    """
    with ExitStack() as stack:
        if not is_main:
            if is_first_of_machine:
                system = SystemLog(folder)
                stack.callback(system.close)
                stack.enter_context(SystemMonitor(MachineReader(folder, device), system.append))
            yield RunLog()
            return
        writer = stack.enter_context(RunWriter(folder, run=run, config=config))
        writer.status("starting", host=socket.gethostname(), pid=os.getpid())
        handler = writer.log_handler()
        logging.getLogger("core").addHandler(handler)
        stack.callback(logging.getLogger("core").removeHandler, handler)
        copies = Trackers.start(
            trackers,
            run_name=folder.name,
            folder=folder,
            config={**run, "preset": settings},
            on_drop=lambda name, reason: writer.event("warning", tracker=name, reason=reason),
        )
        stack.callback(copies.close)
        monitor = SystemMonitor(
            MachineReader(folder, device), writer.system, heartbeat=writer.heartbeat
        )
        stack.enter_context(monitor)
        yield RunLog(writer, copies, monitor)
