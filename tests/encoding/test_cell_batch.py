"""A batch cut into parts is the batch: every cell once, in its order, with its own targets."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.encoding.cell_batch import split_batch
from core.presets.schema import MaskingSettings
from tests.encoding.examples import batch_encoder, by_cell, make_cells

MASKING = MaskingSettings(genes=0.4, phenotypes=0.5)


def make_batch(kind, layout, n_cells, seed=0, **options):
    expression, codes = make_cells(seed, n_cells=n_cells)
    return batch_encoder(kind, layout, **options).masked(
        expression, codes, MASKING, np.random.default_rng(seed)
    )


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
@pytest.mark.parametrize("kind", ["binary", "binned", "continuous"])
@given(n_cells=st.integers(1, 9), n_parts=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_parts_are_the_cells_of_the_batch_in_its_order(kind, layout, n_cells, n_parts, seed):
    batch = make_batch(kind, layout, n_cells, seed)
    parts = split_batch(batch, n_parts)
    assert len(parts) == min(n_parts, n_cells)
    assert all(part.n_cells > 0 for part in parts)
    assert [cell for part in parts for cell in by_cell(part)] == by_cell(batch)
    assert sum(len(part.gene) for part in parts) == len(batch.gene)
    assert sum(len(part.phenotype_slot) for part in parts) == len(batch.phenotype_slot)


def test_parts_have_about_as_many_tokens_each():
    batch = make_batch("binned", "expressed", 64)
    tokens = [len(part.token_id) for part in split_batch(batch, 4)]
    assert max(tokens) - min(tokens) <= 2 * batch.max_length


def test_bins_that_the_device_makes_are_cut_with_their_cells():
    batch = make_batch("binned", "ranked", 6)
    thresholds = np.arange(18, dtype=np.int32).reshape(6, 3)
    parts = split_batch(replace(batch, thresholds=thresholds), 3)
    joined = np.concatenate([part.thresholds for part in parts])
    np.testing.assert_array_equal(joined, thresholds)
    assert {part.first_gene for part in parts} == {batch.first_gene}


@given(n_parts=st.integers(1, 9), context_genes=st.integers(1, 11))
def test_the_context_of_a_cell_goes_with_it(n_parts, context_genes):
    batch = make_batch("binned", "ranked", 7, context_genes=context_genes)
    parts = split_batch(batch, n_parts)
    assert [cell for part in parts for cell in by_cell(part)] == by_cell(batch)
    assert batch.encoded_lengths.sum() == sum(part.encoded_lengths.sum() for part in parts)


@given(n_groups=st.integers(1, 6), n_parts=st.integers(1, 9), seed=st.integers(0, 99))
def test_neighbours_that_belong_together_stay_in_one_part(n_groups, n_parts, seed):
    batch = make_batch("binned", "expressed", 2 * n_groups, seed)
    parts = split_batch(batch, n_parts, together=2)
    assert len(parts) == min(n_parts, n_groups)
    assert all(part.n_cells and part.n_cells % 2 == 0 for part in parts)
    assert [cell for part in parts for cell in by_cell(part)] == by_cell(batch)
