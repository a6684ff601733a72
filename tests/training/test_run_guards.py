"""What a run does beside learning: averages, early ends, spikes, locks, full disks, changed keys."""

import errno
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from core.errors import ConfigurationError, MachineError, TfxError, TrainingInterrupted
from core.model.folder import CellModel, put_back_model
from core.model.losses import masked_loss
from core.presets.schema import Preset
from core.runlog import RunReader
from core.runlog.overview import run_row
from core.runlog.ownership import owned_run
from core.training import checkpoints
from core.training.checkpoints import CHANGEABLE, preset_differences
from core.training.engine import train
from core.training.state import TrainingState
from tests.training.test_engine import assert_same_run, metrics_of, short, stop_after, weights_of


def events_of(folder, name):
    return [event for event in RunReader(folder).events() if event["event"] == name]


# ------------------------------------------------------------------------ averages and early ends
def test_the_averaged_weights_are_saved_and_training_keeps_its_own(tiny_store, tmp_path):
    train(short(train__eval_steps=12), tiny_store, tmp_path / "plain")
    train(short(train__eval_steps=12, train__ema=0.9), tiny_store, tmp_path / "ema")
    plain, ema = weights_of(tmp_path / "plain", 12), weights_of(tmp_path / "ema", 12)
    assert all(torch.equal(plain[name], ema[name]) for name in plain)
    state = checkpoints.load_checkpoint(tmp_path / "ema" / "checkpoints" / "step-00000012")[1]
    saved = CellModel.load(tmp_path / "ema" / "model")
    assert saved.provenance["step"] == 12
    for name, value in saved.network.named_parameters():
        assert torch.equal(value, state["average"][name]), name
    assert any(not torch.equal(state["average"][n], plain[n]) for n in state["average"])


def test_averages_are_resumed_exactly(tiny_store, tmp_path):
    train(short(train__ema=0.9), tiny_store, tmp_path / "whole")
    with pytest.raises(TrainingInterrupted):
        train(short(train__ema=0.9), tiny_store, tmp_path / "parts", **stop_after(6))
    train(short(train__ema=0.9), tiny_store, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


IMPATIENT = {"train__max_steps": 60, "train__eval_steps": 2, "train__patience": 3}
IMPATIENT |= {"train__learning_rate": 1e-12, "train__warmup_ratio": 0.0, "model__dropout": 0.0}


def test_training_ends_where_the_validation_loss_falls_no_more(tiny_store, tmp_path, monkeypatch):
    """A loss that rises from the second evaluation on."""
    calls = iter(range(100))
    monkeypatch.setattr(
        "core.training.engine.validation_metrics", lambda *_, **__: {"loss": 1.0 + next(calls)}
    )
    result = train(short(**IMPATIENT), tiny_store, tmp_path / "run")
    assert (result.steps, result.best_step) == (8, 2)
    assert [e["step"] for e in events_of(tmp_path / "run", "early_stop")] == [8]
    assert RunReader(tmp_path / "run").status["state"] == "finished"
    assert (tmp_path / "run" / "checkpoints" / "step-00000008").is_dir()
    # With more patience it continues.
    more = train(short(**IMPATIENT | {"train__patience": 5}), tiny_store, tmp_path / "run")
    assert more.steps == 12


def scripted(monkeypatch, *evaluations):
    """Let the evaluations of a run find these metrics, one after another, after that of step 0."""
    metrics = iter([{"loss": 0.1, "score": 9.0}, *evaluations])
    monkeypatch.setattr(
        "core.training.engine.validation_metrics", lambda *_, **__: dict(next(metrics))
    )


def test_the_best_step_has_the_best_score_also_where_noise_raises_the_loss(
    tiny_store, tmp_path, monkeypatch
):
    scripted(
        monkeypatch,
        {"loss": 1.0, "score": 0.1},
        {"loss": 1.2, "score": 0.2},
        {"loss": 1.1, "score": 0.2},
        {"loss": 0.9, "score": 0.1},
        {"loss": math.nan, "score": 0.3},
        {"loss": 2.0, "score": 0.1},
    )
    result = train(short(train__eval_steps=2), tiny_store, tmp_path / "run")
    assert (result.best_step, result.validation["loss"], result.warning) == (6, 1.1, "")
    assert run_row(RunReader(tmp_path / "run").summary()).best_step == 6


def test_a_run_of_an_older_tfx_goes_by_the_loss_to_its_end(tiny_store, tmp_path, monkeypatch):
    scripted(monkeypatch, {"loss": 1.0, "score": 0.1}, {"loss": 2.0, "score": 0.9})

    def older(self):
        weights, state = to_checkpoint(self)
        own = ("chosen_by", "best_score", "encoder_is_untrained")
        state["progress"] = {k: v for k, v in state["progress"].items() if k not in own}
        return weights, state

    to_checkpoint = TrainingState.to_checkpoint
    with monkeypatch.context() as context:
        context.setattr(TrainingState, "to_checkpoint", older)
        with pytest.raises(TrainingInterrupted):
            train(short(train__eval_steps=6), tiny_store, tmp_path / "run", **stop_after(6))
    result = train(short(train__eval_steps=6), tiny_store, tmp_path / "run")
    assert (result.steps, result.best_step) == (12, 6)
    assert "score" not in RunReader(tmp_path / "run").metrics("validation")[-1]


def test_a_model_whose_encoder_has_learnt_nothing_comes_with_a_warning(
    tiny_store, tmp_path, monkeypatch
):
    scripted(monkeypatch, {"loss": 1.0, "score": 0.2}, {"loss": 1.0, "score": 0.1})
    options = {"model__log_linear": True, "train__log_linear_steps": 2, "train__max_steps": 4}
    result = train(short(train__eval_steps=2, **options), tiny_store, tmp_path / "run")
    assert result.best_step == 2
    assert "the encoder of the model is untrained: validation was best at step 2" in result.warning
    (event,) = events_of(tmp_path / "run", "warning")
    assert event["reason"] == result.warning


def test_a_loss_that_leaps_is_an_event_with_its_cells(tiny_store, tmp_path, monkeypatch):
    done = iter(range(1, 1000))

    def leaping(*arguments):
        parts = masked_loss(*arguments)
        return replace(parts, total=parts.total * 10) if next(done) == 40 else parts

    monkeypatch.setattr("core.training.step.masked_loss", leaping)
    train(short(train__max_steps=45), tiny_store, tmp_path / "run")
    (spike,) = events_of(tmp_path / "run", "spike")
    assert spike["step"] == 40
    assert spike["loss"] > 5 * spike["median"]
    assert set(spike["rows"]) <= set(tiny_store.rows("train").tolist())
    assert len(spike["rows"]) == 16


# ------------------------------------------------------------------------------ stopping
def test_a_stop_within_an_evaluation_is_made_up_for_on_resume(finished, tiny_store, tmp_path):
    seen, checks = [], []

    def see(event):
        if event.stage == "training":
            seen.append(event.done)

    def should_stop():
        checks.append(seen[-1] if seen else 0)
        return "SIGTERM" if checks.count(5) == 2 else ""  # the first check within the evaluation

    with pytest.raises(TrainingInterrupted, match="stopped at step 5 of 12, checkpoint saved"):
        train(short(), tiny_store, tmp_path / "parts", should_stop=should_stop, on_progress=see)
    steps = [one["step"] for one in RunReader(tmp_path / "parts").metrics("validation")]
    assert steps == [0]
    assert [e["signal"] for e in events_of(tmp_path / "parts", "signal")] == ["SIGTERM"]
    train(short(), tiny_store, tmp_path / "parts")
    assert_same_run(finished[0], tmp_path / "parts")


def test_a_run_stopped_before_its_first_step_has_a_checkpoint(finished, tiny_store, tmp_path):
    record = tmp_path / "run" / "run.json"
    with pytest.raises(TrainingInterrupted, match="stopped at step 0 of 12, checkpoint saved"):
        train(short(), tiny_store, tmp_path / "run", should_stop=record.exists)
    train(short(), tiny_store, tmp_path / "run")
    assert_same_run(finished[0], tmp_path / "run")


def test_a_stop_while_the_model_is_fitted_leaves_what_was(tiny_store, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(short(), tiny_store, tmp_path / "run", should_stop=lambda: True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TrainingInterrupted):
        train(short(), tiny_store, tmp_path / "run", **stop_after(3))
    before = RunReader(tmp_path / "run").events()
    with pytest.raises(TrainingInterrupted, match="its checkpoint is as it was"):
        train(short(), tiny_store, tmp_path / "run", should_stop=lambda: True)
    assert RunReader(tmp_path / "run").events() == before
    assert train(short(), tiny_store, tmp_path / "run").steps == 12


# ---------------------------------------------------------------------------------- the lock


OWN_A_RUN = """
import sys, pathlib, time
from core.runlog.overview import run_row
from core.runlog.ownership import owned_run
with owned_run(pathlib.Path(sys.argv[1])):
    print('mine', flush=True)
    time.sleep(600)
"""


def test_a_run_that_another_process_trains_is_refused(tiny_store, tmp_path):
    with pytest.raises(TrainingInterrupted):
        train(short(), tiny_store, tmp_path / "run", **stop_after(3))
    command = [sys.executable, "-c", OWN_A_RUN, str(tmp_path / "run")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "mine\n"
        with pytest.raises(MachineError, match=rf"being trained by process {os.getpid()} on"):
            train(short(), tiny_store, tmp_path / "run")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert train(short(), tiny_store, tmp_path / "run").steps == 12  # the lock went with its owner


@pytest.mark.parametrize(
    ("host", "age", "is_refused"),
    [("elsewhere", 3, True), ("elsewhere", 60, False), (socket.gethostname(), 3, False)],
)
def test_a_fresh_heartbeat_of_another_machine_counts_as_a_lock(tmp_path, host, age, is_refused):
    (tmp_path / "run.json").write_text('{"format": 1}')
    status = {"state": "running", "heartbeat": time.time() - age, "host": host, "pid": 7}
    (tmp_path / "status.json").write_text(json.dumps(status))
    if is_refused:
        with pytest.raises(MachineError, match="process 7 on elsewhere"), owned_run(tmp_path):
            pass
    else:
        with owned_run(tmp_path):
            pass


# ------------------------------------------------------------------------------ a moved folder
def at_step(number, act):
    """Return a listener that acts once, when so many steps are done."""
    pending = [act]

    def listen(event):
        if (event.stage, event.done) == ("training", number) and pending:
            pending.pop()()

    return listen


@pytest.mark.skipif(os.name == "nt", reason="an open folder cannot be moved there")
def test_a_run_follows_its_folder_when_it_is_moved(finished, tiny_store, tmp_path, caplog):
    run, moved = tmp_path / "run", tmp_path / "moved"

    def move():
        run.rename(moved)
        run.mkdir()  # another run may have the name by now

    result = train(short(), tiny_store, run, on_progress=at_step(5, move))
    assert (result.run, result.model) == (moved, moved / "model")
    assert list(run.iterdir()) == []
    assert f"{run} was moved to {moved}, where the run continues" in caplog.text
    assert RunReader(moved).status["state"] == "finished"
    assert_same_run(finished[0], moved)


@pytest.mark.skipif(os.name == "nt", reason="an open folder cannot be removed there")
def test_a_run_whose_folder_is_removed_ends_and_makes_no_new_one(tiny_store, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(MachineError, match="run was removed, or moved to another disk"):
        train(short(), tiny_store, run, on_progress=at_step(5, lambda: shutil.rmtree(run)))
    assert not run.exists()


# --------------------------------------------------------------------------------- a full disk
def full_disk(monkeypatch, *, when):
    """Let checkpoints fail for want of space where ``when(n-th attempt)`` says so."""
    attempts = iter(range(1, 100))
    save = torch.save

    def fail(*arguments):
        if when(next(attempts)):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(checkpoints.torch, "save", fail)


def test_a_full_disk_at_a_checkpoint_is_a_warning_and_the_run_continues(
    finished, tiny_store, tmp_path, monkeypatch, caplog
):
    full_disk(monkeypatch, when=lambda attempt: attempt == 2)
    train(short(), tiny_store, tmp_path / "run")  # and ends well: the next one is written
    assert (
        "step-00000008 cannot be written (No space left on device); the run continues"
        in caplog.text
    )
    assert "No space left" in events_of(tmp_path / "run", "warning")[0]["reason"]
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000012"]
    assert_same_run(finished[0], tmp_path / "run")


@pytest.mark.parametrize("failing", [{1}, {1, 2}, {2, 3}])
def test_a_model_that_could_not_be_written_is_written_with_the_next_checkpoint(
    finished, tiny_store, tmp_path, monkeypatch, failing
):
    attempts, save = iter(range(1, 100)), CellModel.save

    def fail(*arguments, **named):
        if next(attempts) in failing:
            raise MachineError("model folder cannot be written (No space left on device)")
        save(*arguments, **named)

    monkeypatch.setattr(CellModel, "save", fail)
    train(short(), tiny_store, tmp_path / "run")
    assert "No space left" in events_of(tmp_path / "run", "warning")[0]["reason"]
    assert_same_run(finished[0], tmp_path / "run")


def test_a_stop_with_a_full_disk_says_that_nothing_was_saved(tiny_store, tmp_path, monkeypatch):
    full_disk(monkeypatch, when=lambda attempt: attempt > 1)
    with pytest.raises(MachineError, match=r"stopped at step 6 of 12, but checkpoint .*No space"):
        train(short(), tiny_store, tmp_path / "run", **stop_after(6))
    monkeypatch.undo()
    train(short(), tiny_store, tmp_path / "run")
    assert events_of(tmp_path / "run", "resume")[0]["from_step"] == 5


@pytest.mark.skipif(os.name == "nt", reason="permissions as POSIX has them")
def test_every_file_of_a_run_has_the_permissions_of_the_umask(tiny_store, tmp_path):
    before = os.umask(0o027)
    try:
        train(short(train__max_steps=4), tiny_store, tmp_path / "run")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*")}
    expected = {path: 0o750 if path.is_dir() else 0o640 for path in modes}
    assert {p: oct(m) for p, m in modes.items()} == {p: oct(m) for p, m in expected.items()}


def test_a_model_folder_that_never_fits_fails_the_run(tiny_store, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("core.model.folder.save_tensors", fail)
    with pytest.raises(
        MachineError, match=r"is at its end, but model folder .*No space left.*again"
    ):
        train(short(), tiny_store, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    assert RunReader(tmp_path / "run").status["state"] == "failed"


def test_a_last_checkpoint_that_does_not_fit_fails_the_run_until_it_does(
    finished, tiny_store, tmp_path, monkeypatch
):
    full_disk(monkeypatch, when=lambda attempt: attempt > 2)
    with pytest.raises(MachineError, match=r"is at its end, but checkpoint .*step-00000012 cannot"):
        train(short(), tiny_store, tmp_path / "run")
    monkeypatch.undo()
    assert train(short(), tiny_store, tmp_path / "run").steps == 12
    assert_same_run(finished[0], tmp_path / "run")


def test_a_run_that_diverges_from_the_start_says_so(tiny_store, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "core.training.engine.validation_metrics", lambda *_, **__: {"loss": float("nan")}
    )
    with pytest.raises(TfxError, match=r"no evaluation of .* had a finite loss: training diverged"):
        train(short(), tiny_store, tmp_path / "run")


def test_a_model_folder_taken_away_by_a_killed_process_is_put_back(tmp_path):
    (tmp_path / ".model.old-17").mkdir()
    (tmp_path / ".model.old-17" / "tfx.json").write_text("{}")
    put_back_model(tmp_path / "model")
    assert (tmp_path / "model" / "tfx.json").is_file()
    (tmp_path / ".model.old-18").mkdir()
    put_back_model(tmp_path / "model")
    assert (tmp_path / "model" / "tfx.json").is_file()


# ------------------------------------------------------------------------------ changed keys
def test_a_run_resumes_with_changed_keys_that_may_change(tiny_store, tmp_path):
    train(short(), tiny_store, tmp_path / "run")
    changes = {"train__max_steps": 16, "train__learning_rate": 1e-4, "train__weight_decay": 0.3}
    result = train(short(**changes), tiny_store, tmp_path / "run")
    assert result.steps == 16
    (resume,) = events_of(tmp_path / "run", "resume")
    expected = {"train.max_steps": [12, 16], "train.learning_rate": [2e-3, 1e-4]}
    assert resume["changed"] == expected | {"train.weight_decay": [0.01, 0.3]}
    assert [r["step"] for r in metrics_of(tmp_path / "run") if r["split"] == "train"] == list(
        range(1, 17)
    )
    state = checkpoints.load_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000016")[1]
    assert [g["weight_decay"] for g in state["optimiser"]["param_groups"]] == [0.3, 0.0]
    assert "learning_rate = 0.0001" in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model__hidden_size": 64}, "model.hidden_size = 32, not 64"),
        ({"encoding__bins": 5}, "encoding.bins = 10, not 5"),
        ({"train__seed": 9}, "train.seed = 0, not 9"),
        ({"masking__genes": 0.5}, "masking.genes = 0.15, not 0.5"),
        ({"data__genes": 30}, "data.genes = 32, not 30"),
        ({"train__ema": 0.9}, "train.ema = 0.0, not 0.9"),
    ],
)
def test_a_frozen_key_is_refused_with_both_values(tiny_store, tmp_path, change, words):
    with pytest.raises(TrainingInterrupted):
        train(short(), tiny_store, tmp_path / "run", **stop_after(1))
    before = (tmp_path / "run" / "config.toml").read_bytes()
    with pytest.raises(
        ConfigurationError, match="cannot resume with another preset: its "
    ) as error:
        train(short(**change), tiny_store, tmp_path / "run")
    assert words in str(error.value)
    assert (tmp_path / "run" / "config.toml").read_bytes() == before


def test_keys_that_may_change_are_keys():
    def keys(model, prefix=""):
        for name, field in model.model_fields.items():
            yield f"{prefix}{name}"
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                yield from keys(field.annotation, f"{prefix}{name}.")

    assert set(keys(Preset)) >= CHANGEABLE


def test_differences_of_tables_are_found_key_by_key():
    one = short(data__phenotypes={"dose": "dose"}).preset
    two = short(data__phenotypes={"dose": "amount", "batch": "batch"}).preset
    expected = {"dose": ("dose", "amount"), "batch": (None, "batch")}
    expected = {f"data.phenotypes.{name}": values for name, values in expected.items()}
    assert preset_differences(one, two) == expected
