"""Whatever the files of a run hold, its reader and `tfx runs` read them or name the fault."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigurationError
from core.runlog.export import metrics_table, to_bytes
from core.runlog.history import RunCurves, read_latest_metrics
from core.runlog.overview import compare_runs, overview, run_row
from core.runlog.reader import RunReader, list_runs
from tests.fuzz.damage import damaged_bytes, damaged_json, json_values
from tests.runlog.run_folders import write_run

FILES = ["run.json", "status.json", "metrics.jsonl", "events.jsonl", "config.toml", "system"]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("fuzz") / "base")
    (system,) = folder.glob("system-*.jsonl")
    return {name: (system if name == "system" else folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzzed")
    write_run(root / "other")
    (root / "base").mkdir()
    return root


def read_everything(runs, files):
    """Write a run and call every reader of it."""
    folder = runs / "base"
    for name, content in files.items():
        (folder / ("system-x.jsonl" if name == "system" else name)).write_bytes(content)
    assert {row.name for row in list_runs(runs)} >= {"other"}
    for row in list_runs(runs, now=2e6):
        run_row(row, read_latest_metrics(row.path))
    curves = RunCurves(folder)
    curves.poll()
    for split in curves.splits.values():
        for column in split.columns.values():
            assert len(column) == len(split.steps)
            assert not any(math.isinf(value) for value in column)
    try:
        reader = RunReader(folder)
    except ConfigurationError:
        return
    assert all(isinstance(record["step"], int) for record in reader.metrics())
    reader.events()
    reader.system()
    reader.summary(now=2e6)
    overview(reader, now=2e6)
    compare_runs([reader, RunReader(runs / "other")])
    for wide in (True, False):
        columns, rows = metrics_table(reader.metrics(), form="wide" if wide else "long")
        to_bytes(columns, rows, "csv")
        to_bytes(columns, rows, "json")


@given(data=st.data())
def test_damaged_bytes(template, runs, data):
    name = data.draw(st.sampled_from(FILES))
    read_everything(runs, template | {name: data.draw(damaged_bytes(template[name]))})


@given(data=st.data())
def test_damaged_json(template, runs, data):
    name = data.draw(st.sampled_from(["run.json", "status.json"]))
    read_everything(runs, template | {name: data.draw(damaged_json(template[name]))})


@given(data=st.data())
def test_damaged_lines(template, runs, data):
    name = data.draw(st.sampled_from(["metrics.jsonl", "events.jsonl", "system"]))
    lines = template[name].splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = data.draw(damaged_json(lines[at]))
    read_everything(runs, template | {name: b"\n".join(lines) + b"\n"})


@settings(max_examples=20)
@given(data=st.data())
def test_the_commands_say_what_is_wrong(template, runs, data, capsys):
    from tfx_cli.app import run

    files = dict(template)
    for name in ("run.json", "status.json", "metrics.jsonl", "events.jsonl"):
        if data.draw(st.booleans()):
            lines = template[name].splitlines() if name.endswith("l") else [template[name]]
            at = data.draw(st.integers(0, len(lines) - 1))
            lines[at] = data.draw(damaged_json(lines[at]))
            files[name] = b"\n".join(lines) + b"\n"
    for name, content in files.items():
        (runs / "base" / ("system-x.jsonl" if name == "system" else name)).write_bytes(content)
    base, other = str(runs / "base"), str(runs / "other")
    for line in (["list", str(runs)], ["show", base], ["compare", base, other]):
        for form in ([], ["--json"]):
            code = run(["runs", *line, *form])
            said = capsys.readouterr().err
            assert code in (0, 2), said
            assert "this is a fault of tfx" not in said


@settings(max_examples=30)
@given(records=st.lists(json_values(), max_size=6))
def test_lines_of_anything(template, runs, records):
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    for name in ("metrics.jsonl", "events.jsonl"):
        read_everything(runs, template | {name: text})
