"""Children of the dashboard: the one that generates, and trainings."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigurationError, MachineError
from tfx_cli.dashboard import processes
from tfx_cli.dashboard.processes import (
    GeneratorProcess,
    Launch,
    RunProcesses,
    forecast,
    process_to_stop,
    send_stop,
)

CHILD = str(Path(__file__).parent / "fake_child.py")


class Talk:
    """A generating child and its events."""

    def __init__(self, *options):
        self.events = []
        self.child = GeneratorProcess(
            "m", self.events.append, command=(sys.executable, CHILD, *options)
        )

    async def until(self, kind):
        for _ in range(1000):
            if any(event["event"] == kind for event in self.events):
                return [event for event in self.events if event["event"] == kind][-1]
            await asyncio.sleep(0.01)
        raise AssertionError(self.events)


async def test_a_warm_child_generates_on_request():
    one = Talk()
    await one.child.send({"id": 1, "request": {"sex": "female"}, "cells": 5})
    cells = await one.until("cells")
    assert cells["profile"]["received"]["request"] == {"sex": "female"}
    process = one.child._process.pid
    one.events.clear()
    await one.child.send({"id": 2, "request": {}, "cells": 7})
    assert (await one.until("cells"))["cells"] == 7
    assert one.child._process.pid == process
    await one.child.stop()
    assert not one.child.is_running
    kinds = [event["event"] for event in one.events]
    assert kinds == ["progress", "progress", "cells", "exit"]
    assert one.events[-1]["message"] == ""


async def test_a_child_that_cannot_load_explains_why():
    one = Talk("--broken")
    await one.child.send({"id": 1, "request": {}, "cells": 5})
    event = await one.until("exit")
    assert event["message"] == (
        "the generating process ended with exit code 4: the model folder is damaged"
    )
    await one.child.stop()


async def test_children_start_in_a_folder_with_packages_named_as_ours(
    own_folders, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    events = []
    child = GeneratorProcess("no-such-run", events.append)
    await child.send({"id": 1, "request": {}, "cells": 5})
    await child._reading
    assert "there is no run 'no-such-run'" in events[-1]["message"]


async def test_a_child_that_dies_is_started_again_by_the_next_request():
    one = Talk()
    await one.child.send({"id": 1, "request": {"sex": "dies"}, "cells": 5})
    assert "exit code 3" in (await one.until("exit"))["message"]
    await one.child.send({"id": 2, "request": {}, "cells": 5})
    await one.until("cells")
    await one.child.stop()


async def test_a_busy_child_ends_when_it_is_stopped():
    one = Talk()
    await one.child.send({"id": 1, "request": {"sex": "slow"}, "cells": 5})
    await one.until("progress")
    process = one.child._process
    await one.child.stop()
    assert process.returncode == -signal.SIGTERM


# -- trainings
def test_the_process_of_a_run_of_this_machine_can_be_stopped():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        status = {"host": socket.gethostname(), "pid": child.pid}
        assert process_to_stop(status) == child.pid
        send_stop(child.pid)
        assert child.wait(10) == -signal.SIGTERM
        send_stop(child.pid)  # it is gone: nothing happens
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"host": "node-7", "pid": 77}, "the run is on node-7: stop it there by 'kill -TERM 77'"),
        ({"host": socket.gethostname(), "pid": 2**22 + 1}, "is gone; resume the run with u"),
        ({"host": socket.gethostname(), "pid": True}, "has not recorded its process"),
        ({"host": socket.gethostname(), "pid": -1}, "has not recorded its process"),
        ({}, "has not recorded its process"),
    ],
)
def test_a_run_that_cannot_be_stopped_from_here_is_explained(status, message):
    with pytest.raises(ConfigurationError, match=message):
        process_to_stop(status)


def test_a_run_whose_name_is_taken_is_not_started(tmp_path):
    (tmp_path / "runs" / "base" / "mine").mkdir(parents=True)
    processes = RunProcesses()
    with pytest.raises(ConfigurationError, match="exists; choose another name"):
        processes.start("base", "base", [], tmp_path / "runs")
    with pytest.raises(ConfigurationError, match="writes to a folder 'runs', not to"):
        processes.start("base", "base", [], tmp_path / "experiments")


def test_a_training_that_fails_is_reported_once_with_its_error(own_folders, tmp_path):
    processes = RunProcesses()
    (tmp_path / "wrong.toml").write_text("[train]\nlearning_rate = -1\n")
    for _ in range(2):  # the folder that says why there is no run is taken by the next
        launch = processes.start(str(tmp_path / "wrong.toml"), "mine", [], tmp_path / "runs")
        assert processes.launches[launch.path] is launch
        launch.process.wait(60)
        assert not processes.started_here(launch.path)
        (failed,) = processes.ended()
        assert "train.learning_rate: must be greater than 0" in failed.error()
        assert failed.error().startswith("Error:")
        assert processes.ended() == []
    assert launch.log == tmp_path / "runs" / "mine" / "output.txt"
    assert launch.log.read_text().count("$ tfx train ") == 2


def test_the_output_of_a_process_is_read_without_control_characters(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(
        b"$ tfx train x\nError: old\n$ tfx train x\n\x1b[2K\x1b[1mone\x1b[0m\n\ntwo\r\n"
        + b"three \xff\n"
    )
    launch = Launch("runs/x", "train", None, log)
    assert launch.last_lines(2) == ["two", "three �"]
    assert launch.last_lines(9)[0] == "one"  # of the last command alone
    assert launch.error() == "three �"
    log.unlink()
    assert launch.last_lines(2) == []


def test_a_training_of_the_dashboard_is_not_in_its_session(tmp_path):
    launch = RunProcesses().start("no-such-preset", "mine", [], tmp_path / "runs")
    try:
        assert os.getsid(launch.process.pid) != os.getsid(0)
    except ProcessLookupError:
        pytest.skip("it ended too soon")
    finally:
        launch.process.wait(60)


async def test_a_forecast_is_read_and_a_cancelled_one_leaves_no_process(monkeypatch, tmp_path):
    """A stand-in for `tfx train --dry-run --json`: prints its arguments, fails or waits by its preset."""
    script = (
        "import json, os, sys, time\n"
        "if 'bad' in sys.argv: sys.exit('Error: no cells')\n"
        "open('pid', 'w').write(str(os.getpid()))\n"
        "if 'slow' in sys.argv: time.sleep(60)\n"
        "print(json.dumps({'arguments': sys.argv[1:], 'folder': os.getcwd()}))\n"
    )
    monkeypatch.setattr(processes, "_TFX", (sys.executable, "-c", script))
    root = tmp_path / "runs"
    found = await forecast("base", "b", ["train.max_steps=9"], root)
    assert found["folder"] == str(tmp_path)
    wanted = "train base --run b --set train.max_steps=9 --dry-run --json"
    assert found["arguments"] == wanted.split()
    with pytest.raises(MachineError, match="no cells"):
        await forecast("bad", "b", [], root)
    (tmp_path / "pid").unlink()
    task = asyncio.create_task(forecast("slow", "b", [], root))
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
