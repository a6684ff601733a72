"""The order of cells: every cell once, virtual ranks apart, any batch at once, and when a cursor is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.encoding.sampler import BlockSampler, Cursor
from core.errors import ConfigurationError

SEEDS = st.integers(0, 1000)


def make_rows(n_cells):
    """Rows of a split: ascending, with gaps."""
    return np.flatnonzero(np.random.default_rng(5).random(2 * n_cells + 50) < 0.6)[:n_cells]


def epoch_of(sampler, epoch=0):
    """Return the batches of an epoch."""
    start = replace(sampler.start, epoch=epoch)
    return [sampler.batch_rows(replace(start, batch=b)) for b in range(sampler.steps(epoch))]


def make_lengths(n_cells, seed=0):
    return np.random.default_rng([seed, 8]).integers(5, 200, n_cells)


@given(SEEDS, st.integers(1, 300), st.integers(1, 60), st.integers(0, 2))
def test_few_cells_are_permuted_exactly_but_for_the_leftover(seed, n_cells, batch_size, epoch):
    rows = make_rows(n_cells)
    batches = epoch_of(BlockSampler(rows, seed=seed, batch_size=batch_size), epoch)
    size = min(batch_size, n_cells)
    assert [len(batch) for batch in batches] == [size] * (n_cells // size)
    seen = np.concatenate(batches)
    assert len(set(seen.tolist())) == len(seen)
    assert set(seen.tolist()) <= set(rows.tolist())


def test_the_permutation_of_few_cells_is_uniform():
    """Not only of blocks: every cell is as likely to come first."""
    rows = np.arange(40)
    first = [BlockSampler(rows, seed=seed, batch_size=1).batch_rows for seed in range(4000)]
    start = Cursor(0, 0, 0, 1, 1)
    counts = np.bincount([int(rows_of(start)[0]) for rows_of in first], minlength=40)
    assert np.abs(counts - 100).max() < 45


@pytest.mark.parametrize("virtual_ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("n_cells", "batch_size"), [(20_011, 32), (3_000, 5)])
def test_virtual_ranks_share_an_epoch_without_overlap_and_with_equal_steps(
    n_cells, batch_size, virtual_ranks
):
    rows = make_rows(n_cells)
    samplers = [
        BlockSampler(
            rows,
            seed=3,
            batch_size=batch_size,
            virtual_rank=virtual_rank,
            virtual_ranks=virtual_ranks,
        )
        for virtual_rank in range(virtual_ranks)
    ]
    for epoch in (0, 1):
        assert len({sampler.steps(epoch) for sampler in samplers}) == 1
        seen = np.concatenate([np.concatenate(epoch_of(s, epoch)) for s in samplers])
        assert len(np.unique(seen)) == len(seen)
        assert np.isin(seen, rows).all()
        assert len(seen) > 0.99 * n_cells - batch_size * virtual_ranks


@pytest.mark.parametrize("virtual_ranks", [1, 3])
def test_batches_of_a_token_budget_never_exceed_it_and_use_it_well(virtual_ranks):
    rows, lengths = make_rows(30_000), make_lengths(30_000)
    length_of = dict(zip(rows.tolist(), lengths.tolist(), strict=True))
    samplers = [
        BlockSampler(
            rows,
            seed=1,
            lengths=lengths,
            tokens_per_batch=4_000,
            virtual_rank=virtual_rank,
            virtual_ranks=virtual_ranks,
        )
        for virtual_rank in range(virtual_ranks)
    ]
    batches = [batch for sampler in samplers for batch in epoch_of(sampler)]
    assert len({sampler.steps(0) for sampler in samplers}) == 1
    tokens = np.array([sum(length_of[row] for row in batch.tolist()) for batch in batches])
    assert tokens.max() <= 4_000
    assert tokens.mean() == pytest.approx(4_000 - 199, rel=0.005)
    seen = np.concatenate(batches)
    assert len(np.unique(seen)) == len(seen)
    assert len(seen) > 0.985 * len(rows)


def make_sampler(kind, n_cells=2_000, **others):
    options = {"seed": 2, "pool_cells": 256, "block_cells": 8} | others
    if kind == "cells":
        return BlockSampler(make_rows(n_cells), **({"batch_size": 24} | options))
    lengths = make_lengths(n_cells)
    return BlockSampler(make_rows(n_cells), lengths=lengths, tokens_per_batch=1_500, **options)


@pytest.mark.parametrize("kind", ["cells", "tokens"])
@pytest.mark.parametrize("virtual_rank", [0, 2])
def test_continuing_from_any_cursor_equals_never_having_stopped(kind, virtual_rank):
    sampler = make_sampler(kind, virtual_rank=virtual_rank, virtual_ranks=3)
    cursor, whole = sampler.start, []
    for _ in range(3 * sampler.steps(0)):
        whole.append((cursor, sampler.batch_rows(cursor), sampler.generator(cursor).random()))
        cursor = sampler.advance(cursor)
    assert cursor.epoch >= 2
    for place in np.random.default_rng(0).integers(0, len(whole), 12).tolist():
        again = make_sampler(kind, virtual_rank=virtual_rank, virtual_ranks=3)
        cursor = again.resume(Cursor.from_json(json.loads(json.dumps(whole[place][0].to_json()))))
        for wanted, rows, drawn in whole[place : place + 20]:
            assert cursor == wanted
            assert again.batch_rows(cursor).tolist() == rows.tolist()
            assert again.generator(cursor).random() == drawn
            cursor = again.advance(cursor)


def test_epochs_seeds_and_virtual_ranks_differ():
    one, other = make_sampler("cells"), make_sampler("cells", seed=3)
    first = one.batch_rows(one.start).tolist()
    assert first != one.batch_rows(replace(one.start, epoch=1)).tolist()
    assert first != other.batch_rows(other.start).tolist()
    virtual_ranks = [
        make_sampler("cells", virtual_rank=virtual_rank, virtual_ranks=2)
        for virtual_rank in range(2)
    ]
    drawn = {sampler.generator(sampler.start).random() for sampler in [*virtual_ranks, other]}
    assert len(drawn) == 3


def test_a_pool_is_read_in_the_order_of_the_file_in_whole_blocks():
    sampler = BlockSampler(np.arange(0, 40_000, 2), seed=0, batch_size=32)
    pool = sampler.pool(0, 0)
    assert len(pool.rows) == 8_192
    assert (np.diff(pool.rows) > 0).all()
    blocks = pool.rows.reshape(-1, 64)
    assert (np.diff(blocks, axis=1) == 2).all()
    assert len(np.unique(blocks[:, 0] // 128)) == 128
    assert sorted(pool.order.tolist()) == list(range(8_192))


def test_cells_of_a_batch_come_from_all_over_the_pool():
    sampler = BlockSampler(np.arange(30_000), seed=0, batch_size=128)
    blocks = [len(np.unique(batch // 64)) for batch in epoch_of(sampler)[:50]]
    # 128 of 8,192 cells at random: 81.2 of the 128 blocks on average.
    assert np.mean(blocks) == pytest.approx(128 * (1 - (1 - 1 / 128) ** 128), rel=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"virtual_ranks": 2},
            "dealt to 1 virtual ranks and cannot continue with 2; set train.virtual_ranks = 1",
        ),
        ({"seed": 9}, r"train\.seed = 9, but .* has seed 2; resume with the run's own"),
        (
            {"batch_size": 12},
            r"cut by 24 and cannot continue with 12; resume with its train\.batch",
        ),
    ],
)
def test_a_cursor_within_an_epoch_that_means_other_cells_here_is_an_error(changes, message):
    cursor = replace(make_sampler("cells").start, epoch=1, batch=4)
    with pytest.raises(ConfigurationError, match=message):
        make_sampler("cells", **changes).resume(cursor)


def test_between_epochs_virtual_ranks_and_batches_may_change():
    cursor = replace(make_sampler("cells").start, epoch=3)
    other = make_sampler("cells", virtual_ranks=2, batch_size=12)
    assert other.resume(cursor) == replace(other.start, epoch=3)


def test_fewer_cells_than_virtual_ranks_are_an_error():
    with pytest.raises(
        ConfigurationError, match="3 training cells cannot be dealt to 4 virtual ranks"
    ):
        BlockSampler(np.arange(3), seed=0, virtual_ranks=4)


def test_a_budget_without_room_for_two_cells_is_an_error():
    lengths = np.array([10, 80, 20])
    with pytest.raises(ConfigurationError, match=r"= 159 has no room .* 80 tokens; .* least 160"):
        BlockSampler(np.arange(3), seed=0, lengths=lengths, tokens_per_batch=159)


def test_fewer_cells_than_a_batch_are_one_batch_of_all():
    sampler = BlockSampler(np.arange(7), seed=0, batch_size=32)
    assert [sorted(batch.tolist()) for batch in epoch_of(sampler)] == [list(range(7))]
    lengths = np.full(7, 10)
    sampler = BlockSampler(np.arange(7), seed=0, lengths=lengths, tokens_per_batch=10_000)
    assert [sorted(batch.tolist()) for batch in epoch_of(sampler)] == [list(range(7))]
