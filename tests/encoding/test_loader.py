"""The loader's thread: the batches of the cursor, its errors, its end."""

import itertools
import threading
import time

import numpy as np
import pytest

from core.encoding.batches import BatchEncoder
from core.encoding.loader import BatchLoader, BatchSource
from core.encoding.panel_cells import PanelReader
from core.encoding.sampler import BlockSampler
from core.encoding.tokens import TokenSpace
from core.encoding.values import ValueEncoder
from core.presets.schema import MaskingSettings

from .examples import EDGES, assert_same_batch


def make_source(store, *, pool_cells=96, layout="expressed"):
    panel = store.panel(40)
    tokens = TokenSpace(store.phenotypes, 40, 4, layout=layout)
    encoder = BatchEncoder(tokens, ValueEncoder("binned", EDGES), max_length=tokens.required_length)
    sampler = BlockSampler(
        store.rows("train"), seed=1, batch_size=20, block_cells=8, pool_cells=pool_cells
    )
    return BatchSource(PanelReader(store, panel), encoder, sampler, MaskingSettings())


def take(loader, n):
    return [loader.next() for _ in range(n)]


class Finished:
    """A source whose batches pass through a function of the test."""

    def __init__(self, source, finish):
        self.source, self.sampler, self.finish = source, source.sampler, finish

    def batch(self, cursor):
        rows, batch = self.source.batch(cursor)
        return rows, self.finish(batch)


def alive():
    return [thread for thread in threading.enumerate() if thread.name == "tfx-loader"]


def test_batches_come_in_the_order_of_the_cursor(tiny_store):
    source = make_source(tiny_store)
    cursor = source.sampler.start
    with BatchLoader(make_source(tiny_store), cursor) as loader:
        for loaded in take(loader, 30):
            rows, batch = source.batch(cursor)
            cursor = source.sampler.advance(cursor)
            assert loaded.rows.tolist() == rows.tolist()
            assert_same_batch(loaded.batch, batch)
            assert loaded.following == cursor
            assert loaded.waited_seconds >= 0
    assert cursor.epoch > 0


@pytest.mark.parametrize("place", [0, 3, 11, 25])
def test_a_loader_begun_behind_any_batch_continues_from_there(tiny_store, place):
    """Not from where the thread had come to, which is further on."""
    source = make_source(tiny_store)
    with BatchLoader(source, source.sampler.start) as loader:
        whole = take(loader, 30)
    other = make_source(tiny_store)
    with BatchLoader(other, whole[place].following, ready=2) as loader:
        for wanted, found in zip(whole[place + 1 :], take(loader, 29 - place), strict=True):
            assert found.rows.tolist() == wanted.rows.tolist()
            assert_same_batch(found.batch, wanted.batch)


def test_cells_of_a_pool_are_read_once_and_a_batch_may_span_two(tiny_store, monkeypatch):
    source = make_source(tiny_store)
    pool, requested = source.reader.pool, []
    monkeypatch.setattr(
        source.reader, "pool", lambda rows: requested.append(len(rows)) or pool(rows)
    )
    n_cells = len(tiny_store.rows("train"))
    pools = [len(source.sampler.pool(0, number).rows) for number in range(n_cells // 96)]
    with BatchLoader(source, source.sampler.start, ready=1) as loader:
        batches = take(loader, n_cells // 20)
    assert all(loaded.batch.n_cells == 20 for loaded in batches)
    assert any(n_read % 20 for n_read in np.cumsum(pools))
    assert requested[: len(pools)] == pools


def test_what_the_step_gets_is_made_by_the_thread(tiny_store):
    source = make_source(tiny_store)

    def finish(batch):
        return threading.current_thread().name, batch.n_cells

    with BatchLoader(Finished(source, finish), source.sampler.start) as loader:
        assert loader.next().batch == ("tfx-loader", 20)


def test_an_error_of_the_thread_is_raised_where_the_batch_is_awaited(tiny_store):
    source = make_source(tiny_store)
    numbers = itertools.count()

    def finish(batch):
        if next(numbers) == 3:
            message = "disk on fire"
            raise OSError(message)
        return batch

    with BatchLoader(Finished(source, finish), source.sampler.start) as loader:
        take(loader, 3)
        with pytest.raises(OSError, match="disk on fire"):
            loader.next()
    assert not alive()


@pytest.mark.parametrize("how", ["leaving", "an error", "Ctrl-C"])
def test_leaving_the_loader_ends_its_thread(tiny_store, how):
    source = make_source(tiny_store)
    errors = {"an error": RuntimeError, "Ctrl-C": KeyboardInterrupt}

    def use():
        with BatchLoader(source, source.sampler.start, ready=1) as loader:
            loader.next()
            assert alive()
            if how in errors:
                raise errors[how]

    if how in errors:
        with pytest.raises(errors[how]):
            use()
    else:
        use()
    assert not alive()


def test_no_more_batches_are_made_ahead_than_requested(tiny_store):
    source = make_source(tiny_store)
    made = []
    with BatchLoader(Finished(source, made.append), source.sampler.start, ready=2) as loader:
        loader.next()
        until = time.monotonic() + 10
        while len(made) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        # One learnt from, two ready, one in the hand of the thread.
        assert len(made) == 4


def test_ranked_cells_go_the_same_way(tiny_store):
    source = make_source(tiny_store, layout="ranked")
    with BatchLoader(source, source.sampler.start) as loader:
        loaded = loader.next()
    tokens = source.encoder.tokens
    assert loaded.batch.n_cells * tokens.required_length == len(loaded.batch.token_id)
    shown = loaded.batch.phenotype_target
    codes = np.asarray(tiny_store.phenotype_codes[loaded.rows])
    assert (
        shown.tolist() == codes[loaded.batch.phenotype_cell, loaded.batch.phenotype_slot].tolist()
    )
