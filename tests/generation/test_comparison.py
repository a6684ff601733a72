"""Generated cells beside real ones: marker genes from the model, fidelity from the store."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from core.cells.genes import GenePanel
from core.errors import DataError
from core.evaluation.fidelity.measures import compare_cells
from core.generation import comparison
from core.generation.comparison import (
    MAX_GENES,
    MAX_POINTS,
    agreement_beside_real,
    check_markers,
    compare_pairs,
    find_training_store,
    open_training_store,
    principal_plane,
    profile_cells,
    read_real_cells,
)
from core.model.reference import Reference
from tests.model.examples import N_GENES, make_cell_model
from tests.tiny_atlas import build_model, tiny_preset

from .examples import COMBINATIONS, COUNTS

SEX_GENES = ["XIST", "RPS4Y1", "DDX3Y"]


def compare_with_real(model, store, generated, wanted):
    """What `tfx generate` does with the cells it finds."""
    real = read_real_cells(model, store, wanted)
    return None if real is None else (compare_cells(real[0], generated, model.panel), real[1])


@pytest.fixture(scope="module")
def trained(tiny_store):
    """A model fitted to the store's cells, not trained further."""
    preset = tiny_preset(
        model__layers=0, model__log_linear=True, data__genes=48, data__include_genes=SEX_GENES
    ).preset
    return build_model(preset, tiny_store, name="tiny")


def test_markers_are_the_genes_that_set_a_value_apart():
    model = make_cell_model()
    means = np.zeros((5, N_GENES), np.float32)  # female, male, lung, blood, liver
    means[2] = [0, 0, 3, 1, 0, 0, 0]
    means[3] = [2, 0, 0, 1, 0, 0, 0]
    means[4] = [0, 9, 0, 1, 0, 0, 0]
    old = model.reference
    model.reference = Reference(COMBINATIONS, COUNTS, means, old.detection, old.bin_counts)
    generated = sparse.csr_matrix(np.tile([[0, 0, 2.5, 0, 0, 0, 0], [0] * 7], (2, 1)))
    up, down = check_markers(model, generated, {1: 0}, n_each=1)
    # lung 650 cells, blood 350, liver 4: the liver's high gene weighs little in the overall mean
    assert (up.phenotype, up.value, up.gene) == ("tissue", "lung", "GENE2")
    assert up.training_mean == 3
    assert up.other_mean == pytest.approx(3 * 650 / 1004, rel=1e-6)
    assert (up.generated_mean, up.generated_detection) == (1.25, 0.5)
    assert (down.gene, down.training_mean) == ("GENE0", 0)
    assert down.other_mean == pytest.approx(2 * 350 / 1004, rel=1e-6)


def test_markers_are_compared_with_cells_that_differ_in_one_phenotype_only(trained, tiny_store):
    names = list(trained.config.phenotypes)
    sex, tissue = names.index("sex"), names.index("tissue")
    wanted = {sex: 0, tissue: trained.config.phenotypes["tissue"].index("lung")}
    nothing = sparse.csr_matrix((3, len(trained.panel)))
    checks = check_markers(trained, nothing, wanted, store=tiny_store, n_each=1)
    assert [one.beside for one in checks[::2]] == ["lung, another sex", "female, another tissue"]
    codes = np.asarray(tiny_store.phenotype_codes)
    lung = (codes[:, tissue] == wanted[tissue]) & (tiny_store.split_codes == 0)
    for one, rows in (
        (checks[0], lung & (codes[:, sex] == 0)),
        (checks[2], lung & (codes[:, sex] == 0)),
    ):
        gene = trained.panel.index_of(one.gene)
        mean = tiny_store.read(np.flatnonzero(rows), trained.panel).toarray()[:, gene].mean()
        assert one.matching_mean == pytest.approx(mean, abs=1e-4)
    men = tiny_store.read(np.flatnonzero(lung & (codes[:, sex] == 1)), trained.panel).toarray()
    gene = trained.panel.index_of(checks[0].gene)
    assert checks[0].beside_mean == pytest.approx(men[:, gene].mean(), abs=1e-4)
    assert {one.phenotype for one in checks} == {"sex", "tissue"}
    chosen = check_markers(trained, nothing, {}, genes=[gene])
    assert [(one.value, one.gene) for one in chosen] == [("all cells", checks[0].gene)]


def test_agreement_is_shown_beside_that_of_as_many_other_real_cells():
    rng = np.random.default_rng(0)
    common = 2 * rng.normal(size=(400, 1))
    cells = np.maximum(common * np.linspace(-1, 1, 12) + rng.normal(size=(400, 12)) + 1, 0)
    real, perfect = sparse.csr_matrix(cells[:200]), sparse.csr_matrix(cells[200:])
    genes = [f"G{number}" for number in range(12)]
    panel = GenePanel(genes, genes)
    found = agreement_beside_real(real, perfect, panel)
    assert found.n_cells == 100
    for name, value in found.real.items():
        assert found.generated[name] == pytest.approx(value, abs=0.15)
    shuffled = np.stack([rng.permutation(column) for column in cells[:200].T], axis=1)
    independent = agreement_beside_real(real, sparse.csr_matrix(shuffled), panel)
    assert independent.generated["correlation_r"] < 0.5 < 0.9 < independent.real["correlation_r"]
    assert agreement_beside_real(real[:19], perfect, panel) is None


def test_no_request_has_no_markers():
    assert check_markers(make_cell_model(), sparse.csr_matrix((3, N_GENES)), {}) == []


def test_markers_of_a_simulated_sex_are_its_own_genes(trained):
    slot = list(trained.config.phenotypes).index("sex")
    female = trained.config.phenotypes["sex"].index("female")
    nothing = sparse.csr_matrix((3, len(trained.panel)))
    checks = check_markers(trained, nothing, {slot: female}, n_each=2)
    up, down = checks[:2], checks[2:]
    assert up[0].gene == "XIST"
    assert up[0].training_mean > up[0].other_mean
    assert {check.gene for check in down} == {"RPS4Y1", "DDX3Y"}
    assert all(check.training_mean < check.other_mean for check in down)


def test_the_store_is_opened_only_while_it_is_the_one_trained_on(trained, tmp_path):
    assert open_training_store(trained).n_cells == 600
    there = trained.provenance["store"]
    moved = make_cell_model()
    moved.provenance = trained.provenance | {"store": str(tmp_path / "gone")}
    assert open_training_store(moved) is None
    moved.provenance = trained.provenance | {"store_key": "another"}
    assert open_training_store(moved) is None
    moved.provenance = {}
    assert open_training_store(moved) is None
    shutil.copytree(there, tmp_path / "damaged")
    (tmp_path / "damaged" / "manifest.json").write_text("{", encoding="utf-8")
    moved.provenance = trained.provenance | {"store": str(tmp_path / "damaged")}
    assert open_training_store(moved) is None
    with pytest.raises(DataError, match="damaged manifest"):
        find_training_store(moved)
    assert find_training_store(moved, Path(there)).n_cells == 600


def test_the_store_is_found_beside_a_project_that_was_moved(trained, tmp_path):
    """As the run knew it from its folder, or in a folder of stores near by."""
    there, run = Path(trained.provenance["store"]), tmp_path / "old" / "runs" / "a"
    moved = make_cell_model()
    moved.folder = tmp_path / "new" / "runs" / "a" / "model"
    facts = {"store": str(tmp_path / "old" / "data" / "mine"), "run": str(run)}
    moved.provenance = trained.provenance | facts
    for place in (tmp_path / "new" / "data" / "mine", tmp_path / "new" / "stores" / "mine"):
        shutil.copytree(there, place)
        assert find_training_store(moved).path == place
        shutil.rmtree(place)
    with pytest.raises(DataError, match=r"old/data/mine: the store of .* is not there"):
        find_training_store(moved)


def test_a_model_that_names_no_store_finds_none_even_inside_one(tiny_store, monkeypatch):
    monkeypatch.chdir(tiny_store.path)
    model = make_cell_model()
    model.provenance = {}
    assert open_training_store(model) is None


def matching_rows(store, phenotype, code):
    slot = list(store.phenotypes).index(phenotype)
    return slot, np.flatnonzero(np.asarray(store.phenotype_codes[:, slot]) == code)


def test_real_cells_compared_with_themselves_agree(trained, tiny_store):
    slot, rows = matching_rows(tiny_store, "sex", 0)
    held_out = rows[np.asarray(tiny_store.split_codes)[rows] != 0]
    real = tiny_store.read(held_out, trained.panel)
    summary, which = compare_with_real(trained, tiny_store, real, {slot: 0})
    assert which == "held-out"
    assert summary.n_real == len(held_out)
    assert summary.gene_mean_r == pytest.approx(1)
    assert summary.detection_mae == 0


def test_where_few_held_out_cells_match_training_cells_stand_beside_too(
    trained, tiny_store, monkeypatch
):
    slot, rows = matching_rows(tiny_store, "tissue", 0)
    monkeypatch.setattr(comparison, "ENOUGH_HELD_OUT", len(rows) + 1)
    real = tiny_store.read(rows, trained.panel)
    summary, which = compare_with_real(trained, tiny_store, real, {slot: 0})
    assert which == "training and held-out"
    assert summary.n_real == len(rows)


def test_at_most_so_many_real_cells_are_read(trained, tiny_store, monkeypatch):
    monkeypatch.setattr(comparison, "MAX_COMPARED", 60)
    real = tiny_store.read(np.arange(5), trained.panel)
    summary, _ = compare_with_real(trained, tiny_store, real, {})
    assert summary.n_real == 60


def test_a_combination_no_real_cell_has_is_compared_with_nothing(trained, tiny_store):
    names = list(trained.config.phenotypes)
    wanted = {names.index("sex"): 0, names.index("tissue"): 0, names.index("cell_type"): 99}
    generated = tiny_store.read(np.arange(5), trained.panel)
    assert compare_with_real(trained, tiny_store, generated, wanted) is None


def test_a_binary_model_is_compared_on_and_off(tiny_store):
    preset = tiny_preset(
        model__layers=0, model__log_linear=True, encoding__kind="binary", encoding__threshold=0.5
    ).preset
    model = build_model(preset, tiny_store, name="binary")
    rows = tiny_store.rows("test")
    generated = sparse.csr_matrix((tiny_store.read(rows, model.panel) > 0.5).astype(np.float32))
    rows_of_all = np.flatnonzero(np.asarray(tiny_store.split_codes) != 0)
    real = (tiny_store.read(rows_of_all, model.panel).toarray() > 0.5).mean(axis=0)
    summary, _ = compare_with_real(model, tiny_store, generated, {})
    best = summary.top_genes[0]
    assert best.real_mean == pytest.approx(real.max())
    assert best.real_mean == best.real_detection


# ------------------------------------------------------------------------------------ profiles
def panel_of(n_genes):
    names = tuple(f"G{gene}" for gene in range(n_genes))
    return GenePanel(names, names)


def cells_of(n_cells, n_genes, *, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    dense = rng.exponential(scale, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.5)
    return sparse.csr_matrix(dense.astype(np.float32))


def test_a_profile_is_bounded_plain_json_whatever_the_cells():
    real, generated = cells_of(510, 2100), cells_of(520, 2100, seed=1)
    profile = profile_cells(generated, real, panel_of(2100))
    text = json.dumps(profile, allow_nan=False)
    assert len(text) < 400_000
    assert {len(part) for part in profile["genes"].values()} == {MAX_GENES}
    for side in ("real", "generated"):
        assert len(profile["detected_genes"][side]) == MAX_POINTS
        assert np.array(profile["embedding"][side]).shape == (MAX_POINTS, 2)
    assert all(len(gene["real_values"]) == 200 for gene in profile["top_genes"])


def test_means_detected_genes_and_differences_are_those_of_the_cells():
    real = sparse.csr_matrix(np.array([[1, 0, 3], [3, 0, 0], [2, 0, 0.0]], np.float32))
    generated = sparse.csr_matrix(np.array([[2, 0, 0], [2, 4, 0.0]], np.float32))
    profile = profile_cells(generated, real, panel_of(3))
    assert profile["genes"] == {
        "names": ["G0", "G1", "G2"],
        "real_mean": [2, 0, 1],
        "generated_mean": [2, 2, 0],
    }
    assert profile["detected_genes"] == {"real": [2, 1, 1], "generated": [1, 2]}
    first = profile["top_genes"][0]
    assert (first["gene"], first["difference"]) == ("G1", 2)
    assert (first["real_values"], first["generated_values"]) == ([0, 0, 0], [0, 4])


def test_without_real_cells_the_real_side_is_null():
    profile = profile_cells(cells_of(4, 6), None, panel_of(6))
    assert profile["genes"]["real_mean"] is None
    assert profile["detected_genes"]["real"] is None
    assert (profile["embedding"], profile["fidelity"], profile["top_genes"]) == (None, None, [])
    assert len(profile["detected_genes"]["generated"]) == 4


def floor_of(differences):
    """The floor by its definition, one gene and one exchange after another."""
    n_cells, n_genes = differences.shape
    norms = [math.sqrt(sum(value**2 for value in differences[:, gene])) for gene in range(n_genes)]
    largest = []
    for signs in np.random.default_rng(0).choice([-1.0, 1.0], (1_000, n_cells)):
        sums = [abs(sum(signs * differences[:, gene])) for gene in range(n_genes)]
        largest.append(max(one / norm for one, norm in zip(sums, norms, strict=True) if norm))
    limit = sorted(largest)[math.ceil(0.95 * 999)]
    return [limit * norm / n_cells for norm in norms]


def test_pairs_are_compared_as_directly_computed_and_only_what_moves_exceeds_the_floor():
    rng = np.random.default_rng(3)
    before, again = cells_of(60, 9).toarray(), cells_of(60, 9, seed=5).toarray()
    after = np.where(rng.random(before.shape) < 0.9, before, again)
    after[:, 4] = before[:, 4] + rng.normal(1.5, 0.3, 60)  # this one really moves
    after[:, 5] = before[:, 5] + 0.1  # as pairs for certain, but less than two draws differ by
    after[:, 7] = before[:, 7]
    cells = [sparse.csr_matrix(one) for one in (before, after, again)]
    pairs = compare_pairs(*cells, panel_of(9))
    assert (pairs["names"], pairs["cells"]) == ([f"G{gene}" for gene in range(9)], 60)
    np.testing.assert_allclose(pairs["before_mean"], before.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(pairs["after_mean"], after.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(pairs["change"], (after - before).mean(axis=0), atol=1e-4)
    expected = np.maximum(floor_of(again - before), floor_of(after - before))
    np.testing.assert_allclose(pairs["floor"], expected, atol=1e-4)
    exceeds = np.abs(pairs["change"]) > pairs["floor"]
    assert np.flatnonzero(exceeds).tolist() == [4]


@pytest.mark.parametrize("n_cells", [1, 2, 4])
def test_few_pairs_prove_nothing(n_cells):
    before = sparse.csr_matrix(np.ones((n_cells, 3), np.float32))
    pairs = compare_pairs(before, before * 2, before, panel_of(3))
    assert not (np.abs(pairs["change"]) > pairs["floor"]).any()


def test_the_plane_is_that_of_the_real_cells_and_shared():
    rng = np.random.default_rng(0)
    axis = np.array([3, 4, 0, 0]) / 5
    real = sparse.csr_matrix(10 + rng.normal(size=(300, 1)) * 5 * axis)
    generated = sparse.csr_matrix(10 + np.array([[5.0], [-5.0]]) * axis + np.array([0, 0, 0, 9]))
    n_fitted, at_real, at_generated, explained = principal_plane(real, generated)
    assert n_fitted == 300
    assert explained[0] == pytest.approx(1.0)
    assert at_real[:, 0].std() == pytest.approx(real.toarray()[:, 0].std() / 0.6)
    assert np.abs(at_real[:, 1]).max() < 1e-6
    assert abs(at_generated[0, 0] - at_generated[1, 0]) == pytest.approx(10)


def test_the_axes_are_those_of_a_singular_value_decomposition():
    real, generated = cells_of(40, 9), cells_of(30, 9, seed=1)
    _, at_real, at_generated, explained = principal_plane(real, generated)
    dense = real.toarray() - real.toarray().mean(axis=0)
    _, strength, axes = np.linalg.svd(dense, full_matrices=False)
    np.testing.assert_allclose(explained, strength[:2] ** 2 / (strength**2).sum(), rtol=1e-5)
    for cells, found in ((real, at_real), (generated, at_generated)):
        expected = (cells.toarray() - real.toarray().mean(axis=0)) @ axes[:2].T
        np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)


def test_one_real_cell_spans_no_plane_and_is_drawn_all_the_same():
    real = sparse.csr_matrix(np.array([[1.0, 2.0]]))
    profile = profile_cells(real.copy(), real, panel_of(2))
    assert profile["embedding"]["real"] == [[0, 0]]
    assert profile["embedding"]["explained"] == [0, 0]
