"""Other systems' models against themselves: hidden states and logits equal after conversion."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    DistilBertForMaskedLM,
    DistilBertModel,
)

from core.cells.genes import GenePanel
from core.errors import ConfigurationError, DataError
from core.published.foreign_model import read_foreign_model, read_shape
from core.published.weights import check_start_shape, convert
from core.training.start_weights import is_foreign
from tests.model.examples import N_GENES, make_batch, make_network
from tests.tiny_atlas import tiny_preset

from .foreign_models import (
    GENES,
    SHAPE,
    PerturbGene,
    PolyGene,
    bert_config,
    distilbert_config,
    randomise,
)

PANEL = GenePanel(
    tuple(f"ENSG0000000000{gene}" for gene in range(N_GENES)),
    tuple(f"GENE{gene}" for gene in range(N_GENES)),
)
SYSTEMS = [(PolyGene, "ranked"), (PolyGene, "expressed"), (PerturbGene, "expressed")]
FULL_HEADER = {
    "sex": ["female", "male"], "tissue": ["lung", "blood", "liver"], "cell_type": ["T cell"],
    "age": [], "disease": ["normal"],
}  # fmt: skip


def converted_network(folder, config_of, *, double=True):
    """Convert a folder into a network whose own weights are all random."""
    network = make_network(**config_of, seed=3)
    if double:
        network = network.double()
    tensors = convert(read_foreign_model(folder), network.config, PANEL)
    missing = network.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    return network, missing.missing_keys


def hidden(network, batch):
    route = network.attention_route()
    return network.encoder_part.encode(batch, route)


def own_logits(network, batch):
    """Logits of masked genes and phenotypes as the heads give them, in the network's precision."""
    return network.encoder_part(batch, network.attention_route())[:2]


# ------------------------------------------------------------------------- PolyGene and PerturbGene
@pytest.mark.parametrize(("system", "layout"), SYSTEMS)
@pytest.mark.parametrize(("double", "atol"), [(True, 1e-10), (False, 1e-5)])
def test_hidden_states_and_joint_logits_are_those_of_the_published_model(
    tmp_path, system, layout, double, atol
):
    original = system()
    network, kept = converted_network(
        original.save(tmp_path), {"layout": layout, "head": "joint"}, double=double
    )
    assert [name for name in kept if name.startswith("encoder_part")] == []
    if double:
        original.model.double()
        if system is PerturbGene:
            original.types.double()
    batch = make_batch(network.config, n_cells=12, genes=0.4, unspecified=0.4)
    hidden_theirs, logits_theirs = original.run(network.config, batch)
    with torch.no_grad():
        ours = hidden(network, batch)
        genes, phenotypes = own_logits(network, batch)
    assert len(batch.gene_position) > 5
    assert len(batch.phenotype_position) > 2
    wanted = logits_theirs[:, original.answers(network.config)]
    torch.testing.assert_close(ours, hidden_theirs, atol=atol, rtol=0)
    torch.testing.assert_close(genes, wanted[batch.gene_position], atol=atol, rtol=0)
    torch.testing.assert_close(phenotypes, wanted[batch.phenotype_position], atol=atol, rtol=0)
    if layout == "expressed":
        assert len(set(batch.cu_seqlens.diff().tolist())) > 1, "the cells must be ragged"


def test_polygenes_whole_header_is_equal_too(tmp_path):
    original = PolyGene()
    phenotypes = {name: values or ["T cell"] for name, values in FULL_HEADER.items()}
    network, _ = converted_network(
        original.save(tmp_path),
        {"head": "joint", "phenotypes": phenotypes, "longest_sequence": N_GENES + 8},
    )
    original.model.double()
    batch = make_batch(network.config)
    _, logits = original.run(network.config, batch)
    with torch.no_grad():
        genes, _ = own_logits(network, batch)
    wanted = logits[:, original.answers(network.config)][batch.gene_position]
    torch.testing.assert_close(genes, wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("system", "layout"), SYSTEMS)
@pytest.mark.parametrize("kind", ["binned", "binary"])
def test_a_split_head_gives_the_same_logits_each_in_its_own_softmax(tmp_path, system, layout, kind):
    original = system(n_bins=4 if kind == "binned" else 2)
    network, _ = converted_network(original.save(tmp_path), {"kind": kind, "layout": layout})
    original.model.double()
    if system is PerturbGene:
        original.types.double()
    batch = make_batch(network.config, genes=0.5)
    _, logits = original.run(network.config, batch)
    wanted = logits[:, original.answers(network.config)]
    bins = wanted[batch.gene_position][:, : original.n_bins]
    if kind == "binary":
        bins = bins[:, 1:] - bins[:, :1]
    with torch.no_grad():
        genes, phenotypes = own_logits(network, batch)
    torch.testing.assert_close(genes, bins, atol=1e-10, rtol=0)
    values = wanted[batch.phenotype_position][:, original.n_bins :]
    torch.testing.assert_close(phenotypes, values, atol=1e-10, rtol=0)


def test_beside_a_log_linear_the_encoder_is_taken_and_its_outputs_stay(tmp_path):
    folder = PolyGene().save(tmp_path)
    network = make_network(log_linear=True, log_linear_rank=2)
    names = set(convert(read_foreign_model(folder), network.config, PANEL))
    assert "encoder_part.gene_transform.linear.weight" in names
    assert not [name for name in names if "_output" in name and "attention" not in name]
    assert "encoder_part.gene_bias.weight" not in names


def test_an_encoder_without_a_head_is_taken_alone(tmp_path):
    original = PolyGene()
    original.save(tmp_path)
    original.model.bert.save_pretrained(tmp_path)
    names = set(convert(read_foreign_model(tmp_path), make_network().config, PANEL))
    assert "encoder_part.encoder.layers.1.feed_forward_norm.bias" in names
    assert "encoder_part.embedding.value.weight" in names
    assert not [name for name in names if "_transform" in name or "gene_" in name]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_bins": 5}, r"has 4 bins; set encoding\.kind = 'binned' and encoding\.bins = 4"),
        ({"kind": "continuous"}, "has 4 bins"),
        (
            {"phenotypes": {"sex": ["female", "unknown1", "x"]}},
            r"does not know sex 'unknown1', sex 'x'; give its values as data\.vocabulary$",
        ),
        ({"phenotypes": {"age": ["30-39"]}}, r"age '30-39'.*need data\.age_groups = 'none'"),
        (
            {"phenotypes": {"treatment": ["drug"]}},
            r"'treatment' \(it knows sex, tissue, .*set data\.phenotypes\.treatment = false",
        ),
    ],
)
def test_what_the_other_model_does_not_know_is_refused(tmp_path, config, message):
    folder = PolyGene().save(tmp_path)
    network = make_network(**config)
    with pytest.raises(ConfigurationError, match=message):
        convert(read_foreign_model(folder), network.config, PANEL)


def test_genes_that_the_other_model_does_not_know_are_named(tmp_path):
    folder = PolyGene().save(tmp_path)
    panel = GenePanel(("A", "B", *PANEL.ids[2:]), ("A", "B", *PANEL.symbols[2:]))
    with pytest.raises(ConfigurationError, match=r"does not know A, B of the panel's 7 genes"):
        convert(read_foreign_model(folder), make_network().config, panel)


def test_a_phenotype_is_found_by_its_obs_column(tmp_path):
    original = PerturbGene()
    folder = original.save(tmp_path)
    config = make_network(layout="expressed", phenotypes={"organ": ["lung", "liver"]}).config
    foreign = read_foreign_model(folder)
    with pytest.raises(ConfigurationError, match="does not know the phenotype 'organ'"):
        convert(foreign, config, PANEL)
    value = convert(foreign, config, PANEL, {"organ": "tissue"})
    row = value["encoder_part.embedding.value.weight"][int(config.tokens.not_specified[0]) + 2]
    liver = original.model.distilbert.embeddings.word_embeddings.weight[7]
    torch.testing.assert_close(row, liver.double(), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: (f / "genes.txt").unlink(), ConfigurationError, "which genes its model knows"),
        (
            lambda f: (f / "genes.txt").write_text("\n".join(GENES[:-1])),
            DataError,
            "lists 8 genes, but 17 positions are those of 9",
        ),
        (
            lambda f: (f / "genes.txt").write_text("\n".join([*GENES[:-1], "ENSG99"])),
            DataError,
            "'ENSG99' is named twice",
        ),
        (
            lambda f: (f / "vocab.txt").write_text("\n".join([*PolyGene.VOCABULARY, "[x]", "[y]", "[z]"])),
            DataError,
            "leaves no bins",
        ),
    ],
)  # fmt: skip
def test_polygenes_files_must_fit_its_tables(tmp_path, change, error, message):
    folder = PolyGene().save(tmp_path)
    change(folder)
    with pytest.raises(error, match=message):
        read_foreign_model(folder)


def test_perturbgenes_vocabulary_may_be_that_of_the_preset(tmp_path):
    folder = PerturbGene().save(tmp_path / "model")
    elsewhere = shutil.move(folder / "phenotypic_tokens_map.json", tmp_path / "vocabulary.json")
    with pytest.raises(ConfigurationError, match=r"without its vocabulary; copy phenotypic_tok"):
        read_foreign_model(folder)
    foreign = read_foreign_model(folder, vocabulary=elsewhere)
    assert foreign.tokens.slots == {"cell_type": 1, "sex": 2, "tissue": 3}


# ---------------------------------------------------------------------------------- models of text
@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, BertForPreTraining])
def test_a_text_berts_layers_and_positions_are_taken_and_its_words_are_not(tmp_path, kind):
    bert = randomise(kind(bert_config(vocab_size=30, max_position_embeddings=40)))
    bert.save_pretrained(tmp_path)
    network, kept = converted_network(tmp_path, {"head": "joint"})
    encoder = (bert if kind is BertModel else bert.bert).double()
    batch = make_batch(network.config)
    length = N_GENES + 5
    words = network.encoder_part.embedding.value.weight[batch.value].view(-1, length, 12)
    with torch.no_grad():
        theirs = encoder(inputs_embeds=words).last_hidden_state
        ours = hidden(network, batch)
    torch.testing.assert_close(ours, theirs.flatten(0, 1), atol=1e-10, rtol=0)
    assert "encoder_part.embedding.value.weight" in kept
    assert ("encoder_part.joint_transform.linear.weight" in kept) is (kind is BertModel)


@pytest.mark.parametrize("kind", [DistilBertModel, DistilBertForMaskedLM])
def test_a_text_distilberts_layers_and_positions_are_taken(tmp_path, kind):
    bert = randomise(kind(distilbert_config(vocab_size=30, max_position_embeddings=40)))
    bert.save_pretrained(tmp_path)
    network, _ = converted_network(tmp_path, {})
    encoder = (bert if kind is DistilBertModel else bert.distilbert).double()
    batch = make_batch(network.config)
    words = network.encoder_part.embedding.value.weight[batch.value].view(-1, N_GENES + 5, 12)
    with torch.no_grad():
        theirs = encoder(inputs_embeds=words).last_hidden_state
        ours = hidden(network, batch)
    torch.testing.assert_close(ours, theirs.flatten(0, 1), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("layout", "positions"), [("ranked", 11), ("expressed", 40)])
def test_positions_that_do_not_fit_are_left_behind(tmp_path, layout, positions):
    bert = randomise(BertModel(bert_config(vocab_size=9, max_position_embeddings=positions)))
    bert.save_pretrained(tmp_path)
    _, kept = converted_network(tmp_path, {"layout": layout})
    assert "encoder_part.embedding.identity.weight" in kept


def test_old_names_shards_and_pickled_tensors_give_the_same_weights(tmp_path):
    bert = randomise(BertForMaskedLM(bert_config(vocab_size=30)))
    bert.save_pretrained(tmp_path / "new")
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    wanted = convert(read_foreign_model(tmp_path / "new"), make_network().config, PANEL)

    def folder(name):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "new" / "config.json", tmp_path / name)
        return tmp_path / name

    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    assert set(old) != set(tensors)
    save_file(old, folder("old") / "model.safetensors")
    torch.save(tensors, folder("pickled") / "pytorch_model.bin")
    halves = folder("shards")
    names = sorted(tensors)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, halves / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (halves / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("old", "pickled", "shards"):
        found = convert(read_foreign_model(tmp_path / name), make_network().config, PANEL)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


# ------------------------------------------------------------------------------------- bad folders
class Malice:
    """Would run a command when unpickled."""

    def __reduce__(self):
        return (print, ("this must never run",))


def _pickle_in_disguise(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Malice()))


def _code_in_weights(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Malice()}, folder / "pytorch_model.bin")


def _list_of_tensors(folder):
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")


def _changed(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _index_that_leaves_the_folder(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../other.safetensors"}})
    )


KEY = "bert.encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_pickle_in_disguise, r"model\.safetensors: not a safetensors file, or damaged"),
        (_code_in_weights, "holds more than tensors, which could run code"),
        (_list_of_tensors, "not a dictionary of tensors"),
        (_index_that_leaves_the_folder, "'../other.safetensors', which is no file of its folder"),
        (lambda f: (f / "model.safetensors").unlink(), r"no weights \(model\.safetensors or"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object"),
        (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "is missing"),
        (lambda f: _changed(f, lambda t: t.pop(KEY)), "output.dense.weight is not among its"),
        (
            lambda f: _changed(f, lambda t: t.update({KEY: torch.zeros(12, 19)})),
            r"is 12 x 19, where its config\.json means 12 x 20",
        ),
        (lambda f: _changed(f, lambda t: t[KEY][0].fill_(torch.nan)), "not finite"),
        (
            lambda f: _changed(f, lambda t: t.pop("bert.embeddings.word_embeddings.weight")),
            "this is no bert",
        ),
    ],
)
def test_damaged_and_dangerous_folders_are_refused_in_one_sentence(
    tmp_path, capsys, change, message
):
    randomise(BertForMaskedLM(bert_config(vocab_size=30))).save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=message) as refused:
        convert(read_foreign_model(tmp_path), make_network().config, PANEL)
    assert "\n" not in str(refused.value)
    assert "this must never run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "a model of type 'roberta'; tfx starts from its own"),
        ({"position_embedding_type": "relative_key"}, "has relative_key positions"),
    ],
)
def test_other_kinds_of_model_are_refused(tmp_path, changes, message):
    BertModel(bert_config(vocab_size=9)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert is_foreign(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        read_shape(tmp_path)


def test_every_difference_of_shape_is_named_with_its_key(tmp_path):
    BertModel(bert_config(vocab_size=9, hidden_act="relu")).save_pretrained(tmp_path)
    same = {f"model__{key}": value for key, value in SHAPE.items()}
    with pytest.raises(ConfigurationError) as caught:
        check_start_shape(tiny_preset(model__start_from=str(tmp_path), **same).preset)
    assert "has an activation 'relu', which tfx does not have (it has 'gelu'); set" in str(
        caught.value
    )
    other = {"layers": 3, "heads": 4, "hidden_size": 16, "intermediate_size": 64,
             "activation": "geglu", "norm": "pre"}  # fmt: skip
    with pytest.raises(ConfigurationError) as caught:
        check_start_shape(
            tiny_preset(
                model__start_from=str(tmp_path), **{f"model__{k}": v for k, v in other.items()}
            ).preset
        )
    for difference in (
        "model.layers = 2 (", "model.hidden_size = 12 (", "model.heads = 3 (",
        "model.intermediate_size = 20 (", "model.activation = 'gelu' (", "model.norm = 'post' (",
    ):  # fmt: skip
        assert difference in str(caught.value)
