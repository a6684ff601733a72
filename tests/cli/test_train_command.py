"""`tfx train` through its entry point: runs, names, refusals, signals, going on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.runlog import RunReader
from core.runlog.ownership import owned_run
from core.training.checkpoints import latest_checkpoint
from tfx_cli import train_command

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def interrupt(monkeypatch):
    """Let a signal arrive when a stage of the work has got so far."""

    def arrange(number, *, stage="training", at=7, times=1):
        @contextmanager
        def show_progress():
            def listen(event):
                if (event.stage, event.done) == (stage, at) and not event.message:
                    for _ in range(times):
                        signal.raise_signal(number)

            yield listen

        monkeypatch.setattr(train_command, "show_progress", show_progress)

    yield arrange
    monkeypatch.undo()


def test_a_preset_becomes_a_run_and_a_json_result(tiny_training):
    folder, result = tiny_training
    assert result.code == 0, result.stderr
    document = result.json
    assert document["schema"] == "tfx.train/1"
    assert (document["run"], document["model"]) == ("runs/tiny", "runs/tiny/model")
    assert document["steps"] == 30
    assert document["best_step"] in (10, 20, 30)
    assert {"loss", "acc/genes", "acc/sex", "acc/cell_type"} <= set(document["validation"])
    assert (folder / "runs" / "tiny" / "config.toml").is_file()
    assert RunReader(folder / "runs" / "tiny").status["state"] == "finished"
    assert {path.name for path in folder.iterdir()} == {"tiny.toml", "runs", "stores"}


def test_narration_goes_to_stderr_alone(tiny_training):
    _, result = tiny_training
    assert result.stdout.startswith("{")
    assert "run runs/tiny: 600 cells, store stores/tiny-" in result.stderr
    assert "step 30: validation loss" in result.stderr
    assert "Error" not in result.stderr
    assert "Traceback" not in result.stderr


def test_the_summary_for_people_says_what_next(tfx, tiny_preset_file):
    result = tfx("-q", "train", tiny_preset_file, "--steps", 3)
    assert (result.code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "runs/tiny: 3 steps; the model folder holds step 3"
    assert "next: tfx eval runs/tiny" in lines
    assert any(line.split()[:1] == ["cell_type"] for line in lines)


def test_options_and_assignments_reach_the_run(tfx, tiny_preset_file, tmp_path):
    (tmp_path / "more.toml").write_text("[train]\nbatch_size = 16\nmax_steps = 9\n")
    result = tfx(
        "train", tiny_preset_file, "--run", "mine", "--config", "more.toml", "--steps", 4,
        "--device", "cpu", "--set", "train.seed=3", "--json",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    assert (result.json["run"], result.json["steps"]) == ("runs/mine", 4)
    config = (tmp_path / "runs" / "mine" / "config.toml").read_text()
    for line in ("batch_size = 16 ", "max_steps = 4 ", "seed = 3 "):
        assert line in config


def test_a_second_run_of_a_preset_is_numbered(tfx, tiny_run, tiny_preset_file, tmp_path):
    for wanted in ("runs/tiny-2", "runs/tiny-3"):
        result = tfx("train", tiny_preset_file, "--steps", 1, "--json")
        assert result.json["run"] == wanted
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"tiny", "tiny-2", "tiny-3"}


@pytest.mark.parametrize("option", [["--set", "encoding.bins=9"], ["--config", "more.toml"]])
def test_a_frozen_key_is_refused_with_the_difference(tfx, tiny_run, tmp_path, option):
    (tmp_path / "more.toml").write_text("[encoding]\nbins = 9\n")
    result = tfx("-q", "train", "runs/tiny", *option)
    assert (result.code, result.stdout) == (2, "")
    assert (
        "runs/tiny cannot resume with another preset: its encoding.bins = 6, not 9" in result.stderr
    )


def test_a_finished_run_goes_on_with_more_steps(tfx, tiny_run):
    result = tfx("train", "runs/tiny", "--steps", 34, "--set", "train.learning_rate=1e-5", "--json")
    assert result.code == 0, result.stderr
    assert result.json["steps"] == 34
    assert "resumed at step 30" in result.stderr
    config = (tiny_run / "config.toml").read_text()
    assert "max_steps = 34  # --steps" in config
    assert "learning_rate = 1e-05  # --set" in config


def test_a_bundled_preset_wins_over_a_run_of_its_name(tfx, tiny_run):
    tiny_run.rename(tiny_run.with_name("base"))
    result = tfx("-q", "train", "base", "--set", "data.files=missing.h5ad")
    assert "missing.h5ad: no such file" in result.stderr
    assert "is finished" in tfx("-q", "train", "runs/base").stderr


@pytest.mark.parametrize(
    ("number", "again"), [(signal.SIGINT, ["runs/stopped"]), (signal.SIGTERM, None)]
)
def test_a_stopped_run_goes_on_and_ends_as_if_never_stopped(
    tfx, tiny_preset_file, interrupt, monkeypatch, tmp_path, number, again
):
    """Named as a run, or by the command that began it."""
    begun = [tiny_preset_file, "--set", "name=stopped"]
    with monkeypatch.context():
        interrupt(number)
        stopped = tfx("train", *begun)
    assert (stopped.code, stopped.stdout) == (75, "")
    name = signal.Signals(number).name
    assert f"{name}: saving a checkpoint after this step; Ctrl-C again" in stopped.stderr
    assert stopped.stderr.splitlines()[-1] == (
        "Stopped at step 7 of 30, checkpoint saved; 'tfx train runs/stopped' continues from there"
    )
    run = tmp_path / "runs" / "stopped"
    assert RunReader(run).status["state"] == "stopped"
    assert latest_checkpoint(run / "checkpoints").name == "step-00000007"

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    if again is None:
        other = tfx("train", *begun, "--seed", "7", "--dry-run")
        assert other.stdout.startswith("runs/stopped-2: a forecast")  # another preset, another run
    resumed = tfx("train", *(again or begun), "--json")
    assert resumed.code == 0, resumed.stderr
    said = "runs/stopped has the same preset and stopped at step 7 of 30: it is continued"
    assert (said in resumed.stderr) == (again is None)
    assert "resumed at step 7" in resumed.stderr
    assert RunReader(run).status["state"] == "finished"

    straight = tfx("train", tiny_preset_file, "--run", "straight", "--json")
    assert resumed.json["validation"] == straight.json["validation"]
    assert resumed.json["steps"] == straight.json["steps"] == 30


def test_a_second_ctrl_c_leaves_at_once(tfx, tiny_preset_file, interrupt, monkeypatch, tmp_path):
    interrupt(signal.SIGINT, at=14, times=2)
    result = tfx("train", tiny_preset_file)
    assert (result.code, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-1] == "Interrupted."
    run = tmp_path / "runs" / "tiny"
    assert RunReader(run).status["state"] == "stopped"
    assert latest_checkpoint(run / "checkpoints").name == "step-00000010"  # the regular one
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert tfx("train", "runs/tiny", "--json").json["steps"] == 30


def test_the_handlers_of_signals_are_as_before_when_training_ends(tfx, tiny_preset_file):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    assert tfx("train", tiny_preset_file, "--steps", 1).code == 0
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_cells_are_prepared_leaves_nothing(tfx, interrupt, tmp_path, number):
    interrupt(number, stage="writing cells", at=600)
    result = tfx("train", "base", "--set", "data.files=builtin:atlas?cells=600&seed=0")
    assert (result.code, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-1] == "Interrupted."
    assert not list(tmp_path.rglob("*"))


def test_a_process_that_is_told_to_end_saves_a_checkpoint(tiny_preset_file, tmp_path):
    """A real process, a real SIGTERM, at whatever step it happens to be."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tfx_cli", "train", str(tiny_preset_file), "--steps", "1000000",
         "--set", "train.log_steps=1"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    run = tmp_path / "runs" / "tiny"
    try:
        while process.poll() is None and not (run / "metrics.jsonl").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert latest_checkpoint(run / "checkpoints") is not None


@pytest.fixture
def unfinished(tiny_run):
    """Return the run as if it had stopped."""
    status = json.loads((tiny_run / "status.json").read_text())
    (tiny_run / "status.json").write_text(json.dumps(status | {"state": "stopped"}))
    return tiny_run


def test_a_run_whose_store_is_gone_cannot_go_on(tfx, unfinished, tmp_path):
    run = json.loads((unfinished / "run.json").read_text())
    run["store"] = str(tmp_path / "gone")
    (unfinished / "run.json").write_text(json.dumps(run))
    result = tfx("-q", "train", "runs/tiny")
    assert (result.code, result.stdout) == (4, "")
    assert result.stderr.count("\n") == 1
    assert "gone" in result.stderr


def test_a_run_whose_store_was_prepared_anew_cannot_go_on(tfx, unfinished):
    run = json.loads((unfinished / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps(run | {"store_key": "another"}))
    result = tfx("-q", "train", "runs/tiny")
    assert result.code == 4
    assert "was prepared again after runs/tiny began, from other cells or settings" in result.stderr


def test_a_run_without_checkpoints_begins_again(tfx, unfinished):
    shutil.rmtree(unfinished / "checkpoints")
    result = tfx("train", "runs/tiny", "--json")
    assert result.code == 0, result.stderr
    assert result.json["steps"] == 30
    assert "resumed" not in result.stderr


# ------------------------------------------------------------------------------------ one writer
def test_a_name_that_another_process_has_just_claimed_is_not_shared(
    tfx, tiny_preset_file, tmp_path
):
    with owned_run(Path("runs/tiny")):
        named = tfx("-q", "train", tiny_preset_file, "--run", "tiny")
        assert named.code == 3
        assert "--run tiny: runs/tiny is being trained by another process" in named.stderr
        assert tfx("train", tiny_preset_file, "--steps", 1, "--json").json["run"] == "runs/tiny-2"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny-2"]


def test_a_folder_whose_process_died_before_it_was_a_run_is_taken_over(tfx, tiny_preset_file):
    folder = Path("runs/tiny")
    folder.mkdir(parents=True)
    for name in (".lock", "config.toml", ".run.json.7.tmp"):
        (folder / name).touch()
    refused = tfx("-q", "train", folder)
    assert refused.code == 2
    assert "runs/tiny holds no run: its process ended before the first step" in refused.stderr
    assert tfx("train", tiny_preset_file, "--steps", 1, "--json").json["run"] == "runs/tiny"
    for name in ("notes.txt", ".notes"):
        shutil.rmtree("runs/mine", ignore_errors=True)
        Path("runs/mine").mkdir()
        Path("runs/mine/.lock").touch()
        Path("runs/mine", name).touch()
        refused = tfx("-q", "train", tiny_preset_file, "--run", "mine")
        assert "--run mine: runs/mine exists and is no run; choose another name" in refused.stderr


def test_a_run_that_fails_before_its_first_step_leaves_no_folder(tfx, tiny_preset_file, tmp_path):
    result = tfx("-q", "train", tiny_preset_file, "--set", "data.where=tissue=none")
    assert result.code in (2, 4)
    assert not (tmp_path / "runs").exists()


def test_a_project_that_was_moved_goes_on(tfx, unfinished, tiny_training, tmp_path):
    """Runs and stores moved together, or the store to a place that the command names."""
    run = json.loads((unfinished / "run.json").read_text())
    stored = next((tiny_training[0] / "stores").iterdir())
    assert run["store_relative"] == f"../../stores/{stored.name}"
    for path in (unfinished / "run.json", unfinished / "model" / "tfx.json"):
        path.write_text(path.read_text().replace(str(tiny_training[0]), "/elsewhere"))
    for command in ("train", "eval"):
        refused = tfx("-q", command, "tiny")
        assert refused.code == 4
        assert f"/elsewhere/stores/{stored.name}: the store of runs/tiny" in refused.stderr
    there, named = tmp_path / "stores" / stored.name, tmp_path / "cells"
    score = ("eval", "tiny", "--baselines", "none", "--max-cells", 9)
    for place, arguments in (
        (there, ("train", "tiny", "--steps", 31)),
        (there, score),
        (named, ("train", "tiny", "--steps", 32, "--set", f"data.store={named}")),
        (named, ("train", "tiny", "--steps", 33, "--store", named)),
        (named, (*score, "--store", named)),
    ):
        shutil.copytree(stored, place)
        result = tfx(*arguments, "--json")
        assert result.code == 0, result.stderr
        shutil.rmtree(place)
    (tmp_path / "other").mkdir()
    refused = tfx("-q", "train", "tiny", "--steps", 40, "--store", tmp_path / "other")
    assert refused.code == 4
    assert "other: the store of runs/tiny is not there" in refused.stderr
