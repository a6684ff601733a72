"""The remarks of a reviewer: each where it holds, and none where it does not."""

import numpy as np
from scipy import sparse

from core.evaluation.method_comparison import (
    KnownCells,
    review_donors,
    review_labels,
    review_scores,
    review_two_genes,
)
from core.evaluation.report.records import (
    BootstrapIntervals,
    Intervals,
    PhenotypeScores,
    TwoGeneScores,
)


def scores(accuracy, macro_f1, difference=(-0.1, 0.1)):
    interval = (accuracy - 0.1, accuracy + 0.1)
    intervals = BootstrapIntervals(
        *[interval] * 3, resampled="donors", model_minus_method=Intervals(*[difference] * 3)
    )
    return PhenotypeScores(accuracy, accuracy, macro_f1, 100, intervals=intervals)


def test_a_better_baseline_is_named_and_whether_it_is_chance():
    notes = list(
        review_scores(
            "age",
            {
                "model": scores(0.5, 0.4),
                "gradient_boosting": scores(0.6, 0.5, (-0.15, -0.05)),
                "marginal": scores(0.45, 0.41),
                "nearest_neighbours": scores(0.4, 0.4),
                "majority": scores(0.5, 0.1),
            },
        )
    )
    assert notes == [
        "age: the model scores lower than gradient boosting in accuracy and macro-F1 (accuracy 0.500 "
        "against 0.600, macro-F1 0.400 against 0.500)",
        "age: the model scores lower than marginal in macro-F1 (accuracy 0.500 against 0.450, macro-F1 "
        "0.400 against 0.410); within chance (95 %, over donors)",
        "age: the model is no better than always predicting the most common value",
    ]
    assert not list(review_scores("age", {"model": scores(0.5, 0.4)}))


def test_labels_absent_from_training_are_named_and_counted():
    values = ["lung", "liver", "skin"]
    truth = np.array([0, 0, 1, 2, 2, -1])
    assert list(review_labels("tissue", values, truth, np.array([0, 1, 1]))) == [
        "tissue: 'skin' is absent from training, so 2 of 5 scored cells cannot be predicted rightly"
    ]
    (note,) = review_labels("tissue", values, truth, np.array([0, -1]))
    assert note.startswith("tissue: 'liver', 'skin' are absent from training, so 3 of 5")
    assert not list(review_labels("tissue", values, truth, np.array([0, 1, 2])))


def test_one_scored_value_means_little():
    (note,) = review_labels("sex", ["female", "male"], np.array([1, 1, -1]), np.array([0, 1]))
    assert note == "sex: all scored cells have one value, so its accuracy means little"


def known_cells(codes, donors):
    codes = np.array(codes)[:, None]
    nothing = sparse.csr_matrix((len(codes), 0))
    return KnownCells(nothing, codes, None if donors is None else np.array(donors))


def notes_of(training_donors, scored_donors, training, scored, values=("a", "b"), n_donors=20):
    return list(
        review_donors(
            known_cells(training, training_donors),
            known_cells(scored, scored_donors),
            n_donors,
            {"disease": values},
            {"disease": 0},
        )
    )


def test_unknown_donors_may_be_on_both_sides():
    (note,) = notes_of(None, [0] * 3, [0], [0] * 3)
    assert note.startswith("donors are not known")


def test_a_value_of_few_donors_is_confounded_with_them():
    notes = notes_of([0, 1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 0, 1, 0], [0, 0, 0, 1])
    assert notes == [
        "disease: every donor has one value, and 'b' is of fewer than 3 donors, training and scored: "
        "any other difference between these donors and the rest looks like disease",
        "disease: 'b' is scored on fewer than 3 donors",
        "disease: every donor has one value, so the sample is 4 donors, not 4 cells",
    ]


def test_values_that_meet_within_donors_and_are_of_many_give_no_note():
    donors = np.tile(np.arange(10, 14), 2)
    assert notes_of(np.arange(10), donors, [0, 1] * 5, [0] * 4 + [1] * 4) == []


def test_many_donors_of_each_value_are_the_sample():
    assert notes_of([0, 1, 2, 3], [10, 11, 12, 13, 14, 15], [0, 1, 0, 1], [0, 0, 0, 1, 1, 1]) == [
        "disease: every donor has one value, so the sample is 6 donors, not 6 cells"
    ]


def test_donors_on_both_sides_are_noted():
    notes = notes_of([0, 1, 2, 3], [3, 3, 4, 4, 5, 5], [0, 1, 0, 1], [0, 1] * 3)
    assert notes == ["of 3 scored donors 1 has cells in training, so the scores may be too high"]


def test_one_or_two_donors_are_no_sample():
    notes = notes_of([0, 1, 2], [5, 5, -1], [0, 1, 0], [0, 1, 0])
    assert notes == [
        "the scores are those of 1 donor; other donors may differ by more than the intervals"
    ]


def test_two_genes_that_do_as_well_are_named():
    two = TwoGeneScores(("XIST", "RPS4Y1"), accuracy=0.985, balanced_accuracy=0.98)
    assert list(review_two_genes("sex", PhenotypeScores(accuracy=0.99), two)) == [
        "sex: XIST and RPS4Y1 alone reach accuracy 0.985 (model 0.990), so the score means little "
        "about the other genes"
    ]
    assert not list(review_two_genes("sex", PhenotypeScores(accuracy=0.999), two))
    weak = TwoGeneScores(two.genes, accuracy=0.55, balanced_accuracy=0.55)
    assert not list(review_two_genes("sex", PhenotypeScores(accuracy=0.55), weak))


def test_equal_scores_to_three_digits_are_no_loss():
    tie = {"model": scores(0.4932, 0.4), "marginal": scores(0.4934, 0.4)}
    assert not list(review_scores("age", tie))
