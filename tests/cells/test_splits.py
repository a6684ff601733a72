import itertools

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cells.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    phenotype_distances,
    split_by_donor,
    split_stratified,
)

from .examples import real_file

SHARES = {TEST: 0.1, VALIDATION: 0.1}


def codes_of(obs, column):
    """(cells,) codes of the sorted labels of an obs column."""
    return pd.factorize(obs[column].astype(str), sort=True)[0].astype(np.int32)


def split_obs(obs, columns, seed=0):
    """(cells,) splits of an obs table, balanced by the columns, and the codes of each."""
    phenotypes = [codes_of(obs, column) for column in columns]
    codes = split_by_donor(
        codes_of(obs, "donor_id"), SHARES, np.random.default_rng(seed), phenotypes=phenotypes
    )
    assert codes is not None
    return codes, phenotypes


@st.composite
def donor_tables(draw):
    """Donors and two phenotypes of up to 25 donors: some unknown, some the donor's own."""
    seed = draw(st.integers(0, 10_000))
    n_donors = draw(st.integers(3, 25))
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, draw(st.sampled_from([2, 40])), n_donors)
    donors = np.repeat(np.arange(n_donors), sizes).astype(np.int32)
    donors[rng.random(len(donors)) < draw(st.sampled_from([0.0, 0.05]))] = -1
    donors[:3] = [0, 1, 2]
    of_donor = rng.integers(-1, draw(st.integers(1, 6)), n_donors)[donors].astype(np.int32)
    of_cell = rng.integers(-1, draw(st.integers(1, 6)), len(donors)).astype(np.int32)
    return donors, [of_donor, of_cell]


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


@given(donor_tables(), st.integers(0, 5))
def test_a_balanced_split_keeps_donors_whole_and_is_a_function_of_the_seed(table, seed):
    donors, phenotypes = table
    codes, again = (
        split_by_donor(donors, SHARES, np.random.default_rng(seed), phenotypes=phenotypes)
        for _ in range(2)
    )
    assert np.array_equal(codes, again)
    assert (codes[donors < 0] == TRAIN).all()
    members = [set(donors[(codes == split) & (donors >= 0)].tolist()) for split in range(3)]
    assert all(members)
    assert sum(map(len, members)) == len(set().union(*members))


@given(st.integers(4, 6), st.integers(1, 8), st.integers(0, 10_000))
def test_training_keeps_every_value_of_two_donors_wherever_any_deal_does(n_donors, n_values, seed):
    rng = np.random.default_rng(seed)
    donors = np.repeat(np.arange(n_donors), 6).astype(np.int32)
    labels = rng.integers(0, n_values, len(donors)).astype(np.int32)
    held_by = [set(donors[labels == value].tolist()) for value in range(n_values)]
    shared = [holders for holders in held_by if len(holders) > 1]
    possible = any(
        all(holders - set(pair) for holders in shared)
        for pair in itertools.combinations(range(n_donors), 2)
    )
    codes = split_by_donor(donors, SHARES, np.random.default_rng(seed), phenotypes=[labels])
    assert codes is not None
    training = set(donors[codes == TRAIN].tolist())
    assert all(holders & training for holders in shared) == possible


def test_training_keeps_hundreds_of_values_that_two_donors_have():
    # Each of 300 values has two donors of 100: hardly a random deal keeps them all.
    rng = np.random.default_rng(0)
    holders = np.array([rng.choice(100, 2, replace=False) for _ in range(300)])
    donors = np.concatenate([np.repeat(np.arange(100), 20), holders.ravel()]).astype(np.int32)
    labels = np.concatenate([np.full(2000, 300), np.repeat(np.arange(300), 2)]).astype(np.int32)
    codes = split_by_donor(donors, SHARES, np.random.default_rng(0), phenotypes=[labels])
    assert codes is not None
    assert set(labels[codes == TRAIN].tolist()) == set(range(301))
    assert set(codes) == {TRAIN, VALIDATION, TEST}


@pytest.mark.parametrize("seed", range(10))
def test_the_only_donor_of_a_value_trains(seed):
    donors = np.repeat(np.arange(6), 20).astype(np.int32)
    sexes = (donors == 4).astype(np.int32)
    codes = split_by_donor(donors, SHARES, np.random.default_rng(seed), phenotypes=[sexes])
    assert codes is not None
    assert (codes[donors == 4] == TRAIN).all()


def test_values_of_one_donor_each_still_leave_the_shares():
    donors = np.repeat(np.arange(50), 10).astype(np.int32)
    codes = split_by_donor(donors, SHARES, np.random.default_rng(0), phenotypes=[donors])
    assert codes is not None
    assert np.bincount(codes).tolist() == [400, 50, 50]


def test_unknown_labels_make_no_split_that_cannot_be_scored():
    donors = np.repeat(np.arange(10), 10).astype(np.int32)
    labels = np.tile([0, 1], 50).astype(np.int32)
    labels[donors < 6] = -1
    codes = split_by_donor(donors, SHARES, np.random.default_rng(0), phenotypes=[labels])
    assert codes is not None
    for split in (TRAIN, VALIDATION, TEST):
        assert (labels[codes == split] >= 0).any()


def test_phenotypes_that_say_nothing_change_nothing():
    donors = np.repeat(np.arange(12), 5).astype(np.int32)
    nothing = [np.full(60, -1, dtype=np.int32), np.zeros(60, dtype=np.int32)]
    runs = [
        split_by_donor(donors, SHARES, np.random.default_rng(3), phenotypes=phenotypes)
        for phenotypes in ([], nothing)
    ]
    assert np.array_equal(runs[0], runs[1])


def test_balancing_comes_nearer_to_the_whole_than_chance():
    rng = np.random.default_rng(0)
    donors = np.repeat(np.arange(40), rng.integers(20, 60, 40)).astype(np.int32)
    sexes = rng.integers(0, 2, 40)[donors].astype(np.int32)
    types = rng.integers(0, 5, len(donors)).astype(np.int32)
    phenotypes = [sexes, types]
    worst = {}
    for given_phenotypes in ([], phenotypes):
        measured = []
        for seed in range(10):
            codes = split_by_donor(
                donors, SHARES, np.random.default_rng(seed), phenotypes=given_phenotypes
            )
            assert codes is not None
            distances = phenotype_distances(codes, phenotypes)
            measured.append(max(np.mean(distances[split]) for split in (VALIDATION, TEST)))
        worst[len(given_phenotypes)] = np.mean(measured)
    assert worst[2] < 0.07
    assert worst[2] < worst[0] / 2


def test_distances_are_the_part_of_the_cells_that_would_need_another_label():
    codes = np.array([TRAIN] * 6 + [TEST] * 2, dtype=np.int8)
    labels = np.array([0, 0, 0, 0, 1, 1, 1, -1], dtype=np.int32)
    unknown = np.full(8, -1, dtype=np.int32)
    trained_only = np.array([0, 0, 0, 1, 1, 1, -1, -1], dtype=np.int32)
    distances = phenotype_distances(codes, [labels, unknown, trained_only])
    assert set(distances) == {TRAIN, TEST}
    assert distances[TRAIN] == pytest.approx([2 / 3 - 4 / 7, 0, 0])
    assert distances[TEST] == pytest.approx([4 / 7, 0, 1])


@pytest.mark.parametrize("seed", range(3))
def test_onek1k_has_the_mixture_of_the_whole_in_each_split(seed):
    obs = anndata.read_h5ad(real_file("onek1k_blood.h5ad"), backed="r").obs
    codes, phenotypes = split_obs(obs, ["sex", "cell_type", "development_stage"], seed)
    distances = phenotype_distances(codes, phenotypes)
    for split in (VALIDATION, TEST):
        assert max(distances[split][:2]) < 0.15
    assert np.bincount(codes)[1:] == pytest.approx([781, 781], rel=0.25)
