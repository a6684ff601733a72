import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.cells.splits import TEST, TRAIN, VALIDATION, split_by_donor, split_stratified

SHARES = {TEST: 0.1, VALIDATION: 0.1}


@given(st.lists(st.integers(1, 60), min_size=3, max_size=30), st.integers(0, 5))
def test_donors_never_cross_and_every_split_has_one(sizes, seed):
    donors = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    codes = split_by_donor(donors, SHARES, np.random.default_rng(seed))
    assert codes is not None
    for donor in range(len(sizes)):
        assert len(set(codes[donors == donor])) == 1
    assert set(codes) == {TRAIN, VALIDATION, TEST}


def test_many_donors_come_near_the_shares():
    donors = np.repeat(np.arange(100), 10).astype(np.int32)
    codes = split_by_donor(donors, SHARES, np.random.default_rng(0))
    assert codes is not None
    assert np.bincount(codes).tolist() == [800, 100, 100]


def test_a_huge_donor_trains():
    donors = np.repeat(np.arange(4), [900, 30, 30, 40]).astype(np.int32)
    for seed in range(10):
        codes = split_by_donor(donors, SHARES, np.random.default_rng(seed))
        assert codes is not None
        assert (codes[:900] == TRAIN).all()


def test_cells_of_unknown_donors_train():
    donors = np.array([-1] * 5 + [0] * 5 + [1] * 5 + [2] * 5, dtype=np.int32)
    codes = split_by_donor(donors, SHARES, np.random.default_rng(0))
    assert codes is not None
    assert (codes[:5] == TRAIN).all()


def test_too_few_donors_are_not_split():
    donors = np.array([0, 0, 1, 1], dtype=np.int32)
    assert split_by_donor(donors, SHARES, np.random.default_rng(0)) is None
    assert split_by_donor(donors, {TEST: 0.1}, np.random.default_rng(0)) is not None


def test_stratified_splits_have_the_mixture_of_the_whole():
    rng = np.random.default_rng(0)
    types = rng.choice(4, 2000, p=[0.7, 0.2, 0.05, 0.05]).astype(np.int32)
    sexes = rng.integers(0, 2, 2000).astype(np.int32)
    codes = split_stratified([types, sexes], 2000, SHARES, rng)
    assert np.bincount(codes).tolist() == [1600, 200, 200]
    for split in (VALIDATION, TEST):
        mixture = np.bincount(types[codes == split] * 2 + sexes[codes == split], minlength=8) / 200
        assert np.abs(mixture - np.bincount(types * 2 + sexes) / 2000).max() < 0.006


@given(st.integers(2, 80), st.integers(1, 20), st.integers(0, 3))
def test_every_label_stays_in_training(n_cells, n_labels, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, n_labels, n_cells).astype(np.int32)
    codes = split_stratified([labels], n_cells, {TEST: 0.3, VALIDATION: 0.3}, rng)
    assert set(labels[codes == TRAIN].tolist()) >= set(labels[labels >= 0].tolist())


def test_a_split_is_a_function_of_the_seed():
    donors = np.repeat(np.arange(30), 4).astype(np.int32)
    runs = [split_by_donor(donors, SHARES, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
