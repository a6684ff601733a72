"""Accuracy donor by donor."""

import math

import numpy as np

from core.evaluation.donor_spread import spread_over_donors


def test_each_donor_is_scored_on_its_own_labelled_cells():
    true = np.array([0] * 20 + [1] * 10 + [1] * 3 + [-1] * 30)
    predicted = np.array([0] * 15 + [1] * 5 + [1] * 10 + [0] * 3 + [0] * 30)
    donors = np.array([2] * 20 + [0] * 10 + [1] * 3 + [3] * 30)
    spread = spread_over_donors(true, predicted, donors, ["a", "b", "c", "d"])
    assert [(one.donor, one.n_cells, one.accuracy) for one in spread.donors] == [
        ("c", 20, 0.75),
        ("a", 10, 1.0),
    ]
    assert spread.n_donors == 3  # b has too few cells to be scored, d no labels
    assert (spread.minimum, spread.median, spread.maximum) == (0.75, 0.875, 1.0)
    record = spread.to_dict(each=True)
    assert (record["donors"], record["donors of 10 cells or more"]) == (3, 2)
    assert record["each"][0] == {"donor": "c", "cells": 20, "accuracy": 0.75}
    assert "each" not in spread.to_dict(each=False)


def test_cells_of_no_known_donor_are_left_out():
    spread = spread_over_donors(np.zeros(20, int), np.zeros(20, int), np.full(20, -1), ["a"])
    assert (spread.n_donors, spread.donors) == (0, ())
    assert math.isnan(spread.minimum)
