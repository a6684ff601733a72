"""Generated cells as AnnData: labels, values, provenance."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from core.errors import ConfigurationError
from core.generation.cell_generator import GENERATION_KEY, generate_cells
from core.generation.request import GenerationRequest
from tests.model.examples import N_GENES, make_cell_model

from .examples import FEMALE, known_model, set_class_effect, with_reference


def generate(model=None, *, n_cells=12, batch_size=128, phenotypes=None, listener=None, **others):
    model = with_reference(make_cell_model()) if model is None else model
    settings = model.generate.model_copy(update=others.pop("settings", {}))
    request = GenerationRequest(
        phenotypes=phenotypes or {}, n_cells=n_cells, settings=settings, **others
    )
    return generate_cells(
        model, request, batch_size=batch_size, on_progress=listener or (lambda event: None)
    )


def test_cells_carry_labels_genes_and_the_synthetic_flag():
    cells, notes = generate(phenotypes={"sex": "[FEMALE]"})
    assert notes == []
    assert cells.shape == (12, N_GENES)
    assert list(cells.obs.columns) == ["sex", "tissue", "synthetic"]
    assert list(cells.obs["sex"]) == ["female"] * 12
    for phenotype, values in (("sex", ["female", "male"]), ("tissue", ["lung", "blood", "liver"])):
        assert isinstance(cells.obs[phenotype].dtype, pd.CategoricalDtype)
        assert list(cells.obs[phenotype].cat.categories) == values
    assert cells.obs["synthetic"].dtype == bool
    assert cells.obs["synthetic"].all()
    assert cells.obs_names.is_unique
    assert list(cells.var_names) == [f"ENSG0000000000{gene}" for gene in range(N_GENES)]
    assert list(cells.var["gene_symbol"]) == [f"GENE{gene}" for gene in range(N_GENES)]


def test_values_are_a_sparse_float32_matrix_of_plausible_log_values():
    cells, _ = generate(n_cells=100)
    assert sparse.isspmatrix_csr(cells.X)
    assert cells.X.dtype == np.float32
    assert cells.X.data.min() > 0
    assert cells.X.data.max() <= 4  # training values lie below 4


def test_a_changed_token_moves_its_genes_and_leaves_all_else_as_it_was():
    model = known_model()
    set_class_effect(model, FEMALE, 2, 3.0)
    before, _ = generate(model, n_cells=50, phenotypes={"sex": "female"}, seed=4)
    after, _ = generate(
        model, n_cells=50, phenotypes={"sex": "female"}, changes={"sex": "male"}, seed=4
    )
    assert (after.obs["sex"] == "male").all()
    pd.testing.assert_series_equal(after.obs["tissue"], before.obs["tissue"])
    assert len(set(before.obs["tissue"])) > 1  # drawn, of female cells
    moved = (after.X != before.X).toarray().any(axis=0)
    assert np.flatnonzero(moved).tolist() == [2]
    assert after.uns[GENERATION_KEY]["set"] == {"sex": "male"}
    assert "set" not in before.uns[GENERATION_KEY]
    same, _ = generate(
        model, n_cells=50, phenotypes={"sex": "female"}, changes={"sex": "female"}, seed=4
    )
    np.testing.assert_array_equal(same.X.toarray(), before.X.toarray())


def test_none_leaves_the_labels_of_open_phenotypes_missing():
    cells, _ = generate(phenotypes={"tissue": "lung"}, unspecified="none")
    assert cells.obs["sex"].isna().all()
    assert (cells.obs["tissue"] == "lung").all()


@pytest.mark.parametrize("kind", ["binned", "binary", "continuous"])
def test_the_cells_of_a_seed_do_not_depend_on_batches_or_their_number(kind):
    model = with_reference(make_cell_model(kind))
    whole, _ = generate(model, n_cells=10, seed=5)
    compare = np.testing.assert_array_equal
    if kind == "continuous":  # sums of another order: the last digits differ
        compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # noqa: E731
    for n_cells, batch_size in ((10, 1), (10, 3), (4, 128), (7, 5)):
        cells, _ = generate(model, n_cells=n_cells, seed=5, batch_size=batch_size)
        compare(cells.X.toarray(), whole.X[:n_cells].toarray())
        pd.testing.assert_frame_equal(cells.obs, whole.obs[:n_cells])
    other, _ = generate(model, n_cells=10, seed=6)
    assert (other.X != whole.X).nnz > 0


def test_bins_are_decoded_as_asked():
    model = with_reference(make_cell_model())
    bins, _ = generate(model, settings={"decode": "bins"})
    means, _ = generate(model, settings={"decode": "mean"})
    drawn, _ = generate(model, settings={"decode": "sample"})
    numbers = bins.X.toarray().astype(int)
    assert set(np.unique(numbers)) <= {0, 1, 2, 3}
    np.testing.assert_array_equal(means.X.toarray(), model.table.means[np.arange(N_GENES), numbers])
    np.testing.assert_array_equal(model.values.encode(drawn.X.toarray()), numbers)
    assert bins.uns[GENERATION_KEY]["values"] == "bin numbers"
    assert drawn.uns[GENERATION_KEY]["values"] == "log1p of counts per 10,000"


def test_values_within_bins_are_drawn_anew_for_every_cell_and_seed():
    settings = {"temperature": 0.01}  # every cell has the same bins
    one, two = (generate(known_model(), settings=settings, seed=seed)[0] for seed in (0, 1))
    bins = known_model().values.encode(np.concatenate([one.X.toarray(), two.X.toarray()]))
    np.testing.assert_array_equal(bins, np.tile(bins[0], (24, 1)))
    values = np.concatenate([one.X.toarray(), two.X.toarray()])[:, bins[0] > 0]
    assert len(np.unique(values, axis=0)) > 20  # of 24; few training values stand in a bin


def test_a_binary_model_gives_ones_and_says_so():
    cells, _ = generate(with_reference(make_cell_model("binary")))
    assert set(cells.X.data) == {1.0}
    assert cells.uns[GENERATION_KEY]["values"] == "expressed (1) or not expressed (0)"


def test_a_continuous_model_gives_values_above_zero_and_no_nan():
    cells, _ = generate(with_reference(make_cell_model("continuous")), n_cells=50)
    assert (cells.X.data > 0).all()
    assert np.isfinite(cells.X.data).all()


def test_a_model_without_phenotypes_generates_unlabelled_cells():
    cells, _ = generate(make_cell_model(phenotypes={}))
    assert list(cells.obs.columns) == ["synthetic"]


def test_progress_ends_at_the_number_of_cells():
    events = []
    generate(n_cells=10, batch_size=4, listener=events.append)
    done = [event.done for event in events]
    assert done == sorted(done)
    assert (done[-1], events[-1].total) == (10, 10)


def test_an_unfit_model_or_request_is_refused_before_anything_is_drawn():
    with pytest.raises(ConfigurationError, match="expressed layout have no Gibbs sweeps"):
        generate(make_cell_model(layout="expressed"), settings={"method": "gibbs"})
    with pytest.raises(ConfigurationError, match="knows no sex 'femal'; did you mean 'female'"):
        generate(phenotypes={"sex": "femal"})


def test_provenance_names_weights_request_and_settings():
    cells, notes = generate(phenotypes={"sex": "male", "tissue": "lung"}, seed=9)
    facts = cells.uns[GENERATION_KEY]
    assert facts["synthetic"]
    assert facts["simulated_training_data"]
    assert facts["request"] == {"sex": "male", "tissue": "lung"}
    assert (facts["training_cells_of_request"], facts["n_cells"], facts["seed"]) == (0, 12, 9)
    assert (facts["steps"], facts["method"], facts["decode"]) == (3, "auto", "sample")
    assert (facts["temperature"], facts["guidance"]) == (1.0, 0.0)
    assert (facts["model_name"], facts["model_step"]) == ("example", 7)
    assert list(facts["training_sources"]) == ["cells.h5ad"]
    assert list(facts["notes"]) == notes
    assert len(facts["model_genes_sha256"]) == 64
    assert facts["tfx_version"]
    same, other = (
        generate(with_reference(make_cell_model(seed=seed)), n_cells=1)[0] for seed in (0, 1)
    )
    assert same.uns[GENERATION_KEY]["model_sha256"] == facts["model_sha256"]
    assert other.uns[GENERATION_KEY]["model_sha256"] != facts["model_sha256"]
