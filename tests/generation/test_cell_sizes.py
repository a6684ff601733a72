"""Genes per cell and library sizes: drawn from training cells, met by the sampler, used for counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from core.errors import ConfigurationError, DataError
from core.generation.cell_generator import COUNTS as COUNT_VALUES
from core.generation.cell_generator import (
    GENERATION_KEY,
    CellGenerator,
    generate_cells,
    sample_cells,
)
from core.generation.cell_sizes import CellSizes, log_values, sample_counts
from core.generation.expression_shift import solve_shift
from core.generation.generated_file import read_first_cells, write_generated
from core.generation.plan import CellPlan, plan_for
from core.generation.request import GenerationRequest
from core.model.folder import CellModel
from core.model.reference import SIZE_QUANTILES, size_quantiles
from core.presets.schema import GenerateSettings
from tests.model.examples import make_cell_model
from tests.tiny_atlas import build_model, tiny_preset

from .examples import COMBINATIONS, COUNTS, known_model, with_reference


def with_sizes(reference, quantiles):
    """Set the quantiles of genes per cell and of library sizes, (combinations, 2, quantiles)."""
    genes, counts = (None, None) if quantiles is None else np.moveaxis(quantiles, 1, 0)
    return replace(reference, genes_per_cell=genes, library_size=counts)


def with_depth(model, genes, counts=None):
    """Give every combination of the known training cells a depth of its own, the same for all its cells."""
    model = with_reference(model)
    depth = np.zeros((len(COMBINATIONS), 2, SIZE_QUANTILES), np.float32)
    depth[:, 0] = np.asarray(genes)[:, None]
    depth[:, 1] = 0 if counts is None else np.asarray(counts)[:, None]
    model.reference = with_sizes(model.reference, depth)
    return model


def test_quantiles_are_those_of_the_cells_of_each_combination():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.array([[0, 1], [1, -1]], np.int32), [500, 300], axis=0)
    genes = np.concatenate([rng.poisson(20, 500), rng.poisson(60, 300)])
    order = rng.permutation(800)
    combinations = np.array([[0, 1], [1, -1], [1, 1]], np.int32)
    found = size_quantiles(combinations, codes[order], genes[order])
    assert found.shape == (3, SIZE_QUANTILES)
    for at, part in ((0, genes[:500]), (1, genes[500:]), (2, genes)):  # the last: none has it
        assert found[at].mean() == pytest.approx(part.mean(), rel=0.02)
        assert found[at].std() == pytest.approx(part.std(), rel=0.08)


def test_a_cell_gets_the_depth_of_training_cells_with_its_phenotypes():
    model = with_depth(make_cell_model(), [1, 2, 3, 4, 5], [100, 200, 300, 400, 500])
    genes, counts = CellSizes(model.reference, 0, None).draw(
        range(3), np.array([[0, 0], [0, 1], [1, 1]])
    )
    np.testing.assert_allclose(genes, [1, 2, 3])
    np.testing.assert_allclose(counts, [100, 200, 300])


def test_where_few_cells_match_those_that_share_what_matters_most_speak():
    """Only 4 cells are (male, liver); depth hangs on the tissue, of which liver has no other cells."""
    model = with_depth(make_cell_model(), [2, 6, 6, 6, 2])
    genes, _ = CellSizes(model.reference, 0, None).draw(range(100), np.tile([[1, 0]], (100, 1)))
    np.testing.assert_allclose(genes, 2)  # male lung: no such cell; lung cells have 2
    open_ones, _ = CellSizes(model.reference, 0, None).draw(range(2000), np.full((2000, 2), -1))
    expected = np.average([2, 6, 6, 6, 2], weights=COUNTS)
    assert open_ones.mean() == pytest.approx(expected, abs=0.15)


def test_the_depth_of_a_cell_depends_on_the_seed_and_its_number_alone():
    model = make_cell_model()
    depth = np.sort(np.random.default_rng(0).uniform(0, 7, (5, 2, SIZE_QUANTILES)))
    model = with_reference(model)
    model.reference = with_sizes(model.reference, depth.astype(np.float32))
    codes = np.zeros((50, 2), np.int32)
    whole = CellSizes(model.reference, 3, None).draw(range(50), codes)
    part = CellSizes(model.reference, 3, None).draw(range(20, 30), codes[20:30])
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one[20:30], other)
    assert (CellSizes(model.reference, 4, None).draw(range(50), codes)[0] != whole[0]).any()


def test_a_library_size_gives_the_genes_of_training_cells_of_that_rank():
    model = with_reference(make_cell_model())
    ranks = np.linspace(0, 1, SIZE_QUANTILES)
    depth = np.tile(np.stack([7 * ranks, 1000 * ranks]), (5, 1, 1)).astype(np.float32)
    model.reference = with_sizes(model.reference, depth)
    for size in (200.0, 700.0):
        genes, counts = CellSizes(model.reference, 0, size).draw(
            range(5), np.zeros((5, 2), np.int32)
        )
        np.testing.assert_allclose(genes, 7 * size / 1000, atol=0.1)
        np.testing.assert_allclose(counts, size)


@pytest.mark.parametrize("depth", [None, np.ones((5, 2, SIZE_QUANTILES), np.float32) * [[1], [0]]])
def test_a_library_size_is_refused_where_no_counts_are_known(depth):
    model = with_reference(make_cell_model())
    model.reference = with_sizes(model.reference, depth)
    request = GenerationRequest({}, 3, library_size=1000)
    with pytest.raises(ConfigurationError, match="keeps no counts"):
        CellGenerator(model, request)


@pytest.mark.parametrize("size", [0.0, -3.0, float("nan"), float("inf")])
def test_a_library_size_that_is_none_is_refused(size):
    with pytest.raises(ConfigurationError, match="must be a number of counts above 0"):
        GenerationRequest({}, 3, library_size=size)


@given(
    seed=st.integers(0, 100), share=st.floats(0.05, 0.95), temperature=st.sampled_from([0.5, 1.0])
)
def test_the_shift_brings_the_expected_number_to_what_is_wanted(seed, share, temperature):
    rng = np.random.default_rng(seed)
    odds = torch.from_numpy(rng.normal(size=(4, 300)))
    is_hidden = torch.from_numpy(rng.random((4, 300)) < 0.7)
    wanted = share * is_hidden.sum(dim=1).double()
    shift = solve_shift(odds, is_hidden, wanted, temperature)
    assert shift.abs().max() <= 2
    expected = (torch.sigmoid((odds + shift[:, None]) / temperature) * is_hidden).sum(dim=1)
    inside = shift.abs() < 1.99
    torch.testing.assert_close(expected[inside], wanted[inside], rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", ["binned", "binary", "continuous"])
@pytest.mark.parametrize("settings", [{"steps": 4}, {"steps": 7, "method": "gibbs"}])
def test_cells_express_about_as_many_genes_as_they_are_to(kind, settings):
    model = known_model(kind) if kind != "continuous" else with_reference(make_cell_model(kind))
    chosen = GenerateSettings(**settings)
    plan = CellPlan.draw(0, range(1000), plan_for(model, chosen), needs_normal=kind == "continuous")
    codes = np.zeros((1000, 2), np.int32)
    wanted = np.repeat(np.array([2, 5], np.float32), 500)
    drawn = sample_cells(model, codes, chosen, plan, genes_per_cell=wanted)
    few, many = ((part > 0).sum(axis=1).mean() for part in (drawn[:500], drawn[500:]))
    free = (sample_cells(model, codes, chosen, plan) > 0).sum(axis=1)
    assert few < free.mean() - 0.3 or free.mean() < 2.3
    assert many > free.mean() + 0.3
    if kind != "continuous":
        assert (few, many) == (pytest.approx(2, abs=0.6), pytest.approx(5, abs=0.6))


def test_library_sizes_stand_beside_the_cells_and_none_means_none():
    model = with_depth(make_cell_model(), [1, 2, 3, 4, 5], [100, 200, 300, 400, 500])
    cells, _ = generate_cells(model, GenerationRequest({"sex": "female", "tissue": "blood"}, 4))
    assert list(cells.obs["library_size"]) == [200] * 4
    settings = model.generate.model_copy(update={"genes_per_cell": "none"})
    plain, _ = generate_cells(model, GenerationRequest({}, 4, settings=settings))
    assert "library_size" not in plain.obs
    assert "library_size" not in generate_cells(make_cell_model(), GenerationRequest({}, 4))[0].obs


def test_depths_travel_in_the_model_folder_and_older_folders_do_without(tmp_path):
    model = with_depth(make_cell_model(), [1, 2, 3, 4, 5])
    model.save(tmp_path / "new")
    loaded = CellModel.load(tmp_path / "new")
    for name in ("genes_per_cell", "library_size"):
        expected = getattr(model.reference, name)
        np.testing.assert_array_equal(getattr(loaded.reference, name), expected)
    make_cell_model().save(tmp_path / "old")
    assert CellModel.load(tmp_path / "old").reference.genes_per_cell is None
    falling = model.reference.genes_per_cell.copy()
    falling[0, 3] = -1
    model.reference = replace(model.reference, genes_per_cell=falling)
    model.save(tmp_path / "bad")
    with pytest.raises(DataError, match="numbers of 'genes_per_cell' decrease"):
        CellModel.load(tmp_path / "bad")


def test_genes_per_cell_spread_as_in_training_cells_even_where_the_model_knows_no_gene_pairs(
    tiny_store,
):
    preset = tiny_preset(model__layers=1, data__genes=100).preset  # marginals are all it knows
    model = build_model(preset, tiny_store, name="tiny")
    rows = tiny_store.rows("train")
    real = (model.values.encode(tiny_store.read(rows, model.panel).toarray()) > 0).sum(axis=1)
    cells, _ = generate_cells(model, GenerationRequest({}, 400))
    drawn = (cells.X.toarray() > 0).sum(axis=1)
    assert drawn.mean() == pytest.approx(real.mean(), rel=0.08)
    assert drawn.std() == pytest.approx(real.std(), rel=0.2)
    totals = tiny_store.totals[rows]
    assert cells.obs["library_size"].mean() == pytest.approx(totals.mean(), rel=0.15)
    settings = model.generate.model_copy(update={"genes_per_cell": "none"})
    free, _ = generate_cells(model, GenerationRequest({}, 400, settings=settings))
    assert (free.X.toarray() > 0).sum(axis=1).std() < 0.7 * real.std()


# ------------------------------------------------------------------------------------ counts
def counting_model(kind="binned"):
    return with_depth(make_cell_model(kind), [3, 3, 4, 4, 5], [2_000, 3_000, 4_000, 5_000, 9_000])


def count_request(model, n_cells=40, **settings):
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
    cells, _ = generate_cells(model, count_request(model))
    values, _ = generate_cells(model, count_request(model, decode="sample"))
    counts = cells.X.toarray()
    assert cells.uns[GENERATION_KEY]["values"] == COUNT_VALUES
    assert counts.any()
    assert (counts == np.round(counts)).all()
    np.testing.assert_array_equal(counts > 0, values.X.toarray() > 0)
    expected = np.expm1(values.X.toarray()) * cells.obs["library_size"].to_numpy()[:, None] / 1e4
    assert (np.abs(counts - np.maximum(expected, counts > 0)) <= 1.001).all()
    few, _ = generate_cells(model, count_request(model, n_cells=7), batch_size=3)
    np.testing.assert_array_equal(few.X.toarray(), counts[:7])


def test_a_file_of_counts_is_read_back_as_values(tmp_path):
    model = counting_model()
    request = count_request(model)
    write_generated(CellGenerator(model, request), tmp_path / "counts.h5ad")
    cells, _ = generate_cells(model, request)
    size = cells.obs["library_size"].to_numpy()
    read = read_first_cells(tmp_path / "counts.h5ad", 30).toarray()
    expected = np.log1p(cells.X.toarray() * 1e4 / size[:, None])[:30]
    np.testing.assert_allclose(read, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "settings", "reason"),
    [
        (counting_model("binary"), {}, "a binary model predicts which genes are expressed"),
        (make_cell_model(), {}, "keeps no counts of its training cells"),
        (counting_model(), {"genes_per_cell": "none"}, "genes_per_cell = 'none' draws none"),
    ],
)
def test_models_that_know_no_counts_say_so(model, settings, reason):
    with pytest.raises(ConfigurationError, match=reason):
        CellGenerator(model, count_request(model, **settings))


# ----------------------------------------------------------------------- models that read library sizes
@pytest.fixture(scope="module")
def sized_model(tiny_store):
    """Return an untrained model whose bins are those of the genes' quantiles."""
    options = {
        "model__library_size": True,
        "encoding__edges": "gene_quantile",
        "encoding__threshold": 0.0,
        "encoding__bins": 8,
        "masking__genes": "uniform",
        "generate__steps": 4,
    }
    return build_model(tiny_preset(**options).preset, tiny_store)


def sized_request(model, n_cells=40, library_size=None, **settings):
    settings = model.generate.model_copy(update=settings)
    return GenerationRequest({}, n_cells, settings=settings, library_size=library_size)


@pytest.mark.parametrize("settings", [{}, {"guidance": 1.0}, {"decode": "mean"}])
def test_values_are_whole_counts_of_the_cells_library_size(sized_model, settings):
    values, _ = generate_cells(sized_model, sized_request(sized_model, **settings))
    size = values.obs["library_size"].to_numpy(np.float64)
    assert (size == np.round(size)).all()
    counts = np.expm1(values.X.toarray().astype(np.float64)) * size[:, None] / 1e4
    np.testing.assert_allclose(counts, np.round(counts), atol=2e-3, rtol=1e-5)
    assert len(np.unique(size)) > 20
    bins, _ = generate_cells(
        sized_model, sized_request(sized_model, **settings | {"decode": "bins"})
    )
    np.testing.assert_array_equal(sized_model.values.encode(values.X.toarray()), bins.X.toarray())


def test_counts_and_values_are_the_same_cells(sized_model):
    values, _ = generate_cells(sized_model, sized_request(sized_model))
    cells, _ = generate_cells(sized_model, sized_request(sized_model, decode="counts"))
    size = cells.obs["library_size"].to_numpy(np.float32)
    np.testing.assert_array_equal(log_values(cells.X, size).toarray(), values.X.toarray())
    few, _ = generate_cells(sized_model, sized_request(sized_model, 7), batch_size=3)
    np.testing.assert_array_equal(few.X.toarray(), values.X.toarray()[:7])


@pytest.mark.parametrize("genes_per_cell", ["sample", "none"])
def test_library_sizes_are_those_of_training_cells_or_the_requested_one(
    sized_model, tiny_store, genes_per_cell
):
    request = sized_request(sized_model, 300, genes_per_cell=genes_per_cell, steps=1)
    drawn, _ = generate_cells(sized_model, request)
    real = np.log(tiny_store.library_sizes(tiny_store.rows("train")))
    found = np.log(drawn.obs["library_size"].to_numpy())
    assert found.mean() == pytest.approx(real.mean(), abs=0.1)
    assert found.std() == pytest.approx(real.std(), abs=0.1)
    fixed, _ = generate_cells(sized_model, sized_request(sized_model, 5, 1234.0, steps=1))
    assert (fixed.obs["library_size"] == 1234).all()
