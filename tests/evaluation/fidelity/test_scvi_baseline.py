"""scVI beside generated cells; the package is an extra, without which the model's own tests are skipped."""

import numpy as np
import pytest
from scipy import sparse

from core.errors import DataError, MachineError
from core.evaluation.fidelity import scvi_baseline
from core.evaluation.fidelity.scvi_baseline import fit_scvi


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(scvi_baseline, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"pip install 'transformerics\[scvi\]'"):
        fit_scvi(sparse.csr_matrix((3, 2)), np.ones(3), np.zeros(3, np.int64))


def test_new_cells_look_like_their_class(monkeypatch):
    pytest.importorskip("scvi")
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, -1], [200, 200, 20])
    rates = 3 * rng.gamma(1.0, 1.0, (3, 40))
    counts = rng.poisson(rates[classes] * rng.gamma(5, 0.2, (420, 1)))
    totals = 2.0 * counts.sum(axis=1) + 10
    monkeypatch.setattr(scvi_baseline, "_EPOCHS", 60)
    draw = fit_scvi(sparse.csr_matrix(counts, dtype=np.float32), totals, classes)
    wanted = np.repeat([1, 0], 150)
    drawn = draw(wanted, np.random.default_rng(1))
    assert (drawn.shape, drawn.dtype) == ((300, 40), np.float32)
    real = np.log1p(counts * 1e4 / totals[:, None])
    for code in (0, 1):
        means = [drawn[wanted == code].mean(axis=0), real[classes == code].mean(axis=0)]
        assert np.corrcoef(means)[0, 1] > 0.8
        other = real[classes == 1 - code].mean(axis=0)
        assert np.corrcoef(means[0], other)[0, 1] < np.corrcoef(means)[0, 1] - 0.2
    np.testing.assert_array_equal(draw(wanted, np.random.default_rng(1)), drawn)
    with pytest.raises(DataError, match="no training cell has class 5"):
        draw(np.array([5]), rng)
