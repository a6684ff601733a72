"""Bins: edges of every kind, and bins back to values."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from scipy import sparse

from core.cells.genes import GenePanel
from core.cells.normalisation import log_values
from core.encoding.values import (
    NEVER,
    QUANTILES,
    CountBins,
    CountLattice,
    ValueEncoder,
    ValueTable,
    count_thresholds,
    fit_value_encoder,
    possible_bins,
    read_gene_edges,
)
from core.errors import ConfigurationError, DataError
from core.presets.schema import EncodingSettings

PANEL = GenePanel(
    ("ENSG00000000001", "ENSG00000000002", "ENSG00000000003"), ("ONE", "TWO", "THREE")
)


def training(seed=0, *, n_cells=400, n_genes=3):
    rng = np.random.default_rng(seed)
    dense = rng.gamma(2.0, 1.0, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.6)
    return sparse.csr_matrix(dense.astype(np.float32))


def fit(matrix=None, **settings):
    matrix = training() if matrix is None else matrix
    return fit_value_encoder(EncodingSettings(**settings), matrix, PANEL)


def around(edges):
    """Each edge and its neighbours among the float32 numbers: where an off-by-one would show."""
    edges = np.asarray(edges, dtype=np.float32)
    down, up = np.float32(-np.inf), np.float32(np.inf)
    return np.concatenate([edges, np.nextafter(edges, down), np.nextafter(edges, up)])


# ------------------------------------------------------------------------------------ edges
@pytest.mark.parametrize("bins", [2, 3, 10, 256])
def test_equal_width_bins_are_those_of_polygene(bins):
    encoder = fit(bins=bins)
    edges = np.linspace(0.1, 9, bins - 1).astype(np.float32)
    values = np.concatenate([around(edges), [0.0, 20.0], training().data])[:, None]
    np.testing.assert_array_equal(encoder.encode(values), np.digitize(values, edges))
    assert encoder.n_bins == bins


def test_explicit_edges_are_used_as_given():
    encoder = fit(bins=4, edges=[0.25, 1.0, 3.0])
    assert encoder.edges.tolist() == [0.25, 1.0, 3.0]
    values = np.array([[0.0, 0.2, 0.25, 0.99, 1.0, 2.9, 3.0, 50.0]], dtype=np.float32)
    assert encoder.encode(values).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([1.0, 2.0], "has 2 numbers, but encoding.bins = 4 needs 3"),
        ([1.0, 2.0, 2.0], "strictly increasing"),
        ([1.0, 3.0, 2.0], "strictly increasing"),
    ],
)
def test_impossible_edges_are_an_error(edges, message):
    with pytest.raises(ConfigurationError, match=message):
        fit(bins=4, edges=edges)


def test_a_maximum_below_the_threshold_is_an_error():
    with pytest.raises(ConfigurationError, match=r"encoding\.maximum \(1\.0\) must be above"):
        fit(threshold=1.0, maximum=1.0)


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"edges": [0.0, 2.0, 3.0]}])
def test_a_zero_is_never_expressed_even_with_an_edge_at_zero(settings):
    encoder = fit(bins=4, **settings)
    assert encoder.encode(np.array([[0.0, 1e-6]], dtype=np.float32)).tolist() == [[0, 1]]


def test_quantile_edges_give_the_expressed_bins_equal_numbers():
    matrix = training(n_cells=5000)
    encoder = fit(matrix, bins=5, edges="quantile", threshold=0.1)
    counts = np.bincount(encoder.encode(matrix.data[:, None]).ravel(), minlength=5)
    expressed = matrix.data[matrix.data > 0.1].size
    np.testing.assert_allclose(counts[1:] / expressed, 0.25, atol=1e-3)
    assert counts[0] == matrix.data.size - expressed


def test_gene_quantile_edges_give_every_gene_equal_numbers():
    matrix = training(n_cells=5000)
    matrix = sparse.csr_matrix(matrix.multiply([[1.0, 0.5, 3.0]]), dtype=np.float32)
    encoder = fit(matrix, bins=5, edges="gene_quantile", threshold=0.05)
    bins = encoder.encode(matrix.toarray())
    for gene in range(3):
        counts = np.bincount(bins[:, gene], minlength=5)[1:]
        np.testing.assert_allclose(counts / counts.sum(), 0.25, atol=2e-3)
    assert encoder.edges.shape == (3, 4)


def test_a_gene_never_expressed_gets_the_common_quantiles():
    dense = training().toarray()
    dense[:, 1] = 0
    matrix = sparse.csr_matrix(dense)
    per_gene = fit(matrix, bins=5, edges="gene_quantile")
    np.testing.assert_array_equal(per_gene.edges[1], fit(matrix, bins=5, edges="quantile").edges)


def test_quantiles_of_nothing_are_an_error():
    with pytest.raises(DataError, match=r"no training value is above encoding\.threshold"):
        fit(bins=5, edges="quantile", threshold=99.0)


@pytest.mark.parametrize("kind", ["binary", "continuous"])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 1.0])
def test_expressed_means_strictly_above_the_threshold(kind, threshold):
    encoder = fit(kind=kind, threshold=threshold)
    at = np.float32(threshold)
    values = np.array([[0.0, at, np.nextafter(at, np.float32(9)), 5.0]], dtype=np.float32)
    assert encoder.encode(values).tolist() == [[0, 0, 1, 1]]
    assert encoder.n_bins == 2


@given(
    hypothesis_numpy.arrays(np.float32, (7, 3), elements=st.floats(0, 12, width=32)),
    st.sampled_from(["binary", "binned", "per gene"]),
)
def test_single_values_get_the_bins_of_whole_cells(values, kind):
    edges = {
        "binary": np.array([0.1]),
        "binned": np.array([0.1, 2.0, 4.0]),
        "per gene": np.array([[0.1, 2.0], [1.0, 3.0], [0.5, 9.0]]),
    }[kind].astype(np.float32)
    encoder = ValueEncoder("binary" if kind == "binary" else "binned", edges)
    cell, gene = np.nonzero(values)
    flat = encoder.encode(values[cell, gene], gene)
    np.testing.assert_array_equal(flat, encoder.encode(values)[cell, gene])


# ---------------------------------------------------------------------------- edges per gene
def edge_file(tmp_path, content):
    path = tmp_path / "edges.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_edges_per_gene_are_read_by_id_with_any_version_or_by_symbol(tmp_path):
    path = edge_file(
        tmp_path,
        {"THREE": [5, 6], "OTHER": [0], "ENSG00000000001.12": [1, 2], "ENSG00000000002": [3, 3]},
    )
    encoder = fit(bins=3, edges=str(path))
    assert encoder.edges.tolist() == [[1, 2], [3, 3], [5, 6]]
    values = np.array([[1.5, 3.0, 4.0], [0.5, 2.0, 6.0]], dtype=np.float32)
    assert encoder.encode(values).tolist() == [[1, 2, 0], [0, 0, 2]]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"ONE": [1, 2], "TWO": [1, 2]}, DataError, r"no edges for 1 of the 3 .*\(THREE"),
        ("{not json", DataError, "not JSON"),
        ([[1, 2]] * 3, DataError, "found a list"),
        ({"ONE": [1, 2], "TWO": [1], "THREE": [1, 2]}, ConfigurationError, "TWO must have 2 edges"),
        ({"ONE": 1, "TWO": [1, 2], "THREE": [1, 2]}, ConfigurationError, "ONE must have 2 edges"),
        ({"ONE": [1, 2], "TWO": [1, 2], "THREE": [2, 1]}, ConfigurationError, "of gene THREE must"),
        ('{"ONE": [1, 2], "TWO": [1, Infinity], "THREE": [1, 2]}', ConfigurationError, "gene TWO"),
        ({"ONE": [1, 2], "TWO": ["a", 2], "THREE": [1, 2]}, ConfigurationError, "not a number"),
        ({name: [[1], [2]] for name in PANEL.symbols}, ConfigurationError, "not a number"),
    ],
)
def test_wrong_edge_files_are_an_error(tmp_path, content, error, message):
    path = edge_file(tmp_path, content)
    with pytest.raises(error, match=message) as caught:
        read_gene_edges(path, PANEL, 2)
    assert str(path) in str(caught.value)


def test_a_missing_edge_file_is_an_error_with_the_choices(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*absent\.json.*'gene_quantile'"):
        fit(edges=str(tmp_path / "absent.json"))


# ---------------------------------------------------------------------------- bins to values

_EDGES = {
    "common": np.linspace(0.1, 9, 5, dtype=np.float32),
    "one": np.array([0.1], dtype=np.float32),
    "per gene": np.array([[0.1, 0.2, 5.0], [1.0, 2.0, 3.0], [0.5, 1.5, 1.75]], dtype=np.float32),
}


@given(st.data(), st.sampled_from(sorted(_EDGES)), st.sampled_from(["sample", "mean"]))
def test_a_decoded_bin_seen_in_training_encodes_to_itself(data, edges, how):
    encoder = ValueEncoder("binned", _EDGES[edges])
    delicate = around(encoder.edges.ravel()).tolist()
    elements = st.one_of(
        st.just(0.0), st.sampled_from(delicate), st.floats(0, 12, width=32, allow_subnormal=False)
    )
    dense = data.draw(hypothesis_numpy.arrays(np.float32, (6, 3), elements=elements))
    table = ValueTable.fit(encoder, sparse.csr_matrix(dense))
    bins = np.tile(encoder.encode(dense), (20, 1))  # only bins that the gene has in training
    decoded = table.decode(bins, how=how, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(encoder.encode(decoded), bins)
    assert decoded.dtype == np.float32


@pytest.mark.parametrize("how", ["sample", "mean"])
def test_bin_0_of_cells_without_faint_values_is_exactly_zero(how):
    encoder = fit(bins=5)
    matrix = training()
    matrix.data[matrix.data < 0.1] = 1.0
    decoded = ValueTable.fit(encoder, matrix).decode(
        np.zeros((50, 3), dtype=int), how=how, rng=np.random.default_rng(0)
    )
    assert (decoded == 0).all()


def test_faint_values_of_bin_0_are_drawn_as_they_were_never_in_between():
    """Half of the cells have 0.05: a draw is 0 or 0.05, half of the time each."""
    encoder = ValueEncoder("binned", np.array([0.1, 1.0], dtype=np.float32))
    dense = np.zeros((100, 1), dtype=np.float32)
    dense[:50] = 0.05
    table = ValueTable.fit(encoder, sparse.csr_matrix(dense))
    rng = np.random.default_rng(0)
    drawn = table.decode(np.zeros((4000, 1), dtype=int), how="sample", rng=rng)
    assert set(np.unique(drawn).tolist()) == {0.0, np.float32(0.05).item()}
    assert (drawn > 0).mean() == pytest.approx(0.5, abs=0.03)


def test_decoded_samples_have_the_distribution_of_the_training_values():
    encoder = fit(bins=3, edges=[0.1, 2.0])
    matrix = training(n_cells=4000)
    table = ValueTable.fit(encoder, matrix)
    rng = np.random.default_rng(1)
    drawn = table.decode(np.full((4000, 3), 1), how="sample", rng=rng)
    values = matrix.toarray()
    for gene in range(3):
        real = values[:, gene]
        real = real[encoder.encode(real[:, None])[:, 0] == 1]
        shares = np.linspace(0.1, 0.9, 9)  # 32 quantiles blunt the tails a little
        np.testing.assert_allclose(
            np.quantile(drawn[:, gene], shares), np.quantile(real, shares), atol=0.05
        )


def test_the_mean_of_a_bin_is_that_of_its_training_values():
    encoder = ValueEncoder("binned", np.array([0.1, 2.0], dtype=np.float32))
    dense = np.array([[0.5, 0], [1.0, 3.0], [4.0, 0], [6.0, 5.0]], dtype=np.float32)
    table = ValueTable.fit(encoder, sparse.csr_matrix(dense))
    decoded = table.decode(np.array([[1, 2], [2, 0]]), how="mean", rng=np.random.default_rng(0))
    assert decoded.tolist() == [[0.75, 4.0], [5.0, 0.0]]
    assert table.quantiles.shape == (2, 3, QUANTILES)


def test_a_bin_that_a_gene_never_used_borrows_from_the_other_genes():
    encoder = ValueEncoder("binned", np.array([0.1, 2.0, 4.0], dtype=np.float32))
    dense = np.array([[0.5, 3.0], [1.5, 3.5]], dtype=np.float32)
    table = ValueTable.fit(encoder, sparse.csr_matrix(dense))
    assert table.means.tolist() == [[0, 1.0, 3.25, 4.0], [0, 1.0, 3.25, 4.0]]


def test_a_gene_always_expressed_still_decodes_bin_0_to_zero():
    """Not to another gene's faint values: what bin 0 means is "absent"."""
    encoder = ValueEncoder("binned", np.array([0.1, 2.0], dtype=np.float32))
    dense = np.array([[1.0, 0.05], [1.5, 0.0]], dtype=np.float32)
    table = ValueTable.fit(encoder, sparse.csr_matrix(dense))
    assert table.means[0, 0] == 0
    assert (table.quantiles[0, 0] == 0).all()


def test_bins_can_be_kept_as_they_are():
    table = ValueTable.fit(fit(bins=4, edges=[1, 2, 3]), training())
    bins = np.array([[0, 3, 2]])
    assert table.decode(bins, how="bins", rng=np.random.default_rng(0)).tolist() == [[0, 3, 2]]


EDGES = {
    "equal width": np.linspace(0.1, 9, 9),
    "binary": np.nextafter(np.float32([0.1]), np.float32(1)),
    "anything above zero": np.nextafter(np.float32([0]), np.float32(1)),
    "many": np.linspace(0.05, 9.2, 255),
    "with equals": np.array([0.5, 2.0, 2.0, 2.0, 7.0]),
    "out of reach": np.array([0.5, 20.0, 500.0]),
}
ALL = np.arange(1, NEVER - 1, dtype=np.uint16)
LIBRARY_SIZES = st.lists(
    st.one_of(st.integers(1, 200), st.integers(200, 10**8)), min_size=1, max_size=3
)


def one_by_one(counts, totals, edges, indptr):
    """What `Store.read` and `ValueEncoder` do: the definition."""
    scale = (1e4 / totals).astype(np.float32)
    levels = np.log1p(counts.astype(np.float32) * np.repeat(scale, np.diff(indptr)))
    return ValueEncoder("binned", edges).encode(levels, np.zeros(len(levels), int)), levels


@given(LIBRARY_SIZES, st.sampled_from(sorted(EDGES)))
def test_every_count_at_every_library_size_gets_the_bin_of_its_normalised_value(sizes, kind):
    edges = EDGES[kind].astype(np.float32)
    totals = np.array(sizes, dtype=np.float32)
    counts = np.tile(ALL, len(sizes))
    indptr = np.arange(len(sizes) + 1) * len(ALL)
    wanted, levels = one_by_one(counts, totals, edges, indptr)
    found = CountBins(edges, totals)
    np.testing.assert_array_equal(found.bins(counts, indptr), wanted)
    np.testing.assert_array_equal(log_values(counts, indptr, totals), levels)
    expressed = found.expressed(counts, indptr)
    np.testing.assert_array_equal(wanted > 0, True if expressed is None else expressed)


@given(LIBRARY_SIZES, st.sampled_from(sorted(EDGES)))
def test_a_bin_is_possible_if_some_count_falls_into_it(sizes, kind):
    edges = EDGES[kind].astype(np.float32)
    totals = np.array([*sizes, 0], dtype=np.float32)
    found = possible_bins(count_thresholds(edges, totals), totals)
    assert found[-1].all()  # not known
    of_genes = count_thresholds(np.stack([edges, edges + 1]), totals[:, None])
    np.testing.assert_array_equal(of_genes[:, 0], count_thresholds(edges, totals))
    np.testing.assert_array_equal(of_genes[:, 1], count_thresholds(edges + 1, totals))
    indptr = np.array([0, len(ALL)])
    for size, possible in zip(totals[:-1], found[:-1], strict=True):
        bins, _ = one_by_one(ALL, totals[:1] * 0 + size, edges, indptr)
        reached = np.isin(np.arange(len(edges) + 1), bins)
        reached[[0, -1]] = True
        assert (possible >= reached).all()
        # Counts above 16 bits may fall into the others.
        beyond = np.arange(len(edges) + 1) >= bins.max(initial=0)
        np.testing.assert_array_equal(possible[~beyond], reached[~beyond])


def test_counts_are_brought_into_their_bins():
    values = ValueEncoder("binned", np.array([[0.5, 1.5, 1.6], [0.1, 2.0, 4.0]], np.float32))
    lattice = CountLattice.of(values, np.array([5000.0], np.float32))
    rng = np.random.default_rng(0)
    for bins in ([0, 0], [1, 1], [3, 2], [3, 3]):
        bins = np.array(bins)
        for _ in range(20):
            counts = lattice.counts(0, bins, rng.integers(0, 60, 2).astype(np.float32))
            assert (counts == np.round(counts)).all()
            back = np.log1p(counts.astype(np.float32) * np.float32(2))
            np.testing.assert_array_equal(values.encode(back[None])[0], bins)
    assert lattice.possible.tolist() == [[[True, True, False, True], [True] * 4]]


@pytest.mark.parametrize("kind", sorted(EDGES))
def test_library_sizes_at_which_a_count_meets_an_edge_are_no_exception(kind):
    """Library sizes chosen so that some count's value is an edge, give or take a few bits."""
    edges = EDGES[kind].astype(np.float32)
    rng = np.random.default_rng(0)
    count = rng.integers(1, 3000, 300)
    edge = rng.choice(edges[edges < 15], 300).astype(np.float64)
    totals = (count * 1e4 / np.expm1(np.maximum(edge, 1e-3))).astype(np.float32)
    totals = np.concatenate([np.nextafter(totals, np.float32(d)) for d in (0, 1e9)] + [totals])
    counts = np.concatenate([np.arange(max(c - 3, 1), c + 4) for c in np.tile(count, 3)])
    lengths = [c + 4 - max(c - 3, 1) for c in np.tile(count, 3)]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    wanted, _ = one_by_one(counts, totals, edges, indptr)
    found = CountBins(edges, totals).bins(counts.astype(np.uint16), indptr)
    np.testing.assert_array_equal(found, wanted)


def test_counts_of_32_bits_get_the_bins_of_their_values():
    edges = np.linspace(0.1, 9, 9).astype(np.float32)
    totals = np.array([3e6, 1e10], dtype=np.float32)
    counts = np.array([1, 65_534, 65_535, 65_536, 1_000_000, 5, 4_000_000_000], dtype=np.uint32)
    indptr = np.array([0, 5, 7])
    wanted, _ = one_by_one(counts, totals, edges, indptr)
    assert CountBins(edges, totals).bins(counts, indptr).tolist() == wanted.tolist()


def test_bins_can_begin_at_any_number_in_any_type():
    edges = np.array([0.5, 1.0, 2.0], dtype=np.float32)
    bins = CountBins(edges, np.array([1e4], np.float32)).bins(
        np.array([1, 2, 9], dtype=np.uint16), np.array([0, 3]), first=300, dtype=np.uint16
    )
    assert bins.tolist() == [301, 302, 303]
    assert bins.dtype == np.uint16


def test_cells_without_counts_have_no_bins_and_raise_nothing():
    edges = np.array([0.5, 2.0], dtype=np.float32)
    found = CountBins(edges, np.array([0, 100], np.float32))
    counts = np.array([1], dtype=np.uint16)
    assert found.bins(counts, np.array([0, 0, 1])).tolist() == [2]
    assert CountBins(edges, np.zeros(0, np.float32)).bins(counts[:0], np.array([0])).tolist() == []


def test_thresholds_are_the_smallest_counts_that_reach_an_edge():
    # At a library size of 10,000 a count is its own value: log1p(1) = 0.69, log1p(2) = 1.10.
    edges = np.array([0.5, 0.7, 1.5, 30.0], dtype=np.float32)
    assert count_thresholds(edges, np.array([1e4], np.float32)).tolist() == [[1, 2, 4, NEVER]]
