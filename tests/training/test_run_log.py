import json
import logging
import threading

import pytest
import torch

from core.runlog import RunReader, RunWriter, SystemLog
from core.training import run_log
from core.training.run_log import MachineReader, SystemMonitor

CPU = torch.device("cpu")


class Collected:
    """Takes what is logged, and lets a test wait for it."""

    def __init__(self):
        self.lines = []
        self.changed = threading.Condition()

    def __call__(self, **fields):
        with self.changed:
            self.lines.append(fields)
            self.changed.notify_all()

    def wait_for(self, n_lines):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.lines) >= n_lines, timeout=60)


def broken(*_, **__):
    message = "no such driver"
    raise RuntimeError(message)


def test_a_reading_says_how_process_machine_and_disk_fare(tmp_path):
    fields = MachineReader(tmp_path, CPU).read()
    assert set(fields) == {
        "cpu_percent",
        "process_cpu_percent",
        "process_memory",
        "memory_available",
        "memory_total",
        "disk_free",
    }
    assert 0 < fields["process_memory"] < fields["memory_total"]
    assert fields["memory_available"] <= fields["memory_total"]
    assert fields["disk_free"] > 0
    json.dumps(fields, allow_nan=False)


def test_what_cannot_be_read_is_left_out_and_not_read_again(tmp_path, monkeypatch):
    calls = []

    def missing(path):
        calls.append(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(run_log.shutil, "disk_usage", missing)
    reader = MachineReader(tmp_path, CPU)
    for _ in range(2):
        fields = reader.read()
        assert "disk_free" not in fields
        assert "memory_total" in fields
    assert calls == [tmp_path]


def test_a_gpu_without_its_management_library_still_reports_its_memory(tmp_path, monkeypatch):
    class Properties:
        total_memory = 100

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(cuda, "mem_get_info", lambda index: (70, 100) if index == 1 else broken())
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda index: 20)
    for name in ("utilization", "temperature", "power_draw", "device_memory_used"):
        monkeypatch.setattr(cuda, name, broken)
    assert MachineReader(tmp_path, torch.device("cuda", 1)).read()["gpus"] == [
        {"index": 0, "name": "GPU 0", "memory_total": 100},
        {"index": 1, "name": "GPU 1", "memory_used": 30, "memory_total": 100, "memory_peak": 20},
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_memory_of_a_real_gpu_is_read(tmp_path):
    held = torch.zeros(1 << 20, device="cuda")
    gpu = MachineReader(tmp_path, torch.device("cuda")).read()["gpus"][0]
    assert held.nbytes <= gpu["memory_peak"] <= gpu["memory_used"] <= gpu["memory_total"]
    assert gpu["name"] == torch.cuda.get_device_name(0)


def test_lines_come_regularly_with_the_latest_speeds_of_training(tmp_path):
    log, beats = Collected(), Collected()
    with SystemMonitor(MachineReader(tmp_path, CPU), log, heartbeat=beats, seconds=0.01) as monitor:
        log.wait_for(1)
        monitor.report(wait=0.25, mfu=0.5)
        log.wait_for(len(log.lines) + 2)
        assert (log.lines[-1]["wait"], log.lines[-1]["mfu"]) == (0.25, 0.5)
        monitor.report(mfu=None)
        log.wait_for(len(log.lines) + 2)
        assert log.lines[-1]["wait"] == 0.25
        assert "mfu" not in log.lines[-1]
        beats.wait_for(3)
    assert "wait" not in log.lines[0]
    assert not any(thread.name == "tfx-system-monitor" for thread in threading.enumerate())
    n_lines = len(log.lines)
    threading.Event().wait(0.05)
    assert len(log.lines) == n_lines


def test_a_run_shorter_than_the_interval_leaves_one_line(tmp_path):
    log, beats = Collected(), Collected()
    with SystemMonitor(MachineReader(tmp_path, CPU), log, heartbeat=beats, seconds=3600):
        pass
    assert len(log.lines) == 1
    assert beats.lines == []


def test_what_fails_is_said_once_and_never_reaches_the_run(tmp_path, caplog):
    beats = Collected()

    def failing_heartbeat():
        beats()
        broken()

    with (
        caplog.at_level(logging.WARNING),
        SystemMonitor(
            MachineReader(tmp_path, CPU), broken, heartbeat=failing_heartbeat, seconds=0.01
        ),
    ):
        beats.wait_for(3)
    assert [record.getMessage() for record in caplog.records] == [
        "the machine cannot be watched (no such driver); the run continues"
    ]


def test_the_heartbeat_continues_while_training_is_silent(tmp_path):
    times = iter(range(1000, 10**9))
    with RunWriter(tmp_path / "run", run={}, clock=lambda: float(next(times))) as writer:
        writer.status("running", step=1)
        reader = RunReader(tmp_path / "run")
        first = reader.status["heartbeat"]
        beats = Collected()

        def heartbeat():
            writer.heartbeat()
            beats()

        machine = MachineReader(tmp_path, CPU)
        with SystemMonitor(machine, writer.system, heartbeat=heartbeat, seconds=0.01):
            beats.wait_for(2)
        assert reader.status["heartbeat"] > first
        assert (reader.status["state"], reader.status["step"]) == ("running", 1)
    ((_, lines),) = reader.system().items()
    assert all("process_memory" in line for line in lines)


def test_another_node_logs_into_a_file_of_its_own(tmp_path):
    log = SystemLog(tmp_path, host="node-2")
    with SystemMonitor(MachineReader(tmp_path, CPU), log.append, seconds=3600):
        pass
    log.close()
    (line,) = (tmp_path / "system-node-2.jsonl").read_text().splitlines()
    assert json.loads(line)["memory_total"] > 0
