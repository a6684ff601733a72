import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from core.runlog import RunWriter, list_runs
from core.runlog.overview import run_row
from tests.runlog.run_folders import write_run
from tfx_cli.app import run
from tfx_cli.runs_text import runs_table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(tmp_path):
    return write_run(tmp_path / "runs" / "base")


@pytest.fixture
def wide(tmp_path):
    return write_run(tmp_path / "runs" / "wide", rate=0.01, losses=(3.0, 1.5))


def lines_with(text, word):
    return [line for line in text.splitlines() if word in line]


# -- list
def test_list_is_a_table_of_runs(tfx, base, wide):
    result = tfx("runs", "list")
    assert (result.code, result.stderr) == (0, "")
    (line,) = lines_with(result.stdout, "base")
    assert line.split()[:6] == ["base", "finished", "15/15", "2.0000", "2.0000", "0.425"]
    assert line.rstrip().endswith("ago")


def test_list_as_json_has_the_accuracies_of_each_phenotype(tfx, base):
    document = tfx("runs", "list", "--json").json
    assert document["schema"] == "tfx.runs.list/1"
    (one,) = document["runs"]
    assert one["accuracies"] == {"sex": 0.6, "age": 0.25}
    assert (one["path"], one["best_step"], one["eta"]) == ("runs/base", 10, None)
    assert one["age"] > 0


@pytest.mark.parametrize(
    ("sort", "names"),
    [("name", ["base", "wide"]), ("loss", ["wide", "base"]), ("step", ["base", "wide"])],
)
def test_list_can_be_sorted(tfx, base, wide, sort, names):
    document = tfx("runs", "list", "--sort", sort, "--json").json
    assert [one["name"] for one in document["runs"]] == names


def test_runs_without_the_figure_to_sort_by_come_last(tfx, base):
    with RunWriter(base.parent / "empty", run={}):
        pass
    for sort in ("loss", "accuracy"):
        document = tfx("runs", "list", "--sort", sort, "--json").json
        assert [one["name"] for one in document["runs"]] == ["base", "empty"]


def test_a_run_that_fell_silent_is_stale_or_crashed(tfx, base, monkeypatch):
    status = json.loads((base / "status.json").read_text())
    for age, state in ((5, "running"), (60, "stale"), (700, "crashed")):
        monkeypatch.setattr("time.time", lambda age=age: status["heartbeat"] + age)
        (base / "status.json").write_text(json.dumps({**status, "state": "running"}))
        assert tfx("runs", "list", "--json").json["runs"][0]["state"] == state
        listed = tfx("runs", "list", "--state", state, "--json").json["runs"]
        assert [one["name"] for one in listed] == ["base"]


def test_only_the_wanted_states_are_listed(tfx, base):
    result = tfx("runs", "list", "--state", "failed", "--state", "crashed")
    assert (result.code, result.stdout) == (0, "")
    assert "1 runs, none of them failed or crashed" in result.stderr


def test_another_folder_can_be_listed(tfx, base, tmp_path):
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert "base" in tfx("runs", "list", "elsewhere").stdout


def test_no_runs_at_all_are_no_error(tfx):
    result = tfx("runs", "list")
    assert (result.code, result.stdout) == (0, "")
    assert "no runs in 'runs'; 'tfx train PRESET' makes one" in result.stderr
    assert tfx("runs", "list", "--json").json["runs"] == []


# -- show
def test_show_prints_every_figure_as_text(tfx, base):
    result = tfx("runs", "show", "base")
    assert (result.code, result.stderr) == (0, "")
    shown = result.stdout
    assert shown.startswith("runs/base: finished, step 15 of 15 (100%), last data ")
    for text in (
        "base.toml (2), name of the file (1), --set (1), default (2)",
        "stores/k1",
        "12,345 parameters, 32 genes, sex (2)",
        "runs/base/model (2 kB, of step 10)",
        "cpu, fp32, 1 process",
        "speed, cells/s",
        "MFU 25.0% = (6 P + 12 · layers · d · L̄) · tokens/s / peak FLOP/s",
        "CPU 50 %, 1 GB of memory",
        "350 W",
        "3.0000 to 2.5000, lowest 2.0000",
    ):
        assert text in shown
    (line,) = lines_with(shown, "accuracy of sex")
    assert line.split()[3:] == ["0.700", "0.600", "0.700", "at", "15"]
    (line,) = [one for one in lines_with(shown, "step-00000010") if "path" not in one]
    assert line.split() == ["step-00000010", "10", "1", "kB", "best"]
    (line,) = [one for one in lines_with(shown, "step-00000015") if "path" not in one]
    assert line.split()[-1] == "newest"
    assert "could not be read" not in shown
    assert "\x1b" not in shown


def test_show_takes_the_newest_run_where_none_is_named(tfx, base, tmp_path):
    newer = write_run(tmp_path / "runs" / "newer")
    (newer / "run.json").write_text('{"format": 1, "started": 9e9}')
    assert tfx("runs", "show").stdout.startswith("runs/newer: ")
    assert tfx("runs", "show", "runs/base").stdout.startswith("runs/base: ")


def test_show_tells_so_many_of_the_last_events(tfx, base):
    shown = tfx("runs", "show", "base", "--events", "2").stdout
    assert "last 2 of 8 events" in shown
    assert "path: step-00000015" in shown
    assert "path: step-00000010" not in shown
    assert "events" not in tfx("runs", "show", "base", "--events", "0").stdout


def test_show_as_json_has_all_there_is(tfx, base):
    document = tfx("runs", "show", "base", "--json").json
    assert document["schema"] == "tfx.runs.show/1"
    assert (document["name"], document["kept"]["step"]) == ("base", 10)
    assert document["best"]["loss"] == {"value": 2.0, "step": 10}
    assert document["checkpoints"][1]["is_best"] is True
    assert document["metrics"]["cells_per_second"] == {
        "label": "speed", "unit": "cells/s", "better": "higher",
    }  # fmt: skip


def test_show_tells_why_a_run_failed_and_what_was_not_finite(tfx, tmp_path):
    with RunWriter(tmp_path / "runs" / "bad", run={"name": "bad"}) as writer:
        writer.metrics(1, "train", {"loss": float("nan"), "lr": 0.1})
        writer.event("nonfinite", step=1, rows=list(range(300)), loss=float("inf"))
        writer.status("failed", error="not finite for 20 steps [in a row]")
    shown = tfx("runs", "show").stdout
    assert "not finite for 20 steps [in a row]" in shown
    (line,) = lines_with(shown, "learning rate")
    assert line.split() == ["learning", "rate", "1.00e-01"]
    (line,) = [line for line in shown.splitlines() if line.startswith("loss ")]
    assert line.split() == ["loss", "not", "finite"]
    assert "rows: 300 cells" in shown


def test_lines_that_cannot_be_read_are_counted(tfx, base):
    with (base / "metrics.jsonl").open("a") as file:
        file.write('nonsense\n{"step": "x"}\n{"step": 20, "split": "tra')
    shown = tfx("runs", "show", "base")
    assert shown.code == 0
    assert "2 lines of its files could not be read and were left out" in shown.stdout


# -- compare
def test_compare_tells_what_differs_and_marks_the_best(tfx, base, wide):
    result = tfx("runs", "compare", "base", "runs/wide")
    assert (result.code, result.stderr) == (0, "")
    (line,) = lines_with(result.stdout, "train.learning_rate")
    assert line.split() == ["train.learning_rate", "0.001", "0.01"]
    (line,) = lines_with(result.stdout, "validation loss, best step")
    assert line.split()[4:] == ["2.0000", "*", "1.5000"]
    assert "batch_size" not in result.stdout
    assert "* best" in result.stdout


def test_compare_as_json(tfx, base, wide):
    document = tfx("runs", "compare", "base", "wide", "--json").json
    assert document["schema"] == "tfx.runs.compare/1"
    assert document["settings"] == {"train.learning_rate": [0.001, 0.01]}
    assert document["figures"] == document["metrics"], "the old name"
    (loss,) = (one for one in document["metrics"] if (one["name"], one["at"]) == ("loss", "kept"))
    assert (loss["values"], loss["best"]) == ([2.0, 1.5], [1])


def test_runs_of_one_preset_say_the_same(tfx, base, tmp_path):
    write_run(tmp_path / "runs" / "again")
    assert "The presets are the same." in tfx("runs", "compare", "base", "again").stdout


def test_runs_of_one_name_are_told_apart_by_their_folders(tfx, base, tmp_path):
    write_run(tmp_path / "other" / "base", rate=0.5)
    shown = tfx("runs", "compare", "runs/base", "other/base").stdout
    assert "runs/base" in shown
    assert "other/base" in shown


# -- export
def test_export_writes_a_table_of_the_metrics(tfx, base):
    result = tfx("runs", "export", "base", "-o", "base.csv")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == "base.csv: 6 rows, 9 columns\n"
    head, first, *_ = Path("base.csv").read_text().splitlines()
    assert head == "step,t,split,loss,cells_per_second,mfu,acc/genes,acc/sex,acc/age"
    assert first.endswith("train,2.5,100.0,0.25,,,")


def test_export_to_stdout_is_the_table_alone(tfx, base):
    result = tfx("runs", "export", "--form", "long", "--split", "validation")
    assert (result.code, result.stderr) == (0, "")
    head, *rows = result.stdout.splitlines()
    assert head == "step,t,split,metric,value"
    assert len(rows) == 3 * 4
    assert all(",validation," in row for row in rows)
    lines = tfx("runs", "export", "--format", "jsonl", "-o", "-").stdout.splitlines()
    assert json.loads(lines[0])["step"] == 5


def test_export_reports_as_json(tfx, base):
    document = tfx("runs", "export", "base", "-o", "x.json", "--json").json
    assert document["schema"] == "tfx.runs.export/1"
    assert (document["rows"], document["file"]) == (6, "x.json")
    assert len(json.loads(Path("x.json").read_text())) == 6


# -- all of them
@pytest.mark.parametrize("command", ["list", "show", "compare", "export"])
def test_every_command_ends_its_help_with_two_examples(tfx, command):
    result = tfx("runs", command, "--help")
    assert result.code == 0
    assert result.stdout.partition("Examples:")[2].count(f"$ tfx runs {command}") >= 2


def test_looking_at_runs_loads_no_heavy_package(base, wide):
    program = (
        "import sys\n"
        "from tfx_cli.app import run\n"
        "for line in ('list', 'show base', 'compare base wide', 'export -o x.csv'):\n"
        "    assert run(['runs', *line.split()]) == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'anndata', 'transformers', 'textual'}\n"
        "print('loaded:', *heavy & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=base.parents[1],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.endswith("loaded:\n"), done.stdout + done.stderr


#: What any program, or a disk, may have left in a file of JSON.
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["train", "validation", "resume", "[/]", "running", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
KEYS = [
    "step", "t", "split", "event", "from_step", "loss", "acc/sex", "mfu", "nonfinite", "rows",
    "state", "total", "eta", "heartbeat", "started", "parameters", "genes", "phenotypes", "argv",
    "gpus", "cpu_percent", "name", "error", "processes", "precision", "commit", "memory_total",
]  # fmt: skip
RECORDS = st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=8)
STEPS = st.builds(lambda record, step: record | {"step": step}, RECORDS, st.integers(0, 9))


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_in_one_run_stops_no_list(tfx, tmp_path, kind):
    names = ["run.json", "status.json", "metrics.jsonl", "events.jsonl", "config.toml", "log.txt"]
    write_run(tmp_path / "runs" / "good")
    for name in [*names, "system-a.jsonl"]:
        folder = write_run(tmp_path / "runs" / f"odd-{name}")
        (folder / name).unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(folder / name)
        else:
            (folder / name).symlink_to("/dev/zero")
    (tmp_path / "runs" / "good" / "eval").mkdir()
    os.mkfifo(tmp_path / "runs" / "good" / "eval" / "report.json")
    listed = tfx("runs", "list", "--json")
    assert listed.code == 0, listed.stderr
    found = {run["name"] for run in listed.json["runs"]}
    assert found == {"good", *(f"odd-{name}" for name in names[1:]), "odd-system-a.jsonl"}
    for name in sorted(found):
        assert tfx("runs", "show", name).code == 0
    assert tfx("runs", "show", "odd-run.json").code == 2
    assert tfx("dashboard", "--once", "--json", "runs/good").code == 0


@given(
    run_record=RECORDS,
    status=RECORDS,
    metrics=st.lists(RECORDS | STEPS, max_size=6),
    others=st.lists(RECORDS, max_size=4),
    config=st.sampled_from(["", "a = 1  # x", "= ", "\x00"]),
)
def test_whatever_stands_in_a_run_folder_no_command_falls_over_it(
    tmp_path_factory, run_record, status, metrics, others, config
):
    root = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        folder = root / name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({**run_record, "format": 1}))
        (folder / "status.json").write_text(json.dumps(status))
        (folder / "config.toml").write_text(config)
        for file, records in (("metrics", metrics), ("events", others), ("system-x", others)):
            text = "".join(json.dumps(record) + "\n" for record in records)
            (folder / f"{file}.jsonl").write_text(text)
    for arguments in (
        ["list", str(root)], ["list", str(root), "--json"], ["show", str(root / "a")],
        ["show", str(root / "a"), "--json"], ["compare", str(root / "a"), str(root / "b")],
        ["compare", str(root / "a"), str(root / "b"), "--json"],
        ["export", str(root / "a")], ["export", str(root / "a"), "--form", "long", "--format", "json"],
    ):  # fmt: skip
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(["runs", *arguments])
        assert (code, err.getvalue()) == (0, ""), arguments
        if "--json" in arguments:
            json.loads(out.getvalue())


# -- keeping runs
def test_runs_are_renamed_tagged_and_deleted_by_commands(tfx, base, wide):
    assert tfx("runs", "rename", "wide", "broad", "--json").json["run"] == "runs/broad"
    assert tfx("runs", "tag", "broad", "paper", "seed 3").stdout == "runs/broad: paper, seed 3\n"
    listed = {run["name"]: run["tags"] for run in tfx("runs", "list", "--json").json["runs"]}
    assert listed == {"base": [], "broad": ["paper", "seed 3"]}
    refused = tfx("runs", "delete", "broad", "base")
    assert refused.code == 2
    assert "there is no terminal to ask on: add --yes to delete" in refused.stderr
    result = tfx("runs", "delete", "broad", "--yes")
    assert result.stdout == "runs/broad is now runs/.trash/broad\n"
    assert [run["name"] for run in tfx("runs", "list", "--json").json["runs"]] == ["base"]


def test_a_list_has_one_line_a_run_at_80_columns(base, monkeypatch):
    for number in range(3):
        write_run(base.parent / f"a-long-name-of-a-run-{'x' * 60}-{number}")
    status = json.loads((base / "status.json").read_text())
    live = {**status, "state": "running", "step": 50_400, "total": 100_000, "eta": 60.0 * 59}
    (base / "status.json").write_text(json.dumps(live))
    rows = [run_row(run) for run in list_runs(base.parent, now=status["heartbeat"] + 5)]
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((80, 24)))
    console = Console(width=80, file=io.StringIO())
    console.print(runs_table(rows, now=status["heartbeat"] + 5))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == len(rows) + 3  # two lines of heads, and one below them
    assert any("50.4k/100k" in line and "59 min" in line for line in lines)
    assert any(line.startswith("a-long-") and "…" in line for line in lines)
