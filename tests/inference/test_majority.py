"""Votes of groups of cells, counted by hand."""

import numpy as np
import pytest
from scipy import sparse

from core.inference.annotate import PhenotypePredictions
from core.inference.majority import VotingGroups, majority_labels, neighbours_of


def predicted(*codes, values=("B", "T")):
    return PhenotypePredictions("cell_type", values, np.array(codes), np.ones(len(codes)))


def clusters(*codes):
    rows = [(code == np.arange(max(codes) + 1)) for code in codes]
    members = sparse.csr_matrix(np.array(rows, dtype=np.float32).T)
    return VotingGroups(members, np.array(codes))


@pytest.mark.parametrize(
    ("unsure", "above", "label"),
    [
        ([], 0.5, "B"),  # 3 of 5
        ([0], 0.5, "unknown"),  # 2 of 5: an unsure cell counts, but does not vote
        ([3, 4], 0.5, "B"),
        ([], 0.6, "unknown"),
        ([0, 1], 0.3, "T"),
        ([0, 1, 2, 3, 4], 0.0, "unknown"),
    ],
)
def test_a_value_needs_the_majority_of_the_cluster(unsure, above, label):
    is_unsure = np.isin(np.arange(6), unsure)
    found = majority_labels(
        predicted(0, 0, 0, 1, 1, 1), is_unsure, clusters(0, 0, 0, 0, 0, 1), above=above
    )
    assert list(found) == [label] * 5 + ["T"]
    assert list(found.categories) == ["B", "T", "unknown"]


def test_half_is_no_majority_and_a_cell_without_cluster_is_unknown():
    found = majority_labels(predicted(0, 1, 0), np.zeros(3, bool), clusters(0, 0, -1))
    assert list(found) == ["unknown"] * 3


def test_a_model_that_has_the_word_gets_no_second_one():
    found = majority_labels(
        predicted(0, 0, values=("B", "unknown")), np.zeros(2, bool), clusters(0, 0)
    )
    assert list(found.categories) == ["B", "unknown"]


def test_neighbours_are_of_the_same_kind():
    kinds = np.repeat([0, 1], 30)
    cells = np.random.default_rng(0).normal(size=(60, 8)) + 10 * kinds[:, None]
    groups = neighbours_of(sparse.csr_matrix(cells, dtype=np.float32))
    rows, columns = groups.members.nonzero()
    assert (kinds[rows] == kinds[columns]).all()
    assert (groups.members.diagonal() == 1).all()
    assert set(np.diff(groups.members.indptr)) == {15}
    few = neighbours_of(sparse.csr_matrix(cells[:4], dtype=np.float32))
    assert (few.members.toarray() == np.eye(4)).all()
