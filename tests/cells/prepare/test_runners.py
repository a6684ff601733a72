"""The same tasks, wherever they run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from core.cells.prepare import pipeline, prepare_store
from core.cells.prepare.runners import default_workers, open_runner
from core.errors import DataError, MachineError
from tests.cells.examples import settings

from .test_resume import digest, write_shards


def square(number):
    if number == 3:
        message = "three is refused"
        raise DataError(message)
    return number * number


def process_number(_):
    return os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_the_error_of_a_task_ends_its_run_alone(tmp_path, workers):
    with open_runner(workers=workers, dask=None, shared=tmp_path) as runner:
        assert sorted(runner.run(square, [5, 6, 7])) == [(0, 25), (1, 36), (2, 49)]
        assert list(runner.in_order(square, list(range(10, 40)))) == [
            number * number for number in range(10, 40)
        ]
        here = set(dict(runner.run(process_number, range(8))).values())
        assert (os.getpid() in here) == (workers == 1)
        with pytest.raises(DataError, match="three is refused"):
            list(runner.run(square, [1, 2, 3, 4]))
        assert dict(runner.run(square, [4])) == {0: 16}


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told(tmp_path):
    with (
        pytest.raises(MachineError, match="a worker process was killed"),
        open_runner(workers=2, dask=None, shared=tmp_path) as runner,
    ):
        list(runner.run(die, [1, 2]))


def test_the_number_of_workers_is_that_of_the_cores_and_small():
    assert 1 <= default_workers() <= 4


@pytest.fixture(scope="module")
def cluster():
    """A Dask cluster of two worker processes on this machine."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_dask_cluster_makes_the_same_store_byte_for_byte(tmp_path, monkeypatch, cluster):
    monkeypatch.setattr(pipeline, "PART_VALUES", 1_000)
    data = settings(write_shards(tmp_path))
    prepare_store(data, tmp_path / "here")
    prepare_store(data, tmp_path / "there", dask=cluster.scheduler_address)
    assert digest(tmp_path / "there") == digest(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_dask_workers_that_do_not_see_the_folder_are_told(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr("core.cells.prepare.runners._sees", lambda path: False)  # as if elsewhere
    with (
        pytest.raises(MachineError, match="2 of 2 Dask workers do not see this folder"),
        open_runner(workers=1, dask=cluster.scheduler_address, shared=tmp_path),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_workers_end_with_their_parent_however_it_ends(tmp_path):
    code = """
import os, signal, sys, time
from pathlib import Path
from core.cells.prepare.runners import open_runner
def note(path):
    Path(path, str(os.getpid())).touch()
    time.sleep(0.2)
if __name__ == "__main__":
    with open_runner(workers=2, dask=None, shared=Path(sys.argv[1])) as runner:
        for number, _ in runner.run(note, [sys.argv[1]] * 8):
            os.kill(os.getpid(), signal.SIGKILL)
"""
    script = tmp_path / "parent.py"
    script.write_text(code)
    folder = tmp_path / "workers"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    # stderr is inherited by the workers: the call returns when the last of them has ended.
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, stderr=subprocess.PIPE,
        timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == -9
    workers = [int(path.name) for path in folder.iterdir()]
    assert workers
    for worker in workers:  # nobody may have collected what is left of an orphan
        assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie"
