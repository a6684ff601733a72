"""The forecast beside the real thing: parameters, steps, memory that the backward pass keeps, refusals."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.cells.checks.preflight import preflight
from core.errors import ConfigurationError, MachineError
from core.model.batch_tensors import BatchTensors
from core.model.losses import masked_loss
from core.runlog import RunReader
from core.training.batch_source import make_batch_source
from core.training.cell_outline import CellOutline, outline_of_facts, outline_of_store
from core.training.engine import train
from core.training.forecast import forecast_run
from core.training.setup import build_model, chosen_rows
from tests.tiny_atlas import tiny_preset


def forecast_of(store, tmp_path, **options):
    preset = tiny_preset(**options).preset
    return forecast_run(preset, outline_of_store(preset, store), tmp_path / "runs" / "run")


LAYOUTS = {
    "ranked": {},
    "expressed": {"encoding__layout": "expressed"},
    "token budget": {"encoding__layout": "expressed", "train__tokens_per_batch": 600},
    "skeleton": {"model__skeleton": True, "masking__genes": "uniform"},
    "bf16": {"train__precision": "bf16"},
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_steps_and_sizes_are_those_of_the_run(tiny_store, tmp_path, case, monkeypatch):
    monkeypatch.setattr("core.model.skeleton_fit._STEPS", 5)
    options = LAYOUTS[case] | {"train__epochs": 1.0, "train__max_steps": None}
    forecast = forecast_of(tiny_store, tmp_path, **options)
    result = train(tiny_preset(**options), tiny_store, tmp_path / "run")
    assert forecast.tokens["steps"] == pytest.approx(result.steps, rel=0.1)
    reader = RunReader(tmp_path / "run")
    trained = {name: n for name, n in forecast.parameters.items() if name != "skeleton"}
    if case != "skeleton":
        assert sum(trained.values()) == reader.run["parameters"]
    else:
        assert sum(trained.values()) < reader.run["parameters"] < sum(forecast.parameters.values())
    checkpoint = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    (kept,) = [n for name, n in forecast.files.items() if name.startswith("checkpoints (1 ")]
    assert kept / 2 == pytest.approx(size, rel=0.35)


@pytest.mark.parametrize("case", [case for case in LAYOUTS if case != "skeleton"])
def test_what_the_backward_pass_keeps_is_foreseen(tiny_store, tmp_path, case):
    """Held against a real batch of the run, of which the forecast has measured a few cells."""
    preset = tiny_preset(**LAYOUTS[case] | {"train__batch_size": 64, "data__genes": 64}).preset
    forecast = forecast_run(preset, outline_of_store(preset, tiny_store), tmp_path / "run")
    model = build_model(preset, tiny_store, name="example")
    rows = chosen_rows(preset, tiny_store, "train")
    source = make_batch_source(preset.train, preset.masking, tiny_store, rows, model)
    batch = BatchTensors.from_arrays(source.batch(source.sampler.start)[1])
    kept: dict[int, int] = {}
    own = {p.data_ptr() for p in model.network.parameters()}

    def note(tensor):
        if tensor.data_ptr() not in own:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.network.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "bf16"):
            output = model.network(batch)
        loss = masked_loss(
            output.gene_logits, output.phenotype_logits, batch, model.config, preset.loss
        )
    assert loss.total.isfinite()
    assert forecast.memory["activations"] == pytest.approx(sum(kept.values()), rel=0.25)


def test_fewer_cells_at_a_time_keep_less(tiny_store, tmp_path):
    whole = forecast_of(tiny_store, tmp_path).memory["activations"]
    parts = forecast_of(tiny_store, tmp_path, train__micro_batches=4).memory["activations"]
    lanes = forecast_of(tiny_store, tmp_path, train__lanes=2).memory["activations"]
    assert (parts, lanes) == (pytest.approx(whole / 4), pytest.approx(whole / 2))


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


def test_the_tables_of_the_files_tell_what_the_store_does(tiny_store, tmp_path):
    preset = tiny_preset().preset
    guessed = outline_of_facts(preset, preflight(preset.data).facts)
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
ATLAS = CellOutline(
    "somewhere", 50_000_000, 1_000, 58_604,
    {"sex": ["f", "m"], "cell_type": [str(n) for n in range(161)]},
    np.full(100, 2_000),
)  # fmt: skip
HUGE = {"encoding__layout": "expressed", "model__layers": 48, "model__hidden_size": 8192,
        "model__heads": 32, "train__batch_size": 4096, "data__genes": 58_604}  # fmt: skip


def test_a_model_larger_than_the_machine_is_foreseen_without_being_made(tmp_path):
    forecast = forecast_run(tiny_preset(**HUGE).preset, ATLAS, tmp_path / "run")
    assert sum(forecast.parameters.values()) > 38e9
    assert forecast.verdict == "too much"
    assert not forecast.timed
    assert "activations" not in forecast.memory
    assert any("takes too long or too much memory" in note for note in forecast.notes)
    assert forecast.seconds["run"] > 0


def test_a_step_that_does_not_fit_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("core.training.forecast._available_memory", lambda _: 2e9)
    options = {"encoding__layout": "expressed", "train__batch_size": 4096}
    forecast = forecast_run(
        tiny_preset(**options).preset, replace(ATLAS, n_genes=2_432), tmp_path / "run"
    )
    assert forecast.verdict == "too much"
    share = sum(forecast.memory.values()) / 2e9
    parts = 2 ** math.ceil(math.log2(share / 0.7))
    assert any(f"--set train.micro_batches={parts} " in note for note in forecast.notes)


@pytest.mark.parametrize(
    ("options", "processes", "error", "message"),
    [
        ({"train__precision": "fp16"}, 1, MachineError, "fp16"),
        ({"model__attention": "varlen"}, 1, MachineError, "varlen"),
        ({"loss__kind": "bce"}, 1, ConfigurationError, "does not fit"),
        ({"encoding__max_length": 20}, 1, ConfigurationError, "too short"),
        ({"train__batch_size": 31}, 2, ConfigurationError, "cannot be shared equally by 2 lanes"),
        ({"train__lanes": 3}, 2, ConfigurationError, "cannot be dealt equally to 2 processes"),
    ],
)
def test_what_cannot_run_is_refused_as_training_refuses_it(
    tiny_store, tmp_path, options, processes, error, message
):
    preset = tiny_preset(**options).preset
    cells = outline_of_store(preset, tiny_store)
    with pytest.raises(error, match=message):
        forecast_run(preset, cells, tmp_path / "run", processes=processes)
