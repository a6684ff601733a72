"""Bins straight from counts: exactly those of normalising, log1p and edges, for every count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.encoding.values import NEVER, CountBins, ValueEncoder, count_thresholds, log_values

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
