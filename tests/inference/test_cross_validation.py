"""Which runs can be cross-validated, and which cells each model leaves out."""

from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from core.cells.store import LabelColumns, Store
from core.errors import ConfigurationError
from core.inference.cross_validation import plan_folds
from tests.tiny_atlas import tiny_preset

RUN = Path("runs/few")


def test_each_fold_leaves_out_one_donor_of_the_training_cells(tiny_store):
    folds = plan_folds(RUN, tiny_preset(data__where=["sex=female"]), tiny_store)
    rows = tiny_store.select("sex=female", split="train")
    donors = tiny_store.donors[rows]
    assert [fold.donor for fold in folds] == [
        tiny_store.donor_names[one] for one in np.unique(donors)
    ]
    assert len({fold.folder for fold in folds}) == len(folds)
    for fold in folds:
        trained = tiny_store.select(fold.trained_where, split="train")
        assert np.array_equal(np.union1d(trained, fold.rows), rows)
        assert not np.intersect1d(tiny_store.donors[trained], tiny_store.donors[fold.rows]).size
        assert not fold.is_finished


def changed(store, **others):
    """Return a view of a store with other arrays, from which its cached properties are made anew."""
    view = Store.__new__(Store)
    own = {
        name: value
        for name, value in store.__dict__.items()
        if not isinstance(getattr(Store, name, None), cached_property)
    }
    view.__dict__.update(own | others)
    return view


def test_cells_of_unknown_donors_train_every_model(tiny_store):
    donors = np.array(tiny_store.donors)
    donors[::2] = -1
    folds = plan_folds(RUN, tiny_preset(), changed(tiny_store, donors=donors))
    assert all((donors[fold.rows] == fold.code).all() for fold in folds)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"donors": None}, "its store has no donors: name their obs column as data.split.by"),
        ({"phenotypes": {"donor": ["a", "b"]}}, "a phenotype of its store is called 'donor'"),
        ({"donors": np.zeros(600, np.int32)}, "its training cells are of 1 donor; two are needed"),
    ],
)
def test_what_cannot_be_cross_validated_is_said(tiny_store, others, words):
    with pytest.raises(
        ConfigurationError, match="cannot be cross-validated over donors"
    ) as refused:
        plan_folds(RUN, tiny_preset(), changed(tiny_store, **others))
    assert words in str(refused.value)


def test_a_donor_that_no_condition_can_name_is_refused(tiny_store):
    names = ["""a"b',c""", *tiny_store.donor_names[1:]]
    labels = tiny_store.labels.data | {"donor": (tiny_store.donors, names)}
    view = changed(tiny_store, donor_names=names, labels=LabelColumns(labels))
    with pytest.raises(ConfigurationError, match="donor"):
        plan_folds(RUN, tiny_preset(), view)
