"""The pooled encoder: against sums made gene by gene, and as a model that annotates and generates."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.decomposition import PCA
from torch.nn import functional

from core.encoding.batches import BatchEncoder
from core.encoding.tokens import MASK
from core.encoding.values import ValueTable
from core.errors import ConfigurationError
from core.generation.cell_generator import generate_cells
from core.generation.request import GenerationRequest
from core.inference.annotate import note_on_embedding
from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel
from core.model.principal_components import principal_components
from tests.model.examples import (
    N_GENES,
    make_batch,
    make_cell_model,
    make_config,
    make_network,
    value_encoder,
)

POOLED = {"encoder": "pooled"}


def sum_by_hand(part, batch, config):
    """Sum of each cell, gene by gene."""
    tables, tokens = part.embedding, config.tokens
    found = []
    for cell in range(batch.n_cells):
        span = range(int(batch.cu_seqlens[cell]), int(batch.cu_seqlens[cell + 1]))
        total, n_visible = torch.zeros(config.hidden_size), 0
        header = torch.zeros(config.hidden_size)
        for at in span:
            token, value = int(batch.token_id[at]), int(batch.value[at])
            if token >= tokens.first_gene and value != MASK:
                gene, number = token - tokens.first_gene, value - tokens.first_bin
                total = total + tables.gene.weight[gene]
                if number:
                    row = gene * (config.n_bins - 1) + number - 1
                    total = total + tables.higher_bin.weight[row]
                n_visible += 1
            elif tokens.first_slot <= token < tokens.first_gene and value != MASK:
                header = header + tables.phenotype.weight[value]
        rate = tables.mask_rate.weight[:, 0] * batch.mask_rate[cell] + tables.mask_rate.bias
        found.append(total / (n_visible + 8) ** 0.5 + header + rate)
    return torch.stack(found)


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize("kind", ["binary", "binned"])
def test_a_cell_is_the_sum_of_its_visible_genes_and_of_the_phenotypes_shown(kind, layout):
    network = make_network(kind, layout, **POOLED)
    part, batch = network.encoder_part, make_batch(network.config)
    with torch.no_grad():
        hidden = sum_by_hand(part, batch, network.config)
        torch.testing.assert_close(part.embedding(batch), hidden)
        for layer in part.encoder.layers:
            normed = functional.layer_norm(
                hidden, [12], layer.norm.weight, layer.norm.bias, layer.norm.eps
            )
            inner = functional.gelu(layer.feed_forward_in(normed))
            hidden = hidden + layer.feed_forward_out(inner)
        norm = part.encoder.final_norm
        hidden = functional.layer_norm(hidden, [12], norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(network.cell_embeddings(batch), hidden)
        output = network(batch)
    n_outputs = network.config.n_gene_outputs
    for place in range(len(batch.gene)):
        cell, gene = int(batch.gene_cell[place]), int(batch.gene[place])
        rows = part.gene_output.weight[gene * n_outputs : (gene + 1) * n_outputs]
        wanted = rows @ hidden[cell] + part.gene_bias.weight[gene]
        torch.testing.assert_close(output.gene_logits[place], wanted)
    for place in range(len(batch.phenotype_target)):
        own = network.slot_of_value == batch.phenotype_slot[place]
        logits = part.phenotype_output(hidden[int(batch.phenotype_cell[place])])
        torch.testing.assert_close(output.phenotype_logits[place][own], logits[own])


def test_masked_genes_do_not_reach_the_prediction_and_neither_does_their_order():
    network = make_network(**POOLED)
    batch = make_batch(network.config)
    changed = dataclasses.replace(batch, gene_target=batch.gene_target.flip(0))
    with torch.no_grad():
        torch.testing.assert_close(
            network(batch).gene_logits, network(changed).gene_logits, rtol=0, atol=0
        )


def test_a_sum_begins_with_the_principal_components_of_training_cells():
    """Of all components natural variances are kept: 1 in quadratic mean."""
    rng = np.random.default_rng(0)
    programme = rng.standard_normal((300, 2)) @ rng.standard_normal((2, N_GENES))
    values = np.maximum(1.2 + programme + 0.3 * rng.standard_normal(programme.shape), 0)
    cells = sparse.csr_matrix(values.astype(np.float32))
    network = make_network(randomise=False, hidden_size=6, initial_weights="fan_in", **POOLED)
    config, encoder = network.config, value_encoder(network.config)
    bins = encoder.encode(cells.toarray())
    table = ValueTable.fit(encoder, cells)
    components = principal_components(
        config, table, cells, bins, spread="natural", deviation=1.0, seed=0
    )
    embedding = network.encoder_part.embedding
    with torch.no_grad():
        for part in (embedding.phenotype, embedding.mask_rate):
            part.weight.zero_()
        embedding.start_at(components)
        batches = BatchEncoder(config.tokens, encoder, max_length=config.longest_sequence)
        codes = np.full((300, 2), -1, np.int32)
        batch = BatchTensors.from_arrays(batches.visible(cells, codes, [], rng))
        found = embedding(batch).double().numpy()
    of_bins = np.where(bins > 0, table.means[np.arange(N_GENES), bins], 0.0)
    expected = PCA(6).fit_transform(of_bins.astype(np.float64))
    expected /= np.sqrt(expected.var(axis=0).mean())
    np.testing.assert_allclose(np.abs(found[:, :4]), np.abs(expected[:, :4]), atol=1e-3)


def test_before_training_every_gene_has_the_odds_of_its_bias():
    network = make_network(randomise=False, **POOLED)
    with torch.no_grad():
        network.encoder_part.gene_bias.weight.normal_()
        batch = make_batch(network.config)
        output = network(batch)
        wanted = network.encoder_part.gene_bias(batch.gene)
    torch.testing.assert_close(output.gene_logits, wanted)


def test_every_weight_learns():
    network = make_network(library_size=True, **POOLED).train()
    batch = make_batch(network.config, n_cells=40)
    sizes = torch.full((40,), 2000.0)
    output = network(dataclasses.replace(batch, library_size=sizes))
    finite = output.phenotype_logits[torch.isfinite(output.phenotype_logits)]
    (output.gene_logits.square().sum() + finite.square().sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_is_saved_loaded_and_generates(tmp_path):
    model = make_cell_model(**POOLED)
    model.save(tmp_path / "model")
    loaded = CellModel.load(tmp_path / "model")
    cells, _ = generate_cells(loaded, GenerationRequest({"sex": "female"}, n_cells=6, seed=1))
    again, _ = generate_cells(
        model, GenerationRequest({"sex": "female"}, n_cells=6, seed=1), batch_size=2
    )
    assert (cells.obs["sex"] == "female").all()
    np.testing.assert_array_equal(cells.X.toarray(), again.X.toarray())
    assert cells.shape == (6, N_GENES)
    assert note_on_embedding(loaded.config, "cls") is None


def test_what_a_sum_cannot_do_is_refused():
    with pytest.raises(ConfigurationError, match="needs bins and a split head"):
        make_network("continuous", **POOLED)
    with pytest.raises(ConfigurationError, match="cell_summary"):
        make_network(cell_summary=True, **POOLED)
    network = make_network(**POOLED)
    with pytest.raises(ConfigurationError, match="one state for each cell"):
        network.cell_embeddings(make_batch(make_config()), "mean")


@pytest.mark.parametrize("classified", [None, "sex"])
def test_beside_a_log_linear_part_phenotypes_are_its_own_but_in_a_classifier(classified):
    network = make_network(log_linear=True, classified=classified, **POOLED)
    batch = make_batch(network.config)
    with torch.no_grad():
        _, of_encoder, _ = network.encoder_part(batch)
    assert of_encoder.shape == (len(batch.phenotype_target), network.config.phenotype_sizes[0] + 3)
    assert bool(of_encoder.any()) == (classified is not None)
