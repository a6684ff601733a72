"""The outside of a run: its folder, trackers, and a monitor of its machine.

Only the main process writes; in the others every call does nothing. The first process of every
other machine monitors its own.
"""

import logging
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import torch

from core.runlog.schema import STATUS_SECONDS
from core.runlog.writer import RunWriter, SystemLog
from core.training.run_setup import RunSetup
from core.training.trackers import Trackers

logger = logging.getLogger(__name__)
#: Seconds that the end of a run waits for the monitor.
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class RunLog:
    """The run folder's writer, the trackers and the monitor; in other processes than the main one, nothing."""

    _folder: Path
    _writer: RunWriter | None = None
    _trackers: Trackers | None = None
    _monitor: "SystemMonitor | None" = None

    @property
    def folder(self) -> Path:
        """The run folder, where it is now."""
        return self._folder if self._writer is None else self._writer.folder

    def check_folder(self) -> None:
        """Raise a MachineError if the folder was removed."""
        if self._writer is not None:
            self._writer.check_folder()

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
        """Write the state of the run."""
        if self._writer is not None:
            self._writer.status(state, **fields)

    def warn(self, step: int, message: str) -> None:
        """Log a warning, and write it as an event."""
        logger.warning("%s", message)
        self.event("warning", step=step, reason=message)

    def machine(self, **speeds: float | None) -> None:
        """Set the speed of training, for the lines about the machine."""
        if self._monitor is not None:
            self._monitor.report(**speeds)


@contextmanager
def open_run_log(folder: Path, setup: RunSetup) -> Iterator[RunLog]:
    """Open the log of a run while the block runs; MachineError if the folder cannot be written."""
    processes = setup.processes
    reader = MachineReader(folder, processes.device)
    with ExitStack() as stack:
        if not processes.is_main:
            if processes.accelerator.is_local_main_process:
                system = SystemLog(folder)
                stack.callback(system.close)
                stack.enter_context(SystemMonitor(reader, system.append))
            yield RunLog(folder)
            return
        run = setup.describe()
        with suppress(ValueError):  # on another drive of Windows
            run["store_relative"] = os.path.relpath(run["store"], folder.resolve())
        writer = stack.enter_context(RunWriter(folder, run=run, config=setup.resolved.to_toml()))
        writer.status("starting", host=socket.gethostname(), pid=os.getpid())
        handler, core = writer.log_handler, logging.getLogger("core")
        core.addHandler(handler)
        stack.callback(core.removeHandler, handler)
        trackers = Trackers.start(
            setup.preset.train.trackers,
            folder=folder,
            config={**run, "preset": setup.preset.model_dump(mode="json")},
            on_drop=lambda name, reason: writer.event("warning", tracker=name, reason=reason),
        )
        stack.enter_context(trackers)
        monitor = SystemMonitor(reader, writer.system, heartbeat=writer.heartbeat)
        yield RunLog(folder, writer, trackers, stack.enter_context(monitor))


class MachineReader:
    """Reads the load of this process, its machine, the disk of ``folder`` and all visible GPUs.

    A field that cannot be read is left out, and not read again: a failing driver call may be slow.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device, self._process = folder, device, psutil.Process()
        self._failed: set[str] = set()
        self._read("cpu_percent", lambda: psutil.cpu_percent(None))  # since the call before
        self._read("process_cpu_percent", lambda: self._process.cpu_percent(None))

    def read(self) -> dict[str, Any]:
        """Return what can be read now; docs/run-format.md lists the fields and their units."""
        fields: dict[str, Callable[[], Any]] = {
            "cpu_percent": lambda: psutil.cpu_percent(None),
            "process_cpu_percent": lambda: self._process.cpu_percent(None),
            "process_memory": lambda: self._process.memory_info().rss,
            "memory_available": lambda: psutil.virtual_memory().available,
            "memory_total": lambda: psutil.virtual_memory().total,
            "disk_free": lambda: shutil.disk_usage(self._folder).free,
        }
        if self._device.type == "cuda":
            fields["gpus"] = lambda: list(map(self._gpu, range(torch.cuda.device_count())))
        found = {name: self._read(name, call) for name, call in fields.items()}
        return {name: value for name, value in found.items() if value not in (None, [])}

    def _gpu(self, index: int) -> dict[str, Any]:
        cuda, is_own = torch.cuda, index == (self._device.index or 0)

        def used() -> int:
            if is_own:
                free, total = cuda.mem_get_info(index)
                return int(total - free)
            # mem_get_info would take up memory of a GPU that another process computes on.
            return int(cuda.device_memory_used(index))

        fields: dict[str, Callable[[], Any]] = {
            "name": lambda: cuda.get_device_name(index),
            "utilisation_percent": lambda: cuda.utilization(index),
            "memory_used": used,
            "memory_total": lambda: int(cuda.get_device_properties(index).total_memory),
            "temperature": lambda: cuda.temperature(index),
            "power": lambda: cuda.power_draw(index) / 1000,
        }
        if is_own:
            fields["memory_peak"] = lambda: cuda.max_memory_allocated(index)
        found = {name: self._read(f"gpu {index} {name}", call) for name, call in fields.items()}
        return {"index": index, **{n: value for n, value in found.items() if value is not None}}

    def _read(self, name: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - a JSON value
        if name in self._failed:
            return None
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - drivers raise anything; the field is optional
            self._failed.add(name)
            logger.debug("%s cannot be read here (%s)", name, error)
            return None


class SystemMonitor:
    """A thread that logs the machine's load every few seconds, and at the end of its ``with`` block.

    ``log`` (`RunWriter.system`, `SystemLog.append`) takes fields as keywords; ``heartbeat``
    (`RunWriter.heartbeat`) is called as often, and keeps the run alive in the status file while a
    step or an evaluation takes long. Nothing that goes wrong here reaches the run.
    """

    def __init__(
        self,
        reader: MachineReader,
        log: Callable[..., None],
        *,
        heartbeat: Callable[[], None] | None = None,
        seconds: float = STATUS_SECONDS,
    ) -> None:
        self._reader, self._log, self._heartbeat = reader, log, heartbeat
        self._seconds = seconds
        self._speeds: dict[str, float | None] = {}
        self._is_over = threading.Event()
        self._has_warned = False
        # A daemon: a driver call that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="tfx-system-monitor", daemon=True)

    def report(self, **speeds: float | None) -> None:
        """Set metrics of training for the next lines: wait, cells_per_second, ...; None removes one."""
        # The dictionary is replaced, never changed: the thread may be reading it.
        new = self._speeds | speeds
        self._speeds = {name: value for name, value in new.items() if value is not None}

    def _run(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._is_over.wait(self._seconds)
            if self._heartbeat is not None and not is_over:
                self._guard(self._heartbeat)
            self._guard(lambda: self._log(**(self._reader.read() | self._speeds)))

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - the monitor must not end the run
            if not self._has_warned:
                self._has_warned = True
                logger.warning("the machine cannot be watched (%s); the run continues", error)

    def __enter__(self) -> Self:
        """Start watching."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching; waits a few seconds at most."""
        self._is_over.set()
        self._thread.join(_CLOSE_SECONDS)
