"""What [CLS] learns besides masked training: against float64 references, and beside what is learnt anyway."""

import numpy as np
import pytest
import torch

from core.encoding.tokens import MASK
from core.model.losses import ClsOutputs, LossCounts, cell_loss, outputs_with_cls
from core.presets.schema import LossSettings
from tests.model.examples import make_batch, make_network
from tests.model.test_losses import smoothed_reference

BOTH = {"cls_reconstruction": True, "cls_contrast": True, "dropout": 0.0}


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_cls_of_every_cell_joins_the_output_positions(layout):
    batch = make_batch(make_network(layout=layout).config)
    outputs, former, at_cls = outputs_with_cls(batch)
    assert torch.equal(outputs.position[former], batch.output_position)
    assert torch.equal(outputs.position[at_cls], batch.cu_seqlens[:-1].long())
    assert torch.equal(outputs.position, outputs.position.sort().values)
    assert len(outputs.position) == len(batch.output_position) + batch.n_cells
    assert outputs.bounds.cu_queries.tolist() == outputs.bounds.queries.tolist()
    cells = np.searchsorted(batch.token_bounds, outputs.position.numpy(), side="right") - 1
    assert np.bincount(cells).tolist() == np.diff(outputs.bounds.queries).tolist()


@pytest.mark.parametrize("head", ["split", "joint"])
@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_predictions_are_the_same_with_heads_of_cls_and_without(layout, head):
    network = make_network(layout=layout, head=head, **BOTH)
    plain = make_network(layout=layout, head=head, dropout=0.0)
    plain.load_state_dict(
        {name: w for name, w in network.state_dict().items() if "cell_heads" not in name}
    )
    batch = make_batch(network.config)
    learning, without = network.train()(batch), plain.train()(batch)
    torch.testing.assert_close(learning.gene_logits, without.gene_logits)
    torch.testing.assert_close(learning.phenotype_logits, without.phenotype_logits)
    assert learning.cells is not None
    assert without.cells is None
    assert network.eval()(batch).cells is None, "heads of [CLS] are for training"


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_reconstruction_predicts_all_genes_of_a_cell_from_cls_alone(layout):
    network = make_network(layout=layout, **(BOTH | {"cls_contrast": False}))
    config = network.config
    batch = make_batch(config)
    output = network.train()(batch)
    settings = LossSettings(cls_reconstruction=0.5, smoothing=0.1)
    loss = cell_loss(output.cells, batch, config, settings)
    cls = network.cell_embeddings(batch).detach()
    decoder = network.encoder_part.cell_heads.decoder
    logits = decoder(cls).detach().double().numpy().reshape(batch.n_cells, config.n_genes, -1)
    first = config.tokens.first_gene
    losses = []
    for cell in range(batch.n_cells):
        span = slice(batch.token_bounds[cell], batch.token_bounds[cell + 1])
        identity, value = batch.token_id[span].numpy(), batch.value[span].numpy()
        targets = {
            int(g): int(v) - config.tokens.first_bin
            for g, v in zip(identity - first, value, strict=True)
            if g >= 0 and v != MASK
        }
        own = batch.gene_cell.numpy() == cell
        targets |= dict(zip(batch.gene[own].tolist(), batch.gene_target[own].tolist(), strict=True))
        genes, truth = np.array(list(targets)), np.array(list(targets.values()))
        assert len(genes) == (identity >= first).sum()
        losses.append(smoothed_reference(logits[cell, genes], truth, 0.1).mean())
    assert loss.item() == pytest.approx(0.5 * np.mean(losses), rel=1e-5)


def test_contrast_is_info_nce_between_the_two_maskings_of_a_cell():
    rng = np.random.default_rng(0)
    projected = rng.normal(size=(6, 64))
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    alike = projected @ projected.T / 0.1
    losses = []
    for row in range(6):
        others = np.delete(np.arange(6), row)
        losses.append(np.log(np.exp(alike[row, others]).sum()) - alike[row, row ^ 1])
    states = ClsOutputs(None, torch.from_numpy(projected).float())
    config = make_network().config
    batch = make_batch(config, n_cells=6)
    loss = cell_loss(states, batch, config, LossSettings(cls_contrast=2.0))
    assert loss.item() == pytest.approx(2 * np.mean(losses), rel=1e-5)


def test_a_cell_without_another_costs_nothing_but_has_a_gradient():
    projected = torch.nn.functional.normalize(torch.randn(2, 64), dim=1).requires_grad_()
    config = make_network().config
    batch = make_batch(config, n_cells=2)
    loss = cell_loss(ClsOutputs(None, projected), batch, config, LossSettings(cls_contrast=1.0))
    loss.backward()
    assert loss.item() == 0
    assert not projected.grad.any()


def test_parts_of_a_step_add_up_to_it():
    network = make_network(**(BOTH | {"cls_contrast": False})).train()
    config = network.config
    batch = make_batch(config)
    settings = LossSettings(cls_reconstruction=1.0)
    loss = cell_loss(network(batch).cells, batch, config, settings)
    twice = LossCounts(0.0, 0.0, cells=2 * batch.n_cells)
    half = cell_loss(network(batch).cells, batch, config, settings, twice)
    assert 2 * half.item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_other_encodings_are_reconstructed_too(kind):
    network = make_network(kind, **BOTH).train()
    batch = make_batch(network.config, n_cells=4)
    settings = LossSettings(cls_reconstruction=1.0, cls_contrast=1.0)
    loss = cell_loss(network(batch).cells, batch, network.config, settings)
    loss.backward()
    assert torch.isfinite(loss)
    for head in (
        network.encoder_part.cell_heads.decoder,
        network.encoder_part.cell_heads.projector[0],
    ):
        assert head.weight.grad.abs().sum() > 0
