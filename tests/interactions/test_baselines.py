"""Measures of association against plain computations, on cells whose dependence is known."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import mutual_info_score

from core.interactions.baselines import (
    ALL_MEASURES,
    SIGNED_MEASURES,
    library_size_removed,
    measure_association,
)
from tests.interactions.examples import make_cells


@pytest.fixture(scope="module")
def chain():
    """Return cells in which gene 0 drives 1, which drives 2, which opposes 3; genes 4 and 5 are free."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((1500, 6))
    for gene, sign in ((1, 1), (2, 1), (3, -1)):
        z[:, gene] = 0.6 * z[:, gene] + 0.8 * sign * z[:, gene - 1]
    return make_cells(np.maximum(z + 0.5, 0))


@pytest.fixture(scope="module")
def measured(chain):
    return measure_association(chain, ALL_MEASURES)


def test_measures_are_what_their_names_say(chain, measured):
    values = chain.expression.toarray().astype(float)
    np.testing.assert_allclose(measured["pearson"], np.corrcoef(values.T), atol=1e-9)
    np.testing.assert_allclose(measured["spearman"], spearmanr(values)[0], atol=1e-9)
    group = np.where(values > 0, 1, 0)
    middle = [np.median(column[column > 0]) for column in values.T]
    group = group + (values > middle)
    expected = mutual_info_score(group[:, 0], group[:, 1])
    assert measured["mutual_information"][0, 1] == pytest.approx(expected)
    rate = (values > 0).mean(axis=0)
    np.testing.assert_allclose(measured["detection"], np.outer(rate, rate))


@pytest.mark.parametrize("name", [name for name in ALL_MEASURES if name != "detection"])
def test_every_measure_finds_the_chain(measured, name):
    weight = measured[name]
    links = [abs(weight[0, 1]), abs(weight[1, 2]), abs(weight[2, 3])]
    assert min(links) > 3 * max(abs(weight[4, other]) for other in (0, 1, 2, 3, 5))
    if name in SIGNED_MEASURES:
        assert (weight[0, 1] > 0, weight[2, 3] < 0) == (True, True)
    if name in ("partial_correlation", "trees"):  # a link through another gene is none
        assert abs(weight[0, 2]) < 0.4 * min(links)


def test_a_small_context_is_shrunken_to_all_cells(chain):
    everything = np.full((6, 6), 0.5)
    some = chain.take(np.arange(100))
    found = measure_association(some, ["pearson", "pearson_shrunken"], everything=everything)
    np.testing.assert_allclose(found["pearson_shrunken"], (found["pearson"] + 0.5) / 2)


def test_differences_between_classes_and_donors_are_no_association():
    rng = np.random.default_rng(1)
    sex = np.arange(800) % 2
    donors = np.arange(800) // 2 % 8
    values = np.maximum(rng.standard_normal((800, 2)) + 3 + 4 * sex[:, None], 0)
    cells = make_cells(values, codes=np.column_stack([sex, np.zeros(800)]), donors=donors)
    assert abs(measure_association(cells, ["pearson"])["pearson"][0, 1]) < 0.1
    by_donor = np.maximum(rng.standard_normal((800, 2)) + 4 + donors[:, None], 0)
    cells = make_cells(by_donor, donors=donors)
    found = measure_association(cells, ["pearson", "pearson_adjusted"])
    assert found["pearson"][0, 1] > 0.5
    assert abs(found["pearson_adjusted"][0, 1]) < 0.1


def test_what_library_size_explains_is_removed():
    rng = np.random.default_rng(2)
    size = np.exp(rng.normal(8, 0.5, 600)).astype(np.float32)
    values = np.maximum(rng.normal(3, 0.3, (600, 3)) + np.log(size)[:, None] - 8, 0)
    cells = make_cells(values, library_size=size)
    left = library_size_removed(values, cells, cells.strata)
    assert abs(np.corrcoef(left.T)[0, 1]) < 0.1
    assert np.corrcoef(values.T)[0, 1] > 0.5


def test_a_gene_that_never_varies_is_linked_to_nothing():
    values = np.random.default_rng(0).random((50, 3))
    values[:, 2] = 0
    for name, weight in measure_association(make_cells(values), ALL_MEASURES).items():
        assert np.isfinite(weight).all(), name
        assert weight[0, 2] == pytest.approx(0, abs=1e-12), name
