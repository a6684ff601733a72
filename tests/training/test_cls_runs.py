"""Runs in which [CLS] learns too: resumed bit for bit, cut into parts, saved and used as any other."""

import numpy as np
import pytest
import torch

from core.errors import TrainingInterrupted
from core.model.folder import CellModel
from core.runlog import RunReader
from core.training.engine import train
from core.training.virtual_ranks import RunCells, make_batch_source
from tests.tiny_atlas import build_model, tiny_preset
from tests.training.test_engine import SHORT, assert_same_run, stop_after

BOTH = {"loss__cls_reconstruction": 1.0, "loss__cls_contrast": 0.1}


def with_cls(**options):
    return tiny_preset(**(SHORT | BOTH | options))


def lines(folder, split="train"):
    return [line for line in RunReader(folder).metrics() if line["split"] == split]


def test_a_run_resumes_bit_for_bit_and_its_model_is_as_any_other(tiny_store, tmp_path):
    train(with_cls(), tiny_store, tmp_path / "whole")
    with pytest.raises(TrainingInterrupted):
        train(with_cls(), tiny_store, tmp_path / "stopped", **stop_after(6))
    train(with_cls(), tiny_store, tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    last = lines(tmp_path / "whole")[-1]
    assert last["loss"] > last["loss/genes"] + last["loss/phenotypes"]
    assert last["loss/cls"] > 0
    assert "loss/cls" not in lines(tmp_path / "whole", "validation")[-1]
    model = CellModel.load(tmp_path / "whole/model")
    cells = tiny_store.read(tiny_store.rows("test")[:3], model.panel)
    codes = np.zeros((3, len(model.config.phenotypes)), dtype=np.int32)
    from core.model.batch_tensors import BatchTensors

    arrays = model.batches.visible(cells, codes, [], np.random.default_rng(0))
    with torch.inference_mode():
        embedded = model.network.cell_embeddings(BatchTensors.from_arrays(arrays))
    assert embedded.shape == (3, 32)


@pytest.mark.parametrize("context_genes", [None, 12])
def test_a_step_in_parts_reconstructs_as_one_in_one(tiny_store, tmp_path, context_genes):
    for parts in (1, 3):
        options = {"loss__cls_contrast": 0.0, "model__dropout": 0.0, "train__max_steps": 3}
        options |= {"model__context_genes": context_genes}
        preset = with_cls(train__micro_batches=parts, **options)
        train(preset, tiny_store, tmp_path / str(parts))
    whole, cut = (lines(tmp_path / name) for name in ("1", "3"))
    for one, other in zip(whole, cut, strict=True):
        assert one["loss/cls"] == pytest.approx(other["loss/cls"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_contrasted_cells_are_next_to_their_other_masking(tiny_store):
    preset = with_cls().preset
    model = build_model(preset, tiny_store, name="x")
    source = make_batch_source(preset, RunCells.of(preset, tiny_store), model)
    found, batch = source.batch(source.sampler.start)
    assert batch.n_cells == len(found) == 2 * preset.train.batch_size
    assert np.array_equal(found[::2], found[1::2])
    assert len(set(found.tolist())) == preset.train.batch_size
    bounds = batch.cu_seqlens
    values = [batch.value[bounds[i] : bounds[i + 1]] for i in range(batch.n_cells)]
    differ = [not np.array_equal(values[i], values[i + 1]) for i in range(0, batch.n_cells, 2)]
    assert all(differ), "masked anew"
