"""The summary of [CLS] begins at the principal components that scikit-learn finds."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.decomposition import PCA

from core.encoding.batches import BatchEncoder
from core.encoding.tokens import CLS
from core.encoding.values import ValueTable
from core.model.batch_tensors import BatchTensors
from core.model.encoder import start_summary
from tests.model.examples import N_GENES, make_network, value_encoder

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
    embedding = network.encoder_part.embedding
    start_summary(embedding, config, table, cells, bins, seed=0)
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
