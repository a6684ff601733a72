"""The classifier of values on a grid: each kind, sparse and deep cells, few and many, genes removed."""

from functools import cache

import numpy as np
import pytest
from scipy import sparse

from core.cells.normalisation import TARGET_SUM
from core.cells.value_scale import (
    Transform,
    ValueScale,
    recognise,
    recover_counts,
    recover_library_sizes,
)

LOGS = {
    Transform.NONE: lambda x: x,
    Transform.LN: np.log1p,
    Transform.LOG2: lambda x: np.log2(1 + x),
    Transform.LOG10: lambda x: np.log10(1 + x),
    Transform.LN_TWICE: lambda x: np.log1p(np.log1p(x)),
    Transform.LN_LOG2: lambda x: np.log1p(np.log2(1 + x)),
    Transform.SQRT: np.sqrt,
}
#: Cells, genes, library size: few sparse cells, many of a small panel, deep ones.
SHAPES = [(20, 100, 300), (150, 120, 60), (60, 1000, 40_000)]


@cache
def cells(shape, seed=0):
    """(cells, genes) counts, and the genes that stay where some are removed."""
    n_cells, n_genes, size = shape
    rng = np.random.default_rng(seed)
    fractions = rng.dirichlet(np.full(n_genes, 0.3))
    counts = rng.poisson(size * rng.lognormal(0, 0.4, (n_cells, 1)) * fractions).astype(float)
    counts[np.arange(n_cells), rng.integers(0, n_genes, n_cells)] += 1
    return counts, np.sort(rng.choice(n_genes, n_genes // 2, replace=False))


def per(counts, total):
    return counts / counts.sum(axis=1, keepdims=True) * total


def found(values):
    return recognise(sparse.csr_matrix(np.asarray(values, dtype=np.float32)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transform", list(Transform))
def test_base_total_and_counts_are_recovered_also_where_genes_were_removed(shape, transform):
    counts, kept = cells(shape)
    sizes = counts.sum(axis=1)
    for total in (1e4, 1e6, float(np.median(sizes))):
        logged = LOGS[transform](per(counts, total))
        for values, expected in ((logged, counts), (logged[:, kept], counts[:, kept])):
            scale = found(values)
            assert (scale.transform, scale.unit) == (transform, "cell")
            if total == 1e6 and not scale.is_complete and scale.total is None:
                continue  # too deep for float32 to show a million, and then nothing is assumed
            assert scale.total == pytest.approx(total, rel=1e-4)
            rows = sparse.csr_matrix(values.astype(np.float32))
            recovered = recover_counts(rows.data, rows.indptr, scale)
            assert recovered.fits.all()
            np.testing.assert_array_equal(recovered.counts, expected[expected > 0])
            np.testing.assert_allclose(recovered.library_sizes, sizes, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transform", list(Transform))
def test_logs_of_raw_counts_are_undone_exactly(shape, transform):
    counts, kept = cells(shape)
    for expected in (counts, counts[:, kept]):
        rows = sparse.csr_matrix(LOGS[transform](expected).astype(np.float32))
        scale = recognise(rows)
        assert (scale.transform, scale.unit, scale.total) == (transform, "one", None)
        recovered = recover_counts(rows.data, rows.indptr, scale)
        np.testing.assert_array_equal(recovered.counts, expected[expected > 0])


def corrected(counts, rng):
    ambient = rng.dirichlet(np.ones(counts.shape[1]))
    return np.clip(counts - 0.1 * counts.sum(axis=1, keepdims=True) * ambient, 0, None)


def tpm(counts, rng):
    return per(counts / rng.lognormal(7, 0.7, counts.shape[1]), 1e6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_that_are_not_made_of_counts_are_never_taken_for_them(shape):
    counts, kept = cells(shape)
    rng = np.random.default_rng(1)
    is_first = (np.arange(len(counts)) < len(counts) // 2)[:, None]
    log = np.log1p(per(counts, 1e4))
    soup = corrected(counts, rng)
    assert found(np.log1p(per(soup, 1e4))) == ValueScale(
        Transform.LN, None, 1e4, is_complete=True, is_fractional=True
    )
    for transform in (Transform.NONE, Transform.LN, Transform.LOG2):
        scale = found(LOGS[transform](tpm(counts, np.random.default_rng(1))))
        assert (scale.transform, scale.is_like_tpm) == (transform, True)
    unknown: dict = {
        "corrected, normalised, genes removed": np.log1p(per(soup, 1e4))[:, kept],
        "any fraction of the counts": counts * rng.uniform(0.2, 1, counts.shape),
        "standardised": log / (log.std(axis=0) + 1e-3),
        "unit length": log / np.linalg.norm(log, axis=1, keepdims=True),
        "two bases": np.where(is_first, log, log / np.log(2)),
        "counts but for one value": np.where(
            np.arange(counts.size).reshape(counts.shape) == counts.argmax(), 1.5, counts
        ),
        "counts and log values": np.where(is_first, counts, log),
    }
    assert {name: found(values) for name, values in unknown.items()} == dict.fromkeys(unknown)
    for values in (soup, soup[:, kept]):
        assert found(values) in {None, ValueScale(is_fractional=True)}


def test_several_totals_are_taken_cell_by_cell_or_not_at_all():
    counts, kept = cells(SHAPES[1])
    totals = np.where(np.arange(len(counts)) < 60, 1e4, 1e6)[:, None]
    logged = np.log1p(per(counts, totals))
    assert found(logged) == ValueScale(Transform.LN, "cell", None, is_complete=True)
    assert found(logged[:, kept]) == ValueScale(Transform.LN, "cell", None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x * (1 - 1e-7), ValueScale(unit="one", is_near=True)),
        (lambda x: x + 1e-4 * (x > 0), ValueScale(unit="one", is_near=True)),
        (lambda x: x * 7.3, ValueScale(unit="cell")),
        (lambda x: np.log1p(per(x, 1e4)).astype(np.float16), None),
        (lambda x: np.round(np.log1p(per(x, 1e4)), 3), None),
        (lambda x: np.log2(1 + x * np.linspace(0.5, 2, len(x))[:, None]),
         ValueScale(Transform.LOG2, "cell")),
    ],
    ids=["2.9999998", "3.0001", "times 7.3", "float16", "three decimals", "size factors"],
)  # fmt: skip
def test_rounding_and_factors_are_seen_through(change, expected):
    scale = found(change(cells(SHAPES[1])[0]))
    if expected is None:
        assert scale.is_plain_log
    else:
        assert scale == expected


def test_a_single_cell_shows_a_usual_total():
    counts, _ = cells(SHAPES[0])
    assert found(np.log1p(per(counts[:1], 1e4))).is_plain_log
    scale = found(np.log1p(per(counts[:1], 1e4)[:, :50]))
    assert scale is None or scale.total is None


def test_library_sizes_come_back_from_the_log_values_of_some_genes():
    counts, kept = cells(SHAPES[2])
    rows = sparse.csr_matrix(np.log1p(per(counts, TARGET_SUM))[:, kept].astype(np.float32))
    sizes = recover_library_sizes(rows.data, rows.indptr)
    np.testing.assert_array_equal(sizes, counts.sum(axis=1))
    spoilt = rows.copy()
    spoilt.data[: spoilt.indptr[1]] *= np.linspace(0.9, 1.1, spoilt.indptr[1])
    assert np.isnan(recover_library_sizes(spoilt.data, spoilt.indptr))[:2].tolist() == [True, False]
