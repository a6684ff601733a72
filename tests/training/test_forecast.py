"""The forecast beside the real thing: parameters, steps, memory that the backward pass keeps, refusals."""

import re
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from core.cells.checks.check import check_data
from core.errors import ConfigurationError, MachineError
from core.runlog import RunReader
from core.training.engine import train
from core.training.forecast import CellOutline, forecast_run, outline_of_facts, outline_of_store
from core.training.machine import Machine
from core.training.profiling import StepProfile
from core.training.virtual_ranks import RunCells, make_batch_source
from tests.tiny_atlas import build_model, tiny_preset
from tests.training.test_profiling import really_kept


def forecast_of(store, tmp_path, **options):
    preset = tiny_preset(**options).preset
    return forecast_run(preset, outline_of_store(preset, store), tmp_path / "runs" / "run")


def bytes_in(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


LAYOUTS = {
    "ranked": {},
    "expressed": {"encoding__layout": "expressed"},
    "token budget": {"encoding__layout": "expressed", "train__tokens_per_batch": 600},
    "two virtual ranks": {"train__virtual_ranks": 2},
    "log_linear": {"model__log_linear": True, "masking__genes": "uniform"},
    "bf16": {"train__precision": "bf16"},
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_steps_and_sizes_are_those_of_the_run(tiny_store, tmp_path, case, monkeypatch):
    monkeypatch.setattr("core.model.log_linear_fit._STEPS", 5)
    options = LAYOUTS[case] | {"train__epochs": 1.0, "train__max_steps": None}
    forecast = forecast_of(tiny_store, tmp_path, **options)
    result = train(tiny_preset(**options), tiny_store, tmp_path / "run")
    assert forecast.tokens["steps"] == pytest.approx(result.steps, rel=0.1)
    reader = RunReader(tmp_path / "run")
    assert sum(forecast.parameters.values()) == reader.run["parameters"]
    checkpoint = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    (kept,) = [n for name, n in forecast.files.items() if name.startswith("checkpoints (1 ")]
    assert kept / 2 == pytest.approx(bytes_in(checkpoint), rel=0.25)
    assert forecast.files["model folder"] == pytest.approx(bytes_in(result.model), rel=0.25)


@pytest.mark.parametrize("case", [case for case in LAYOUTS if case != "log_linear"])
def test_what_the_backward_pass_keeps_is_foreseen(tiny_store, tmp_path, case):
    """Held against a real batch of the run."""
    preset = tiny_preset(**LAYOUTS[case] | {"train__batch_size": 64, "data__genes": 64}).preset
    forecast = forecast_run(preset, outline_of_store(preset, tiny_store), tmp_path / "run")
    model = build_model(preset, tiny_store, name="example")
    cells = RunCells.of(preset, tiny_store)
    virtual_ranks = preset.train.virtual_ranks or 1
    source = make_batch_source(preset, cells, model, virtual_ranks=virtual_ranks)
    batch = source.batch(source.sampler.start)[1]
    machine = Machine("cpu", "bf16" if case == "bf16" else "no")
    kept = really_kept(model.config, preset.loss, machine, batch)
    assert forecast.memory["activations"] == pytest.approx(kept, rel=0.25)


def test_fewer_cells_at_a_time_keep_less(tiny_store, tmp_path):
    whole = forecast_of(tiny_store, tmp_path).memory["activations"]
    parts = forecast_of(tiny_store, tmp_path, train__micro_batches=4).memory["activations"]
    virtual_ranks = forecast_of(tiny_store, tmp_path, train__virtual_ranks=2).memory["activations"]
    assert parts == pytest.approx(whole / 4, rel=0.2)
    assert virtual_ranks == pytest.approx(whole / 2, rel=0.2)


def test_operations_are_those_of_the_formula(tiny_store, tmp_path):
    forecast = forecast_of(tiny_store, tmp_path)
    width, layers, length = 32, 2, 40
    layer = 4 * (width * width + width) + 2 * 4 * width * width + 5 * width + 4 * width
    assert forecast.tokens["sequence"] == length
    assert forecast.operations["token"] == 6 * layers * layer + 12 * layers * width * length
    assert forecast.operations["step"] == forecast.operations["token"] * 32 * length


def test_what_is_done_is_not_forecast_again(tiny_store, tmp_path):
    preset = tiny_preset(train__max_steps=100).preset
    cells = outline_of_store(preset, tiny_store)
    whole = forecast_run(preset, cells, tmp_path / "run")
    rest = forecast_run(preset, cells, tmp_path / "run", done=75)
    assert rest.operations["run"] == whole.operations["run"] / 4
    assert rest.tokens["steps_done"] == 75


def test_the_tables_of_the_files_agree_with_the_store(tiny_store, tmp_path):
    preset = tiny_preset().preset
    guessed = outline_of_facts(preset, check_data(preset.data, scope="tables").facts)
    known = outline_of_store(preset, tiny_store)
    assert (guessed.n_training, guessed.n_validation) == (known.n_training, known.n_validation)
    assert guessed.n_genes == known.n_genes
    assert {k: len(v) for k, v in guessed.phenotypes.items()} == pytest.approx(
        {k: len(v) for k, v in known.phenotypes.items()}, abs=2
    )
    real = sum(path.stat().st_size for path in tiny_store.path.iterdir() if path.suffix == ".npy")
    assert guessed.store_bytes == pytest.approx(real, rel=0.3)
    assert any("not prepared yet" in one for one in guessed.assumptions)


# A whole genome, as PerturbGene's: never held in memory by the forecast.
LABELS = {"sex": ["f", "m"], "cell_type": [str(n) for n in range(161)]}
ATLAS = CellOutline("somewhere", 50_000_000, 1_000, 58_604, LABELS, np.full(100, 2_000))
HUGE = {"model__layers": 48, "model__hidden_size": 8192, "model__heads": 32}
HUGE |= {"encoding__layout": "expressed", "train__batch_size": 4096, "data__genes": 58_604}


def test_a_model_larger_than_the_machine_is_foreseen_without_being_made(tmp_path):
    forecast = forecast_run(tiny_preset(**HUGE).preset, ATLAS, tmp_path / "run")
    assert sum(forecast.parameters.values()) > 38e9
    assert forecast.memory["activations"] > 1e12
    assert forecast.verdict == "too much"
    assert not forecast.timed
    assert "computed at 70% of the peak" in forecast.timing
    assert any("a smaller model" in note for note in forecast.notes)
    per_step = forecast.operations["step"] / (0.7 * forecast.machine["peak"])
    assert forecast.seconds["step"] == pytest.approx(per_step)


def test_a_step_that_does_not_fit_gets_advice_with_which_it_fits(tmp_path, monkeypatch):
    monkeypatch.setattr("core.training.forecast._available_memory", lambda *_: 8e9)
    monkeypatch.setattr("core.training.forecast.profile_step", lambda *_, **__: TIMES)
    options = {"encoding__layout": "expressed", "train__batch_size": 4096, "data__genes": 2_432}
    cells = replace(ATLAS, n_genes=2_432)
    forecast = forecast_run(tiny_preset(**options).preset, cells, tmp_path / "run")
    assert forecast.verdict == "too much"
    advice = " ".join(forecast.notes)
    parts = int(re.search(r"--set train.micro_batches=(\d+) computes the same", advice)[1])
    fits = tiny_preset(**options, train__micro_batches=parts).preset
    assert forecast_run(fits, cells, tmp_path / "run").verdict == "ok"
    nearly = tiny_preset(**options, train__micro_batches=parts // 2).preset
    assert forecast_run(nearly, cells, tmp_path / "run").verdict != "ok"


TIMES = StepProfile(
    n_cells=8, cell=0.5, scored_cell=0.125, log_linear_cell=0.0625, optimiser=1.0, peak_bytes=None
)


@pytest.mark.parametrize(("processes", "step"), [(1, 17.0), (2, 17.0)])
def test_times_add_up(tiny_store, tmp_path, monkeypatch, processes, step):
    """32 cells a step of half a second each; processes on CPUs divide what was measured."""
    monkeypatch.setattr("core.training.forecast.profile_step", lambda *_, **__: TIMES)
    options = {"train__max_steps": 100, "train__eval_steps": 40, "train__eval_cells": 10}
    options |= {"model__log_linear": True, "train__log_linear_steps": 30}
    preset = tiny_preset(**options).preset
    cells = replace(outline_of_store(preset, tiny_store), n_training=320, prepare_seconds=9.0)
    seconds = forecast_run(preset, cells, tmp_path / "run", processes=processes).seconds
    assert seconds == {
        "preparing the cells": 9.0,
        "step": step,
        "step of the log-linear part alone": 3.0,
        "evaluation": 2.5,
        "epoch": 10 * (step + 2.5 / 40),
        "run": 70 * step + 30 * 3.0 + 4 * 2.5,  # one evaluation before the first step
    }
    rest = forecast_run(preset, cells, tmp_path / "run", processes=processes, done=50).seconds
    assert "step of the log-linear part alone" not in rest
    assert rest["run"] == 50 * step + 2 * 2.5


def test_a_busy_machine_is_measured_on_one_thread_and_named(tiny_store, tmp_path, monkeypatch):
    n_threads = []

    def measure(*_, **__):
        n_threads.append(torch.get_num_threads())
        return TIMES

    monkeypatch.setattr("core.training.forecast.profile_step", measure)
    torch.set_num_threads(2)
    try:
        for taken, threads in ((60.0, 1), (5.0, 2)):
            monkeypatch.setattr("psutil.cpu_percent", lambda *, interval, taken=taken: taken)
            notes = forecast_of(tiny_store, tmp_path, train__threads="auto").notes
            assert any("other programs take 60 %" in one for one in notes) == (taken > 20)
            assert n_threads.pop() == threads
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_more_cells_than_there_are_make_one_step(tiny_store, tmp_path):
    forecast = forecast_of(tiny_store, tmp_path, train__batch_size=10_000)
    assert forecast.cells["step"] == forecast.cells["training"]
    assert forecast.tokens["steps_per_epoch"] == 1


SMALL_BUDGET = {"train__tokens_per_batch": 20, "encoding__layout": "expressed"}
MANY_RANKS = {"train__virtual_ranks": 500, "train__batch_size": 500}
TWO_RANKS = {"train__batch_size": 31, "train__virtual_ranks": 2}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train__device": "cuda"}, MachineError, "this machine has no such device"),
        ({"train__precision": "fp16"}, MachineError, "fp16"),
        ({"model__attention": "varlen"}, MachineError, "varlen"),
        ({"train__trackers": ["wandb"]}, MachineError, "wandb is not installed"),
        ({"loss__kind": "bce"}, ConfigurationError, "does not fit"),
        ({"encoding__max_length": 20}, ConfigurationError, "too short"),
        ({"train__tokens_per_batch": 39}, ConfigurationError, "no room for a cell of 40 tokens"),
        (SMALL_BUDGET, ConfigurationError, "no room for two cells of"),
        (MANY_RANKS, ConfigurationError, "training cells cannot be dealt to 500 virtual ranks"),
        (TWO_RANKS, ConfigurationError, "cannot be shared equally by 2 virtual ranks"),
    ],
)
def test_what_cannot_run_is_refused_as_training_refuses_it_before_anything_is_written(
    tiny_store, tmp_path, options, error, message
):
    options = {"train__device": "cpu"} | options
    if torch.cuda.is_available() and options["train__device"] == "cuda":
        pytest.skip("there is a GPU here")
    if "train__trackers" in options and find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    resolved = tiny_preset(**options)
    cells = outline_of_store(resolved.preset, tiny_store)
    with pytest.raises(error, match=message) as forecast:
        forecast_run(resolved.preset, cells, tmp_path / "run")
    with pytest.raises(error) as training:
        train(resolved, tiny_store, tmp_path / "run")
    assert str(forecast.value) == str(training.value)
    assert list(tmp_path.iterdir()) == []
