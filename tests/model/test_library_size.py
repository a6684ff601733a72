"""The library size as an input: its effects, the bins that it closes, and where it comes from."""

import numpy as np
import pytest
import torch

from core.encoding.panel_cells import PanelReader
from core.errors import ConfigurationError
from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel
from core.model.library_size import LibrarySizeFeatures
from core.model.losses import masked_loss
from core.presets.schema import LossSettings, MaskingSettings
from tests.tiny_atlas import build_model, tiny_preset

#: Bins of a shared table and of the genes' own quantiles; most of the latter no count of a cell reaches.
EDGES = [{}, {"encoding__edges": "gene_quantile", "encoding__bins": 8}]


def sized_model(store, **options):
    """Build a model that reads the library size, each of whose weights has an effect."""
    model = build_model(tiny_preset(model__library_size=True, **options).preset, store)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.network.parameters():
            parameter.normal_(std=0.2)
    model.network.eval()
    return model


def batch_of(model, store, *, totals=None, rate="uniform"):
    """Mask genes of 40 cells; ``totals`` instead of their own library sizes."""
    rows = store.rows("train")[:40]
    cells = PanelReader(store, model.panel).read(rows)
    codes = np.asarray(store.phenotype_codes[rows])
    expression = store.read(rows, model.panel).toarray()
    if totals is None:
        masking = MaskingSettings(genes=rate, unspecified=0.3)
        return model.batches.masked(cells, codes, masking, np.random.default_rng(0)), cells.totals
    mask = np.random.default_rng(0).random(expression.shape) < 0.5
    states = np.zeros(codes.shape, np.int8)
    codes = np.maximum(codes, 0)
    return model.batches.ranked(expression, codes, states, mask, totals), cells.totals


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize("options", EDGES)
def test_every_target_is_possible_and_some_bins_are_not(tiny_store, layout, options):
    model = sized_model(tiny_store, encoding__layout=layout, **options)
    batch, totals = batch_of(model, tiny_store)
    known = batch.library_size > 0
    np.testing.assert_array_equal(batch.library_size[known], totals[known])
    assert 0 < known.mean() < 1
    target = batch.gene_target.astype(int)
    assert batch.possible[np.arange(len(target)), target].all()
    assert batch.possible[~known[batch.gene_cell]].all()
    assert not batch.possible.all()


@pytest.mark.parametrize(("loss", "log_linear"), [("gaussian", False), ("label_smoothing", True)])
def test_an_impossible_bin_has_no_probability_and_the_loss_is_finite(tiny_store, loss, log_linear):
    model = sized_model(tiny_store, model__log_linear=log_linear, loss__kind=loss, **EDGES[1])
    batch = BatchTensors.from_arrays(batch_of(model, tiny_store)[0])
    output = model.network(batch)
    chance = torch.softmax(output.gene_logits, dim=-1)
    assert (chance[~batch.possible] == 0).all()
    settings = LossSettings(kind=loss)
    parts = masked_loss(output.gene_logits, output.phenotype_logits, batch, model.config, settings)
    parts.total.backward()
    assert torch.isfinite(parts.total)
    for name, parameter in model.network.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    assert model.network.library_size.effects.weight.grad.abs().sum() > 0


def test_the_library_size_reaches_the_prediction_through_effects_and_cls(tiny_store):
    model = sized_model(tiny_store)
    network = model.network
    small, _ = batch_of(model, tiny_store, totals=np.full(40, 300, np.float32))
    large, _ = batch_of(model, tiny_store, totals=np.full(40, 30_000, np.float32))
    with torch.no_grad():
        of_cls = [network.cell_embeddings(BatchTensors.from_arrays(one)) for one in (small, large)]
        assert (of_cls[0] - of_cls[1]).abs().max() > 1e-3
        route = network.attention_route()
        batch = BatchTensors.from_arrays(large)
        encoder = network.encoder_part(batch, route)[0]
        effects = network.library_size(batch.library_size)[batch.gene_cell, batch.gene]
        found = network(batch).gene_logits
    possible = batch.possible
    torch.testing.assert_close(found[possible], (encoder + effects)[possible])


def test_a_cell_without_a_library_size_is_read_as_if_it_had_no_such_part(tiny_store):
    model = sized_model(tiny_store)
    batch, _ = batch_of(model, tiny_store, totals=np.zeros(40, np.float32))
    assert batch.possible.all()
    without = BatchTensors.from_arrays(batch)
    with torch.no_grad():
        found = model.network(without).gene_logits
        model.network.library_size = None
        model.network.encoder_part.embedding.library_size = None
        torch.testing.assert_close(found, model.network(without).gene_logits)


def test_the_features_are_relative_to_training_cells_and_zero_where_not_known():
    features = LibrarySizeFeatures()
    features.start()
    features.mean_log.fill_(float(np.log(2000)))
    with torch.no_grad():
        found = features(torch.tensor([0.0, 2000.0, 4000.0]))
        assert (found[0] == 0).all()
        torch.testing.assert_close(found[1], torch.tanh(features.inner.bias))
        slope = features.inner.weight[:, 0]
        wanted = torch.tanh(2 * np.log(2) * slope + features.inner.bias)
        torch.testing.assert_close(found[2], wanted)


def test_a_model_folder_keeps_how_library_sizes_are_read(tiny_store, tmp_path):
    model = sized_model(tiny_store)
    sizes = tiny_store.library_sizes(tiny_store.rows("train"))
    assert model.network.library_size.features.mean_log.item() == pytest.approx(
        np.log(sizes).mean(), rel=1e-6
    )
    model.save(tmp_path / "model")
    loaded = CellModel.load(tmp_path / "model")
    batch = BatchTensors.from_arrays(batch_of(loaded, tiny_store)[0])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.network(batch).gene_logits, model.network(batch).gene_logits, rtol=0, atol=0
        )
    assert "reads the library size" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding__kind": "continuous"}, "needs bins and a split head"),
        ({"model__head": "joint"}, "needs bins and a split head"),
    ],
)
def test_a_model_that_cannot_read_library_sizes_is_refused(tiny_store, options, message):
    preset = tiny_preset(model__library_size=True, **options).preset
    with pytest.raises(ConfigurationError, match=message):
        build_model(preset, tiny_store)


def test_cells_without_counts_cannot_train_it(tiny_store, monkeypatch):
    monkeypatch.setattr(tiny_store, "value_kind", "log1p")
    preset = tiny_preset(model__library_size=True).preset
    with pytest.raises(ConfigurationError, match=r"needs counts, and .* holds log values"):
        build_model(preset, tiny_store)
