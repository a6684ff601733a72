"""The encoder against transformers' BertModel with the same weights; options; isolation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.decomposition import PCA
from transformers import BertConfig, BertModel

from core.encoding.batches import BatchEncoder
from core.encoding.tokens import CLS
from core.encoding.values import ValueTable
from core.model.attention import resolve_attention
from core.model.batch_tensors import BatchTensors
from core.model.encoder import initialise
from core.model.principal_components import principal_components

from .examples import N_GENES, make_batch, make_network, value_encoder


@pytest.mark.parametrize("activation", ["gelu", "geglu"])
def test_fan_in_weights_keep_the_variance_and_the_outputs_start_at_zero(activation):
    network = make_network(
        initial_weights="fan_in", hidden_size=60, randomise=False, activation=activation
    )
    part = network.encoder_part
    for layer in part.encoder.layers:
        for linear in (layer.query_key_value, layer.feed_forward_in, layer.feed_forward_out):
            wanted = linear.in_features**-0.5
            assert linear.weight.std().item() == pytest.approx(wanted, rel=0.1)
    batch = make_batch(network.config)
    output = network(batch)
    assert (output.gene_logits == 0).all()
    assert (output.phenotype_logits[torch.isfinite(output.phenotype_logits)] == 0).all()
    assert make_network(randomise=False).encoder_part.gene_output.weight.std() > 0.01


def bert_of(network):
    """Build a float64 BertModel that holds the network's weights: identity as position."""
    config, part = network.config, network.encoder_part
    bert = BertModel(
        BertConfig(
            vocab_size=config.tokens.n_values,
            max_position_embeddings=config.tokens.n_token_ids,
            type_vocab_size=1,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.intermediate_size,
            hidden_act="gelu",
            layer_norm_eps=1e-12,
            attn_implementation="eager",
            pad_token_id=None,  # our value 0 is NONE, a token that learns
        ),
        add_pooling_layer=False,
    ).double()
    weights = {}

    def copy(name, module):
        weights[f"{name}.weight"] = module.weight
        if getattr(module, "bias", None) is not None:
            weights[f"{name}.bias"] = module.bias

    copy("embeddings.word_embeddings", part.embedding.value)
    copy("embeddings.position_embeddings", part.embedding.identity)
    copy("embeddings.LayerNorm", part.embedding.norm)
    weights["embeddings.token_type_embeddings.weight"] = torch.zeros(1, config.hidden_size)
    for number, layer in enumerate(part.encoder.layers):
        prefix = f"encoder.layer.{number}"
        names = ("query", "key", "value")
        stacked = zip(
            layer.query_key_value.weight.chunk(3), layer.query_key_value.bias.chunk(3), strict=True
        )
        for name, (weight, bias) in zip(names, stacked, strict=True):
            weights[f"{prefix}.attention.self.{name}.weight"] = weight
            weights[f"{prefix}.attention.self.{name}.bias"] = bias
        copy(f"{prefix}.attention.output.dense", layer.attention_output)
        copy(f"{prefix}.attention.output.LayerNorm", layer.attention_norm)
        copy(f"{prefix}.intermediate.dense", layer.feed_forward_in)
        copy(f"{prefix}.output.dense", layer.feed_forward_out)
        copy(f"{prefix}.output.LayerNorm", layer.feed_forward_norm)
    bert.load_state_dict(weights)
    return bert.eval()


def hidden_by_bert(bert, batch):
    """Run cell by cell, so that BertModel's own padding plays no part: (T, D)."""
    hidden = []
    for start, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        output = bert(
            input_ids=batch.value[None, start:end], position_ids=batch.token_id[None, start:end]
        )
        hidden.append(output.last_hidden_state[0])
    return torch.cat(hidden)


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize("attention", ["cpu", "sdpa", "eager"])
def test_the_encoder_is_bert_with_the_same_weights(layout, attention):
    network = make_network(layout=layout).double()
    batch = make_batch(network.config, drop_phenotypes=0.5)
    route = resolve_attention(
        attention, device=torch.device("cpu"), dtype=torch.float64, dropout=0.0, ragged=True
    )
    with torch.no_grad():
        ours = network.encoder_part.encode(batch, route)
        theirs = hidden_by_bert(bert_of(network), batch)
    assert len(set(batch.cu_seqlens.diff().tolist())) > 1, "the cells must be ragged"
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("attention", ["cpu", "sdpa", "eager"])
def test_a_context_is_to_the_encoder_a_cell_of_fewer_genes(attention):
    network = make_network(context_genes=3, attention=attention).double()
    batch = make_batch(network.config, n_cells=9, drop_phenotypes=0.5)
    read = batch.in_context()
    assert read.n_tokens == len(batch.context) < batch.n_tokens
    with torch.no_grad():
        ours = network.encoder_part.encode(read, network.attention_route(), read.outputs)
        kept = [
            batch.context[(batch.context >= start) & (batch.context < end)]
            for start, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)
        ]
        bert, theirs = bert_of(network), []
        for places in kept:
            output = bert(
                input_ids=batch.value[None, places], position_ids=batch.token_id[None, places]
            )
            theirs.append(output.last_hidden_state[0, torch.isin(places, batch.output_position)])
    torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-9, rtol=0)


def test_other_parts_of_the_model_read_genes_outside_the_context():
    network = make_network(context_genes=2, log_linear=True, cell_summary=True)
    batch = make_batch(network.config, genes=0.5, unspecified=0.0)
    unread = torch.ones_like(batch.token_id, dtype=torch.bool)
    unread[batch.context] = False
    visible = unread & (batch.value >= network.config.tokens.first_bin)
    first = network.config.tokens.first_bin
    changed = replace(
        batch, value=torch.where(visible, first + 3 - (batch.value - first), batch.value)
    )
    one, other = (network(some).gene_logits for some in (batch, changed))
    assert visible.any()
    assert not torch.allclose(one, other)
    encoder, route = network.encoder_part, network.attention_route()
    tokens = [encoder.embedding(some.in_context()) for some in (batch, changed)]
    torch.testing.assert_close(*tokens, atol=0, rtol=0)
    whole = [encoder.embedding(some.in_context(), some) for some in (batch, changed)]
    assert not torch.allclose(*whole)  # the summary of a cell is of all its genes
    assert encoder(batch, route)[0].shape == (len(batch.gene), 4)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("attention", ["cpu", "sdpa", "eager"])
@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_the_last_layer_computes_only_the_output_positions_and_loses_nothing(
    layout, attention, norm
):
    """Outputs and gradients of every parameter equal those of a last layer computed everywhere."""
    network = make_network(layout=layout, norm=norm, attention=attention, dropout=0.0).double()
    batch = make_batch(network.config, n_cells=9, genes=0.3, drop_phenotypes=0.5)
    route = network.attention_route()
    outputs = batch.outputs
    assert 0 < len(outputs.position) < len(batch.token_id)
    part = network.encoder_part
    outcomes = []
    for hidden in (part.encode(batch, route, outputs), part.encode(batch, route)[outputs.position]):
        network.zero_grad()
        hidden.pow(3).sum().backward()
        gradients = [p.grad.clone() for p in part.encoder.parameters()]
        outcomes.append([hidden.detach(), *gradients])
    for pruned, whole in zip(*outcomes, strict=True):
        torch.testing.assert_close(pruned, whole, atol=1e-9, rtol=1e-9)


def test_the_gradients_are_those_of_bert():
    network = make_network().double()
    batch = make_batch(network.config)
    route = network.attention_route()
    bert = bert_of(network)
    network.encoder_part.encode(batch, route).square().sum().backward()
    hidden_by_bert(bert, batch).square().sum().backward()
    part = network.encoder_part
    for ours, theirs in [
        (part.embedding.value.weight, bert.embeddings.word_embeddings.weight),
        (part.embedding.identity.weight, bert.embeddings.position_embeddings.weight),
        (part.encoder.layers[0].feed_forward_in.weight, bert.encoder.layer[0].intermediate.dense.weight),
        (part.encoder.layers[0].attention_output.bias, bert.encoder.layer[0].attention.output.dense.bias),
    ]:  # fmt: skip
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_a_cells_predictions_do_not_depend_on_the_other_cells(layout):
    network = make_network(layout=layout)
    batch = make_batch(network.config, genes=0.5, drop_phenotypes=0.5)
    start, end = batch.cu_seqlens[1].item(), batch.cu_seqlens[2].item()
    value = batch.value.clone()
    is_gene = batch.token_id[start:end] >= network.config.tokens.first_gene
    value[start:end][is_gene] = network.config.tokens.first_bin + 3
    with torch.no_grad():
        one, two = network(batch), network(replace(batch, value=value))
    for logits, cells in [
        ((one.gene_logits, two.gene_logits), batch.gene_cell),
        ((one.phenotype_logits, two.phenotype_logits), batch.phenotype_cell),
    ]:
        others = cells != 1
        assert others.any()
        torch.testing.assert_close(logits[0][others], logits[1][others], atol=1e-6, rtol=0)
    changed = batch.gene_cell == 1
    assert not torch.allclose(one.gene_logits[changed], two.gene_logits[changed])


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("activation", ["gelu", "geglu"])
@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_every_arrangement_predicts_and_learns_in_every_parameter(norm, activation, layout):
    network = make_network(layout=layout, norm=norm, activation=activation, dropout=0.0)
    batch = make_batch(network.config, drop_phenotypes=0.3)
    output = network(batch)
    own = output.phenotype_logits[torch.isfinite(output.phenotype_logits)]
    (output.gene_logits.square().sum() + own.square().sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_pre_norm_with_geglu_is_its_formula():
    network = make_network(norm="pre", activation="geglu", layers=1).double()
    batch = make_batch(network.config)
    part, layer = network.encoder_part, network.encoder_part.encoder.layers[0]
    with torch.no_grad():
        x = part.embedding(batch)
        route = network.attention_route()
        hidden = part.encode(batch, route)
        cells = x.view(batch.n_cells, len(x) // batch.n_cells, -1)
        qkv = layer.query_key_value(layer.attention_norm(cells)).chunk(3, dim=-1)
        q, k, v = (y.unflatten(-1, (network.config.heads, -1)).transpose(1, 2).numpy() for y in qkv)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        weights = np.exp(scores)
        weights /= weights.sum(axis=-1, keepdims=True)
        attended = torch.from_numpy(weights @ v).transpose(1, 2).flatten(2)
        cells = cells + layer.attention_output(attended)
        inner = layer.feed_forward_in(layer.feed_forward_norm(cells))
        value, gate = inner[..., :20], inner[..., 20:]
        gelu = 0.5 * gate * (1 + torch.erf(gate / np.sqrt(2)))
        cells = cells + layer.feed_forward_out(value * gelu)
        wanted = part.encoder.final_norm(cells).flatten(0, 1)
    torch.testing.assert_close(hidden, wanted, atol=1e-9, rtol=0)


def test_the_value_of_a_visible_gene_reaches_a_continuous_encoder_and_a_masked_one_does_not():
    network = make_network("continuous")
    batch = make_batch(network.config, genes=0.5)
    other = torch.where(batch.value == network.config.tokens.first_bin, batch.continuous, 99.0)
    with torch.no_grad():
        one, two = network(batch), network(replace(batch, continuous=other))
        three = network(replace(batch, continuous=batch.continuous + 1))
    torch.testing.assert_close(one.gene_logits, two.gene_logits)
    assert not torch.allclose(one.gene_logits, three.gene_logits)


def test_initial_weights_are_berts():
    network = make_network(hidden_size=96, heads=4, randomise=False)
    part = network.encoder_part
    assert part.embedding.value.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for layer in part.encoder.layers:
        assert layer.query_key_value.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert layer.query_key_value.bias.abs().max() == 0
        assert (layer.attention_norm.weight == 1).all()


def test_initial_weights_are_a_function_of_the_generators_state():
    network = make_network()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        initialise(network)
        first = network.encoder_part.gene_output.weight.clone()
        torch.manual_seed(5)
        initialise(network)
    assert torch.equal(first, network.encoder_part.gene_output.weight)


# -- the summary with which [CLS] may begin
@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize("kind", ["binned", "continuous"])
def test_a_summary_adds_up_the_visible_genes_of_each_cell(kind, layout):
    network = make_network(kind, layout, cell_summary=True)
    plain = make_network(kind, layout)
    embedding = network.encoder_part.embedding
    weights = {n: w for n, w in network.state_dict().items() if "summary" not in n}
    plain.load_state_dict(weights)
    config = network.config
    batch = make_batch(config, n_cells=4)
    embedding.norm = plain.encoder_part.embedding.norm = torch.nn.Identity()
    added = (embedding(batch) - plain.encoder_part.embedding(batch)).detach()
    table = embedding.summary.weight.detach().double().numpy()
    first_gene, first_bin = config.tokens.first_gene, config.tokens.first_bin
    for cell in range(batch.n_cells):
        start, end = batch.token_bounds[cell], batch.token_bounds[cell + 1]
        total, n_visible = np.zeros(config.hidden_size), 0
        for place in range(start, end):
            gene = int(batch.token_id[place]) - first_gene
            level = int(batch.value[place]) - first_bin
            if gene < 0 or level < 0:
                continue
            n_visible += 1
            if kind == "continuous":
                total += float(batch.continuous[place]) * table[gene]
            else:
                total += table[gene * config.n_bins + level]
        np.testing.assert_allclose(added[start], total / np.sqrt(n_visible + 8), atol=1e-5)
        assert not added[start + 1 : end].any(), "at [CLS] alone"


N_CELLS = 300


def some_cells():
    rng = np.random.default_rng(0)
    programme = rng.standard_normal((N_CELLS, 2)) @ rng.standard_normal((2, N_GENES))
    values = np.maximum(1.2 + programme + 0.3 * rng.standard_normal(programme.shape), 0)
    return sparse.csr_matrix(values.astype(np.float32))


def start(network, cells):
    config, values = network.config, value_encoder(network.config)
    bins = values.encode(cells.toarray())
    table = ValueTable.fit(values, cells)
    components = principal_components(
        config, table, cells, bins, spread="equal", deviation=0.1, seed=0
    )
    if components is not None:
        network.encoder_part.embedding.start_at(components)
    return bins, table


def at_cls(network, cells):
    """(cells, width), what the summary and the identity of [CLS] add up to, all genes being visible."""
    config = network.config
    encoder = BatchEncoder(config.tokens, value_encoder(config), max_length=config.longest_sequence)
    codes = np.full((cells.shape[0], 2), -1, np.int32)
    batch = BatchTensors.from_arrays(encoder.visible(cells, codes, [], np.random.default_rng(0)))
    embedding = network.encoder_part.embedding
    with torch.no_grad():
        found = embedding._summarise(batch, embedding.summary) + embedding.identity.weight[CLS]
    return found.double().numpy()


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize("kind", ["binned", "binary", "continuous"])
def test_cls_begins_with_the_components_of_the_cells(kind, layout):
    cells = some_cells()
    network = make_network(kind, layout, cell_summary=True, randomise=False, hidden_size=6)
    with torch.no_grad():
        network.encoder_part.embedding.identity.weight[CLS] = 0
    bins, table = start(network, cells)
    if kind == "continuous":
        values = np.where(bins > 0, cells.toarray(), 0)
    else:
        values = np.where(bins > 0, table.means[np.arange(N_GENES), bins], 0)
    expected = PCA(6).fit_transform(values.astype(np.float64))
    found = at_cls(network, cells)
    if layout == "expressed":  # where the root of a cell's number of genes is its own
        expected = PCA(6).fit(values.astype(np.float64)).components_ @ values.T
        expected = (expected / np.sqrt((bins > 0).sum(axis=1) + 8)).T
        expected = expected - expected.mean(axis=0)
    for component in range(3):  # beyond the two programmes noise may turn the axes
        r = np.corrcoef(found[:, component], expected[:, component])[0, 1]
        if component < 2:
            assert abs(r) > 0.999
    np.testing.assert_allclose(found.std(axis=0), 0.1, rtol=1e-3)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-4)


def test_what_is_hidden_counts_as_average():
    """With a gene hidden the summary is that of a cell in which it is at its mean."""
    cells = some_cells()
    network = make_network(cell_summary=True, randomise=False, hidden_size=6)
    bins, _table = start(network, cells)
    weight = network.encoder_part.embedding.summary.weight.detach().numpy()
    rows = weight.reshape(N_GENES, network.config.n_bins, -1)
    mean = rows[np.arange(N_GENES), bins].mean(axis=0)
    np.testing.assert_allclose(mean, 0, atol=1e-5)


def test_fewer_genes_or_cells_than_the_width_leave_the_rest_at_zero():
    network = make_network(cell_summary=True, randomise=False)
    start(network, some_cells()[:5])
    weight = network.encoder_part.embedding.summary.weight.detach().numpy()
    assert weight[:, :4].any(axis=0).all()
    assert not weight[:, 4:].any()
    start(network, some_cells()[:1])  # one cell has no components: nothing is changed
    np.testing.assert_array_equal(
        network.encoder_part.embedding.summary.weight.detach().numpy(), weight
    )
