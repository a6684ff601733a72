"""Model folders of earlier releases load, under the names of today, and predict."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from scipy import sparse

from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel
from core.model.reference import ControlTokens

FOLDER = Path(__file__).parents[1] / "training/releases/0.1.0/small/model"
BEGINNINGS = {"skeleton.votes.": "log_linear.couplings.", "skeleton.": "log_linear."}


def present_name(name):
    for old, new in BEGINNINGS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def test_the_weights_of_release_0_1_0_load_unchanged_under_their_new_names():
    loaded = CellModel.load(FOLDER).network.state_dict()
    raw = load_file(FOLDER / "model.safetensors")
    assert {present_name(name) for name in raw} == loaded.keys()
    assert "log_linear.couplings.weight" in loaded
    for name, tensor in raw.items():
        np.testing.assert_array_equal(loaded[present_name(name)].numpy(), tensor, err_msg=name)


def test_the_facts_of_release_0_1_0_load_under_their_new_names():
    model, raw = CellModel.load(FOLDER), json.loads((FOLDER / "tfx.json").read_text())
    assert model.provenance == raw["origin"]
    assert model.generate.genes_per_cell == raw["generate"]["depth"] == "sample"
    assert (model.config.log_linear, model.config.log_linear_rank) == (True, 4)
    depth = load_file(FOLDER / "reference.safetensors")["depth"]
    np.testing.assert_array_equal(model.reference.genes_per_cell, depth[:, 0])
    np.testing.assert_array_equal(model.reference.library_size, depth[:, 1])
    tokens = ControlTokens.read(FOLDER)
    assert (tokens.is_simulated, tokens.generate["genes_per_cell"]) == (False, "sample")


def test_a_model_of_release_0_1_0_predicts_and_is_the_same_once_saved_anew(tmp_path):
    model = CellModel.load(FOLDER)
    model.save(tmp_path / "model")
    (slot,) = model.config.predicted.values()
    expression = sparse.random(20, len(model.panel), 0.5, "csr", np.float32, random_state=0)
    codes = np.zeros((20, 1), dtype=np.int32)
    batch = model.batches.visible(
        expression, codes, model.config.predicted, np.random.default_rng(0)
    )
    logits = []
    for one in (model, CellModel.load(tmp_path / "model")):
        with torch.no_grad():
            logits.append(one.network(BatchTensors.from_arrays(batch)).phenotype_logits)
    assert torch.equal(*logits)
    probabilities = model.network.phenotype_probabilities(logits[0], slot)
    assert len(probabilities.argmax(dim=1).unique()) > 1  # it distinguishes cells
    np.testing.assert_allclose(probabilities.sum(dim=1), 1, rtol=1e-5)
