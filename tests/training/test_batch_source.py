"""From presets to batches: what a batch size and a token budget mean for either layout."""

import numpy as np
import pytest

from core.training.virtual_ranks import RunCells, make_batch_source
from tests.tiny_atlas import build_model, tiny_preset


def source_of(store, **options):
    preset = tiny_preset(**options).preset
    cells = RunCells.of(preset, store)
    return make_batch_source(preset, cells, build_model(preset, store))


def sizes(source, n=20):
    """Cells and tokens of the first batches."""
    cursor, found = source.sampler.start, []
    for _ in range(n):
        _, batch = source.batch(cursor)
        found.append((batch.n_cells, len(batch.token_id)))
        cursor = source.sampler.advance(cursor)
    return np.array(found).T


@pytest.mark.parametrize("layout", ["ranked", "expressed"])
def test_without_a_budget_batches_have_batch_size_cells(tiny_store, layout):
    n_cells, _ = sizes(source_of(tiny_store, encoding__layout=layout))
    assert set(n_cells.tolist()) == {32}


def test_a_budget_of_ranked_cells_is_so_many_whole_cells(tiny_store):
    n_cells, tokens = sizes(source_of(tiny_store, train__tokens_per_batch=430))
    assert set(n_cells.tolist()) == {10}
    assert set(tokens.tolist()) == {400}


@pytest.mark.parametrize("max_length", [None, 16])
@pytest.mark.parametrize("genes", [32, 720])
def test_a_budget_of_expressed_cells_is_never_exceeded(tiny_store, max_length, genes):
    options = {"encoding__layout": "expressed", "data__genes": genes, "encoding__threshold": 0.0}
    if max_length:
        options["encoding__max_length"] = max_length
    source = source_of(tiny_store, train__tokens_per_batch=2_000, **options)
    n_cells, tokens = sizes(source)
    longest = int(source.sampler.lengths.max())
    assert tokens.max() <= 2_000
    assert len(set(n_cells.tolist())) > 1
    # With edges above zero some stored values are bin 0, and cells a little shorter than planned.
    assert tokens.mean() == pytest.approx(2_000 - longest, rel=0.12)
