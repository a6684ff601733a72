"""How many threads a CPU computes on: one or all, whichever is faster at the moment.

Threads wait for each other after every operation. Where other programs take the processors too, one of them
is often not scheduled, and a small model is then many times slower on all threads than on one; alone, it is
up to as many times faster. So both are timed, on the work itself.

With another number of threads sums round differently. A run therefore keeps its number: checkpoints hold it,
and the run log records every change.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from threadpoolctl import ThreadpoolController, threadpool_limits
from torch.nn import functional

#: Seconds that each number of threads is timed, once it has warmed up.
_TIMED_SECONDS = 0.15
#: All threads have to save this fraction of the time: they leave less to other programs.
_LEAST_GAIN = 0.1
#: Steps whose mean time is compared with the shortest such mean.
_WINDOW = 10
#: Seconds from one choice to the next, at least; one thread of several is compared again after the second, and
#: then after twice as long each time.
_LEAST_WAIT, _COMPARE_AGAIN = 20.0, 60.0
#: Shape of the product by which threads are compared where no step is at hand: tokens, widths of a small model.
_PROBE = (4096, 64, 256)


#: Threads that there were before the last choice of this process (`tfx eval` may train after it); 0: none yet.
_n_before_choice = 0


class ThreadTimes(NamedTuple):
    """Mean seconds of the same work on one thread and on all."""

    one: float
    all: float


def use_threads(n_threads: int) -> None:
    """Compute on ``n_threads``: torch, and the linear algebra of numpy, scipy and scikit-learn."""
    threadpool_limits(n_threads)
    torch.set_num_threads(n_threads)


def time_threads(work: Callable[[], object], n_all: int) -> ThreadTimes:
    """Time ``work`` on one thread and on ``n_all``, in turn; the last is in use afterwards.

    The first of several times is for warming up.
    """
    times: dict[int, list[float]] = {1: [], n_all: []}
    began = time.perf_counter()
    while time.perf_counter() - began < 2 * _TIMED_SECONDS:
        for n_threads, of_one in times.items():
            use_threads(n_threads)
            start = time.perf_counter()
            work()
            of_one.append(time.perf_counter() - start)
    means = [sum(of_one[1:] or of_one) / max(len(of_one) - 1, 1) for of_one in times.values()]
    return ThreadTimes(*means)


@torch.inference_mode()
def _small_layers() -> None:
    n_tokens, width, inner = _PROBE
    hidden, weight = torch.ones(n_tokens, width), torch.ones(width, inner)
    torch.softmax(functional.gelu(hidden @ weight) @ weight.T, dim=-1)


class Threads:
    """The number of threads of a piece of work, chosen at its start and again when it has become slow."""

    def __init__(self, wanted: int | Literal["auto"] = "auto", *, can_choose: bool = True) -> None:
        """Use the number that is set, by ``wanted`` or by OMP_NUM_THREADS, or choose one.

        Without ``can_choose`` (on a GPU, among several processes) "auto" leaves the number as it is.
        """
        self.n_all = max(torch.get_num_threads(), _n_before_choice)
        fixed = _of_environment() if wanted == "auto" else wanted
        if fixed is not None:
            use_threads(fixed)
        #: Whether the number is chosen here.
        self.is_chosen = fixed is None and can_choose and self.n_all > 1
        #: Whether the choice was made on the work itself, or is a checkpoint's.
        self.is_settled = not self.is_chosen
        self._wait = _COMPARE_AGAIN
        self._begin()
        if self.is_chosen:
            self.choose(_small_layers)
            self.is_settled = False

    @property
    def n_threads(self) -> int:
        """Threads in use."""
        return torch.get_num_threads()

    def choose(self, work: Callable[[], object]) -> ThreadTimes:
        """Time ``work`` on one thread and on all, and use the faster number."""
        global _n_before_choice
        _n_before_choice = self.n_all
        times = time_threads(work, self.n_all)
        use_threads(self.n_all if times.all < (1 - _LEAST_GAIN) * times.one else 1)
        self.is_settled = True
        self._begin()
        return times

    def restore(self, n_threads: int) -> None:
        """Use the number of a checkpoint, if this machine has as many threads and no number is set."""
        if self.is_chosen and n_threads <= self.n_all:
            use_threads(n_threads)
            self.is_settled = True

    def _begin(self) -> None:
        self._chosen_at = time.perf_counter()
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._best = float("inf")

    def is_due(self, seconds: float, size: float) -> bool:
        """Add a step of ``seconds`` and ``size`` (tokens, say); return whether to choose again.

        That is when steps take twice as long as at their best, and now and then while one thread of several is
        in use.
        """
        if not self.is_chosen:
            return False
        self._recent.append(seconds / max(size, 1.0))
        if len(self._recent) < _WINDOW:
            return False
        pace = sum(self._recent) / _WINDOW
        self._best = min(self._best, pace)
        since = time.perf_counter() - self._chosen_at
        if since < _LEAST_WAIT:
            return False
        if self.n_threads == 1 and since > self._wait:
            self._wait *= 2
            return True
        return pace > 2 * self._best


def _of_environment() -> int | None:
    """Return the number that OMP_NUM_THREADS sets, if it sets one."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and 0 < int(first) <= 4096 else None


@contextmanager
def threads_restored() -> Iterator[None]:
    """Put the numbers of threads back at the end of the block."""
    global _n_before_choice
    before, n_before_choice = torch.get_num_threads(), _n_before_choice
    pools = [(pool, pool.num_threads) for pool in ThreadpoolController().lib_controllers]
    try:
        yield
    finally:
        for pool, n_threads in pools:
            pool.set_num_threads(n_threads)
        torch.set_num_threads(before)
        _n_before_choice = n_before_choice
