"""Depth: what training cells had, drawn per cell and kept to while genes are drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigurationError, DataError
from core.generation.cells import CellSource, generate_cells
from core.generation.depth import DepthDraw, solve_shift
from core.generation.plan import CellPlan
from core.generation.request import GenerationRequest
from core.generation.sampler import plan_for, sample_cells
from core.model.folder import CellModel
from core.model.reference import SIZE_QUANTILES, size_quantiles
from core.presets.schema import GenerateSettings
from core.training.setup import build_model
from tests.model.examples import make_cell_model
from tests.tiny_atlas import tiny_preset

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
    genes, counts = DepthDraw(model, 0, None).draw(range(3), np.array([[0, 0], [0, 1], [1, 1]]))
    np.testing.assert_allclose(genes, [1, 2, 3])
    np.testing.assert_allclose(counts, [100, 200, 300])


def test_where_few_cells_match_those_that_share_what_matters_most_speak():
    """Only 4 cells are (male, liver); depth hangs on the tissue, of which liver has no other cells."""
    model = with_depth(make_cell_model(), [2, 6, 6, 6, 2])
    genes, _ = DepthDraw(model, 0, None).draw(range(100), np.tile([[1, 0]], (100, 1)))
    np.testing.assert_allclose(genes, 2)  # male lung: no such cell; lung cells have 2
    open_ones, _ = DepthDraw(model, 0, None).draw(range(2000), np.full((2000, 2), -1))
    expected = np.average([2, 6, 6, 6, 2], weights=COUNTS)
    assert open_ones.mean() == pytest.approx(expected, abs=0.15)


def test_the_depth_of_a_cell_depends_on_the_seed_and_its_number_alone():
    model = make_cell_model()
    depth = np.sort(np.random.default_rng(0).uniform(0, 7, (5, 2, SIZE_QUANTILES)))
    model = with_reference(model)
    model.reference = with_sizes(model.reference, depth.astype(np.float32))
    codes = np.zeros((50, 2), np.int32)
    whole = DepthDraw(model, 3, None).draw(range(50), codes)
    part = DepthDraw(model, 3, None).draw(range(20, 30), codes[20:30])
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one[20:30], other)
    assert (DepthDraw(model, 4, None).draw(range(50), codes)[0] != whole[0]).any()


def test_a_library_size_gives_the_genes_of_training_cells_of_that_rank():
    model = with_reference(make_cell_model())
    ranks = np.linspace(0, 1, SIZE_QUANTILES)
    depth = np.tile(np.stack([7 * ranks, 1000 * ranks]), (5, 1, 1)).astype(np.float32)
    model.reference = with_sizes(model.reference, depth)
    for size in (200.0, 700.0):
        genes, counts = DepthDraw(model, 0, size).draw(range(5), np.zeros((5, 2), np.int32))
        np.testing.assert_allclose(genes, 7 * size / 1000, atol=0.1)
        np.testing.assert_allclose(counts, size)


@pytest.mark.parametrize("depth", [None, np.ones((5, 2, SIZE_QUANTILES), np.float32) * [[1], [0]]])
def test_a_library_size_is_refused_where_no_counts_are_known(depth):
    model = with_reference(make_cell_model())
    model.reference = with_sizes(model.reference, depth)
    request = GenerationRequest({}, 3, library_size=1000)
    with pytest.raises(ConfigurationError, match="keeps no counts"):
        CellSource(model, request)


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
    drawn = sample_cells(model, codes, chosen, plan, wanted_genes=wanted)
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
    with pytest.raises(DataError, match="quantiles of 'genes_per_cell' decrease"):
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
