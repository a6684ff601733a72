import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigurationError
from core.runlog import RunReader, RunWriter, find_run, list_runs, metric_info
from core.runlog.history import read_latest_metrics
from core.runlog.json_lines import LineFollower

RELEASES = Path(__file__).parent / "releases"


@pytest.fixture
def folder(tmp_path):
    with RunWriter(tmp_path / "base", run={}):
        pass
    return tmp_path / "base"


def append(path, text):
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def make_run(root, name, *, started, **status):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"format": 1, "started": started}))
    if status:
        (folder / "status.json").write_text(json.dumps(status))
    return folder


def test_metrics_of_one_split_are_picked(folder):
    with RunWriter(folder, run={}) as writer:
        writer.metrics(1, "train", {"loss": 1.0})
        writer.metrics(1, "validation", {"loss": 2.0, "acc/sex": 0.5})
    reader = RunReader(folder)
    assert [record["loss"] for record in reader.metrics()] == [1.0, 2.0]
    assert [record["acc/sex"] for record in reader.metrics("validation")] == [0.5]


def test_a_resume_folds_back_the_steps_that_are_run_again(folder):
    with RunWriter(folder, run={}) as writer:
        for step in (1, 2, 3, 4):
            writer.metrics(step, "train", {"loss": 1.0})
        reader = RunReader(folder)
        assert len(reader.metrics()) == 4
        writer.event("resume", from_step=3)
        assert [record["step"] for record in reader.metrics()] == [1, 2]
        writer.metrics(3, "train", {"loss": 0.5})
    for one in (reader, RunReader(folder)):
        assert [(r["step"], r["loss"]) for r in one.metrics()] == [(1, 1.0), (2, 1.0), (3, 0.5)]
    assert [event["event"] for event in reader.events()] == ["resume"]


def test_a_run_that_begins_anew_voids_what_it_wrote_before_it_died(folder):
    for _ in range(2):  # killed before its first checkpoint
        with RunWriter(folder, run={}) as writer:
            writer.event("start", total=9)
            writer.metrics(1, "train", {"loss": 1.0})
            writer.metrics(2, "train", {"loss": 0.5})
    reader = RunReader(folder)
    assert [record["step"] for record in reader.metrics()] == [1, 2]
    assert [event["event"] for event in reader.events()] == ["start", "start"]
    assert read_latest_metrics(folder).train["step"] == 2


@given(st.lists(st.integers(0, 9) | st.integers(0, 9).map(lambda n: -n - 1), max_size=30))
def test_folding_equals_rerunning_in_memory(tmp_path_factory, script):
    folder = tmp_path_factory.mktemp("run")
    expected = []
    with RunWriter(folder, run={}) as writer:
        for number in script:
            if number >= 0:
                writer.metrics(number, "train", {"loss": 0.0})
                expected.append(number)
            else:
                writer.event("resume", from_step=-number - 1)
                expected = [step for step in expected if step < -number - 1]
    assert [record["step"] for record in RunReader(folder).metrics()] == expected


def test_a_torn_last_line_is_not_read_until_it_is_whole(folder):
    path = folder / "metrics.jsonl"
    append(path, '{"step": 1, "split": "train"}\n{"step": 2, "spl')
    reader = RunReader(folder)
    assert [record["step"] for record in reader.metrics()] == [1]
    assert reader.bad_lines == 0
    append(path, 'it": "train"}\n')
    assert [record["step"] for record in reader.metrics()] == [1, 2]


def test_bad_lines_are_left_out_and_counted(folder):
    append(
        folder / "metrics.jsonl",
        'nonsense\n[1]\n\n{"split": "train"}\n{"step": "2"}\n{"step": 3}\n' + "[" * 100_000 + "\n",
    )
    append(folder / "events.jsonl", '{"event": "start"}\n\x00\n')
    reader = RunReader(folder)
    assert [record["step"] for record in reader.metrics()] == [3]
    assert len(reader.events()) == 1
    assert reader.bad_lines == 6


def test_a_file_that_shrank_or_was_replaced_is_read_anew(folder):
    path = folder / "metrics.jsonl"
    append(path, '{"step": 1}\n{"step": 2}\n')
    reader = RunReader(folder)
    assert len(reader.metrics()) == 2
    path.write_text('{"step": 7}\n', encoding="utf-8")
    assert [record["step"] for record in reader.metrics()] == [7]
    other = path.with_name("other")
    other.write_text('{"step": 8}\n{"step": 9}\n', encoding="utf-8")
    other.replace(path)
    assert [record["step"] for record in reader.metrics()] == [8, 9]


@given(st.lists(st.binary(), max_size=6))
def test_a_follower_reads_any_bytes_and_nothing_twice(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("lines") / "file.jsonl"
    follower = LineFollower(path)
    assert follower.poll() == []
    seen = []
    for piece in pieces:
        with path.open("ab") as file:
            file.write(piece)
        seen += follower.poll()
    whole = LineFollower(path)
    assert whole.poll() == seen
    assert whole.bad_lines == follower.bad_lines


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"is not a run folder: .* run\.json"):
        RunReader(tmp_path)


def test_a_run_of_a_newer_format_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"format": 99}')
    with pytest.raises(ConfigurationError, match="format 99, this tfx reads up to 1: update tfx"):
        RunReader(tmp_path)


@pytest.mark.parametrize(
    ("silence", "state"), [(0, "running"), (15, "running"), (16, "stale"), (601, "crashed")]
)
def test_a_silent_live_run_is_stale_then_presumed_crashed(tmp_path, silence, state):
    folder = make_run(tmp_path, "a", started=1.0, state="running", heartbeat=100.0, step=3, total=9)
    summary = RunReader(folder).summary(now=100.0 + silence)
    assert (summary.state, summary.step, summary.total) == (state, 3, 9)


def test_a_finished_run_is_never_stale(tmp_path):
    folder = make_run(tmp_path, "a", started=1.0, state="finished", heartbeat=100.0)
    assert RunReader(folder).summary(now=1e9).state == "finished"


def test_runs_are_listed_newest_first_and_a_resume_makes_a_run_newest(tmp_path):
    make_run(tmp_path, "old", started=1.0, state="finished")
    make_run(tmp_path, "new", started=2.0)
    make_run(tmp_path, "resumed", started=0.5)
    (tmp_path / "resumed" / "status.json").write_text('{"state": "running", "started": 3.0}')
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert [run.name for run in list_runs(tmp_path)] == ["resumed", "new", "old"]
    assert find_run(tmp_path, None) == tmp_path / "resumed"


def test_a_run_is_found_by_name_or_path(tmp_path):
    folder = make_run(tmp_path / "runs", "base", started=1.0)
    assert find_run(tmp_path / "runs", "base") == folder
    assert find_run(tmp_path / "elsewhere", folder) == folder


def test_an_unknown_run_names_the_nearest(tmp_path):
    make_run(tmp_path, "base", started=1.0)
    with pytest.raises(ConfigurationError, match=r"no run 'bsae' in .*; did you mean 'base'"):
        find_run(tmp_path, "bsae")
    with pytest.raises(ConfigurationError, match=r"no run '\x00x' in .*; the newest is 'base'"):
        find_run(tmp_path, "\0x")


def test_no_runs_at_all_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(ConfigurationError, match=r"there are no runs in .*'tfx train PRESET'"):
        find_run(tmp_path / "runs", None)


@pytest.mark.parametrize("folder", sorted(RELEASES.iterdir()), ids=lambda path: path.name)
def test_runs_of_every_release_are_read(folder):
    reader = RunReader(folder)
    assert reader.run["parameters"] == 1234
    assert [record["step"] for record in reader.metrics("train")] == [1, 2, 3, 4]
    assert [record["loss"] for record in reader.metrics("train")] == [2.0, 1.5, None, 1.1]
    assert reader.metrics("validation")[-1]["acc/cell_type"] == 0.75
    assert [event["event"] for event in reader.events()] == ["start", "checkpoint", "resume", "end"]
    assert reader.status["checkpoint"] == "step-2"
    assert reader.system()["node-1"][0]["cpu"] == 0.5
    assert reader.bad_lines == 1
    assert reader.summary(now=1e12).state == "finished"


def test_metrics_are_described_by_name_or_group():
    assert metric_info("loss").better == "lower"
    assert metric_info("acc/cell_type").label == "accuracy of cell_type"
    assert metric_info("anything").label == "anything"


def test_reading_runs_loads_no_heavy_package():
    program = (
        "import sys, core.runlog, core.runlog.overview, core.runlog.export\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'anndata', 'rich', 'textual', 'pandas'}\n"
        "print(*heavy & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
