"""The model folder: a round trip, transformers' own loaders, and damage."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from core.errors import DataError, MachineError
from core.model.calibration import PhenotypeCalibration
from core.model.folder import CellModel

from .examples import make_batch, make_cell_model

CASES = [
    ("binned", "ranked", {"log_linear": True}),
    ("binned", "expressed", {"head": "joint"}),
    ("binary", "ranked", {"norm": "pre", "activation": "geglu"}),
    ("continuous", "expressed", {}),
    ("binned", "ranked", {"layers": 0, "log_linear": True}),
    # Not in alphabetical order: transformers sorts the keys of the mappings it saves.
    ("binned", "ranked", {"phenotypes": {"tissue": ["lung", "blood", "liver"], "sex": ["f", "m"]}}),
    ("binned", "ranked", {"phenotypes": {}}),
]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    make_cell_model().save(path)
    return path


@pytest.mark.parametrize(("kind", "layout", "changes"), CASES)
def test_a_saved_model_predicts_bit_for_bit_as_before(tmp_path, kind, layout, changes):
    model = make_cell_model(kind, layout, **changes)
    model.save(tmp_path / "model")
    loaded = CellModel.load(tmp_path / "model")
    batch = make_batch(model.config, phenotypes=0.8)
    with torch.no_grad():
        one, two = model.network(batch), loaded.network(batch)
    assert torch.equal(one.gene_logits, two.gene_logits)
    assert torch.equal(one.phenotype_logits, two.phenotype_logits)
    assert not loaded.network.training


def test_everything_beside_the_weights_comes_back(tmp_path):
    model = make_cell_model()
    known = {"temperature": 1.5, "probabilities": [0.0, 0.5], "kept_accuracies": [0.8, 1.0]}
    model.calibration = {"sex": PhenotypeCalibration(n_cells=60, n_donors=3, majority=0.6, **known)}
    model.save(tmp_path / "model")
    loaded = CellModel.load(tmp_path / "model")
    assert loaded.panel == model.panel
    assert loaded.values.kind == model.values.kind
    assert loaded.masking == model.masking
    assert loaded.generate == model.generate
    assert loaded.provenance == model.provenance
    assert loaded.calibration == model.calibration
    assert loaded.config.phenotypes == model.config.phenotypes
    assert loaded.config.tokens == model.config.tokens
    np.testing.assert_array_equal(loaded.values.edges, model.values.edges)
    for name in ("quantiles", "means"):
        np.testing.assert_array_equal(getattr(loaded.table, name), getattr(model.table, name))
    for name in ("combinations", "counts", "means", "detection", "bin_counts"):
        one, two = getattr(loaded.reference, name), getattr(model.reference, name)
        np.testing.assert_array_equal(one, two)
        assert one.dtype == two.dtype


def test_transformers_own_loaders_know_the_folder(tmp_path):
    model = make_cell_model(log_linear=True)
    model.save(tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert config.phenotypes == model.config.phenotypes
    network = AutoModel.from_pretrained(tmp_path / "model").eval()
    assert type(network) is type(model.network)
    batch = make_batch(model.config, phenotypes=0.8)
    with torch.no_grad():
        one, two = model.network(batch), network(batch)
    assert torch.equal(one.gene_logits, two.gene_logits)
    assert torch.equal(one.phenotype_logits, two.phenotype_logits)


def test_the_folder_holds_what_it_should_and_no_pickle(folder):
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "encoding.json", "encoding.safetensors", "genes.json",
        "model.safetensors", "reference.safetensors", "tfx.json",
    }  # fmt: skip
    for path in folder.iterdir():
        start = path.read_bytes()[:4]
        assert not start.startswith((b"\x80", b"PK")), f"{path.name} is a pickle or a zip"


def test_loading_is_silent(folder, capfd):
    CellModel.load(folder)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_a_simulated_models_card_warns(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "simulated cells" in card
    assert "cells.h5ad" in card


def test_saving_over_a_model_replaces_it_and_leaves_nothing_beside(folder):
    other = make_cell_model(seed=1)
    other.save(folder)
    loaded = CellModel.load(folder)
    weight = "encoder_part.gene_output.weight"
    assert torch.equal(loaded.network.state_dict()[weight], other.network.state_dict()[weight])
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_save_that_fails_leaves_the_older_model_whole(folder, monkeypatch):
    def fail(*_):
        message = "disk full"
        raise OSError(message)

    monkeypatch.setattr("core.model.folder.model_card", fail)
    with pytest.raises(MachineError, match=r"cannot be written \(disk full\)"):
        make_cell_model(seed=1).save(folder)
    CellModel.load(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


CHECKED = [
    "model.safetensors", "config.json", "genes.json", "encoding.json", "encoding.safetensors",
    "reference.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing; copy the whole model folder"):
        CellModel.load(folder)


@pytest.mark.parametrize("name", CHECKED)
def test_an_altered_file_is_named(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} was altered or damaged"):
        CellModel.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ("[]", "expected a JSON object"), ("{}", "model format None")],
)
def test_an_unreadable_record_is_an_error(folder, content, message):
    (folder / "tfx.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        CellModel.load(folder)


def test_a_newer_format_is_an_error_with_what_to_do(folder):
    record = json.loads((folder / "tfx.json").read_text(encoding="utf-8"))
    (folder / "tfx.json").write_text(json.dumps(record | {"format_version": 99}), encoding="utf-8")
    with pytest.raises(
        DataError, match="model format 99, this tfx reads up to 2; use the tfx that"
    ):
        CellModel.load(folder)


def test_a_record_without_its_sections_is_an_error(folder):
    record = json.loads((folder / "tfx.json").read_text(encoding="utf-8"))
    del record["masking"]
    (folder / "tfx.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(DataError, match=r"tfx.json: masking: field required; copy the model"):
        CellModel.load(folder)


@pytest.mark.parametrize("path", [".", "absent"])
def test_a_folder_that_holds_no_model_is_an_error(tmp_path, path):
    with pytest.raises(DataError, match=r"not a model folder \(tfx.json is missing\)"):
        CellModel.load(Path(tmp_path) / path)
