"""`model.start_from` with folders of tfx, and with folders that are none."""

import pytest
import torch
from transformers import BertConfig, BertModel

from core.errors import ConfigurationError, DataError
from core.training.run_setup import check_preset
from tests.tiny_atlas import build_model, tiny_preset


def build(store, folder, **options):
    preset = tiny_preset(model__start_from=str(folder), **options).preset
    return build_model(preset, store, name="example")


@pytest.mark.parametrize("folder", ["run/model", "run"])
def test_weights_are_those_of_a_model_folder_or_of_the_run_around_it(tiny_store, tmp_path, folder):
    first = build_model(tiny_preset(train__seed=1).preset, tiny_store, name="example")
    first.save(tmp_path / "run" / "model")
    second = build(tiny_store, tmp_path / folder)
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name


def test_a_folder_that_is_not_there_is_refused_before_any_cell_is_read(tmp_path):
    with pytest.raises(ConfigurationError, match="nowhere is no folder; give a run"):
        check_preset(tiny_preset(model__start_from=str(tmp_path / "nowhere")).preset)


def test_an_empty_folder_is_refused(tiny_store, tmp_path):
    with pytest.raises(DataError, match="not a model folder"):
        build(tiny_store, tmp_path)


def test_a_model_of_another_system_needs_a_converter(tiny_store, tmp_path):
    BertModel(
        BertConfig(
            num_hidden_layers=1,
            hidden_size=8,
            num_attention_heads=2,
            intermediate_size=8,
            vocab_size=9,
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="is no model folder of tfx"):
        build(tiny_store, tmp_path)
