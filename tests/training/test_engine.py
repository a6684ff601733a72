"""The loop: a run's folder, stopping and resuming bit for bit, refusals before anything is written."""

import csv
import json
import logging
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.errors import ConfigurationError, TfxError, TrainingInterrupted
from core.model.folder import CellModel
from core.model.losses import masked_loss
from core.presets.loading import ResolvedPreset
from core.progress import ProgressEvent
from core.runlog import RunReader
from core.training.engine import train
from core.training.state import learning_rate_factor
from tests.tiny_atlas import tiny_preset

#: Metrics that depend on time: no two runs have the same.
_CLOCKS = {"t", "cells_per_second", "tokens_per_second", "wait", "mfu"}
SHORT = {"train__max_steps": 12, "train__eval_steps": 5, "train__save_steps": 4}
SHORT |= {"train__batch_size": 16, "train__eval_cells": 24}


def short(**options):
    return tiny_preset(**(SHORT | options))


def stop_after(n_steps):
    """Ask to stop as soon as so many steps are done."""
    done = []
    return {
        "on_progress": lambda event: event.stage == "training" and done.append(event.done),
        "should_stop": lambda: bool(done) and done[-1] >= n_steps,
    }


def metrics_of(folder):
    records = RunReader(folder).metrics()
    return [{k: v for k, v in record.items() if k not in _CLOCKS} for record in records]


def weights_of(folder, step):
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")


def assert_same_run(one, two, *, step=12):
    weights, others = weights_of(one, step), weights_of(two, step)
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name
    assert metrics_of(one) == metrics_of(two)
    best = "model/model.safetensors"
    assert (one / best).read_bytes() == (two / best).read_bytes()


# ------------------------------------------------------------------------------------ a run
def test_a_run_folder_holds_the_whole_story(finished):
    folder, result, _ = finished
    files = {"config.toml", "events.jsonl", "metrics.jsonl", "run.json", "status.json"}
    assert {path.name for path in folder.iterdir()} >= files | {"checkpoints", "model"}
    assert result.run == folder
    assert result.model == folder / "model"
    assert result.steps == 12
    reader = RunReader(folder)
    assert reader.status["state"] == "finished"
    assert reader.status["step"] == 12
    assert reader.run["genes"] == 32
    assert reader.run["simulated"] is True
    assert reader.bad_lines == 0
    events = [event["event"] for event in reader.events()]
    assert events[0] == "start"
    assert events[-1] == "end"
    assert events.count("eval") == 3
    assert events.count("checkpoint") == 3


def test_only_the_newest_checkpoints_are_kept(finished):
    folder, *_ = finished
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step-00000008", "step-00000012"]


def test_the_saved_preset_is_the_one_of_the_run(finished):
    folder, *_ = finished
    text = (folder / "config.toml").read_text(encoding="utf-8")
    assert ResolvedPreset.from_toml(text).preset == short(train__virtual_ranks=1).preset
    assert tomllib.loads(text)["train"]["max_steps"] == 12


def test_metrics_hold_every_step_and_every_evaluation(finished, tiny_store):
    folder, result, _ = finished
    reader = RunReader(folder)
    assert [record["step"] for record in reader.metrics("train")] == list(range(1, 13))
    validation = reader.metrics("validation")
    assert [record["step"] for record in validation] == [0, 5, 10, 12]
    accuracies = {f"acc/{name}" for name in tiny_store.phenotypes}
    assert accuracies | {"loss", "acc/genes", "acc/genes_baseline"} <= set(validation[0])
    gains = {f"gain/{name}" for name in tiny_store.phenotypes}
    assert gains | {"score", "gain/genes"} <= set(validation[0])
    assert {f"baseline/{name}" for name in tiny_store.phenotypes} <= set(validation[0])
    assert not any(name.startswith("baseline/") for name in validation[1])
    best = max(validation[1:], key=lambda record: (record["score"], -record["loss"]))
    assert result.best_step == best["step"]
    assert result.validation["loss"] == best["loss"]


def test_the_learning_rate_logged_is_the_one_of_the_step(finished):
    folder, *_ = finished
    wanted = [
        2e-3 * learning_rate_factor(step, total=12, warmup_ratio=0.1, schedule="linear")
        for step in range(12)
    ]
    assert [record["lr"] for record in RunReader(folder).metrics("train")] == wanted


def test_the_model_folder_loads_and_knows_its_run(finished, tiny_store):
    folder, result, _ = finished
    model = CellModel.load(folder / "model")
    assert model.provenance["step"] == result.best_step
    assert model.provenance["total_steps"] == 12
    assert model.config.phenotypes == {k: list(v) for k, v in tiny_store.phenotypes.items()}


def test_progress_counts_the_steps_and_reports_the_evaluations(finished):
    _, _, events = finished
    steps = [event for event in events if event.stage == "training"]
    assert all(isinstance(event, ProgressEvent) and event.total == 12 for event in steps)
    assert [event.done for event in steps if not event.message] == list(range(1, 13))
    assert sum("validation loss" in event.message for event in steps) == 3


def test_the_same_preset_gives_the_same_run(finished, tiny_store, tmp_path):
    folder, *_ = finished
    train(short(), tiny_store, tmp_path / "again")
    assert_same_run(folder, tmp_path / "again")


def test_training_leaves_the_global_generators_alone(tiny_store, tmp_path):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    train(short(train__max_steps=2), tiny_store, tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002


def test_a_run_can_end_without_validation_cells(tiny_store, tmp_path, monkeypatch):
    rows = type(tiny_store).rows
    nothing = np.zeros(0, np.int64)
    monkeypatch.setattr(
        type(tiny_store),
        "rows",
        lambda self, split: nothing if split == "validation" else rows(self, split),
    )
    result = train(short(train__max_steps=3), tiny_store, tmp_path / "run")
    assert result.validation == {}
    assert CellModel.load(result.model).provenance["step"] == 3


# ------------------------------------------------------------------------- stop and resume

LOG_LINEAR = {"model__log_linear": True, "model__layers": 1, "masking__genes": "uniform"}
EXPRESSED = {"encoding__layout": "expressed", "masking__drop_phenotypes": 0.3}


@pytest.mark.parametrize(
    ("options", "stop_at"),
    [
        pytest.param({}, 6, id="between a checkpoint and an evaluation"),
        pytest.param({}, 10, id="at an evaluation"),
        pytest.param({}, 8, id="at a checkpoint"),
        pytest.param(LOG_LINEAR, 6, id="log_linear"),
        pytest.param(EXPRESSED, 6, id="expressed"),
        pytest.param(EXPRESSED | {"train__tokens_per_batch": 200}, 6, id="token budget"),
        pytest.param({"train__batch_size": 100}, 6, id="in the second epoch"),
    ],
)
def test_stopped_and_resumed_equals_never_stopped(
    finished, tiny_store, tmp_path, monkeypatch, options, stop_at
):
    monkeypatch.setattr("core.model.log_linear_fit._STEPS", 10)  # saves seconds
    preset, whole = short(**options), finished[0]
    if options:
        whole = train(preset, tiny_store, tmp_path / "whole").run
    with pytest.raises(TrainingInterrupted, match=f"stopped at step {stop_at} of 12, checkpoint"):
        train(preset, tiny_store, tmp_path / "parts", **stop_after(stop_at))

    def fit(*_, **__):
        raise AssertionError("the checkpoint has it")

    for name in ("fit_log_linear", "principal_components", "_fill_gene_bias"):
        monkeypatch.setattr(f"core.training.run_setup.{name}", fit)
    result = train(preset, tiny_store, tmp_path / "parts")
    assert result.steps == 12
    assert_same_run(whole, tmp_path / "parts")


def test_a_run_resumed_twice_equals_one_never_stopped(finished, tiny_store, tmp_path):
    folder, *_ = finished
    for n_steps in (3, 7):
        with pytest.raises(TrainingInterrupted):
            train(short(), tiny_store, tmp_path / "run", **stop_after(n_steps))
    train(short(), tiny_store, tmp_path / "run")
    assert_same_run(folder, tmp_path / "run")
    events = RunReader(tmp_path / "run").events()
    resumed = [e["from_step"] for e in events if e["event"] == "resume"]
    assert resumed == [4, 8]


def test_a_checkpoint_within_an_epoch_is_not_resumed_with_other_batches(tiny_store, tmp_path):
    with pytest.raises(TrainingInterrupted):
        train(short(), tiny_store, tmp_path / "run", **stop_after(3))
    with pytest.raises(ConfigurationError, match=r"its train\.batch_size = 16, not 8; leave that"):
        train(short(train__batch_size=8), tiny_store, tmp_path / "run")


def test_being_stopped_leaves_the_status_stopped_and_a_checkpoint(tiny_store, tmp_path):
    with pytest.raises(TrainingInterrupted):
        train(short(), tiny_store, tmp_path / "run", **stop_after(2))
    status = RunReader(tmp_path / "run").status
    assert status["state"] == "stopped"
    assert status["step"] == 2
    assert status["checkpoint"] == "step-00000002"


def test_a_keyboard_interrupt_leaves_the_status_stopped(tiny_store, tmp_path):
    def interrupt():
        if (tmp_path / "run" / "run.json").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(short(), tiny_store, tmp_path / "run", should_stop=interrupt)
    assert RunReader(tmp_path / "run").status["state"] == "stopped"


def test_after_a_crash_a_run_resumes_from_its_checkpoint(finished, tiny_store, tmp_path):
    """The steps since the checkpoint are run again, and their older metrics are void."""
    folder, *_ = finished
    calls = iter(range(1, 1000))

    def crash():
        if next(calls) == 7:
            message = "power cut"
            raise RuntimeError(message)
        return False

    with pytest.raises(RuntimeError, match="power cut"):
        train(short(), tiny_store, tmp_path / "run", should_stop=crash)
    status = RunReader(tmp_path / "run").status
    assert status["state"] == "failed"
    assert status["error"] == "power cut"
    train(short(), tiny_store, tmp_path / "run")
    assert_same_run(folder, tmp_path / "run")


def test_a_damaged_newest_checkpoint_is_passed_over(finished, tiny_store, tmp_path, caplog):
    folder, *_ = finished
    with pytest.raises(TrainingInterrupted):
        train(short(), tiny_store, tmp_path / "run", **stop_after(6))
    newest = tmp_path / "run" / "checkpoints" / "step-00000006" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    with caplog.at_level(logging.WARNING, logger="core"):
        train(short(), tiny_store, tmp_path / "run")
    assert "step-00000006 is damaged: using the one before" in caplog.text
    events = RunReader(tmp_path / "run").events()
    assert [e["from_step"] for e in events if e["event"] == "resume"] == [5]
    assert_same_run(folder, tmp_path / "run")


def test_a_finished_run_started_again_does_nothing_more(tiny_store, tmp_path):
    first = train(short(), tiny_store, tmp_path / "run")
    before = metrics_of(tmp_path / "run")
    second = train(short(), tiny_store, tmp_path / "run")
    assert second == first
    assert metrics_of(tmp_path / "run") == before


# --------------------------------------------------------------------- non-finite gradients
def spoil(monkeypatch, steps):
    """Make the training loss of these steps (1-based) not a number."""
    done = iter(range(1, 1000))

    def spoilt(*arguments):
        parts = masked_loss(*arguments)
        return replace(parts, total=parts.total * float("nan")) if next(done) in steps else parts

    monkeypatch.setattr("core.training.step.masked_loss", spoilt)


def test_a_step_without_a_finite_gradient_is_skipped_and_logged(
    finished, tiny_store, tmp_path, monkeypatch
):
    """The first step too, where there is no optimiser state yet."""
    spoil(monkeypatch, {1, 3})
    train(short(), tiny_store, tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    logged = [event for event in reader.events() if event["event"] == "nonfinite"]
    assert [event["step"] for event in logged] == [1, 3]
    assert all(len(event["rows"]) == 16 for event in logged)
    assert set(logged[0]["rows"]) <= set(tiny_store.rows("train").tolist())
    lines = (tmp_path / "run" / logged[0]["cells"]).read_text().splitlines()
    assert lines[0] == "store_row,file,file_row"
    ((row, file, place),) = csv.reader(lines[1:2])
    assert int(row) == logged[0]["rows"][0]
    assert file == tiny_store.manifest.sources[0].name
    assert int(place) == tiny_store.origins[int(row), 1]
    assert reader.status["state"] == "finished"
    for value in weights_of(tmp_path / "run", 12).values():
        assert torch.isfinite(value.float()).all()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[1])  # after the evaluation at step 0
    assert first["loss"] is None
    assert "loss" in first["nonfinite"]
    # Nothing was learnt at the first step: the second sees the initial weights.
    assert metrics_of(tmp_path / "run")[1] != metrics_of(finished[0])[1]


def test_a_skipped_step_leaves_the_weights_alone(tiny_store, tmp_path, monkeypatch):
    spoil(monkeypatch, {2})
    options = {"train__save_steps": 1, "train__max_steps": 2, "train__warmup_ratio": 0.0}
    train(short(**options), tiny_store, tmp_path / "run")
    one, two = (weights_of(tmp_path / "run", step) for step in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_gives_up_after_many_such_steps_in_a_row(tiny_store, tmp_path, monkeypatch):
    spoil(monkeypatch, set(range(3, 1000)))
    preset = short(train__max_steps=60, train__max_nonfinite=7)
    with pytest.raises(TfxError, match=r"not finite for 7 steps in a row \(step 9\); lower"):
        train(preset, tiny_store, tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    assert reader.status["state"] == "failed"
    assert sum(event["event"] == "nonfinite" for event in reader.events()) == 7


def test_a_finite_step_in_between_starts_the_count_again(tiny_store, tmp_path, monkeypatch):
    spoil(monkeypatch, {1, 2, 4, 5, 7, 8})
    train(short(train__max_nonfinite=3), tiny_store, tmp_path / "run")
    assert RunReader(tmp_path / "run").status["state"] == "finished"
