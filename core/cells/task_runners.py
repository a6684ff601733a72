"""Where the tasks of preparing run: in this process, in several, or on a Dask cluster.

Every runner calls the same functions on the same tasks, so the result is the same, byte for byte.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from core.errors import ConfigurationError, MachineError, TfxError

__all__ = ["MOST_WORKERS", "TaskRunner", "default_workers", "open_runner"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

#: Each worker holds some hundred megabytes; more than these wait for the disk.
MOST_WORKERS = 4
_LOST_WORKER = (
    "a worker process was killed, perhaps because memory ran out; run the same command to go on, "
    "with a smaller --workers"
)
#: Tasks handed out beyond those that run, for each worker.
_AHEAD = 2


def default_workers() -> int:
    """Count the processes to use where nobody says: the cores we may use, four at most."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    return min(cores, MOST_WORKERS)


class TaskRunner:
    """Runs a function over tasks.

    Parameters
    ----------
    executor
        Runs them elsewhere; None runs them here, one after another.
    workers
        How many of them run at once.
    """

    def __init__(self, executor: Executor | None = None, workers: int = 1) -> None:
        self._executor = executor
        self.workers = workers

    def run(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """Yield the number and the result of each task as it ends, in any order.

        A task that fails as `TfxError` ends the iteration; tasks that run go on to their end.
        """
        for number, future in self._futures(function, tasks):
            yield number, future.result() if isinstance(future, Future) else future

    def try_all(
        self, function: Callable[[T], object], tasks: Sequence[T]
    ) -> Iterator[tuple[int, TfxError | None]]:
        """Yield the number of each task as it ends, and the error it ended with."""
        for number, outcome in self._futures(_attempt, [(function, task) for task in tasks]):
            yield number, outcome.result() if isinstance(outcome, Future) else outcome

    def in_order(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Yield the results in the order of the tasks."""
        early: dict[int, R] = {}
        expected = 0
        for number, result in self.run(function, tasks):
            early[number] = result
            while expected in early:
                yield early.pop(expected)
                expected += 1

    def _futures(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, Any]]:
        if self._executor is None:
            for number, task in enumerate(tasks):
                yield number, function(task)
            return
        waiting = iter(enumerate(tasks))
        running: dict[Future[R], int] = {}
        try:
            while True:
                while len(running) < self.workers * (1 + _AHEAD):
                    following = next(waiting, None)
                    if following is None:
                        break
                    number, task = following
                    running[self._executor.submit(function, task)] = number
                if not running:
                    return
                # A timeout lets Ctrl-C through on every platform.
                done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    if isinstance(future.exception(), BrokenExecutor):
                        raise MachineError(_LOST_WORKER) from future.exception()
                    yield running.pop(future), future
        finally:
            for future in running:
                future.cancel()


def _attempt(job: tuple[Callable[[Any], object], Any]) -> TfxError | None:
    function, task = job
    try:
        function(task)
    except TfxError as error:
        return error
    return None


@contextmanager
def open_runner(*, workers: int, dask: str | None, shared: Path) -> Iterator[TaskRunner]:
    """Give a runner.

    Parameters
    ----------
    workers
        Processes on this machine; with 1, tasks run in this one.
    dask
        Address of a Dask scheduler ("tcp://host:8786") whose workers run the tasks instead.
    shared
        Folder that tasks write to; every worker of a cluster must see it.

    Raises
    ------
    ConfigurationError
        Dask is not installed.
    MachineError
        The scheduler does not answer, has no workers, or a worker does not see the folder.
    """
    if dask is not None:
        with _dask_runner(dask, shared) as runner:
            yield runner
        return
    if workers <= 1:
        yield TaskRunner()
        return
    # Spawned, not forked: HDF5 and BLAS have threads and locks of their own.
    executor = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(),),
    )
    try:
        yield TaskRunner(executor, workers)
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in list((executor._processes or {}).values()):
            process.terminate()  # what it was writing has a temporary name
        raise
    executor.shutdown()


def _start_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _dask_runner(address: str, shared: Path) -> Iterator[TaskRunner]:
    try:
        from distributed import Client
    except ImportError:
        message = (
            "--dask needs the dask extra, which is not installed; run pip install "
            "'transformerics[dask]', or leave --dask out to prepare on this machine"
        )
        raise ConfigurationError(message) from None
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError, TimeoutError) as error:
        message = (
            f"{address}: no Dask scheduler answers there ({error}); start one with 'dask scheduler' "
            f"and give its address"
        )
        raise MachineError(message) from error
    try:
        workers = client.nthreads()
        if not workers:
            message = f"{address}: the Dask cluster has no workers; start some with 'dask worker'"
            raise MachineError(message)
        probe = shared / f"seen-by-{os.getpid()}"
        probe.touch()
        try:
            seen: dict[str, bool] = client.run(_sees, str(probe.resolve()))
        finally:
            probe.unlink()
        if blind := [worker for worker, sees in seen.items() if not sees]:
            message = (
                f"{shared}: {len(blind)} of {len(seen)} Dask workers do not see this folder "
                f"({blind[0]}); prepare into a folder that all machines share"
            )
            raise MachineError(message)
        yield TaskRunner(client.get_executor(pure=False, retries=2), sum(workers.values()))
    finally:
        client.close()


def _sees(path: str) -> bool:
    return Path(path).exists()
