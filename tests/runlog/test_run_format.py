"""docs/run-format.md describes what the code does."""

import json
import re
from pathlib import Path

import pytest
import torch

from core.folders import LOCK_FILE
from core.runlog import RunReader, schema
from core.runlog.schema import metric_info
from core.training import engine
from core.training.machine import EncoderFlops
from core.training.run_log import MachineReader
from core.training.trackers import IDS_FILE, TENSORBOARD_FOLDER, TRACKER_KINDS
from tests.training.test_engine import short

PAGE = (Path(__file__).parents[2] / "docs" / "run-format.md").read_text(encoding="utf-8")


def section(title):
    """Return the text below a heading, without the headings below it."""
    (_, text) = PAGE.split(f"\n## {title}\n")
    return text.split("\n## ")[0]


def named_in(text):
    """Return what the first column of the tables of a text names."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_store):
    folder = tmp_path_factory.mktemp("runs") / "run"
    engine.train(short(), tiny_store, folder)
    return folder


def test_every_file_of_the_schema_is_named():
    names = [
        schema.RUN_FILE, schema.CONFIG_FILE, schema.STATUS_FILE, schema.METRICS_FILE,
        schema.EVENTS_FILE, schema.system_file("HOST"), schema.LOG_FILE,
        f"{schema.CHECKPOINTS_FOLDER}/", f"{schema.MODEL_FOLDER}/", f"{TENSORBOARD_FOLDER}/",
        IDS_FILE, LOCK_FILE,
    ]  # fmt: skip
    tree = PAGE.split("runs/NAME/")[1].split("\n\n")[0]
    for name in names:
        assert re.search(rf"^ +{re.escape(name)}[ ,]", tree, re.MULTILINE), name
    assert schema.CHECKPOINT_MARKER in section("checkpoints/")


def test_a_run_of_today_has_what_the_page_says(run_folder):
    run = json.loads((run_folder / schema.RUN_FILE).read_text())
    assert set(run) == named_in(section("run.json"))
    status = RunReader(run_folder).status
    assert set(status) == named_in(section("status.json")) - {"error"}
    assert (run_folder / schema.MODEL_FOLDER).is_dir()
    (checkpoint, *_) = (run_folder / schema.CHECKPOINTS_FOLDER).iterdir()
    assert re.fullmatch(r"step-\d{8}", checkpoint.name)
    assert (checkpoint / schema.CHECKPOINT_MARKER).is_file()
    known = PAGE.split("runs/NAME/")[1].split("\n\n")[0]
    for path in run_folder.iterdir():
        assert re.sub(r"^system-.*\.jsonl$", "system-HOST.jsonl", path.name) in known


def test_every_state_is_named_with_the_silence_it_means():
    text = section("status.json") + section("work.json")
    for state in schema.SEEN_STATES:
        assert f"`{state}`" in text
    assert f"older than {schema.STALE_AFTER_SECONDS:.0f} seconds" in text
    assert f"after {schema.CRASHED_AFTER_SECONDS / 60:.0f}\nminutes" in text
    assert f"every {schema.STATUS_SECONDS:.0f} seconds" in section("system-HOST.jsonl")


def documented_metrics():
    rows = [line for line in section("metrics.jsonl").splitlines() if line.startswith("| `")]
    for row in rows:
        names, unit, better, *_ = (cell.strip() for cell in row.strip("|").split("|"))
        for name in re.findall(r"`([^`]+)`", names):
            yield name, unit, better


def test_every_metric_is_named_with_its_direction_and_unit(run_folder):
    documented = {name: (unit, better) for name, unit, better in documented_metrics()}
    for name, (unit, better) in documented.items():
        info = metric_info(name)
        assert (info.better or "") == better, name
        assert unit == (info.unit or unit), name
    registry = {*schema._METRICS, *(f"{group}/NAME" for group in schema._GROUPS)}
    assert registry - set(documented) == {"loss/NAME"}  # its two members are named
    written = {name for line in RunReader(run_folder).metrics() for name in line}
    for name in written - schema.RESERVED_METRIC_KEYS:
        assert name in documented or f"{name.split('/')[0]}/NAME" in documented


def test_every_event_is_named_and_the_code_writes_no_other(run_folder):
    text = section("events.jsonl")
    assert named_in(text) == set(schema.EVENTS)
    written = set()
    for path in (Path(engine.__file__).parent).glob("*.py"):
        written |= set(re.findall(r"\.event\(\s*\"(\w+)\"", path.read_text(encoding="utf-8")))
    assert written == set(schema.EVENTS)
    rows = {line.split("|")[1].strip(" `"): line for line in text.splitlines() if "| `" in line}
    for event in RunReader(run_folder).events():
        for field in event.keys() - {"event", "t"}:
            assert f"`{field}`" in rows[event["event"]]


def test_every_figure_of_a_machine_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in (
        "get_device_name", "utilization", "temperature", "power_draw", "max_memory_allocated",
        "get_device_properties", "mem_get_info",
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda index, name=name: GPU[name])
    load = MachineReader(tmp_path, torch.device("cuda")).read()
    (gpu,) = load["gpus"]
    of_training = {"cells_per_second", "tokens_per_second", "wait", "mfu"}
    assert named_in(section("system-HOST.jsonl")) == {*load, *gpu, *of_training}


class _Properties:
    total_memory = 100


GPU = {
    "get_device_name": "GPU", "utilization": 50, "temperature": 60, "power_draw": 350_000,
    "max_memory_allocated": 10, "get_device_properties": _Properties, "mem_get_info": (40, 100),
}  # fmt: skip


def test_the_formula_of_utilisation_is_that_of_the_code():
    formula = re.search(r"mfu = \((.+)\) · tokens_per_second / peak", section("metrics.jsonl"))[1]
    python = formula.replace("·", "*").replace("L̄", "length")
    values = {"P": 1000, "Q": 200, "r": 0.25, "layers": 3, "d": 64, "length": 17.5}
    flops = EncoderFlops(parameters=1000, layers=3, width=64, output_parameters=200)
    assert eval(python, values) == flops.per_token(17.5, 0.25)


def test_every_tracker_is_named():
    assert json.dumps(list(TRACKER_KINDS)) in section("Trackers")


def test_the_version_is_that_of_the_code():
    assert PAGE.startswith(f"# The run folder (format {schema.FORMAT_VERSION})\n")
    rows = re.findall(r"^\| (\d+) \|", section("Versions"), re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, schema.FORMAT_VERSION + 1))


def test_the_example_in_python_runs(run_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "base").symlink_to(run_folder)
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"^    (.*)$", section("From Python"), re.MULTILINE)
    found = {}
    exec("\n".join(code), found)
    assert capsys.readouterr().out == "base finished 12\n"
    assert len(found["losses"]) == 12
