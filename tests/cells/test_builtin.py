"""Built-in data sets by name and option."""

import numpy as np
import pytest

from core.cells.builtin import load_builtin
from core.errors import ConfigurationError


@pytest.fixture(scope="module")
def pbmc68k():
    return load_builtin("builtin:pbmc68k")


def test_pbmc68k_has_its_labels_also_as_cell_type(pbmc68k):
    assert pbmc68k.shape == (700, 765)
    assert (pbmc68k.obs["cell_type"] == pbmc68k.obs["bulk_labels"]).all()
    assert pbmc68k.obs["cell_type"].nunique() == 10


def test_pbmc68k_stays_scaled_in_x_and_log_normalised_in_raw(pbmc68k):
    assert pbmc68k.X.min() < 0
    assert pbmc68k.raw.X.min() >= 0
    assert "tfx_simulated" not in pbmc68k.uns


def test_each_load_is_a_fresh_object(pbmc68k):
    again = load_builtin("builtin:pbmc68k")
    again.X[:] = 0
    assert pbmc68k.X.any()


def test_atlas_takes_cells_and_seed():
    atlas = load_builtin("builtin:atlas?cells=120&seed=3")
    same = load_builtin("builtin:atlas?seed=3&cells=120")
    other = load_builtin("builtin:atlas?cells=120")
    assert atlas.n_obs == 120
    assert (atlas.X != same.X).nnz == 0
    assert not np.array_equal(atlas.X.data, other.X.data)
    assert atlas.uns["tfx_simulated"] is True


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("builtin:atlsa", "did you mean 'builtin:atlas'"),
        ("builtin:pbmc", "did you mean 'builtin:pbmc68k'"),
        ("builtin:", "there is no built-in data set 'builtin:'"),
        ("atlas", "there is no built-in data set 'atlas'"),
        ("builtin:atlas?cell=10", "unknown option 'cell'; did you mean 'cells'"),
        ("builtin:pbmc68k?seed=1", "unknown option 'seed'; it takes no options"),
        ("builtin:atlas?cells=many", "cells must be a whole number"),
        ("builtin:atlas?cells=-5", "cells must be a whole number"),
        ("builtin:atlas?cells=", "cells must be a whole number"),
        ("builtin:atlas?cells=0", "between 1 and"),
        ("builtin:atlas?version=3", "has the versions 1 and 2, not 3"),
        ("builtin:atlas?seed=" + "9" * 5000, "seed must be a whole number"),
    ],
)
def test_wrong_specifications_are_errors_with_advice(spec, message):
    with pytest.raises(ConfigurationError, match=message.replace("?", r"\?")):
        load_builtin(spec)
