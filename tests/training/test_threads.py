"""One thread or all: the faster is used, looked at again when steps slow down, and kept on resume."""

import pytest
import torch

from core.runlog import RunReader
from core.training import threads as module
from core.training.engine import train
from core.training.threads import Threads, ThreadTimes, threads_restored, time_threads
from tests.tiny_atlas import tiny_preset


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    """Let the machine have two threads, and nothing set their number."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "_TIMED_SECONDS", 0.01)
    monkeypatch.setattr(module, "_n_before_choice", 0)
    with threads_restored():
        torch.set_num_threads(2)
        yield


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock by one that the test moves: a list of one number."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def slow_on(clock):
    """Return a function that gives work which takes longer on a number of threads."""

    def work_of(n_slow, seconds=0.002):
        def work():
            clock[0] += seconds if torch.get_num_threads() == n_slow else seconds / 2

        return work

    return work_of


@pytest.fixture
def by_hand(monkeypatch, clock):
    """Let work take the times of the list that this returns: of one thread and of all."""
    times = [0.1, 1.0]
    monkeypatch.setattr(module, "time_threads", lambda work, n_all: ThreadTimes(*times))
    return times


@pytest.mark.parametrize(("n_slow", "n_chosen"), [(1, 2), (2, 1)])
def test_the_faster_number_of_threads_is_used(slow_on, n_slow, n_chosen, by_hand, monkeypatch):
    threads = Threads()
    monkeypatch.setattr(module, "time_threads", time_threads)
    times = threads.choose(slow_on(n_slow))
    assert threads.n_threads == n_chosen
    assert sorted(times) == pytest.approx([0.001, 0.002])
    assert (times.one > times.all) == (n_slow == 1)


def test_work_that_is_slow_at_once_is_not_repeated(clock):
    calls = []

    def work():
        calls.append(torch.get_num_threads())
        clock[0] += 5.0

    assert time_threads(work, 2) == (5.0, 5.0)
    assert calls == [1, 2]


@pytest.mark.parametrize(
    ("wanted", "environment", "number"), [(1, None, 1), (1, "2", 1), ("auto", "1", 1), (2, "1", 2)]
)
def test_a_number_that_is_set_is_not_chosen(monkeypatch, wanted, environment, number):
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    threads = Threads(wanted)
    assert (threads.n_threads, threads.is_chosen, threads.is_settled) == (number, False, True)
    assert not any(threads.is_due(seconds, 1.0) for seconds in [1.0] * 20 + [9.0] * 20)


@pytest.mark.parametrize("value", ["", "many", "0", "-1", "99999999999999999999"])
def test_a_variable_that_is_no_number_of_threads_sets_none(monkeypatch, by_hand, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert Threads().is_chosen


def test_steps_that_take_twice_as_long_are_looked_at_again(clock, by_hand):
    by_hand.reverse()
    threads = Threads()
    threads.choose(lambda: None)

    def due_after(seconds, n_steps):
        for number in range(n_steps):
            clock[0] += seconds
            if threads.is_due(seconds, 100.0):
                return number
        return None

    assert threads.n_threads == 2
    assert due_after(1.0, 100) is None
    assert due_after(1.9, 100) is None
    assert due_after(5.0, 10) is not None
    threads.choose(lambda: None)
    assert due_after(5.0, 100) is None  # that is the new pace


def test_one_thread_of_several_is_compared_again_ever_more_rarely(clock, by_hand):
    threads, looks = Threads(), []
    threads.choose(lambda: None)
    for _ in range(1000):
        clock[0] += 1.0
        if threads.is_due(1.0, 1.0):
            looks.append(clock[0])
            threads.choose(lambda: None)
    assert looks == [61.0, 182.0, 423.0, 904.0]


def test_a_choice_does_not_bind_the_next(by_hand):
    assert Threads().n_threads == 1
    by_hand.reverse()
    second = Threads()
    assert (second.n_all, second.n_threads) == (2, 2)


def test_the_numbers_are_put_back():
    with threads_restored():
        module.use_threads(1)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def losses_of(folder):
    return [record["loss"] for record in RunReader(folder).metrics("train")]


def test_a_run_keeps_its_choice_when_it_is_resumed_and_records_every_change(
    tiny_store, tmp_path, monkeypatch
):
    """Timing changes no bit of a run: it equals one whose number is set."""
    choices = iter([ThreadTimes(0.1, 1.0)] * 2 + [ThreadTimes(1.0, 0.1)] * 9)
    monkeypatch.setattr(module, "time_threads", lambda work, n_all: (work(), next(choices))[1])
    chosen, fixed = tmp_path / "chosen", tmp_path / "fixed"
    options = {"train__max_steps": 4, "train__save_steps": 2, "train__eval_steps": 2}
    train(tiny_preset(**options, train__threads="auto"), tiny_store, chosen)
    train(tiny_preset(**options, train__threads=1), tiny_store, fixed)
    assert losses_of(chosen) == losses_of(fixed)
    events = [one for one in RunReader(chosen).events() if one["event"] == "threads"]
    assert [(one["step"], one["threads"]) for one in events] == [(0, 1)]
    assert RunReader(chosen).run["threads"] == 1
    assert not any(one["event"] == "threads" for one in RunReader(fixed).events())
    assert torch.get_num_threads() == 2

    options["train__max_steps"] = 6
    train(tiny_preset(**options, train__threads="auto"), tiny_store, chosen)
    train(tiny_preset(**options, train__threads=1), tiny_store, fixed)
    assert losses_of(chosen) == losses_of(fixed)
    assert [one for one in RunReader(chosen).events() if one["event"] == "threads"] == events
