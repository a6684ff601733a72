"""`model.start_from` with models of other systems, and the documented example."""

import logging
import re
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertModel

from core.cells.prepare import prepare_store
from core.errors import ConfigurationError
from core.presets.loading import resolve_preset
from core.published.weights import check_start_shape, convert_start
from core.training.engine import train
from tests.tiny_atlas import build_model, tiny_preset

DOCUMENT = Path(__file__).parents[2] / "docs" / "start-from-other-models.md"
SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
         "intermediate_size": 128}  # fmt: skip
HEADER = ("sex", "tissue", "cell_type", "age", "disease")


def write_polygene(folder, *, genes, phenotypes, n_bins, **shape):
    """Write a random PolyGene that knows some genes and phenotype values."""
    vocabulary = ["[PAD]", "[MASK]", "[SEP]", "[CLS]", "[UNK]", "[START]", "[END]"]
    vocabulary += [f"[no_{name}]" for name in HEADER]
    vocabulary += [
        f"[{value}]".replace(" ", "_") for values in phenotypes.values() for value in values
    ]
    config = BertConfig(
        **(SHAPE | shape),
        vocab_size=len(vocabulary) + n_bins,
        max_position_embeddings=len(genes) + 8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForMaskedLM(config)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    (folder / "genes.txt").write_text("\n".join(genes), encoding="utf-8")
    return model


def build(store, folder, **options):
    preset = tiny_preset(model__start_from=str(folder), **options).preset
    return build_model(preset, store, name="example", convert_weights=convert_start)


def test_a_run_begins_with_polygenes_weights(tiny_store, tmp_path, caplog):
    panel = tiny_store.panel(40)
    polygene = write_polygene(
        tmp_path, genes=panel.symbols[::-1], phenotypes=tiny_store.phenotypes, n_bins=10
    )
    with caplog.at_level(logging.INFO, logger="core"):
        network = build(tiny_store, tmp_path, model__head="joint").network
    assert f"initial weights: {tmp_path} (PolyGene)" in caplog.text
    assert "drawn at random" not in caplog.text, "a whole PolyGene leaves nothing to draw"
    layer = network.encoder_part.encoder.layers[1]
    theirs = polygene.bert.encoder.layer[1]
    assert torch.equal(layer.feed_forward_in.weight, theirs.intermediate.dense.weight)
    genes = network.encoder_part.embedding.identity.weight[-32:]
    positions = polygene.bert.embeddings
    wanted = positions.position_embeddings.weight[7 + 8 : 7 + 40].flip(0)
    wanted = wanted + positions.token_type_embeddings.weight[0]
    torch.testing.assert_close(genes, wanted, atol=1e-7, rtol=0)


def test_a_text_model_gives_its_layers_and_the_rest_is_drawn(tiny_store, tmp_path, caplog):
    shape = {"n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 128}
    bert = DistilBertModel(DistilBertConfig(vocab_size=50, max_position_embeddings=64, **shape))
    bert.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="core"):
        network = build(tiny_store, tmp_path).network
    assert "(a distilbert of text)" in caplog.text
    drawn = re.search("drawn at random: (.*)", caplog.text)[1]
    assert "encoder_part.embedding.value.weight" in drawn
    assert "encoder_part.gene_bias.weight" in drawn
    assert "layers" not in drawn
    own = build_model(tiny_preset().preset, tiny_store, name="example").network
    assert torch.equal(network.encoder_part.gene_bias.weight, own.encoder_part.gene_bias.weight), (
        "genes still start at their training marginals"
    )
    assert torch.equal(
        network.encoder_part.encoder.layers[0].feed_forward_out.weight,
        bert.transformer.layer[0].ffn.lin2.weight,
    )


def test_a_foreign_shape_is_refused_before_any_cell_is_read(tmp_path):
    BertForMaskedLM(BertConfig(**(SHAPE | {"num_hidden_layers": 3}), vocab_size=9)).save_pretrained(
        tmp_path
    )
    preset = tiny_preset(model__start_from=str(tmp_path), model__norm="pre").preset
    message = (
        r"has model\.layers = 3 \(the preset has 2\), model\.norm = 'post' \(the preset has 'pre'\); "
        r"set the \[model\] section to its shape"
    )
    with pytest.raises(ConfigurationError, match=message):
        check_start_shape(preset)


def test_the_documented_example_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    Path("mine.toml").write_text(block, encoding="utf-8")
    resolved = resolve_preset(Path("mine.toml"), options={"train.device": "cpu"})
    store = prepare_store(resolved.preset.data, tmp_path / "store")
    shape = resolved.preset.model
    write_polygene(
        Path("polygene"),
        genes=store.panel(50).ids,
        phenotypes=store.phenotypes,
        n_bins=resolved.preset.encoding.bins,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate_size,
    )
    result = train(resolved, store, tmp_path / "run", convert_weights=convert_start)
    assert result.steps == 2
    assert (result.model / "model.safetensors").is_file()
