"""Labels, embeddings and denoised values against the network asked by hand."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse

from core.cells.builtin import load_builtin
from core.errors import ConfigurationError
from core.evaluation.predict import predict_phenotypes
from core.inference.annotate import (
    DENOISING_PASSES,
    denoise_cells,
    embed_cells,
    gene_embeddings,
    predict_phenotypes_of,
    resolve_position,
)
from core.inference.query_cells import Hint, open_query_cells
from core.model.batch_tensors import BatchTensors
from core.model.calibration import PhenotypeCalibration, UnsureRule
from tests.model.examples import N_GENES, make_cell_model, make_expression
from tests.model.test_library_size import sized_model
from tests.tiny_atlas import TINY_ATLAS


class Cells(SimpleNamespace):
    """Cells in memory, as `QueryCells` gives those of a file."""

    def __init__(self, expression, missing=()):
        flags = np.isin(np.arange(expression.shape[1]), missing)
        kept = sparse.csr_matrix(expression.multiply(~flags))
        super().__init__(expression=kept, missing=flags, n_cells=expression.shape[0])

    def blocks(self, n_cells, *, sized=False):
        for first in range(0, self.n_cells, min(n_cells, 2)):
            block = self.expression[first : first + min(n_cells, 2)]
            yield first, block, np.zeros(block.shape[0], dtype=np.float32)


def by_hand(model, expression, codes, hidden, missing):
    arrays = model.batches.visible(
        expression, codes, hidden, np.random.default_rng(0),
        missing=np.isin(np.arange(N_GENES), missing),
    )  # fmt: skip
    return BatchTensors.from_arrays(arrays)


def hint(codes):
    return Hint("tissue", 1, "organ", np.asarray(codes, dtype=np.int32), {})


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize("kind", ["binary", "binned", "continuous"])
@pytest.mark.parametrize("missing", [(), (1, 4)])
def test_answers_are_the_networks(kind, layout, missing):
    model = make_cell_model(kind, layout)
    expression = make_expression(3, n_cells=5)
    cells = Cells(expression, missing)
    answers = predict_phenotypes_of(model, cells)
    batch = by_hand(model, cells.expression, np.zeros((5, 2), np.int32), ["sex", "tissue"], missing)
    with torch.inference_mode():
        logits = model.network(batch).phenotype_logits
    for slot, one in enumerate(answers):
        wanted = model.network.phenotype_probabilities(logits[batch.phenotype_slot == slot], slot)
        assert one.name == ("sex", "tissue")[slot]
        assert one.codes.tolist() == wanted.argmax(-1).tolist()
        np.testing.assert_allclose(one.probability, wanted.max(-1).values, rtol=1e-5)
        assert sum(one.cells_per_value().values()) == 5
        assert one.is_unsure(UnsureRule(1.1)).all()
        assert not one.is_unsure(UnsureRule(0.0)).any()
    model.calibration = {"tissue": PhenotypeCalibration(temperature=2.5)}
    sex, tissue = predict_phenotypes_of(model, cells)
    np.testing.assert_array_equal(sex.probability, answers[0].probability)
    softened = torch.softmax(logits[batch.phenotype_slot == 1][:, 2:] / 2.5, dim=-1)
    np.testing.assert_allclose(tissue.probability, softened.max(-1).values, rtol=1e-5)


def test_cells_of_a_file_get_the_answers_of_the_store_at_their_own_library_sizes(
    tiny_store, tmp_path, caplog
):
    model = sized_model(tiny_store, encoding__edges="gene_quantile")
    rows = np.argsort(tiny_store.origins[:, 1])  # the order of the file
    in_store = predict_phenotypes(model, tiny_store, rows)["tissue"]
    with open_query_cells(TINY_ATLAS, model.panel) as cells:
        of_file = predict_phenotypes_of(model, cells)[1]
    np.testing.assert_allclose(of_file.probability, in_store.max(axis=1), rtol=1e-4)
    logged = load_builtin(TINY_ATLAS)
    scale = 1e4 / np.maximum(np.asarray(logged.X.sum(axis=1)), 1)
    logged.X = sparse.csr_matrix(logged.X.multiply(scale)).astype(np.float32).log1p()
    with open_query_cells(logged, model.panel) as cells:
        of_logs = predict_phenotypes_of(model, cells)[1]
    np.testing.assert_allclose(of_logs.probability, in_store.max(axis=1), rtol=1e-3)
    assert not caplog.text
    noisy = logged[:50].copy()
    noisy.X.data *= np.random.default_rng(0).uniform(0.95, 1, noisy.X.nnz).astype(np.float32)
    with open_query_cells(noisy, model.panel, values="log") as cells:
        without = predict_phenotypes_of(model, cells)[1]
    assert "gives no library size of 50 of its 50 cells" in caplog.text
    assert np.isfinite(without.probability).all()


def test_a_missing_gene_is_not_taken_for_an_unexpressed_one():
    model = make_cell_model()
    expression = make_expression(3, n_cells=5)
    known, unknown = (
        predict_phenotypes_of(model, Cells(Cells(expression, (2,)).expression, missing))[0]
        for missing in ((), (2,))
    )
    assert not np.allclose(known.probability, unknown.probability)


def test_a_hint_changes_the_answers_and_is_not_asked():
    model = make_cell_model()
    cells = Cells(make_expression(3, n_cells=4))
    (sex,) = predict_phenotypes_of(model, cells, [hint([2, 0, -1, 1])])
    assert sex.name == "sex"
    codes = np.array([[0, 2], [0, 0], [0, -1], [0, 1]], dtype=np.int32)
    batch = by_hand(model, cells.expression, codes, ["sex"], ())
    with torch.inference_mode():
        logits = model.network(batch).phenotype_logits
    wanted = model.network.phenotype_probabilities(logits, 0).max(-1).values
    np.testing.assert_allclose(sex.probability, wanted, rtol=1e-5)


def test_when_all_is_given_nothing_is_left_to_predict():
    with pytest.raises(ConfigurationError, match="nothing is left to predict"):
        predict_phenotypes_of(
            make_cell_model(phenotypes={"tissue": ["lung", "liver"]}),
            Cells(make_expression(0)),
            [Hint("tissue", 0, "organ", np.zeros(5, np.int32), {})],
        )


# --------------------------------------------------------------------------------- embeddings
def collected(run, n_cells, width):
    found = np.full((n_cells, width), np.nan, dtype=np.float32)

    def write(span, values):
        found[span] = values

    run(write)
    return found


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize("place", ["cls", "mean", "tissue"])
def test_embeddings_are_the_last_hidden_states_of_their_place(layout, place):
    model = make_cell_model("binned", layout)
    cells = Cells(make_expression(3, n_cells=5), (1,))
    position = resolve_position(model.config, place)
    found = collected(lambda write: embed_cells(model, cells, write, position=position), 5, 12)
    batch = by_hand(model, cells.expression, np.zeros((5, 2), np.int32), ["sex", "tissue"], (1,))
    with torch.inference_mode():
        route = model.network.attention_route()
        hidden = model.network.encoder_part.encode(batch, route)
    bounds = batch.token_bounds.tolist()
    wanted = [
        hidden[start:end].mean(0)
        if place == "mean"
        else hidden[start + {"cls": 0, "tissue": 2}[place]]
        for start, end in itertools.pairwise(bounds)
    ]
    np.testing.assert_allclose(found, torch.stack(wanted), atol=1e-5)


def test_a_place_that_is_none_is_refused_with_the_nearest():
    with pytest.raises(ConfigurationError, match="did you mean 'tissue'"):
        resolve_position(make_cell_model().config, "tisue")


def test_gene_embeddings_are_in_the_order_of_the_panel():
    model = make_cell_model()
    found = gene_embeddings(model)
    assert found.shape == (N_GENES, 12)
    weight = model.network.encoder_part.embedding.identity.weight
    np.testing.assert_array_equal(found[3], weight[model.config.tokens.first_gene + 3].detach())


@pytest.mark.parametrize("kind", ["binary", "binned", "continuous"])
def test_denoised_values_of_a_gene_do_not_see_the_gene(kind):
    model = make_cell_model(kind)
    expression = make_expression(3, n_cells=4).toarray()
    found = collected(
        lambda write: denoise_cells(model, Cells(sparse.csr_matrix(expression)), write), 4, N_GENES
    )
    assert np.isfinite(found).all()
    changed = expression.copy()
    changed[:, 2] = np.where(changed[:, 2] > 0, 0, 3.0)
    again = collected(
        lambda write: denoise_cells(model, Cells(sparse.csr_matrix(changed)), write), 4, N_GENES
    )
    np.testing.assert_array_equal(found[:, 2], again[:, 2])
    assert (found != again).any()
    # Every value is the expectation under the model's own probabilities.
    if kind == "binned":
        lowest, highest = model.table.means.min(axis=1), model.table.means.max(axis=1)
        assert (found >= lowest - 1e-5).all()
        assert (found <= highest + 1e-5).all()
    assert DENOISING_PASSES <= N_GENES


def test_expressed_models_do_not_denoise():
    with pytest.raises(ConfigurationError, match="needs a model of the ranked layout"):
        denoise_cells(
            make_cell_model("binned", "expressed"), Cells(make_expression(0)), lambda *_: None
        )
