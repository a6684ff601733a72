"""Where the tasks of preparing run: in this process, in several, or on a Dask cluster.

Every runner calls the same functions on the same tasks, so the result is the same, byte for byte.
Processes are concurrent.futures' own: joblib's workers outlive a parent that is killed.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from core.errors import ConfigurationError, MachineError

T = TypeVar("T")
R = TypeVar("R")

#: Each worker holds some hundred megabytes; more workers than these wait for the disk.
_MOST_WORKERS = 4
#: A Dask scheduler that does not answer within this time is not there.
_SCHEDULER_SECONDS = 10
_LOST_WORKER = (
    "a worker process was killed, perhaps because memory ran out; run the same command to continue, "
    "with a smaller --workers"
)


def default_workers() -> int:
    """Count the processes to use by default: the cores that this process may use, at most four."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    return min(cores, _MOST_WORKERS)


class TaskRunner:
    """Runs a function over tasks: in an executor, or here one after another."""

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor

    def run(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """Yield the number and the result of each task as it ends, in any order.

        A task that fails ends the iteration; tasks that are running finish.
        """
        if self._executor is None:
            yield from enumerate(map(function, tasks))
            return
        futures: dict[Future[R], int] = {}
        try:
            for number, task in enumerate(tasks):
                futures[self._executor.submit(function, task)] = number
            for future in as_completed(futures):
                yield futures.pop(future), future.result()  # popped: results may be large
        except BrokenExecutor as error:
            raise MachineError(_LOST_WORKER) from error
        finally:
            for future in futures:
                future.cancel()

    def in_order(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Yield the results in the order of the tasks."""
        early: dict[int, R] = {}
        expected = 0
        for number, result in self.run(function, tasks):
            early[number] = result
            while expected in early:
                yield early.pop(expected)
                expected += 1


@contextmanager
def open_runner(*, workers: int, dask: str | None, shared: Path) -> Iterator[TaskRunner]:
    """Give a runner of `workers` processes, or of a Dask scheduler's ("tcp://host:8786") workers.

    Tasks write to the folder `shared`, which every worker of a cluster must see.
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
        yield TaskRunner(executor)
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in list((executor._processes or {}).values()):
            process.terminate()  # an unfinished file has a temporary name
        raise
    executor.shutdown()


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does: unhandled, it would leave a half-written store."""
    unhandled = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not unhandled or threading.current_thread() is not threading.main_thread():
        yield  # another's handler stays, and only the main thread may set one
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _start_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when the parent ends in any way."""
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
        raise ConfigurationError(
            "--dask needs the dask extra, which is not installed; run pip install "
            "'transformerics[dask]', or leave --dask out to prepare on this machine"
        ) from None
    try:
        client = Client(address, timeout=_SCHEDULER_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        raise MachineError(
            f"{address}: no Dask scheduler answers there ({error}); start one with 'dask scheduler' "
            f"and give its address"
        ) from error
    try:
        if not client.nthreads():
            raise MachineError(
                f"{address}: the Dask cluster has no workers; start some with 'dask worker'"
            )
        with tempfile.NamedTemporaryFile(prefix="seen-by-", dir=shared.resolve()) as probe:
            seen: dict[str, bool] = client.run(_sees, probe.name)
        if blind := [worker for worker, sees in seen.items() if not sees]:
            raise MachineError(
                f"{shared}: {len(blind)} of {len(seen)} Dask workers do not see this folder "
                f"({blind[0]}); prepare into a folder that all machines share"
            )
        yield TaskRunner(client.get_executor(pure=False, retries=2))
    finally:
        client.close()


def _sees(path: str) -> bool:
    return Path(path).exists()
