"""Bootstrap intervals against plain resampling of single cells and of whole donors."""

import numpy as np
import pytest

from core.evaluation import metrics
from core.evaluation.metrics import bootstrap_scores, score_phenotype

VALUES = ["a", "b", "c"]


def answers(n_cells=400, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.choice(3, n_cells, p=[0.6, 0.3, 0.1])
    good = np.where(rng.random(n_cells) < 0.8, true, rng.integers(0, 3, n_cells))
    bad = np.where(rng.random(n_cells) < 0.5, true, rng.integers(0, 3, n_cells))
    return true, {"model": good, "other": bad}


def plain(true, predicted, units, *, n_resamples=600):
    """Draw units with replacement, gather their cells, score them: the definition."""
    rng = np.random.default_rng(9)
    names = np.unique(units)
    scores = []
    for _ in range(n_resamples):
        drawn = rng.choice(names, len(names))
        rows = np.concatenate([np.flatnonzero(units == one) for one in drawn])
        each = [score_phenotype(true[rows], codes[rows], VALUES) for codes in predicted.values()]
        scores.append([[s.accuracy, s.balanced_accuracy, s.macro_f1] for s in each])
    return np.percentile(np.array(scores), [2.5, 97.5], axis=0)


@pytest.mark.parametrize("by_donor", [False, True])
def test_intervals_agree_with_plain_resampling(by_donor):
    true, predicted = answers()
    donors = np.random.default_rng(5).integers(0, 12, len(true)) if by_donor else None
    found = bootstrap_scores(true, predicted, 3, donors=donors, seed=0)
    expected = plain(true, predicted, np.arange(len(true)) if donors is None else donors)
    for number, name in enumerate(predicted):
        for measure, of_measure in enumerate(("accuracy", "balanced_accuracy", "macro_f1")):
            np.testing.assert_allclose(
                getattr(found[name], of_measure), expected[:, number, measure], atol=0.02
            )
    assert found["model"].resampled == ("donors" if by_donor else "cells")
    assert found["model"].n_units == (12 if by_donor else 400)


def test_donors_that_differ_widen_the_interval():
    true = np.zeros(1000, dtype=int)
    donors = np.repeat(np.arange(10), 100)
    predicted = {"model": np.where(donors < 5, 0, 1)}  # right on half of the donors
    by_cell = bootstrap_scores(true, predicted, 2, seed=0)["model"].accuracy
    by_donor = bootstrap_scores(true, predicted, 2, donors=donors, seed=0)["model"].accuracy
    assert by_cell[1] - by_cell[0] < 0.07
    assert by_donor[1] - by_donor[0] > 0.4


def test_the_difference_from_the_model_is_over_the_same_draws():
    true, predicted = answers()
    predicted["twin"] = predicted["model"].copy()
    found = bootstrap_scores(true, predicted, 3, seed=0)
    assert found["model"].model_minus_method is None
    assert found["twin"].model_minus_method.accuracy == (0.0, 0.0)
    low, high = found["other"].model_minus_method.accuracy
    assert 0.05 < low < high < 0.4


def test_one_donor_alone_is_no_reason_for_certainty():
    true, predicted = answers()
    found = bootstrap_scores(true, predicted, 3, donors=np.zeros(400, int), seed=0)["model"]
    assert found.resampled == "cells"
    assert found.accuracy[0] < found.accuracy[1]


def test_missing_labels_and_missing_predictions():
    true, predicted = answers()
    longer = {name: np.append(codes, [-1] * 50) for name, codes in predicted.items()}
    found = bootstrap_scores(np.append(true, [-1] * 50), longer, 3, seed=0)
    assert found == bootstrap_scores(true, predicted, 3, seed=0)
    none = bootstrap_scores([0, 1], {"model": [-1, -1]}, 2, seed=0)["model"]
    assert none.accuracy == (0.0, 0.0)
    assert bootstrap_scores([-1], {"model": [0]}, 2, seed=0) == {}


def test_the_seed_decides():
    true, predicted = answers(60)
    one, same, other = (bootstrap_scores(true, predicted, 3, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_many_units_are_drawn_in_parts(monkeypatch):
    true, predicted = answers()
    whole = bootstrap_scores(true, predicted, 3, seed=0)
    monkeypatch.setattr(metrics, "_MOST_WEIGHTS", 100)
    assert bootstrap_scores(true, predicted, 3, seed=0) == whole
