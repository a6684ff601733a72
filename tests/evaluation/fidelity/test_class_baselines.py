"""The classical generators: marginals and dependence as in the training cells, and no more."""

import numpy as np
import pytest
from scipy.stats import kstest, norm

from core.errors import DataError
from core.evaluation.fidelity.class_baselines import ClassBaselines, normal_scores


def training(n_cells=2000, n_genes=6, seed=0):
    """Two classes, genes of one group driven by a hidden activity, three bins."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(2, size=n_cells)
    activity = rng.standard_normal((n_cells, 1)) * (np.arange(n_genes) < 3)
    values = activity + 0.5 * rng.standard_normal((n_cells, n_genes)) + classes[:, None]
    return np.digitize(values, [0.0, 1.0]).astype(np.uint8), classes


@pytest.fixture(scope="module")
def fitted():
    bins, classes = training()
    return bins, classes, ClassBaselines(bins, classes, 3, np.random.default_rng(1))


@pytest.mark.parametrize("method", ["independent", "copula"])
def test_bins_of_a_class_are_as_frequent_as_in_training(fitted, method):
    bins, classes, baselines = fitted
    for code in (0, 1):
        wanted = np.full(4000, code)
        drawn = getattr(baselines, method)(wanted, np.random.default_rng(2))
        of_class = bins[classes == code]
        for number in range(3):
            share = (of_class == number).mean(axis=0)
            assert (drawn == number).mean(axis=0) == pytest.approx(share, abs=0.04)


def test_the_copula_keeps_the_dependence_that_independent_genes_lose(fitted):
    bins, classes, baselines = fitted
    wanted, rng = np.zeros(4000, dtype=int), np.random.default_rng(3)
    real = np.corrcoef(bins[classes == 0].T)[0, 1]
    # Ties broken at random weaken it, as in scDesign2: half the cells share a bin here.
    assert 0.5 * real < np.corrcoef(baselines.copula(wanted, rng).T)[0, 1] < real
    assert abs(np.corrcoef(baselines.independent(wanted, rng).T)[0, 1]) < 0.05


def test_marginals_are_class_counts_and_overall_frequencies_over_n_plus_one():
    bins = np.array([[0], [1], [1], [1]], dtype=np.uint8)
    baselines = ClassBaselines(bins, np.array([0, 0, 1, 1]), 2, np.random.default_rng(0))
    drawn = baselines.independent(np.ones(40_000, dtype=int), np.random.default_rng(0))
    assert (drawn == 0).mean() == pytest.approx((0 + 0.25) / 3, abs=0.005)


def test_a_class_of_few_cells_has_the_correlations_of_all():
    bins, classes = training()
    classes[:] = 0
    classes[:4] = 1
    baselines = ClassBaselines(bins, classes, 3, np.random.default_rng(0))
    few, many = baselines.correlations(1), baselines.correlations(0)
    assert few == pytest.approx(many, abs=0.02)
    assert np.linalg.eigvalsh(few).min() >= 0.05 - 1e-9
    assert np.diag(few) == pytest.approx(np.ones(6))


def test_normal_scores_of_each_gene_are_normal_whatever_its_bins():
    bins = np.stack([np.repeat([0, 1], 500), np.zeros(1000, int)], axis=1).astype(np.uint8)
    scores = normal_scores(bins, np.random.default_rng(0))
    for column in scores.T:
        assert kstest(column, norm.cdf).pvalue > 0.5
    assert scores[:500, 0].max() < scores[500:, 0].min()
    assert abs(np.corrcoef(scores.T)[0, 1]) < 0.1


def test_the_order_of_training_cells_does_not_matter_to_independent_genes():
    bins, classes = training(300)
    order = np.random.default_rng(5).permutation(300)
    wanted = np.repeat([0, 1], 50)
    drawn = [
        ClassBaselines(b, c, 3, np.random.default_rng(0)).independent(
            wanted, np.random.default_rng(1)
        )
        for b, c in ((bins, classes), (bins[order], classes[order]))
    ]
    assert np.array_equal(*drawn)


def test_classes_without_training_cells_are_refused():
    bins, classes = training(50)
    baselines = ClassBaselines(bins, classes, 3, np.random.default_rng(0))
    with pytest.raises(DataError, match="no training cell has class 7"):
        baselines.copula(np.array([0, 7]), np.random.default_rng(0))
    with pytest.raises(DataError, match="no training cell has a class"):
        ClassBaselines(bins, np.full(50, -1), 3, np.random.default_rng(0))
