import errno
import json
import logging
import os
import shutil
import threading

import pytest

from core.errors import MachineError
from core.runlog import RunReader, RunWriter, SystemLog
from core.runlog.schema import STATUS_SECONDS


class Clock:
    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "base"


@pytest.fixture
def writer(folder, clock):
    with RunWriter(folder, run={"preset_hash": "abc", "parameters": 12}, clock=clock) as writer:
        yield writer


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_run_json_says_what_the_run_is_and_who_runs_it(writer, folder):
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert run["format"] == 1
    assert (run["preset_hash"], run["parameters"]) == ("abc", 12)
    assert (run["pid"], run["started"]) == (os.getpid(), 1000.0)
    assert {"argv", "host", "job", "commit", "cwd", "python", "tfx"} <= set(run)


def test_a_continued_run_keeps_its_run_json_and_appends(writer, folder, clock):
    writer.metrics(1, "train", {"loss": 1.0})
    writer.close()
    with RunWriter(folder, run={"preset_hash": "other"}, clock=clock) as second:
        second.metrics(2, "train", {"loss": 0.5})
    assert RunReader(folder).run["preset_hash"] == "abc"
    assert [record["step"] for record in RunReader(folder).metrics()] == [1, 2]


def test_the_resolved_preset_is_written_as_given(folder):
    RunWriter(folder, run={}, config="[data]\n").close()
    assert (folder / "config.toml").read_text(encoding="utf-8") == "[data]\n"


def test_status_is_replaced_when_the_state_changes_else_every_few_seconds(writer, folder, clock):
    reader = RunReader(folder)
    assert reader.status == {}
    writer.status("running", step=1, total=10)
    writer.status("running", step=2)
    assert reader.status["step"] == 1
    clock.now += STATUS_SECONDS
    writer.status("running", step=3)
    assert reader.status == {
        "state": "running",
        "started": 1000.0,
        "step": 3,
        "total": 10,
        "heartbeat": 1005.0,
    }
    writer.status("finished", step=10)
    assert (reader.status["state"], reader.status["step"]) == ("finished", 10)


def test_closing_writes_the_status_that_was_held_back(writer, folder):
    writer.status("running", step=1)
    writer.status("running", step=2)
    writer.close()
    assert RunReader(folder).status["step"] == 2


def test_numbers_that_are_not_finite_are_null_and_named(writer, folder):
    writer.metrics(3, "train", {"loss": float("nan"), "acc/sex": 0.5, "big": float("inf")})
    writer.event("nonfinite", values={"loss": [1.0, float("-inf")]})
    assert lines_of(folder / "metrics.jsonl") == [
        {
            "step": 3,
            "t": 1000.0,
            "split": "train",
            "loss": None,
            "acc/sex": 0.5,
            "big": None,
            "nonfinite": ["loss", "big"],
        }
    ]
    (event,) = RunReader(folder).events()
    assert event["values"] == {"loss": [1.0, None]}
    assert event["nonfinite"] == ["values.loss[1]"]


def test_what_is_no_json_is_written_as_text_or_number(writer, folder):
    np = pytest.importorskip("numpy")
    writer.event("eval", path=folder, score=np.float32(0.5), counts=np.arange(2), other=object)
    (event,) = RunReader(folder).events()
    assert (event["path"], event["score"], event["counts"]) == (str(folder), 0.5, [0, 1])
    assert event["other"] == str(object)


def test_metrics_cannot_take_the_names_of_the_line(writer):
    with pytest.raises(AssertionError, match="step"):
        writer.metrics(1, "train", {"step": 2.0})


def test_a_resume_without_its_step_is_a_mistake(writer):
    with pytest.raises(AssertionError):
        writer.event("resume")


def test_a_line_torn_by_a_crash_does_not_spoil_the_next(writer, folder, clock):
    writer.metrics(1, "train", {"loss": 1.0})
    writer.close()
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    with RunWriter(folder, run={}, clock=clock) as second:
        second.metrics(2, "train", {"loss": 0.5})
    reader = RunReader(folder)
    assert [record["step"] for record in reader.metrics()] == [1, 2]
    assert reader.bad_lines == 1


def test_a_full_disk_warns_once_and_never_raises(writer, folder, monkeypatch, caplog):
    real_write = os.write

    def short_write(descriptor, data):
        return real_write(descriptor, data[:5])

    monkeypatch.setattr(os, "write", short_write)
    writer.metrics(1, "train", {"loss": 1.0})
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    writer.metrics(2, "train", {"loss": 1.0})
    monkeypatch.setattr(os, "write", real_write)
    writer.metrics(3, "train", {"loss": 1.0})
    reader = RunReader(folder)
    assert [record["step"] for record in reader.metrics()] == [3]
    assert reader.bad_lines == 1
    assert len(caplog.records) == 1
    assert "metrics.jsonl cannot be written" in caplog.text


def test_the_log_goes_to_log_txt(writer, folder):
    logger = logging.getLogger("tests.runlog")
    logger.addHandler(writer.log_handler)
    try:
        logger.warning("a word")
    finally:
        logger.removeHandler(writer.log_handler)
    writer.close()
    assert "WARNING tests.runlog: a word" in (folder / "log.txt").read_text(encoding="utf-8")


def test_each_machine_logs_itself_in_its_own_file(writer, folder, clock):
    writer.system(cpu=0.5)
    ((host, records),) = RunReader(folder).system().items()
    assert records == [{"t": 1000.0, "cpu": 0.5}]
    assert (folder / f"system-{host}.jsonl").is_file()


def test_a_folder_that_cannot_be_made_is_a_fault_of_the_machine(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(MachineError, match=r"the run folder .* cannot be written"):
        RunWriter(tmp_path / "file" / "run", run={})


def test_a_heartbeat_renews_the_status_of_a_live_run_only(writer, folder, clock):
    reader = RunReader(folder)
    writer.heartbeat()
    assert reader.status == {}
    writer.status("running", step=1)
    clock.now += 1
    writer.heartbeat()
    assert (reader.status["heartbeat"], reader.status["step"]) == (1001.0, 1)
    writer.status("finished")
    clock.now += 60
    writer.heartbeat()
    assert (reader.status["state"], reader.status["heartbeat"]) == ("finished", 1001.0)


def test_a_closed_writer_lets_the_threads_that_watch_it_run_out(writer, folder, clock):
    writer.status("running", step=1)
    writer.close()
    clock.now += 60
    writer.heartbeat()
    writer.system(cpu_percent=1.0)
    assert RunReader(folder).status["heartbeat"] == 1000.0
    assert RunReader(folder).system() == {}


def test_a_status_that_cannot_be_written_is_said_once(writer, folder, clock, caplog):
    (folder / "status.json").mkdir()  # nothing can be renamed to it
    for _ in range(3):
        clock.now += STATUS_SECONDS
        writer.status("running", step=1)
        writer.heartbeat()
    (record,) = caplog.records
    assert "status.json cannot be written" in record.getMessage()


def test_several_threads_write_whole_lines_and_statuses(folder, caplog):
    n_lines = 100
    with RunWriter(folder, run={}) as writer:
        writer.status("running", step=0)

        def train(split):
            for step in range(n_lines):
                writer.metrics(step, split, {"loss": 1.0, "text": "x" * 500})

        def watch():
            for _ in range(n_lines):
                writer.heartbeat()
                writer.system(cpu_percent=1.0)

        threads = [threading.Thread(target=train, args=(split,)) for split in ("train", "test")]
        threads += [threading.Thread(target=watch) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    reader = RunReader(folder)
    assert len(reader.metrics("train")) == len(reader.metrics("test")) == n_lines
    ((_, machine),) = reader.system().items()
    assert len(machine) == 2 * n_lines
    assert reader.bad_lines == 0
    assert reader.status["state"] == "running"
    assert caplog.records == []  # two writers of one status would take its file from each other
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_the_first_process_of_another_node_logs_its_machine(writer, folder, clock):
    log = SystemLog(folder, host="node 7/b", clock=clock)
    log.append(cpu_percent=7.0)
    log.close()
    assert RunReader(folder).system() == {"node-7-b": [{"t": 1000.0, "cpu_percent": 7.0}]}


@pytest.mark.parametrize("written", [0, 1])
def test_a_disk_that_is_full_at_the_start_leaves_no_run(tmp_path, monkeypatch, written):
    """A folder becomes a run by run.json, so the preset, without which none can continue, comes first."""
    from pathlib import Path

    from core.runlog.reader import list_runs

    replace, names = Path.replace, []

    def fail(temporary, path):
        if len(names) >= written:
            raise OSError(errno.ENOSPC, "No space left on device")
        names.append(path.name)
        return replace(temporary, path)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(MachineError, match="cannot be written"):
        RunWriter(tmp_path / "run", run={}, config="[data]\n")
    assert names == ["config.toml"][:written]
    assert list_runs(tmp_path) == []


def test_a_run_folder_of_a_stranger_leads_to_no_other_file(folder, clock, tmp_path, caplog):
    """A link in place of a file that lines are added to is refused; nothing is written elsewhere."""
    mine = tmp_path / "mine"
    mine.write_text("precious")
    for name in ("log.txt", "metrics.jsonl", "events.jsonl"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(mine)
        if name == "log.txt":
            with pytest.raises(MachineError, match=r"log\.txt is a link, a pipe"):
                RunWriter(folder, run={}, clock=clock)
        else:
            with RunWriter(folder, run={}, clock=clock) as writer:
                writer.metrics(1, "train", {"loss": 1.0})
                writer.event("start")
            assert f"cannot be written ({name} is a link" in caplog.text
        assert mine.read_text() == "precious"
        shutil.rmtree(folder)


def test_no_line_of_the_log_is_a_command(writer, folder):
    record = logging.LogRecord("core", logging.INFO, "x.py", 1, "a\x1b]52;c;x\x07", None, None)
    writer.log_handler.emit(record)
    writer.close()
    assert "a\\x1b]52;c;x\\x07" in (folder / "log.txt").read_text(encoding="utf-8")
