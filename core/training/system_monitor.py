"""A thread that, every few seconds, logs how the machine fares and says that the run is alive.

It also keeps the run's heartbeat going while a step or an evaluation takes long. What cannot be
read is left out, and nothing that goes wrong here reaches the run.
"""

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import torch

from core.runlog.schema import STATUS_SECONDS

__all__ = ["MachineReader", "SystemMonitor"]

_LOG = logging.getLogger(__name__)
_CLOSE_SECONDS = 5.0


class MachineReader:
    """Reads the figures of this process, its machine and its GPUs.

    Parameters
    ----------
    folder
        Its disk is watched.
    device
        Where the process computes; on a CUDA device all visible GPUs are read.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder = folder
        self._device = device
        self._process = psutil.Process()
        self._failed: set[str] = set()  # not asked again: a failing driver call may be slow
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
            fields["gpus"] = self._gpus
        found = {name: self._read(name, call) for name, call in fields.items()}
        return {name: value for name, value in found.items() if value not in (None, [])}

    def _gpus(self) -> list[dict[str, Any]]:
        return [self._gpu(index) for index in range(torch.cuda.device_count())]

    def _gpu(self, index: int) -> dict[str, Any]:
        def total() -> int:
            return int(torch.cuda.get_device_properties(index).total_memory)

        def used() -> int:
            if index == self._own_index:
                free, all_ = torch.cuda.mem_get_info(index)
                return int(all_ - free)
            # mem_get_info would take up memory of a GPU that another process computes on.
            return int(torch.cuda.device_memory_used(index))

        fields: dict[str, Callable[[], Any]] = {
            "name": lambda: torch.cuda.get_device_name(index),
            "utilisation_percent": lambda: torch.cuda.utilization(index),
            "memory_used": used,
            "memory_total": total,
            "temperature": lambda: torch.cuda.temperature(index),
            "power": lambda: torch.cuda.power_draw(index) / 1000,
        }
        if index == self._own_index:
            fields["memory_peak"] = lambda: torch.cuda.max_memory_allocated(index)
        found = {name: self._read(f"gpu {index} {name}", call) for name, call in fields.items()}
        known = {name: value for name, value in found.items() if value is not None}
        return {"index": index, **known}

    @property
    def _own_index(self) -> int:
        return 0 if self._device.index is None else self._device.index

    def _read(self, name: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - a JSON value
        if name in self._failed:
            return None
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - drivers raise anything; the field is optional
            self._failed.add(name)
            _LOG.debug("%s cannot be read here (%s)", name, error)
            return None


class SystemMonitor:
    """The thread, from ``with`` to the end of its block.

    Parameters
    ----------
    reader
        Reads the machine.
    log
        Takes the figures as keywords: `RunWriter.system` or `SystemLog.append`.
    heartbeat
        Called as often: `RunWriter.heartbeat`; None where another process keeps the run's status.
    seconds
        Time between two readings; the first comes after that long, a last one at the end.
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
        self._figures: dict[str, float] = {}
        self._is_over = threading.Event()
        self._has_warned = False
        # A daemon: a driver call that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="tfx-system-monitor", daemon=True)

    def report(self, **figures: float | None) -> None:
        """Set what training knows of itself, for the lines to come: wait, cells_per_second, ...

        None takes a figure away.
        """
        # The dictionary is replaced, never changed: the thread may be reading it.
        self._figures = {
            name: value for name, value in (self._figures | figures).items() if value is not None
        }

    def _run(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._is_over.wait(self._seconds)
            if self._heartbeat is not None and not is_over:
                self._guard(self._heartbeat)
            self._guard(lambda: self._log(**(self._reader.read() | self._figures)))

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - watching must not end what is watched
            if not self._has_warned:
                self._has_warned = True
                _LOG.warning("the machine cannot be watched (%s); the run goes on", error)

    def __enter__(self) -> Self:
        """Start watching."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop watching; waits a few seconds at most."""
        self._is_over.set()
        self._thread.join(_CLOSE_SECONDS)
