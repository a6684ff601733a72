"""The order of cells as a function of seed and step."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.training.data_order import BatchOrder

ROWS = np.arange(100, 153)


@given(st.integers(1, 60), st.integers(0, 1000), st.integers(0, 3))
def test_an_epoch_holds_every_cell_once_but_the_leftover(batch_size, seed, epoch):
    order = BatchOrder(ROWS, batch_size=batch_size, seed=seed)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    batches = [order.batch(step) for step in steps]
    assert {len(batch) for batch in batches} == {min(batch_size, 53)}
    seen = np.concatenate(batches)
    assert len(set(seen.tolist())) == len(seen)
    assert set(seen.tolist()) <= set(ROWS.tolist())
    assert len(seen) > 53 - min(batch_size, 53)


def test_batches_that_divide_the_cells_cover_them_all():
    order = BatchOrder(ROWS[:50], batch_size=10, seed=0)
    seen = np.concatenate([order.batch(step) for step in range(5)])
    assert sorted(seen.tolist()) == ROWS[:50].tolist()


def test_a_batch_depends_on_seed_and_step_alone():
    one = BatchOrder(ROWS, batch_size=8, seed=3)
    for step in range(20):
        one.batch(step)  # asked in order here, at once there
    two = BatchOrder(ROWS, batch_size=8, seed=3)
    assert one.batch(17).tolist() == two.batch(17).tolist()
    assert one.mask_generator(17).random() == two.mask_generator(17).random()


def test_epochs_and_seeds_differ():
    order, other = (BatchOrder(ROWS[:48], batch_size=48, seed=seed) for seed in (0, 1))
    assert order.batch(0).tolist() != order.batch(1).tolist()
    assert order.batch(0).tolist() != other.batch(0).tolist()
    assert order.mask_generator(0).random() != order.mask_generator(1).random()
    assert order.mask_generator(0).random() != other.mask_generator(0).random()
