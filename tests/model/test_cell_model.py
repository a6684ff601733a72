"""The model as a whole: impossible configurations, shapes, phenotype predictions, embeddings."""

import pytest
import torch

from core.errors import ConfigurationError
from core.model.cell_model import TfxModel
from core.model.losses import masked_loss
from core.presets.schema import LossSettings

from .examples import make_batch, make_config, make_network


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("continuous", {"head": "joint"}, r"model\.head = 'joint' needs bins"),
        ("continuous", {"log_linear": True}, r"model\.log_linear needs bins and a split head"),
        (
            "binned",
            {"log_linear": True, "head": "joint"},
            r"model\.log_linear needs bins and a split",
        ),
        ("binned", {"layers": 0}, r"model\.layers = 0 leaves no model"),
        ("binned", {"encoder": "pooled", "context_genes": 3}, "the pooled encoder reads all genes"),
        ("binned", {"layout": "expressed", "context_genes": 3}, r"encoding\.max_length limits"),
    ],
)
def test_impossible_configurations_are_an_error(kind, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        TfxModel(make_config(kind, **changes))


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize(
    ("kind", "head", "n_gene", "n_phenotype"),
    [
        ("binary", "split", 1, 5),
        ("binned", "split", 4, 5),
        ("continuous", "split", 3, 5),
        ("binned", "joint", 9, 9),
        ("binary", "joint", 7, 7),
    ],
)
def test_logits_have_the_shape_of_the_masked_positions(kind, head, n_gene, n_phenotype, layout):
    network = make_network(kind, layout, head=head)
    batch = make_batch(network.config, phenotypes=0.8)
    output = network(batch)
    assert output.gene_logits.shape == (len(batch.gene), n_gene)
    assert output.phenotype_logits.shape == (len(batch.phenotype_slot), n_phenotype)
    assert torch.isfinite(output.gene_logits).all()


@pytest.mark.parametrize("head", ["split", "joint"])
def test_phenotype_probabilities_are_over_the_slots_own_values(head):
    network = make_network(head=head)
    batch = make_batch(network.config, phenotypes=1.0)
    logits = network(batch).phenotype_logits
    for slot, size in enumerate([2, 3]):
        own = logits[batch.phenotype_slot == slot]
        probability = network.phenotype_probabilities(own, slot)
        assert probability.shape == (len(own), size)
        torch.testing.assert_close(probability.sum(-1), torch.ones(len(own)))


def test_a_split_head_gives_other_phenotypes_values_no_chance():
    network = make_network()
    batch = make_batch(network.config, phenotypes=1.0)
    finite = torch.isfinite(network(batch).phenotype_logits)
    assert finite[batch.phenotype_slot == 0].all(0).tolist() == [True, True, False, False, False]
    assert finite[batch.phenotype_slot == 1].all(0).tolist() == [False, False, True, True, True]


def test_a_joint_head_learns_from_both_kinds_of_targets():
    """One softmax: raising a bin's logit lowers every phenotype value's probability."""
    network = make_network(head="joint", dropout=0.0)
    batch = make_batch(network.config, phenotypes=1.0)
    output = network(batch)
    parts = masked_loss(
        output.gene_logits, output.phenotype_logits, batch, network.config, LossSettings()
    )
    parts.phenotypes.backward()
    assert (network.encoder_part.joint_output.bias.grad[:4].abs() > 0).all()


@pytest.mark.parametrize("log_linear", [False, True])
@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_a_model_without_phenotypes_predicts_genes(layout, log_linear):
    network = make_network(layout=layout, phenotypes={}, log_linear=log_linear)
    batch = make_batch(network.config)
    output = network(batch)
    assert output.phenotype_logits.shape == (0, 0)
    parts = masked_loss(
        output.gene_logits, output.phenotype_logits, batch, network.config, LossSettings()
    )
    parts.total.backward()
    assert torch.isfinite(parts.total)
    assert parts.phenotypes == 0


def test_the_embedding_of_a_cell_is_its_cls_token():
    network = make_network(layout="expressed")
    batch = make_batch(network.config)
    with torch.no_grad():
        embedding = network.cell_embeddings(batch)
        hidden = network.encoder_part.encode(batch, network.attention_route())
    assert embedding.shape == (5, 12)
    wanted = hidden[batch.cu_seqlens[:-1].long()]
    torch.testing.assert_close(embedding, wanted, atol=1e-6, rtol=1e-5)


def test_a_log_linear_alone_has_no_embedding_to_give():
    network = make_network(layers=0, log_linear=True)
    with pytest.raises(ConfigurationError, match=r"no \[CLS\] embedding"):
        network.cell_embeddings(make_batch(network.config))


def test_logits_are_the_sum_of_the_parts():
    network = make_network(log_linear=True)
    batch = make_batch(network.config)
    with torch.no_grad():
        together = network(batch).gene_logits
        route = network.attention_route()
        encoder, _, _ = network.encoder_part(batch, route)
        log_linear, _ = network.log_linear(batch)
    torch.testing.assert_close(together, encoder + log_linear)
