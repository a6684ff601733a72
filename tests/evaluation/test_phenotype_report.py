"""What is said of the answers to one phenotype."""

import numpy as np
import pytest

from core.evaluation.phenotype_report import report_answers, top_accuracy


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.fixture
def told():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 200)
    logits = rng.normal(size=(200, 5))
    logits[np.arange(200), truth] += 1.5
    return truth, softmax(logits)


def test_top_accuracy_looks_at_the_most_probable(told):
    truth, probabilities = told
    expected = np.mean([t in np.argsort(p)[-3:] for t, p in zip(truth, probabilities, strict=True)])
    assert top_accuracy(probabilities, truth, 3) == pytest.approx(expected)
    assert top_accuracy(probabilities, truth, 1) == (probabilities.argmax(axis=1) == truth).mean()


def test_top_three_of_three_says_nothing():
    assert top_accuracy(np.full((2, 3), 1 / 3), np.array([0, 1]), 3) is None
    assert top_accuracy(np.full((2, 4), 1 / 4), np.array([-1, -1]), 3) is None


def test_equal_probabilities_are_no_help():
    assert top_accuracy(np.full((1, 5), 0.2), np.array([4]), 3) == 0.0


def test_every_method_has_the_same_figures(told):
    truth, probabilities = told
    report = report_answers(
        "cell_type", list("abcde"), truth, {"model": probabilities, "chance": np.full((200, 5), 0.2)},
        donors=np.arange(200) % 4, donor_names=["p", "q", "r", "s"], seed=0,
    )  # fmt: skip
    assert list(report) == ["model", "chance"]
    assert set(report["model"]) == set(report["chance"])
    assert len(report["model"]["over_donors"]["each"]) == 4
    assert "each" not in report["chance"]["over_donors"]
    low, high = report["model"]["intervals"]["accuracy"]
    assert low <= report["model"]["accuracy"] <= high
    assert report["chance"]["intervals"]["lead of the model"]["accuracy"][0] > 0
    assert report["model"]["intervals"]["resampled"] == "donors"


@pytest.mark.parametrize("name", ["age", "donor_age", "development_stage", "stage", "tissue"])
def test_only_ages_are_in_years(name, told):
    truth, probabilities = told
    decades = ["20-29", "30-39", "40-49", "50-59", "60-69"]
    ours = report_answers(name, decades, truth, {"model": probabilities}, seed=0)["model"]
    assert ("mean_years_off" in ours) == (name not in ("stage", "tissue"))
    if "mean_years_off" in ours:
        off = 10 * np.abs(truth - probabilities.argmax(axis=1)).mean()
        assert ours["mean_years_off"] == pytest.approx(off)
    assert "over_donors" not in ours
