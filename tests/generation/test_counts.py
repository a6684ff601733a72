"""Generated counts: means are kept, expressed genes have one, and they normalise back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from core.errors import ConfigurationError
from core.generation.cells import GENERATION_KEY, CellSource, generate_cells
from core.generation.cells_file import read_first_cells, write_generated
from core.generation.counts import COUNTS, log_values, sample_counts
from core.generation.request import GenerationRequest
from tests.model.examples import make_cell_model

from .test_depth import with_depth


def counting_model(kind="binned"):
    return with_depth(make_cell_model(kind), [3, 3, 4, 4, 5], [2_000, 3_000, 4_000, 5_000, 9_000])


def generate(model, n_cells=40, **settings):
    settings = model.generate.model_copy(update={"decode": "counts", **settings})
    return GenerationRequest({}, n_cells, settings=settings, seed=3)


def test_rounding_by_chance_keeps_the_mean():
    values = np.log1p(np.array([0, 2.5, 7.25, 100], np.float32) * 1e4 / 5_000).astype(np.float32)
    rng = np.random.default_rng(0)
    drawn = np.stack([sample_counts(values, 5_000, rng) for _ in range(4_000)])
    assert (drawn == np.round(drawn)).all()
    np.testing.assert_allclose(drawn.mean(axis=0), [0, 2.5, 7.25, 100], atol=0.04)


def test_what_is_expressed_has_a_count_however_shallow_the_cell():
    values = np.array([0.0, 0.1, 0.5], np.float32)
    assert sample_counts(values, 10, np.random.default_rng(0)).tolist() == [0, 1, 1]


@given(
    st.lists(st.integers(0, 5_000), min_size=1, max_size=30),
    st.integers(5_001, 200_000),
    st.integers(0, 2**31),
)
def test_counts_of_real_cells_come_back_whole(counts, total, seed):
    matrix = sparse.csr_matrix(np.array([counts], np.float32))
    values = log_values(matrix, np.array([total]))
    np.testing.assert_allclose(
        values.toarray()[0], np.log1p(np.array(counts) * 1e4 / total), rtol=1e-6
    )
    back = sample_counts(values.toarray()[0], total, np.random.default_rng(seed))
    np.testing.assert_allclose(back, counts, atol=1)  # float32 lies a hair beside the whole number


@pytest.mark.parametrize("kind", ["binned", "continuous"])
def test_cells_of_counts_are_the_same_cells_at_their_library_size(kind):
    model = counting_model(kind)
    cells, _ = generate_cells(model, generate(model))
    values, _ = generate_cells(model, generate(model, decode="sample"))
    counts = cells.X.toarray()
    assert cells.uns[GENERATION_KEY]["values"] == COUNTS
    assert counts.any()
    assert (counts == np.round(counts)).all()
    np.testing.assert_array_equal(counts > 0, values.X.toarray() > 0)
    expected = np.expm1(values.X.toarray()) * cells.obs["library_size"].to_numpy()[:, None] / 1e4
    assert (np.abs(counts - np.maximum(expected, counts > 0)) <= 1.001).all()
    few, _ = generate_cells(model, generate(model, n_cells=7), batch_size=3)
    np.testing.assert_array_equal(few.X.toarray(), counts[:7])


def test_a_file_of_counts_is_read_back_as_values(tmp_path):
    model = counting_model()
    request = generate(model)
    write_generated(CellSource(model, request), tmp_path / "counts.h5ad")
    cells, _ = generate_cells(model, request)
    size = cells.obs["library_size"].to_numpy()
    read = read_first_cells(tmp_path / "counts.h5ad", 30).toarray()
    expected = np.log1p(cells.X.toarray() * 1e4 / size[:, None])[:30]
    np.testing.assert_allclose(read, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "settings", "reason"),
    [
        (counting_model("binary"), {}, "a binary model knows on and off alone"),
        (make_cell_model(), {}, "keeps no counts of its training cells"),
        (counting_model(), {"genes_per_cell": "none"}, "genes_per_cell = 'none' leaves them open"),
    ],
)
def test_models_that_know_no_counts_say_so(model, settings, reason):
    with pytest.raises(ConfigurationError, match=reason):
        CellSource(model, generate(model, **settings))
